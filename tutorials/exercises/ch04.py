"""Exercises of chapter 4, GRPO from scratch.

Fill in the functions, then run: minigrpo check ch04

Shapes: G groups, k completions in each, T tokens.
"""

import numpy as np  # noqa: F401 (you will need it)


def group_advantages(rewards):
    """ch04 task 1: advantages of groups.   rewards (G,k) -> (G,k)

    a = (r - mean) / (std + 1e-4), with mean and std of each group.  std is the *sample's*: divide
    by k - 1 under the root.  Where all rewards of a group are equal the advantage is exactly 0
    (mean(r) may differ from r by a rounding).

    >>> group_advantages(np.array([[1.0, 0.0]])).round(3).tolist()
    [[0.707, -0.707]]
    """
    raise NotImplementedError("ch04 task 1: advantages of groups")


def clipped_loss(logp, old, advantage, low, high):
    """ch04 task 2: clipped loss and its gradient.   logp, old, advantage (T,), low and high numbers
    -> (loss, dlogp (T,))

    With ρ = exp(logp - old), token by token,

        loss = - mean over tokens of min( ρ·a, clip(ρ, 1 - low, 1 + high)·a )

    and dlogp = d loss / d logp.  Where the clipped branch is the smaller one, it is a constant.

    >>> loss, dlogp = clipped_loss(np.zeros(2), np.zeros(2), np.array([1.0, -1.0]), 0.2, 0.2)
    >>> float(loss) + 0.0, dlogp.tolist()  # the loss is 0 while the gradient is not
    (0.0, [-0.5, 0.5])
    """
    raise NotImplementedError("ch04 task 2: clipped loss and its gradient")


def kl_estimates(logp, ref):
    """ch04 task 3: three KL estimates.   logp, ref (T,) -> (3,T)

    With x = log π_ref - log π at tokens drawn from π:  k1 = -x,  k2 = x²/2,  k3 = exp(x) - x - 1.
    Return the rows k1, k2, k3.

    >>> kl_estimates(np.array([0.0]), np.array([1.0])).round(3).tolist()
    [[-1.0], [0.5], [0.718]]
    """
    raise NotImplementedError("ch04 task 3: three KL estimates")


def dead_groups(rewards):
    """ch04 task 4: dead groups.   rewards (G,k) -> (G,) bool

    A group is dead if all its advantages are 0, whatever the rewards are: it teaches nothing.
    Rewards may be any floats.

    >>> dead_groups(np.array([[1.0, 1.0], [1.0, 0.0]])).tolist()
    [True, False]
    """
    raise NotImplementedError("ch04 task 4: dead groups")


def token_weights(lengths, aggregation, limit):
    """ch04 task 5: length bias.   lengths (k,) int, aggregation a name, limit an int -> (k,)

    Return the weight of one token of completion i in the loss of its group, by aggregation:

        "sequence_mean"     mean over the tokens of a completion, then over completions (first GRPO)
        "group_token_mean"  mean over all tokens of the group (DAPO, and the paper's theorem)
        "constant"          sum over the tokens of a completion divided by limit, then the mean over
                            completions (Dr. GRPO)

    A completion may be empty: it has no token, so its weight does not matter, but there must be no
    division by 0.

    >>> token_weights(np.array([1, 3]), "sequence_mean", 4).round(3).tolist()
    [0.5, 0.167]
    """
    raise NotImplementedError("ch04 task 5: length bias")
