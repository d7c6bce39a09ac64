"""What the experiments' figures are made of: panels, curves with bands, dots with intervals, cells.

Colour never stands alone: lines differ in dashes and markers too, and cells say their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from minigrpo.experiments.tables import ENDS, Row, Rows
from minigrpo.show.drawing import BLUE, INK, LINES, ORANGE, STYLE

styled = matplotlib.rc_context(STYLE)  # decorates a function that draws
matrix_style = matplotlib.rc_context(
    STYLE | {"axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}
)


def panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple:
    """A figure of so many inches.   -> the figure, its axes as an array (rows,columns)"""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def look(number: int) -> dict[str, Any]:
    """Colour, dashes and marker of the first, second, … curve."""
    colour, dashes, marker = LINES[number]
    return {"color": colour, "ls": dashes, "marker": marker, "ms": 4}


def estimates(rows: Rows, *names: str) -> tuple[np.ndarray, np.ndarray]:
    """A column and the distances to the ends of its interval.   -> (n,), (2,n)

    names: the column's, and those of its ends if they are not NAME_low and NAME_high.
    """
    names = names if len(names) == 3 else tuple(names[0] + end for end in ENDS)
    mean, low, high = (np.array([row[name] for row in rows], dtype=float) for name in names)
    return mean, np.stack([mean - low, high - mean])


def band(ax: Axes, x: Sequence[float], rows: Rows, name: str, **style: Any) -> None:
    """A curve, its 95 % interval as a band."""
    mean, distances = estimates(rows, name)
    low, high = mean - distances[0], mean + distances[1]
    ax.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
    ax.plot(x, mean, **style)


def dots(ax: Axes, x: Any, rows: Rows, *names: str, number: int = 0, **style: Any) -> None:
    """Dots with their 95 % intervals: those of the first series are full, of the second open."""
    colour = (BLUE, ORANGE)[number]
    base = {"color": colour, "mfc": (colour, "white")[number], "marker": "os"[number], "ls": ""}
    ax.errorbar(x, *estimates(rows, *names), **(base | {"capsize": 3} | style))


def cell(ax: Axes, x: float, y: float, text: str, face: Any, frame: bool = False, **style) -> None:
    """A filled cell of a matrix with a text in it, framed and bold if it is what matters."""
    edge = {"ec": INK if frame else "white", "lw": 1.6 if frame else 1, "zorder": 2 + frame}
    ax.add_patch(Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, fc=face, **edge))
    style = {"weight": "bold" if frame else "normal", "size": 8.5, "zorder": 4} | style
    ax.text(x, y, text, ha="center", va="center", **style)


def matrix_axes(ax: Axes, columns: Sequence[str], rows: Sequence[str]) -> None:
    """Names for the cells of a matrix, the first row on top."""
    ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0, labelsize=9)


def percent(ax: Axes, axis: str = "y") -> None:
    """Write the numbers of an axis as percentages."""
    getattr(ax, f"{axis}axis").set_major_formatter(PercentFormatter(1, decimals=0))


def ahead(row: Row) -> tuple[str, str]:
    """Which objective a difference λ-GRPO - GRPO is in favour of, by its interval: sign, colour."""
    if row["low"] > 0:
        return "▲", ORANGE
    return ("▼", BLUE) if row["high"] < 0 else ("", "white")
