"""The gradient of an objective over a tree, and other work on its parts (micro-batches), in lanes where that pays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minigrpo.engine.lanes import run_lanes
from minigrpo.engine.plan import prune_tree, split_tree
from minigrpo.engine.profiling import Stopwatch
from minigrpo.objectives import Coefficients, Objective
from minigrpo.transformer import Transformer
from minigrpo.tree import PrefixTree

Parts = list[tuple[PrefixTree, np.ndarray]]  # what `plan.split_tree` makes of a tree


def compute_gradients(
    model: Transformer,
    parts: Parts,
    objective: Objective,
    coefficients: Coefficients,
    temperature: float,
    old: np.ndarray,
    ref: np.ndarray | None = None,
    watch: Stopwatch | None = None,
) -> tuple[float, np.ndarray]:
    """Forward and backward over all parts of a tree; the gradients are left in model.gradients.   -> loss, logp (N,)

    logp is `old` for nodes that no part scores.
    """
    if not parts:
        model.gradients.flat[:] = 0
    logp_now = np.array(old, dtype=np.float64)
    watch = watch or Stopwatch()

    def visit(lane: Transformer, part: PrefixTree, nodes: np.ndarray, add: bool) -> float:
        with watch("forward"):
            logp = lane.forward(part, temperature)
        part_ref = None if ref is None else ref[nodes]
        loss, dlogp = objective.evaluate(
            coefficients.for_part(nodes, part.scored), logp, old[nodes], part_ref
        )
        with watch("backward"):
            lane.backward(dlogp, add)
        logp_now[nodes[part.scored]] = logp[part.scored]
        return loss

    return float(sum(visit_parts(model, parts, visit))), logp_now


def parts_to_learn_from(
    model: Transformer, tree: PrefixTree, coefficients: Coefficients, max_nodes: int
) -> Parts:
    """The parts of a tree without what has no share in the gradient of a first update without KL: dead groups, above all."""
    live, nodes = prune_tree(tree, coefficients.positive + coefficients.negative != 0)
    if live is None:
        return []
    return [(part, nodes[of_live]) for part, of_live in split_tree(live, max_nodes, model.lanes)]


def visit_parts(
    model: Transformer,
    parts: Parts,
    visit: Callable[[Transformer, PrefixTree, np.ndarray, bool], Any],
    learn: bool = True,
) -> list[Any]:
    """[visit(model, part, nodes, add)] for all parts, in lanes; with learn=True their gradients are added up in the model's.

    add=False for the first part of a lane: its gradients overwrite what the lane had.
    """
    models = model.replicas(max(min(model.lanes, len(parts)), 1))
    found: list[Any] = [None] * len(parts)

    def lane(first: int) -> None:
        for i in range(first, len(parts), len(models)):
            found[i] = visit(models[first], *parts[i], i != first)

    run_lanes([partial(lane, first) for first in range(len(models))])
    for replica in models[1:] if learn else []:
        model.gradients.flat += replica.gradients.flat
    return found


def log_probabilities(
    model: Transformer, parts: Parts, temperature: float, n_nodes: int
) -> np.ndarray:
    """log p of every scored node of a tree that was split into parts, 0 elsewhere.   -> (N,)"""
    logp = np.zeros(n_nodes)

    def visit(lane: Transformer, part: PrefixTree, nodes: np.ndarray, _: bool) -> None:
        logp[nodes[part.scored]] = lane.forward(part, temperature, keep=False)[part.scored]

    visit_parts(model, parts, visit, learn=False)
    return logp
