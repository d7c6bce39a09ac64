"""Does λ-GRPO find the target path of the paper's walk where GRPO does not, and why?

(results/README.md, "Table 1, with controls".)  In the paper (section 4.3) GPT-2-small walks a
binary tree of depth 4 from a root token that is no move; every token but L and R is masked.  The
target path is drawn for each run and earns 1, other paths that share its first n moves earn r_neg,
all others 0.7.  k = 16, 250 steps, the share of target paths among those of the last 50, five
seeds, one learning rate.  Here the policy is a transformer of two layers that starts near the
uniform policy, so learning rates are not comparable and every arm's is swept; each of the 16
targets is walked to equally often, by `many_walks.py`.

The best learning rate of an arm is chosen on the first half of its runs, and what is reported is
the second half.  Ours, and kept apart: n = 3, and one fixed target (RRRR) for all runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from minigrpo.experiments import tables as t
from minigrpo.experiments.controls import COMPARED, CONTROLS, PRESETS, TITLES
from minigrpo.experiments.figures import cell, matrix_axes, panels, styled
from minigrpo.experiments.many_walks import BLOCK, GROUP_SIZE, LAST, MC_GROUP_SIZE, run_walks
from minigrpo.experiments.reproduce import Request
from minigrpo.experiments.tables import rounded
from minigrpo.show.drawing import BLUE, INK, ORANGE

PUBLISHED = {  # (n, r_neg): GRPO, λ-GRPO; the paper's Table 1, five seeds each
    (1, -0.5): (0.3995, 0.5663),
    (1, -1.0): (0.0000, 0.7535),
    (1, -1.5): (0.2000, 0.4463),
    (2, -0.5): (0.1980, 0.4292),
    (2, -1.0): (0.0488, 0.3612),
    (2, -1.5): (0.0000, 0.3820),
}
ARMS = (*COMPARED, *CONTROLS, *PRESETS[2:], "monte_carlo_prm")
RATES = {  # Adam hides a gradient's scale; plain SGD does not
    "adamw": (1.5e-4, 3e-4, 6e-4, 1.2e-3, 2.4e-3, 4.8e-3),
    "sgd": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
}
LARGER_RATES = (9.6e-3, 1.92e-2, 3.84e-2)  # of AdamW, for dr_grpo and rloo, which want them
SMALL_RATE = 3e-4
RUNS, CONTROL_RUNS, CHUNK = 192, 96, 32
SETTING = ("n", "r_neg", "optimizer", "targets")  # targets: "drawn" or "RRRR"
NAMES = ("arm", "n", "r_neg", "optimizer", "learning_rate", "targets")
Cell = tuple[str, int, float, str, float, str]


def cells(quick: bool) -> dict[Cell, int]:
    """All cells and the number of runs of each."""
    if quick:
        rates = RATES["adamw"][1:4]
        found = [(a, n, -1.0, "adamw", x, "drawn") for n in (1, 2) for x in rates for a in ARMS[:5]]
        return dict.fromkeys(found, 64)
    found = []
    for optimizer, rates in RATES.items():
        for rate in rates:
            at = (optimizer, rate)
            found += [(arm, *pair, *at, "drawn") for pair in PUBLISHED for arm in ARMS]
            found += [(arm, 3, r, *at, "drawn") for r in (-0.5, -1.0, -1.5) for arm in COMPARED]
            if optimizer == "adamw":
                found += [(arm, *pair, *at, "RRRR") for pair in PUBLISHED for arm in COMPARED]
    larger = [(arm, rate) for arm in ("dr_grpo", "rloo") for rate in LARGER_RATES]
    found += [(arm, *pair, "adamw", x, "drawn") for pair in PUBLISHED for arm, x in larger]
    many = [key for key in found if key[0] in COMPARED and key[1] < 3 and key[-1] == "drawn"]
    return dict.fromkeys(found, CONTROL_RUNS) | dict.fromkeys(many, RUNS)


def walk(targets: str, **cell: Any) -> list[int]:
    """-> of each run, the target paths among the completions of the last 50 steps"""
    target = None if targets == "drawn" else int(targets.replace("L", "0").replace("R", "1"), 2)
    return [sum(run[-LAST // BLOCK :]) for run in run_walks(target=target, **cell)]


def frequency(arm: str, final: Sequence[int]) -> np.ndarray:
    """Target frequency of the last 50 steps, one number per run."""
    return np.array(final) / (LAST * (MC_GROUP_SIZE if arm == "monte_carlo_prm" else GROUP_SIZE))


def summary(values: np.ndarray) -> dict[str, float]:
    """Mean with its 95 % interval, and the share of runs that found the target (above one half)."""
    numbers = (*t.mean_and_interval(values), (values > 0.5).mean())
    names = ("target_frequency", "low", "high", "found")
    return {name: rounded(x) for name, x in zip(names, numbers, strict=True)}


def table(finals: dict[Cell, list[int]]) -> list[t.Row]:
    """A row for each cell: of all its runs; the first half's mean; each run's target paths."""
    rows = []
    for key, final in finals.items():
        values = frequency(key[0], final)
        row = dict(zip(NAMES, key, strict=True)) | {"runs": len(final)} | summary(values)
        row["first_half"] = rounded(values[: len(values) // 2].mean())
        rows.append(row | {"hits_of_run": final})
    return rows


def best(rows: t.Rows) -> list[t.Row]:
    """Each arm at the rate that is best on the first half of its runs, as told by the second half.

    inside: the rate is neither the smallest nor the largest of the sweep.
    """
    chosen = []
    for key in t.distinct(rows, "arm", *SETTING):
        own = t.select(rows, **dict(zip(("arm", *SETTING), key, strict=True)))
        row = max(own, key=lambda row: row["first_half"])
        rates = [other["learning_rate"] for other in own]
        hits = row["hits_of_run"][row["runs"] // 2 :]
        picked: t.Row = {name: row[name] for name in NAMES}
        picked["inside"] = min(rates) < row["learning_rate"] < max(rates)
        picked |= {"runs": len(hits)} | summary(frequency(row["arm"], hits))
        chosen.append(picked | {"hits_of_run": hits})
    return chosen


def paired(grpo: np.ndarray, fixed: np.ndarray) -> dict[str, Any]:
    """λ-GRPO - GRPO, seed by seed, with its interval.

    only_*: seeds at which this one alone found the target; p: exact sign test on these.
    """
    only = [int(((a > 0.5) & (b <= 0.5)).sum()) for a, b in ((grpo, fixed), (fixed, grpo))]
    numbers = (*t.mean_and_interval(fixed - grpo), t.sign_test(*only))
    names = ("difference", "low", "high", "p")
    row = {name: rounded(x) for name, x in zip(names, numbers, strict=True)}
    return row | {"only_grpo": only[0], "only_lambda_grpo": only[1]}


def comparison(rows: t.Rows) -> list[t.Row]:
    """GRPO against λ-GRPO for each setting: at each one's best rate, and at each common rate."""
    found = []
    for rates, those in (("best", best(rows)), ("same", rows)):
        for grpo in t.select(those, arm="grpo"):
            same = SETTING if rates == "best" else NAMES[1:]
            at = {name: grpo[name] for name in same}
            fixed = t.select(those, arm="lambda_grpo", **at)[0]
            row = {"rates": rates} | {name: grpo[name] for name in SETTING}
            row["runs"], values = grpo["runs"], []
            for arm, own in (("grpo", grpo), ("lambda_grpo", fixed)):
                values.append(frequency(arm, own["hits_of_run"]))
                row |= {f"{arm}_rate": own["learning_rate"], arm: rounded(values[-1].mean())}
                row[f"{arm}_found"] = rounded((values[-1] > 0.5).mean())
            row |= paired(*values)
            if (row["n"], row["r_neg"]) in PUBLISHED and row["targets"] == "drawn":
                row |= beside_the_paper(row["n"], row["r_neg"], *values)
            found.append(row)
    return found


def beside_the_paper(n: int, r_neg: float, *ours: np.ndarray) -> dict[str, Any]:
    """How likely five of our runs, of GRPO and λ-GRPO, are to do as the paper's five seeds did.

    paper_p_*: by the number of seeds that found the target, the nearest to five times the published
    mean; paper_p_mean_*: by the mean itself, of five runs drawn from ours.  For GRPO "as badly or
    worse", for λ-GRPO "as well or better".
    """
    published, rng = PUBLISHED[n, r_neg], np.random.default_rng(0)
    seeds = [round(5 * value) for value in published]
    means = [own[rng.integers(len(own), size=(20_000, 5))].mean(1) for own in ours]
    found = (float((own > 0.5).mean()) for own in ours)
    as_far = range(seeds[0] + 1), range(seeds[1], 6)  # numbers of seeds
    chances = [
        sum(comb(5, s) * p**s * (1 - p) ** (5 - s) for s in those)
        for p, those in zip(found, as_far, strict=True)
    ]
    by_mean = (means[0] <= published[0] + 5e-5).mean(), (means[1] >= published[1] - 5e-5).mean()
    columns = {"": published, "seeds_": seeds, "p_": chances, "p_mean_": by_mean}
    return {
        f"paper_{column}{arm}": rounded(x) if "p_" in column else x
        for column, pair in columns.items()
        for arm, x in zip(COMPARED, pair, strict=True)
    }


def text(tables: t.Tables) -> str:
    """Each arm at its own best learning rate, then GRPO against λ-GRPO, for a terminal."""
    setting = "optimizer n r_neg targets"
    best = f"{setting} arm target_frequency low high found runs learning_rate inside"
    compared = f"{setting} difference low high only_lambda_grpo only_grpo p"
    shown = tables | {"comparison": t.select(tables["comparison"], rates="best")}
    return t.show(shown, {"best": best, "comparison": compared})


def figures(tables: t.Tables) -> dict[str, Figure]:
    """Ours beside the paper's; the controls at their best rates; the whole sweep."""
    return {
        "table1": paper_figure(tables["comparison"]),
        "table1-controls": best_figure(tables["best"]),
        "table1-sweep": sweep_figure(tables["rows"]),
    }


@styled
def paper_figure(comparison: t.Rows) -> Figure:
    """The paper's pairs of numbers, ours at one small rate, and at each one's best rate."""
    rows = [row for row in comparison if "paper_grpo" in row]
    settings = t.distinct(rows, "n", "r_neg")
    small = t.select(rows, rates="same", grpo_rate=SMALL_RATE)
    ours = {
        "AdamW, one small rate for both": t.select(small, optimizer="adamw"),
        "AdamW, each at its best rate": t.select(rows, rates="best", optimizer="adamw"),
        "plain SGD, each at its best rate": t.select(rows, rates="best", optimizer="sgd"),
    }
    shape = -(-len(settings) // 3), min(len(settings), 3)
    figure, grid = panels(*shape, 11, 2.0 + 1.7 * shape[0], sharex=True, sharey=True)
    for ax, (n, r_neg) in zip(grid.flat, settings, strict=False):
        pairs = {"the paper, five seeds": PUBLISHED[n, r_neg]}
        for name, those in ours.items():
            for row in t.select(those, n=n, r_neg=r_neg):
                pairs[name] = row["grpo"], row["lambda_grpo"]
        for y, pair in enumerate(pairs.values()):
            arrow = {"arrowstyle": "->", "color": "#888888", "shrinkA": 3, "shrinkB": 3}
            ax.annotate("", (pair[1], y), (pair[0], y), arrowprops=arrow)
            for x, marker, colour in zip(pair, "os", (BLUE, ORANGE), strict=True):
                face = colour if y else "white"
                ax.plot([x], [y], marker, color=colour, mfc=face, ms=7, clip_on=False)
        ax.set_yticks(range(len(pairs)), pairs)
        ax.set_title(f"n = {n}, r_neg = {r_neg:g}")
    grid[0, 0].set(xlim=(-0.03, 1.03), ylim=(len(pairs) - 0.4, -0.6))
    handles = [
        Line2D([], [], marker=marker, color=colour, ls="", label=TITLES[arm])
        for arm, marker, colour in zip(COMPARED, "os", (BLUE, ORANGE), strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False)
    about = "frequency of the target path in the last 50 of 250 steps (open: published)"
    figure.supxlabel(about, fontsize=9)
    return figure


def _panels(rows: t.Rows, width: float, line: float) -> tuple[Figure, list[str], list]:
    """A panel for each optimiser and setting.   -> figure, arms, (axes, rows) of each panel"""
    rows = [row for row in t.select(rows, targets="drawn") if row["n"] < 3]
    settings = sorted(set(t.distinct(rows, "n", "r_neg")), key=lambda pair: (pair[0], -pair[1]))
    optimizers = t.distinct(rows, "optimizer")
    arms = [arm for arm in TITLES if t.select(rows, arm=arm)]
    size = width * max(len(settings), 2) + 2.2, (line * len(arms) + 0.9) * len(optimizers) + 0.5
    shared = {"sharex": "row", "sharey": True}
    figure, grid = panels(len(optimizers), len(settings), *size, **shared)
    each: list[tuple[Axes, list[t.Row]]] = []
    for axes, optimizer in zip(grid, optimizers, strict=True):
        for ax, (n, r_neg) in zip(axes, settings, strict=True):
            name = {"adamw": "AdamW", "sgd": "plain SGD"}[optimizer] if ax is axes[0] else ""
            ax.set_title(f"n = {n}, r_neg = {r_neg:g}\n{name}", fontsize=9)
            each.append((ax, t.select(rows, optimizer=optimizer, n=n, r_neg=r_neg)))
    return figure, arms, each


@styled
def best_figure(best: t.Rows) -> Figure:
    """A dot with its 95 % interval for each arm at its best rate; λ-GRPO's direction is square."""
    figure, arms, each = _panels(best, 1.9, 0.26)
    for ax, rows in each:
        for row in rows:
            arm = row["arm"]
            mean, low, high = (row[name] for name in ("target_frequency", "low", "high"))
            fixed = arm in ("lambda_grpo", "lambda_at_grpo_norm")
            colour = ORANGE if fixed else BLUE if arm == "grpo" else INK
            style = {"marker": "s" if fixed else "o", "color": colour, "ms": 5, "capsize": 2}
            style["mfc"] = colour if arm in COMPARED else "white"
            ax.errorbar([mean], [arms.index(arm)], xerr=[[mean - low], [high - mean]], **style)
        ax.set(xlim=(-0.04, 1.04), yticks=range(len(arms)), yticklabels=[TITLES[a] for a in arms])
    each[0][0].invert_yaxis()
    about = "mean and 95 % interval of runs that did not choose the rate"
    figure.supxlabel(f"frequency of the target, each arm at its best rate ({about})", fontsize=9)
    return figure


@styled
def sweep_figure(rows: t.Rows) -> Figure:
    """Mean target frequency for every arm and learning rate, as numbers on grey."""
    figure, arms, each = _panels(rows, 2.3, 0.24)
    for ax, own in each:
        rates = sorted(t.distinct(own, "learning_rate"))
        for row in own:
            value, x, y = row["target_frequency"], row["learning_rate"], arms.index(row["arm"])
            colour = "white" if value > 0.55 else INK
            cell(ax, rates.index(x), y, f"{value:.2f}", str(1 - 0.8 * value), size=7, color=colour)
        matrix_axes(ax, [f"{rate:g}" for rate in rates], [TITLES[arm] for arm in arms])
        ax.tick_params(axis="x", labelsize=7, rotation=30)
        ax.grid(visible=False)
    about = "learning rate (in the cells: mean frequency of the target, last 50 of 250 steps)"
    figure.supxlabel(about, fontsize=9)
    return figure


def run(request: Request) -> t.Tables:
    """All cells (quick: two settings, five arms, three rates of AdamW, 64 runs each).

    seeds: runs of each cell, a multiple of 32, so that each half has every target equally often.
    """
    numbers = {key: balanced(request.seeds or n) for key, n in cells(request.quick).items()}
    jobs = [
        dict(zip(NAMES, key, strict=True)) | {"first_seed": first, "runs": CHUNK}
        for key, number in numbers.items()
        for first in range(0, number, CHUNK)
    ]
    found = iter(request.jobs(walk, jobs, "table 1"))
    finals: dict[Cell, list[int]] = {}
    for key, number in numbers.items():
        finals[key] = [hits for _ in range(number // CHUNK) for hits in next(found)]
    rows = table(finals)
    told = [{name: x for name, x in row.items() if name != "hits_of_run"} for row in best(rows)]
    return {"rows": rows, "best": told, "comparison": comparison(rows)}


def balanced(runs: int) -> int:
    """So many runs, if each half of them has every target equally often; else ValueError."""
    if runs % CHUNK:
        told = f"{runs} runs do not walk to each of the 16 targets equally often in both halves"
        raise ValueError(f"{told}: take a multiple of {CHUNK}")
    return runs
