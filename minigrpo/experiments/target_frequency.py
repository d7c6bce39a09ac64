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

import numpy as np

from minigrpo.experiments.parallel import run_jobs
from minigrpo.plots import bootstrap_interval
from minigrpo.trainer import TrainSettings, train

LAST = 50  # steps that the table looks at


def target_frequency(settings: TrainSettings) -> list[float]:
    """Train, and return the share of target paths among the completions of each step.   -> (steps,)"""
    return [metrics["frac_correct"] for metrics in train(settings, progress=False)[1]]


def learning_curves_of(
    objectives: Sequence[str],
    ns: Sequence[int],
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    *,
    steps: int = 250,
    r_neg: float = -1.0,
    processes: int | None = None,
) -> dict[tuple[str, int, float], np.ndarray]:
    """Target frequency for every combination.   -> {(objective, n, learning rate): (seeds, steps)}"""
    arms = [(objective, n, rate) for n in ns for rate in learning_rates for objective in objectives]
    jobs = [
        TrainSettings.for_task("treewalk", task_options={"n": n, "r_neg": r_neg}, objective=o, learning_rate=r, steps=steps, seed=s)
        for o, n, r in arms
        for s in seeds
    ]
    curves = np.array(run_jobs(target_frequency, jobs, title="tree walk", processes=processes))
    return dict(zip(arms, curves.reshape(len(arms), len(seeds), -1), strict=True))


def table(curves: dict[tuple[str, int, float], np.ndarray]) -> list[dict[str, float | str | int]]:
    """Mean target frequency of the last 50 steps with a 95 % bootstrap interval over seeds, a row for each arm."""
    rows = []
    for (objective, n, rate), curve in curves.items():
        final = curve[:, -LAST:].mean(1)  # (seeds,)
        low, high = bootstrap_interval(final, np.random.default_rng(0))
        row = {"objective": objective, "n": n, "learning_rate": rate, "seeds": len(final)}
        rows.append(row | {"target_frequency": float(final.mean()), "low": float(low), "high": float(high)})
    return rows


def main() -> None:
    """Sweep the learning rate and print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3])
    parser.add_argument("--objectives", nargs="+", default=["grpo", "lambda_grpo"])
    parser.add_argument("--n", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, help="write the table as JSON lines")
    a = parser.parse_args()
    rows = table(learning_curves_of(a.objectives, a.n, a.learning_rates, range(a.seeds)))
    for row in rows:
        print("n={n} lr={learning_rate:<7g} {objective:12} {target_frequency:.3f}  [{low:.3f}, {high:.3f}]".format(**row))
    if a.out:
        a.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
