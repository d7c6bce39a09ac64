"""Work on the parts of a tree (micro-batches), in lanes where that pays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minigrpo.engine.lanes import run_lanes
from minigrpo.engine.profiling import Parts, count_passes, timed
from minigrpo.tree import PrefixTree


@timed("update")
def visit_parts(
    model: Any,
    parts: Parts,
    visit: Callable[[Any, PrefixTree, np.ndarray, bool], Any],
    learn: bool = True,
) -> list[Any]:
    """[visit(model, part, nodes, add)] for all parts, in lanes.

    nodes: indices in the whole tree of the part's nodes;  add: False for the first part of a lane,
    whose gradients overwrite what the lane had.  learn=True: a visit goes forward and backward, and
    the gradients of all lanes are added up in the model's.
    """
    models = model.replicas(max(min(model.lanes, len(parts)), 1))
    found: list[Any] = [None] * len(parts)

    def lane(first: int) -> None:
        for i in range(first, len(parts), len(models)):
            found[i] = visit(models[first], *parts[i], i != first)

    run_lanes([partial(lane, first) for first in range(len(models))])
    count_passes(model.config, parts, forward=1, backward=int(learn))
    for replica in models[1:] if learn else []:
        model.gradients.flat += replica.gradients.flat
    return found


def log_probabilities(model: Any, parts: Parts, temperature: float, n_nodes: int) -> np.ndarray:
    """log p of every scored node of a tree that was split into parts, 0 elsewhere.   -> (N,)"""
    logp = np.zeros(n_nodes)

    def visit(lane: Any, part: PrefixTree, nodes: np.ndarray, _: bool) -> None:
        logp[nodes[part.scored]] = lane.forward(part, temperature, keep=False)[part.scored]

    visit_parts(model, parts, visit, learn=False)
    return logp
