"""Answers to the exercises of chapter 1."""

import numpy as np


def _softmax(logits):
    p = np.exp(logits - logits.max())
    return p / p.sum()


def expected_reward_gradient(logits, rewards):
    """dπ_b/dθ_a = π_b (1[a=b] - π_a), hence dJ/dθ_a = π_a (r_a - J), with J as the baseline."""
    p = _softmax(logits)
    return p * (rewards - p @ rewards)


def reinforce(logits, actions, rewards):
    """d log π(a)/dθ = onehot(a) - π."""
    onehot = np.eye(len(logits))[actions]  # (n,A)
    return (rewards[:, None] * (onehot - _softmax(logits))).mean(0)


def best_baseline(logits, rewards):
    """E[(r-b)²|∇log π|²] - |mean|² has its minimum at b = E[r|∇log π|²] / E[|∇log π|²]."""
    p = _softmax(logits)
    squares = ((np.eye(len(p)) - p) ** 2).sum(1)  # (A,) |∇log π(a)|²
    return float((p * squares) @ rewards / (p @ squares))


def leave_one_out_gradient(logits, actions, rewards):
    """The mean of the others is (Σr - r_j) / (n - 1)."""
    others = (rewards.sum() - rewards) / (len(rewards) - 1)
    return reinforce(logits, actions, rewards - others)
