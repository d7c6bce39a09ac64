"""The figures of `when_lambda_matters.py`, from its tables."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from minigrpo.experiments import tables as t
from minigrpo.experiments.controls import COMPARED, TITLES
from minigrpo.experiments.figures import ahead, cell, dots, estimates, look, panels, styled
from minigrpo.show.drawing import BLUE, INK, ORANGE


@styled
def map_figure(rows: t.Rows, marks: t.Rows = ()) -> Figure:
    """Where λ-GRPO is ahead: rate by start probability, a panel for each n and r_neg.

    marks: cells of the small transformer, each at a tabular rate x.
    """
    ns, r_negs = t.distinct(rows, "n"), t.distinct(rows, "r_neg")
    rates, starts = (sorted(t.distinct(rows, name)) for name in ("learning_rate", "start"))
    size = max(4.3 * len(r_negs), 6), 3.4 * len(ns) + 0.6
    figure, grid = panels(len(ns), len(r_negs), *size, sharex=True, sharey=True)
    uniform = np.interp(np.log(1 / 16), np.log(starts), range(len(starts)))
    each = [(n, r_neg) for n in ns for r_neg in r_negs]
    for ax, (n, r_neg) in zip(grid.flat, each, strict=True):
        for row in t.select(rows, n=n, r_neg=r_neg):
            x, y = rates.index(row["learning_rate"]), starts.index(row["start"])
            sign, colour = ahead(row)
            pair = [f"{row[f'{arm}_target_frequency']:.2f}" for arm in COMPARED]
            face = (colour, min(abs(row["difference"]), 1) * 0.75 + 0.05)
            cell(ax, x, y, f"{sign}\n{' → '.join(pair)}", face, size=6.5, color=INK)
        for mark in t.select(marks, n=n, r_neg=r_neg):
            x = np.interp(np.log(mark["x"]), np.log(rates), range(len(rates)))
            marker = "o" if mark["optimizer"] == "adamw" else "D"
            ax.plot([x], [uniform + 0.36], marker, ms=7, mec=INK, mfc=ahead(mark)[1], zorder=5)
        ax.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        ax.set_yticks(range(len(starts)), [f"{start:.3g}" for start in starts])
        ax.set(xlim=(-0.5, len(rates) - 0.5), ylim=(-0.5, len(starts) - 0.5))
        ax.set_title(f"n = {n}, r_neg = {r_neg:g}")
        ax.grid(visible=False)
    about = (
        "learning rate of plain SGD, tabular policy.  In a cell: GRPO → λ-GRPO, mean frequency of "
        "the target; orange ▲: λ-GRPO ahead, blue ▼: GRPO ahead\n(95 % interval of the paired "
        "difference).  Marks: the small transformer where its log-odds move as far (circle AdamW, "
        "diamond SGD; filled: one is ahead)"
    )
    figure.supxlabel(about, fontsize=9)
    figure.supylabel("probability of the target before training", fontsize=9)
    return figure


@styled
def family_figure(rows: t.Rows) -> Figure:
    """Mean frequency of the target over α, a line for each rate, a panel for each policy and n."""
    which = t.distinct(rows, "policy", "n")
    figure, (axes,) = panels(1, len(which), 3.6 * max(len(which), 2), 3.8, sharey=True)
    for ax, (policy, n) in zip(axes, which, strict=True):
        own = t.select(rows, policy=policy, n=n)
        for number, rate in enumerate(sorted(t.distinct(own, "learning_rate"))):
            line = t.select(own, learning_rate=rate)
            style = look(number) | {"label": f"rate {rate:g}", "capsize": 2, "mfc": None}
            names = ("target_frequency", "low", "high")
            dots(ax, [row["alpha"] for row in line], line, *names, **style)
        ax.set(title=f"{policy}, n = {n}", xlabel="α (0: GRPO, 1: λ-GRPO)")
        ax.set(ylim=(-0.03, 1.3), yticks=np.arange(6) / 5)
        ax.legend(fontsize=7, ncols=3, loc="upper center")
    axes[0].set_ylabel("frequency of the target, last 50 steps")
    return figure


@styled
def targets_figure(rows: t.Rows, needed: float) -> Figure:
    """By pattern of the target: its frequency in the end, p(tail), and the first move's pushes."""
    ns, patterns = t.distinct(rows, "n"), t.distinct(rows, "pattern")
    place = np.arange(len(patterns))
    figure, grid = panels(3, len(ns), 5.2 * len(ns), 9, sharex=True, sharey="row")
    for (top, middle, bottom), n in zip(grid.T, ns, strict=True):
        for i, (arm, colour) in enumerate(zip(COMPARED, (BLUE, ORANGE), strict=True)):
            own, x = t.select(rows, objective=arm, n=n), place + 0.2 * i - 0.1
            style = {"number": i, "capsize": 2, "label": TITLES[arm]}
            dots(top, x, own, "target_frequency", "low", "high", **style)
            dots(middle, x, own, "tail", **style)
            for j, part in enumerate(("own", "other")):
                style = {"color": ("white", colour)[part == "own"], "ec": colour, "capsize": 1.5}
                style |= {"hatch": ("", "////")[j], "error_kw": {"lw": 0.8}}
                label = f"{TITLES[arm]}, from {('its own node', 'other nodes')[j]}"
                for way in ("up", "down"):
                    height, ends = estimates(own, f"{way}_{part}")
                    x = place + 0.4 * i - 0.3 + 0.2 * j
                    bottom.bar(x, height, 0.19, yerr=ends, label=label, **style)
                    label = None
        top.set(title=f"n = {n}, r_neg = −1", ylim=(-0.03, 1.03))
        middle.set_ylim(-0.03, 1.03)
        middle.axhline(needed, color=INK, lw=0.8, ls="--")
        bottom.set_xlabel("pattern of the target (a: as the first move, b: the other one)")
        bottom.set_xticks(place, patterns)
        bottom.axhline(0, color=INK, lw=0.8)
    grid[0, 0].set_ylabel("frequency of the target\nin the last 50 steps")
    grid[1, 0].set_ylabel("p(rest of the target | first n moves)\nafter 50 steps")
    label = "pushes on the first move's log-odds,\nsteps up and steps down (median)"
    grid[2, 0].set_ylabel(label)
    grid[0, 0].legend(fontsize=8)
    names = grid[2, 0].get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure
