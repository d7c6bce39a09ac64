"""How often a policy walks the target path of `treewalk`, step by step, for objectives, learning rates and seeds.

This is what `minigrpo demo` shows of the paper's synthetic experiment: whole runs with all their metrics, at one learning rate.
The full table, with a sweep and controls, is `table1.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minigrpo.experiments.parallel import run_jobs
from minigrpo.plots import bootstrap_interval
from minigrpo.trainer import TrainSettings, train

LAST = 50  # steps that the table looks at


class Arm(NamedTuple):
    """What is compared: an objective in a setting of the task at a learning rate."""

    objective: str
    n: int  # moves that the misleading paths share with the target
    learning_rate: float


def metrics_of_run(n: int, r_neg: float, **settings: Any) -> list[dict[str, Any]]:
    """Train on the tree walk, and return one dict of metrics a step; `frac_correct` is the share of target paths."""
    options = {"n": n, "r_neg": r_neg}
    return train(TrainSettings.for_task("treewalk", task_options=options, **settings), progress=False)[1]


def run_arms(
    arms: Sequence[Arm], seeds: Sequence[int], *, steps: int = 250, r_neg: float = -1.0, processes: int | None = None
) -> dict[Arm, list[list[dict[str, Any]]]]:
    """The metrics of every arm and seed.   -> {arm: [one list of metrics a seed]}"""
    jobs = [arm._asdict() | {"r_neg": r_neg, "steps": steps, "seed": seed} for arm in arms for seed in seeds]
    results = run_jobs(metrics_of_run, jobs, title="tree walk", processes=processes)
    return {arm: results[i * len(seeds) : (i + 1) * len(seeds)] for i, arm in enumerate(arms)}


def target_frequency(runs: list[list[dict[str, Any]]]) -> np.ndarray:
    """The share of target paths among the completions of each step.   -> (seeds, steps)"""
    return np.array([[metrics["frac_correct"] for metrics in run] for run in runs])


def table(results: dict[Arm, list[list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Mean target frequency of the last 50 steps with its 95 % bootstrap interval over seeds, a row for each arm."""
    rows = []
    for arm, runs in results.items():
        final = target_frequency(runs)[:, -LAST:].mean(1)  # (seeds,)
        low, high = bootstrap_interval(final, np.random.default_rng(0))
        row = arm._asdict() | {"seeds": len(runs), "target_frequency": float(final.mean())}
        rows.append(row | {"low": float(low), "high": float(high)})
    return rows
