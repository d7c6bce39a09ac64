"""The two figures of `table1.py`, from its rows: each arm at its best learning rate (ten seconds to read), and the whole sweep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from minigrpo.drawing import BLUE, INK, ORANGE, STYLE
from minigrpo.experiments.arms import TITLES

NAMES = {"adamw": "AdamW", "sgd": "plain SGD"}
WITH_FIX = ("lambda_grpo", "lambda_at_grpo_norm")


def best(rows: Iterable[dict[str, Any]]) -> dict[tuple, dict[str, Any]]:
    """Each arm at its own best learning rate.   -> {(optimizer, n, r_neg, arm): row}"""
    chosen: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        key = row["optimizer"], row["n"], row["r_neg"], row["arm"]
        if key not in chosen or row["target_frequency"] > chosen[key]["target_frequency"]:
            chosen[key] = row
    return chosen


def best_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """A panel for each setting and optimiser, a dot with its 95 % interval for each arm at its own best learning rate."""
    chosen = best(rows)
    optimizers = list(dict.fromkeys(row["optimizer"] for row in rows))
    settings = list(dict.fromkeys((row["n"], row["r_neg"]) for row in rows))
    arms = [arm for arm in TITLES if any(row["arm"] == arm for row in rows)]
    with matplotlib.rc_context(STYLE):
        width, height = 1.9 * max(len(settings), 2) + 2.2, (0.26 * len(arms) + 0.9) * len(optimizers) + 0.5
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(len(optimizers), len(settings), squeeze=False, sharex=True, sharey=True)
        for line, optimizer in zip(panels, optimizers, strict=True):
            for ax, (n, r_neg) in zip(line, settings, strict=True):
                if (optimizer, n, r_neg, arms[0]) not in chosen:  # a setting that this optimiser was not tried on
                    ax.set_visible(False)
                    continue
                for i, arm in enumerate(arms):
                    row = chosen[optimizer, n, r_neg, arm]
                    fixed = arm in WITH_FIX
                    error = [[row["target_frequency"] - row["low"]], [row["high"] - row["target_frequency"]]]
                    ax.errorbar(
                        [row["target_frequency"]],
                        [i],
                        xerr=error,
                        fmt="s" if fixed else "o",
                        color=ORANGE if fixed else BLUE if arm == "grpo" else INK,
                        markerfacecolor=None if arm in ("grpo", "lambda_grpo") else "white",
                        ms=5,
                        capsize=2,
                        lw=1.6,
                    )
                ax.set(xlim=(-0.04, 1.04), yticks=range(len(arms)), yticklabels=[TITLES[arm] for arm in arms])
                ax.invert_yaxis() if ax is panels[0][0] else None
                ax.set_title(
                    f"n = {n}, r_neg = {r_neg:g}" + (f"\n{NAMES[optimizer]}" if ax is line[0] else "\n"), fontsize=9, loc="left"
                )
        figure.supxlabel(
            "frequency of the target path, each arm at its best learning rate (mean, 95 % bootstrap interval)", fontsize=9
        )
    return figure


def sweep_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Mean target frequency for every arm and learning rate, as numbers on grey: a panel for each setting and optimiser."""
    optimizers = list(dict.fromkeys(row["optimizer"] for row in rows))
    settings = list(dict.fromkeys((row["n"], row["r_neg"]) for row in rows))
    arms = [arm for arm in TITLES if any(row["arm"] == arm for row in rows)]
    with matplotlib.rc_context(STYLE):
        width, height = 2.0 * max(len(settings), 2) + 2.2, (0.24 * len(arms) + 1.0) * len(optimizers) + 0.4
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(len(optimizers), len(settings), squeeze=False, sharey=True)
        for line, optimizer in zip(panels, optimizers, strict=True):
            rates = sorted({row["learning_rate"] for row in rows if row["optimizer"] == optimizer})
            for ax, (n, r_neg) in zip(line, settings, strict=True):
                here = {
                    (row["arm"], row["learning_rate"]): row["target_frequency"]
                    for row in rows
                    if (row["optimizer"], row["n"], row["r_neg"]) == (optimizer, n, r_neg)
                }
                if not here:
                    ax.set_visible(False)
                    continue
                ax.imshow([[here[arm, rate] for rate in rates] for arm in arms], cmap="Greys", vmin=0, vmax=1, aspect="auto")
                for y, arm in enumerate(arms):
                    for x, rate in enumerate(rates):
                        value = here[arm, rate]
                        ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value > 0.55 else INK)
                ax.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates], fontsize=7, rotation=30)
                ax.set_yticks(range(len(arms)), [TITLES[arm] for arm in arms])
                ax.grid(visible=False)
                ax.set_title(
                    f"n = {n}, r_neg = {r_neg:g}" + (f"\n{NAMES[optimizer]}" if ax is line[0] else "\n"), fontsize=9, loc="left"
                )
        figure.supxlabel("learning rate (in the cells: mean frequency of the target path, last 50 of 250 steps)", fontsize=9)
    return figure
