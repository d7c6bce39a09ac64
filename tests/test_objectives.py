"""The objectives against padded arrays, finite differences, and the claims of their papers."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import random_logps, random_rollouts, relative, rollouts_of

from minigrpo import Objective
from minigrpo.engine.plan import split_tree
from minigrpo.objectives import PRESETS, advantages, step_advantages
from minigrpo.rewards import step_rewards
from minigrpo.verify.padded import padded_loss

PRESET = pytest.mark.parametrize("preset", PRESETS)
AGGREGATION = pytest.mark.parametrize(
    "aggregation",
    ["group_token_mean", "batch_token_mean", "sequence_mean", "sequence_sum", "constant"],
)


def both_ways(objective, rollouts, rewards, logps):
    """(loss, dlogp) on the tree, and on padded arrays with dlogp summed over members afterwards."""
    tree = rollouts.tree
    rows = [tree.on_tokens(values, fill=np.nan) for values in logps]
    loss, dlogp = padded_loss(
        objective,
        rollouts.completions,
        rewards,
        *rows,
        truncated=rollouts.truncated,
        max_new_tokens=rollouts.max_new_tokens,
    )
    inside = tree.paths >= 0
    return objective(rollouts, rewards, *logps), (
        loss,
        np.bincount(tree.paths[inside], dlogp[inside], minlength=tree.n_nodes),
    )


# -- against the usual way -------------------------------------------------------------------------


@pytest.mark.parametrize(("beta", "kl"), [(0.0, "k3"), (0.3, "k1"), (0.3, "k2"), (0.3, "k3")])
@PRESET
def test_tree_equals_padded_arrays(preset, beta, kl):
    """Random trees, ratios as after several inner epochs, and some completions truncated."""
    clipped = np.zeros(2)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        rollouts = random_rollouts(rng, p_truncated=0.3)
        rewards = rng.choice([-1.0, 0.7, 1.0, 0.1], size=18)
        logps = random_logps(rng, rollouts.tree)
        for changes in ({}, {"mask_truncated": preset != "prm", "ddof": 0}):
            objective = Objective.preset(preset, beta=beta, kl=kl, **changes)
            (loss, dlogp), (padded, dpadded) = both_ways(objective, rollouts, rewards, logps)
            assert abs(loss - padded) < 1e-12 * max(1, abs(padded))
            assert relative(dlogp, dpadded) < 1e-12
            metrics = objective.metrics(objective.coefficients(rollouts, rewards), *logps[:2])
            clipped += [metrics["clip_ratio/low_mean"], metrics["clip_ratio/high_mean"]]
    assert (clipped > 0).all() or objective.clip_low is None


@AGGREGATION
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out", "none"])
@pytest.mark.parametrize("scale", ["group_std", "batch_std", "none"])
def test_other_combinations_equal_padded_arrays(aggregation, baseline, scale):
    rng = np.random.default_rng(5)
    rollouts = random_rollouts(rng, p_truncated=0.3)
    rewards, logps = rng.standard_normal(18), random_logps(rng, rollouts.tree)
    for alpha in (0.0, 0.5, 1.0):
        choice = {"aggregation": aggregation, "baseline": baseline, "scale": scale, "alpha": alpha}
        objective = Objective(**choice, clip_high=0.1, beta=0.1)
        (loss, dlogp), (padded, dpadded) = both_ways(objective, rollouts, rewards, logps)
        assert abs(loss - padded) < 1e-12 * max(1, abs(padded))
        assert relative(dlogp, dpadded) < 1e-12


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@PRESET
def test_dlogp_is_the_derivative_of_the_loss(preset, kl):
    rng = np.random.default_rng(2)
    rollouts = random_rollouts(rng, n_groups=2, k=4, length=6)
    objective = Objective.preset(preset, beta=0.2, kl=kl)
    coefficients = objective.coefficients(rollouts, rng.standard_normal(8))
    logp, old, ref = random_logps(rng, rollouts.tree)
    _, dlogp = objective.evaluate(coefficients, logp, old, ref)
    numeric = np.zeros_like(dlogp)
    for node in range(len(logp)):
        step = 1e-5 * (np.arange(len(logp)) == node)
        ahead, behind = (
            objective.evaluate(coefficients, logp + s, old, ref)[0] for s in (step, -step)
        )
        numeric[node] = (ahead - behind) / 2e-5
    assert relative(numeric, dlogp) < 1e-8


@AGGREGATION
def test_parts_of_a_split_add_up_to_the_whole(aggregation):
    rng = np.random.default_rng(0)
    rollouts = random_rollouts(rng, p_truncated=0.3)
    tree, logps = rollouts.tree, random_logps(rng, rollouts.tree)
    objective = Objective(
        aggregation=aggregation, clip_low=0.2, clip_high=0.2, beta=0.1, mask_truncated=True
    )
    whole = objective.coefficients(rollouts, rng.standard_normal(18))
    loss, dlogp = objective.evaluate(whole, *logps)
    for max_nodes in (1, 10, 40):
        losses, gathered, sums = 0.0, np.zeros(tree.n_nodes), {name: 0.0 for name in vars(whole)}
        parts = split_tree(tree, max_nodes)
        assert len(parts) > 1
        for part, nodes in parts:
            coefficients = whole.for_part(nodes, part.scored)
            part_loss, part_dlogp = objective.evaluate(
                coefficients, *(values[nodes] for values in logps)
            )
            losses, sums = (
                losses + part_loss,
                {name: sums[name] + getattr(coefficients, name).sum() for name in sums},
            )
            np.add.at(gathered, nodes, part_dlogp)
        assert abs(losses - loss) < 1e-13
        np.testing.assert_allclose(gathered, dlogp, rtol=1e-14, atol=0)
        np.testing.assert_allclose(
            [*sums.values()], [v.sum() for v in vars(whole).values()], rtol=0, atol=1e-12
        )


# -- what the loss means, λ-GRPO, Theorem 1 --------------------------------------------------------


def test_trap_the_loss_on_policy_is_zero_for_grpo_but_not_its_gradient():
    """Σ aᵢ = 0 over equal lengths; with 1/|λ| it is not: the shared [0] counts once, not twice."""
    rollouts = rollouts_of([[0]], [[[0, 0], [0, 1], [1, 1]]])
    on_policy = np.full(rollouts.tree.n_nodes, -0.7)
    loss, dlogp = Objective.preset("grpo")(rollouts, [1, 0, 0], on_policy, on_policy)
    assert abs(loss) < 1e-15
    assert np.linalg.norm(dlogp) > 0.1
    loss, _ = Objective.preset("lambda_grpo")(rollouts, [1, 0, 0], on_policy, on_policy)
    scale = (
        1 / 3**0.5 + 1e-4
    )  # a = (2, -1, -1) / (3 · scale); the shared first token has (2 - 1) / 2
    np.testing.assert_allclose(loss, -(0.5 + 2 - 1 - 1 - 1) / (3 * scale) / 6, rtol=1e-13)


def test_the_flaw_a_shared_step_is_pushed_as_often_as_it_was_sampled():
    """Four completions begin with 1, one is good: the paper's anti-exploration, numbers by hand."""
    rollouts = rollouts_of([[0]], [[[1, 2], [1, 3], [1, 4], [1, 5], [6, 7], [6, 8]]])
    rewards, same = np.array([6, 0, 0, 0, 6, 6.0]), np.zeros(rollouts.tree.n_nodes)
    shared, tail = rollouts.tree.paths[0]  # a = ±3; Â of the shared step is (3 - 9) / 4 = -1.5
    _, grpo = Objective.preset("grpo", scale="none")(rollouts, rewards, same, same)
    _, fixed = Objective.preset("lambda_grpo", scale="none")(rollouts, rewards, same, same)
    np.testing.assert_allclose(
        -12 * grpo[[shared, tail]], [4 * -1.5, 3]
    )  # down twice as hard as its tail goes up
    np.testing.assert_allclose(-12 * fixed[[shared, tail]], [-1.5, 3])
    moved, old, ref = random_logps(np.random.default_rng(0), rollouts.tree)
    for changes in (
        {},
        {"beta": 0.5},
        {"aggregation": "sequence_mean"},
    ):  # the whole term, KL included
        _, grpo = Objective.preset("grpo", **changes)(rollouts, rewards, moved, old, ref)
        _, fixed = Objective.preset("lambda_grpo", **changes)(rollouts, rewards, moved, old, ref)
        np.testing.assert_allclose(fixed * rollouts.tree.count, grpo, rtol=1e-13, atol=1e-16)


def test_theorem_1_and_where_it_stops():
    """The token-mean is the tree's PRM, a sequence-mean one of weighted rewards, clipping none."""
    plain = {"clip_low": None, "clip_high": None, "beta": 0.1}
    rng = np.random.default_rng(0)
    rollouts, rewards = random_rollouts(rng), rng.standard_normal(18)
    tree, logps = rollouts.tree, random_logps(rng, rollouts.tree)

    def difference(changes, r_hat=None):
        grpo, prm = (
            Objective.preset("grpo", **plain | changes),
            Objective.preset("prm", **plain | changes),
        )
        loss, dlogp = grpo(rollouts, rewards, *logps)
        coefficients = prm.coefficients(rollouts, rewards)
        if r_hat is not None:
            r = rewards.reshape(-1, 6)
            step = np.where(
                tree.scored,
                (r_hat - r.mean(1)[tree.group]) / (r.std(1, ddof=1)[tree.group] + 1e-4),
                0.0,
            )
            positive, negative = (
                coefficients.weight * part for part in (np.maximum(step, 0), np.minimum(step, 0))
            )
            coefficients = replace(coefficients, positive=positive, negative=negative)
        prm_loss, prm_dlogp = prm.evaluate(coefficients, *logps)
        return max(abs(loss - prm_loss), relative(prm_dlogp, dlogp))

    assert difference({}) < 1e-13
    assert difference({"aggregation": "batch_token_mean"}) < 1e-13
    assert difference({"aggregation": "sequence_mean"}) > 1e-3
    inverse = 1 / np.maximum(tree.lengths, 1)
    weighted = tree.sum_over_members(rewards * inverse) / np.maximum(
        tree.sum_over_members(inverse), 1e-300
    )
    assert difference({"aggregation": "sequence_mean"}, weighted) < 1e-13
    assert difference({"clip_low": 0.2, "clip_high": 0.2}) > 1e-3


# -- weights |λ|^-α --------------------------------------------------------------------------------


def written_out(rollouts, rewards, logps, alpha, beta, low, high):
    """The loss and its gradient for the nodes, token by token, from the given numbers alone."""
    logp, old, ref = (rollouts.tree.on_tokens(values) for values in logps)
    loss, gradient, row = 0.0, np.zeros(rollouts.tree.n_nodes), 0
    for group in rollouts.completions:
        group = [tuple(completion) for completion in group]
        r = np.array(rewards[row : row + len(group)])
        counts = ~rollouts.truncated[row : row + len(group)]
        tokens = len(rollouts.completions) * max(
            sum(len(y) for y, c in zip(group, counts, strict=True) if c), 1
        )
        for y, a, counted in zip(
            group, (r - r.mean()) / (r.std(ddof=1) + 1e-4), counts, strict=True
        ):
            for t in range(len(y) * counted):
                size = sum(
                    other[: t + 1] == y[: t + 1]
                    for other, c in zip(group, counts, strict=True)
                    if c
                )
                w, ratio, x = (
                    size**-alpha / tokens,
                    np.exp((logp - old)[row, t]),
                    (ref - logp)[row, t],
                )
                clipped = min(max(ratio, 1 - low), 1 + high)
                loss -= w * (min(ratio * a, clipped * a) - beta * (np.exp(x) - x - 1))
                slope = ratio * a if ratio * a <= clipped * a else 0.0
                gradient[rollouts.tree.paths[row, t]] -= w * (slope + beta * (np.exp(x) - 1))
            row += 1
    return loss, gradient


@pytest.mark.parametrize("alpha", [0, 0.5, 1, 1.5])
def test_every_alpha_equals_the_sum_over_tokens_also_in_parts(alpha):
    """Clipped on all sides; truncated completions masked; the KL term inside the weight."""
    clipped = np.zeros(2)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        rollouts = random_rollouts(rng, p_truncated=0.3)
        rewards, logps = rng.standard_normal(18), random_logps(rng, rollouts.tree)
        objective = Objective.preset(
            "grpo", alpha=alpha, beta=0.3, clip_high=0.28, mask_truncated=True
        )
        expected, gradient = written_out(rollouts, rewards, logps, alpha, 0.3, 0.2, 0.28)
        loss, dlogp = objective(rollouts, rewards, *logps)
        assert abs(loss - expected) < 1e-12 * max(1, abs(expected))
        assert relative(dlogp, gradient) < 1e-12
        whole, total, gathered = (
            objective.coefficients(rollouts, rewards),
            0.0,
            np.zeros(len(dlogp)),
        )
        for part, nodes in split_tree(rollouts.tree, 7):
            part_loss, part_dlogp = objective.evaluate(
                whole.for_part(nodes, part.scored), *(values[nodes] for values in logps)
            )
            total += part_loss
            np.add.at(gathered, nodes, part_dlogp)
        assert abs(total - loss) < 1e-12 and relative(gathered, dlogp) < 1e-13
        metrics = objective.metrics(whole, *logps[:2])
        clipped += [metrics["clip_ratio/low_mean"], metrics["clip_ratio/high_mean"]]
        other = replace(objective, alpha=alpha + 0.1)(rollouts, rewards, *logps)[1]
        assert relative(other, gradient) > 1e-3  # so the test would see another weight
    assert (clipped > 0).all()


def test_alpha_0_and_1_are_grpo_and_lambda_grpo_to_the_bit():
    """Sums over members, and those divided by many different |λ|, which a power might round."""
    rng = np.random.default_rng(0)
    rollouts = random_rollouts(rng, n_groups=1, k=400, vocab_size=2, p_truncated=0.3)
    tree, rewards, counted = rollouts.tree, rng.standard_normal(400), ~rollouts.truncated
    share = counted / tree.lengths[counted].sum()
    size = np.maximum(tree.sum_over_members(counted), 1)
    assert len(set(size)) > 20
    a = advantages(rewards, tree.completion_group)
    sums = {
        "positive": share * np.maximum(a, 0),
        "negative": share * np.minimum(a, 0),
        "weight": share,
    }
    for alpha, w in ((0, 1.0), (0.0, 1.0), (1, 1 / size), (1.0, 1 / size)):
        found = Objective(mask_truncated=True, alpha=alpha).coefficients(rollouts, rewards)
        for name, values in sums.items():
            np.testing.assert_array_equal(getattr(found, name), w * tree.sum_over_members(values))


# -- settings --------------------------------------------------------------------------------------


def test_presets_are_those_of_their_papers():
    clip = {"clip_low": 0.2, "clip_high": 0.2}
    expected = {
        "reinforce": {
            "baseline": "none",
            "scale": "none",
            "aggregation": "sequence_sum",
        },  # Williams 1992: Σ_t r ∇log π
        "rloo": {
            "baseline": "leave_one_out",
            "scale": "none",
            "aggregation": "sequence_sum",
        },  # arXiv:2402.14740
        "grpo": clip,  # arXiv:2509.21154, section 2
        "grpo_original": {"aggregation": "sequence_mean", "beta": 0.04, **clip},  # arXiv:2402.03300
        "dapo": {
            "aggregation": "batch_token_mean",
            "clip_low": 0.2,
            "clip_high": 0.28,
            "mask_truncated": True,
        },  # arXiv:2503.14476
        "dr_grpo": {
            "aggregation": "constant",
            "scale": "none",
            **clip,
        },  # arXiv:2503.20783: neither std nor 1/|y|
        "lambda_grpo": {"alpha": 1.0, **clip},  # arXiv:2509.21154, section 4
        "prm": {"process_reward": "tree"},  # arXiv:2509.21154, section 3
    }
    assert {name: Objective.preset(name) for name in PRESETS} == {
        name: Objective(name=name, **f) for name, f in expected.items()
    }
    defaults = Objective()
    assert (defaults.baseline, defaults.scale, defaults.aggregation) == (
        "group_mean",
        "group_std",
        "group_token_mean",
    )
    assert (defaults.alpha, defaults.process_reward, defaults.kl, defaults.beta) == (
        0,
        "outcome",
        "k3",
        0,
    )
    assert (defaults.clip_low, defaults.clip_high, defaults.mask_truncated) == (None, None, False)
    assert Objective.preset("dapo", beta=0.2, clip_high=None).clip_high is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "gspo"}, "unknown objective 'gspo': choose from reinforce"),
        ({"preset": "grpo", "betta": 1}, "no field betta$"),
        *(
            ({field: "x"}, f"{field} 'x' is unknown")
            for field in ("baseline", "scale", "aggregation", "kl")
        ),
        ({"process_reward": "tree", "baseline": "leave_one_out"}, "take baseline group_mean"),
        *(({"ddof": value}, f"ddof {value} is unknown: choose from 0, 1") for value in (2, True)),
        ({"beta": -1}, "beta is -1"),
        *(
            ({"alpha": value}, "alpha is .*at least 0")
            for value in (-0.5, np.nan, np.inf, True, "1", None)
        ),
        ({"clip_low": np.nan}, "clip_low is nan"),
        ({"clip_high": np.inf}, "clip_high is inf"),
        ({"std_eps": -1e-4}, "std_eps is"),
    ],
)
def test_unknown_names_and_numbers_out_of_range_are_errors(settings, message):
    preset = settings.pop("preset", None)
    with pytest.raises(ValueError, match=message):
        Objective.preset(preset, **settings) if preset else Objective(**settings)


def test_beta_needs_a_reference():
    with pytest.raises(ValueError, match="reference policy"):
        Objective(beta=0.1)(rollouts_of([[0]], [[[1], [2]]]), [1, 0], np.zeros(3), np.zeros(3))


def test_process_rewards_do_not_go_with_masking():
    with pytest.raises(ValueError, match="mask_truncated"):
        Objective.preset("prm", mask_truncated=True)


# -- a user's own process rewards ------------------------------------------------------------------


def by_tokens(tree, values, group, ddof=1, eps=1e-4):
    """Values standardised over all tokens of all members of a group.   -> {node: advantage}"""
    tokens = [
        (node, values[node])
        for path in tree.paths[tree.completion_group == group]
        for node in path
        if node >= 0
    ]
    v = np.array([value for _, value in tokens])
    return {node: (value - v.mean()) / (v.std(ddof=ddof) + eps) for node, value in tokens}


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("rewards", ["equal", "unequal"])
def test_process_rewards_of_ones_own_are_standardised_over_the_tokens_of_the_group(rewards, ddof):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        rollouts = random_rollouts(rng)
        tree, values = rollouts.tree, rng.normal(5, 3, rollouts.tree.n_nodes)
        outcomes = np.zeros(18) if rewards == "equal" else rng.normal(size=18)
        expected = np.zeros(tree.n_nodes)
        for group in range(3):
            for node, advantage in by_tokens(tree, values, group, ddof).items():
                expected[node] = advantage
        np.testing.assert_allclose(
            step_advantages(tree, outcomes, values, ddof=ddof), expected, atol=1e-13
        )
        coefficients = Objective.preset("prm", ddof=ddof).coefficients(rollouts, outcomes, values)
        np.testing.assert_allclose(
            coefficients.positive + coefficients.negative,
            coefficients.weight * expected,
            atol=1e-15,
        )
        np.testing.assert_array_equal(
            coefficients.tokens_up, tree.count * tree.scored * (expected > 0)
        )
        np.testing.assert_array_equal(
            coefficients.tokens_down, tree.count * tree.scored * (expected < 0)
        )
        np.testing.assert_allclose(
            np.bincount(tree.group[tree.scored], (tree.count * expected)[tree.scored]),
            0,
            atol=1e-11,
        )


def test_a_group_of_equal_outcomes_learns_from_process_rewards():
    """Three failures, of which two began well: the case for which one brings process rewards."""
    rollouts = rollouts_of([[0]], [[[1, 2], [1, 3], [4, 5]]])
    tree = rollouts.tree
    values = np.where(tree.token == 1, 0.8, 0.1)
    dead, live = (
        Objective.preset("prm").coefficients(rollouts, r, values) for r in ([0, 0, 0], [1, 0, 0])
    )
    push = dead.positive + dead.negative
    np.testing.assert_array_equal(push, live.positive + live.negative)
    assert (
        push[tree.token == 1] > 0.1
        and (push[np.isin(tree.token, [2, 3, 4, 5])] < -0.05).all()
        and push[0] == 0
    )
    loss, dlogp = Objective.preset("prm").evaluate(dead, *[np.zeros(tree.n_nodes)] * 2)
    assert abs(loss) < 1e-15 and np.linalg.norm(dlogp) > 0.1


@pytest.mark.parametrize("scale", ["group_std", "batch_std"])
@pytest.mark.parametrize(("factor", "shift"), [(10, 0), (1, -7.0), (0.01, 3), (1e6, 0), (1e-6, 0)])
def test_another_scale_of_process_rewards_changes_nothing(factor, shift, scale):
    rng = np.random.default_rng(1)
    tree = random_rollouts(rng).tree
    values, outcomes = rng.random(tree.n_nodes), np.zeros(18)
    plain, scaled = (
        step_advantages(tree, outcomes, v, scale=scale, eps=0)
        for v in (values, factor * values + shift)
    )
    np.testing.assert_allclose(scaled, plain, rtol=1e-9, atol=1e-12)
    if factor >= 1:
        with_eps = step_advantages(tree, outcomes, factor * values + shift, scale=scale)
        np.testing.assert_allclose(with_eps, plain, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 0.7, -1e9 / 7, 1e16])
@pytest.mark.parametrize("scale", ["group_std", "batch_std", "none"])
def test_equal_process_rewards_give_exactly_zero(value, scale):
    tree = random_rollouts(np.random.default_rng(2)).tree
    values = np.where(tree.group == 1, value, np.random.default_rng(3).normal(size=tree.n_nodes))
    out = step_advantages(tree, np.arange(18.0), values, scale=scale, eps=0)
    assert (
        not out[(tree.group == 1) | (tree.group < 0)].any()
        and out[tree.group == 0].any()
        and np.isfinite(out).all()
    )


def test_the_hidden_process_rewards_given_by_hand_are_the_hidden_ones_up_to_a_factor():
    """R̂ spreads less than r, so the factor is above 1; it is 1 where nothing is shared."""
    rng = np.random.default_rng(4)
    rollouts = rollouts_of(
        [[0], [0]], [rng.integers(2, size=(6, 4)), [[i, i, i, i] for i in range(6)]]
    )
    tree, r = rollouts.tree, rng.normal(size=12)
    hidden, by_hand = (
        step_advantages(tree, r, eps=0, ddof=0),
        step_advantages(tree, r, step_rewards(tree, r), eps=0, ddof=0),
    )
    for group, least in ((0, 1.01), (1, 1)):
        own = (tree.group == group) & (np.abs(hidden) > 1e-9)
        factor = by_hand[own] / hidden[own]
        assert factor.min() > least - 1e-12
        np.testing.assert_allclose(factor, factor[0], rtol=1e-9)
    np.testing.assert_allclose(by_hand[tree.group == 1], hidden[tree.group == 1], rtol=1e-12)


def test_process_rewards_that_cannot_be_used_are_refused():
    rollouts = rollouts_of([[0]], [[[1, 2], [1, 3]]])
    prm, good = Objective.preset("prm"), np.arange(4.0)
    assert prm.coefficients(
        rollouts, [0, 0], np.array([np.nan, 0, 1, 2])
    ).positive.any()  # that of a prompt is never looked at
    for bad, message in [
        (good[:-1], r"4 nodes need as many process rewards, not an array of shape \(3,\)"),
        (good[:, None], r"shape \(4, 1\)"),
        (
            np.array([0, 1, np.nan, 2]),
            "the process reward of node 2 is nan: it must be a finite number",
        ),
        (np.array([0, -np.inf, 0, 2]), "node 1 is -inf"),
        (
            np.array([0, 1, 2, 1e200]),
            r"node 3 is 1e\+200: it must be a finite number up to 1e\+100",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            prm.coefficients(rollouts, [0, 0], bad)
    with pytest.raises(
        ValueError, match='process rewards are given, but process_reward is "outcome": take "tree"'
    ):
        Objective.preset("grpo").coefficients(rollouts, [0, 1], good)


# -- |λ| where truncated completions are masked ----------------------------------------------------


def test_each_step_counts_once_also_where_members_are_masked():
    """Three share the first token, one is masked: its term is divided by two, not three."""
    rollouts = rollouts_of(
        [[0]], [[[1, 2], [1, 3], [1, 4], [5, 6]]], truncated=[False, False, True, False]
    )
    rewards, same = [3.0, 0, 0, 1], np.zeros(rollouts.tree.n_nodes)
    objective = Objective.preset("lambda_grpo", scale="none", mask_truncated=True)
    _, dlogp = objective(rollouts, rewards, same, same)
    token = rollouts.tree.token
    push = {int(t): -6 * d for t, d in zip(token, dlogp, strict=True)}  # six tokens count
    assert push == pytest.approx({0: 0, 1: (2 - 1) / 2, 2: 2, 3: -1, 4: 0, 5: 0, 6: 0}, abs=1e-15)
    weights = objective.coefficients(rollouts, rewards).weight * 6
    assert weights == pytest.approx(
        np.where(np.isin(token, [0, 4]), 0, 1)
    )  # each step that somebody counts in: once
    unmasked = objective.coefficients(replace(rollouts, truncated=np.zeros(4, dtype=bool)), rewards)
    assert unmasked.weight * 8 == pytest.approx(np.where(token == 0, 0, 1))


@AGGREGATION
@pytest.mark.parametrize("p_truncated", [0.0, 0.3, 0.7])
def test_masked_counts_equal_padded_arrays_in_parts_too(aggregation, p_truncated):
    """Against padded rows, where |λ| is counted pair by pair, and in micro-batches."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rollouts = random_rollouts(rng, p_truncated=p_truncated)
        rewards, logps = rng.standard_normal(18), random_logps(rng, rollouts.tree)
        objective = Objective.preset(
            "lambda_grpo", aggregation=aggregation, beta=0.2, mask_truncated=True
        )
        (loss, dlogp), (padded, dpadded) = both_ways(objective, rollouts, rewards, logps)
        assert abs(loss - padded) < 1e-12 and relative(dlogp, dpadded) < 1e-12
        whole, gathered = objective.coefficients(rollouts, rewards), np.zeros(rollouts.tree.n_nodes)
        for part, nodes in split_tree(rollouts.tree, 7):
            part_dlogp = objective.evaluate(
                whole.for_part(nodes, part.scored), *(values[nodes] for values in logps)
            )[1]
            np.add.at(gathered, nodes, part_dlogp)
        np.testing.assert_allclose(gathered, dlogp, rtol=1e-14, atol=0)


def test_step_advantages_are_the_means_of_the_members_advantages():
    """Σ_{i∈λ} aᵢ = |λ|·Â_λ, the identity behind Theorem 1; 0 for prompts and equal rewards."""
    rng = np.random.default_rng(0)
    rollouts = random_rollouts(rng)
    tree = rollouts.tree
    rewards = rng.normal(size=len(tree.paths))
    rewards[tree.completion_group == 1] = 0.1
    for scale in ("group_std", "batch_std", "none"):
        a = advantages(rewards, tree.completion_group, scale=scale)
        expected = np.where(tree.group >= 0, tree.sum_over_members(a) / tree.count, 0)
        np.testing.assert_allclose(
            step_advantages(tree, rewards, scale=scale), expected, atol=1e-13
        )
    assert not step_advantages(tree, rewards)[(tree.group == 1) | (tree.group < 0)].any()


@pytest.mark.parametrize(
    "changes",
    [
        {"beta": "abc"},
        {"beta": None},
        {"clip_low": True},
        {"mask_truncated": "False"},
        {"std_eps": -1},
        {"beta": np.nan},
    ],
)
def test_fields_of_the_wrong_kind_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        Objective.preset("grpo", **changes)


def test_groups_may_have_any_names():
    rewards = [1, 0, 3, 5]
    expected = advantages(rewards, np.array([0, 0, 1, 1]))
    for group in ([0, 0, 2, 2], [5, 5, -3, -3], ["a", "a", "b", "b"], [0.5, 0.5, 7.0, 7.0]):
        np.testing.assert_array_equal(advantages(rewards, np.array(group)), expected)
    assert advantages([], np.array([], dtype=int)).shape == (0,)


def test_rewards_may_come_from_a_generator():
    rollouts = rollouts_of([[0]], [[[1], [2]]])
    for name in ("grpo", "prm"):
        found = Objective.preset(name).coefficients(rollouts, (r for r in (1.0, 0.0)))
        np.testing.assert_array_equal(found.tokens_up, [0, 1, 0])
