"""What is maximised: GRPO and its relatives, as choices in one objective over the nodes of a tree.

For completion i, token t, node λ(i,t):

    J = Σᵢ cᵢ Σₜ w(i,t) · ( min(ρ·aᵢ, clip(ρ, 1-low, 1+high)·aᵢ) - β·D )        loss = -J

    aᵢ   advantage (baseline, scale)             ρ  π/π_old
    cᵢ   what a token counts (aggregation)       D  an estimate of KL(π‖π_ref)
    w    |λ(i,t)|^-α: α = 0, so w = 1, is GRPO; α = 1 is λ-GRPO (other α are ours, not the paper's)

ρ and D are the same for all members of a node.  Unclipped, a node needs Σ cᵢaᵢ over its members:
one process reward.  Clipping looks at the sign of aᵢ, since min(ρ·a, clip(ρ)·a) is a·min(ρ, 1+high)
for a > 0 and a·max(ρ, 1-low) for a < 0; so a node needs two sums, Σ (cᵢaᵢ)⁺ and Σ (cᵢaᵢ)⁻.
With these everything is exact on the tree, for every variant and any number of inner epochs.

Objectives are evaluated on the host in float64.  Sequence-level ratios (GSPO) are left out: ρ then
differs inside a node.

Sources: GRPO arXiv:2402.03300; DAPO arXiv:2503.14476; Dr. GRPO arXiv:2503.20783; RLOO
arXiv:2402.14740; λ-GRPO arXiv:2509.21154 (neither the "λ-GRPO" of arXiv:2510.06870 nor the "GRPO-λ"
of arXiv:2510.00194); KL estimators http://joschu.net/blog/kl-approx.html.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minigrpo.engine.group_statistics import shift_and_mean, std_of_groups
from minigrpo.rewards import LARGEST, check_rewards, numbers, step_rewards
from minigrpo.tree import Array, PrefixTree, Rollouts

CHOICES: dict[str, tuple] = {
    "baseline": ("group_mean", "leave_one_out", "none"),
    "scale": ("group_std", "batch_std", "none"),
    "aggregation": (
        "group_token_mean",  # mean over the tokens of a group, then over groups (the paper)
        "batch_token_mean",  # mean over all tokens (DAPO)
        "sequence_mean",  # mean over the tokens of a completion, then over completions
        "sequence_sum",  # sum over the tokens of a completion, mean over completions (RLOO)
        "constant",  # sequence_sum / max_new_tokens (Dr. GRPO)
    ),
    "process_reward": ("outcome", "tree"),
    "kl": ("k1", "k2", "k3"),
    "ddof": (0, 1),
    "mask_truncated": (False, True),
}
NUMBERS = ("alpha", "beta", "std_eps", "clip_low", "clip_high")


def advantages(
    rewards: ArrayLike,
    group: ArrayLike,
    baseline: str = "group_mean",
    scale: str = "group_std",
    ddof: int = 1,
    eps: float = 1e-4,
) -> Array:
    """aᵢ = (rᵢ - baseline) / (std + eps).   rewards (B,), group of each completion (B,) -> (B,)

    baseline: "group_mean"; "leave_one_out", the mean of the others in the group (RLOO); "none".
    scale: "group_std" or "batch_std", with ddof 1 (of a sample, the paper's) or 0; "none".
    Equal rewards have no std to divide by, so aᵢ = rᵢ - baseline: exactly 0 if there is a baseline.
    Without one take scale "none", since nearly equal rewards are divided by nearly 0.
    Raises ValueError for an unknown choice, a reward that is not finite, and a group of one that
    needs a baseline or std.  (Paper, section 2.)
    """
    _check_choice("baseline", baseline)
    _check_choice("scale", scale)
    rewards = check_rewards(rewards, np.asarray(group))
    _, group, size = np.unique(group, return_inverse=True, return_counts=True)
    if size.min(initial=2) < 2 and (baseline != "none" or scale == "group_std"):
        found = "a group of one completion has nothing to be compared with"
        raise ValueError(f"{found}: take a group size of at least 2")
    count = np.ones(len(rewards))  # each reward counts once
    shifted, mean = shift_and_mean(rewards, group, count)
    out = rewards if baseline == "none" else shifted - mean[group]
    if baseline == "leave_one_out":
        out = out * (size / (size - 1))[group]  # = rᵢ - mean of the others
    return out / _std_plus_eps(rewards, group, count, scale, ddof, eps)[group]


def step_advantages(
    tree: PrefixTree,
    rewards: ArrayLike,
    values: ArrayLike | None = None,
    scale: str = "group_std",
    ddof: int = 1,
    eps: float = 1e-4,
) -> Array:
    """Â(λ) = (R̂(λ) - mean r) / (std r + eps), 0 in the trunk.   rewards (B,) -> (N,)

    values (N,), process rewards of one's own, stand in for R̂.  As they need not be on the scale of
    outcomes, these then play no part: mean and std are those of the values over all tokens of all
    members, m = Σ |λ|·v / Σ |λ| and so on.  Equal values give exactly 0.  (Paper, section 3.)
    Raises ValueError as `advantages` does, and for values that are missing or not finite.
    """
    x, group = check_rewards(rewards, tree), tree.completion_group
    advantages(x, group, scale=scale)  # refuses what cannot work
    nodes, out = np.flatnonzero(tree.group >= 0), np.zeros(tree.n_nodes)
    owner, count = tree.group[nodes], np.ones(len(group))
    if values is None:
        shifted, mean = shift_and_mean(x, group, count)
        step = step_rewards(tree, shifted)[nodes]
    else:
        values = numbers(values, tree.n_nodes, "process rewards", "nodes")
        bad = nodes[~(np.abs(values[nodes]) <= LARGEST)]
        if len(bad):
            found = f"the process reward of node {bad[0]} is {values[bad[0]]}"
            raise ValueError(f"{found}: it must be a finite number up to {LARGEST:g}")
        x, group, count = values[nodes], owner, tree.count[nodes]  # all members have the value
        step, mean = shift_and_mean(x, group, count)
    out[nodes] = (step - mean[owner]) / _std_plus_eps(x, group, count, scale, ddof, eps)[owner]
    return out


def _std_plus_eps(x: Array, group: Array, count: Array, scale: str, ddof: int, eps: float) -> Array:
    """std + eps of each group, or 1 if there is no std to divide by.   -> (G,)"""
    n_groups = group.max(initial=-1) + 1
    if scale == "none":
        return np.ones(n_groups)
    std = std_of_groups(x, group if scale == "group_std" else np.zeros_like(group), count, ddof)
    return np.broadcast_to(np.where(std > 0, std + eps, 1.0), n_groups)


@dataclass(frozen=True, eq=False)
class Coefficients:
    """What an objective needs to know of a batch, one number per node; parts of it take theirs."""

    positive: Array  # (N,) w · Σ (cᵢaᵢ)⁺ over the members
    negative: Array  # (N,) w · Σ (cᵢaᵢ)⁻, at most 0
    weight: Array  # (N,) w · Σ cᵢ
    tokens: Array  # (N,) members that count
    tokens_up: Array  # (N,) of these, members with aᵢ > 0, or all if Â > 0
    tokens_down: Array  # (N,) of these, members with aᵢ < 0, or all if Â < 0

    def only_counted(self, logp: Array) -> Array:
        """Log-probabilities in float64; 0 where no member counts, so that nothing overflows."""
        return np.where(self.tokens > 0, logp, 0.0).astype(np.float64)

    def for_part(self, nodes: Array, scored: Array) -> Coefficients:
        """Those of a part of the tree (`plan.split_tree`), 0 where it does not score the node."""
        return Coefficients(*[np.where(scored, x[nodes], 0.0) for x in vars(self).values()])


@dataclass(frozen=True)
class Objective:
    """A GRPO variant.   objective(rollouts, rewards, logp, old, ref) -> loss, dlogp (N,)"""

    name: str = "custom"
    baseline: str = "group_mean"
    scale: str = "group_std"
    ddof: int = 1  # 1: std of a sample (the paper's authors, TRL); 0: of a population
    std_eps: float = 1e-4
    aggregation: str = "group_token_mean"
    alpha: float = 0.0  # w = |λ|^-alpha, |λ| the members that count; 1: each step counts once
    process_reward: str = "outcome"  # "tree": the explicit PRM, (R̂ - mean) / std in place of aᵢ
    clip_low: float | None = None  # None: no clipping
    clip_high: float | None = None
    beta: float = 0.0  # weight of the KL term
    kl: str = "k3"
    mask_truncated: bool = False  # completions stopped by the length limit do not count (DAPO)

    def __post_init__(self) -> None:
        for field in CHOICES:
            _check_choice(field, getattr(self, field))
        for field in NUMBERS:
            value = getattr(self, field)
            if value is None and field.startswith("clip"):
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is None or not (is_number and 0 <= value <= LARGEST):
                allowed = f"a finite number, at least 0 and at most {LARGEST:g}"
                raise ValueError(f"{field} is {value!r}: it must be {allowed}")
        if self.process_reward == "tree" and (self.baseline != "group_mean" or self.mask_truncated):
            found = "the tree's process rewards are centred on the mean of all members"
            raise ValueError(f"{found}: take baseline group_mean, and mask_truncated=False")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Objective:
        """A named objective, with changes to its fields.   Raises ValueError for unknown ones."""
        if name not in PRESETS:
            raise ValueError(f"unknown objective {name!r}: choose from {', '.join(PRESETS)}")
        unknown = set(changes) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"an objective has no field {', '.join(sorted(unknown))}")
        return cls(**{"name": name, **PRESETS[name], **changes})

    def coefficients(
        self, rollouts: Rollouts, rewards: ArrayLike, process_rewards: ArrayLike | None = None
    ) -> Coefficients:
        """Carry the outcome rewards to the nodes.   rewards (B,); process_rewards (N,), one's own

        Raises ValueError for missing or non-finite rewards, for groups that are too small, and for
        process rewards that would not be used.  See `step_advantages`.
        """
        if process_rewards is not None and self.process_reward != "tree":
            found = 'process rewards are given, but process_reward is "outcome"'
            raise ValueError(f'{found}: take "tree", as the preset prm has')
        tree, standard = rollouts.tree, (self.scale, self.ddof, self.std_eps)
        counted = ~(rollouts.truncated & self.mask_truncated)
        share = counted / self._averaged_over(rollouts, tree.lengths * counted)  # cᵢ
        weight, tokens = tree.sum_over_members(share), tree.sum_over_members(counted)
        if self.process_reward == "outcome":
            a = advantages(rewards, tree.completion_group, self.baseline, *standard)
            positive = tree.sum_over_members(share * np.maximum(a, 0))
            negative = tree.sum_over_members(share * np.minimum(a, 0))
            up, down = (tree.sum_over_members(counted & side) for side in (a > 0, a < 0))
        else:
            step = step_advantages(tree, rewards, process_rewards, *standard)
            positive, negative = weight * np.maximum(step, 0), weight * np.minimum(step, 0)
            up, down = tokens * (step > 0), tokens * (step < 0)
        w = np.maximum(tokens, 1) ** -self.alpha
        return Coefficients(w * positive, w * negative, w * weight, tokens, up, down)

    def _averaged_over(self, rollouts: Rollouts, lengths: Array) -> Array:
        """1/cᵢ: what the sum over the tokens is divided by.   lengths (B,), 0 if masked -> (B,)"""
        group, n_completions = rollouts.tree.completion_group, len(lengths)
        tokens_of_group = np.maximum(np.bincount(group, lengths), 1)
        divisor = {
            "group_token_mean": rollouts.tree.n_groups * tokens_of_group[group],
            "batch_token_mean": max(lengths.sum(), 1),
            "sequence_mean": n_completions * np.maximum(lengths, 1),
            "sequence_sum": n_completions,
            "constant": n_completions * rollouts.max_new_tokens,
        }
        return divisor[self.aggregation]

    @property
    def clip_range(self) -> tuple[float, float]:
        """The ratios between which nothing is clipped."""
        low = 0.0 if self.clip_low is None else 1 - self.clip_low
        return low, np.inf if self.clip_high is None else 1 + self.clip_high

    def evaluate(
        self, coefficients: Coefficients, logp: Array, old: Array, ref: Array | None = None
    ) -> tuple[float, Array]:
        """The loss and its derivative by each node's log-probability.   -> loss, dlogp (N,) float64

        logp, old, ref (N,): log-probabilities under the policy, the one that sampled, and the
        reference, which beta > 0 needs (else ValueError).
        """
        c, (low, high) = coefficients, self.clip_range
        logp, old = c.only_counted(logp), c.only_counted(old)
        ratio = np.exp(logp - old)
        value = c.positive * np.minimum(ratio, high) + c.negative * np.maximum(ratio, low)
        slope = ratio * (c.positive * (ratio <= high) + c.negative * (ratio >= low))
        loss, dlogp = -value.sum(), -slope
        if self.beta:
            if ref is None:
                raise ValueError("beta > 0 needs the log-probabilities of a reference policy")
            divergence, d_divergence = kl_estimate(self.kl, logp, c.only_counted(ref))
            loss += self.beta * (c.weight * divergence).sum()
            dlogp += self.beta * c.weight * d_divergence
        return float(loss), dlogp

    def __call__(
        self, rollouts: Rollouts, rewards: Array, logp: Array, old: Array, ref: Array | None = None
    ) -> tuple[float, Array]:
        """`coefficients`, then `evaluate`."""
        return self.evaluate(self.coefficients(rollouts, rewards), logp, old, ref)

    def metrics(
        self, coefficients: Coefficients, logp: Array, old: Array, ref: Array | None = None
    ) -> dict[str, float]:
        """Shares of tokens clipped on either side; with ref, the mean k3 estimate of the KL."""
        c, (low, high) = coefficients, self.clip_range
        logp, old = c.only_counted(logp), c.only_counted(old)
        ratio, tokens = np.exp(logp - old), max(c.tokens.sum(), 1)
        sums = {
            "clip_ratio/low_mean": c.tokens_down * (ratio < low),
            "clip_ratio/high_mean": c.tokens_up * (ratio > high),
        }
        if ref is not None:
            sums["kl"] = c.tokens * kl_estimate("k3", logp, c.only_counted(ref))[0]
        return {name: float(values.sum() / tokens) for name, values in sums.items()}


def _check_choice(field: str, value: Any) -> None:
    allowed = CHOICES[field]
    if value not in allowed or type(value) is not type(allowed[0]):
        choices = ", ".join(map(str, allowed))
        raise ValueError(f"{field} {value!r} is unknown: choose from {choices}")


def kl_estimate(kind: str, logp: Array, ref: Array) -> tuple[Array, Array]:
    """An estimate D of KL(π‖π_ref) at a token drawn from π, and dD/dlogp.   (N,) each

    With x = log π_ref - log π:  k1 = -x;  k2 = x²/2;  k3 = eˣ - x - 1, which GRPO uses.
    Differentiated as a loss, k1 has an expected gradient of zero, k2 that of KL(π‖π_ref), and k3
    that of KL(π_ref‖π).
    """
    x = np.asarray(ref, dtype=np.float64) - logp
    if kind == "k1":
        return -x, np.ones_like(x)
    if kind == "k2":
        return x * x / 2, -x
    return np.expm1(x) - x, -np.expm1(x)


_CLIP = {"clip_low": 0.2, "clip_high": 0.2}
PRESETS: dict[str, dict[str, Any]] = {
    "reinforce": {"baseline": "none", "scale": "none", "aggregation": "sequence_sum"},
    "rloo": {"baseline": "leave_one_out", "scale": "none", "aggregation": "sequence_sum"},
    "grpo": _CLIP,  # the token-mean form that the paper's theorem is about
    "grpo_original": _CLIP | {"aggregation": "sequence_mean", "beta": 0.04},  # DeepSeekMath
    "dapo": _CLIP | {"clip_high": 0.28, "aggregation": "batch_token_mean", "mask_truncated": True},
    "dr_grpo": _CLIP | {"aggregation": "constant", "scale": "none"},
    "lambda_grpo": _CLIP | {"alpha": 1.0},
    "prm": {"process_reward": "tree"},  # equal to grpo where nothing is clipped: Theorem 1
}
