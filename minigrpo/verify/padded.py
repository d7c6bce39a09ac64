"""The usual way, for comparison: padded (B,T) arrays, one row per completion, nothing shared.

This is how other libraries compute GRPO and how its papers write it down.  It knows nothing of
trees: |λ| and the process rewards come from their definitions, by comparing every pair of
completions.  Slow on purpose (quadratic in the group size); use it for checking only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from minigrpo.objectives import Objective
from minigrpo.tree import Array, Tokens


def shares_prefix(completions: Sequence[Tokens]) -> Array:
    """[i,j,t]: i and j are longer than t and agree up to and including token t.   -> (k,k,T)"""
    k, width = len(completions), max(map(len, completions), default=0)
    tokens, inside = np.zeros((k, width), dtype=np.int64), np.zeros((k, width), dtype=bool)
    for i, completion in enumerate(completions):
        tokens[i, : len(completion)] = completion
        inside[i, : len(completion)] = True
    agree = np.logical_and.accumulate(tokens[:, None] == tokens, axis=2)
    return agree & inside[:, None] & inside


def padded_loss(
    objective: Objective,
    groups: Sequence[Sequence[Tokens]],
    rewards: ArrayLike,
    logp: Array,
    old: Array,
    ref: Array | None = None,
    *,
    truncated: Array | None = None,
    max_new_tokens: int = 1,
    process_rewards: Array | None = None,
) -> tuple[float, Array]:
    """The loss of an objective and d loss / d logp, by the definitions.   -> loss, (B,T)

    groups: G lists of k completions; logp, old, ref (B,T), anything in the padding;
    rewards (B,), group after group; truncated (B,) bool; process_rewards (B,T), the same for all
    members of a node, which the objective has a process_weight for.
    """
    o, rewards = objective, np.asarray(rewards, dtype=np.float64)
    n_rows, width = logp.shape
    lengths = np.array([len(completion) for group in groups for completion in group])
    masked = np.zeros(n_rows, dtype=bool) if truncated is None else truncated & o.mask_truncated
    mask = (np.arange(width) < lengths[:, None]) & ~masked[:, None]  # (B,T)
    weight, advantage, share = np.zeros((3, n_rows, width))
    start = 0
    for group in groups:
        k, rows = len(group), slice(start, start + len(group))
        # Less the first reward: equal ones are then exactly 0, and a large offset costs no digits.
        r = rewards[rows] - (o.baseline != "none") * rewards[start]
        spread = {
            "group_std": rewards[rows] - rewards[start],
            "batch_std": rewards - rewards[0],
            "none": r[:1],
        }[o.scale]
        scale = spread.std(ddof=o.ddof) + o.std_eps if np.ptp(spread) else 1.0
        together = shares_prefix(group) & ~masked[rows, None]  # (k,k,t)
        size = together.sum(1)  # |λ(i,t)|, of the members that count
        size_or_1, columns = np.maximum(size, 1), slice(0, size.shape[1])
        if o.process_reward == "tree":
            mean_reward = (together * r[:, None]).sum(1) / size_or_1
            advantage[rows, columns] = (mean_reward - r.mean()) / scale
        else:
            baseline = {
                "group_mean": r.mean(),
                "leave_one_out": (r.sum() - r) / max(k - 1, 1),
                "none": 0.0,
            }[o.baseline]
            advantage[rows] = ((r - baseline) / scale)[:, None]
        advantage[rows] *= o.outcome_weight
        if process_rewards is not None:
            inside = np.arange(width) < lengths[:, None]  # (B,T)
            own = process_rewards[rows][inside[rows]]
            spread = {"group_std": own, "batch_std": process_rewards[inside], "none": own[:1]}
            spread = spread[o.scale]
            scale = spread.std(ddof=o.ddof) + o.std_eps if np.ptp(spread) else 1.0
            advantage[rows] += o.process_weight * (process_rewards[rows] - own.mean()) / scale
        weight[rows, columns] = 1 / size_or_1**o.alpha
        share[rows] = {
            "group_token_mean": 1 / (len(groups) * max(mask[rows].sum(), 1)),
            "batch_token_mean": 1 / max(mask.sum(), 1),
            "sequence_mean": 1 / (n_rows * np.maximum(mask[rows].sum(1, keepdims=True), 1)),
            "sequence_sum": 1 / n_rows,
            "constant": 1 / (n_rows * max_new_tokens),
        }[o.aggregation]
        start += k
    term_weight = np.where(mask, share * weight, 0.0)
    logp, old = np.where(mask, logp, 0.0), np.where(mask, old, 0.0)
    ratio = np.exp(logp - old)
    low = 0.0 if o.clip_low is None else 1 - o.clip_low
    high = np.inf if o.clip_high is None else 1 + o.clip_high
    plain, clipped = ratio * advantage, np.clip(ratio, low, high) * advantage
    loss = -(term_weight * np.minimum(plain, clipped)).sum()
    dlogp = -term_weight * np.where(plain <= clipped, plain, 0.0)
    if o.beta:
        if ref is None:
            raise ValueError("beta > 0 needs the log-probabilities of a reference policy")
        x = np.where(mask, ref, 0.0) - logp
        divergence = {"k1": -x, "k2": x**2 / 2, "k3": np.exp(x) - x - 1}[o.kl]
        derivative = {"k1": np.ones_like(x), "k2": -x, "k3": 1 - np.exp(x)}[o.kl]
        loss += o.beta * (term_weight * divergence).sum()
        dlogp += o.beta * term_weight * derivative
    return float(loss), dlogp
