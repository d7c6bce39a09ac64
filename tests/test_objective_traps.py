"""One test for each trap that other implementations of GRPO fell into, with numbers by hand."""

from fractions import Fraction
from math import sqrt

import numpy as np
import pytest
from helpers import random_logps, random_rollouts, rollouts_of

import minigrpo as mg
from minigrpo import Objective, advantages
from minigrpo.objectives import PRESETS, kl_estimate
from minigrpo.verify.padded import padded_loss


def one_token(reward, ratio):
    """J and dJ/dlogp of one completion of one token with advantage `reward`."""
    objective = Objective(baseline="none", scale="none", clip_low=0.1, clip_high=0.3)
    rollouts = rollouts_of([[0]], [[[1]]])
    loss, dlogp = objective(rollouts, [reward], np.log([1, ratio]), np.zeros(2))
    return -loss, -dlogp[1]


# -- advantages ------------------------------------------------------------------------------------


def test_trap_ddof_is_the_sample_standard_deviation_unless_told():
    group = np.zeros(2, dtype=int)
    np.testing.assert_allclose(
        advantages([1, 0], group), [0.5 / (0.5**0.5 + 1e-4), -0.5 / (0.5**0.5 + 1e-4)], rtol=1e-14
    )
    np.testing.assert_allclose(
        advantages([1, 0], group, ddof=0), [0.5 / 0.5001, -0.5 / 0.5001], rtol=1e-14
    )
    assert (Objective().ddof, Objective().std_eps) == (1, 1e-4)


def test_baselines_and_scales_by_hand():
    rewards, group = [3, 0, 0, 1, 5], np.array([0, 0, 0, 1, 1])
    none = {"scale": "none"}
    np.testing.assert_allclose(advantages(rewards, group, **none), [2, -1, -1, -2, 2])
    np.testing.assert_allclose(
        advantages(rewards, group, "leave_one_out", **none), [3, -1.5, -1.5, -4, 4]
    )
    np.testing.assert_allclose(advantages(rewards, group, "none", **none), rewards)
    std = np.sqrt((1.2**2 + 1.8**2 + 1.8**2 + 0.8**2 + 3.2**2) / 4)
    np.testing.assert_allclose(
        advantages(rewards, group, scale="batch_std", eps=0.5),
        np.array([2, -1, -1, -2, 2]) / (std + 0.5),
    )
    np.testing.assert_allclose(
        advantages(rewards, group, eps=0), np.array([2, -1, -1, -2, 2]) / np.sqrt([3, 3, 3, 8, 8])
    )


@pytest.mark.parametrize("reward", [*np.arange(1, 11) / 10, 1 / 3, -1e9 / 7])
def test_trap_equal_rewards_give_exactly_zero(reward):
    """mean([0.1] * 3) is not 0.1, and what remains is divided by a std of nearly 0."""
    rollouts = random_rollouts(np.random.default_rng(0), n_groups=2, k=7)
    rewards = np.append(np.full(7, reward), np.arange(7))
    first = rollouts.tree.group == 0
    for changes in (
        {},
        {"baseline": "leave_one_out"},
        {"process_reward": "tree"},
        {"scale": "batch_std"},
        {"scale": "none"},
    ):
        objective = Objective(**changes)
        a = advantages(rewards, rollouts.tree.completion_group, objective.baseline, objective.scale)
        assert (a[:7] == 0).all()
        _, dlogp = objective(
            rollouts, rewards, *random_logps(np.random.default_rng(1), rollouts.tree)[:2]
        )
        assert (dlogp[first] == 0).all()
        assert np.isfinite(dlogp).all()
        assert dlogp[~first].any()


@pytest.mark.parametrize("scale", ["group_std", "batch_std"])
@pytest.mark.parametrize("process_reward", ["outcome", "tree"])
def test_trap_equal_rewards_without_eps(scale, process_reward):
    rollouts = rollouts_of([[0]], [[[1, 2], [1, 3]]])
    assert not advantages([0.5, 0.5], np.zeros(2, dtype=int), scale=scale, eps=0).any()
    loss, dlogp = Objective(scale=scale, std_eps=0, process_reward=process_reward)(
        rollouts, [0.5, 0.5], np.zeros(4), np.zeros(4)
    )
    assert loss == 0
    assert not dlogp.any()


@pytest.mark.parametrize("eps", [1e-4, 0.0, 0.5])
@pytest.mark.parametrize("reward", [1.0, 0.1, -3.0, 0.0, 1e16])
@pytest.mark.parametrize("scale", ["group_std", "batch_std"])
def test_trap_equal_rewards_without_a_baseline_are_not_divided_by_eps(scale, reward, eps):
    """Without a spread the advantage is the reward, neither 10,000 times as much nor NaN."""
    for ddof in (0, 1):
        a = advantages([reward] * 3, np.zeros(3, dtype=int), "none", scale, ddof, eps)
        assert (a == reward).all()
        a = advantages(
            [reward] * 3 + [0.0, 1.0], np.array([0, 0, 0, 1, 1]), "none", "group_std", ddof, eps
        )
        assert (a[:3] == reward).all()
        np.testing.assert_allclose(a[3:], [0, 1 / (np.std([0, 1], ddof=ddof) + eps)], rtol=1e-14)
    objective = Objective(baseline="none", scale=scale, std_eps=eps)
    c = objective.coefficients(rollouts_of([[0]], [[[1], [2], [3]]]), [reward] * 3)
    np.testing.assert_allclose((c.positive + c.negative)[1:], reward / 3, rtol=1e-15)
    assert not advantages(
        [reward] * 3, np.zeros(3, dtype=int), "leave_one_out", scale, 1, eps
    ).any()


@pytest.mark.parametrize("value", [1e101, -1e155, 1e200, 1.7e308, np.inf, np.nan])
@pytest.mark.parametrize("scale", ["group_std", "batch_std", "none"])
def test_trap_rewards_whose_squares_overflow_are_refused(value, scale):
    """(1e155)² is infinite, so the advantage would be 0 and nothing learned, without a word."""
    rewards, group = [0.0, 1.0, 0.5, value], np.array([0, 0, 1, 1])
    with pytest.raises(
        ValueError,
        match=r"completion 1 of prompt 1 is .*: rewards must be finite numbers, up to 1e\+100",
    ):
        advantages(rewards, group, scale=scale)
    rollouts = rollouts_of([[0], [0]], [[[1], [2]], [[1], [2]]])
    for objective in (
        Objective(scale=scale),
        Objective(scale=scale, process_reward="tree"),
        Objective.preset("rloo"),
    ):
        with pytest.raises(ValueError, match="completion 1 of prompt 1"):
            objective.coefficients(rollouts, rewards)
    for f in (mg.step_advantages, mg.step_rewards):
        with pytest.raises(ValueError, match="completion 1 of prompt 1"):
            f(rollouts.tree, rewards)


@pytest.mark.parametrize(
    "rewards",
    [
        [1e16, 1e16 + 2, 1e16 + 4],  # what differs is less than the rounding of their sum
        [1e16 + 2, 1e16, 1e16],
        [-1e99, 1e99, 0],
        [1e100, 1e100, -1e100],
        [3e-200, 1e-200, 2e-200],  # squares that vanish
        [1e-310, 2e-310, 4e-310],  # subnormal
        [1 + 1e-12, 1, 1 - 1e-12],
        [123456.7, 123456.8, 123456.6],
        [0.1, 0.1, 0.2],
    ],
)
@pytest.mark.parametrize("process_reward", ["outcome", "tree"])
def test_trap_no_digit_that_rewards_differ_in_is_lost(rewards, process_reward):
    """Against exact fractions, without eps; a group of usual rewards beside it stays as it is."""
    r = [Fraction(x) for x in rewards]
    apart = [x - sum(r) / 3 for x in r]
    unit = [float(x / max(map(abs, apart))) for x in apart]
    expected = np.array(unit) / sqrt(sum(x * x for x in unit) / 2)
    both, group = np.array([*rewards, 1, 0, 0]), np.array([0, 0, 0, 1, 1, 1])
    if process_reward == "outcome":
        a = advantages(both, group, eps=0)
    else:
        tree = rollouts_of([[0], [0]], [[[1], [2], [3]]] * 2).tree
        a = mg.step_advantages(tree, both, eps=0)[tree.paths[:, 0]]
    np.testing.assert_allclose(a[:3], expected, rtol=1e-10)
    np.testing.assert_allclose(a[3:], np.array([2, -1, -1]) / 3**0.5, rtol=1e-14)
    with_eps = advantages(both, group)
    assert np.isfinite(with_eps).all() and (np.abs(with_eps[:3]) <= np.abs(expected) + 1e-9).all()


def test_advantages_take_lists_and_groups_that_are_not_in_order():
    a = advantages([1, 5, 0, 3], [0, 1, 0, 1], eps=0)
    np.testing.assert_allclose(a, np.array([1, 1, -1, -1]) / 2**0.5, rtol=1e-14)
    with pytest.raises(ValueError, match="completion 1 of prompt 1 is nan"):
        advantages([1, 5, 0, np.nan], [0, 1, 0, 1])


def test_trap_a_group_of_one_is_an_error():
    rollouts = rollouts_of([[0], [0]], [[[1], [2]], [[1]]])
    for changes in ({}, {"baseline": "leave_one_out", "scale": "none"}, {"baseline": "none"}):
        with pytest.raises(ValueError, match="group of one completion"):
            Objective(**changes).coefficients(rollouts, [1, 0, 1])
    assert Objective.preset("reinforce").coefficients(rollouts, [1, 0, 1]).positive.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_trap_rewards_that_are_not_finite_are_named(value):
    rollouts = random_rollouts(np.random.default_rng(0))
    rewards = np.zeros(18)
    rewards[2 * 6 + 4] = value
    with pytest.raises(ValueError, match=r"completion 4 of prompt 2 is -?(nan|inf)"):
        Objective()(rollouts, rewards, np.zeros(1), np.zeros(1))


# -- clipping --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("advantage", "ratio", "value", "slope"),
    [
        (2, 1.5, 2.6, 0),  # pushed up enough already: 2 · 1.3
        (2, 1.2, 2.4, 2.4),
        (2, 0.5, 1.0, 1.0),  # far below: still to be pushed up
        (-3, 1.5, -4.5, -4.5),  # far above: still to be pushed down
        (-3, 0.95, -2.85, -2.85),
        (-3, 0.5, -2.7, 0),  # pushed down enough already: -3 · 0.9
    ],
)
def test_trap_clip_branches_by_hand(advantage, ratio, value, slope):
    np.testing.assert_allclose(one_token(advantage, ratio), (value, slope), rtol=1e-14)


@pytest.mark.parametrize("advantage", [2.0, -3.0])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (0.1, 0.3), (0.25, 0.25)])
def test_trap_at_the_edge_of_the_clip_range_the_slope_is_that_of_inside(low, high, advantage):
    """As in PyTorch, where clamp passes the gradient on at its ends and min of equals shares it."""
    rollouts = rollouts_of([[0]], [[[1]]])
    for edge in (1 - low, 1 + high):
        logp = np.array([0, np.log(edge)])
        ratio = np.exp(logp[1])  # the edges below are where it is, to the last bit
        objective = Objective(
            baseline="none",
            scale="none",
            clip_low=1 - min(ratio, 1.0),
            clip_high=max(ratio, 1.0) - 1,
        )
        assert ratio in (1 - objective.clip_low, 1 + objective.clip_high)
        coefficients = objective.coefficients(rollouts, [advantage])
        loss, dlogp = objective.evaluate(coefficients, logp, np.zeros(2))
        np.testing.assert_allclose([-loss, -dlogp[1]], advantage * ratio, rtol=1e-15)
        assert set(objective.metrics(coefficients, logp, np.zeros(2)).values()) == {
            0.0
        }  # nothing is clipped
        padded, dpadded = padded_loss(
            objective, [[[1]]], [advantage], logp[None, 1:], np.zeros((1, 1))
        )
        np.testing.assert_allclose([-padded, -dpadded[0, 0]], advantage * ratio, rtol=1e-15)


def test_trap_an_advantage_of_zero_is_neither_up_nor_down():
    rollouts = rollouts_of([[0]], [[[1], [2], [3]]])
    objective = Objective.preset("grpo", scale="none")
    c = objective.coefficients(rollouts, [1, 0, -1])
    assert (
        c.tokens_up.tolist() == [0, 1, 0, 0]
        and c.tokens_down.tolist() == [0, 0, 0, 1]
        and c.tokens.tolist() == [0, 1, 1, 1]
    )
    for logp in (
        np.log([1, 1, 9, 1]),
        np.log([1, 1, 0.1, 1]),
    ):  # far outside, where nothing is pushed
        assert set(objective.metrics(c, logp, np.zeros(4)).values()) == {0.0}
    prm = Objective.preset("prm", scale="none", clip_low=0.2, clip_high=0.2).coefficients(
        rollouts, [1, 0, -1]
    )
    assert prm.tokens_up.tolist() == [0, 1, 0, 0] and prm.tokens_down.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("ratio", "value", "slope"), [(1.5, -0.95, -2.25), (0.5, -0.85, 0.5), (1.0, -0.5, -0.5)]
)
def test_a_shared_node_is_clipped_for_one_sign_and_not_the_other(ratio, value, slope):
    """Half of 2 · min(ratio, 1.3) - 3 · max(ratio, 0.9)."""
    objective = Objective(baseline="none", scale="none", clip_low=0.1, clip_high=0.3)
    loss, dlogp = objective(
        rollouts_of([[0]], [[[1], [1]]]), [2, -3], np.log([1, ratio]), np.zeros(2)
    )
    np.testing.assert_allclose([-loss, -dlogp[1]], [value, slope], rtol=1e-14)


def test_trap_metrics_of_low_and_high_are_not_swapped():
    """Of 5 tokens the shared one is up and down; clipped are up 1.5, down 0.5 and down 0.6."""
    rollouts = rollouts_of([[0]], [[[1, 2], [1, 3], [4]]])
    objective = Objective(baseline="none", scale="none", clip_low=0.1, clip_high=0.3)
    logp = np.log([1, 1.5, 0.5, 0.5, 0.6])  # the prompt; 1, 2, 3, 4
    ref = logp + np.array([0, 0, 0.3, 0, 0])
    metrics = objective.metrics(
        objective.coefficients(rollouts, [1, -1, -1]), logp, np.zeros(5), ref
    )
    assert metrics["clip_ratio/low_mean"] == pytest.approx(2 / 5)
    assert metrics["clip_ratio/high_mean"] == pytest.approx(1 / 5)
    assert metrics["kl"] == pytest.approx((np.exp(0.3) - 0.3 - 1) / 5)


# -- KL --------------------------------------------------------------------------------------------


def test_trap_k3_is_exact_near_zero_and_finite_far_away():
    x = np.concatenate([np.logspace(-12, 2.8, 300), -np.logspace(-12, 6, 300), [0.0]])
    divergence, slope = kl_estimate("k3", np.zeros_like(x), x)
    assert (divergence >= 0).all()
    assert np.isfinite(divergence).all()
    small = np.abs(x) < 1e-3
    np.testing.assert_allclose(
        divergence[small], (x**2 / 2 + x**3 / 6)[small], rtol=1e-3, atol=1e-28
    )
    np.testing.assert_allclose(
        slope[small], -(x + x**2 / 2 + x**3 / 6 + x**4 / 24)[small], rtol=1e-13
    )


def test_trap_masks_come_from_lengths_not_from_tokens():
    """Completions of nothing but token 0, which is EOS or padding elsewhere: all tokens count."""
    rollouts = rollouts_of([[0]], [[[0], [0, 0, 0]]])
    loss, dlogp = Objective(scale="none", beta=1.0)(
        rollouts, [2, 0], np.log([1, 2, 2, 2]), np.zeros(4), np.log([1, 2, 2, 2])
    )
    np.testing.assert_allclose([loss, *dlogp], [-(2 - 2 - 2 - 2) / 4, 0, 0, 0.5, 0.5], atol=1e-15)


def test_trap_what_each_kl_estimate_pulls_towards():
    """The exact expectation of dD/dθ: k1 none, k2 that of KL(π‖ref), k3 that of KL(ref‖π)."""
    rng = np.random.default_rng(0)
    theta, ref = rng.standard_normal(5), np.log(rng.dirichlet(np.ones(5)))

    def log_softmax(logits):
        return logits - np.log(np.exp(logits).sum())

    def gradient_of(divergence):
        steps = 1e-6 * np.eye(5)
        return (
            np.array(
                [
                    divergence(log_softmax(theta + s)) - divergence(log_softmax(theta - s))
                    for s in steps
                ]
            )
            / 2e-6
        )

    logp = log_softmax(theta)
    p = np.exp(logp)
    dlogp_dtheta = np.eye(5) - p  # [token, logit]
    expected = {
        kind: (p * kl_estimate(kind, logp, ref)[1]) @ dlogp_dtheta for kind in ("k1", "k2", "k3")
    }
    np.testing.assert_allclose(expected["k1"], 0, atol=1e-15)
    np.testing.assert_allclose(
        expected["k2"], gradient_of(lambda q: (np.exp(q) * (q - ref)).sum()), atol=1e-9
    )
    np.testing.assert_allclose(
        expected["k3"], gradient_of(lambda q: (np.exp(ref) * (ref - q)).sum()), atol=1e-9
    )
    for kind in ("k1", "k3"):  # and in value k1 and k3 are unbiased
        assert (p * kl_estimate(kind, logp, ref)[0]).sum() == pytest.approx(
            (p * (logp - ref)).sum(), rel=1e-12
        )


# -- truncation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_trap_all_truncated_and_masked_is_no_update(preset):
    rng = np.random.default_rng(0)
    rollouts = random_rollouts(rng, p_truncated=1.1)
    assert rollouts.truncated.all()
    if preset == "prm":
        pytest.skip("process rewards over all members do not go with masking")
    objective = Objective.preset(preset, mask_truncated=True, beta=0.1)
    coefficients, logps = (
        objective.coefficients(rollouts, rng.standard_normal(18)),
        random_logps(rng, rollouts.tree),
    )
    loss, dlogp = objective.evaluate(coefficients, *logps)
    assert loss == 0
    assert not dlogp.any()
    assert set(objective.metrics(coefficients, *logps).values()) == {0.0}


def test_trap_what_is_masked_may_be_infinitely_far_away():
    rollouts = rollouts_of([[0]], [[[1], [2], [3]]], truncated=[False, True, False])
    objective = Objective.preset("dapo", beta=0.1)
    far, near = np.array([0.0, -1, -900, -1]), np.array([0.0, -1, -1, -1])
    coefficients = objective.coefficients(rollouts, [1, 0, 0])
    for logps in ((far, near, near), (near, far, near), (near, near, far)):
        assert (
            objective.evaluate(coefficients, *logps)[0]
            == objective.evaluate(coefficients, near, near, near)[0]
        )
        assert objective.metrics(coefficients, *logps) == objective.metrics(
            coefficients, near, near, near
        )
