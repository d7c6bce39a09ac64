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


def _centred(rewards):
    return rewards - rewards.mean(1, keepdims=True)


def group_advantages__variance(rewards):
    """take its square root"""
    return _centred(rewards) / (rewards.var(1, ddof=1, keepdims=True) + 1e-4)


def group_advantages__under_the_root(rewards):
    """stands under the root"""
    return _centred(rewards) / np.sqrt(rewards.var(1, ddof=1, keepdims=True) + 1e-4)


def group_advantages__columns(rewards):
    """axis 1"""
    return (rewards - rewards.mean(0)) / (rewards.std(0, ddof=1) + 1e-4)


def group_advantages__not_centred(rewards):
    """mean is not subtracted"""
    return rewards / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)


def group_advantages__only_centred(rewards):
    """divide by std"""
    return _centred(rewards)


def _both(ratio, a, low, high):
    plain, clipped = ratio * a, np.clip(ratio, 1 - low, 1 + high) * a
    n = len(ratio)
    return -np.minimum(plain, clipped).mean(), -np.where(plain <= clipped, plain, 0) / n


def clipped_loss__strict(logp, old, advantage, low, high):
    """in dlogp: | use ≤, not <"""
    ratio, clipped, loss = _clipped(logp, old, advantage, low, high)
    plain = ratio * advantage
    return loss, -np.where(plain < clipped * advantage, plain, 0) / len(ratio)


def clipped_loss__low_twice(logp, old, advantage, low, high):
    """in loss: | one bound stands on both sides"""
    return _both(np.exp(logp - old), advantage, low, low)


def clipped_loss__high_twice(logp, old, advantage, low, high):
    """in loss: | one bound stands on both sides"""
    return _both(np.exp(logp - old), advantage, high, high)


def clipped_loss__swapped(logp, old, advantage, low, high):
    """in loss: | low and high have changed places"""
    return _both(np.exp(logp - old), advantage, high, low)


def clipped_loss__gradient_of_other_bounds(logp, old, advantage, low, high):
    """in dlogp: | low and high have changed places"""
    ratio, _, loss = _clipped(logp, old, advantage, low, high)
    return loss, _both(ratio, advantage, high, low)[1]


def clipped_loss__larger(logp, old, advantage, low, high):
    """in loss: | min(…) is the cautious one"""
    ratio, clipped, _ = _clipped(logp, old, advantage, low, high)
    return -np.maximum(ratio * advantage, clipped * advantage).mean(), -ratio * advantage


def clipped_loss__no_exp(logp, old, advantage, low, high):
    """in loss: | exp is missing"""
    return _both(logp - old, advantage, low, high)


def clipped_loss__upside_down(logp, old, advantage, low, high):
    """in loss: | upside down"""
    return _both(np.exp(old - logp), advantage, low, high)


def clipped_loss__straight_through(logp, old, advantage, low, high):
    """in dlogp: | the clipped branch has no gradient"""
    ratio, clipped, loss = _clipped(logp, old, advantage, low, high)
    return loss, -np.minimum(ratio * advantage, clipped * advantage) / len(ratio)


def kl_estimates__transposed(logp, ref):
    """expected shape (3, 4), got shape (4, 3) | transposed"""
    x = ref - logp
    return np.stack([-x, x * x / 2, np.exp(x) - x - 1], axis=1)


def kl_estimates__absolute(logp, ref):
    """in k1: | no absolute value"""
    x = ref - logp
    return np.stack([abs(x), x * x / 2, np.exp(x) - x - 1])


def kl_estimates__weighted(logp, ref):
    """in k1: | weights by π already"""
    x = ref - logp
    return np.exp(logp) * np.stack([-x, x * x / 2, np.exp(x) - x - 1])


def kl_estimates__only_the_ratio(logp, ref):
    """in k3: | less its log, less 1"""
    x = ref - logp
    return np.stack([-x, x * x / 2, np.exp(x)])


def kl_estimates__other_order(logp, ref):
    """in k2: | this is k3"""
    x = ref - logp
    return np.stack([-x, np.exp(x) - x - 1, x * x / 2])


def dead_groups__alive(rewards):
    """True stands for a dead one"""
    return rewards.max(1) != rewards.min(1)


def dead_groups__mean_of_0(rewards):
    """a mean of 0 says nothing"""
    return rewards.mean(1) == 0


def dead_groups__all_right(rewards):
    """as dead as one where all are right"""
    return (rewards == 1).all(1)


def token_weights__longest(lengths, aggregation, limit):
    """the constant is the limit"""
    return token_weights__divides_by_0(np.maximum(lengths, 1), aggregation, lengths.max())


def token_weights__multiplied(lengths, aggregation, limit):
    """divides by it"""
    return lengths / len(lengths)


def token_weights__of_completions(lengths, aggregation, limit):
    """one token of each"""
    return lengths * token_weights__divides_by_0(np.maximum(lengths, 1), aggregation, limit)


def group_advantages__nearly_equal(rewards):
    """not with isclose"""
    alike = np.isclose(rewards, rewards[:, :1]).all(1, keepdims=True)
    std = rewards.std(1, ddof=1, keepdims=True)
    return np.where(alike, 0.0, (rewards - rewards.mean(1, keepdims=True)) / (std + 1e-4))


def kl_estimates__sign_of_k1(logp, ref):
    """in k1 | the minus is missing"""
    x = ref - logp
    return np.stack([x, x**2 / 2, np.exp(x) - x - 1])


def dead_groups__neighbours(rewards):
    """*all* of a dead group"""
    return (np.diff(rewards, axis=1) == 0).any(1)


def dead_groups__any_two(rewards):
    """*all* of a dead group"""
    return np.array([len(set(row)) < len(row) for row in rewards.tolist()])
