"""Many runs of the walk at once: the same numbers as the package gives one run at a time."""

from dataclasses import replace

import numpy as np
import pytest

from minigrpo.engine.parameters import TransformerConfig
from minigrpo.experiments import many_policies, many_walks
from minigrpo.experiments.controls import shuffled_weights
from minigrpo.experiments.many_policies import OneModel, Tabular, Transformers, n_moves
from minigrpo.experiments.many_walks import (
    DEPTH,
    SMALL,
    draw,
    gradients_of_arm,
    group_advantages,
    leaf_rewards,
    loss_gradient,
    loss_gradient_of_values,
    monte_carlo_values,
    moves_to,
    path_logp,
    run_walks,
    sums,
    target_logits,
)
from minigrpo.objectives import Objective
from minigrpo.rewards import step_rewards
from minigrpo.runs.policy import make_policy, make_state
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train_step
from minigrpo.tasks.treewalk import TreeWalk
from minigrpo.transformer import Transformer
from minigrpo.tree import PrefixTree, Rollouts

PRESETS = {
    "grpo": {},
    "lambda_grpo": {},
    "dr_grpo": {},
    "rloo": {},
    "alpha=0.5": {"alpha": 0.5},
    "alpha=1.5": {"alpha": 1.5},
}
ROOT = np.array([2])


def tokens(leaves):
    """Leaf numbers as arrays of moves."""
    return [
        np.array([leaf >> (DEPTH - 1 - i) & 1 for i in range(DEPTH)]) for leaf in np.ravel(leaves)
    ]


def rollouts_of(leaves):
    """One group as the package has it."""
    completions = tokens(leaves)
    tree = PrefixTree.from_groups([ROOT], [completions])
    nothing = np.zeros(tree.n_nodes)
    return Rollouts(
        [ROOT],
        [completions],
        tree,
        nothing,
        nothing,
        np.zeros(len(completions), dtype=bool),
        1.0,
        DEPTH,
    )


def on_moves(tree, values, leaves):
    """Values of a tree's nodes at the moves of the whole tree, 0 elsewhere."""
    out = np.zeros(n_moves(DEPTH))
    out[moves_to(np.ravel(leaves))] = values[tree.paths]
    return out


def some_groups(runs=5, k=16, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 16, runs)
    leaves = np.array([rng.choice(16, k, p=rng.dirichlet(np.full(16, 0.5))) for _ in range(runs)])
    return leaves, np.take_along_axis(leaf_rewards(target, 1, -1.0), leaves, 1), target


def whole_tree():
    return PrefixTree.from_groups([ROOT], [tokens(np.arange(16))])


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"dim": 12, "n_layers": 1, "n_heads": 3, "ffn_dim": 16},
        {"n_layers": 3, "rope_base": 50.0},
    ],
)
def test_transformers_are_the_packages_model(shape):
    config, seeds = (
        TransformerConfig(3, **({"dim": 32, "n_layers": 2, "n_heads": 2} | shape)),
        [3, 8],
    )
    many = Transformers(config, seeds, DEPTH, dtype="float64")
    logp = many.logp()
    cotangent = np.random.default_rng(1).standard_normal(logp.shape)
    gradients = many.gradients(cotangent).reshape(len(seeds), -1).copy()
    tree = whole_tree()
    for i, seed in enumerate(seeds):
        model = Transformer(replace(config, n_drawable=2), seed=seed, dtype="float64")
        np.testing.assert_allclose(
            logp[i], on_moves(tree, model.forward(tree), np.arange(16)), rtol=0, atol=1e-13
        )
        on_nodes = np.zeros(tree.n_nodes)
        on_nodes[tree.paths] = cotangent[i][moves_to(np.arange(16))]
        model.backward(on_nodes)
        np.testing.assert_allclose(gradients[i], model.gradients.flat, rtol=1e-9, atol=1e-12)


def test_one_model_is_one_of_many():
    many = Transformers(SMALL, [4], DEPTH, dtype="float64")
    one = OneModel(Transformer(replace(SMALL, n_drawable=2), seed=4, dtype="float64"), ROOT, DEPTH)
    np.testing.assert_allclose(one.logp(), many.logp(), rtol=0, atol=1e-13)
    cotangent = np.random.default_rng(0).standard_normal((1, n_moves(DEPTH)))
    np.testing.assert_allclose(
        one.gradients(cotangent), many.gradients(cotangent), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("policy", ["transformer", "tabular"])
def test_gradients_against_central_differences(policy):
    rng = np.random.default_rng(2)
    if policy == "tabular":
        model = Tabular(2, DEPTH, rng.standard_normal((2, n_moves(DEPTH))))
    else:
        model = Transformers(SMALL, [0, 1], DEPTH, dtype="float64")
    cotangent = rng.standard_normal(model.logp().shape)
    gradients = model.gradients(cotangent).copy()
    for j in rng.choice(model.flat.size, 30, replace=False):
        value, sides = model.flat[j], []
        for step in (1e-6, -1e-6):
            model.flat[j] = value + step
            sides.append((model.logp() * cotangent).sum())
        model.flat[j] = value
        assert gradients[j] == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-8)


def test_another_shape_of_model_is_refused():
    with pytest.raises(ValueError, match="vocabulary of 3"):
        Transformers(TransformerConfig(vocab_size=2, dim=8, n_layers=1, n_heads=1), [0], DEPTH)


def test_leaf_rewards_are_the_tasks():
    for n, r_neg in ((1, -0.5), (2, -1.5), (3, -1.0)):
        for leaf, target in enumerate(
            "".join("LR"[bit] for bit in path) for path in tokens(np.arange(16))
        ):
            task = TreeWalk(n=n, r_neg=r_neg, target=target)
            np.testing.assert_array_equal(
                leaf_rewards(np.array([leaf]), n, r_neg)[0], task.path_rewards()
            )


@pytest.mark.parametrize("arm", list(PRESETS))
def test_loss_gradients_are_the_objectives(arm):
    leaves, rewards, _ = some_groups()
    found = loss_gradient(arm, leaves, rewards, np.random.default_rng(0))
    changes = {"clip_low": None, "clip_high": None} | PRESETS[arm]
    objective = Objective.preset(
        arm if arm in ("grpo", "lambda_grpo", "dr_grpo", "rloo") else "grpo", **changes
    )
    for i in range(len(leaves)):
        rollouts = rollouts_of(leaves[i])
        _, dlogp = objective(rollouts, rewards[i], rollouts.logp, rollouts.logp)
        np.testing.assert_allclose(
            found[i], on_moves(rollouts.tree, dlogp, leaves[i]), rtol=1e-12, atol=1e-15
        )


def test_the_placebo_has_the_same_weights_at_other_tokens():
    """What reaches a move is weight times advantage, and Σ weights is kept."""
    leaves, rewards, _ = some_groups(runs=40, seed=3)
    once, again = (
        loss_gradient("placebo", leaves, rewards, np.random.default_rng(seed)) for seed in (0, 1)
    )
    assert not np.allclose(once, again)
    mean = np.mean(
        [loss_gradient("placebo", leaves, rewards, np.random.default_rng(s)) for s in range(400)],
        axis=0,
    )
    moves = moves_to(leaves)
    weight = 1 / np.take_along_axis(sums(1.0, moves, n_moves(DEPTH)), moves.reshape(40, -1), 1)
    expected = loss_gradient("grpo", leaves, rewards, np.random.default_rng(0)) * weight.mean(
        1, keepdims=True
    )
    assert np.abs(mean - expected).max() < 0.03 * np.abs(expected).max() + 0.005
    shuffled = shuffled_weights(
        Objective.preset("grpo"), rollouts_of(leaves[0]), rewards[0], np.random.default_rng(0)
    )
    assert shuffled.weight.sum() == pytest.approx(
        weight[0].sum() / moves[0].size
    )  # the package's own placebo, the same total


def test_process_rewards_are_the_presets():
    leaves, rewards, _ = some_groups(k=4, seed=5)
    leaves[0] = leaves[0, 0]  # a group of one leaf: all values equal, no gradient
    values = np.random.default_rng(0).standard_normal((len(leaves), n_moves(DEPTH)))
    values[0] = 0.3
    found = loss_gradient_of_values(values, leaves)
    for i in range(len(leaves)):
        rollouts = rollouts_of(leaves[i])
        on_nodes = np.zeros(rollouts.tree.n_nodes)
        on_nodes[rollouts.tree.paths] = values[i][moves_to(leaves[i])]
        prm = Objective.preset("prm")
        _, dlogp = prm.evaluate(
            prm.coefficients(rollouts, rewards[i], on_nodes), rollouts.logp, rollouts.logp
        )
        np.testing.assert_allclose(
            found[i], on_moves(rollouts.tree, dlogp, leaves[i]), rtol=1e-12, atol=1e-15
        )


def test_monte_carlo_values_are_means_from_the_ends_of_steps():
    leaves, rewards, target = some_groups(k=4, seed=7)
    by_leaf = leaf_rewards(target, 1, -1.0)
    logp = Tabular(5, DEPTH, np.random.default_rng(0).standard_normal((5, n_moves(DEPTH)))).logp()
    rng, p = np.random.default_rng(1), np.exp(path_logp(logp))
    mean = np.mean([monte_carlo_values(logp, leaves, by_leaf, rng) for _ in range(1000)], axis=0)
    for i in range(len(leaves)):
        tree = rollouts_of(leaves[i]).tree
        for step in tree.steps(0):
            if not step.nodes:
                continue
            some = leaves[i][step.members[0]]
            below = np.arange(16) >> (DEPTH - step.end) == some >> (DEPTH - step.end)
            exact = (p[i] * by_leaf[i])[below].sum() / p[i][below].sum()
            nodes = moves_to(some)[step.start : step.end]
            np.testing.assert_allclose(mean[i][nodes], exact, atol=0.08)
            if step.end == DEPTH:
                once = monte_carlo_values(logp, leaves, by_leaf, rng)[i][nodes]
                assert (once == by_leaf[i][some]).all()  # exact, not sampled
                on_nodes = step_rewards(tree, rewards[i])[list(step.nodes)]
                np.testing.assert_allclose(on_nodes, exact)


@pytest.mark.parametrize("arm", ["grpo_at_lambda_norm", "lambda_at_grpo_norm"])
def test_gradients_at_the_other_norm(arm):
    leaves, rewards, target = some_groups()
    model = Tabular(5, DEPTH)
    logp = model.logp()
    own, other = ("grpo", "lambda_grpo") if arm.startswith("grpo") else ("lambda_grpo", "grpo")
    found = gradients_of_arm(
        arm, model, logp, leaves, rewards, leaf_rewards(target, 1, -1.0), None
    ).reshape(5, -1)
    a, b = (
        model.gradients(loss_gradient(name, leaves, rewards, None)).reshape(5, -1)
        for name in (own, other)
    )
    norm = np.linalg.norm
    np.testing.assert_allclose(norm(found, axis=1), norm(b, axis=1), rtol=1e-12)
    np.testing.assert_allclose(
        (found * a).sum(1), norm(found, axis=1) * norm(a, axis=1), rtol=1e-12
    )


def test_unknown_arms_are_refused():
    leaves, rewards, _ = some_groups()
    with pytest.raises(ValueError, match="unknown arm 'grppo'"):
        loss_gradient("grppo", leaves, rewards, None)


REFUSED = [
    {"policy": "table"},
    {"steps": 15},
    {"n": 4},
    {"n": 0},
    {"start": 0.5},
    {"policy": "tabular", "start": 1.0},
    {"runs": 0},
]
REFUSED += [
    {"target": 16},
    {"target": -1},
    {"optimizer": "adam"},
    {"learning_rate": np.nan},
    {"learning_rate": 0.0},
]
REFUSED += [{"arm": "alpha=nan"}, {"arm": "alpha=-1"}]


@pytest.mark.parametrize("bad", REFUSED)
def test_what_cannot_be_run_is_refused(bad):
    job = {
        "arm": "grpo",
        "n": 1,
        "r_neg": -1.0,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "runs": 1,
    }
    with pytest.raises(ValueError, match=r"policy is|steps is|target is|unknown arm"):
        run_walks(**(job | bad))


def test_draws_have_the_policys_distribution():
    logits = np.random.default_rng(0).standard_normal((2, n_moves(DEPTH)))
    logp = Tabular(2, DEPTH, logits).logp()
    p = np.exp(path_logp(logp))
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    n = 200_000
    leaves = draw(logp, np.random.default_rng(1).random((2, n, DEPTH)))
    for i in range(2):
        share = np.bincount(leaves[i], minlength=16) / n
        assert (np.abs(share - p[i]) < 4.5 * np.sqrt(p[i] * (1 - p[i]) / n)).all()


def test_start_probability_of_the_target():
    for start in (1e-4, 1 / 16, 0.3):
        target = np.arange(16)
        logp = Tabular(16, DEPTH, target_logits(target, start)).logp()
        np.testing.assert_allclose(np.exp(path_logp(logp))[target, target], start, rtol=1e-9)
    assert target_logits(np.arange(2), None) is None


@pytest.mark.parametrize("arm", ["grpo", "lambda_at_grpo_norm"])
def test_a_run_does_not_depend_on_its_neighbours(arm):
    options = {"steps": 20, "policy": "transformer"}
    together = run_walks(arm, 1, -1.0, "adamw", 1e-3, runs=4, first_seed=8, **options)
    alone = [
        run_walks(arm, 1, -1.0, "adamw", 1e-3, runs=1, first_seed=seed, **options)[0]
        for seed in range(8, 12)
    ]
    assert together == alone


@pytest.mark.parametrize("arm", ["grpo", "lambda_grpo"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_is_the_packages(monkeypatch, arm, optimizer):
    """The draws, targets met and parameters of `train_step` on `treewalk`, in float64."""
    seed, steps, rate = 5, 20, 3e-3 if optimizer == "adamw" else 0.1
    made = []

    def exactly(config, seeds, depth):
        made.append(Transformers(config, seeds, depth, "float64"))
        return made[0]

    monkeypatch.setattr(many_walks, "Transformers", exactly)
    hits = run_walks(arm, 2, -1.0, optimizer, rate, runs=2, first_seed=seed, steps=steps)[0]
    target = "".join("LR"[bit] for bit in tokens([seed])[0])
    options = {
        "objective": arm,
        "objective_options": {"clip_low": None, "clip_high": None},
        "dtype": "float64",
        "seed": seed,
    }
    options |= {
        "task_options": {"n": 2, "r_neg": -1.0, "target": target},
        "optimizer": optimizer,
        "learning_rate": rate,
    }
    settings = TrainSettings.for_task("treewalk", steps=steps, **options)
    model, task = make_policy(settings)
    state = make_state(settings, model)
    found = [
        int(task.is_correct(train_step(state, task, settings).rewards).sum()) for _ in range(steps)
    ]
    assert np.reshape(found, (-1, 10)).sum(1).tolist() == hits
    np.testing.assert_allclose(
        made[0].flat.reshape(2, -1)[0], model.parameters.flat, rtol=1e-7, atol=1e-9
    )
    start = make_policy(settings)[0].parameters.flat
    assert np.abs(model.parameters.flat - start).max() > 1e-3  # something was learned


def test_advantages_of_equal_rewards_are_zero():
    assert (group_advantages(np.full((3, 16), 0.1 + 0.2)) == 0).all()


def test_moves_of_a_leaf():
    np.testing.assert_array_equal(
        moves_to(np.array([0, 15, 0b0110])), [[0, 2, 6, 14], [1, 5, 13, 29], [0, 3, 9, 20]]
    )
    assert many_policies.n_moves(4) == 30


def expected_loss_gradient(logp, by_leaf, alpha, group_size):
    """d loss / d log p of every move as the group grows: a recursion without chance.

    A group of k ≫ 1 walks has |λ| = k·p(λ), R̂ = V(λ), and mean and variance of the rewards under
    the policy, so

        -d loss / d log p(λ) = p(λ)^(1-α) · k^-α · (V(λ) - E r) / (std r + eps) / depth
    """
    p = np.exp(path_logp(logp))  # (R,16)
    moves = np.broadcast_to(moves_to(np.arange(16)), (len(logp), 16, DEPTH))
    reached = sums(p[..., None], moves, logp.shape[1])
    value = sums((p * by_leaf)[..., None], moves, logp.shape[1]) / reached
    mean = (p * by_leaf).sum(1, keepdims=True)
    std = np.sqrt((p * (by_leaf - mean) ** 2).sum(1, keepdims=True))
    return -(reached ** (1 - alpha)) * group_size**-alpha * (value - mean) / (std + 1e-4) / DEPTH


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_large_groups_follow_the_exact_recursion(alpha):
    """Twelve steps with 60,000 walks each, from a start far from uniform."""
    target, group_size, rate = (
        np.array([5, 12]),
        60_000,
        (1.5 if alpha == 0 else 0.4) * 60_000**alpha,
    )
    by_leaf, rng = leaf_rewards(target, 1, -1.0), np.random.default_rng(0)
    start = np.random.default_rng(1).standard_normal((2, n_moves(DEPTH))) * 0.7
    drawn, exact = Tabular(2, DEPTH, start), Tabular(2, DEPTH, start)
    for _ in range(12):
        leaves = draw(drawn.logp(), rng.random((2, group_size, DEPTH)))
        rewards = np.take_along_axis(by_leaf, leaves, 1)
        drawn.flat -= rate * drawn.gradients(loss_gradient(f"alpha={alpha}", leaves, rewards, None))
        exact.flat -= rate * exact.gradients(
            expected_loss_gradient(exact.logp(), by_leaf, alpha, group_size)
        )
    p, q = np.exp(path_logp(drawn.logp())), np.exp(path_logp(exact.logp()))
    assert (
        np.abs(q - np.exp(path_logp(Tabular(2, DEPTH, start).logp()))).max() > 0.05
    )  # it has moved
    np.testing.assert_allclose(p, q, atol=0.02)


def test_the_recursion_without_weights_is_the_gradient_of_the_expected_reward():
    """α = 0: the gradient of E r over its std and the depth, by central differences."""
    by_leaf = leaf_rewards(np.array([9]), 2, -0.5)
    model = Tabular(1, DEPTH, np.random.default_rng(3).standard_normal((1, n_moves(DEPTH))))
    logp = model.logp()
    p = np.exp(path_logp(logp))
    std = np.sqrt((p * by_leaf**2).sum() - (p * by_leaf).sum() ** 2)
    found = model.gradients(expected_loss_gradient(logp, by_leaf, 0, 16)).copy()
    for j in range(model.flat.size):
        value, sides = model.flat[j], []
        for step in (1e-6, -1e-6):
            model.flat[j] = value + step
            sides.append((np.exp(path_logp(model.logp())) * by_leaf).sum())
        model.flat[j] = value
        assert -found[j] * (std + 1e-4) * DEPTH == pytest.approx(
            (sides[0] - sides[1]) / 2e-6, abs=1e-8
        )
