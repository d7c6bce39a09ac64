"""The Monte-Carlo PRM: the value of a step, from fresh rollouts that begin where the step ends.

GRPO's hidden PRM reads its values off the group itself (`rewards.step_rewards`); this one spends
more rollouts on them, as VinePPO does (arXiv:2410.01679).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, groupby

import numpy as np

from minigrpo.rewards import check_rewards, step_rewards
from minigrpo.sampler import sample
from minigrpo.transformer import Transformer
from minigrpo.tree import PrefixTree, Rollouts


def monte_carlo_step_rewards(
    model: Transformer,
    rollouts: Rollouts,
    rewards: np.ndarray,
    score: Callable[[Rollouts], np.ndarray],
    n_rollouts: int,
    rng: np.random.Generator,
    *,
    eos: int | None = None,
) -> np.ndarray:
    """V̂(step) = mean outcome of n_rollouts fresh completions from the end of the step.   -> (N,)

    All nodes of a step get its value.  A step that ends a completion gets that completion's own
    outcome, which is exact if outcomes are a function of the text.  Prompt nodes get 0.
    Raises ValueError as `step_rewards` and `sample` do.
    >>> (model, task), rng = mg.make_policy(mg.TrainSettings()), np.random.default_rng(0)
    >>> rollouts = mg.sample(model, task.prompts(rng, 1), 4, rng, max_new_tokens=4)
    >>> found = task.score(rollouts)
    >>> values = mg.monte_carlo_step_rewards(model, rollouts, found, task.score, 8, rng)
    """
    tree, values = rollouts.tree, step_rewards(rollouts.tree, rewards)
    completions = list(chain(*rollouts.completions))
    steps = [  # (prompt, tokens up to the end of the step, nodes of the step)
        (rollouts.prompts[group], completions[step.members[0]][: step.end], list(step.nodes))
        for group in range(tree.n_groups)
        for step in tree.steps(group)
        if step.nodes and (tree.lengths[list(step.members)] > step.end).all()
    ]
    if not steps:
        return values

    def begun_length(step: tuple) -> int:
        return len(step[1])

    steps.sort(key=begun_length, reverse=True)
    finished, truncated = [], []
    for length, alike in groupby(steps, begun_length):  # as many tokens are left to all of them
        begun = [(prompt, tokens) for prompt, tokens, _ in alike]
        more = sample(
            model,
            [np.concatenate(both) for both in begun],
            n_rollouts,
            rng,
            max_new_tokens=rollouts.max_new_tokens - length,
            eos=eos,
            temperature=rollouts.temperature,
        )
        for (_, tokens), ends in zip(begun, more.completions, strict=True):
            finished.append([np.concatenate([tokens, end]) for end in ends])
        truncated.append(more.truncated)
    prompts = [prompt for prompt, _, _ in steps]
    tree = PrefixTree.from_groups(prompts, finished)
    unknown = np.zeros(tree.n_nodes)
    limits = (rollouts.temperature, rollouts.max_new_tokens)
    whole = Rollouts(prompts, finished, tree, unknown, unknown, np.concatenate(truncated), *limits)
    outcome = check_rewards(score(whole), tree).reshape(len(steps), n_rollouts)
    for (_, _, nodes), value in zip(steps, outcome.mean(1), strict=True):
        values[nodes] = value
    return values
