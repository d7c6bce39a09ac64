"""Table 1 of the paper, with controls: does λ-GRPO find the target path of the tree walk where GRPO does not, and why?

The paper (section 4.3): a binary tree of depth 4, walked from a root token that is no move; every token but L and R is
masked; the target path is drawn for each run and earns 1, other paths that share its first n moves earn r_neg, all others 0.7;
k = 16, 250 steps, the share of target paths among those of the last 50, over five seeds.  Its policy is GPT-2-small at one learning
rate.  Here it is a transformer of two layers that starts near the uniform policy, so learning rates are not comparable and every
arm's is swept; each of the 16 targets is walked to equally often, by `many_walks.py`.

The best learning rate of an arm is chosen on the first half of its runs, and what is reported is the second half.
Ours, and kept apart: n = 3, and one fixed target (RRRR) for all runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.experiments import write_tables
from minigrpo.experiments.many_walks import BLOCK, GROUP_SIZE, LAST, MC_GROUP_SIZE, STEPS, run_walks
from minigrpo.experiments.parallel import run_jobs
from minigrpo.experiments.table1_plots import best_figure, paper_figure, sweep_figure
from minigrpo.show.plots import bootstrap_interval, save

PUBLISHED = {  # (n, r_neg): GRPO, λ-GRPO; the paper's Table 1, five seeds each
    (1, -0.5): (0.3995, 0.5663),
    (1, -1.0): (0.0000, 0.7535),
    (1, -1.5): (0.2000, 0.4463),
    (2, -0.5): (0.1980, 0.4292),
    (2, -1.0): (0.0488, 0.3612),
    (2, -1.5): (0.0000, 0.3820),
}
SETTINGS = list(PUBLISHED)
COMPARED = ("grpo", "lambda_grpo")
CONTROLS = (
    "grpo_at_lambda_norm",
    "lambda_at_grpo_norm",
    "placebo",
    "dr_grpo",
    "rloo",
    "monte_carlo_prm",
)
ARMS = COMPARED + CONTROLS
RATES = {
    "adamw": (1.5e-4, 3e-4, 6e-4, 1.2e-3, 2.4e-3, 4.8e-3),
    "sgd": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),  # Adam hides a gradient's scale; plain SGD does not
}
LARGER_RATES = {
    "dr_grpo": (9.6e-3, 1.92e-2, 3.84e-2),
    "rloo": (9.6e-3, 1.92e-2, 3.84e-2),
}  # of AdamW, for arms that want them
RUNS, CONTROL_RUNS, CHUNK = 192, 96, 32
Cell = tuple[
    str, int, float, str, float, str
]  # arm, n, r_neg, optimiser, learning rate, targets ("drawn" or "RRRR")
NAMES = ("arm", "n", "r_neg", "optimizer", "learning_rate", "targets")


def cells(quick: bool) -> dict[Cell, int]:
    """All cells and the number of runs of each (quick: two settings, five arms, three rates of AdamW)."""
    if quick:
        return {
            (arm, n, -1.0, "adamw", rate, "drawn"): 64
            for n in (1, 2)
            for rate in RATES["adamw"][1:4]
            for arm in ARMS[:5]
        }
    found = {}
    for optimizer, rates in RATES.items():
        for rate in rates:
            for n, r_neg in SETTINGS:
                found |= {(arm, n, r_neg, optimizer, rate, "drawn"): RUNS for arm in COMPARED}
                found |= {
                    (arm, n, r_neg, optimizer, rate, "drawn"): CONTROL_RUNS for arm in CONTROLS
                }
            for r_neg in (-0.5, -1.0, -1.5):
                found |= {
                    (arm, 3, r_neg, optimizer, rate, "drawn"): CONTROL_RUNS for arm in COMPARED
                }
            if optimizer == "adamw":
                found |= {
                    (arm, n, r, optimizer, rate, "RRRR"): CONTROL_RUNS
                    for n, r in SETTINGS
                    for arm in COMPARED
                }
    larger = [(arm, rate) for arm, rates in LARGER_RATES.items() for rate in rates]
    return found | {
        (arm, n, r, "adamw", rate, "drawn"): CONTROL_RUNS
        for n, r in SETTINGS
        for arm, rate in larger
    }


def walk(
    arm: str,
    n: int,
    r_neg: float,
    optimizer: str,
    learning_rate: float,
    targets: str,
    first_seed: int,
    runs: int,
    steps: int = STEPS,
) -> list[int]:
    """-> of each run, the target paths among the completions of the last 50 steps"""
    target = None if targets == "drawn" else int(targets.replace("L", "0").replace("R", "1"), 2)
    options: dict[str, Any] = {
        "runs": runs,
        "first_seed": first_seed,
        "target": target,
        "steps": steps,
    }
    hits = run_walks(arm, n, r_neg, optimizer, learning_rate, **options)
    return [sum(run[-LAST // BLOCK :]) for run in hits]


# -- the table -----------------------------------------------------------------------------------------------------------


def frequency(arm: str, final: Sequence[int]) -> np.ndarray:
    """Target frequency of the last 50 steps, one number a run."""
    return np.array(final) / (LAST * (MC_GROUP_SIZE if arm == "monte_carlo_prm" else GROUP_SIZE))


def summary(values: np.ndarray) -> dict[str, Any]:
    """Mean with its 95 % bootstrap interval, and the share of runs that found the target (above one half)."""
    low, high = bootstrap_interval(values, np.random.default_rng(0))
    numbers = {
        "target_frequency": values.mean(),
        "low": low,
        "high": high,
        "found": (values > 0.5).mean(),
    }
    return {name: digits(number) for name, number in numbers.items()}


def digits(x: float) -> float:
    """To four digits, as the tables have them."""
    return float(f"{x:.4g}")


def table(finals: dict[Cell, list[int]]) -> list[dict[str, Any]]:
    """A row for each cell: of all its runs; the mean of the first half; and each run's target paths, of LAST · group size."""
    rows = []
    for cell, final in finals.items():
        values = frequency(cell[0], final)
        row = dict(zip(NAMES, cell, strict=True)) | {"runs": len(final)} | summary(values)
        rows.append(
            row | {"first_half": digits(values[: len(values) // 2].mean()), "hits_of_run": final}
        )
    return rows


def best(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each arm at the rate that is best on the first half of its runs; what is told of it is the second half.

    `inside`: the rate is neither the smallest nor the largest of the sweep.
    """
    chosen = []
    for key in dict.fromkeys(
        tuple(row[name] for name in NAMES if name != "learning_rate") for row in rows
    ):
        own = [
            row
            for row in rows
            if tuple(row[name] for name in NAMES if name != "learning_rate") == key
        ]
        row = max(own, key=lambda row: row["first_half"])
        rates = [other["learning_rate"] for other in own]
        hits = row["hits_of_run"][row["runs"] // 2 :]
        picked = {name: row[name] for name in NAMES} | {
            "inside": min(rates) < row["learning_rate"] < max(rates)
        }
        chosen.append(
            picked
            | {"runs": len(hits)}
            | summary(frequency(row["arm"], hits))
            | {"hits_of_run": hits}
        )
    return chosen


def comparison(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """GRPO against λ-GRPO for each setting: each at its best rate, and both at each common rate; paired by seed.

    difference: mean of λ-GRPO - GRPO with its 95 % bootstrap interval; only_*: runs (seeds) in which this one alone found the
    target; p: exact sign test on these; paper_*: see `beside_the_paper`.
    """
    groups = [("best", row["learning_rate"], row) for row in best(rows)] + [
        ("same", row["learning_rate"], row) for row in rows
    ]
    found = []
    for rate, _, grpo in [g for g in groups if g[2]["arm"] == "grpo"]:
        same = ["n", "r_neg", "optimizer", "targets"] + ["learning_rate"] * (rate == "same")
        fixed = next(
            r
            for kind, _, r in groups
            if kind == rate and r["arm"] == "lambda_grpo" and all(r[x] == grpo[x] for x in same)
        )
        a, b = (
            frequency("grpo", grpo["hits_of_run"]),
            frequency("lambda_grpo", fixed["hits_of_run"]),
        )
        low, high = bootstrap_interval(b - a, np.random.default_rng(0))
        only = int(((a > 0.5) & (b <= 0.5)).sum()), int(((b > 0.5) & (a <= 0.5)).sum())
        row = (
            {"rates": rate}
            | {name: grpo[name] for name in ("n", "r_neg", "optimizer", "targets")}
            | {"runs": len(a)}
        )
        for name, r, values in (("grpo", grpo, a), ("lambda_grpo", fixed, b)):
            row |= {
                f"{name}_rate": r["learning_rate"],
                name: digits(values.mean()),
                f"{name}_found": digits((values > 0.5).mean()),
            }
        row |= {"difference": digits((b - a).mean()), "low": digits(low), "high": digits(high)}
        row |= {"only_grpo": only[0], "only_lambda_grpo": only[1], "p": digits(sign_test(*only))}
        if (grpo["n"], grpo["r_neg"]) in PUBLISHED and grpo["targets"] == "drawn":
            row |= beside_the_paper(grpo["n"], grpo["r_neg"], a, b)
        found.append(row)
    return found


def beside_the_paper(n: int, r_neg: float, grpo: np.ndarray, fixed: np.ndarray) -> dict[str, Any]:
    """The published pair beside the frequencies of our runs: how likely five of ours are to do as the paper's five seeds did.

    paper_p_*: by the number of seeds that found the target, the nearest to five times the published mean; paper_p_mean_*: by the
    mean itself, of five runs drawn from ours.  For GRPO "as badly or worse", for λ-GRPO "as well or better".
    """
    published, rng = PUBLISHED[n, r_neg], np.random.default_rng(0)
    a, b = (round(5 * value) for value in published)
    means = [
        values[rng.integers(len(values), size=(20_000, 5))].mean(1) for values in (grpo, fixed)
    ]
    found = [float((values > 0.5).mean()) for values in (grpo, fixed)]
    return {
        "paper_grpo": published[0],
        "paper_lambda_grpo": published[1],
        "paper_seeds_grpo": a,
        "paper_seeds_lambda_grpo": b,
        "paper_p_grpo": digits(sum(binomial(s, 5, found[0]) for s in range(a + 1))),
        "paper_p_lambda_grpo": digits(sum(binomial(s, 5, found[1]) for s in range(b, 6))),
        "paper_p_mean_grpo": digits((means[0] <= published[0] + 5e-5).mean()),
        "paper_p_mean_lambda_grpo": digits((means[1] >= published[1] - 5e-5).mean()),
    }


def binomial(successes: int, n: int, p: float) -> float:
    """The probability of so many successes in n tries."""
    return math.comb(n, successes) * p**successes * (1 - p) ** (n - successes)


def sign_test(a: int, b: int) -> float:
    """Two-sided exact sign test: the probability of a split at least as uneven if either side were equally likely."""
    return min(1.0, 2 * sum(binomial(i, a + b, 0.5) for i in range(min(a, b) + 1)))


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Each arm at its own best learning rate, then GRPO against λ-GRPO, as tables for a terminal."""
    chosen = best(rows)
    lines = []
    for optimizer, n, r_neg, targets in dict.fromkeys(
        (r["optimizer"], r["n"], r["r_neg"], r["targets"]) for r in chosen
    ):
        lines.append(
            f"{optimizer}  n={n}  r_neg={r_neg:g}  targets {targets}: frequency of the target in the last {LAST} steps"
        )
        for r in chosen:
            if (r["optimizer"], r["n"], r["r_neg"], r["targets"]) == (optimizer, n, r_neg, targets):
                interval = f"{r['target_frequency']:.3f}  [{r['low']:.3f}, {r['high']:.3f}]"
                at = f"at {r['learning_rate']:g}" + " (edge of the sweep)" * (not r["inside"])
                lines.append(
                    f"    {r['arm']:20} {interval}  found by {r['found']:.0%} of {r['runs']}  {at}"
                )
    lines.append(
        "λ-GRPO - GRPO, paired by seed [95 % interval]; seeds in which one alone found the target; sign test"
    )
    for r in comparison(rows):
        if r["rates"] == "best":
            where = f"{r['optimizer']:6} n={r['n']}  r_neg={r['r_neg']:g}  targets {r['targets']}"
            numbers = f"{r['difference']:+.3f}  [{r['low']:+.3f}, {r['high']:+.3f}]"
            lines.append(
                f"    {where:40} {numbers}   {r['only_lambda_grpo']} : {r['only_grpo']}  p={r['p']:.2g}"
            )
    return "\n".join(lines)


def run(
    out: Path, *, quick: bool = False, seeds: int | None = None, processes: int | None = None
) -> str:
    """All arms, settings, optimisers and learning rates (quick: two settings, five arms, three rates of AdamW, 64 runs each).

    seeds: runs of each cell, a multiple of 32, so that each half has every target equally often.
    """
    if seeds is not None and seeds % CHUNK:
        told = "do not walk to each of the 16 targets equally often in both halves"
        raise ValueError(f"{seeds} runs {told}: take a multiple of {CHUNK}")
    numbers = {cell: seeds or number for cell, number in cells(quick).items()}
    jobs = [
        dict(zip(NAMES, cell, strict=True)) | {"first_seed": first, "runs": CHUNK}
        for cell, number in numbers.items()
        for first in range(0, number, CHUNK)
    ]
    found = iter(
        run_jobs(walk, jobs, title="table 1", processes=processes, cache=out / "table1.cache.jsonl")
    )
    finals = {
        cell: [hits for _ in range(number // CHUNK) for hits in next(found)]
        for cell, number in numbers.items()
    }
    rows = table(finals)
    chosen = [
        {name: value for name, value in row.items() if name != "hits_of_run"} for row in best(rows)
    ]
    parts = {"rows": rows, "best": chosen, "comparison": comparison(rows)}
    write_tables(out / "table1.json", parts)
    save(paper_figure(comparison(rows)), out / "table1.png")
    save(best_figure(best(rows)), out / "table1-controls.png")
    save(sweep_figure(rows), out / "table1-sweep.png")
    return text(rows)
