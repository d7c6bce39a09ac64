"""Is 1 the best power of |λ|?   (results/README.md, "Is α = 1 the best weight …")

Weights |λ|^-α, on the tasks where λ-GRPO was slower than GRPO, or level: α = 0 is GRPO, α = 1 is
λ-GRPO; the family is ours, not the paper's.  The runs are those of `learning.py` at the recommended
rate.  With the same seed they begin with the same policy and the same first completions, so each α
is compared with α = 0 seed by seed.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from minigrpo.experiments import learning
from minigrpo.experiments import tables as t
from minigrpo.experiments.figures import dots, panels, styled
from minigrpo.experiments.reproduce import Request
from minigrpo.show.drawing import INK, ORANGE

ALPHAS = (0.0, 0.5, 1.0, 1.5)
MEASURES = ("pass@1", "greedy", "pass@4", "mean_pass@1", "steps_to_90")
PANELS = {
    "pass@1": "held-out pass@1\nat the end",
    "steps_to_90": "training steps to\n90 % of own peak",
    "pass@1_diff": "pass@1 at the end\nless GRPO's, same seed",
}


def table(curves: dict[learning.Key, list[learning.Run]]) -> list[t.Row]:
    """The rows of `learning.table`, and NAME_diff: NAME less that of α = 0, seed by seed."""
    rows = learning.table(curves)
    for row, ((task, arm, *others), runs) in zip(rows, curves.items(), strict=True):
        own = [learning.summary(run) for run in runs]
        grpo = [learning.summary(run) for run in curves[task, "alpha=0", *others]]
        row["alpha"] = float(arm.removeprefix("alpha="))
        row |= t.interval("mean_pass@1", [s["mean_pass@1"] for s in own], 4)
        for name in MEASURES:
            differences = [a[name] - b[name] for a, b in zip(own, grpo, strict=True)]
            row |= t.interval(f"{name}_diff", differences, 4)
            row[f"{name}_of_seed"] = [t.rounded(s[name]) for s in own]
    return rows


@styled
def figures(rows: t.Rows) -> dict[str, Figure]:
    """PANELS over α, a row for each task: means, 95 % intervals, and a ring for each seed."""
    tasks = t.distinct(rows, "task")
    figure, grid = panels(len(tasks), len(PANELS), 11, 3.1 * len(tasks))
    for line, task in zip(grid, tasks, strict=True):
        own = t.select(rows, task=task)
        alphas = [row["alpha"] for row in own]
        for ax, (name, label) in zip(line, PANELS.items(), strict=True):
            seeds = np.array([row[name.removesuffix("_diff") + "_of_seed"] for row in own])
            if name.endswith("_diff"):
                seeds = seeds - seeds[alphas.index(0)]
                ax.axhline(0, color=INK, lw=0.8)
            beside = np.add.outer(alphas, np.linspace(0.06, 0.17, seeds.shape[1]))
            ax.plot(beside.ravel(), seeds.ravel(), "o", ms=3, mfc="none", color=ORANGE)
            dots(ax, alphas, own, name, ls="-")
            ax.set_xticks(alphas, [{0: "0\nGRPO", 1: "1\nλ-GRPO"}.get(a, f"{a:g}") for a in alphas])
            ax.set(title=task, xlabel="α of the weight |λ|^-α", ylabel=label)
    return {"alpha": figure}


def text(rows: t.Rows) -> str:
    """The table for a terminal."""
    title = "diff: less that of alpha 0, same seed"
    columns = "task alpha pass@1± pass@1_diff± mean_pass@1_diff± steps_to_90_diff±"
    return t.show({title: rows}, {title: columns})


def run(request: Request) -> list[t.Row]:
    """Both tasks and four α (quick: arithmetic, α = 0 and 1, 2 seeds)."""
    tasks, alphas = (["arithmetic"], (0.0, 1.0)) if request.quick else (learning.RATES, ALPHAS)
    keys = [(task, f"alpha={a:g}", 0.0, learning.RATES[task][1]) for task in tasks for a in alphas]
    return table(learning.measure(request, keys, request.seeds or (2 if request.quick else 8)))
