"""Sums of scattered rows: many rows of an array add up to one.   Pairwise and in a fixed order, without atomic additions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray


@dataclass(frozen=True)
class SegmentSum:
    """Which rows of an array add up to which target; made on the host by `segment_sum_plan`.

    order    rows of the input, equal targets side by side
    rounds   pairs (into, other): in every round each segment adds neighbours at twice the distance (pairwise summation)
    heads    where each segment starts, hence where its sum ends up
    targets  the target of each segment, ascending
    """

    order: Array
    rounds: tuple[tuple[Array, Array], ...]
    heads: Array
    targets: Array


def segment_sum_plan(target_of_row: np.ndarray, to_device: Any = np.asarray) -> SegmentSum:
    """Plan out[t] = Σ_{rows with target t} x[row]; rows with target -1 are left out.   (M,) int"""
    order = np.argsort(target_of_row, kind="stable")
    order = order[np.searchsorted(target_of_row[order], 0) :]
    targets = target_of_row[order]
    heads = np.flatnonzero(np.concatenate(([True], targets[1:] != targets[:-1]))[: len(targets)])
    size = np.diff(np.concatenate((heads, [len(targets)])))
    index = np.arange(len(targets)) - np.repeat(heads, size)  # place within the segment
    left = np.repeat(size, size) - index  # rows from here to the segment's end
    rounds, step, longest = [], 1, size.max(initial=0)
    while step < longest:
        into = np.flatnonzero((index % (2 * step) == 0) & (left > step))
        rounds.append((to_device(into), to_device(into + step)))
        step *= 2
    return SegmentSum(to_device(order), tuple(rounds), to_device(heads), to_device(targets[heads]))


def segment_sum(x: Array, plan: SegmentSum, out: Array) -> Array:
    """out[t] += Σ_{rows with target t} x[row], pairwise and in a fixed order.   x (M,…), out (T,…)"""
    x = x[plan.order]
    for into, other in plan.rounds:
        x[into] += x[other]
    out[plan.targets] += x[plan.heads]
    return out
