"""Mean and standard deviation of groups of numbers, without losing a digit that they differ in."""

from __future__ import annotations

import numpy as np

from minigrpo.tree import Array


def shift_and_mean(x: Array, group: Array, count: Array) -> tuple[Array, Array]:
    """-> x less an offset of its group (n,), and Σ count·that / Σ count of each group (G,).

    The offset is 0, but if all numbers of a group agree in three digits it is the first of them:
    so equal ones become exactly 0, and of 10¹⁶ and 10¹⁶ + 2 the digits that differ are kept.
    """
    _, first, index = np.unique(group, return_index=True, return_inverse=True)
    first = x[first][index]
    differ = np.bincount(index, np.abs(x - first) > 1e-3 * np.abs(first))[index] > 0
    x = np.where(differ, x, x - first)
    return x, np.bincount(group, count * x) / np.maximum(np.bincount(group, count), 1)


def std_of_groups(x: Array, group: Array, count: Array, ddof: int) -> Array:
    """√(Σ count·(x - mean)² / (Σ count - ddof)) of each group.   x, group, count (n,) -> (G,)"""
    x, mean = shift_and_mean(x, group, count)
    apart, largest = np.abs(x - mean[group]), np.zeros(len(mean))
    np.maximum.at(largest, group, apart)
    unit = np.ldexp(1.0, np.frexp(largest)[1])  # a power of two: no rounding, no square is lost
    squares = np.bincount(group, count * (apart / unit[group]) ** 2)
    return unit * np.sqrt(squares / np.maximum(np.bincount(group, count) - ddof, 1))
