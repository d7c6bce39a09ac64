"""What `prm_quality.py` found, as words for a terminal and as two figures; made from its tables alone."""

from __future__ import annotations

from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from minigrpo.show.drawing import BLUE, INK, LINES, STYLE, YELLOW

Table = dict[str, list[dict[str, Any]]]


def text(table: dict[str, list[dict[str, Any]]]) -> str:
    """The main numbers for a terminal."""
    lines = ["steps   k  depth     bias   rmse  predicted  corr(Â, exact)  corr(R̂ - mean, exact)"]
    for r in table["value_errors"]:
        if r["k"] in (8, 32):
            of = [
                f"{r[name]:.3f}" if r[name] is not None else "-"
                for name in ("bias", "rmse", "predicted", "advantage", "centred")
            ]
            lines.append(
                "{:5} {:3} {:6} {:>8} {:>6} {:>10} {:>15} {:>22}".format(
                    r["steps"], r["k"], r["depth"], *of
                )
            )
    lines.append("\nsteps  extra rollouts    k  m  tokens   rmse   hidden PRM with as many tokens")
    for r in table["equal_tokens"]:
        if r["k"] == 4 and r["m"] in (1, 8):
            of = f"{r['tokens']:6.1f}  {r['rmse']:.3f}   {r['hidden_rmse']:.3f} (k = {r['hidden_k']:.1f})"
            lines.append(f"{r['steps']:5}  {r['where']:14} {r['k']:4} {r['m']:2}  {of}")
    lines.append("\nexact value and mean of rollouts")
    for r in table["brute_force"]:
        about = (
            f"{r['value']:.5f}  {r['estimate']:.5f} ± {r['standard_error']:.5f}  z = {r['z']:+.2f}"
        )
        lines.append(
            f"{r['source']:17} seed {r['seed']}, {r['draws']} rollouts: {about}, χ²/dof of paths {r['chi2_per_dof']:.2f}"
        )
    lines.append(
        "\nwriting    k  rule      detector   precision  recall  false alarms  first mark exact"
    )
    for r in table["first_error"]:
        of = [
            f"{r[name]:.3f}" if r.get(name) is not None else "-"
            for name in ("precision", "recall", "false_alarms", "exact")
        ]
        lines.append(
            "{writing:9} {k:2}  {rule:9} {detector:9}".format(**r)
            + "  {:>9} {:>7} {:>13} {:>17}".format(*of)
        )
    return "\n".join(lines)


def values_figure(table: Table) -> Figure:
    """Before and after training: the error of R̂ by k and depth, how Â goes with exact advantages, and equal tokens."""
    rows = table["value_errors"]
    steps, depths, sizes = (sorted({r[name] for r in rows}) for name in ("steps", "depth", "k"))
    titles = (
        "Error of R̂",
        "Â and exact advantage",
        "R̂ - mean(r) and exact advantage",
        "Error at equal tokens",
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 6), layout="constrained")
        grid = figure.subplots(2, 4, sharey="col")
        for line, step in zip(grid, (steps[0], steps[-1]), strict=True):
            for depth, (colour, dash, marker) in zip(depths, LINES, strict=False):
                of = [r for r in rows if (r["steps"], r["depth"]) == (step, depth)]
                style = {"color": colour, "marker": marker, "ms": 5, "label": f"depth {depth}"}
                if any(r["rmse"] > 1e-6 for r in of):  # leaves have none
                    _with_band(line[0], sizes, of, "rmse", ls="", **style)
                    line[0].plot(sizes, [r["predicted"] for r in of], color=colour, ls=dash, lw=1)
                _with_band(line[1], sizes, of, "advantage", ls=dash, **style)
                _with_band(line[2], sizes, of, "centred", ls=dash, **style)
            for ax, label in zip(
                line, ("RMSE (lines: theory)", "correlation", "correlation", "RMSE"), strict=True
            ):
                _powers_of_two(ax, sizes)
                ax.set_ylabel(label)
            when = "before training" if step == 0 else f"after {step} steps"
            line[0].set_ylabel(f"{when}\nRMSE (lines: theory)")
            _budgets(line[3], [r for r in table["equal_tokens"] if r["steps"] == step])
        for ax, title, below in zip(grid[0], titles, grid[1], strict=True):
            ax.set_title(title)
            ax.legend(
                fontsize=8,
                loc="upper right"
                if ax is grid[0, 0]
                else "lower left"
                if ax is grid[0, 3]
                else "lower right",
            )
            below.set_xlabel("tokens sampled for a group" if "tokens" in title else "group size k")
        for ax in grid[0, [0, 3]]:
            ax.set_ylim(0, None)
        for ax in grid[0, 1:3]:
            ax.set_ylim(-0.75, 1.04)
    return figure


def _with_band(ax: Axes, x: list[int], rows: list[dict[str, Any]], name: str, **style: Any) -> None:
    ax.fill_between(
        x,
        [r[f"{name}_low"] for r in rows],
        [r[f"{name}_high"] for r in rows],
        color=style["color"],
        alpha=0.15,
        lw=0,
    )
    ax.plot(x, [r[name] for r in rows], **style)


def _powers_of_two(ax: Axes, ticks: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(tick) for tick in ticks])


def _budgets(ax: Axes, rows: list[dict[str, Any]]) -> None:
    """RMSE by tokens: the hidden PRM as a line, Monte-Carlo PRMs as marks."""
    rows = [r for r in rows if r["k"] == 4]
    for where, label, (colour, dash, marker) in (
        ("steps", "4 members, rollouts from steps", LINES[1]),
        ("prefixes", "4 members, from all prefixes", LINES[2]),
    ):
        of = sorted((r for r in rows if r["where"] == where), key=lambda r: r["tokens"])
        _with_band(
            ax,
            [r["tokens"] for r in of],
            of,
            "rmse",
            color=colour,
            ls=dash,
            marker=marker,
            ms=5,
            label=label,
        )
    of = sorted(rows, key=lambda r: r["tokens"])
    _with_band(
        ax,
        [r["tokens"] for r in of],
        of,
        "hidden_rmse",
        color=BLUE,
        ls="-",
        marker="o",
        ms=4,
        label="hidden PRM: more members",
    )
    _powers_of_two(ax, [16, 32, 64, 128])


def first_error_figure(table: Table) -> Figure:
    """Where the sign of Â accuses: share of written steps marked by their place relative to the first wrong one."""
    rows, profile = table["first_error"], table["first_error_profile"]
    writings, sizes = (
        list(dict.fromkeys(r["writing"] for r in rows)),
        sorted({r["k"] for r in rows}),
    )
    titles = {"one order": "One right text a problem", "any order": "Many right texts a problem"}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.9), layout="constrained")
        *panels, bars = figure.subplots(1, len(writings) + 1)
        for ax, writing in zip(panels, writings, strict=True):
            for k, (colour, dash, marker) in zip(sizes, LINES, strict=False):
                of = [
                    r
                    for r in profile
                    if (r["writing"], r["k"], r["detector"]) == (writing, k, "hidden")
                ]
                _with_band(
                    ax,
                    [r["offset"] for r in of],
                    of,
                    "marked",
                    color=colour,
                    ls=dash,
                    marker=marker,
                    ms=5,
                    label=f"k = {k}",
                )
            of = [
                r
                for r in profile
                if (r["writing"], r["k"], r["detector"]) == (writing, sizes[-1], "shuffled")
            ]
            ax.plot(
                [r["offset"] for r in of],
                [r["marked"] for r in of],
                color="#777777",
                ls=":",
                marker="x",
                label="shuffled rewards",
            )
            ax.axvspan(-0.5, 2.5, color="#f0f0f0", lw=0, zorder=0)
            ax.text(1, 0.03, "wrong from here on", ha="center", fontsize=9, color="#555555")
            ax.set(
                title=titles[writing],
                xlabel="written step, 0 is the first wrong one",
                ylim=(0, 1.04),
                xlim=(-2.2, 2.5),
            )
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panels[0].set_ylabel("steps with Â < 0")
        panels[1].legend(fontsize=8, loc="center right", bbox_to_anchor=(1, 0.3))
        _exact_bars(bars, [r for r in rows if r["writing"] == writings[-1]], sizes)
    return figure


def _exact_bars(ax: Axes, rows: list[dict[str, Any]], sizes: list[int]) -> None:
    """How often the first mark is the first wrong step, by rule and k; a diamond is chance."""
    rules = {
        "negative": ("Â < 0", BLUE, ""),
        "drop": ("R̂ falls", "white", "///"),
        "zero": ("R̂ = 0", YELLOW, ""),
    }
    for i, (rule, (label, colour, hatch)) in enumerate(rules.items()):
        for j, k in enumerate(sizes):
            hidden, chance = (
                next(r for r in rows if (r["k"], r["rule"], r["detector"]) == (k, rule, who))
                for who in ("hidden", "shuffled")
            )
            x = j + 0.26 * (i - 1)
            error = [
                [hidden["exact"] - hidden["exact_low"]],
                [hidden["exact_high"] - hidden["exact"]],
            ]
            style = {
                "color": colour,
                "hatch": hatch,
                "edgecolor": INK,
                "lw": 0.6,
                "label": label if j == 0 else None,
            }
            ax.bar(x, hidden["exact"], 0.24, yerr=error, capsize=2, **style)
            ax.plot(
                x,
                chance["exact"],
                "D",
                color=INK,
                mfc="white",
                ms=5,
                ls="",
                label="chance" if i == j == 0 else None,
            )
    ax.set_xticks(range(len(sizes)), [f"k = {k}" for k in sizes])
    ax.set(title="Many texts: first mark exact", ylim=(0, 1.04))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.legend(fontsize=8, ncol=2)
