"""What is maximised: GRPO and its relatives, as choices in one objective over the nodes of a tree.

For completion i, token t, node λ(i,t):

    J = Σᵢ cᵢ Σₜ w(i,t) · ( min(ρ·aᵢ, clip(ρ, 1-low, 1+high)·aᵢ) - β·D )            loss = -J

    aᵢ advantage (baseline, scale);  cᵢ aggregation;  w = |λ(i,t)|^-α;  ρ = π/π_old;  D an estimate of KL(π‖π_ref)

α = 0, so w = 1, is GRPO; α = 1 is λ-GRPO.  The family between and beyond them is ours, not the paper's.

ρ and D are the same for all members of a node.  Unclipped, a node needs Σ cᵢaᵢ over its members: one process reward.  Clipping
looks at the sign of aᵢ: min(ρ·a, clip(ρ)·a) is a·min(ρ, 1+high) for a > 0 and a·max(ρ, 1-low) for a < 0, so a node needs two
sums, Σ (cᵢaᵢ)⁺ and Σ (cᵢaᵢ)⁻.  With these everything is exact on the tree, for every variant and number of inner epochs.

Objectives are evaluated on the host in float64.  Sequence-level ratios (GSPO) are left out: ρ then differs inside a node.

Sources: GRPO arXiv:2402.03300; DAPO arXiv:2503.14476; Dr. GRPO arXiv:2503.20783; RLOO arXiv:2402.14740; λ-GRPO arXiv:2509.21154
(not to be confused with the "λ-GRPO" of arXiv:2510.06870 or the "GRPO-λ" of arXiv:2510.00194); KL estimators
http://joschu.net/blog/kl-approx.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minigrpo.rewards import LARGEST, check_rewards, step_rewards
from minigrpo.sampler import Rollouts
from minigrpo.tree import PrefixTree

CHOICES = {
    "baseline": ("group_mean", "leave_one_out", "none"),
    "scale": ("group_std", "batch_std", "none"),
    "aggregation": (
        "group_token_mean",
        "batch_token_mean",
        "sequence_mean",
        "sequence_sum",
        "constant",
    ),
    "process_reward": ("outcome", "tree"),
    "kl": ("k1", "k2", "k3"),
}


def advantages(
    rewards: Sequence[float] | np.ndarray,
    group: np.ndarray,
    baseline: str = "group_mean",
    scale: str = "group_std",
    ddof: int = 1,
    eps: float = 1e-4,
) -> np.ndarray:
    """aᵢ = (rᵢ - baseline) / (std + eps).   rewards (B,), group (B,) -> (B,) float64

    baseline: "group_mean"; "leave_one_out", the mean of the others in the group (RLOO); "none".
    scale: "group_std" or "batch_std", each with ddof (1: sample standard deviation, as the paper's authors) and eps; "none".
    Where all of them are equal there is no std to divide by, so aᵢ = rᵢ - baseline: exactly 0 where a baseline is taken.  Without
    one take scale "none", since nearly equal rewards are divided by nearly 0.  (Paper, section 2.)
    Raises ValueError for an unknown choice, a reward that is not finite, a group of one that needs a baseline or std.
    """
    for field, value in (("baseline", baseline), ("scale", scale)):
        if value not in CHOICES[field]:
            raise ValueError(
                f"{field} {value!r} is unknown: choose from {', '.join(CHOICES[field])}"
            )
    rewards = check_rewards(rewards, np.asarray(group))
    _, group, size = np.unique(group, return_inverse=True, return_counts=True)
    if size.min(initial=2) < 2 and (baseline != "none" or scale == "group_std"):
        raise ValueError(
            "a group of one completion has nothing to be compared with: take a group size of at least 2"
        )
    shifted, mean, divisor, unit = _standardise(rewards, group, 1.0, scale, ddof, eps)
    out = rewards / unit if baseline == "none" else shifted - mean
    if baseline == "leave_one_out":
        out *= (size / (size - 1))[group]  # rᵢ - mean of the others
    return out / divisor


def step_advantages(
    tree: PrefixTree,
    rewards: Sequence[float] | np.ndarray,
    values: np.ndarray | None = None,
    scale: str = "group_std",
    ddof: int = 1,
    eps: float = 1e-4,
) -> np.ndarray:
    """Â(λ) = (R̂(λ) - mean r) / (std r + eps): the advantage of every node's process step.   rewards (B,) -> (N,) float64

    values (N,), process rewards of one's own, stand in for R̂ and r both, since they need not be on the scale of outcomes:

        Â(n) = (v(n) - m) / (s + eps),   m = Σ |λ(n)|·v(n) / Σ |λ(n)|,   s² = Σ |λ(n)|·(v(n) - m)² / (Σ |λ(n)| - ddof)

    sums over the group's nodes (s by `scale`), that is, over all tokens of all members.  Outcomes play no part; another scale of v
    changes nothing (but for eps); equal v give exactly 0.  v = R̂ gives Â up to a factor if lengths are equal, not Â: s is below
    std r, which R̂ does not tell where completions are equal.  0 in the trunk.  (Paper, section 3.)
    Raises ValueError as `advantages` does, and for values that are missing or not finite.
    """
    rewards, group, nodes = (
        check_rewards(rewards, tree),
        tree.completion_group,
        np.flatnonzero(tree.group >= 0),
    )
    advantages(rewards, group, scale=scale, ddof=ddof, eps=eps)  # refuses what cannot work
    owner, out = tree.group[nodes], np.zeros(tree.n_nodes)
    if values is None:
        shifted, mean, divisor, _ = _standardise(rewards, group, 1.0, scale, ddof, eps)
        first = np.searchsorted(
            group, owner
        )  # a member of each node's group: all have the group's mean and std
        out[nodes] = (step_rewards(tree, shifted)[nodes] - mean[first]) / divisor[first]
        return out
    values = np.asarray(values, dtype=np.float64)
    if values.shape != out.shape:
        raise ValueError(
            f"{tree.n_nodes} nodes need as many process rewards, not an array of shape {values.shape}"
        )
    bad = nodes[~(np.abs(values[nodes]) <= LARGEST)]
    if len(bad):
        raise ValueError(
            f"the process reward of node {bad[0]} is {values[bad[0]]}: it must be a finite number up to {LARGEST:g}"
        )
    shifted, mean, divisor, _ = _standardise(
        values[nodes], owner, tree.count[nodes], scale, ddof, eps
    )
    out[nodes] = (shifted - mean) / divisor
    return out


def _standardise(
    x: np.ndarray, group: np.ndarray, times: np.ndarray | float, scale: str, ddof: int, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(x - shift) / unit, its mean over the group, (std + eps) / unit, and unit.   x[i] counts times[i] times

    The std is the group's or the batch's; 1 stands for std + eps where it is 0 or not wanted.  shift is 0, but where all numbers
    agree in three digits it is the first of them: equal ones are exactly 0 then, and their mean does not lose the late digits in
    which 10¹⁶ and 10¹⁶ + 2 differ.  unit, a power of two, rounds nothing and keeps squares of tiny numbers from vanishing.
    """
    group, times = np.unique(group, return_inverse=True)[1], times * np.ones(len(x))
    together = group if scale == "group_std" else np.zeros_like(group)
    largest = np.zeros(len(x))
    np.maximum.at(largest, together, np.abs(x))
    unit = np.ldexp(1.0, np.maximum(np.frexp(largest)[1], -1000))[together]
    x = x / unit

    def about_mean(by: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first = x[np.unique(by, return_index=True)[1]][by]
        differ = np.bincount(by, np.abs(x - first) > 1e-3 * np.abs(first))[by]
        shifted = np.where(differ, x, x - first)
        return shifted, (np.bincount(by, times * shifted) / np.bincount(by, times))[by]

    shifted, mean = about_mean(together)
    squares, n = np.bincount(together, times * (shifted - mean) ** 2), np.bincount(together, times)
    std = np.sqrt(squares / np.maximum(n - ddof, 1))[together]
    return (
        *about_mean(group),
        np.where((scale != "none") & (std > 0), std + eps / unit, 1 / unit),
        unit,
    )


@dataclass(frozen=True, eq=False)
class Coefficients:
    """What an objective needs to know of a batch, one number a node; fixed before the batch is split or revisited."""

    positive: np.ndarray  # (N,) w · Σ (cᵢaᵢ)⁺ over the members
    negative: np.ndarray  # (N,) w · Σ (cᵢaᵢ)⁻, at most 0
    weight: np.ndarray  # (N,) w · Σ cᵢ
    tokens: np.ndarray  # (N,) members counted
    tokens_up: np.ndarray  # (N,) of these, members with aᵢ > 0, or all if Â > 0
    tokens_down: np.ndarray  # (N,) of these, members with aᵢ < 0, or all if Â < 0

    def only_counted(self, *logps: np.ndarray | None) -> list[np.ndarray | None]:
        """Log-probabilities in float64, 0 where nothing counts: what is masked must not overflow, for 0 · inf is NaN."""
        counts = self.tokens > 0
        return [
            None if values is None else np.where(counts, np.asarray(values, dtype=np.float64), 0.0)
            for values in logps
        ]

    def at(self, nodes: np.ndarray, scored: np.ndarray) -> Coefficients:
        """The coefficients of a part of the tree, 0 where the part does not score the node."""
        names = self.__dataclass_fields__
        return Coefficients(
            **{name: np.where(scored, getattr(self, name)[nodes], 0.0) for name in names}
        )


@dataclass(frozen=True)
class Objective:
    """A GRPO variant.   `objective(rollouts, rewards, logp, old, ref)` -> (loss, d loss / d logp), one value a node."""

    name: str = "custom"
    baseline: str = "group_mean"
    scale: str = "group_std"
    ddof: int = 1  # 1: sample standard deviation (the paper's authors, TRL); 0: population
    std_eps: float = 1e-4
    # group_token_mean: mean over the tokens of a group, then over groups (the paper).  batch_token_mean: over all tokens (DAPO).
    # sequence_mean: over the tokens of a completion, then over completions (DeepSeekMath).  sequence_sum: summed over the tokens
    # of a completion, then the mean over completions (REINFORCE, RLOO).  constant: sequence_sum / max_new_tokens (Dr. GRPO).
    aggregation: str = "group_token_mean"
    # Each node's term is weighted by |λ|^-alpha, |λ| the members that count.  0: as often as it was sampled (GRPO).
    # 1: each process step counts once (λ-GRPO).
    alpha: float = 0.0
    process_reward: str = "outcome"  # tree: the explicit PRM, (R̂ - mean) / std in place of aᵢ
    clip_low: float | None = None  # None: no clipping
    clip_high: float | None = None
    beta: float = 0.0  # weight of the KL term
    kl: str = "k3"
    mask_truncated: bool = False  # completions stopped by the length limit count for nothing (DAPO)

    def __post_init__(self) -> None:
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"{field} {getattr(self, field)!r} is unknown: choose from {', '.join(allowed)}"
                )
        if self.ddof not in (0, 1) or isinstance(self.ddof, bool):
            raise ValueError(
                f"ddof is {self.ddof}: take 1 for the sample standard deviation, 0 for the population's"
            )
        if self.process_reward == "tree" and self.baseline != "group_mean":
            raise ValueError(
                "the tree's process rewards are centred on the group's mean: take baseline group_mean"
            )
        if self.process_reward == "tree" and self.mask_truncated:
            raise ValueError(
                "the tree's process rewards are means over all members: they do not go with mask_truncated"
            )
        if not isinstance(self.mask_truncated, bool):
            raise ValueError(f"mask_truncated is {self.mask_truncated!r}: it must be true or false")
        for field in ("alpha", "beta", "std_eps", "clip_low", "clip_high"):
            value = getattr(self, field)
            allowed = value is None and field.startswith("clip")
            number = (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and 0 <= value <= LARGEST
            )
            if not (allowed or number):
                raise ValueError(
                    f"{field} is {value!r}: it must be a finite number, at least 0 and at most {LARGEST:g}"
                )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Objective:
        """A named objective, with changes to its fields if wanted.   Raises ValueError for an unknown name or field."""
        if name not in PRESETS:
            raise ValueError(f"unknown objective {name!r}: choose from {', '.join(PRESETS)}")
        unknown = set(changes) - set(cls.__dataclass_fields__)
        if unknown:
            now = (
                ": write alpha=0 for none, alpha=1 for inverse_count"
                if "process_weight" in unknown
                else ""
            )
            raise ValueError(f"an objective has no field {', '.join(sorted(unknown))}{now}")
        return replace(cls(name=name, **PRESETS[name]), **changes)

    def coefficients(
        self, rollouts: Rollouts, rewards: np.ndarray, process_rewards: np.ndarray | None = None
    ) -> Coefficients:
        """Carry the outcome rewards to the nodes.   rewards (B,); process_rewards (N,), one's own: see `step_advantages`

        Raises ValueError for missing or non-finite rewards, groups that are too small, process rewards that would not be used.
        """
        if process_rewards is not None and self.process_reward != "tree":
            raise ValueError(
                'process rewards are given, but process_reward is "outcome": take "tree", as the preset prm has'
            )
        tree = rollouts.tree
        rewards = check_rewards(rewards, tree)
        group, lengths = tree.completion_group, tree.lengths
        counted = ~rollouts.truncated if self.mask_truncated else np.ones(len(group), dtype=bool)
        share = self._shares(lengths * counted, group, rollouts.max_new_tokens) * counted  # cᵢ
        advantage = advantages(rewards, group, self.baseline, self.scale, self.ddof, self.std_eps)
        weight = tree.sum_over_members(share)
        tokens = tree.sum_over_members(counted)
        if self.process_reward == "outcome":
            positive = tree.sum_over_members(share * np.maximum(advantage, 0))
            negative = tree.sum_over_members(share * np.minimum(advantage, 0))
            up = tree.sum_over_members(counted & (advantage > 0))
            down = tree.sum_over_members(counted & (advantage < 0))
        else:
            step = step_advantages(
                tree, rewards, process_rewards, self.scale, self.ddof, self.std_eps
            )
            positive, negative = weight * np.maximum(step, 0), weight * np.minimum(step, 0)
            up, down = tokens * (step > 0), tokens * (step < 0)
        w = np.maximum(tokens, 1) ** -self.alpha
        return Coefficients(w * positive, w * negative, w * weight, tokens, up, down)

    def _shares(self, lengths: np.ndarray, group: np.ndarray, limit: int) -> np.ndarray:
        n_completions, n_groups = len(group), int(group[-1]) + 1
        if self.aggregation == "group_token_mean":
            return 1 / (n_groups * np.maximum(np.bincount(group, lengths), 1)[group])
        if self.aggregation == "batch_token_mean":
            return np.full(n_completions, 1 / max(lengths.sum(), 1))
        if self.aggregation == "sequence_mean":
            return 1 / (n_completions * np.maximum(lengths, 1))
        return np.full(
            n_completions, 1 / (n_completions * (limit if self.aggregation == "constant" else 1))
        )

    def evaluate(
        self,
        coefficients: Coefficients,
        logp: np.ndarray,
        old: np.ndarray,
        ref: np.ndarray | None = None,
    ) -> tuple[float, np.ndarray]:
        """The loss and its derivative with respect to each node's log-probability.   logp, old, ref (N,) -> loss, (N,) float64

        old: log-probabilities under the sampling policy; ref: under the reference policy, needed if beta > 0.
        """
        c = coefficients
        logp, old, ref = c.only_counted(logp, old, ref)
        ratio = np.exp(logp - old)
        low = 0.0 if self.clip_low is None else 1 - self.clip_low
        high = np.inf if self.clip_high is None else 1 + self.clip_high
        value = c.positive * np.minimum(ratio, high) + c.negative * np.maximum(ratio, low)
        slope = ratio * (c.positive * (ratio <= high) + c.negative * (ratio >= low))
        loss, dlogp = -value.sum(), -slope
        if self.beta:
            if ref is None:
                raise ValueError("beta > 0 needs the log-probabilities of a reference policy")
            divergence, d_divergence = kl_estimate(self.kl, logp, ref)
            loss, dlogp = (
                loss + self.beta * (c.weight * divergence).sum(),
                dlogp + self.beta * c.weight * d_divergence,
            )
        return float(loss), dlogp

    def __call__(
        self,
        rollouts: Rollouts,
        rewards: np.ndarray,
        logp: np.ndarray,
        old: np.ndarray,
        ref: np.ndarray | None = None,
    ) -> tuple[float, np.ndarray]:
        """`coefficients`, then `evaluate`."""
        return self.evaluate(self.coefficients(rollouts, rewards), logp, old, ref)

    def metrics(
        self,
        coefficients: Coefficients,
        logp: np.ndarray,
        old: np.ndarray,
        ref: np.ndarray | None = None,
    ) -> dict[str, float]:
        """Shares of tokens whose term is clipped on either side, and the mean k3 estimate of KL(π‖π_ref) if ref is given."""
        c = coefficients
        logp, old, ref = c.only_counted(logp, old, ref)
        ratio = np.exp(logp - old)
        tokens = max(c.tokens.sum(), 1)
        low = (
            0.0
            if self.clip_low is None
            else (c.tokens_down * (ratio < 1 - self.clip_low)).sum() / tokens
        )
        high = (
            0.0
            if self.clip_high is None
            else (c.tokens_up * (ratio > 1 + self.clip_high)).sum() / tokens
        )
        out = {"clip_ratio/low_mean": float(low), "clip_ratio/high_mean": float(high)}
        if ref is not None:
            out["kl"] = float((c.tokens * kl_estimate("k3", logp, ref)[0]).sum() / tokens)
        return out


def kl_estimate(kind: str, logp: np.ndarray, ref: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An estimate D of KL(π‖π_ref) at a token drawn from π, and dD/dlogp.   (N,) each

    With x = log π_ref - log π:  k1 = -x;  k2 = x²/2;  k3 = eˣ - x - 1.  Differentiated as a loss, k1 has an expected gradient of
    zero, k2 has that of KL(π‖π_ref), k3 that of KL(π_ref‖π).  GRPO uses k3.
    """
    x = np.asarray(ref, dtype=np.float64) - logp
    if kind == "k1":
        return -x, np.ones_like(x)
    if kind == "k2":
        return x * x / 2, -x
    return np.expm1(x) - x, -np.expm1(x)


PRESETS: dict[str, dict[str, Any]] = {
    "reinforce": {"baseline": "none", "scale": "none", "aggregation": "sequence_sum"},
    "rloo": {"baseline": "leave_one_out", "scale": "none", "aggregation": "sequence_sum"},
    "grpo": {
        "clip_low": 0.2,
        "clip_high": 0.2,
    },  # the token-mean form that the paper's theorem is about
    "grpo_original": {
        "aggregation": "sequence_mean",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "beta": 0.04,
    },  # DeepSeekMath
    "dapo": {
        "aggregation": "batch_token_mean",
        "clip_low": 0.2,
        "clip_high": 0.28,
        "mask_truncated": True,
    },
    "dr_grpo": {"aggregation": "constant", "scale": "none", "clip_low": 0.2, "clip_high": 0.2},
    "lambda_grpo": {"alpha": 1.0, "clip_low": 0.2, "clip_high": 0.2},
    "prm": {"process_reward": "tree"},  # equal to grpo where nothing is clipped: Theorem 1
}
