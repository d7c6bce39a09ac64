"""Is 1 the best power?  Weights |λ|^-α on the tasks where λ-GRPO was slower than GRPO, or level.

α = 0 is GRPO, α = 1 is λ-GRPO; the family is ours, not the paper's.  The runs are those of
`learning.py` at the recommended rate.  With the same seed they begin with the same policy and the
same first completions, so each α is compared with α = 0 seed by seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from minigrpo.experiments import learning, write_tables
from minigrpo.experiments.trees import interval
from minigrpo.show.drawing import BLUE, INK, ORANGE, STYLE
from minigrpo.show.plots import save

ALPHAS = (0.0, 0.5, 1.0, 1.5)
MEASURES = ("pass@1", "greedy", "pass@4", "mean_pass@1", "steps_to_90")
PANELS = {
    "pass@1": "held-out pass@1\nat the end",
    "steps_to_90": "training steps to\n90 % of own peak",
    "pass@1_diff": "pass@1 at the end\nless GRPO's, same seed",
}
COLUMNS = {
    "pass@1": ".3f",
    "pass@1_diff": "+.3f",
    "mean_pass@1_diff": "+.4f",
    "steps_to_90_diff": "+.1f",
}


def summary(run: list[dict[str, float]]) -> dict[str, float]:
    """`learning.summary`, and mean_pass@1 over all evaluations: higher if a run learns sooner."""
    mean = float(np.mean([point["pass@1"] for point in run]))
    return learning.summary(run) | {"mean_pass@1": mean}


def table(curves: learning.Curves) -> list[dict[str, Any]]:
    """The rows of `learning.table`, and NAME_diff: NAME less that of α = 0, seed by seed."""
    rows = learning.table(curves)
    for row, ((task, arm, *others), runs) in zip(rows, curves.items(), strict=True):
        own = [summary(run) for run in runs]
        grpo = [summary(run) for run in curves[task, "alpha=0", *others]]
        row["alpha"] = float(arm.removeprefix("alpha="))
        row |= interval("mean_pass@1", [s["mean_pass@1"] for s in own], 4)
        for name in MEASURES:
            differences = [a[name] - b[name] for a, b in zip(own, grpo, strict=True)]
            row |= interval(f"{name}_diff", differences, 4)
            row[f"{name}_of_seed"] = [float(f"{s[name]:.4g}") for s in own]
    return rows


def figure(rows: list[dict[str, Any]]) -> Figure:
    """PANELS over α, a row for each task: means, 95 % intervals, and a ring for each seed."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(11, 3.1 * len(tasks)), layout="constrained")
        grid = drawn.subplots(len(tasks), len(PANELS), squeeze=False)
        for line, task in zip(grid, tasks, strict=True):
            own = [row for row in rows if row["task"] == task]
            alphas = [row["alpha"] for row in own]
            for ax, (name, label) in zip(line, PANELS.items(), strict=True):
                seeds = np.array([row[name.removesuffix("_diff") + "_of_seed"] for row in own])
                if name.endswith("_diff"):
                    seeds = seeds - seeds[alphas.index(0)]
                    ax.axhline(0, color=INK, lw=0.8)
                beside = np.add.outer(alphas, np.linspace(0.06, 0.17, seeds.shape[1]))
                ax.plot(beside.ravel(), seeds.ravel(), "o", ms=3, mfc="none", color=ORANGE)
                ends = ("", "_low", "_high")
                mean, low, high = (np.array([row[name + end] for row in own]) for end in ends)
                errors = mean - low, high - mean
                ax.errorbar(alphas, mean, errors, color=BLUE, marker="s", ms=5, capsize=4)
                names = {0: "0\nGRPO", 1: "1\nλ-GRPO"}
                ax.set_xticks(alphas, [names.get(a, f"{a:g}") for a in alphas])
                ax.set(title=task, xlabel="α of the weight |λ|^-α", ylabel=label)
    return drawn


def text(rows: list[dict[str, Any]]) -> str:
    """The table for a terminal."""
    lines = ["diff: less alpha 0, same seed", f"{'task':12}{'alpha':>5}"]
    lines[1] += "".join(name.rjust(28) for name in COLUMNS)
    for row in rows:
        lines.append(f"{row['task']:12}{row['alpha']:5g}")
        for name, form in COLUMNS.items():
            mean, low, high = (format(row[name + end], form) for end in ("", "_low", "_high"))
            lines[-1] += f"{mean} [{low}, {high}]".rjust(28)
    return "\n".join(lines)


def run(
    out: Path,
    *,
    quick: bool = False,
    seeds: int | None = None,
    processes: int | None = None,
) -> str:
    """Both tasks and four α (quick: arithmetic, α = 0 and 1, 2 seeds)."""
    tasks, alphas = (["arithmetic"], (0.0, 1.0)) if quick else (list(learning.RATES), ALPHAS)
    keys = [(t, f"alpha={alpha:g}", 0.0, learning.RATES[t][1]) for t in tasks for alpha in alphas]
    rows = table(learning.measure(keys, seeds or (2 if quick else 8), out, "alpha", processes))
    write_tables(out / "alpha.json", rows)
    save(figure(rows), out / "alpha.png")
    return text(rows)
