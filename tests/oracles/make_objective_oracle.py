"""Write objective.npz: GRPO and its relatives on padded arrays in PyTorch, derived by autograd.

The formulas are those of the papers, one number per token, nothing shared; |λ| is counted by
comparing completions pair by pair.  It shares no code with the package.  Run it with PyTorch 2.x:

    python tests/oracles/make_objective_oracle.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

MAX_NEW_TOKENS = 6
GROUPS = [  # forks at several depths, a duplicate, a prefix of another completion
    [[1, 2, 3, 4], [1, 2, 3, 5, 0], [1, 2, 3, 4], [1, 6], [1, 2]],
    [[1, 2, 3], [4, 4, 4, 4, 4, 4], [4, 4, 0], [4, 4, 4, 0]],
]
REWARDS = [1.0, -0.5, 0.25, 0.0, 0.7, 0.0, 1.0, -1.0, 0.3]
TRUNCATED = [False, False, False, True, False, False, True, False, False]
VARIANTS = {  # the fields of minigrpo.Objective that differ from its defaults
    "plain": {},
    "grpo": {"clip_low": 0.2, "clip_high": 0.2, "beta": 0.1},
    "lambda_grpo": {"clip_low": 0.2, "clip_high": 0.2, "beta": 0.1, "alpha": 1.0},
    "lambda_grpo_unclipped": {"alpha": 1.0},
    "between": {"clip_low": 0.2, "clip_high": 0.2, "beta": 0.1, "alpha": 0.5},
    "dapo": {
        "clip_low": 0.2,
        "clip_high": 0.28,
        "aggregation": "batch_token_mean",
        "mask_truncated": True,
    },
    "grpo_original": {
        "clip_low": 0.2,
        "clip_high": 0.2,
        "aggregation": "sequence_mean",
        "beta": 0.04,
    },
    "dr_grpo": {"clip_low": 0.2, "clip_high": 0.2, "aggregation": "constant", "scale": "none"},
    "rloo": {
        "baseline": "leave_one_out",
        "scale": "none",
        "aggregation": "sequence_sum",
        "beta": 0.1,
    },
}


def one_number_a_prefix(
    rng: np.random.Generator, spread: float, around: np.ndarray | float
) -> np.ndarray:
    """Random log-probabilities, equal where completions of a group share a prefix.   (B,T)"""
    out = np.zeros((len(REWARDS), MAX_NEW_TOKENS))
    drawn: dict[tuple, float] = {}
    rows = [(g, completion) for g, group in enumerate(GROUPS) for completion in group]
    for i, (g, completion) in enumerate(rows):
        for t in range(len(completion)):
            out[i, t] = drawn.setdefault((g, *completion[: t + 1]), spread * rng.standard_normal())
    return out + around


def advantage_of(rewards: torch.Tensor, baseline: str, scale: str) -> torch.Tensor:
    k = len(rewards)
    mean = (rewards.sum() - rewards) / (k - 1) if baseline == "leave_one_out" else rewards.mean()
    return (rewards - mean) / (rewards.std(correction=1) + 1e-4 if scale == "group_std" else 1.0)


def count_of(group: list[list[int]]) -> torch.Tensor:
    """How many completions of the group begin with the first t + 1 tokens of another.   (k,T)"""
    count = torch.ones(len(group), MAX_NEW_TOKENS, dtype=torch.float64)
    for i, mine in enumerate(group):
        for t in range(len(mine)):
            count[i, t] = sum(other[: t + 1] == mine[: t + 1] for other in group)
    return count


def loss_of(
    settings: dict, logp: torch.Tensor, old: torch.Tensor, ref: torch.Tensor
) -> tuple[torch.Tensor, set[str]]:
    """The loss, and the sides of the clip (advantage up/down, ratio below/above) that occur."""
    lengths = torch.tensor([len(c) for group in GROUPS for c in group])
    counts_for = (
        ~torch.tensor(TRUNCATED)
        if settings.get("mask_truncated")
        else torch.ones(len(lengths), dtype=bool)
    )
    mask = ((torch.arange(MAX_NEW_TOKENS) < lengths[:, None]) & counts_for[:, None]).double()
    sizes = [len(group) for group in GROUPS]
    advantage = torch.cat([
        advantage_of(r, settings.get("baseline", "group_mean"), settings.get("scale", "group_std"))
        for r in torch.tensor(REWARDS, dtype=torch.float64).split(sizes)
    ])[:, None]  # fmt: skip
    ratio = torch.exp(logp - old)
    objective = ratio * advantage
    sides = set()
    if "clip_low" in settings:
        low, high = 1 - settings["clip_low"], 1 + settings["clip_high"]
        objective = torch.minimum(objective, ratio.clamp(low, high) * advantage)
        for sign, name in ((advantage > 0, "up"), (advantage < 0, "down")):
            for beyond, side in ((ratio < low, "below"), (ratio > high, "above")):
                if (mask.bool() & sign & beyond).any():
                    sides.add(f"{name} {side}")
    objective = objective - settings.get("beta", 0.0) * (torch.exp(ref - logp) - (ref - logp) - 1)
    objective = objective / torch.cat([count_of(group) for group in GROUPS]) ** settings.get(
        "alpha", 0.0
    )
    objective = objective * mask
    aggregation = settings.get("aggregation", "group_token_mean")
    if aggregation == "group_token_mean":
        of_group = zip(objective.split(sizes), mask.split(sizes), strict=True)
        return -torch.stack([o.sum() / m.sum() for o, m in of_group]).mean(), sides
    if aggregation == "batch_token_mean":
        return -objective.sum() / mask.sum(), sides
    if aggregation == "sequence_mean":
        return -(objective.sum(1) / mask.sum(1)).mean(), sides
    return -objective.sum(1).mean() / (MAX_NEW_TOKENS if aggregation == "constant" else 1), sides


def main() -> None:
    rng = np.random.default_rng(7)
    old = one_number_a_prefix(rng, 0.5, -2.0)
    logp = one_number_a_prefix(rng, 0.4, old)
    ref = one_number_a_prefix(rng, 0.4, old)
    arrays: dict[str, np.ndarray] = {"logp": logp, "old": old, "ref": ref}
    for name, settings in VARIANTS.items():
        leaf = torch.tensor(logp, requires_grad=True)
        loss, sides = loss_of(settings, leaf, torch.tensor(old), torch.tensor(ref))
        loss.backward()
        assert "clip_low" not in settings or len(sides) == 4, (name, sides)
        arrays |= {f"{name}.loss": loss.detach().numpy(), f"{name}.dlogp": leaf.grad.numpy()}
    batch = {
        "groups": GROUPS,
        "rewards": REWARDS,
        "truncated": TRUNCATED,
        "max_new_tokens": MAX_NEW_TOKENS,
        "variants": VARIANTS,
    }
    np.savez_compressed(
        Path(__file__).parent / "objective.npz", batch=np.array(json.dumps(batch)), **arrays
    )


if __name__ == "__main__":
    main()
