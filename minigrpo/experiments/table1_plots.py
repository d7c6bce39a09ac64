"""The three figures of `table1.py`, from its rows: ours beside the paper's, the controls at their best rates, the whole sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from minigrpo.experiments.arms import TITLES
from minigrpo.show.drawing import BLUE, INK, ORANGE, STYLE

NAMES = {"adamw": "AdamW", "sgd": "plain SGD"}
MARKS = {"grpo": ("o", BLUE), "lambda_grpo": ("s", ORANGE)}
SMALL_RATE = 3e-4


def paper_figure(comparison: Sequence[dict[str, Any]]) -> Figure:
    """The six settings of the paper: its pair of numbers, and ours at each one's best rate and at one small rate for both."""
    rows = [row for row in comparison if "paper_grpo" in row]
    settings = list(dict.fromkeys((row["n"], row["r_neg"]) for row in rows))
    lines = [
        ("AdamW, one small rate for both", "adamw", "same"),
        ("AdamW, each at its best rate", "adamw", "best"),
    ]
    lines.append(("plain SGD, each at its best rate", "sgd", "best"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 2.0 + 1.7 * -(-len(settings) // 3)), layout="constrained")
        panels = figure.subplots(
            -(-len(settings) // 3), min(len(settings), 3), squeeze=False, sharex=True, sharey=True
        ).flat
        for ax, (n, r_neg) in zip(panels, settings, strict=False):
            own = [row for row in rows if (row["n"], row["r_neg"]) == (n, r_neg)]
            _pair(ax, 0, own[0]["paper_grpo"], own[0]["paper_lambda_grpo"], filled=False)
            names = ["the paper, five seeds"]
            for title, optimizer, rates in lines:
                row = next(
                    (
                        r
                        for r in own
                        if (r["optimizer"], r["rates"]) == (optimizer, rates)
                        and (rates == "best" or r["grpo_rate"] == SMALL_RATE)
                    ),
                    None,
                )
                if row:
                    _pair(ax, len(names), row["grpo"], row["lambda_grpo"], filled=True)
                    names.append(title)
            ax.set_yticks(range(len(names)), names)
            ax.set_title(f"n = {n}, r_neg = {r_neg:g}")
        panels[0].set(xlim=(-0.03, 1.03), ylim=(len(names) - 0.4, -0.6))
        handles = [
            Line2D([], [], marker=m, color=c, ls="", label=TITLES[arm])
            for arm, (m, c) in MARKS.items()
        ]
        figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False)
        figure.supxlabel(
            "frequency of the target path in the last 50 of 250 steps (open: published)", fontsize=9
        )
    return figure


def _pair(ax: Any, y: float, grpo: float, fixed: float, filled: bool) -> None:
    ax.annotate(
        "",
        (fixed, y),
        (grpo, y),
        arrowprops={"arrowstyle": "->", "color": "#888888", "shrinkA": 3, "shrinkB": 3},
    )
    for value, (marker, colour) in zip((grpo, fixed), MARKS.values(), strict=True):
        ax.plot(
            [value],
            [y],
            marker=marker,
            color=colour,
            mfc=colour if filled else "white",
            ms=7,
            ls="",
            clip_on=False,
        )


def best_figure(best: Sequence[dict[str, Any]]) -> Figure:
    """A panel for each of the paper's settings and optimisers, a dot with its 95 % interval for each arm at its best rate."""
    best = [row for row in best if row["targets"] == "drawn" and row["n"] < 3]
    optimizers, settings, arms = _axes_of(best)
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(optimizers, settings, arms, 0.26, 1.9)
        for line, optimizer in zip(panels, optimizers, strict=True):
            for ax, (n, r_neg) in zip(line, settings, strict=True):
                for i, arm in enumerate(arms):
                    key = (arm, optimizer, n, r_neg)
                    row = next(
                        (r for r in best if (r["arm"], r["optimizer"], r["n"], r["r_neg"]) == key),
                        None,
                    )
                    if row is None:  # an arm that was not tried here
                        continue
                    value = row["target_frequency"]
                    error = [[value - row["low"]], [row["high"] - value]]
                    fixed = arm in ("lambda_grpo", "lambda_at_grpo_norm")
                    style = {
                        "fmt": "s" if fixed else "o",
                        "color": ORANGE if fixed else BLUE if arm == "grpo" else INK,
                    }
                    style |= {
                        "mfc": None if arm in MARKS else "white",
                        "ms": 5,
                        "capsize": 2,
                        "lw": 1.6,
                    }
                    ax.errorbar([value], [i], xerr=error, **style)
                ax.set(
                    xlim=(-0.04, 1.04),
                    yticks=range(len(arms)),
                    yticklabels=[TITLES[arm] for arm in arms],
                )
        panels[0][0].invert_yaxis()
        text = "frequency of the target path, each arm at its best rate (mean and 95 % interval of runs that did not choose it)"
        figure.supxlabel(text, fontsize=9)
    return figure


def sweep_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Mean target frequency for every arm and learning rate, as numbers on grey: a panel for each setting of the paper."""
    rows = [row for row in rows if row["targets"] == "drawn" and row["n"] < 3]
    optimizers, settings, arms = _axes_of(rows)
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(optimizers, settings, arms, 0.24, 2.3)
        for line, optimizer in zip(panels, optimizers, strict=True):
            rates = sorted({row["learning_rate"] for row in rows if row["optimizer"] == optimizer})
            for ax, (n, r_neg) in zip(line, settings, strict=True):
                here = {
                    (row["arm"], row["learning_rate"]): row["target_frequency"]
                    for row in rows
                    if (row["optimizer"], row["n"], row["r_neg"]) == (optimizer, n, r_neg)
                }
                grey = [[here.get((arm, rate), float("nan")) for rate in rates] for arm in arms]
                ax.imshow(grey, cmap="Greys", vmin=0, vmax=1, aspect="auto")
                for (arm, rate), value in here.items():
                    place = {
                        "ha": "center",
                        "va": "center",
                        "color": "white" if value > 0.55 else INK,
                    }
                    ax.text(rates.index(rate), arms.index(arm), f"{value:.2f}", fontsize=7, **place)
                ax.set_xticks(
                    range(len(rates)), [f"{rate:g}" for rate in rates], fontsize=7, rotation=30
                )
                ax.set_yticks(range(len(arms)), [TITLES[arm] for arm in arms])
                ax.grid(visible=False)
        figure.supxlabel(
            "learning rate (in the cells: mean frequency of the target path, last 50 of 250 steps)",
            fontsize=9,
        )
    return figure


def _axes_of(
    rows: Sequence[dict[str, Any]],
) -> tuple[list[str], list[tuple[int, float]], list[str]]:
    """Optimisers, settings and arms that there are rows of."""
    optimizers = list(dict.fromkeys(row["optimizer"] for row in rows))
    settings = sorted(
        {(row["n"], row["r_neg"]) for row in rows}, key=lambda setting: (setting[0], -setting[1])
    )
    return optimizers, settings, [arm for arm in TITLES if any(row["arm"] == arm for row in rows)]


def _panels(
    optimizers: list[str], settings: list, arms: list[str], line: float, width: float
) -> tuple[Figure, Any]:
    size = width * max(len(settings), 2) + 2.2, (line * len(arms) + 0.9) * len(optimizers) + 0.5
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(
        len(optimizers), len(settings), squeeze=False, sharex="row", sharey=True
    )
    for axes, optimizer in zip(panels, optimizers, strict=True):
        for ax, (n, r_neg) in zip(axes, settings, strict=True):
            ax.set_title(
                f"n = {n}, r_neg = {r_neg:g}"
                + (f"\n{NAMES[optimizer]}" if ax is axes[0] else "\n"),
                fontsize=9,
            )
    return figure, panels
