"""Exercises of chapter 5, a group is a tree.

Fill in the functions, then run: minigrpo check ch05

A group has k completions, each a list of tokens (here ints), and k rewards.  Completions and
positions are numbered from 0.  λ(i,t) is the process set of token t of completion i: all that share
completion i up to and including position t.  Completions may be equal, may be the beginning of
another, and may be empty.  "A list of arrays" has one array per completion, with one number per
token.
"""

import numpy as np  # noqa: F401 (you will need it)


def process_sets_by_hand():
    """ch05 task 1: process sets by hand.   -> list of (members, start, end)

    Use a pencil.  These are five completions:

        0:  a b c d
        1:  a b e
        2:  a b c d
        3:  a
        4:  f b

    Return every process set once, the whole group included, as (members, start, end): members a
    list of completions, and start ≤ t < end the positions that exactly these members share after
    those that their parent shares.  The order is free.  In the example the whole group comes first:
    it shares nothing, so its step is empty.

    >>> process_sets_by_hand()[0]
    ([0, 1, 2, 3, 4], 0, 0)
    """
    raise NotImplementedError("ch05 task 1: process sets by hand")


def process_set(completions, i, t):
    """ch05 task 2: process set of a token.   completions k lists of tokens, i and t ints
    -> list of ints, ascending

    λ(i,t): all completions that agree with completion i up to and including position t (which it
    has).

    >>> process_set([[1, 2, 3], [1, 2, 4], [1, 5]], 0, 1)
    [0, 1]
    """
    raise NotImplementedError("ch05 task 2: process set of a token")


def counts(completions):
    """ch05 task 3: |λ| of every token.   completions k lists of tokens -> list of k arrays

    >>> [c.tolist() for c in counts([[1, 2, 3], [1, 2, 4], [1, 5]])]
    [[3, 2, 1], [3, 2, 1], [3, 1]]
    """
    raise NotImplementedError("ch05 task 3: |λ| of every token")


def step_rewards(completions, rewards):
    """ch05 task 4: step rewards.   completions k lists of tokens, rewards (k,) -> list of k arrays

    R̂(i,t) = the mean reward of the members of λ(i,t).

    >>> [r.tolist() for r in step_rewards([[1, 2], [1, 3]], np.array([1.0, 0.0]))]
    [[0.5, 1.0], [0.5, 0.0]]
    """
    raise NotImplementedError("ch05 task 4: step rewards")


def step_advantages(completions, rewards):
    """ch05 task 5: hidden process advantages.   completions k lists of tokens, rewards (k,)
    -> list of k arrays

    Â(i,t) = (R̂(i,t) - mean(r)) / (std(r) + 1e-4), with mean and sample std (ddof=1) of the k
    outcome rewards.

    >>> [a.round(3).tolist() for a in step_advantages([[1, 2], [1, 3]], np.array([1.0, 0.0]))]
    [[0.0, 0.707], [0.0, -0.707]]
    """
    raise NotImplementedError("ch05 task 5: hidden process advantages")


def theorem_terms(completions, rewards, ratios):
    """ch05 task 6: the two sides of Theorem 1.   completions k lists, rewards (k,),
    ratios a list of k arrays -> (grpo, prm)

    ratios holds ρ(i,t), which is the same for all members of a process set.  Return two lists of k
    arrays, the terms

        grpo(i,t) = ρ(i,t)·a_i / Σ|y|        prm(i,t) = ρ(i,t)·Â(i,t) / Σ|y|

    where Σ|y| is the number of tokens of the whole group and a_i = (r_i - mean) / (std + 1e-4), std
    as above.  The terms differ; Theorem 1 says that their sums do not.  Print both sums.

    >>> ratios = [np.array([2.0, 0.5]), np.array([2.0, 1.0])]
    >>> grpo, prm = theorem_terms([[1, 2], [1, 3]], np.array([1.0, 0.0]), ratios)
    >>> [g.round(3).tolist() for g in grpo], [p.round(3).tolist() for p in prm]
    ([[0.354, 0.088], [-0.354, -0.177]], [[0.0, 0.088], [0.0, -0.177]])
    """
    raise NotImplementedError("ch05 task 6: the two sides of Theorem 1")
