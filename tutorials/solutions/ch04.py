"""Answers to the exercises of chapter 4."""

import numpy as np


def group_advantages(rewards):
    """ddof=1 divides by k - 1."""
    mean, std = rewards.mean(1, keepdims=True), rewards.std(1, ddof=1, keepdims=True)  # (G,1)
    return np.where(dead_groups(rewards)[:, None], 0.0, (rewards - mean) / (std + 1e-4))


def clipped_loss(logp, old, advantage, low, high):
    """d(ρ·a)/dlogp = ρ·a; the clipped branch has no gradient."""
    ratio = np.exp(logp - old)
    plain, clipped = ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage
    loss = -np.minimum(plain, clipped).mean()
    dlogp = -np.where(plain <= clipped, plain, 0.0) / len(logp)
    return loss, dlogp


def kl_estimates(logp, ref):
    """k1 may be negative, k2 and k3 may not."""
    x = ref - logp
    return np.stack([-x, x * x / 2, np.expm1(x) - x])


def dead_groups(rewards):
    """All equal.  (std == 0 would miss rewards that are no exact binary fractions.)"""
    return rewards.max(1) == rewards.min(1)


def token_weights(lengths, aggregation, limit):
    """Only the first depends on the completion's own length: long answers count less per token."""
    k = len(lengths)
    if aggregation == "sequence_mean":
        return 1 / (k * np.maximum(lengths, 1))
    if aggregation == "group_token_mean":
        return np.full(k, 1 / max(lengths.sum(), 1))
    return np.full(k, 1 / (k * limit))
