"""The PRM that the tree induces, and the Monte-Carlo PRM against exact values by enumeration."""

import numpy as np
import pytest
from helpers import random_group, rollouts_of, tiny_model

from minigrpo import PrefixTree, monte_carlo_step_rewards, sample, step_rewards
from minigrpo.rewards import check_rewards

LIMIT = 3


def walk_value(prompt, path):
    """An outcome reward for each of the paths, unlike for the two prompts; negative ones too."""
    return float(
        np.sin(3.0 + 2.1 * sum(int(t) << i for i, t in enumerate(path)) + len(path) + prompt[0]) * 2
    )


def score(rollouts):
    return np.array(
        [
            walk_value(p, y)
            for p, ys in zip(rollouts.prompts, rollouts.completions, strict=True)
            for y in ys
        ]
    )


def exact(model, prompt, prefix, eos, temperature):
    """(E r, Var r) over all continuations of prompt + prefix, from their exact probabilities."""
    outcomes = []

    def walk(path, probability):
        if len(path) == LIMIT or (path and path[-1] == eos):
            outcomes.append((probability, walk_value(prompt, path)))
            return
        logits = model.logits(np.array([*prompt, *path]))[-1] / temperature
        p = np.exp(logits - logits.max())
        for token, share in enumerate(p / p.sum()):
            walk([*path, token], probability * share)

    walk(list(prefix), 1.0)
    probability, value = np.array(outcomes).T
    mean = (probability * value).sum()
    return mean, (probability * (value - mean) ** 2).sum()


# -- the PRM that the tree induces -----------------------------------------------------------------


def test_step_rewards_equal_the_definition():
    """R̂(i,t) = mean of r_j over the group's completions j that share y_i through token t."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        prompts = [rng.integers(2, size=rng.integers(3)) for _ in range(3)]
        groups = [random_group(rng, rng.integers(1, 7)) for _ in prompts]
        tree = PrefixTree.from_groups(prompts, groups)
        rewards = rng.standard_normal(len(tree.paths))
        values, first = step_rewards(tree, rewards), 0
        assert values.dtype == np.float64
        assert not values[tree.group < 0].any()
        for group in groups:
            for i, y in enumerate(group):
                for t in range(len(y)):
                    same = [
                        rewards[first + j]
                        for j, z in enumerate(group)
                        if len(z) > t and list(z[: t + 1]) == list(y[: t + 1])
                    ]
                    np.testing.assert_allclose(
                        values[tree.paths[first + i, t]], np.mean(same), rtol=1e-12, atol=1e-15
                    )
            first += len(group)


def test_check_rewards():
    tree = PrefixTree.from_groups([[1], [2]], [[[1]], [[1], [2], [3]]])
    assert check_rewards([1, 2, 3, 4], tree).dtype == np.float64
    for wrong in ([1, 2, 3], [1, 2, 3, 4, 5], [[1, 2, 3, 4]], 1.0, None):
        with pytest.raises(ValueError, match="4 completions need as many rewards"):
            check_rewards(wrong, tree)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(
            ValueError, match=r"completion 1 of prompt 1 is -?(nan|inf): rewards must be finite"
        ):
            step_rewards(tree, [1, 2, bad, np.nan])


# -- the Monte-Carlo PRM ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocab_size", "eos", "temperature"), [(2, None, 1.0), (3, 2, 1.0), (2, None, 1.8)]
)
def test_monte_carlo_converges_to_the_exact_value_of_each_step(vocab_size, eos, temperature):
    """All nodes of a step have the value of the prefix at its end, within four standard errors."""
    model = tiny_model(vocab_size=vocab_size, seed=16)
    n_rollouts = 4000
    rollouts = sample(
        model,
        [[1], [0]],
        12,
        np.random.default_rng(1),
        max_new_tokens=LIMIT,
        eos=eos,
        temperature=temperature,
    )
    tree, rewards = rollouts.tree, score(rollouts)
    values = monte_carlo_step_rewards(
        model, rollouts, rewards, score, n_rollouts, np.random.default_rng(2), eos=eos
    )
    inner, errors = 0, []
    for group, prompt in enumerate([[1], [0]]):
        for step in (s for s in tree.steps(group) if s.nodes):
            prefix = rollouts.completions[group][step.members[0] - 12 * group][: step.end]
            mean, variance = exact(model, prompt, prefix, eos, temperature)
            if variance == 0:
                np.testing.assert_allclose(
                    values[list(step.nodes)], mean, rtol=1e-13
                )  # it ends a completion: exact
            else:
                inner += 1
                errors.append((values[list(step.nodes)] - mean) / np.sqrt(variance / n_rollouts))
    assert inner >= 6
    assert np.abs(np.concatenate(errors)).max() < 4
    assert np.concatenate(errors).any()
    assert not values[tree.group < 0].any()


def test_monte_carlo_asks_for_what_it_should():
    """n completions from the end of each inner step alone, with their own prompt and limit."""
    model = tiny_model(vocab_size=2, seed=5)
    rollouts = sample(model, [[1], [0, 1]], 8, np.random.default_rng(1), max_new_tokens=5)
    asked = []

    def watching(more):
        assert more.max_new_tokens == 5
        assert more.truncated.shape == (len(more.prompts) * 7,)
        for prompt, completions in zip(more.prompts, more.completions, strict=True):
            assert len(completions) == 7
            assert {len(y) for y in completions} == {5}
            asked.append((prompt.tolist(), completions))
        assert more.tree.lengths.tolist() == [5] * 7 * len(more.prompts)
        return score(more)

    values = monte_carlo_step_rewards(
        model, rollouts, score(rollouts), watching, 7, np.random.default_rng(0)
    )
    expected = []
    for group, prompt in enumerate([[1], [0, 1]]):
        for step in rollouts.tree.steps(group):
            if step.nodes and step.end < 5:
                begun = rollouts.completions[group][step.members[0] - 8 * group][
                    : step.end
                ].tolist()
                expected.append((prompt, begun, step.nodes))
    assert len(asked) == len(expected) > 4
    for prompt, begun, nodes in expected:
        found = [
            ys
            for p, ys in asked
            if p == prompt and all(y[: len(begun)].tolist() == begun for y in ys)
        ]
        means = [np.mean([walk_value(prompt, y) for y in ys]) for ys in found]
        assert any(np.allclose(values[list(nodes)], mean, rtol=1e-13) for mean in means)


def test_monte_carlo_of_a_reward_that_is_known_early_has_no_variance():
    """The outcome is the first token, so one rollout from the end of any step knows it."""
    model = tiny_model(vocab_size=2, seed=5)
    rollouts = sample(model, [[1]], 12, np.random.default_rng(0), max_new_tokens=4)

    def first_token(r):
        return np.array([float(y[0]) for ys in r.completions for y in ys])

    values = monte_carlo_step_rewards(
        model, rollouts, first_token(rollouts), first_token, 1, np.random.default_rng(0)
    )
    on_tokens = rollouts.tree.on_tokens(values)
    assert {0.0, 1.0} == set(on_tokens[:, 0])
    assert (on_tokens == on_tokens[:, :1]).all()


def test_monte_carlo_without_inner_steps_and_with_bad_input():
    model = tiny_model(vocab_size=2)
    rng = np.random.default_rng(0)
    rollouts = rollouts_of([np.array([1])], [[np.array([0]), np.array([1])]])
    values = monte_carlo_step_rewards(
        model, rollouts, [3.0, 4.0], lambda _: pytest.fail("nothing to sample"), 5, rng
    )
    assert values[rollouts.tree.paths[:, 0]].tolist() == [3.0, 4.0]
    rollouts = sample(model, [[1]], 8, rng, max_new_tokens=3)
    with pytest.raises(ValueError, match="8 completions need as many rewards"):
        monte_carlo_step_rewards(model, rollouts, [1.0], score, 5, rng)
    with pytest.raises(ValueError, match="rewards must be finite"):
        monte_carlo_step_rewards(
            model, rollouts, np.ones(8), lambda r: np.full(len(r.truncated), np.nan), 5, rng
        )
    with pytest.raises(ValueError, match="at least 1"):
        monte_carlo_step_rewards(model, rollouts, np.ones(8), score, 0, rng)


def test_prompt_nodes_have_no_process_reward():
    tree = PrefixTree.from_groups([[1, 2]], [[[3], [4]]])
    assert step_rewards(tree, [2.0, 4.0]).tolist() == [0.0, 0.0, 2.0, 4.0]
