"""Learning curves and metrics as figures, in the one style of `drawing.py`.

Figures are made without pyplot, so no display and no global state is needed.  Nothing is told by
colour alone, so that a grey print can be read, and `save` writes the same bytes every time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from minigrpo.runs.folder import is_finite
from minigrpo.show.drawing import BLUE, INK, LINES, ORANGE, STYLE
from minigrpo.show.fonts import printed, styled
from minigrpo.system.files import write_output
from minigrpo.system.text import columns

# What `metrics_figure` shows if not told otherwise, with units for the vertical axes.
METRICS = {
    "reward": "mean outcome reward",
    "eval/pass@1_greedy": "share of held-out problems",
    "frac_reward_zero_std": "share of dead groups",
    "kl": "nats per token",
    "entropy": "nats per token",
    "completions/mean_length": "tokens",
    "grad_norm": "norm",
    "tree/unique_tokens": "tokens",
    "tree/mean_count": "mean |λ| of a token",
    "tree/intermediate_proportion": "share of tokens",
}
NUMBERS = {  # the five numbers of a log, and what is drawn dashed beside some
    "dead_groups": ("share of groups", ""),
    "cosine": ("cosine of the two pushes", ""),
    "shared_push_grpo": ("share of all |push|", "shared_push_lambda_grpo"),
    "held_back": ("share of completions with a > 0", "held_back_chance"),
    "tokens_over_distinct": ("ratio", "tokens_over_distinct_with_prompts"),
}
UNITS = METRICS | {key: told for key, (told, _) in NUMBERS.items()}
UNITS |= {"eval/reward_greedy": METRICS["reward"], "step_time": "seconds", "num_tokens": "tokens"}
METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
PART = re.compile("rewards/.+/mean", re.DOTALL)  # one of the named parts of a reward
SHARES = "eval/pass@1_greedy", "frac_reward_zero_std", *list(NUMBERS)[:4]  # drawn from 0 to 1


def unit(key: str) -> str:
    """What a metric counts; "" where that is not known."""
    return "mean of this part" if PART.fullmatch(key) else UNITS.get(key, "")


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG (150 dpi) or SVG, by suffix; equal figures give equal bytes.   -> path

    Folders are made as needed.  Raises ValueError for other suffixes.
    """
    path = Path(path)
    if path.suffix[1:] not in METADATA:
        raise ValueError(f"cannot write a figure to {path.name!r}: end its name in .png or .svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_output(path, drawn(figure, path.suffix[1:]))
    return path


def drawn(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a file, "png" or "svg"."""
    file = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format=kind, metadata=METADATA[kind])
    return file.getvalue()


def bootstrap_interval(
    values: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile bootstrap of the mean over axis 0, the seeds.   (S,...) -> low, high

    As many seeds as there are get drawn with replacement, 2000 times, the same for all other axes;
    low and high are quantiles of the 2000 means.  With few seeds the interval is somewhat narrow:
    with 8 normal values it covers the true mean about 88 % of the time.
    Raises ValueError for no seeds.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or not len(values):
        raise ValueError("a bootstrap needs at least one seed along axis 0")
    n = len(values)
    times = rng.multinomial(n, np.full(n, 1 / n), size=2000)  # how often each seed was drawn
    means = times @ values.reshape(n, -1) / n  # (2000,...)
    low, high = np.quantile(means, [(1 - 0.95) / 2, (1 + 0.95) / 2], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def running_mean(values: np.ndarray, n: int) -> np.ndarray:
    """The mean of each value and the n - 1 before it, fewer at the start.   (...,S) -> (...,S)"""
    if n < 1:
        raise ValueError(f"a running mean of {n} values cannot be drawn: take at least 1")
    stops = range(1, values.shape[-1] + 1)
    return np.stack([values[..., max(stop - n, 0) : stop].mean(-1) for stop in stops], -1)


@styled
def learning_curves(
    curves: Mapping[str, np.ndarray],
    *,
    xlabel: str = "training step",
    ylabel: str = "mean outcome reward",
    title: str = "",
    steps: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    note: str = "",
) -> Figure:
    """A mean line for each method with its 95 % bootstrap band over seeds.

    curves: name -> (seeds, steps).  steps: the horizontal positions, counted from 1 if not given; a
    mapping for curves that have their own.  note: said beside the number of seeds.
    Raises ValueError for no curves or too many to tell apart, and for arrays that are not (seeds,
    steps) with a position for each step, or not finite.
    """
    if not curves:
        raise ValueError("no curves to draw: give at least one name with its (seeds, steps) array")
    if len(curves) > len(LINES) ** 2:
        most = len(LINES) ** 2
        raise ValueError(f"{len(curves)} lines cannot be told apart: draw at most {most}")
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in curves.items()}
    if steps is None:
        steps = range(1, 1 + next(iter(arrays.values())).shape[-1])
    own = isinstance(steps, Mapping)
    positions = {name: np.asarray(steps[name] if own else steps) for name in arrays}
    for name, values in arrays.items():
        fits = values.ndim == 2 and values.size and values.shape[1:] == positions[name].shape
        if not fits or not np.isfinite(values).all():
            wanted = f"(seeds, {positions[name].size}), a column per step, with finite numbers"
            raise ValueError(f"curve {name!r} has shape {values.shape}: it must be {wanted}")
    seeds, rng = {len(values) for values in arrays.values()}, np.random.default_rng(0)
    rows = "\n".join(arrays).split("\n")
    legend = 0.09 * max(map(columns, rows)), 0.22 * len(rows)  # inches
    figure = Figure(figsize=(7 + legend[0], max(4.2, legend[1] + 1)), layout="constrained")
    ax = figure.add_subplot()
    for i, (name, values) in enumerate(arrays.items()):
        colour, dash, _ = LINES[i % len(LINES)]
        marker = LINES[(i + i // len(LINES)) % len(LINES)][2]  # another from the seventh line on
        x, one_step = positions[name], values.shape[1] == 1
        every = i * len(x) // (8 * len(arrays)), max(len(x) // 8, 1)
        band = bootstrap_interval(values, rng)
        ax.fill_between(x, *band, color=colour, alpha=0.18, lw=6 if one_step else 0)
        style = {"color": colour, "ls": dash, "marker": marker, "markevery": every, "ms": 5}
        label = name if len(seeds) == 1 else f"{name} ({len(values)})"
        ax.plot(x, values.mean(0), label=label, clip_on=False, **style)
    everywhere = np.concatenate(list(positions.values()))
    room = np.ptp(everywhere) / 100 or 1
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(everywhere.min() - room, everywhere.max() + room))
    ax.xaxis.set_major_locator(MaxNLocator(integer=bool((everywhere % 1 == 0).all())))
    figure.legend(loc="outside right center", frameon=False, handlelength=4)
    if seeds == {1}:
        about = "one seed" + " each" * (len(arrays) > 1)
    else:
        number = f"{min(seeds)} seeds" if len(seeds) == 1 else "seeds (their number in brackets)"
        about = f"mean and 95 % bootstrap band over {number}"
    ax.set_title(title, weight="bold", pad=22)  # over a smaller grey line of what is shown
    where = {"xycoords": "axes fraction", "textcoords": "offset points"}
    about += f"; {note}" * bool(note)
    ax.annotate(about, (0, 1), (0, 6), fontsize=8.5, color="#555555", **where)
    return figure


@styled
def metrics_figure(
    records: Sequence[Mapping[str, object]],
    keys: Sequence[str] | None = None,
    title: str | None = None,
    smooth: int | None = None,
) -> Figure:
    """A run's metrics over its steps, a panel per key.

    records: the lines of metrics.jsonl, each with a "step".  keys: by default those of METRICS that
    any record has, and the parts of the reward.  A running mean of `smooth` values is drawn over
    the pale raw line; by default, beyond 40 steps, one of 10 or of a fortieth of the steps.
    Raises ValueError if there is nothing to draw, for a record without a step, for a key that no
    record has, and for a mean of less than one value.
    """
    present: dict[str, None] = {}
    for i, record in enumerate(records):
        if not isinstance(record.get("step"), int | float):
            raise ValueError(f'record {i} has no "step": each line of metrics needs one')
        present |= dict.fromkeys(k for k, v in record.items() if isinstance(v, int | float))
    known = ["reward", *filter(PART.fullmatch, present), *list(METRICS)[1:]]
    chosen = [key for key in known if key in present] if keys is None else list(keys)
    missing = [key for key in chosen if key not in present]
    if missing or not chosen:
        wanted = ", ".join(missing) or "any of the usual metrics"
        choices = ", ".join(present) or "nothing, for there is no number"
        raise ValueError(f"no record has {wanted}: choose from {choices}")
    across = min(3, len(chosen))
    down = math.ceil(len(chosen) / across)
    figure = Figure(figsize=(3.6 * across + 0.4, 2.3 * down + 0.4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1)
    ax = None
    for i, key in enumerate(chosen):
        ax = figure.add_subplot(down, across, i + 1, sharex=ax)
        points = [(r["step"], r[key]) for r in records if is_finite(r.get(key))]
        x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
        n = len(records if key in NUMBERS else x)  # the five numbers are drawn alike
        usual = max(10, n // 40) if n > 40 else 1
        mean_of = usual if smooth is None else smooth
        if mean_of != 1 and len(x):
            ax.plot(x, y, color=BLUE, lw=0.8, alpha=0.35)
            ax.plot(x, running_mean(y, mean_of), color=INK)
        else:
            ax.plot(x, y, color=BLUE, marker="" if len(x) > 20 else "o", ms=4)
        lost = sum(isinstance(r.get(key), int | float) for r in records) - len(x)
        beside = NUMBERS.get(key, ("", ""))[1]
        if others := [(r["step"], r[beside]) for r in records if is_finite(r.get(beside))]:
            x, y = np.array(others, dtype=np.float64).T
            ax.plot(x, running_mean(y, mean_of), color=ORANGE, ls="--", label=beside)
            ax.legend(fontsize=7.5, frameon=False)
        name = printed(key, 38) + f" ({lost} not finite)" * (lost > 0)
        ax.set_title(name, family="monospace", fontsize=9.5)
        ax.set_ylabel(unit(key) or "value", fontsize=9)
        if key in SHARES:
            ax.set_ylim(-0.04, 1.04)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        is_lowest = i >= len(chosen) - across
        ax.tick_params(labelbottom=is_lowest)
        if is_lowest:
            about = f" (dark: running mean of {mean_of})" if mean_of > 1 else ""
            ax.set_xlabel("training step" + about, fontsize=9)
    if title:
        figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=11)
    return figure
