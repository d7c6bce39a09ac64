"""Answers to the exercises of chapter 7."""

import numpy as np


def sum_over_members(paths, values, n_nodes):
    """np.add.at adds up repeated indices; padding is left out."""
    out = np.zeros(n_nodes)
    row, position = np.nonzero(paths >= 0)
    np.add.at(out, paths[row, position], values[row])
    return out


def two_sums(paths, advantages, n_nodes):
    """Split by sign first, sum afterwards."""
    positive = sum_over_members(paths, np.maximum(advantages, 0), n_nodes)
    negative = sum_over_members(paths, np.minimum(advantages, 0), n_nodes)
    return positive, negative


def clipped_tree_loss(paths, advantages, logp, old, low, high):
    """Members with a > 0 are clipped above, those with a < 0 below; a node may have both."""
    positive, negative = two_sums(paths, advantages, len(logp))
    n_tokens = (paths >= 0).sum()
    ratio = np.exp(logp - old)
    terms = positive * np.minimum(ratio, 1 + high) + negative * np.maximum(ratio, 1 - low)
    dlogp = -ratio * (positive * (ratio <= 1 + high) + negative * (ratio >= 1 - low)) / n_tokens
    return -float(terms.sum() / n_tokens), dlogp


def cost(prompt, completions):
    """A node is a distinct prefix, so count distinct prefixes; the empty prefix is no token."""
    flat = sum(len(prompt) + len(c) for c in completions)
    distinct = {tuple(c[: t + 1]) for c in completions for t in range(len(c))}
    return flat, len(prompt) + len(distinct)


def logits_gradient(dlogp, token, parent, logits):
    """Each child adds c at its token; the softmax is subtracted once, times the children's Σ c."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    child = parent >= 0
    dlogits = np.zeros_like(logits)
    np.add.at(dlogits, (parent[child], token[child]), dlogp[child])
    return dlogits - p * dlogits.sum(-1, keepdims=True)
