"""Wrong answers to the exercises of chapter 5: functions <function>__<mistake>.

The docstring has the texts that the message must contain, separated by |.
"""

import numpy as np

RIGHT = [
    ([0, 1, 2, 3, 4], 0, 0),
    ([0, 1, 2, 3], 0, 1),
    ([0, 1, 2], 1, 2),
    ([0, 2], 2, 4),
    ([1], 2, 3),
    ([4], 0, 2),
]


def _sets(completions):
    return [
        [[j for j, o in enumerate(completions) if o[: t + 1] == c[: t + 1]] for t in range(len(c))]
        for c in completions
    ]


def _hat(completions, r):
    return [np.array([r[s].mean() for s in sets]) for sets in _sets(completions)]


def process_sets_by_hand__any_subset():
    """[0, 1] | completion 2 begins with 'ab', too | *all*"""
    return [*RIGHT[:2], ([0, 1], 1, 2)]


def process_sets_by_hand__copies_apart():
    """[0] | completion 2 begins with 'abcd', too"""
    return [*RIGHT[:3], ([0], 2, 4), ([2], 2, 4)]


def process_sets_by_hand__from_the_start():
    """[0, 1, 2] | got 0 to 2 | the parent's step"""
    return [*RIGHT[:2], ([0, 1, 2], 0, 2), *RIGHT[3:]]


def process_sets_by_hand__end_included():
    """got 1 to 1 | end is not included"""
    return [*RIGHT[:2], ([0, 1, 2], 1, 1), *RIGHT[3:]]


def process_sets_by_hand__leaf_of_the_short_one():
    """[3] | ends inside of the tree"""
    return [*RIGHT, ([3], 0, 1)]


def process_sets_by_hand__no_root():
    """expected 6 process sets, got 5 | the whole group"""
    return RIGHT[1:]


def process_set__before_t(completions, i, t):
    """t = 0 | they must share position t as well"""
    return [j for j, c in enumerate(completions) if c[:t] == completions[i][:t]]


def process_set__same_token(completions, i, t):
    """not all of them began alike"""
    return [j for j, c in enumerate(completions) if c[t : t + 1] == completions[i][t : t + 1]]


def process_set__zip_stops(completions, i, t):
    """has ended before position"""
    return [
        j
        for j, c in enumerate(completions)
        if all(a == b for a, b in zip(c, completions[i][: t + 1], strict=False))
    ]


def process_set__without_itself(completions, i, t):
    """it is a member"""
    return [
        j for j, c in enumerate(completions) if j != i and c[: t + 1] == completions[i][: t + 1]
    ]


def counts__shifted(completions):
    """completion 0, position 0 | one position later"""
    return [
        np.array([sum(o[:t] == c[:t] for o in completions) for t in range(len(c))])
        for c in completions
    ]


def counts__copies_once(completions):
    """[[1, 2], [1, 3], [1, 2], [1, 2, 4]] | equal completions are counted once"""
    return [
        np.array([len({tuple(completions[j]) for j in s}) for s in sets])
        for sets in _sets(completions)
    ]


def counts__weights(completions):
    """1/|λ|"""
    return [np.array([1 / len(s) for s in sets]) for sets in _sets(completions)]


def counts__dictionary_of_texts(completions):
    """a list of 4 arrays, got 3 | equal completions count each"""
    return list(
        {
            tuple(c): np.array([len(s) for s in sets])
            for c, sets in zip(completions, _sets(completions), strict=True)
        }.values()
    )


def step_rewards__sum(completions, rewards):
    """take the mean"""
    return [np.array([rewards[s].sum() for s in sets]) for sets in _sets(completions)]


def step_rewards__own(completions, rewards):
    """GRPO as it is written"""
    return [np.full(len(c), r) for c, r in zip(completions, rewards, strict=True)]


def step_rewards__copies_once(completions, rewards):
    """of equal completions only one"""
    first = {tuple(c): i for i, c in reversed(list(enumerate(completions)))}
    keep = sorted(first.values())
    return [
        np.array([rewards[[j for j in s if j in keep]].mean() for s in sets])
        for sets in _sets(completions)
    ]


def step_advantages__population_std(completions, rewards):
    """ddof=1"""
    return [(r - rewards.mean()) / (rewards.std() + 1e-4) for r in _hat(completions, rewards)]


def step_advantages__std_of_steps(completions, rewards):
    """not of the step rewards"""
    everything = np.concatenate(_hat(completions, rewards))
    return [
        (r - everything.mean()) / (everything.std(ddof=1) + 1e-4)
        for r in _hat(completions, rewards)
    ]


def step_advantages__not_scaled(completions, rewards):
    """only centred"""
    return [r - rewards.mean() for r in _hat(completions, rewards)]


def _terms(completions, rewards, ratios, n):
    scale = rewards.std(ddof=1) + 1e-4
    grpo = [
        p * (r - rewards.mean()) / scale / m for p, r, m in zip(ratios, rewards, n, strict=True)
    ]
    hat = _hat(completions, rewards)
    return grpo, [
        p * (r - rewards.mean()) / scale / m for p, r, m in zip(ratios, hat, n, strict=True)
    ]


def theorem_terms__sequence_mean(completions, rewards, ratios):
    """in grpo: | token-mean"""
    return _terms(
        completions, rewards, ratios, [len(completions) * max(len(c), 1) for c in completions]
    )


def theorem_terms__no_ratio(completions, rewards, ratios):
    """the ratio is missing"""
    n = sum(map(len, completions))
    return _terms(
        completions, rewards, [np.ones(len(c)) for c in completions], [n] * len(completions)
    )


def theorem_terms__the_same_twice(completions, rewards, ratios):
    """in prm: | a_i stands here in place of Â(i,t)"""
    grpo, _ = _terms(completions, rewards, ratios, [sum(map(len, completions))] * len(completions))
    return grpo, grpo


def process_set__one_more(completions, i, t):
    """share position t + 1 as well"""
    return [j for j, c in enumerate(completions) if c[: t + 2] == completions[i][: t + 2]]


def process_set__without_copies(completions, i, t):
    """copies of completion i are left out"""
    sets = [j for j, c in enumerate(completions) if c[: t + 1] == completions[i][: t + 1]]
    return [j for j in sets if j == i or completions[j] != completions[i]]


def counts__share_of_the_group(completions):
    """a count is asked for"""
    return [np.array([len(s) for s in sets]) / len(completions) for sets in _sets(completions)]


def counts__without_itself(completions):
    """off by the same -1"""
    return [np.array([len(s) - 1 for s in sets]) for sets in _sets(completions)]


def step_rewards__divided_by_k(completions, rewards):
    """by the number of members"""
    return [
        np.array([rewards[s].sum() for s in sets]) / len(rewards) for sets in _sets(completions)
    ]


def step_rewards__shifted(completions, rewards):
    """one position later"""
    rows = [np.append(rewards.mean(), row) for row in _hat(completions, rewards)]
    return [row[:-1] for row in rows]


def _step_advantages(completions, rewards, ddof=1, eps=1e-4):
    std = rewards.std(ddof=ddof) + eps
    return [(row - rewards.mean()) / std for row in _hat(completions, rewards)]


def step_advantages__divided_by_the_count(completions, rewards):
    """do not divide by |λ| again"""
    hat = _step_advantages(completions, rewards)
    return [
        a / np.array([len(s) for s in sets])
        for a, sets in zip(hat, _sets(completions), strict=True)
    ]


def step_advantages__no_eps(completions, rewards):
    """1e-4 is missing"""
    return _step_advantages(completions, rewards, eps=0.0)


def step_advantages__own(completions, rewards):
    """a_i alone"""
    a = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
    return [np.full(len(c), x) for c, x in zip(completions, a, strict=True)]


def step_advantages__sums(completions, rewards):
    """Σ a_i over the members"""
    hat = _step_advantages(completions, rewards)
    return [
        a * np.array([len(s) for s in sets])
        for a, sets in zip(hat, _sets(completions), strict=True)
    ]


def step_advantages__copies_once(completions, rewards):
    """equal completions are counted once"""
    first = {tuple(c): i for i, c in reversed(list(enumerate(completions)))}
    a = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
    return [
        np.array([a[[j for j in s if j in first.values()]].mean() for s in sets])
        for sets in _sets(completions)
    ]


def theorem_terms__padded(completions, rewards, ratios):
    """in grpo: | paths.size"""
    k = len(completions)
    return _terms(completions, rewards, ratios, [k * max(map(len, completions))] * k)


def theorem_terms__over_nodes(completions, rewards, ratios):
    """in grpo: | number of nodes"""
    n = len({tuple(c[: t + 1]) for c in completions for t in range(len(c))})
    return _terms(completions, rewards, ratios, [n] * len(completions))


def theorem_terms__divided_by_the_count(completions, rewards, ratios):
    """in prm: | do not divide by |λ| again"""
    grpo, prm = _terms(
        completions, rewards, ratios, [sum(map(len, completions))] * len(completions)
    )
    return grpo, [
        x / np.array([len(s) for s in sets])
        for x, sets in zip(prm, _sets(completions), strict=True)
    ]


def process_set__joined(completions, i, t):
    """tokens are joined to a text"""
    texts = ["".join(map(str, c)) for c in completions]
    begin = "".join(map(str, completions[i][: t + 1]))
    return [j for j, text in enumerate(texts) if text.startswith(begin)]


def process_set__flags(completions, i, t):
    """expected the list [0, 1, 3], got list [True, True, False, True] | a list of ints"""
    return [c[: t + 1] == completions[i][: t + 1] for c in completions]


def counts__joined(completions):
    """compare tuples"""
    texts = ["".join(map(str, c)) for c in completions]
    begins = [["".join(map(str, c[: t + 1])) for t in range(len(c))] for c in completions]
    return [np.array([sum(t.startswith(b) for t in texts) for b in row]) for row in begins]


def step_rewards__largest(completions, rewards):
    """the largest reward"""
    return [np.array([rewards[s].max() for s in sets]) for sets in _sets(completions)]


def step_rewards__last_copy(completions, rewards):
    """of equal completions only one"""
    keep = {tuple(c): i for i, c in enumerate(completions)}.values()
    return [
        np.array([rewards[[j for j in s if j in keep]].mean() for s in sets])
        for sets in _sets(completions)
    ]


def theorem_terms__population_std(completions, rewards, ratios):
    """in grpo | ddof=1"""
    a = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    n = sum(map(len, completions))
    grpo = [p * x / n for p, x in zip(ratios, a, strict=True)]
    return grpo, [p * x / n for p, x in zip(ratios, _hat(completions, a), strict=True)]
