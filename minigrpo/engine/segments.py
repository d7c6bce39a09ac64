"""Sums of scattered rows: pairwise and in a fixed order, without atomic additions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minigrpo.engine.backend import Array


@dataclass(frozen=True)
class SegmentSum:
    """Which rows of an array add up to which target; made on the host by `segment_sum_plan`."""

    order: Array  # rows of the input, those of one target (a segment) side by side
    rounds: tuple[tuple[Array, Array], ...]  # places in that order: x[into] += x[other]
    heads: Array  # the place where each segment starts, and where its sum ends up
    targets: Array  # the target of each segment, ascending


def segment_sum_plan(
    target_of_row: np.ndarray, to_device: Callable[[np.ndarray], Array] = np.asarray
) -> SegmentSum:
    """Plan out[t] = Σ_{rows with target t} x[row]; rows with target -1 are left out."""
    order = np.argsort(target_of_row, kind="stable")
    order = order[np.searchsorted(target_of_row[order], 0) :]
    targets = target_of_row[order]
    heads = np.flatnonzero(np.append(True, targets[1:] != targets[:-1])[: len(targets)])
    size = np.diff(np.append(heads, len(targets)))
    index = np.arange(len(targets)) - np.repeat(heads, size)  # place within the segment
    left = np.repeat(size, size) - index  # rows from here to the segment's end
    rounds, step = [], 1
    while step < size.max(initial=0):
        into = np.flatnonzero((index % (2 * step) == 0) & (left > step))
        rounds.append((to_device(into), to_device(into + step)))
        step *= 2
    return SegmentSum(to_device(order), tuple(rounds), to_device(heads), to_device(targets[heads]))


def segment_sum(x: Array, plan: SegmentSum, out: Array) -> Array:
    """out[t] += Σ_{rows with target t} x[row], in place.   x (rows,…), out (targets,…)"""
    x = x[plan.order]
    for into, other in plan.rounds:
        x[into] += x[other]
    out[plan.targets] += x[plan.heads]
    return out
