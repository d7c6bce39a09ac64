"""Exercises of chapter 6, the flaw and the fix.

Fill in the functions, then run: minigrpo check ch06

A group has k completions, each a list of tokens (ints), and k rewards, not all equal.
a_i = (r_i - mean) / (std + 1e-4) with the sample std (ddof=1).  "A list of arrays" has one array
per completion, with one number per token.
"""

import numpy as np  # noqa: F401 (you will need it)


def push(completions, rewards):
    """ch06 task 1: push on a token.   completions k lists of tokens, rewards (k,)
    -> list of k arrays

    The push of GRPO on token t of completion i, at the sampling policy and leaving out 1/Σ|y|, is

        Σ a_j  over all j in λ(i,t)

    since log π of this token is in the objective once per member.  A positive push makes the token
    likelier.

    >>> [p.round(3).tolist() for p in push([[1, 2], [1, 3], [4]], np.array([1.0, 0.0, 0.0]))]
    [[0.577, 1.155], [0.577, -0.577], [-0.577]]
    """
    raise NotImplementedError("ch06 task 1: push on a token")


def lambda_weights(completions):
    """ch06 task 2: weights of λ-GRPO.   completions k lists of tokens -> list of k arrays

    1/|λ(i,t)|: the term of each token is divided by the number of completions that share it, so
    that a shared step counts once.

    >>> [w.tolist() for w in lambda_weights([[1, 2], [1, 3], [4]])]
    [[0.5, 1.0], [0.5, 1.0], [1.0]]
    """
    raise NotImplementedError("ch06 task 2: weights of λ-GRPO")


def flawed_group():
    """ch06 task 3: a group that shows the flaw.   -> (completions, rewards)

    Make up a group of 3 to 16 completions (lists of ints) in which the completion with the highest
    reward (a single one) is

    - pushed down as a whole by GRPO: the pushes of task 1, added up over its tokens, are below 0;
    - pushed up as a whole by λ-GRPO: the pushes, each divided by |λ|, add up to more than 0.

    A sum of pushes is a simple measure, not the change of the completion's probability: a push
    moves the rivals of its token as well (section 6.2).
    """
    raise NotImplementedError("ch06 task 3: a group that shows the flaw")


def placebo_weights(completions, rng):
    """ch06 task 4: a placebo.   completions k lists of tokens, rng a numpy Generator
    -> list of k arrays

    Does it matter which token has which weight, or only that the weights differ?  Take the weights
    1/|λ| of all tokens of the group and shuffle them over all tokens of the group: every weight is
    used once, and may go to any token of any completion.  Shuffle with rng, so that the same seed
    gives the same placebo.

    >>> weights = placebo_weights([[1, 2], [1, 3], [4]], np.random.default_rng(0))
    >>> sorted(np.concatenate(weights).tolist())
    [0.5, 0.5, 1.0, 1.0, 1.0]
    """
    raise NotImplementedError("ch06 task 4: a placebo")


def pushed_down(completions, rewards):
    """ch06 task 5: the paper's example.   completions, rewards -> (R, A, grpo, lambda_grpo, down)

    The first four are lists of k arrays, with a number for each token:

    - R: the step reward R̂, the mean of r_j over all j in λ(i,t);
    - A: the step advantage Â = (R̂ - mean(r)) / (std(r) + 1e-4);
    - grpo, lambda_grpo: the push of either objective on the token, that is |λ|·Â and Â.

    down is the list of the completions, counted from 0, that share a token which is pushed down:
    |λ| of 2 or more and Â < 0.

    The group below is that of the paper's authors.  Three completions share JKL; their mean reward
    is 0.33, and that of the group is 0.42.  So all three are pushed down there, even completion 2,
    which has the highest reward of all.  Added up over its tokens, GRPO pushes even this best
    completion down, and λ-GRPO up.

    >>> texts = ("ABCD", "ABEFHI", "JKLM", "JKLNQST", "JKLNQU", "VWYZ")
    >>> group = [[ord(letter) for letter in text] for text in texts]
    >>> R, A, grpo, lambda_grpo, down = pushed_down(group, np.array([0.5, 0.5, 1.0, 0.0, 0.0, 0.5]))
    >>> [values[2].round(2).tolist() for values in (R, A, grpo)]
    [[0.33, 0.33, 0.33, 1.0], [-0.22, -0.22, -0.22, 1.55], [-0.66, -0.66, -0.66, 1.55]]
    >>> [float(push[2].sum().round(2)) for push in (grpo, lambda_grpo)], down
    ([-0.44, 0.89], [2, 3, 4])
    """
    raise NotImplementedError("ch06 task 5: the paper's example")
