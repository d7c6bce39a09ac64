"""The figures of `when.py`, from its tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from minigrpo.experiments.arms import TITLES
from minigrpo.show.drawing import BLUE, INK, LINES, ORANGE, STYLE


def map_figure(rows: Sequence[dict[str, Any]], marks: Sequence[dict[str, Any]] = ()) -> Figure:
    """Where λ-GRPO is ahead: rate by start probability, a panel for each n and r_neg; the transformer's cells as marks."""
    ns, r_negs = (list(dict.fromkeys(row[name] for row in rows)) for name in ("n", "r_neg"))
    rates, starts = (sorted({row[name] for row in rows}) for name in ("learning_rate", "start"))
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(
            figsize=(max(4.3 * len(r_negs), 6), 3.4 * len(ns) + 0.6), layout="constrained"
        )
        panels = figure.subplots(len(ns), len(r_negs), squeeze=False, sharex=True, sharey=True)
        for line, n in zip(panels, ns, strict=True):
            for ax, r_neg in zip(line, r_negs, strict=True):
                for row in rows:
                    if (row["n"], row["r_neg"]) == (n, r_neg):
                        _cell(
                            ax, rates.index(row["learning_rate"]), starts.index(row["start"]), row
                        )
                uniform = np.interp(np.log(1 / 16), np.log(starts), range(len(starts)))
                for mark in (mark for mark in marks if (mark["n"], mark["r_neg"]) == (n, r_neg)):
                    x = np.interp(np.log(mark["x"]), np.log(rates), range(len(rates)))
                    ahead, behind = mark["low"] > 0, mark["high"] < 0
                    style = {
                        "marker": "o" if mark["optimizer"] == "adamw" else "D",
                        "ms": 7,
                        "mec": INK,
                        "ls": "",
                    }
                    ax.plot(
                        [x],
                        [uniform + 0.36],
                        mfc=ORANGE if ahead else BLUE if behind else "white",
                        **style,
                    )
                ax.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
                ax.set_yticks(range(len(starts)), [f"{start:.3g}" for start in starts])
                ax.set(
                    title=f"n = {n}, r_neg = {r_neg:g}",
                    xlim=(-0.5, len(rates) - 0.5),
                    ylim=(-0.5, len(starts) - 0.5),
                )
        figure.supxlabel(
            "learning rate of plain SGD, tabular policy.  In a cell: GRPO → λ-GRPO, mean frequency of the target; orange ▲: λ-GRPO "
            "ahead, blue ▼: GRPO ahead\n(95 % interval of the paired difference).  Marks: the small transformer where its log-odds "
            "move as far (circle AdamW, diamond SGD; filled: one is ahead)",
            fontsize=9,
        )
        figure.supylabel("probability of the target before training", fontsize=9)
    return figure


def _cell(ax: Any, x: int, y: int, row: dict[str, Any]) -> None:
    ahead, behind = row["low"] > 0, row["high"] < 0
    shade = {
        "facecolor": ORANGE if ahead else BLUE if behind else "white",
        "alpha": min(abs(row["difference"]), 1) * 0.75 + 0.05,
    }
    ax.add_patch(matplotlib.patches.Rectangle((x - 0.5, y - 0.5), 1, 1, lw=0, **shade))
    ax.add_patch(
        matplotlib.patches.Rectangle((x - 0.5, y - 0.5), 1, 1, lw=0.5, ec="#cccccc", fc="none")
    )
    sign = "▲" if ahead else "▼" if behind else ""
    numbers = f"{row['grpo_target_frequency']:.2f} → {row['lambda_grpo_target_frequency']:.2f}"
    ax.text(x, y - 0.1, f"{sign}\n{numbers}", ha="center", va="center", fontsize=6.5, color=INK)


def family_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Mean frequency of the target over α, a line for each rate, a panel for each policy and n."""
    panels_of = list(dict.fromkeys((row["policy"], row["n"]) for row in rows))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * max(len(panels_of), 2), 3.8), layout="constrained")
        for ax, (policy, n) in zip(
            figure.subplots(1, len(panels_of), squeeze=False, sharey=True)[0],
            panels_of,
            strict=True,
        ):
            own = [row for row in rows if (row["policy"], row["n"]) == (policy, n)]
            for rate, (colour, dash, marker) in zip(
                sorted({row["learning_rate"] for row in own}), LINES, strict=False
            ):
                line = [row for row in own if row["learning_rate"] == rate]
                alpha, mean, low, high = (
                    np.array([row[name] for row in line])
                    for name in ("alpha", "target_frequency", "low", "high")
                )
                style = {
                    "color": colour,
                    "ls": dash,
                    "marker": marker,
                    "ms": 4,
                    "capsize": 2,
                    "label": f"rate {rate:g}",
                }
                ax.errorbar(alpha, mean, [mean - low, high - mean], **style)
            ax.set(
                title=f"{policy}, n = {n}",
                xlabel="α (0: GRPO, 1: λ-GRPO)",
                ylim=(-0.03, 1.3),
                yticks=np.arange(6) / 5,
            )
            ax.legend(fontsize=7, ncols=3, loc="upper center")
        figure.axes[0].set_ylabel("frequency of the target, last 50 steps")
    return figure


def targets_figure(rows: Sequence[dict[str, Any]], needed: float) -> Figure:
    """By pattern of the target: its frequency in the end, p(tail) after 50 steps, and where pushes on the first move come from."""
    ns = list(dict.fromkeys(row["n"] for row in rows))
    patterns = list(dict.fromkeys(row["pattern"] for row in rows))
    place = np.arange(len(patterns))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2 * len(ns), 9), layout="constrained")
        panels = figure.subplots(3, len(ns), squeeze=False, sharex=True, sharey="row")
        for axes, n in zip(panels.T, ns, strict=True):
            for i, (arm, colour) in enumerate((("grpo", BLUE), ("lambda_grpo", ORANGE))):
                own = [row for row in rows if (row["objective"], row["n"]) == (arm, n)]
                for ax, name, ends in (
                    (axes[0], "target_frequency", ("low", "high")),
                    (axes[1], "tail", ("tail_low", "tail_high")),
                ):
                    mean, low, high = (np.array([row[x] for row in own]) for x in (name, *ends))
                    style = {
                        "color": colour,
                        "fmt": "os"[i],
                        "capsize": 2,
                        "mfc": (colour, "white")[i],
                        "label": TITLES[arm],
                    }
                    ax.errorbar(place + 0.2 * i - 0.1, mean, [mean - low, high - mean], **style)
                for part, hatch, words in (
                    ("own", "", "its own node"),
                    ("other", "////", "other nodes"),
                ):
                    at = place + 0.4 * i - 0.3 + 0.2 * (part == "other")
                    for way in ("up", "down"):
                        value, low, high = (
                            np.array([row[f"{way}_{part}{end}"] for row in own])
                            for end in ("", "_low", "_high")
                        )
                        style = {
                            "color": colour if part == "own" else "white",
                            "ec": colour,
                            "hatch": hatch,
                            "capsize": 1.5,
                        }
                        style |= {"yerr": [value - low, high - value], "error_kw": {"lw": 0.8}}
                        label = f"{TITLES[arm]}, from {words}" if way == "up" else None
                        axes[2].bar(at, value, 0.19, label=label, **style)
            axes[0].set(title=f"n = {n}, r_neg = −1", ylim=(-0.03, 1.03))
            axes[1].set(ylim=(-0.03, 1.03))
            axes[1].axhline(needed, color=INK, lw=0.8, ls="--")
            axes[2].set(xlabel="pattern of the target (a: as the first move, b: the other one)")
            axes[2].set_xticks(place, patterns)
            axes[2].axhline(0, color=INK, lw=0.8)
        labels = [
            "frequency of the target\nin the last 50 steps",
            "p(rest of the target | first n moves)\nafter 50 steps",
        ]
        labels.append("pushes on the first move's log-odds,\nsteps up and steps down (median)")
        for ax, label in zip(panels[:, 0], labels, strict=True):
            ax.set_ylabel(label)
        panels[0][0].legend(fontsize=8)
        figure.legend(
            *panels[2][0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=4,
            fontsize=8,
            frameon=False,
        )
    return figure
