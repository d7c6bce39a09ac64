"""Wrong answers to the exercises of chapter 6: functions <function>__<mistake>.

The docstring has the texts that the message must contain, separated by |.
"""

import numpy as np


def _sets(completions):
    return [
        [[j for j, o in enumerate(completions) if o[: t + 1] == c[: t + 1]] for t in range(len(c))]
        for c in completions
    ]


def _a(rewards, ddof=1):
    return (rewards - rewards.mean()) / (rewards.std(ddof=ddof) + 1e-4)


def push__own_advantage(completions, rewards):
    """a_i alone"""
    return [np.full(len(c), a) for c, a in zip(completions, _a(rewards), strict=True)]


def push__mean(completions, rewards):
    """completion 0, position 0 | the push of λ-GRPO"""
    return [np.array([_a(rewards)[s].mean() for s in sets]) for sets in _sets(completions)]


def push__population_std(completions, rewards):
    """ddof=1"""
    return [np.array([_a(rewards, 0)[s].sum() for s in sets]) for sets in _sets(completions)]


def push__of_a_loss(completions, rewards):
    """sign is flipped"""
    return [-np.array([_a(rewards)[s].sum() for s in sets]) for sets in _sets(completions)]


def lambda_weights__counts(completions):
    """one over them"""
    return [np.array([len(s) for s in sets]) for sets in _sets(completions)]


def lambda_weights__shifted(completions):
    """one position later"""
    return [
        np.array([1 / sum(o[:t] == c[:t] for o in completions) for t in range(len(c))])
        for c in completions
    ]


def lambda_weights__same_token(completions):
    """[7, 5, 3] | they must have begun alike"""
    return [
        np.array(
            [1 / sum(o[t : t + 1] == c[t : t + 1] for o in completions) for t in range(len(c))]
        )
        for c in completions
    ]


def flawed_group__flat():
    """none of its tokens is pushed down"""
    return [[1], [2], [3]], [1.0, 0.0, 0.0]


def flawed_group__end_too_strong():
    """expected a sum below 0 | its own end weighs more"""
    return [[1, 2, 3, 4], [1, 5], [1, 6], [7]], [1.0, -1.0, -1.0, 0.7]


def flawed_group__beginning_too_long():
    """under λ-GRPO: expected a sum above 0"""
    return [[1, 1, 1, 1, 1, 1, 2], *[[1, 1, 1, 1, 1, 1, 3]] * 6, [7], [8], [9]], [
        1.0,
        *[-1.0] * 6,
        0.9,
        0.9,
        0.9,
    ]


def flawed_group__two_best():
    """expected a single best completion, got 2"""
    return [[1, 2], [1, 3], [4]], [1.0, 0.0, 1.0]


def placebo_weights__within_completions(completions, rng):
    """within each completion only"""
    return [rng.permutation([1 / len(s) for s in sets]) for sets in _sets(completions)]


def placebo_weights__with_replacement(completions, rng):
    """once | with replacement"""
    pool = np.concatenate([[1 / len(s) for s in sets] for sets in _sets(completions)])
    return np.split(rng.choice(pool, len(pool)), np.cumsum([len(c) for c in completions])[:-1])


def placebo_weights__not_shuffled(completions, rng):
    """nothing is shuffled"""
    return [np.array([1 / len(s) for s in sets]) for sets in _sets(completions)]


def placebo_weights__own_generator(completions, rng):
    """the same placebo from the same seed | np.random"""
    pool = np.concatenate([[1 / len(s) for s in sets] for sets in _sets(completions)])
    placebo_weights__own_generator.calls = getattr(placebo_weights__own_generator, "calls", 0) + 1
    shuffled = np.random.default_rng(placebo_weights__own_generator.calls).permutation(pool)
    return np.split(shuffled, np.cumsum([len(c) for c in completions])[:-1])


def _steps(completions, rewards, ddof=1):
    sets = _sets(completions)
    R = [np.array([rewards[s].mean() for s in row]) for row in sets]
    A = [(row - rewards.mean()) / (rewards.std(ddof=ddof) + 1e-4) for row in R]
    size = [np.array([len(s) for s in row]) for row in sets]
    return R, A, [n * a for n, a in zip(size, A, strict=True)], size


def pushed_down__population_std(completions, rewards):
    """in A | ddof=1"""
    R, A, grpo, _ = _steps(completions, rewards, ddof=0)
    return R, A, grpo, A, []


def pushed_down__own_reward(completions, rewards):
    """in R | mean over all members"""
    _, A, grpo, _ = _steps(completions, rewards)
    return [np.full(len(c), r) for c, r in zip(completions, rewards, strict=True)], A, grpo, A, []


def pushed_down__both_alike(completions, rewards):
    """in grpo | once for each member"""
    R, A, _, _ = _steps(completions, rewards)
    return R, A, A, A, []


def pushed_down__divided_twice(completions, rewards):
    """in lambda_grpo | do not divide again"""
    R, A, grpo, size = _steps(completions, rewards)
    return R, A, grpo, [a / n for a, n in zip(A, size, strict=True)], []


def pushed_down__below_the_mean(completions, rewards):
    """expected down = [2, 3, 4], got [3, 4] | whoever shares a token"""
    R, A, grpo, _ = _steps(completions, rewards)
    return R, A, grpo, A, [i for i, r in enumerate(rewards) if r < rewards.mean()]


def pushed_down__alone_too(completions, rewards):
    """expected down = | its own alone"""
    R, A, grpo, _ = _steps(completions, rewards)
    return R, A, grpo, A, [i for i, a in enumerate(A) if (a < 0).any()]


def push__no_eps(completions, rewards):
    """1e-4 is missing"""
    a = (rewards - rewards.mean()) / rewards.std(ddof=1)
    return [np.array([a[s].sum() for s in sets]) for sets in _sets(completions)]


def push__sums_of_rewards(completions, rewards):
    """take advantages first"""
    return [np.array([rewards[s].sum() for s in sets]) for sets in _sets(completions)]


def push__divided_twice(completions, rewards):
    """do not divide by |λ| again"""
    a = _a(rewards)
    return [np.array([a[s].mean() / len(s) for s in sets]) for sets in _sets(completions)]


def push__copies_once(completions, rewards):
    """equal completions are counted once"""
    first = {tuple(c): i for i, c in reversed(list(enumerate(completions)))}.values()
    a = _a(rewards)
    return [
        np.array([a[[j for j in s if j in first]].sum() for s in sets])
        for sets in _sets(completions)
    ]


def lambda_weights__copies_once(completions):
    """equal completions are counted once"""
    return [
        np.array([1 / len({tuple(completions[j]) for j in s}) for s in sets])
        for sets in _sets(completions)
    ]


def lambda_weights__square_root(completions):
    """1/√|λ|"""
    return [np.array([len(s) ** -0.5 for s in sets]) for sets in _sets(completions)]


def lambda_weights__share(completions):
    """|λ|/k"""
    return [np.array([len(s) / len(completions) for s in sets]) for sets in _sets(completions)]


def lambda_weights__without_itself(completions):
    """is a member, too"""
    return [np.array([1 / max(len(s) - 1, 1) for s in sets]) for sets in _sets(completions)]


def pushed_down__no_eps(completions, rewards):
    """in A | 1e-4 is missing"""
    R, _, _, _ = _steps(completions, rewards)
    A = [(row - rewards.mean()) / rewards.std(ddof=1) for row in R]
    return R, A, A, A, []


def pushed_down__own_in_grpo(completions, rewards):
    """in grpo | a_i alone"""
    R, A, _, _ = _steps(completions, rewards)
    own = [np.full(len(c), a) for c, a in zip(completions, _a(rewards), strict=True)]
    return R, A, own, A, []


def pushed_down__grpo_twice(completions, rewards):
    """in lambda_grpo | |λ|·Â"""
    R, A, grpo, _ = _steps(completions, rewards)
    return R, A, grpo, grpo, []


def pushed_down__from_one(completions, rewards):
    """expected down = | from 0"""
    R, A, grpo, size = _steps(completions, rewards)
    down = [
        i + 1 for i, (n, a) in enumerate(zip(size, A, strict=True)) if ((n > 1) & (a < 0)).any()
    ]
    return R, A, grpo, A, down


def push__overwritten(completions, rewards):
    """the last member alone"""
    last = {}
    for c, a in zip(completions, _a(rewards), strict=True):
        last |= {tuple(c[: t + 1]): a for t in range(len(c))}
    return [[last[tuple(c[: t + 1])] for t in range(len(c))] for c in completions]


def push__last_copy(completions, rewards):
    """equal completions are counted once"""
    keep = {tuple(c): i for i, c in enumerate(completions)}.values()
    a = _a(rewards)
    return [[sum(a[j] for j in s if j in keep) for s in sets] for sets in _sets(completions)]
