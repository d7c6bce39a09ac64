"""Theorem 1 on rollouts of a small random transformer; and the check fails when it should."""

from itertools import product

import numpy as np
import pytest
from helpers import relative, rollouts_of, tiny_model

from minigrpo import Objective, sample, step_advantages
from minigrpo.engine.tree_statistics import path_depth
from minigrpo.runs.policy import make_model
from minigrpo.runs.settings import TrainSettings
from minigrpo.tasks import load_task, sampling_limits
from minigrpo.verify.equivalence import check_equivalence

PROMPTS = [
    [1],
    [2, 3],
    [1],
    [2, 3, 0, 4],
]  # one token; twice the same; one that begins like another


def rollouts_and_rewards(
    model, seed=0, prompts=PROMPTS, group_size=8, max_new_tokens=7, eos=0, temperature=1.0
):
    rng = np.random.default_rng(seed)
    settings = {"max_new_tokens": max_new_tokens, "eos": eos, "temperature": temperature}
    rollouts = sample(model, prompts, group_size, rng, **settings)
    return rollouts, rng.choice([-1.0, 0.1, 0.7, 1.0], size=len(rollouts.truncated))


def check(model, rollouts, rewards, **changes):
    return check_equivalence(model, rollouts, rewards, np.random.default_rng(99), **changes)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"n_kv_heads": 4, "tie_embeddings": True},
        {"n_heads": 2, "n_kv_heads": 1, "n_layers": 3},
        {"n_layers": 1, "vocab_size": 3},
    ],
)
def test_theorem_1_holds_on_real_rollouts(shape, seed):
    model = tiny_model(seed=seed, **shape)
    prompts = PROMPTS if model.config.vocab_size > 4 else [[1], [1, 2]]
    rollouts, rewards = rollouts_and_rewards(model, seed, prompts)
    assert len(set(rollouts.tree.lengths.tolist())) > 2  # ragged
    assert path_depth(rollouts.tree).max() >= 1
    result = check(model, rollouts, rewards)
    assert result.worst < 1e-12
    assert result.informative
    assert result.flat_tokens == rollouts.tree.lengths.sum()
    assert result.unique_tokens == rollouts.tree.scored.sum() < result.flat_tokens
    assert set(result.gradient_difference) == set(model.parameters)
    assert abs(result.grpo_loss - result.prm_loss) < 1e-14
    assert f"{result.grpo_loss:+.15f}" in result.text()


@pytest.mark.parametrize(
    "changes", [{"beta": 0.0}, {"step": 0.0}, {"step": 0.1}, {"beta": 0.0, "step": 0.0}]
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_theorem_1_at_other_policies_and_temperatures(changes, temperature):
    model = tiny_model()
    rollouts, rewards = rollouts_and_rewards(model, temperature=temperature)
    assert check(model, rollouts, rewards, **changes).worst < 1e-12


@pytest.mark.parametrize(
    "settings", [{"eos": None}, {"group_size": 2}, {"prompts": [[3]]}, {"group_size": 40}]
)
def test_theorem_1_on_other_batches(settings):
    model = tiny_model(seed=2)
    assert check(model, *rollouts_and_rewards(model, **settings)).worst < 1e-12


def test_in_float32_up_to_its_rounding():
    model = tiny_model(dtype="float32")
    assert check(model, *rollouts_and_rewards(model)).worst < 2e-5


@pytest.mark.parametrize("reward", [0.0, 0.1, 0.7])
def test_equal_rewards_leave_the_kl_term_and_say_so(reward):
    model = tiny_model()
    rollouts, rewards = rollouts_and_rewards(
        model, group_size=6
    )  # the mean of six times 0.7 is not 0.7
    result = check(model, rollouts, np.full_like(rewards, reward))
    assert result.worst < 1e-12
    assert not result.informative
    without_kl = check(model, rollouts, np.full_like(rewards, reward), beta=0.0)
    assert (without_kl.worst, without_kl.grpo_loss, without_kl.prm_loss) == (0, 0, 0)


@pytest.mark.parametrize(("n_prompts", "k"), [(1, 2), (1, 3), (2, 2), (1, 4)])
def test_no_false_alarm_where_terms_cancel(n_prompts, k):
    """Few completions, often equal, so that advantages, loss and gradients cancel, or nearly."""
    task, cancelled = load_task("treewalk"), 0
    for seed in range(6):
        model, rng = (
            make_model(TrainSettings(task="treewalk", seed=seed, dtype="float64"), task),
            np.random.default_rng(seed),
        )
        rollouts = sample(model, task.prompts(rng, n_prompts), k, rng, **sampling_limits(task))
        rewards = task.score(rollouts)
        for r, beta in product(
            (rewards, np.full(n_prompts * k, 0.7), np.arange(n_prompts * k)), (0.0, 0.04)
        ):
            result = check(model, rollouts, r, beta=beta)
            assert result.worst < 1e-12
            cancelled += bool(0 < abs(result.grpo_loss) < 1e-6)
    assert cancelled > 2


@pytest.mark.parametrize(
    "completions",
    [[[1, 1], [1, 1]], [[1, 1], [1, 2]], [[3], [3], [3]], [[0], [1]], [[2, 2, 2], [2]]],
)
@pytest.mark.parametrize("beta", [0.0, 0.04, 2.0])
def test_no_false_alarm_on_copies_and_single_tokens(completions, beta):
    """Copies with unequal rewards: Σ aᵢ of every node is 0, or a rounding on one side."""
    model = tiny_model()
    rollouts = rollouts_of([[1], [1, 1, 1]], [completions] * 2)
    for rewards in ([0.1, 0.7, 0.4], [0.3, 0.3, 0.3], [1e12, 1e12 + 1, 1e12 + 2]):
        assert (
            check(model, rollouts, np.array(rewards[: len(completions)] * 2), beta=beta).worst
            < 1e-12
        )


def test_no_false_alarm_after_training():
    """Where tokens are nearly certain, 1 - p and log π_ref - log π cancel too."""
    model = tiny_model()
    model.parameters["lm_head.weight"][...] *= 8
    rollouts, rewards = rollouts_and_rewards(model, group_size=3)
    for beta in (0.0, 0.04):
        assert check(model, rollouts, rewards, beta=beta).worst < 1e-12
    near = check(model, rollouts, rewards, step=1e-6)
    assert near.worst < 1e-12 and near.informative


def test_a_billionth_of_one_step_s_advantage_makes_the_check_fail():
    model = tiny_model()
    for k, prompts in ((8, PROMPTS), (2, [[1]]), (3, [[2, 3]])):
        rollouts, rewards = rollouts_and_rewards(model, prompts=prompts, group_size=k)
        rewards = np.arange(len(rewards)) % 3 / 2.0
        advantage = step_advantages(rollouts.tree, rewards)
        for node in np.flatnonzero(np.abs(advantage) > 0.1)[::7]:
            count = rollouts.tree.count.astype(float)
            count[node] *= 1 + 1e-9
            assert check(model, rollouts, rewards, count_of_node=count).worst > 1e-12


# -- the check itself ------------------------------------------------------------------------------


def test_one_reward_off_by_a_hundredth_makes_the_check_fail():
    model = tiny_model()
    rollouts, rewards = rollouts_and_rewards(model)
    for i in range(0, len(rewards), 5):
        wrong = rewards.copy()
        wrong[i] *= 1.01
        result = check(model, rollouts, rewards, prm_rewards=wrong)
        assert result.value_difference > 1e-6
        assert min(result.gradient_difference.values()) > 1e-6  # in every parameter
        assert (
            check(model, rollouts, wrong, prm_rewards=wrong).worst < 1e-12
        )  # no more than a difference of both sides


def test_one_count_off_by_a_hundredth_makes_the_check_fail():
    model = tiny_model()
    rollouts, rewards = rollouts_and_rewards(model)
    tree = rollouts.tree
    assert check(model, rollouts, rewards, count_of_node=tree.count).worst < 1e-12
    nodes = np.flatnonzero(tree.scored & (tree.count > 1))
    assert len(nodes) > 5
    for node in nodes:
        count = tree.count.astype(float)
        count[node] *= 1.01
        result = check(model, rollouts, rewards, count_of_node=count)
        assert result.worst > 1e-6
        assert max(result.gradient_difference.values()) > 1e-6


def test_counting_each_shared_step_once_is_another_objective():
    """λ-GRPO is not GRPO: with all |λ| = 1 on one side the check fails by far."""
    model = tiny_model()
    rollouts, rewards = rollouts_and_rewards(model)
    assert check(model, rollouts, rewards, count_of_node=np.ones(rollouts.tree.n_nodes)).worst > 0.1


def test_sequence_mean_breaks_the_theorem():
    """With 1/|y| for every completion the gradients of GRPO and of the PRM differ."""
    model = tiny_model()
    rollouts, rewards = rollouts_and_rewards(model)
    tree = rollouts.tree

    def gradient(objective):
        model.gradients.flat[:] = 0
        _, dlogp = objective(rollouts, rewards, model.forward(tree), rollouts.logp)
        model.backward(dlogp)
        return model.gradients.flat.copy()

    for aggregation, differs in (("group_token_mean", False), ("sequence_mean", True)):
        grpo, prm = (
            gradient(Objective.preset(name, aggregation=aggregation)) for name in ("grpo", "prm")
        )
        assert (relative(prm, grpo) > 1e-3) == differs
        assert differs or relative(prm, grpo) < 1e-12


def test_the_model_is_left_as_it_was():
    model = tiny_model()
    rollouts, rewards = rollouts_and_rewards(model)
    before = model.parameters.flat.copy()
    model.gradients.flat[:] = 3.0
    first = check(model, rollouts, rewards)
    np.testing.assert_array_equal(model.parameters.flat, before)
    assert not model.gradients.flat.any()
    assert check(model, rollouts, rewards) == first  # the same seed, the same check
    model.gradients.flat[:] = 3.0
    for wrong in (rewards[:-1], np.full_like(rewards, np.nan)):
        with pytest.raises(ValueError, match="reward"):
            check(model, rollouts, rewards, prm_rewards=wrong)
        np.testing.assert_array_equal(model.parameters.flat, before)
        assert not model.gradients.flat.any()
