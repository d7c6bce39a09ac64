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
