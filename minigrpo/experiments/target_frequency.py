"""How often a policy walks the target path of `treewalk`, step by step, for objectives, learning rates and seeds.

The paper's synthetic experiment (section 4.3, table 1): k = 16, 250 steps, the share of the target path among the completions
of the last 50 steps.  There the policy is GPT-2-small; here it is a transformer of two layers that starts near the uniform
policy, so learning rates are not comparable and are swept.  Run the sweep with `python -m minigrpo.experiments.target_frequency`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
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


def metrics_of_run(settings: TrainSettings) -> list[dict[str, Any]]:
    """Train, and return one dict of metrics a step; `frac_correct` is the share of target paths."""
    return train(settings, progress=False)[1]


def run_arms(
    arms: Sequence[Arm], seeds: Sequence[int], *, steps: int = 250, r_neg: float = -1.0, processes: int | None = None
) -> dict[Arm, list[list[dict[str, Any]]]]:
    """The metrics of every arm and seed.   -> {arm: [one list of metrics a seed]}"""
    jobs = [
        TrainSettings.for_task(
            "treewalk",
            task_options={"n": arm.n, "r_neg": r_neg},
            objective=arm.objective,
            learning_rate=arm.learning_rate,
            steps=steps,
            seed=seed,
        )
        for arm in arms
        for seed in seeds
    ]
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


def main() -> None:
    """Sweep the learning rate of GRPO and λ-GRPO on the paper's tree walk and print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 3e-3, 1e-2])
    parser.add_argument("--objectives", nargs="+", default=["grpo", "lambda_grpo"])
    parser.add_argument("--n", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, help="write the table as JSON lines")
    a = parser.parse_args()
    arms = [Arm(objective, n, rate) for n in a.n for rate in a.learning_rates for objective in a.objectives]
    rows = table(run_arms(arms, range(a.seeds)))
    for row in rows:
        print("n={n} lr={learning_rate:<7g} {objective:12} {target_frequency:.3f}  [{low:.3f}, {high:.3f}]".format(**row))
    if a.out:
        a.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
