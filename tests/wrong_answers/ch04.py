"""Wrong answers to the exercises of chapter 4: functions <function>__<mistake>.

The docstring has the texts that the message must contain, separated by |.
"""

import numpy as np


def group_advantages__population_std(rewards):
    """population's standard deviation | ddof=1"""
    return (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, keepdims=True) + 1e-4)


def group_advantages__whole_batch(rewards):
    """each group has its own"""
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)


def group_advantages__leave_one_out(rewards):
    """RLOO"""
    k = rewards.shape[1]
    others = (rewards.sum(1, keepdims=True) - rewards) / (k - 1)
    return (rewards - others) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)


def group_advantages__not_exactly_0(rewards):
    """group 1: expected exactly 0 | rounding"""
    return (rewards - rewards.mean(1, keepdims=True)) / (
        rewards.std(1, ddof=1, keepdims=True) + 1e-4
    )


def group_advantages__no_eps(rewards):
    """1e-4"""
    return (rewards - rewards.mean(1, keepdims=True)) / rewards.std(1, ddof=1, keepdims=True)


def _clipped(logp, old, a, low, high):
    ratio = np.exp(logp - old)
    return (
        ratio,
        np.clip(ratio, 1 - low, 1 + high),
        -np.minimum(ratio * a, np.clip(ratio, 1 - low, 1 + high) * a).mean(),
    )


def clipped_loss__clip_without_min(logp, old, advantage, low, high):
    """in loss: | whatever the sign of a"""
    ratio, clipped, _ = _clipped(logp, old, advantage, low, high)
    return -(clipped * advantage).mean(), -np.where(ratio == clipped, ratio * advantage, 0) / len(
        ratio
    )


def clipped_loss__gradient_ignores_the_sign(logp, old, advantage, low, high):
    """in dlogp: at token | look at the sign of a"""
    ratio, clipped, loss = _clipped(logp, old, advantage, low, high)
    return loss, -np.where(ratio == clipped, ratio * advantage, 0) / len(ratio)


def clipped_loss__objective(logp, old, advantage, low, high):
    """the loss is its negative"""
    ratio, clipped, loss = _clipped(logp, old, advantage, low, high)
    return -loss, np.where(ratio * advantage <= clipped * advantage, ratio * advantage, 0) / len(
        ratio
    )


def clipped_loss__sum(logp, old, advantage, low, high):
    """take the mean"""
    ratio, clipped, loss = _clipped(logp, old, advantage, low, high)
    return loss * len(ratio), -np.where(
        ratio * advantage <= clipped * advantage, ratio * advantage, 0
    )


def clipped_loss__ratio_missing(logp, old, advantage, low, high):
    """the ratio is missing"""
    ratio, clipped, loss = _clipped(logp, old, advantage, low, high)
    return loss, -np.where(ratio * advantage <= clipped * advantage, advantage, 0) / len(ratio)


def clipped_loss__only_the_loss(logp, old, advantage, low, high):
    """expected 2 things, (loss, dlogp)"""
    return _clipped(logp, old, advantage, low, high)[2]


def kl_estimates__reversed(logp, ref):
    """in k1: | x has the wrong sign"""
    x = logp - ref
    return np.stack([-x, x * x / 2, np.exp(x) - x - 1])


def kl_estimates__no_half(logp, ref):
    """in k2: | half is missing"""
    x = ref - logp
    return np.stack([-x, x * x, np.exp(x) - x - 1])


def kl_estimates__k3_not_0_at_0(logp, ref):
    """in k3: | - 1 is missing"""
    x = ref - logp
    return np.stack([-x, x * x / 2, np.exp(x) - x])


def dead_groups__std_is_0(rewards):
    """group 3: expected True, got False | not exactly 0.3"""
    return rewards.std(1, ddof=1) == 0


def dead_groups__all_wrong(rewards):
    """all right is as dead"""
    return (rewards == 0).all(1)


def dead_groups__nearly_equal(rewards):
    """still differ"""
    return np.isclose(rewards, rewards[:, :1]).all(1)


def token_weights__swapped(lengths, aggregation, limit):
    """these are the weights of 'group_token_mean'"""
    k, n = len(lengths), np.maximum(lengths, 1)
    return {"group_token_mean": 1 / (k * n), "sequence_mean": np.full(k, 1 / sum(lengths))}.get(
        aggregation, np.full(k, 1 / (k * limit))
    )


def token_weights__divides_by_0(lengths, aggregation, limit):
    """[2, 0, 5, 1] | a 0/0"""
    k = len(lengths)
    names = {"group_token_mean": np.full(k, 1 / lengths.sum()), "sequence_mean": 1 / (k * lengths)}
    return names.get(aggregation, np.full(k, 1 / (k * limit)))


def token_weights__no_mean_over_completions(lengths, aggregation, limit):
    """the mean over the k completions is missing"""
    k = len(lengths)
    names = {
        "group_token_mean": np.full(k, 1 / lengths.sum()),
        "sequence_mean": 1 / np.maximum(lengths, 1),
    }
    return names.get(aggregation, np.full(k, 1 / limit))
