"""Is 1 the best power?  Weights |λ|^-α on `arithmetic` and `countdown`, where λ-GRPO was slower than GRPO, or level.

α = 0 is GRPO, α = 1 is λ-GRPO; the family is ours, not the paper's.  Runs are those of `learning.py` at the recommended rate:
with the same seed they begin with the same policy and the same first prompts, so each α is compared with α = 0 seed by seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from minigrpo.drawing import BLUE, INK, ORANGE, STYLE
from minigrpo.experiments import learning
from minigrpo.experiments.trees import interval
from minigrpo.plots import save

ALPHAS = (0.0, 0.5, 1.0, 1.5)
MEASURES = ("pass@1", "greedy", "pass@4", "mean_pass@1", "steps_to_90")


def summary(run: list[dict[str, float]]) -> dict[str, float]:
    """What `learning.summary` says of a run, and the mean of its pass@1 over all evaluations: higher if it learns sooner."""
    return learning.summary(run) | {"mean_pass@1": float(np.mean([point["pass@1"] for point in run]))}


def table(curves: learning.Curves) -> list[dict[str, Any]]:
    """The rows of `learning.table` with alpha, mean_pass@1, and NAME_diff: NAME less that of α = 0 with the same seed."""
    rows = []
    for row, ((task, arm, *others), runs) in zip(learning.table(curves), curves.items(), strict=True):
        own = [summary(run) for run in runs]
        grpo = [summary(run) for run in curves[task, "alpha=0", *others]]
        row |= {"alpha": float(arm.removeprefix("alpha="))} | interval("mean_pass@1", [s["mean_pass@1"] for s in own], 4)
        for name in MEASURES:
            row |= interval(f"{name}_diff", [a[name] - b[name] for a, b in zip(own, grpo, strict=True)], 4)
            row[f"{name}_of_seed"] = [float(f"{s[name]:.4g}") for s in own]
        rows.append(row)
    return rows


def figure(rows: list[dict[str, Any]]) -> Figure:
    """Over α, for each task: pass@1 at the end, steps to 90 % of the peak, pass@1 less GRPO's; means, intervals, all seeds."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    panels = {
        "pass@1": "held-out pass@1\nat the end",
        "steps_to_90": "training steps to\n90 % of own peak",
        "pass@1_diff": "pass@1 at the end\nless GRPO's, same seed",
    }
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(11, 3.1 * len(tasks)), layout="constrained")
        for line, task in zip(drawn.subplots(len(tasks), len(panels), squeeze=False), tasks, strict=True):
            own = [row for row in rows if row["task"] == task]
            alphas = [row["alpha"] for row in own]
            for ax, (name, label) in zip(line, panels.items(), strict=True):
                seeds = np.array([row[f"{name.removesuffix('_diff')}_of_seed"] for row in own], dtype=float)
                if name.endswith("_diff"):
                    seeds -= seeds[alphas.index(0)]
                    ax.axhline(0, color=INK, lw=0.8)
                aside = np.linspace(0.05, 0.16, seeds.shape[1])  # the seeds stand to the right of their mean
                ax.plot(np.add.outer(alphas, aside).T, seeds.T, ls="", marker="o", ms=3, mfc="none", color=ORANGE)
                mean, low, high = (np.array([row[name + end] for row in own]) for end in ("", "_low", "_high"))
                ax.errorbar(alphas, mean, (mean - low, high - mean), color=BLUE, marker="s", ms=5, capsize=4)
                names = {0: "0\nGRPO", 1: "1\nλ-GRPO"}
                ax.set_xticks(alphas, [names.get(a, f"{a:g}") for a in alphas])
                ax.set(title=task, xlabel="α of the weight |λ|^-α", ylabel=label)
    return drawn


def text(rows: list[dict[str, Any]]) -> str:
    """The table for a terminal."""

    def cell(row: dict[str, Any], name: str, form: str) -> str:
        return f"{row[name]:{form}} [{row[name + '_low']:{form}}, {row[name + '_high']:{form}}]".rjust(27)

    forms = {"pass@1": ".3f", "pass@1_diff": "+.3f", "mean_pass@1_diff": "+.3f", "steps_to_90_diff": "+.1f"}
    lines = [f"{'task':12}{'alpha':>5}" + "".join(name.rjust(27) for name in forms), "(diff: less alpha 0, same seed)"]
    return "\n".join(lines + [f"{r['task']:12}{r['alpha']:5g}" + "".join(cell(r, *f) for f in forms.items()) for r in rows])


def run(out: Path, *, quick: bool = False, seeds: int | None = None, processes: int | None = None) -> str:
    """Both tasks and four α (quick: arithmetic, α = 0 and 1, 2 seeds)."""
    tasks, alphas = (["arithmetic"], (0.0, 1.0)) if quick else (list(learning.RATES), ALPHAS)
    keys = [(task, f"alpha={alpha:g}", 0.0, learning.RATES[task][1]) for task in tasks for alpha in alphas]
    rows = table(learning.measure(keys, seeds or (2 if quick else 8), out, "alpha", processes))
    (out / "alpha.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    save(figure(rows), out / "alpha.png")
    return text(rows)
