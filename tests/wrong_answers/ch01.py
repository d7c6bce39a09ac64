"""Wrong answers to the exercises of chapter 1: functions <function>__<mistake>.

The docstring has the texts that the message must contain, separated by |.
"""

import numpy as np


def _softmax(x):
    p = np.exp(x - x.max())
    return p / p.sum()


def expected_reward_gradient__no_baseline(logits, rewards):
    """expected | π·r"""
    return _softmax(logits) * rewards


def expected_reward_gradient__plain_mean(logits, rewards):
    """not the plain mean"""
    return _softmax(logits) * (rewards - rewards.mean())


def expected_reward_gradient__of_a_loss(logits, rewards):
    """sign is flipped"""
    p = _softmax(logits)
    return -p * (rewards - p @ rewards)


def expected_reward_gradient__overflows(logits, rewards):
    """logits [1000, | Subtract the maximum"""
    p = np.exp(logits) / np.exp(logits).sum()
    return p * (rewards - p @ rewards)


def reinforce__repeated_actions_lost(logits, actions, rewards):
    """np.add.at"""
    g = -rewards.sum() * _softmax(logits)
    g[actions] += rewards
    return g / len(actions)


def reinforce__only_onehot(logits, actions, rewards):
    """more than onehot"""
    return np.bincount(actions, rewards, minlength=len(logits)) / len(actions)


def reinforce__sum(logits, actions, rewards):
    """take the mean"""
    return (rewards[:, None] * (np.eye(len(logits))[actions] - _softmax(logits))).sum(0)


def reinforce__one_row_a_draw(logits, actions, rewards):
    """expected shape (3,), got shape (4, 3) | a sum or mean missing"""
    return rewards[:, None] * (np.eye(len(logits))[actions] - _softmax(logits))


def best_baseline__expected_reward(logits, rewards):
    """the expected reward: a good baseline, not the best"""
    return _softmax(logits) @ rewards


def best_baseline__mean(logits, rewards):
    """plain mean"""
    return rewards.mean()


def best_baseline__gradient_not_squared(logits, rewards):
    """expected | got"""
    p = _softmax(logits)
    norm = np.sqrt(((np.eye(len(p)) - p) ** 2).sum(1))
    return (p * norm) @ rewards / (p @ norm)


def leave_one_out_gradient__group_mean(logits, actions, rewards):
    """includes the draw itself"""
    r = rewards - rewards.mean()
    return (r[:, None] * (np.eye(len(logits))[actions] - _softmax(logits))).mean(0)


def leave_one_out_gradient__divided_by_n(logits, actions, rewards):
    """divided by n - 1"""
    r = rewards - (rewards.sum() - rewards) / len(rewards)
    return (r[:, None] * (np.eye(len(logits))[actions] - _softmax(logits))).mean(0)


def _estimate(logits, actions, rewards, weight=1.0):
    scores = np.eye(len(logits))[actions] - _softmax(logits)
    return (np.asarray(weight * rewards)[:, None] * scores).mean(0)


def expected_reward_gradient__not_weighted(logits, rewards):
    """factor π(a) is missing"""
    return rewards - _softmax(logits) @ rewards


def expected_reward_gradient__diagonal(logits, rewards):
    """diagonal"""
    p = _softmax(logits)
    return p * (1 - p) * rewards


def expected_reward_gradient__pi_twice(logits, rewards):
    """π(a) stands here twice"""
    p = _softmax(logits)
    return p * p * (rewards - p @ rewards)


def reinforce__gradient_of_pi(logits, actions, rewards):
    """∇π in place of ∇ln π"""
    return _estimate(logits, actions, rewards, _softmax(logits)[actions])


def reinforce__only_the_action(logits, actions, rewards):
    """at every other action"""
    return np.bincount(actions, rewards, len(logits)) * (1 - _softmax(logits)) / len(actions)


def reinforce__with_baseline(logits, actions, rewards):
    """there is a baseline in it"""
    return _estimate(logits, actions, rewards - rewards.mean())


def reinforce__of_a_loss(logits, actions, rewards):
    """sign is flipped"""
    return -_estimate(logits, actions, rewards)


def best_baseline__not_weighted(logits, rewards):
    """not weighted by π(a)"""
    squares = ((np.eye(len(logits)) - _softmax(logits)) ** 2).sum(1)
    return squares @ rewards / squares.sum()


def best_baseline__own_logit(logits, rewards):
    """the other logits' parts"""
    p = _softmax(logits)
    return (p * (1 - p) ** 2) @ rewards / (p @ (1 - p) ** 2)


def best_baseline__gradient_of_pi(logits, rewards):
    """∇π in place of ∇ln π"""
    p = _softmax(logits)
    squares = ((np.eye(len(p)) * p[:, None] - np.outer(p, p)) ** 2).sum(1)
    return (p * squares) @ rewards / (p @ squares)


def leave_one_out_gradient__gradient_of_pi(logits, actions, rewards):
    """∇π in place of ∇ln π"""
    r = rewards - (rewards.sum() - rewards) / (len(rewards) - 1)
    return _estimate(logits, actions, r, _softmax(logits)[actions])


def leave_one_out_gradient__repeated_actions_lost(logits, actions, rewards):
    """np.add.at"""
    r = rewards - (rewards.sum() - rewards) / (len(rewards) - 1)
    g = -r.sum() * _softmax(logits)
    g[actions] += r
    return g / len(r)


def leave_one_out_gradient__sum(logits, actions, rewards):
    """take the mean"""
    r = rewards - (rewards.sum() - rewards) / (len(rewards) - 1)
    return _estimate(logits, actions, r) * len(r)


def expected_reward_gradient__divided(logits, rewards):
    """0.3333 times what it should be: is the divisor right?"""
    p = _softmax(logits)
    return p * (rewards - p @ rewards) / len(rewards)


def expected_reward_gradient__coarse_difference(logits, rewards):
    """nearly right | a difference quotient too coarse"""
    rise = [_softmax(logits + 1e-2 * e) @ rewards for e in np.eye(len(logits))]
    return (np.array(rise) - _softmax(logits) @ rewards) / 1e-2


def reinforce__softmax_without_reward(logits, actions, rewards):
    """multiplied by the reward of each draw"""
    p = _softmax(logits)
    return (rewards[:, None] * np.eye(len(p))[actions]).mean(0) - p


def best_baseline__variance_of_pi(logits, rewards):
    """the weight is π(a)·|∇ln π(a)|²"""
    p = _softmax(logits)
    return p * (1 - p) @ rewards / (p @ (1 - p))
