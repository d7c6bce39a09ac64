"""The usual way, for comparison: padded (B,T) arrays, one row a completion, nothing shared.

This is how other libraries compute GRPO and how its papers write it down.  It knows nothing of trees: |λ| and the process
rewards come from their definitions, by comparing every pair of completions.  The tests and `minigrpo equivalence` hold the tree
against it.  Slow on purpose (quadratic in the group size); use it for checking only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minigrpo.objectives import Objective
from minigrpo.tree import Tokens


def shares_prefix(completions: Sequence[Tokens]) -> np.ndarray:
    """[i,j,t]: completions i and j are both longer than t and agree up to and including token t.   k sequences -> (k,k,T) bool"""
    width = max(map(len, completions), default=0)
    tokens = np.array(
        [list(c) + [-1 - i] * (width - len(c)) for i, c in enumerate(completions)]
    ).reshape(len(completions), width)
    mask = np.array([[t < len(c) for t in range(width)] for c in completions], dtype=bool).reshape(
        tokens.shape
    )
    agree = np.logical_and.accumulate(tokens[:, None] == tokens[None], axis=2)
    return agree & mask[:, None] & mask[None]


def padded_loss(
    objective: Objective,
    groups: Sequence[Sequence[Tokens]],
    rewards: Sequence[float] | np.ndarray,
    logp: np.ndarray,
    old: np.ndarray,
    ref: np.ndarray | None = None,
    *,
    truncated: np.ndarray | None = None,
    max_new_tokens: int = 1,
) -> tuple[float, np.ndarray]:
    """The loss of an objective and d loss / d logp, by the definitions.   logp, old, ref (B,T), anything in the padding -> (B,T)

    groups: G lists of k completions; rewards (B,), group after group; truncated (B,) bool.
    """
    lengths = np.array([len(c) for group in groups for c in group])
    n_rows, width = logp.shape
    truncated = np.zeros(n_rows, dtype=bool) if truncated is None else truncated
    mask = (np.arange(width) < lengths[:, None]) & ~(truncated & objective.mask_truncated)[
        :, None
    ]  # (B,T)
    rewards = np.asarray(rewards, dtype=np.float64)
    weight, advantage, share = np.zeros(mask.shape), np.zeros(mask.shape), np.zeros(mask.shape)
    start = 0
    for group in groups:
        rows = slice(start, start + len(group))
        r, k, n = (
            rewards[rows] - (objective.baseline != "none") * rewards[start],
            len(group),
            mask[rows].sum(),
        )
        mean = r.mean()  # less the first reward, so that equal ones are exactly 0 and a large offset costs no digits
        baseline = {
            "group_mean": mean,
            "leave_one_out": (r.sum() - r) / max(k - 1, 1),
            "none": 0.0,
        }[objective.baseline]
        spread = {
            "group_std": rewards[rows] - rewards[start],
            "batch_std": rewards - rewards[0],
            "none": r[:1],
        }[objective.scale]
        scale = spread.std(ddof=objective.ddof) + objective.std_eps if np.ptp(spread) else 1.0
        counted = ~(truncated[rows] & objective.mask_truncated)[:, None]  # (k,1)
        together = shares_prefix(group) & counted  # (k,k,t)
        size = together.sum(1)  # |λ(i,t)|, of the members that count
        columns = slice(0, size.shape[1])
        if objective.process_reward == "tree":
            mean_reward = (together * r[:, None]).sum(1) / np.maximum(size, 1)
            advantage[rows, columns] = (mean_reward - mean) / scale
        else:
            advantage[rows] = ((r - baseline) / scale)[:, None]
        weight[rows, columns] = 1 / np.maximum(size, 1) ** objective.alpha
        share[rows] = {
            "group_token_mean": np.array(1 / (len(groups) * max(n, 1))),
            "batch_token_mean": np.array(1 / max(mask.sum(), 1)),
            "sequence_mean": 1 / (n_rows * np.maximum(mask[rows].sum(1, keepdims=True), 1)),
            "sequence_sum": np.array(1 / n_rows),
            "constant": np.array(1 / (n_rows * max_new_tokens)),
        }[objective.aggregation]
        start += len(group)
    term_weight = np.where(mask, share * weight, 0.0)
    logp, old = np.where(mask, logp, 0.0), np.where(mask, old, 0.0)
    ratio = np.exp(logp - old)
    low = 0.0 if objective.clip_low is None else 1 - objective.clip_low
    high = np.inf if objective.clip_high is None else 1 + objective.clip_high
    plain, clipped = ratio * advantage, np.clip(ratio, low, high) * advantage
    surrogate, slope = np.minimum(plain, clipped), np.where(plain <= clipped, plain, 0.0)
    loss, dlogp = -(term_weight * surrogate).sum(), -term_weight * slope
    if objective.beta:
        x = np.where(mask, ref, 0.0) - logp
        divergence = {"k1": -x, "k2": x**2 / 2, "k3": np.exp(x) - x - 1}[objective.kl]
        derivative = {"k1": np.ones_like(x), "k2": -x, "k3": 1 - np.exp(x)}[objective.kl]
        loss += objective.beta * (term_weight * divergence).sum()
        dlogp = dlogp + objective.beta * term_weight * derivative
    return float(loss), dlogp
