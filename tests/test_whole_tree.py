"""The tree walk's policy as a whole is the policy: the same completions, probabilities and gradients as the usual way gives."""

import numpy as np
import pytest
from helpers import relative, tiny_model

from minigrpo import sample
from minigrpo.experiments.whole_tree import WholeTree
from minigrpo.gradients import compute_gradients
from minigrpo.objectives import Objective
from minigrpo.plan import split_tree


def whole(seed=0, vocab_size=3, depth=4, prompt=(1, 0), **shape):
    policy = WholeTree(tiny_model(seed=seed, vocab_size=vocab_size, **shape), np.array(prompt), depth)
    policy.look()
    return policy


@pytest.mark.parametrize("begun", [[[]], [[2], [0], [2]], [[1, 2, 0], [0, 0, 0]]])
def test_draws_what_the_sampler_draws(begun):
    for seed in range(10):
        policy = whole(seed)
        prompts = [np.array([1, 0, *tokens], dtype=np.int64) for tokens in begun]
        limits = {"max_new_tokens": 4 - len(begun[0])}
        usual = sample(policy.model, prompts, 9, np.random.default_rng(seed), **limits)
        found = policy.sample(prompts, 9, np.random.default_rng(seed), **limits)
        np.testing.assert_array_equal(found.tree.token, usual.tree.token)
        np.testing.assert_array_equal(found.tree.paths, usual.tree.paths)
        np.testing.assert_allclose(found.logp, usual.logp, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.entropy, usual.entropy, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(found.truncated, usual.truncated)


@pytest.mark.parametrize("preset", ["grpo", "lambda_grpo", "dr_grpo", "rloo", "prm"])
def test_gradient_is_that_of_the_rollouts_own_tree(preset):
    policy, rng = whole(), np.random.default_rng(0)
    rollouts = policy.sample([policy.prompt], 12, rng, max_new_tokens=4)
    objective = Objective.preset(preset)
    coefficients = objective.coefficients(rollouts, rng.choice([-1.0, 0.7, 1.0], size=12))
    gradients = []
    for _ in range(2):  # the second needs a forward pass of its own
        policy.learn(rollouts, objective, coefficients)
        gradients.append(policy.model.gradients.flat.copy())
    compute_gradients(policy.model, split_tree(rollouts.tree, 4096), objective, coefficients, 1.0, rollouts.logp)
    for found in gradients:
        assert relative(found, policy.model.gradients.flat) < 1e-12


def test_what_it_cannot_draw_is_refused():
    policy, rng = whole(), np.random.default_rng(0)
    for options in ({"max_new_tokens": 3}, {"max_new_tokens": 4, "eos": 0}, {"max_new_tokens": 4, "temperature": 0.5}):
        with pytest.raises(ValueError, match="a tree of 4 tokens is drawn from to its end"):
            policy.sample([policy.prompt], 2, rng, **options)
    with pytest.raises(ValueError, match="does not begin with the one of this tree"):
        policy.sample([np.array([0, 0])], 2, rng, max_new_tokens=4)
