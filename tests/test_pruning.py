"""A tree without what nothing is learned from: the same gradient, fewer nodes."""

import numpy as np
import pytest
from helpers import random_rollouts, relative, tiny_model

from minigrpo import Objective
from minigrpo.engine.optim import SGD
from minigrpo.engine.plan import prune_tree, split_tree
from minigrpo.trainer import TrainState, compute_gradients, grpo_step, parts_to_learn_from


def brute_force(tree, wanted: np.ndarray) -> np.ndarray:
    """Nodes that are wanted or have such a descendant."""
    kept = wanted.copy()
    for node in range(tree.n_nodes - 1, -1, -1):  # parents come before children
        if kept[node] and tree.parent[node] >= 0:
            kept[tree.parent[node]] = True
    return kept


@pytest.mark.parametrize("seed", range(20))
def test_what_is_kept(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tree = random_rollouts(rng).tree
    wanted = tree.scored & (rng.random(tree.n_nodes) < rng.choice([0.02, 0.1, 0.5, 1.0]))
    part, nodes = prune_tree(tree, wanted)
    np.testing.assert_array_equal(nodes, np.flatnonzero(brute_force(tree, wanted)))
    if part is None:
        assert not wanted.any()
        return
    number = np.append(np.full(tree.n_nodes, -1), -1)
    number[nodes] = np.arange(len(nodes))
    for name in ("token", "depth", "count", "group", "scored"):
        np.testing.assert_array_equal(getattr(part, name), getattr(tree, name)[nodes])
    np.testing.assert_array_equal(part.parent, number[tree.parent[nodes]])
    for r, (start, end) in enumerate(zip(part.row_start, part.row_end, strict=True)):
        path = part.rows[r, :end]
        assert (path >= 0).all()
        np.testing.assert_array_equal(part.parent[path], np.append(-1, path[:-1]))
        np.testing.assert_array_equal(np.diff(path[start:]), 1)  # new nodes stand side by side


@pytest.mark.parametrize("preset", ["grpo", "lambda_grpo", "rloo", "prm"])
@pytest.mark.parametrize("max_nodes", [10_000, 7])
def test_the_gradient_is_the_same(preset: str, max_nodes: int) -> None:
    """Some groups are dead, some half alive (rloo and group means make some sums exactly 0)."""
    rng, model, objective = np.random.default_rng(0), tiny_model(), Objective.preset(preset)
    for seed in range(8):
        rollouts = random_rollouts(np.random.default_rng(seed))
        rewards = rng.integers(2, size=len(rollouts.tree.paths)).astype(float)
        rewards[rollouts.tree.completion_group == seed % 3] = 1.0
        coefficients = objective.coefficients(rollouts, rewards)
        old = model.forward(rollouts.tree, keep=False)
        whole, logp = compute_gradients(
            model, split_tree(rollouts.tree, max_nodes), objective, coefficients, 1.0, old
        )
        expected = model.gradients.flat.copy()
        parts = parts_to_learn_from(model, rollouts.tree, coefficients.push, max_nodes)
        pruned, logp_of_pruned = compute_gradients(model, parts, objective, coefficients, 1.0, old)
        assert relative(model.gradients.flat, expected) < 1e-12
        np.testing.assert_allclose(pruned, whole, atol=1e-14)
        np.testing.assert_allclose(logp_of_pruned, logp, rtol=1e-11, atol=1e-14)
        live = np.concatenate([nodes for _, nodes in parts])
        dead = rollouts.tree.scored & (rollouts.tree.group == seed % 3)
        assert not dead[live].any()


def test_nothing_to_learn_from() -> None:
    model, rollouts = tiny_model(), random_rollouts(np.random.default_rng(0))
    coefficients = Objective.preset("grpo").coefficients(
        rollouts, np.ones(len(rollouts.tree.paths))
    )
    assert parts_to_learn_from(model, rollouts.tree, coefficients.push, 100) == []
    model.gradients.flat[:] = 7.0
    loss, _ = compute_gradients(
        model, [], Objective.preset("grpo"), coefficients, 1.0, rollouts.logp
    )
    assert loss == 0 and not model.gradients.flat.any()


def test_equal_rewards_still_learn_from_the_kl_term() -> None:
    """With a reference, no node is left out: a dead group has a gradient towards it."""
    model, reference = tiny_model(), tiny_model(seed=1).parameters.flat
    objective = Objective.preset("grpo", beta=0.3)
    state = TrainState(model, SGD(model.parameters), objective, np.random.default_rng(0))
    state.reference = reference.copy()

    def step() -> dict[str, float]:
        score = lambda rollouts: np.ones(len(rollouts.tree.paths))  # noqa: E731
        return grpo_step(state, [np.array([1, 2])], score, 0.1, {"max_new_tokens": 4}).metrics

    before = model.parameters.flat.copy()
    assert step()["grad_norm"] > 1e-3
    assert (model.parameters.flat != before).any()
    state.reference = None
    state.objective = Objective.preset("grpo")
    assert step()["grad_norm"] == 0
