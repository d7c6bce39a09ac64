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

Objectives are evaluated on the host in float64.  One of your own is a subclass of `Objective` that
overrides one of four methods (worked examples: tutorials/own_work):

    advantages      aᵢ of completions, or of their tokens      node_weights   w, of |λ|
    node_values     the value of a node and its derivative     on_nodes       all that is summed

Sources: GRPO arXiv:2402.03300; DAPO arXiv:2503.14476; Dr. GRPO arXiv:2503.20783; RLOO
arXiv:2402.14740; λ-GRPO arXiv:2509.21154 (neither the "λ-GRPO" of arXiv:2510.06870 nor the "GRPO-λ"
of arXiv:2510.00194); KL estimators http://joschu.net/blog/kl-approx.html.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from minigrpo.rewards import BASELINES, LARGEST, SCALES, advantages, step_advantages
from minigrpo.system.user_code import check_choice, check_number
from minigrpo.tree import Array, Rollouts

CHOICES: dict[str, tuple] = {
    "baseline": BASELINES,
    "scale": SCALES,
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
NUMBERS = ("alpha", "beta", "std_eps", "clip_low", "clip_high", "outcome_weight", "process_weight")


@dataclass(frozen=True, eq=False)
class Coefficients:
    """What is summed over the members of each node, once a batch.   All fields (N,)

    A node adds -(positive·min(ρ, 1+high) + negative·max(ρ, 1-low)) + β·weight·D to the loss.  A
    subclass may have more fields.
    >>> model, rng = mg.Transformer(mg.TransformerConfig(vocab_size=10)), np.random.default_rng(0)
    >>> rollouts = mg.sample(model, [[1]], 2, rng, max_new_tokens=1)
    >>> mg.Objective.preset("grpo").coefficients(rollouts, [1.0, 0.0]).tokens  # of Coefficients
    array([0., 1., 1.])
    """

    positive: Array  # (N,) w · Σ (cᵢaᵢ)⁺ over the members
    negative: Array  # (N,) w · Σ (cᵢaᵢ)⁻, at most 0
    weight: Array  # (N,) w · Σ cᵢ
    tokens: Array  # (N,) members that count
    tokens_up: Array  # (N,) of these, members with aᵢ > 0, or all if Â > 0
    tokens_down: Array  # (N,) of these, members with aᵢ < 0, or all if Â < 0

    @property
    def push(self) -> Array:
        """(N,) -d loss / d logp where ρ = 1, without KL: the process reward, times w and Σ cᵢ."""
        return self.positive + self.negative

    def only_counted(self, logp: Array) -> Array:
        """Log-probabilities in float64; 0 where no member counts, so that nothing overflows."""
        return np.where(self.tokens > 0, logp, 0.0).astype(np.float64)

    def for_part(self, nodes: Array, scored: Array) -> Coefficients:
        """Those of a part of the tree (`plan.split_tree`), 0 where it does not score the node."""
        found = {name: np.where(scored, x[nodes], 0.0) for name, x in vars(self).items()}
        return replace(self, **found)


@dataclass(frozen=True)
class Objective:
    """A GRPO variant.   objective(rollouts, rewards, logp, old, ref) -> loss, dlogp (N,)

    loss = -Σᵢ cᵢ Σₜ w(i,t) · (min(ρ·aᵢ, clip(ρ)·aᵢ) - β·D); each field chooses a part of it (see
    objectives.py).  It keeps nothing from step to step: a run that goes on makes it anew.
    Raises ValueError for choices that are unknown or contradict each other.
    >>> objective = mg.Objective(alpha=0.5, clip_low=0.2, clip_high=0.28)  # 1/√|λ|, and DAPO's clip
    >>> objective.node_weights(np.array([1.0, 4.0]))
    array([1. , 0.5])
    """

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
    outcome_weight: float = 1.0  # of the outcome's advantage
    process_weight: float = 0.0  # of the standardised process rewards of the task, added to it

    every_update: ClassVar[bool] = False  # ask for coefficients before each: ratios of sequences

    def __post_init__(self) -> None:
        for field in CHOICES:
            check_choice(field, getattr(self, field), CHOICES[field])
        for field in NUMBERS:
            if not (field.startswith("clip") and getattr(self, field) is None):
                check_number(field, getattr(self, field), LARGEST)
        if self.process_reward == "tree" and (self.baseline != "group_mean" or self.mask_truncated):
            found = "the tree's process rewards are centred on the mean of all members"
            raise ValueError(f"{found}: take baseline group_mean, and mask_truncated=False")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Objective:
        """A named objective, with changes to its fields.   Raises ValueError for unknown ones.

        >>> mg.Objective.preset("grpo_original", beta=0.1).aggregation
        'sequence_mean'
        """
        if name not in PRESETS:
            raise ValueError(f"unknown objective {name!r}: choose from {', '.join(PRESETS)}")
        unknown = set(changes) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"an objective has no field {', '.join(sorted(unknown))}")
        return cls(**{"name": name, **PRESETS[name], **changes})

    def coefficients(
        self,
        rollouts: Rollouts,
        rewards: ArrayLike,
        process_rewards: ArrayLike | None = None,
        logp: Array | None = None,
    ) -> Coefficients:
        """Carry outcome rewards (B,), and process rewards (N,) of one's own, to the nodes.

        With process_weight, process rewards add process_weight · Â of `step_advantages(values=…)`
        to each aᵢ: their mean and std are their own, so groups of equal outcomes learn from them.
        Without it they may stand in for R̂, where process_reward is "tree".
        logp (N,): under the policy before an update after the first, if `every_update`.
        Raises ValueError for bad rewards, groups that are too small, process rewards without a use.
        """
        by_tree, given = self.process_reward == "tree", process_rewards is not None
        if self.process_weight and not given:
            found = "process_weight is set, but there are no process rewards"
            raise ValueError(f"{found}: take a task that gives some, or process_weight 0")
        if given and not (by_tree or self.process_weight):
            found = 'process rewards are given, but process_reward is "outcome"'
            raise ValueError(f'{found}: take "tree", as the preset prm has, or set process_weight')
        tree, standard = rollouts.tree, (self.scale, self.ddof, self.std_eps)
        own = step_advantages(tree, rewards, process_rewards, *standard) if given else np.zeros(1)
        if by_tree and given and not self.process_weight:
            a = own  # (N,)
        elif by_tree:
            a = self.outcome_weight * step_advantages(tree, rewards, None, *standard)
            a = a + self.process_weight * own
        else:
            a = self.outcome_weight * self.advantages(rollouts, rewards)  # (B,) or (B,T)
            if self.process_weight:
                a = a.reshape(len(a), -1) + self.process_weight * tree.on_tokens(own)
        return self.on_nodes(rollouts, a, by_tree, logp)

    def advantages(self, rollouts: Rollouts, rewards: ArrayLike) -> Array:
        """aᵢ of completions (B,), or of their tokens (B,T).   Not asked where it is the tree's."""
        group = rollouts.tree.completion_group
        return advantages(rewards, group, self.baseline, self.scale, self.ddof, self.std_eps)

    def node_weights(self, count: Array) -> Array:
        """w of every node, by |λ|, the members that count, at least 1.   (N,) -> (N,)"""
        return count**-self.alpha

    def on_nodes(
        self, rollouts: Rollouts, a: Array, per_node: bool = False, logp: Array | None = None
    ) -> Coefficients:
        """Sums over members of advantages a (B,), (B,T), or (N,) if per_node.   logp: see above"""
        tree, counted = rollouts.tree, ~(rollouts.truncated & self.mask_truncated)
        share = counted / self._averaged_over(rollouts, tree.lengths * counted)  # cᵢ
        weight, tokens = tree.sum_over_members(share), tree.sum_over_members(counted)
        if per_node:
            positive, negative = weight * np.maximum(a, 0), weight * np.minimum(a, 0)
            up, down = tokens * (a > 0), tokens * (a < 0)
        else:
            if a.ndim == 2:
                share, counted = share[:, None], counted[:, None]
            positive = tree.sum_over_members(share * np.maximum(a, 0))
            negative = tree.sum_over_members(share * np.minimum(a, 0))
            up, down = (tree.sum_over_members(counted & side) for side in (a > 0, a < 0))
        w = self.node_weights(np.maximum(tokens, 1))
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

    def node_values(
        self, coefficients: Coefficients, logp: Array, old: Array
    ) -> tuple[Array, Array]:
        """What every node adds to J, without KL, and its derivative by logp.   -> (N,), (N,)

        It sees the nodes of one micro-batch: what needs the whole batch belongs into `on_nodes`.
        """
        c, (low, high), ratio = coefficients, self.clip_range, np.exp(logp - old)
        value = c.positive * np.minimum(ratio, high) + c.negative * np.maximum(ratio, low)
        return value, ratio * (c.positive * (ratio <= high) + c.negative * (ratio >= low))

    def evaluate(
        self, coefficients: Coefficients, logp: Array, old: Array, ref: Array | None = None
    ) -> tuple[float, Array]:
        """The loss and its derivative by each node's log-probability.   -> loss, dlogp (N,) float64

        logp, old, ref (N,): log-probabilities under the policy, the one that sampled, and the
        reference, which beta > 0 needs (else ValueError).
        """
        c, logp = coefficients, coefficients.only_counted(logp)
        both = self.node_values(c, logp, c.only_counted(old))
        if (shape := np.shape(both)) != (2, len(logp)):
            wanted = f"it must be a value and a derivative for each of {len(logp)} nodes"
            raise ValueError(f"node_values gave numbers of shape {shape}: {wanted}")
        value, slope = (np.where(c.tokens > 0, x, 0.0) for x in both)  # others count elsewhere
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
