"""The figures of the project, in one style: learning curves, metrics, statistics, and (from `tree_plots.py`) trees.

Figures are made without pyplot, so no display and no global state is needed; nothing is told by colour alone, so that a grey print
can be read; `save` writes the same bytes every time.  What this leaves out: computing what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from minigrpo.runs.folder import is_finite, read_metrics
from minigrpo.runs.settings import MAY_CHANGE, TrainSettings
from minigrpo.runs.stored_settings import read_settings
from minigrpo.show.drawing import BLUE, INK, LINES, STYLE
from minigrpo.show.tree_plots import draw_tree as draw_tree
from minigrpo.show.tree_plots import draw_trees_page as draw_trees_page
from minigrpo.show.tree_plots import legible, printed
from minigrpo.system.files import write_output
from minigrpo.system.text import columns, visible
from minigrpo.tasks import BUILT_IN, find_task

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
    "eval/pass@1_greedy": "share of held-out problems",
}
TASK = (
    "task",
    "task_options",
    "model",
)  # settings that must be the same in all runs of a figure, though called otherwise
UNITS = METRICS | {
    "eval/reward_greedy": "mean outcome reward",
    "step_time": "seconds",
    "num_tokens": "tokens",
}


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG (150 dpi) or SVG, by suffix; the same figure gives the same bytes.   -> path

    Folders are made as needed.  Raises ValueError for other suffixes.
    """
    path = Path(path)
    metadata = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}.get(
        path.suffix
    )
    if metadata is None:
        raise ValueError(f"cannot write a figure to {path.name!r}: end its name in .png or .svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(drawn, format=path.suffix[1:], metadata=metadata)
    write_output(path, drawn.getvalue())
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
        raise ValueError(
            f"level is {level} and n is {n}: level must be between 0 and 1, n at least 1"
        )
    drawn = rng.multinomial(
        len(values), np.full(len(values), 1 / len(values)), size=n
    )  # (n,S) how often each seed was drawn
    means = drawn @ values.reshape(len(values), -1) / len(values)  # (n,...)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def learning_curves(
    curves: Mapping[str, np.ndarray],
    *,
    xlabel: str = "training step",
    ylabel: str = "mean outcome reward",
    title: str | None = None,
    steps: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    note: str = "",
    smooth: int = 1,
    rng: np.random.Generator | None = None,
) -> Figure:
    """A mean line for each method with its 95 % bootstrap band over seeds.   curves: name -> (seeds, steps)

    steps: the horizontal positions, counted from 1 if not given; a mapping for curves that have their own.  smooth: average each
    seed over that many steps up to the one shown (fewer at the start) before all else, and say so.  rng draws the bootstrap; a
    generator with seed 0 if not given.  note: said beside the number of seeds.
    Raises ValueError for no curves or too many to tell apart, arrays that are not (seeds, steps) of the positions' number of steps,
    and numbers that are not finite.
    """
    if not curves:
        raise ValueError("no curves to draw: give at least one name with its (seeds, steps) array")
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in curves.items()}
    if len(arrays) > len(LINES) ** 2:
        raise ValueError(
            f"{len(arrays)} lines cannot be told apart: draw at most {len(LINES) ** 2}"
        )
    n_steps = next(iter(arrays.values())).shape[-1:]
    at = np.arange(1, n_steps[0] + 1) if steps is None else steps
    positions = {name: np.asarray(at[name] if isinstance(at, Mapping) else at) for name in arrays}
    for name, values in arrays.items():
        n = positions[name].shape if isinstance(at, Mapping) else n_steps
        if (
            values.ndim != 2
            or not values.size
            or values.shape[1:] != n
            or not np.isfinite(values).all()
        ):
            wanted = "(seeds, steps), with as many steps as the others and finite numbers"
            raise ValueError(f"curve {name!r} has shape {values.shape}: it must be {wanted}")
        x = positions[name]
        if x.shape != n or smooth < 1:
            raise ValueError(
                f"{n[0]} steps, {x.size} positions, smooth = {smooth}: give one position a step, smooth at least 1"
            )
    rng = rng or np.random.default_rng(0)
    seeds = {len(values) for values in arrays.values()}
    with matplotlib.rc_context(STYLE):
        rows = "\n".join(arrays).split("\n")
        wide, high = 0.09 * max(map(columns, rows)), 0.22 * len(rows)  # inches of the legend
        figure = Figure(figsize=(7 + wide, max(4.2, high + 1)), layout="constrained")
        ax = figure.add_subplot()
        for i, (name, values) in enumerate(arrays.items()):
            colour, dash, _ = LINES[i % len(LINES)]
            marker = LINES[(i + i // len(LINES)) % len(LINES)][
                2
            ]  # from the seventh line on, another than before
            x, smoothed = positions[name], _running_mean(values, smooth)
            every = (max(i * len(x) // (8 * len(arrays)), 0), max(len(x) // 8, 1))
            ax.fill_between(
                x,
                *bootstrap_interval(smoothed, rng),
                color=colour,
                alpha=0.18,
                lw=6 * (len(x) == 1),
            )
            label = name if len(seeds) == 1 else f"{name} ({len(values)})"
            style = {
                "color": colour,
                "ls": dash,
                "marker": marker,
                "markevery": every,
                "ms": 5,
                "clip_on": False,
            }
            ax.plot(x, smoothed.mean(0), label=label, **style)
        everywhere = np.concatenate(list(positions.values()))
        room = np.ptp(everywhere) / 100 or 1
        ax.set(
            xlabel=xlabel, ylabel=ylabel, xlim=(everywhere.min() - room, everywhere.max() + room)
        )
        ax.xaxis.set_major_locator(MaxNLocator(integer=bool((everywhere % 1 == 0).all())))
        figure.legend(loc="outside right center", frameon=False, handlelength=4)
        over = f"{min(seeds)} seeds" if len(seeds) == 1 else "seeds (their number in brackets)"
        one = "one seed" + " each" * (len(arrays) > 1)
        about = one if seeds == {1} else f"mean and 95 % bootstrap band over {over}"
        _titles(
            ax,
            title,
            about
            + (f"; running mean of {smooth} steps" if smooth > 1 else "")
            + (f"; {note}" if note else ""),
        )
    return legible(figure)


def _titles(ax: Axes, title: str | None, about: str) -> None:
    """A bold title over a smaller grey line of what is shown."""
    ax.set_title(title or "", weight="bold", pad=22)
    ax.annotate(
        about,
        (0, 1),
        (0, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8.5,
        color="#555555",
    )


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` entries along the last axis, of fewer at the start.   (S,T) -> (S,T)"""
    stops = range(1, values.shape[1] + 1)
    return np.stack([values[:, max(stop - window, 0) : stop].mean(1) for stop in stops], axis=1)


def compare_runs(folders: Sequence[str | Path], key: str = "reward") -> Figure:
    """One metric of runs of a task, a line for each setting: the mean over the runs that differ in their seed alone.

    What does not change the metric does not part runs: when checkpoints and samples were written; where it was computed, unless
    time is drawn; how often and on how many problems it was evaluated, unless evaluations are drawn.  A mean stands only where all
    its runs have a finite value.
    Raises ValueError for runs of several tasks, a run (or the same seed and settings) given twice, and a run without the metric.
    """
    ignored = {"seed", "checkpoint_every", "log_samples_every", "task_file", *TASK}
    ignored |= set() if key == "step_time" else set(MAY_CHANGE)
    ignored |= set() if key.startswith("eval/") else {"eval_every", "eval_prompts"}
    seen: list[tuple[str | Path, dict]] = []  # folders and settings of the runs so far
    lines: list[
        tuple[dict, dict]
    ] = []  # settings; by seed, the folder of a run and its values by step
    for folder in folders:
        settings, records = run_settings(folder), read_metrics(folder, before=True)
        for (before, known), name in product(seen, TASK):
            by_file = "task_file" in known and "task_file" in settings
            one, other = (_resolved(s, name, by_file) for s in (known, settings))
            if one != other:
                was = f"{before} has {name} {one!r}, {folder} has {other!r}"
                raise ValueError(
                    f"{was}: runs of different tasks cannot be compared, so plot them apart"
                )
        seen.append((folder, settings))
        values = {record["step"]: record[key] for record in records if is_finite(record.get(key))}
        if not values:
            others = visible(
                ", ".join(sorted({k for record in records for k in record if is_finite(record[k])}))
            )
            raise ValueError(
                f"{folder}: there is no {key!r} in the metrics of a run: it has {others} (as finite numbers)"
            )
        line = {name: value for name, value in settings.items() if name not in ignored}
        runs = next((runs for other, runs in lines if other == line), None)
        if runs is None:
            lines.append((line, runs := {}))
        if (seed := str(settings["seed"])) in runs:
            why = f"seed {seed} and all settings that change {key} are the same"
            raise ValueError(
                f"{runs[seed][0]} and {folder} are one run, not two seeds ({why}): leave one out"
            )
        runs[seed] = folder, values
    curves, steps, note = {}, {}, ""
    for name, (_, runs) in zip(_line_names([line for line, _ in lines]), lines, strict=True):
        common = sorted(set.intersection(*(set(values) for _, values in runs.values())))
        if not common:
            raise ValueError(
                f"the runs of {name} have {key} at no step in common, so they have no mean: plot them apart"
            )
        if any(len(values) > len(common) for _, values in runs.values()):
            note = "only where all have a value"
        steps[name], curves[name] = (
            common,
            np.array([[values[step] for step in common] for _, values in runs.values()]),
        )
    label = f"{key}\n{UNITS[key]}" if key in UNITS else key
    return learning_curves(
        curves, steps=steps, ylabel=label, title=f"{key} on {task_name(settings)}", note=note
    )


def run_settings(folder: str | Path) -> dict[str, Any]:
    """A run's settings, with defaults for those that it was stored without; the objective's options stand among them."""
    settings = asdict(TrainSettings()) | read_settings(folder)
    return settings | (settings.pop("objective_options") or {})


def _resolved(settings: Mapping[str, Any], name: str, by_file: bool) -> Any:
    """A setting without what may differ between runs of one task: the way to a user's file, options that are the defaults."""
    if name == "task" and by_file:
        return f"{settings['task_file']}:{settings['task'].rpartition(':')[2]}"
    with suppress(ValueError, TypeError):  # as of options that this version does not know
        if name == "task_options" and settings["task"] in BUILT_IN:
            return vars(find_task(settings["task"], **settings[name]))
    return settings[name]


def task_name(settings: Mapping[str, Any]) -> str:
    """The task of a run, and the model, for a title."""
    return printed(
        " with ".join(str(settings[name]) for name in ("task", "model") if settings[name]),
        60,
        "bold",
    )


def _line_names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each line: the settings in which lines differ, of paths the folders in which they do; else the objective."""
    parts: list[list[str]] = [[] for _ in settings]
    for key in dict.fromkeys(key for s in settings for key in s):
        paths = [str(s.get(key, "default")).split("/") for s in settings]
        for end, rest in ((0, slice(1, None)), (-1, slice(None, -1))):
            while min(map(len, paths)) > 1 and len({path[end] for path in paths}) == 1:
                paths = [path[rest] for path in paths]
        values = ["/".join(path) for path in paths]
        if len({printed(value, 30) for value in values}) < len(
            set(values)
        ):  # then what stands around the difference
            same = next(
                (i for i, c in enumerate(zip(*values, strict=False)) if len(set(c)) > 1),
                min(map(len, values)),
            )
            values = ["…" * (same > 4) + value[max(same - 4, 0) :] for value in values]
        for part, value in zip(parts, values, strict=True):
            if len(set(values)) > 1:
                part.append(("" if key == "objective" else f"{key}=") + printed(value, 30))
    between = ", " if all(columns(", ".join(part)) <= 50 for part in parts) else ",\n"
    names = [between.join(part) or str(settings[0]["objective"]) for part in parts]
    return [name if names.count(name) == 1 else f"{name} #{i}" for i, name in enumerate(names, 1)]


# -- metrics and statistics --------------------------------------------------------------------------------------------


def metrics_figure(
    records: Sequence[Mapping[str, object]],
    keys: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """A run's metrics over its steps, a panel a key.   records: the lines of metrics.jsonl, each with a "step"

    keys: by default those of METRICS that any record has.  Beyond 40 steps a running mean of 10 is drawn over the pale raw line.
    Raises ValueError if there is nothing to draw, for a record without a step, and for a key that no record has.
    """
    for i, record in enumerate(records):
        if not isinstance(record.get("step"), int | float):
            raise ValueError(f'record {i} has no "step": each line of metrics needs one')
    present = list(
        dict.fromkeys(
            key
            for record in records
            for key, value in record.items()
            if isinstance(value, int | float)
        )
    )
    chosen = [key for key in METRICS if key in present] if keys is None else list(keys)
    missing = [key for key in chosen if key not in present]
    if missing or not chosen:
        wanted = ", ".join(missing) or "any of the usual metrics"
        raise ValueError(
            f"no record has {wanted}: choose from {', '.join(present) or 'nothing, for there is no number'}"
        )
    across = min(3, len(chosen))
    down = math.ceil(len(chosen) / across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * across + 0.4, 2.3 * down + 0.4), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1)
        first = None
        for i, key in enumerate(chosen):
            ax = first = figure.add_subplot(down, across, i + 1, sharex=first)
            points = [(r["step"], r[key]) for r in records if is_finite(r.get(key))]
            x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
            long = len(x) > 40
            ax.plot(
                x,
                y,
                color=BLUE,
                lw=0.8 if long else 1.8,
                alpha=0.35 if long else 1,
                marker="" if len(x) > 20 else "o",
                ms=4,
            )
            if long:
                ax.plot(x, _running_mean(y[None], 10)[0], color=INK)
            lost = sum(isinstance(r.get(key), int | float) for r in records) - len(x)
            ax.set_title(
                key + f" ({lost} not finite)" * (lost > 0), family="monospace", fontsize=9.5
            )
            ax.set_ylabel(UNITS.get(key, "value"), fontsize=9)
            ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            if i >= len(chosen) - across:
                ax.set_xlabel(
                    "training step" + (" (dark: running mean of 10)" if long else ""), fontsize=9
                )
            else:
                ax.tick_params(labelbottom=False)
        if title:
            figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=11)
    return legible(figure)


def statistics_figure(stats: Mapping) -> Figure:
    """The paper's section 3.2 as three histograms, from `groups.tree_statistics`: |λ|, path depth, intermediate proportion."""
    unit = stats.get("unit", "tokens")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        figure.get_layout_engine().set(wspace=0.06)
        left, middle, right = figure.subplots(1, 3)
        sizes = {
            int(size): tokens for size, tokens in stats["count_histogram"].items()
        }  # JSON turns keys into text
        bar = {"color": BLUE, "edgecolor": "white", "lw": 0.6}
        left.bar(list(sizes), list(sizes.values()), width=0.9, **bar)
        left.set(
            yscale="log",
            xlabel="|λ|, completions that share a token",
            ylabel=f"{unit} of all completions",
        )
        low, high = min(sizes.values(), default=1), max(sizes.values(), default=1)
        left.set_ylim(low / 2, high * 1.5)
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
        left.yaxis.set_major_formatter("{x:,.0f}")
        left.yaxis.set_minor_formatter("")
        _titles(
            left,
            "Shared by how many",
            f"{stats['flat_tokens']} {unit}, of which {stats['unique_tokens']} distinct",
        )
        depth = np.bincount(stats["path_depth"])
        middle.bar(range(len(depth)), depth, width=0.9, **bar)
        middle.set(xlabel="process sets between root and leaf", ylabel="completions")
        is_flat = f"{stats['flat_share']:.1%} of {stats['groups']} groups are flat"
        _titles(middle, "Path depth", f"mean {stats['path_depth_mean']:.2f}; {is_flat}")
        right.hist(stats["intermediate_proportion"], bins=np.linspace(0, 1, 21), **bar)
        right.axvline(stats["intermediate_proportion_mean"], color=INK, ls="--", lw=1.2)
        right.set(xlabel=f"share of {unit} before the leaf", ylabel="completions", xlim=(0, 1))
        _titles(
            right,
            "Intermediate proportion",
            f"mean {stats['intermediate_proportion_mean']:.1%} (dashed)",
        )
        for axis in (left.xaxis, middle.xaxis, middle.yaxis, right.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        for ax in (left, middle, right):
            ax.grid(axis="x", visible=False)
    return figure
