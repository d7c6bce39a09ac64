"""A group's tree as a figure: one tree as a slide, many on a page.   data in, matplotlib Figure out

The steps drawn are those of `drawing.py`.  Nothing is told by colour alone.  What this leaves out: all other figures (`plots.py`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

from minigrpo.logs.groups import Group
from minigrpo.show.drawing import (
    BLUE,
    INK,
    ORANGE,
    STYLE,
    DrawnStep,
    Labels,
    describe,
    drawn_steps,
    member_names,
    number,
)
from minigrpo.system.text import columns, escape, shorten, visible
from minigrpo.tree import PrefixTree

Fonts = tuple[str, ...]  # their names; a letter is drawn by the first that has it
SANS, MONO = ("DejaVu Sans",), ("DejaVu Sans Mono", "DejaVu Sans")
UNFIT = re.compile(
    "Last ?Resort|Color|Blank|^cm|NonUnicode"
)  # fonts of boxes, pictures, letters in other letters' places
# A font without bold letters gives its regular ones for a title, which needs no word on standard error.
logging.getLogger("matplotlib.font_manager").addFilter(
    lambda record: "Failed to find font weight" not in record.getMessage()
)
MONO_WIDTH = 0.6021  # of a letter of DejaVu Sans Mono, in font sizes
CAPTIONS = (
    "A box is a process step: its tokens, and |λ|, how many completions share it (line width).",
    "R̂ is their mean reward, Â their mean advantage: blue in a solid frame at or above the group's mean, orange and dashed below.",
)


def draw_tree(
    tree: PrefixTree,
    rewards: Sequence[float] | np.ndarray | None = None,
    labels: Labels | None = None,
    *,
    title: str | None = None,
    group: int = 0,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """A group's tree as a slide: a box a process step, lines as wide as |λ|, coloured by Â, rewards at the right.   rewards (B,)

    Each leaf has a row; an inner step stands to the left of its children, between the first and the last of them, so nothing can
    overlap.  All is laid out in points and then scaled to `figsize` (inches; by default what it needs, at most 13.3 x 7.5).
    Raises ValueError as `drawn_steps` does.
    """
    steps = drawn_steps(tree, rewards, labels, group=group)
    leaves = set(range(len(steps))) - {s.parent for s in steps}
    own = (
        None
        if rewards is None
        else np.asarray(rewards, dtype=np.float64)[tree.completion_group == group]
    )
    names = {i: shorten(member_names(steps[i].members), 26) for i in sorted(leaves)}
    heading = printed(title.strip() if title else "A group of completions as a tree", 75, "bold")
    fonts = MONO + fonts_for("".join(s.text for s in steps))
    steps = [replace(s, text=drawable(s.text, fonts)) for s in steps]
    side = 9 * MONO_WIDTH * max(10, *map(len, names.values())) + (
        80 if rewards is not None else 12
    )  # the column at the right
    sizes = describe(tree, group=group)[0]
    caption = " ".join(CAPTIONS[: 1 if rewards is None else 2])

    width_limit, height_limit = figsize or (13.3, 7.5)
    scale = 0.0
    for limit in (
        40,
        30,
        22,
        16,
    ):  # the longest texts that stay readable, their numbers on the one line or two that fit better
        for lines in (1, 2):
            layout = _layout(steps, leaves, limit, lines, fonts)
            width = max(
                layout[1] + 30 + side,
                side + 40 + 4.7 * len(sizes),
                min(24 + 9.3 * columns(heading), 700.0),
            )
            note = textwrap.wrap(caption, int(width / 4.4))
            height = layout[2] + 22 + 12 * len(note)
            fit = min(72 * width_limit / width, 72 * height_limit / height)
            if fit > scale + 1e-9:
                scale, best = fit, (layout[0], width, height, note)
        if scale >= 0.85:
            break
    boxes, width, height, note = best
    scale = min(scale, 1.6 if figsize else 1.0)
    inches = figsize or (width * scale / 72, height * scale / 72)
    x_free, y_free = 72 * inches[0] / scale - width, 72 * inches[1] / scale - height
    right = width - side

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=inches)
        ax = figure.add_axes(
            (0, 0, 1, 1),
            xlim=(-x_free / 2, width + x_free / 2),
            ylim=(height + y_free / 2, -y_free / 2),
        )
        ax.axis("off")

        def write(x: float, y: float, text: str, size: float, **style: object) -> None:
            ax.text(x, y, text, fontsize=size * scale, va="center", zorder=4, **style)

        write(12, 18, shorten(heading, int((width - 24) / 9.3)), 13, weight="bold")
        write(12, 37, sizes, 8.5, color="#555555")
        write(right, 37, "completion", 8.5, color="#555555")
        if own is not None:
            write(width - 14, 37, "reward", 8.5, color="#555555", ha="right")
        for n, line in enumerate(note):
            write(12, height - 12 * (len(note) - n), line, 8, color="#555555")

        largest = max(abs(s.advantage or 0.0) for s in steps) or 1.0
        unit = 16 / len(steps[0].members)  # line width of a completion, in points
        taken = [0] * len(steps)  # how many of a step's completions have left it
        for i, (step, (x, y, w, h, texts)) in enumerate(zip(steps, boxes, strict=True)):
            fill, tone = _tones(step, largest)
            if step.parent is not None:
                px, py, pw, *_ = boxes[step.parent]
                start = py + unit * (
                    taken[step.parent] + (len(step.members) - len(steps[step.parent].members)) / 2
                )
                taken[step.parent] += len(step.members)
                bend = (px + pw + x) / 2
                curve = Curve(
                    [(px + pw, start), (bend, start), (bend, y), (x, y)],
                    [Curve.MOVETO, *[Curve.CURVE4] * 3],
                )
                thick = max(unit * len(step.members), 0.8) * scale
                ax.add_patch(
                    PathPatch(curve, fill=False, lw=thick, ec=tone, capstyle="butt", zorder=1)
                )
            style = {
                "fc": fill,
                "ec": INK,
                "lw": 0.9 * scale,
                "ls": (0, (3, 2)) if _below(step) else "-",
                "zorder": 3,
            }
            ax.add_patch(
                FancyBboxPatch(
                    (x, y - h / 2), w, h, boxstyle="round,pad=0,rounding_size=4", **style
                )
            )
            for n, text in enumerate(texts):
                write(x + 7, y - h / 2 + 9.5 + 11 * n, text, 7.5 if n else 9, family="monospace")
            if i in leaves:
                ax.plot(
                    [x + w + 2, right - 6],
                    [y, y],
                    ls=(0, (1, 3)),
                    lw=0.8 * scale,
                    color="#999999",
                    zorder=0,
                )
                write(right, y, names[i], 9, family="monospace")
                if own is not None:
                    write(
                        width - 14,
                        y,
                        _outcome(own[list(step.members)]),
                        9,
                        family="monospace",
                        weight="bold",
                        ha="right",
                    )
    return legible(figure)


def _layout(
    steps: list[DrawnStep], leaves: set[int], limit: int, lines: int, fonts: Fonts
) -> tuple[list, float, float]:
    """Where the boxes go, in points from the upper left.   -> [(left, middle, width, height, texts)], right end, lower end"""
    texts = []
    for s in steps:
        parts = [f"|λ|={len(s.members)}"]
        if s.reward is not None:
            parts += [f"R̂={number(s.reward)}", f"Â={number(s.advantage, '+')}"]
        texts.append(
            [
                shorten(s.text, limit),
                *([" ".join(parts)] if lines == 1 else [" ".join(parts[:2]), *parts[2:]]),
            ]
        )
    height = 8 + 11 * len(texts[0])
    widths = [_box_width(t, fonts) for t in texts]
    lefts: list[float] = []
    middles = [0.0] * len(steps)
    below = 54.0
    for i, s in enumerate(steps):
        lefts.append(12.0 if s.parent is None else lefts[s.parent] + widths[s.parent] + 28)
        if i in leaves:
            middles[i] = below + height / 2
            below += height + 8
    children: list[list[int]] = [[] for _ in steps]
    for i in reversed(range(len(steps))):  # children come after their parents
        if children[i]:
            middles[i] = (middles[children[i][0]] + middles[children[i][-1]]) / 2
        if steps[i].parent is not None:
            children[steps[i].parent].append(i)
    right = max(x + w for x, w in zip(lefts, widths, strict=True))
    for i in leaves:  # nothing else is in a leaf's row, so its text may be longer
        texts[i][0] = shorten(
            steps[i].text, max(limit, min(int((right - lefts[i] - 15) / (9 * MONO_WIDTH)), 60))
        )
        widths[i] = _box_width(texts[i], fonts)
    boxes = [(x, y, w, height, t) for x, y, w, t in zip(lefts, middles, widths, texts, strict=True)]
    return boxes, right, below


def _box_width(texts: list[str], fonts: Fonts) -> float:
    return 15 + max((7.5 if n else 9) * _width(text, fonts) for n, text in enumerate(texts))


@lru_cache(10_000)
def _width(text: str, fonts: Fonts) -> float:
    """The width of a text in font sizes: its columns, or more where another font has wider letters."""
    if text.isascii():
        return MONO_WIDTH * len(text)
    measured, *_ = text_to_path.get_text_width_height_descent(
        text, FontProperties(family=fonts, size=1), False
    )
    return max(MONO_WIDTH * columns(text), measured)


def _outcome(rewards: np.ndarray) -> str:
    """The reward of a leaf, or the range of its members' rewards if they differ."""
    low, high = rewards.min(), rewards.max()
    return number(low) if low == high else f"{number(low)}…{number(high)}"


def _below(step: DrawnStep) -> bool:
    return step.advantage is not None and step.advantage < -5e-3  # prints as negative


def _tones(step: DrawnStep, largest: float) -> tuple[tuple, tuple]:
    """Fill and line colour of a step by its advantage: white at 0, deeper with size; grey where there is none."""
    if step.advantage is None:
        return (0.95, 0.95, 0.95), (0.72, 0.72, 0.72)
    end = np.array(to_rgb(ORANGE if _below(step) else BLUE))
    share = abs(step.advantage) / largest
    return tuple(1 - (1 - end) * 0.55 * share), tuple(0.8 - (0.8 - end) * (0.15 + 0.85 * share))


def draw_trees_page(groups: Sequence[Group], *, n: int = 12, title: str | None = None) -> Figure:
    """A page of the first n groups as small trees over token positions: line width |λ|, colour Â, rewards at the ends.

    Raises ValueError if there is no group, or n is not between 1 and 12.
    """
    if not groups or not 1 <= n <= 12:
        raise ValueError(
            f"a page holds 1 to 12 trees, but n is {n} and there are {len(groups)} groups"
        )
    shown = groups[:n]
    across = min(len(shown), 2 if len(shown) <= 4 else 3)
    down = math.ceil(len(shown) / across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(max(4.0 * across + 0.4, 7.2), 2.5 * down + 0.9), layout="constrained"
        )
        for i, g in enumerate(shown):
            ax = figure.add_subplot(down, across, i + 1)
            _small_tree(ax, g)
            ax.set_xlabel(f"position ({g.unit})", fontsize=8, labelpad=2)
        how_many = (
            f"the first {len(shown)} of {len(groups)}"
            if len(shown) < len(groups)
            else f"{len(groups)} in all"
        )
        about = "Line width: |λ|. Blue, solid: Â at or above the group's mean; orange, dashed: below it. At the ends: rewards."
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
        figure.suptitle(
            f"{title or 'Groups as trees'}: {how_many}",
            x=0.01,
            ha="left",
            weight="bold",
            fontsize=12,
        )
        figure.supxlabel(about, x=0.01, ha="left", fontsize=8.5, color="#555555")
    return legible(figure)


def _small_tree(ax: Axes, group: Group) -> None:
    steps = drawn_steps(group.tree, group.rewards, group.labels)
    leaves = [i for i in range(len(steps)) if i not in {s.parent for s in steps}]
    largest = max(abs(s.advantage or 0.0) for s in steps) or 1.0
    y = {leaf: float(row) for row, leaf in enumerate(leaves)}
    for i in reversed(range(len(steps))):
        own = [y[j] for j, s in enumerate(steps) if s.parent == i]
        y.setdefault(i, (min(own) + max(own)) / 2 if own else 0.0)
    longest = max(s.end for s in steps) or 1
    for i, s in enumerate(steps):
        tone = _tones(s, largest)[1]
        dash = (0, (2, 0.8)) if _below(s) else "-"
        style = {
            "color": tone,
            "lw": 0.8 + 5.2 * len(s.members) / len(steps[0].members),
            "ls": dash,
            "solid_capstyle": "butt",
        }
        ax.plot([s.start, s.end], [y[i], y[i]], dash_capstyle="butt", **style)
        if s.parent is not None:
            ax.plot([s.start, s.start], [y[s.parent], y[i]], color="#888888", lw=0.7, zorder=1)
        if i in leaves and group.rewards is not None:
            text = _outcome(group.rewards[list(s.members)]) + (
                f" ×{len(s.members)}" if len(s.members) > 1 else ""
            )
            ax.annotate(
                text, (s.end, y[i]), (4, 0), textcoords="offset points", fontsize=7, va="center"
            )
    ax.set(xlim=(-0.02 * longest, 1.14 * longest), ylim=(len(leaves) - 0.4, -0.6), yticks=[])
    ax.spines["left"].set_visible(False)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.tick_params(labelsize=8)
    ax.set_title(
        printed(group.prompt.strip(), 44, "bold") or "(no prompt)",
        fontsize=9.5,
        weight="bold",
        pad=18,
    )
    about = [f"k = {len(group.sequences)}"]
    if group.rewards is not None:
        about.append(f"mean reward {number(group.rewards.mean())}")
    if len(group.sequences) > 1:
        shared = float((group.tree.count - 1).sum()) / max(int(group.tree.lengths.sum()), 1)
        about.append("flat" if group.tree.is_flat[0] else f"{shared:.0%} shared")
    ax.text(
        0, 1.03, ", ".join(about), transform=ax.transAxes, fontsize=8, color="#555555", va="bottom"
    )


# -- text in any script ------------------------------------------------------------------------------------------------


def _missing(text: Iterable[str], files: Iterable[str]) -> set[str]:
    """The characters of a text that none of the font files has."""
    missing = {c for c in text if not c.isascii()}
    for file in files if missing else ():
        with contextlib.suppress(
            OSError, RuntimeError
        ):  # damaged, or removed since matplotlib listed the fonts
            missing = {c for c in missing if not get_font(file).get_char_index(ord(c))}
    return missing


def fonts_for(text: str) -> Fonts:
    """Installed fonts that together draw what DejaVu lacks of a text, as far as any do: one look at every font."""
    missing, names = (
        _missing(
            text, [findfont(FontProperties(family=SANS, weight=w)) for w in ("normal", "bold")]
        ),
        [],
    )
    for font in (
        sorted(fontManager.ttflist, key=lambda f: (f.style != "normal", f.name, f.fname))
        if missing
        else ()
    ):
        if not UNFIT.search(font.name) and (rest := _missing(missing, [font.fname])) < missing:
            missing = rest
            names.append(font.name)
    return tuple(names)


def drawable(text: str, fonts: Fonts, weight: str = "normal") -> str:
    """The text with what none of the fonts has as escapes, such as \\u4e2d, where boxes would be drawn."""
    missing = _missing(
        text, (findfont(FontProperties(family=font, weight=weight)) for font in fonts)
    )
    return "".join(escape(c) if c in missing else c for c in text)


def printed(text: str, width: int, weight: str = "normal") -> str:
    """The text in one line, with escapes where they are needed, cut to at most width columns."""
    return shorten(drawable(visible(text), SANS + fonts_for(visible(text)), weight), width)


def legible(figure: Figure) -> Figure:
    """Give every text of a figure the fonts that it needs, with escapes for what no font has.   -> the figure"""
    others = fonts_for("".join(text.get_text() for text in figure.findobj(Text)))
    for text in figure.findobj(Text):
        fonts = (MONO if "monospace" in text.get_family() else SANS) + others
        text.set(text=drawable(text.get_text(), fonts, text.get_weight()), family=fonts)
    return figure
