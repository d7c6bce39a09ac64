"""Tables: lists of rows, which are dicts.  Choosing rows, numbers with intervals, printing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import comb
from typing import Any

import numpy as np

from minigrpo.show.plots import bootstrap_interval

Row = dict[str, Any]
Rows = Sequence[Row]
Tables = dict[str, list[Row]]
ENDS = ("", "_low", "_high")  # of the columns of a mean and its interval


def select(rows: Iterable[Row], **values: Any) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row[name] == x for name, x in values.items())]


def distinct(rows: Iterable[Row], *names: str) -> list:
    """The different values of a column, or of several as tuples, in the order of the rows."""
    if len(names) == 1:
        return list(dict.fromkeys(row[names[0]] for row in rows))
    return list(dict.fromkeys(tuple(row[name] for name in names) for row in rows))


def rounded(x: float, digits: int = 4) -> float:
    """To so many significant digits."""
    return float(f"{x:.{digits}g}")


def round_rows(rows: Rows, digits: int) -> list[Row]:
    """Every float to so many significant digits."""
    return [
        {name: rounded(x, digits) if isinstance(x, float) else x for name, x in row.items()}
        for row in rows
    ]


def mean_and_interval(values: Any) -> tuple[float, float, float]:
    """Mean, and low and high end of its 95 % bootstrap interval."""
    values = np.array(values, dtype=float)
    return (float(values.mean()), *map(float, bootstrap_interval(values, np.random.default_rng(0))))


def interval(name: str, values: Any, digits: int = 6) -> dict[str, float]:
    """Mean and 95 % bootstrap interval as `name`, `name_low`, `name_high`, rounded."""
    numbers = zip(ENDS, mean_and_interval(values), strict=True)
    return {name + end: rounded(x, digits) for end, x in numbers}


def sign_test(a: int, b: int) -> float:
    """Two-sided exact sign test.

    The probability of a split at least as uneven if either side were equally likely.
    """
    return min(1.0, 2 * sum(comb(a + b, i) for i in range(min(a, b) + 1)) * 0.5 ** (a + b))


def show(tables: Mapping[str, Rows], columns: Mapping[str, str]) -> str:
    """Tables for a terminal.   columns: {table: names of its columns}; "x±" adds x's interval"""

    def told(row: Row, name: str) -> str:
        if name.endswith("±"):
            value, low, high = (told(row, name[:-1] + end) for end in ENDS)
            return f"{value} [{low}, {high}]"
        value = row.get(name)
        return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)

    blocks = []
    for title, names in columns.items():
        shown = [[name, *(told(row, name) for row in tables[title])] for name in names.split()]
        wide = [[x.ljust(max(map(len, column))) for x in column] for column in shown]
        lines = ["  ".join(line).rstrip() for line in zip(*wide, strict=True)]
        blocks.append("\n".join([title, *lines]))
    return "\n\n".join(blocks)
