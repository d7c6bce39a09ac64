"""The figures of the project, in one style: learning curves, metrics, statistics, and (from `tree_plots.py`) trees.

Figures are made without pyplot, so no display and no global state is needed; nothing is told by colour alone, so that a grey print
can be read; `save` writes the same bytes every time.  What this leaves out: computing what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from minigrpo.drawing import BLUE, INK, LINES, STYLE
from minigrpo.tree_plots import draw_tree, draw_trees_page

__all__ = [
    "STYLE",
    "bootstrap_interval",
    "draw_tree",
    "draw_trees_page",
    "learning_curves",
    "metrics_figure",
    "save",
    "statistics_figure",
]

# What `metrics_figure` shows if not told otherwise, with units for the vertical axes.
METRICS = {
    "reward": "mean outcome reward",
    "frac_reward_zero_std": "share of groups",
    "kl": "nats per token",
    "entropy": "nats per token",
    "completions/mean_length": "tokens",
    "grad_norm": "norm",
    "tree/unique_tokens": "tokens",
    "tree/mean_count": "mean |λ| of a token",
    "tree/intermediate_proportion": "share of tokens",
}


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG (150 dpi) or SVG, by suffix; the same figure gives the same bytes.   -> path

    Folders are made as needed.  Raises ValueError for other suffixes.
    """
    path = Path(path)
    metadata = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}.get(path.suffix)
    if metadata is None:
        raise ValueError(f"cannot write a figure to {path.name!r}: end its name in .png or .svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, metadata=metadata)
    return path


# -- learning curves ---------------------------------------------------------------------------------------------------


def bootstrap_interval(
    values: np.ndarray, rng: np.random.Generator, level: float = 0.95, n: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap of the mean over axis 0, the seeds.   values (S,...) -> low (...), high (...)

    n times S seeds are drawn with replacement, the same for all other axes; low and high are quantiles of the n means.  With few
    seeds the interval is somewhat too narrow: at 8 normal values "95 %" covers the true mean about 88 % of the time.
    Raises ValueError for no seeds, and for a level outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or not len(values):
        raise ValueError("a bootstrap needs at least one seed along axis 0")
    if not 0 < level < 1 or n < 1:
        raise ValueError(f"level is {level} and n is {n}: level must be between 0 and 1, n at least 1")
    drawn = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=n)  # (n,S) how often each seed was drawn
    means = drawn @ values.reshape(len(values), -1) / len(values)  # (n,...)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def learning_curves(
    curves: Mapping[str, np.ndarray],
    *,
    xlabel: str = "training step",
    ylabel: str = "mean outcome reward",
    title: str | None = None,
    steps: Sequence[float] | None = None,
    smooth: int = 1,
    rng: np.random.Generator | None = None,
) -> Figure:
    """A mean line a method with its 95 % bootstrap band over seeds, labelled at its end.   curves: name -> (seeds, steps)

    steps: the horizontal positions, counted from 1 if not given.  smooth: average each seed over that many steps up to the one
    shown (fewer at the start) before all else, and say so.  rng draws the bootstrap; a generator with seed 0 if not given.
    Raises ValueError for no curves, arrays that are not (seeds, steps) of one number of steps, and numbers that are not finite.
    """
    if not curves:
        raise ValueError("no curves to draw: give at least one name with its (seeds, steps) array")
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in curves.items()}
    n_steps = next(iter(arrays.values())).shape[-1:]
    for name, values in arrays.items():
        if values.ndim != 2 or not values.size or values.shape[1:] != n_steps or not np.isfinite(values).all():
            wanted = "(seeds, steps), with as many steps as the others and finite numbers"
            raise ValueError(f"curve {name!r} has shape {values.shape}: it must be {wanted}")
    x = np.arange(1, n_steps[0] + 1) if steps is None else np.asarray(steps)
    if x.shape != n_steps or smooth < 1:
        raise ValueError(f"{n_steps[0]} steps, {x.size} positions, smooth = {smooth}: give one position a step, smooth at least 1")
    rng = rng or np.random.default_rng(0)
    seeds = {len(values) for values in arrays.values()}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        ax = figure.add_subplot()
        ends = []
        for i, (name, values) in enumerate(arrays.items()):
            colour, dash, marker = LINES[i % len(LINES)]
            smoothed = _running_mean(values, smooth)
            low, high = bootstrap_interval(smoothed, rng)
            mean = smoothed.mean(0)
            every = (max(i * len(x) // (8 * len(arrays)), 0), max(len(x) // 8, 1))
            ax.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
            ax.plot(x, mean, color=colour, ls=dash, marker=marker, markevery=every, ms=5, label=name)
            ends.append((float(mean[-1]), name if len(seeds) == 1 else f"{name} ({len(values)})", colour))
        ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(x[0], x[-1] + (x[-1] == x[0])))
        _label_ends(ax, float(x[-1]), ends)
        over = f"{min(seeds)} seeds" if len(seeds) == 1 else "seeds (their number in brackets)"
        about = "one seed" if seeds == {1} else f"mean and 95 % bootstrap band over {over}"
        _titles(ax, title, about + (f"; running mean of {smooth} steps" if smooth > 1 else ""))
    return figure


def _titles(ax: Axes, title: str | None, about: str) -> None:
    """A bold title over a smaller grey line of what is shown."""
    ax.set_title(title or "", weight="bold", pad=22)
    ax.annotate(about, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", fontsize=8.5, color="#555555")


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` entries along the last axis, of fewer at the start.   (S,T) -> (S,T)"""
    total = np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=1)
    stop = np.arange(1, values.shape[1] + 1)
    start = np.maximum(stop - window, 0)
    return (total[:, stop] - total[:, start]) / (stop - start)


def _label_ends(ax: Axes, x: float, ends: list[tuple[float, str, str]]) -> None:
    """Names at the right ends of lines, moved apart where they would overlap."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, high)
    gap, places, at = 0.065 * (high - low), [], -math.inf
    for value, _, _ in sorted(ends):
        at = max(at + gap, value)
        places.append(at)
    shift = max(places[-1] - high, 0.0)  # rather down than out of the figure
    for i in reversed(range(len(places))):
        limit = places[i + 1] - gap if i + 1 < len(places) else places[i] - shift
        places[i] = min(places[i], limit)
    for place, (value, name, colour) in zip(places, sorted(ends), strict=True):
        line = {"arrowstyle": "-", "color": colour, "lw": 1.2, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)}
        spot = (1.04, (place - low) / (high - low))
        ax.annotate(name, (x, value), spot, textcoords="axes fraction", va="center", annotation_clip=False, arrowprops=line)


# -- metrics and statistics --------------------------------------------------------------------------------------------


def metrics_figure(records: Sequence[Mapping[str, object]], keys: Sequence[str] | None = None) -> Figure:
    """A run's metrics over its steps, a panel a key.   records: the lines of metrics.jsonl, each with a "step"

    keys: by default those of METRICS that any record has.  Beyond 40 steps a running mean of 10 is drawn over the pale raw line.
    Raises ValueError if there is nothing to draw, for a record without a step, and for a key that no record has.
    """
    for i, record in enumerate(records):
        if not isinstance(record.get("step"), int | float):
            raise ValueError(f'record {i} has no "step": each line of metrics needs one')
    present = list(dict.fromkeys(key for record in records for key, value in record.items() if isinstance(value, int | float)))
    chosen = [key for key in METRICS if key in present] if keys is None else list(keys)
    missing = [key for key in chosen if key not in present]
    if missing or not chosen:
        wanted = ", ".join(missing) or "any of the usual metrics"
        raise ValueError(f"no record has {wanted}: choose from {', '.join(present) or 'nothing, for there is no number'}")
    across = min(3, len(chosen))
    down = math.ceil(len(chosen) / across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * across + 0.4, 2.3 * down + 0.4), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1)
        first = None
        for i, key in enumerate(chosen):
            ax = first = figure.add_subplot(down, across, i + 1, sharex=first)
            points = [(r["step"], r[key]) for r in records if isinstance(r.get(key), int | float) and math.isfinite(r[key])]
            x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
            long = len(x) > 40
            ax.plot(x, y, color=BLUE, lw=0.8 if long else 1.8, alpha=0.35 if long else 1, marker="" if len(x) > 20 else "o", ms=4)
            if long:
                ax.plot(x, _running_mean(y[None], 10)[0], color=INK)
            ax.set_title(key, family="monospace", fontsize=9.5)
            ax.set_ylabel(METRICS.get(key, "value"), fontsize=9)
            ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            if i >= len(chosen) - across:
                ax.set_xlabel("training step" + (" (dark: running mean of 10)" if long else ""), fontsize=9)
            else:
                ax.tick_params(labelbottom=False)
    return figure


def statistics_figure(stats: Mapping) -> Figure:
    """The paper's section 3.2 as three histograms, from `groups.tree_statistics`: |λ|, path depth, intermediate proportion."""
    unit = stats.get("unit", "tokens")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        figure.get_layout_engine().set(wspace=0.06)
        left, middle, right = figure.subplots(1, 3)
        sizes = {int(size): tokens for size, tokens in stats["count_histogram"].items()}  # JSON turns keys into text
        bar = {"color": BLUE, "edgecolor": "white", "lw": 0.6}
        left.bar(list(sizes), list(sizes.values()), width=0.9, **bar)
        left.set(yscale="log", xlabel="|λ|, completions that share a token", ylabel=f"{unit} of all completions")
        low, high = min(sizes.values(), default=1), max(sizes.values(), default=1)
        left.set_ylim(low / 2, high * 1.5)
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
        left.yaxis.set_major_formatter("{x:,.0f}")
        left.yaxis.set_minor_formatter("")
        _titles(left, "Shared by how many", f"{stats['flat_tokens']} {unit}, of which {stats['unique_tokens']} distinct")
        depth = np.bincount(stats["path_depth"])
        middle.bar(range(len(depth)), depth, width=0.9, **bar)
        middle.set(xlabel="process sets between root and leaf", ylabel="completions")
        is_flat = f"{stats['flat_share']:.1%} of {stats['groups']} groups are flat"
        _titles(middle, "Path depth", f"mean {stats['path_depth_mean']:.2f}; {is_flat}")
        right.hist(stats["intermediate_proportion"], bins=np.linspace(0, 1, 21), **bar)
        right.axvline(stats["intermediate_proportion_mean"], color=INK, ls="--", lw=1.2)
        right.set(xlabel=f"share of {unit} before the leaf", ylabel="completions", xlim=(0, 1))
        _titles(right, "Intermediate proportion", f"mean {stats['intermediate_proportion_mean']:.1%} (dashed)")
        for axis in (left.xaxis, middle.xaxis, middle.yaxis, right.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        for ax in (left, middle, right):
            ax.grid(axis="x", visible=False)
    return figure
