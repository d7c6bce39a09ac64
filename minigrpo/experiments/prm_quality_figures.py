"""The figures of `prm_quality.py`, from its tables."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minigrpo.experiments import tables as t
from minigrpo.experiments.figures import band, estimates, look, panels, percent, styled
from minigrpo.show.drawing import BLUE, INK, YELLOW


@styled
def values_figure(table: t.Tables) -> Figure:
    """Before and after training: the error of R̂, how Â goes with exact ones, and equal tokens."""
    rows = table["value_errors"]
    steps, depths, sizes = (sorted(t.distinct(rows, name)) for name in ("steps", "depth", "k"))
    titles = {
        "rmse": "Error of R̂",
        "advantage": "Â and exact advantage",
        "centred": "R̂ - mean(r) and exact advantage",
        "tokens": "Error at equal tokens",
    }
    figure, grid = panels(2, 4, 13, 6, sharex="col", sharey="col")
    for line, step in zip(grid, (steps[0], steps[-1]), strict=True):
        for number, depth in enumerate(depths):
            own = t.select(rows, steps=step, depth=depth)
            style = look(number) | {"label": f"depth {depth}"}
            if any(row["rmse"] > 1e-6 for row in own):  # leaves have no error
                band(line[0], sizes, own, "rmse", **(style | {"ls": ""}))
                theory = {"color": style["color"], "ls": style["ls"], "lw": 1}
                line[0].plot(sizes, [row["predicted"] for row in own], **theory)
            band(line[1], sizes, own, "advantage", **style)
            band(line[2], sizes, own, "centred", **style)
        for ax in line[:3]:
            _powers_of_two(ax, sizes)
        when = "before training" if step == 0 else f"after {step} steps"
        labels = (f"{when}\nRMSE (lines: theory)", "correlation", "correlation", "RMSE")
        for ax, label in zip(line, labels, strict=True):
            ax.set_ylabel(label)
        _budgets(line[3], t.select(table["equal_tokens"], steps=step, k=4))
    places = ("upper right", "lower right", "lower right", "lower left")
    for i, (name, title) in enumerate(titles.items()):
        grid[0, i].set_title(title)
        grid[0, i].legend(fontsize=8, loc=places[i])
        grid[0, i].set_ylim(*((0, None) if i in (0, 3) else (-0.75, 1.04)))
        label = "tokens sampled for a group" if name == "tokens" else "group size k"
        grid[1, i].set_xlabel(label)
    return figure


def _powers_of_two(ax: Axes, ticks: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(tick) for tick in ticks])


def _budgets(ax: Axes, rows: t.Rows) -> None:
    """RMSE by tokens: the hidden PRM, and Monte-Carlo PRMs."""
    rows = sorted(rows, key=lambda row: row["tokens"])
    series = (
        ("rmse", t.select(rows, where="steps"), 1, "4 members, rollouts from steps"),
        ("rmse", t.select(rows, where="prefixes"), 2, "4 members, from all prefixes"),
        ("hidden_rmse", rows, 0, "hidden PRM: more members"),
    )
    for name, own, number, label in series:
        band(ax, [row["tokens"] for row in own], own, name, label=label, **look(number))
    _powers_of_two(ax, [16, 32, 64, 128])


@styled
def first_error_figure(table: t.Tables) -> Figure:
    """Where the sign of Â accuses: steps marked, by their distance to the first wrong one."""
    rows, profile = table["first_error"], table["first_error_profile"]
    titles = {"one order": "One right text each", "any order": "Many right texts each"}
    sizes = sorted(t.distinct(rows, "k"))
    figure, (line,) = panels(1, 3, 11, 3.9)
    for ax, (writing, title) in zip(line, titles.items(), strict=False):
        for number, k in enumerate(sizes):
            own = t.select(profile, writing=writing, k=k, detector="hidden")
            at = [row["offset"] for row in own]
            band(ax, at, own, "marked", label=f"k = {k}", **look(number))
        own = t.select(profile, writing=writing, k=sizes[-1], detector="shuffled")
        style = {"color": "#777777", "ls": ":", "marker": "x", "label": "shuffled rewards"}
        ax.plot(at, [row["marked"] for row in own], **style)
        ax.axvspan(-0.5, 2.5, color="#f0f0f0", lw=0, zorder=0)
        ax.text(1, 0.03, "wrong from here on", ha="center", fontsize=9, color="#555555")
        ax.set(title=title, xlabel="written step, 0 is the first wrong one")
        ax.set(ylim=(0, 1.04), xlim=(-2.2, 2.5))
        percent(ax)
    line[0].set_ylabel("steps with Â < 0")
    line[1].legend(fontsize=8, loc="center right", bbox_to_anchor=(1, 0.3))
    _exact_bars(line[2], t.select(rows, writing="any order"), sizes)
    return figure


def _exact_bars(ax: Axes, rows: t.Rows, sizes: list[int]) -> None:
    """How often the first mark is the first wrong step, by rule and k; a diamond is chance."""
    rules = {
        "negative": ("Â < 0", BLUE, ""),
        "drop": ("R̂ falls", "white", "///"),
        "zero": ("R̂ = 0", YELLOW, ""),
    }
    for i, (rule, (label, colour, hatch)) in enumerate(rules.items()):
        x = [j + 0.26 * (i - 1) for j in range(len(sizes))]
        height, ends = estimates(t.select(rows, rule=rule, detector="hidden"), "exact")
        style = {"color": colour, "hatch": hatch, "edgecolor": INK, "lw": 0.6, "label": label}
        ax.bar(x, height, 0.24, yerr=ends, capsize=2, **style)
        chance = [row["exact"] for row in t.select(rows, rule=rule, detector="shuffled")]
        label = None if i else "chance"
        ax.plot(x, chance, "D", color=INK, mfc="white", ms=5, label=label)
    ax.set_xticks(range(len(sizes)), [f"k = {k}" for k in sizes])
    ax.set(title="Many texts: first mark exact", ylim=(0, 1.04), ylabel="completions")
    percent(ax)
    ax.legend(fontsize=8, ncol=2)
