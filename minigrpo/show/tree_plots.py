"""A group's tree as a figure: one tree as a slide, or many on a page.

The steps drawn are those of `drawing.py`.  Nothing is told by colour alone.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve
from matplotlib.textpath import text_to_path

from minigrpo.logs.groups import Group
from minigrpo.show.drawing import (
    BLUE,
    INK,
    ORANGE,
    DrawnStep,
    Labels,
    describe,
    drawn_steps,
    member_names,
    number,
)
from minigrpo.show.fonts import MONO, Fonts, drawable, fonts_for, printed, styled
from minigrpo.system.text import columns, shorten
from minigrpo.tree import PrefixTree

GREY = "#555555"
MONO_WIDTH = 0.6021  # of a letter of DejaVu Sans Mono, in font sizes
CAPTIONS = (
    "A box is a process step: its tokens, and |λ|, how many completions share it (line width).",
    "R̂ is their mean reward, Â their mean advantage: blue in a solid frame at or above the "
    "group's mean, orange and dashed below.",
)


# -- one tree --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where everything stands, in points from the upper left corner."""

    boxes: list[tuple[float, float, float, float, list[str]]]  # left, middle, width, height, texts
    width: float
    height: float
    caption: list[str]


@styled
def draw_tree(
    tree: PrefixTree,
    rewards: Sequence[float] | np.ndarray | None = None,
    labels: Labels | None = None,
    *,
    title: str | None = None,
    group: int = 0,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """A group's tree as a slide: a box per process step, lines as wide as |λ|, coloured by Â.

    Each leaf has a row; an inner step stands to the left of its children, between the first and the
    last of them, so nothing can overlap.  All is laid out in points and then scaled to `figsize`
    (inches; by default what it needs, at most 13.3 x 7.5).  rewards (B,); labels: the text of each
    token id, as a list, a dict or a function.
    Raises ValueError as `drawn_steps` does.
    >>> tree = mg.PrefixTree.from_sequences([[0, 1, 2], [0, 1, 3], [0, 4]])
    >>> mg.draw_tree(tree, [1.0, 0.0, 0.0], labels="abcde", title="A group").savefig("tree.png")
    """
    steps = drawn_steps(tree, rewards, labels, group=group)
    leaves = sorted(set(range(len(steps))) - {s.parent for s in steps})
    own = None
    if rewards is not None:
        own = np.asarray(rewards, dtype=np.float64)[tree.completion_group == group]
    names = {i: shorten(member_names(steps[i].members), 26) for i in leaves}
    heading = printed(title.strip() if title else "A group of completions as a tree", 75, "bold")
    fonts = MONO + fonts_for("".join(s.text for s in steps))
    steps = [replace(s, text=drawable(s.text, fonts)) for s in steps]
    sizes = describe(tree, group=group)[0]
    # The column at the right has the members' names, and the rewards.
    side = 9 * MONO_WIDTH * max(10, *map(len, names.values())) + (12 if own is None else 80)
    head = max(side + 40 + 4.7 * len(sizes), min(24 + 9.3 * columns(heading), 700.0))
    limit = figsize or (13.3, 7.5)
    place, scale = _best_layout(steps, leaves, side, head, limit, fonts)
    scale = min(scale, 1.6 if figsize else 1.0)
    inches = figsize or (place.width * scale / 72, place.height * scale / 72)
    free = 72 * inches[0] / scale - place.width, 72 * inches[1] / scale - place.height

    figure = Figure(figsize=inches)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(-free[0] / 2, place.width + free[0] / 2)
    ax.set_ylim(place.height + free[1] / 2, -free[1] / 2)
    ax.axis("off")

    def write(x: float, y: float, text: str, size: float, **style: object) -> None:
        ax.text(x, y, text, fontsize=size * scale, va="center", zorder=4, **style)

    right, end = place.width - side, place.width - 14
    mono = partial(write, family="monospace")
    write(12, 18, shorten(heading, int((place.width - 24) / 9.3)), 13, weight="bold")
    write(12, 37, sizes, 8.5, color=GREY)
    write(right, 37, "completion", 8.5, color=GREY)
    if own is not None:
        write(end, 37, "reward", 8.5, color=GREY, ha="right")
    for n, line in enumerate(place.caption):
        write(12, place.height - 12 * (len(place.caption) - n), line, 8, color=GREY)

    largest = max(abs(s.advantage or 0.0) for s in steps) or 1.0
    unit = 16 / len(steps[0].members)  # line width of a completion, in points
    left_before = [0] * len(steps)  # how many of a step's completions have left it already
    for i, (step, (x, y, w, h, texts)) in enumerate(zip(steps, place.boxes, strict=True)):
        fill, tone = _tones(step, largest)
        if step.parent is not None:
            px, py, pw, *_ = place.boxes[step.parent]
            passed = left_before[step.parent] + len(step.members) / 2
            start = py + unit * (passed - len(steps[step.parent].members) / 2)
            left_before[step.parent] += len(step.members)
            bend = (px + pw + x) / 2
            points = [(px + pw, start), (bend, start), (bend, y), (x, y)]
            curve = Curve(points, [Curve.MOVETO, *[Curve.CURVE4] * 3])
            thick = max(unit * len(step.members), 0.8) * scale
            line = {"fill": False, "lw": thick, "ec": tone, "capstyle": "butt", "zorder": 1}
            ax.add_patch(PathPatch(curve, **line))
        frame = {"fc": fill, "ec": INK, "lw": 0.9 * scale, "zorder": 3}
        frame["ls"] = (0, (3, 2)) if _below(step) else "-"
        rounded = "round,pad=0,rounding_size=4"
        ax.add_patch(FancyBboxPatch((x, y - h / 2), w, h, boxstyle=rounded, **frame))
        for n, text in enumerate(texts):
            mono(x + 7, y - h / 2 + 9.5 + 11 * n, text, 7.5 if n else 9)
        if i in names:
            dots = {"ls": (0, (1, 3)), "lw": 0.8 * scale, "color": "#999999", "zorder": 0}
            ax.plot([x + w + 2, right - 6], [y, y], **dots)
            mono(right, y, names[i], 9)
            if own is not None:
                mono(end, y, _outcome(own[list(step.members)]), 9, weight="bold", ha="right")
    return figure


def _best_layout(
    steps: list[DrawnStep],
    leaves: list[int],
    side: float,
    head: float,
    limit: tuple[float, float],
    fonts: Fonts,
) -> tuple[Layout, float]:
    """The layout with the longest texts that stay readable, and its scale.

    side, head: the widths of the right column and of the heading.  limit: the figure's inches.
    """
    caption, best, scale = " ".join(CAPTIONS[: 1 + (steps[0].reward is not None)]), None, 0.0
    for longest in (40, 30, 22, 16):
        for lines in (1, 2):  # a step's numbers stand on one line or on two
            boxes, right, lower = _layout(steps, leaves, longest, lines, fonts)
            width = max(right + 30 + side, head)
            wrapped = textwrap.wrap(caption, int(width / 4.4))
            height = lower + 22 + 12 * len(wrapped)
            fit = min(72 * limit[0] / width, 72 * limit[1] / height)
            if fit > scale + 1e-9:
                best, scale = Layout(boxes, width, height, wrapped), fit
        if scale >= 0.85:
            break
    return best, scale


def _layout(
    steps: list[DrawnStep], leaves: list[int], longest: int, lines: int, fonts: Fonts
) -> tuple[list, float, float]:
    """Where the boxes go.   -> [(left, middle, width, height, texts)], right end, lower end"""
    texts = []
    for s in steps:
        numbers = [f"|λ|={len(s.members)}"]
        if s.reward is not None:
            numbers += [f"R̂={number(s.reward)}", f"Â={number(s.advantage, '+')}"]
        split = len(numbers) if lines == 1 else 2
        texts.append([shorten(s.text, longest), " ".join(numbers[:split]), *numbers[split:]])
    height = 8 + 11 * len(texts[0])
    widths = [_box_width(t, fonts) for t in texts]
    lefts: list[float] = []
    for s in steps:
        lefts.append(12.0 if s.parent is None else lefts[s.parent] + widths[s.parent] + 28)
    rows = _rows(steps, leaves)
    lower = 54.0 + (height + 8) * len(leaves)
    middles = [54.0 + height / 2 + (height + 8) * row for row in rows]
    right = max(x + w for x, w in zip(lefts, widths, strict=True))
    for i in leaves:  # nothing else is in a leaf's row, so its text may be longer
        room = min(int((right - lefts[i] - 15) / (9 * MONO_WIDTH)), 60)
        texts[i][0] = shorten(steps[i].text, max(longest, room))
        widths[i] = _box_width(texts[i], fonts)
    boxes = [(x, y, w, height, t) for x, y, w, t in zip(lefts, middles, widths, texts, strict=True)]
    return boxes, right, lower


def _rows(steps: list[DrawnStep], leaves: list[int]) -> list[float]:
    """The row of every step: leaves from 0, others between their first child and their last."""
    rows = dict(zip(leaves, map(float, range(len(leaves))), strict=True))
    children: list[list[float]] = [[] for _ in steps]
    for i in reversed(range(len(steps))):  # children come after their parents
        if children[i]:
            rows[i] = (min(children[i]) + max(children[i])) / 2
        if steps[i].parent is not None:
            children[steps[i].parent].append(rows[i])
    return [rows[i] for i in range(len(steps))]


def _box_width(texts: list[str], fonts: Fonts) -> float:
    return 15 + max((7.5 if n else 9) * _width(text, fonts) for n, text in enumerate(texts))


@lru_cache(10_000)
def _width(text: str, fonts: Fonts) -> float:
    """A text's width in font sizes: its columns, or more where another font has wider letters."""
    if text.isascii():
        return MONO_WIDTH * len(text)
    font = FontProperties(family=fonts, size=1)
    width = text_to_path.get_text_width_height_descent(text, font, False)[0]
    return max(MONO_WIDTH * columns(text), width)


def _outcome(rewards: np.ndarray) -> str:
    """The reward of a leaf, or the range of its members' rewards if they differ."""
    low, high = rewards.min(), rewards.max()
    return number(low) if low == high else f"{number(low)}…{number(high)}"


def _below(step: DrawnStep) -> bool:
    return step.advantage is not None and step.advantage < -5e-3  # prints as negative


def _tones(step: DrawnStep, largest: float) -> tuple[tuple, tuple]:
    """Fill and line colour by advantage: white at 0, deeper with size; grey where there is none."""
    if step.advantage is None:
        return (0.95, 0.95, 0.95), (0.72, 0.72, 0.72)
    end = np.array(to_rgb(ORANGE if _below(step) else BLUE))
    share = abs(step.advantage) / largest
    return tuple(1 - (1 - end) * 0.55 * share), tuple(0.8 - (0.8 - end) * (0.15 + 0.85 * share))


# -- a page of trees -------------------------------------------------------------------------------


@styled
def draw_trees_page(groups: Sequence[Group]) -> Figure:
    """A page of the first 12 groups as small trees over token positions.

    A line is as wide as |λ| and coloured by Â; the rewards stand at its end.
    Raises ValueError if there is no group.
    """
    if not groups:
        raise ValueError("a page of trees needs at least one group")
    shown = groups[:12]
    across = min(len(shown), 2 if len(shown) <= 4 else 3)
    down = math.ceil(len(shown) / across)
    size = max(4.0 * across + 0.4, 7.2), 2.5 * down + 0.9
    figure = Figure(figsize=size, layout="constrained")
    for i, g in enumerate(shown):
        _small_tree(figure.add_subplot(down, across, i + 1), g)
    all_shown = len(shown) == len(groups)
    how_many = f"{len(groups)} in all" if all_shown else f"the first {len(shown)} of {len(groups)}"
    about = (
        "Line width: |λ|. Blue, solid: Â at or above the group's mean; orange, dashed: below it. "
        "At the ends: rewards."
    )
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    left = {"x": 0.01, "ha": "left"}
    figure.suptitle(f"Groups as trees: {how_many}", weight="bold", fontsize=12, **left)
    figure.supxlabel(about, fontsize=8.5, color=GREY, **left)
    return figure


def _small_tree(ax: Axes, group: Group) -> None:
    steps = drawn_steps(group.tree, group.rewards, group.labels)
    leaves = sorted(set(range(len(steps))) - {s.parent for s in steps})
    rows, largest = _rows(steps, leaves), max(abs(s.advantage or 0.0) for s in steps) or 1.0
    longest = max(s.end for s in steps) or 1
    for i, (s, y) in enumerate(zip(steps, rows, strict=True)):
        style = {"color": _tones(s, largest)[1], "ls": (0, (2, 0.8)) if _below(s) else "-"}
        style |= {"lw": 0.8 + 5.2 * len(s.members) / len(steps[0].members)}
        ax.plot([s.start, s.end], [y, y], dash_capstyle="butt", solid_capstyle="butt", **style)
        if s.parent is not None:
            ax.plot([s.start, s.start], [rows[s.parent], y], color="#888888", lw=0.7, zorder=1)
        if i in leaves and group.rewards is not None:
            many = f" ×{len(s.members)}" if len(s.members) > 1 else ""
            text = _outcome(group.rewards[list(s.members)]) + many
            beside = {"textcoords": "offset points", "fontsize": 7, "va": "center"}
            ax.annotate(text, (s.end, y), (4, 0), **beside)
    ax.set(xlim=(-0.02 * longest, 1.14 * longest), ylim=(len(leaves) - 0.4, -0.6), yticks=[])
    ax.spines["left"].set_visible(False)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.tick_params(labelsize=8)
    ax.set_xlabel(f"position ({group.unit})", fontsize=8, labelpad=2)
    title = printed(group.prompt.strip(), 44, "bold") or "(no prompt)"
    ax.set_title(title, fontsize=9.5, weight="bold", pad=18)
    about = [f"k = {len(group.sequences)}"]
    if group.rewards is not None:
        about.append(f"mean reward {number(group.rewards.mean())}")
    if len(group.sequences) > 1:
        shared = float((group.tree.count - 1).sum()) / max(int(group.tree.lengths.sum()), 1)
        about.append("flat" if group.tree.is_flat[0] else f"{shared:.0%} shared")
    told = {"transform": ax.transAxes, "fontsize": 8, "color": GREY, "va": "bottom"}
    ax.text(0, 1.03, ", ".join(about), **told)
