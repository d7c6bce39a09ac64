"""Where Theorem 1 holds and where it stops: is an objective the same as one with a process reward for every step of the tree?

Left: trajectory advantages on padded rows, each completion through the model alone.  Right: numbers of a process set λ, fixed by
outcomes and lengths before the policy moves, on the tree, each node computed once:

    left    Σᵢ cᵢ Σₜ ( S(ρ, aᵢ) - β·D )        S(ρ, a) = min(ρ·a, clip(ρ, 1±ε)·a)        cᵢ the aggregation, aᵢ = (rᵢ - mean) / scale
    right   Σ_nodes ( S(ρ, Â) of the step's numbers - β·W·D )                         W = Σ_{i∈λ} cᵢ

  (a) mean             W·S(ρ, Â),  Â = (mean_{i∈λ} rᵢ - mean) / scale: Theorem 1
  (b) length-weighted  the same with R̂ = Σ_{i∈λ} rᵢ/|yᵢ| / Σ_{i∈λ} 1/|yᵢ|
  (c) two sums         S(ρ, A⁺) + S(ρ, A⁻),  A± = Σ_{i∈λ} (cᵢaᵢ)±
  (d) nothing          no function of each node's own log-probability will do

Derivations, for the members of λ, which share ρ and D at every token of its step:
* Unclipped, the set needs Σ cᵢρaᵢ = ρ·Σ cᵢaᵢ.  If cᵢ = c for the group, that is c|λ|ρÂ: (a).  Four of five aggregations are so.
* sequence_mean has cᵢ = 1/(B·|yᵢ|), which differs between members: Σ cᵢaᵢ = W·(weighted mean of aᵢ, weights 1/|yᵢ|): (b), not (a).
* scale divides all aᵢ of a group by one number, which leaves the sum: it changes nothing.  (Nor would another baseline.)
* KL: D is a quantity of the node, so its share is W·D on both sides: it changes nothing, with any estimator.
* Clipped, S(ρ, a) = a·min(ρ, 1+ε) for a > 0, a·max(ρ, 1-ε) for a < 0: linear in a on either side of 0 only, so a set with members
  of both signs needs both sums: (c).  (a) and (b) put the mean's sign in place of the members', and fail once such a set's ρ leaves
  the clip range.  (c) holds for all token-level settings: A± have the cᵢ inside.
* Sequence level, sᵢ = exp(mean_t log ρᵢₜ) (GSPO): members of λ differ in what follows, so sᵢ is no quantity of the set.  In the
  first epoch all sᵢ = ρ = 1 and the gradient at token t is cᵢsᵢaᵢ: as at token level, in value and gradient.  Later, (d): a sum
  over nodes of functions of the node's own log-probability has no mixed differences, f(u+v) - f(u) - f(v) + f(0) = 0 for changes u, v
  of different nodes; `coupling` measures it.  The PRM is also granted the members' mean sᵢ as its ratio: that fails too.

What this leaves out: |λ|-weights (λ-GRPO), which are numbers of the set and change nothing here; truncated completions.
Sources: theorem 1 of arXiv:2509.21154; GSPO arXiv:2507.18071 (with cᵢ|yᵢ| in place of its 1/B, as TRL generalises it).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minigrpo.experiments.parallel import run_jobs
from minigrpo.objectives import CHOICES, Objective, kl_estimate
from minigrpo.optim import AdamW
from minigrpo.padded import padded_loss
from minigrpo.plots import STYLE, save
from minigrpo.sampler import Rollouts, sample
from minigrpo.transformer import Transformer, TransformerConfig
from minigrpo.tree import PrefixTree

LEVELS = ("token", "sequence")
EPOCHS = ("first", "later, unclipped", "later, clipped")  # in the first epoch clipping is on, but no ratio is away from 1
KINDS = {"mean": "(a) mean", "length_weighted": "(b) 1/|y|", "two_sums": "(c) ± sums"}
SCALES, AGGREGATIONS, KLS = CHOICES["scale"], CHOICES["aggregation"], ("none", *CHOICES["kl"])
MEASURES = ("value", "nodes", "parameters")  # of the loss; of its gradient for the nodes' log p, and for the model's parameters
EXACT, APART = 1e-12, 1e-3
CLIP, BETA, EPOCHS_BEFORE, LEARNING_RATE = 0.2, 0.04, 3, 5e-3  # μ = 4: three updates, then the measurement
FULL_SEEDS, QUICK_SEEDS = 4, 1


def is_exact(level: str, epoch: str, aggregation: str, kind: str) -> bool:
    """What the derivations say."""
    if level == "sequence" and epoch != "first":
        return False
    if kind == "two_sums":
        return True
    return epoch != "later, clipped" and (aggregation == "sequence_mean") == (kind == "length_weighted")


# -- the rollouts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Batch:
    """Rollouts in several groups, and three policies: the sampling one, one three updates later, a reference."""

    model: Transformer
    rollouts: Rollouts
    flat: PrefixTree  # the same completions, nothing shared
    rewards: np.ndarray  # (B,)
    policies: dict[str, np.ndarray]  # "old", "now", "ref": flat parameter vectors
    flat_logp: dict[str, np.ndarray]  # (B,T) each, every completion computed alone
    tree_logp: dict[str, np.ndarray]  # (N,) each, every node computed once


def make_batch(seed: int) -> Batch:
    """Four groups of eight completions of 1 to 8 tokens, from a small random transformer in float64 that is far from uniform."""
    rng = np.random.default_rng([7, seed])
    shape = {"dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 24, "tie_embeddings": False}
    model = Transformer(TransformerConfig(vocab_size=4, max_seq_len=16, **shape), dtype="float64")
    for view in model.parameters.values():
        view[...] = 0.3 * rng.standard_normal(view.shape) + (view.ndim == 1)
    rollouts = sample(model, [[1], [2, 3], [1], [3]], 8, rng, max_new_tokens=8, eos=0)
    rewards = rng.choice([-1.0, 0.1, 0.7, 1.0], size=len(rollouts.truncated))
    flat = PrefixTree.from_groups(rollouts.prompts, rollouts.completions, merge=False)
    theta = model.parameters.flat
    policies = {"old": theta.copy(), "ref": theta * (1 + 0.05 * rng.standard_normal(theta.shape))}
    objective, optimizer = Objective.preset("grpo"), AdamW(model.parameters)
    for _ in range(EPOCHS_BEFORE):
        model.gradients.flat[:] = 0
        _, dlogp = objective(rollouts, rewards, model.forward(rollouts.tree), rollouts.logp)
        model.backward(dlogp)
        optimizer.step(model.parameters, model.gradients, LEARNING_RATE)
    policies["now"] = theta.copy()
    flat_logp, tree_logp = {}, {}
    for name, parameters in policies.items():
        theta[:] = parameters
        flat_logp[name] = flat.on_tokens(model.forward(flat, keep=False))
        tree_logp[name] = model.forward(rollouts.tree, keep=False)
    return Batch(model, rollouts, flat, rewards, policies, flat_logp, tree_logp)


# -- the two sides -------------------------------------------------------------------------------------------------------


def outcome_side(objective: Objective, level: str, batch: Batch, logp: np.ndarray) -> tuple[float, np.ndarray]:
    """The loss with one advantage a completion, on padded rows, and its derivative.   logp (B,T) -> loss, (B,T)"""
    old, ref = batch.flat_logp["old"], batch.flat_logp["ref"]

    def loss_at(rows: np.ndarray, beta: float) -> tuple[float, np.ndarray]:
        plain = Objective(**{**vars(objective), "beta": beta})
        limit = batch.rollouts.max_new_tokens
        return padded_loss(plain, batch.rollouts.completions, batch.rewards, rows, old, ref, max_new_tokens=limit)

    if level == "token":
        return loss_at(logp, objective.beta)
    mask = batch.rollouts.tree.paths >= 0
    lengths = mask.sum(1, keepdims=True)
    mean_log_ratio = np.where(mask, logp - old, 0.0).sum(1, keepdims=True) / lengths
    surrogate, drows = loss_at(np.where(mask, old + mean_log_ratio, 0.0), 0.0)  # every token's ratio is now sᵢ
    dlogp = np.where(mask, drows.sum(1, keepdims=True) / lengths, 0.0)
    with_kl, without_kl = loss_at(logp, objective.beta), loss_at(logp, 0.0)  # the KL term stays a token's own
    return surrogate + with_kl[0] - without_kl[0], dlogp + with_kl[1] - without_kl[1]


def process_numbers(kind: str, objective: Objective, tree: PrefixTree, rewards: np.ndarray, limit: int) -> np.ndarray:
    """A⁺, A⁻ and W of every node, from the members of its process step, by the definitions above.   -> (3,N)"""
    lengths, sizes = tree.lengths, tree.group_sizes
    numbers = np.zeros((3, tree.n_nodes))
    for group in range(tree.n_groups):
        own = tree.completion_group == group
        r, mean = rewards[own], rewards[own].mean()
        scale = {"group_std": r.std(ddof=1), "batch_std": rewards.std(ddof=1)}.get(objective.scale, 1 - 1e-4) + 1e-4
        for step in tree.steps(group):
            i = list(step.members)
            share = {
                "group_token_mean": np.full(len(i), 1 / (tree.n_groups * lengths[own].sum())),
                "batch_token_mean": np.full(len(i), 1 / lengths.sum()),
                "sequence_mean": 1 / (sizes.sum() * lengths[i]),
                "sequence_sum": np.full(len(i), 1 / sizes.sum()),
                "constant": np.full(len(i), 1 / (sizes.sum() * limit)),
            }[objective.aggregation]
            if kind == "two_sums":
                terms = share * (rewards[i] - mean) / scale
            else:
                reward = rewards[i].mean() if kind == "mean" else np.average(rewards[i], weights=1 / lengths[i])
                terms = np.array([share.sum() * (reward - mean) / scale])
            numbers[:, list(step.nodes)] = [[terms[terms > 0].sum()], [terms[terms < 0].sum()], [share.sum()]]
    return numbers


def process_side(
    numbers: np.ndarray, objective: Objective, tree: PrefixTree, logps: Sequence[np.ndarray], ratio_kind: str = "node"
) -> tuple[float, np.ndarray]:
    """The loss with numbers for every process step, and its derivative.   numbers (3,N), logps: now, old, ref (N,) -> loss, (N,)

    ratio_kind "node": ρ of the node.  "members": the mean over the members of λ of their sᵢ, which looks ahead of the step.
    """
    up, down, weight = numbers
    logp, old, ref = logps
    ratio = np.exp(logp - old)
    if ratio_kind == "members":
        s = np.exp(tree.on_tokens(logp - old).sum(1) / tree.lengths)  # (B,)
        ratio = tree.sum_over_members(s) / tree.count
    high, low = (np.inf, 0.0) if objective.clip_high is None else (1 + objective.clip_high, 1 - objective.clip_low)
    divergence, d_divergence = kl_estimate(objective.kl, logp, ref)
    value = (up * np.minimum(ratio, high) + down * np.maximum(ratio, low) - objective.beta * weight * divergence).sum()
    dratio = up * (ratio <= high) + down * (ratio >= low)  # d value / d ratio
    if ratio_kind == "members":
        ds = tree.on_tokens(dratio / tree.count).sum(1)  # (B,)
        slope = tree.sum_over_members(ds * s / tree.lengths)
    else:
        slope = dratio * ratio
    return float(-value), np.where(tree.scored, objective.beta * weight * d_divergence - slope, 0.0)


def gradient(batch: Batch, tree: PrefixTree, dlogp: np.ndarray) -> np.ndarray:
    """d loss / d parameters of the model as it stands.   (N,) -> (P,)"""
    batch.model.gradients.flat[:] = 0
    batch.model.forward(tree)
    batch.model.backward(dlogp)
    return batch.model.gradients.flat.copy()


# -- the measurement -----------------------------------------------------------------------------------------------------


def measure(seed: int, scales: Sequence[str] = SCALES, kls: Sequence[str] = KLS) -> list[dict[str, Any]]:
    """Relative differences of the two sides for every setting, on the rollouts of one seed.   -> a flat row a setting

    For each kind of numbers: of the value, over Σ|terms|; of the gradient with respect to the nodes' log-probabilities and to the
    model's parameters (Euclidean norms).  At sequence level the better of two ratios for the PRM.  coupling: the mixed
    difference of the left side for random changes of nodes at even and at odd depths, over Σ|terms|.
    """
    batch, rng = make_batch(seed), np.random.default_rng([8, seed])
    tree, mask = batch.rollouts.tree, batch.rollouts.tree.paths >= 0
    u = np.where(tree.scored, rng.normal(0, 0.1, tree.n_nodes), 0.0)
    u, v = (tree.on_tokens(np.where(tree.depth % 2 == parity, u, 0.0)) for parity in (0, 1))
    rows = []
    for level, epoch, aggregation, scale, kl in product(LEVELS, EPOCHS, AGGREGATIONS, scales, kls):
        clip = None if epoch == "later, unclipped" else CLIP
        settings = {"aggregation": aggregation, "scale": scale, "clip_low": clip, "clip_high": clip}
        objective = Objective(**settings, **({} if kl == "none" else {"beta": BETA, "kl": kl}))
        policy = "old" if epoch == "first" else "now"
        batch.model.parameters.flat[:] = batch.policies[policy]
        logps = [batch.tree_logp[name] for name in (policy, "old", "ref")]
        numbers = {kind: process_numbers(kind, objective, tree, batch.rewards, batch.rollouts.max_new_tokens) for kind in KINDS}
        terms = float(((numbers["two_sums"][0] - numbers["two_sums"][1]) * np.exp(logps[0] - logps[1])).sum())

        logp = batch.flat_logp[policy]
        loss, dlogp = outcome_side(objective, level, batch, logp)
        on_flat = np.zeros(batch.flat.n_nodes)
        on_flat[batch.flat.paths[mask]] = dlogp[mask]
        on_nodes = np.bincount(tree.paths[mask], dlogp[mask], minlength=tree.n_nodes)
        left = loss, on_nodes, gradient(batch, batch.flat, on_flat)
        changed = [outcome_side(objective, level, batch, logp + change)[0] for change in (u + v, u, v)]

        row = {"ratio": level, "epoch": epoch, "aggregation": aggregation, "scale": scale, "kl": kl}
        row["coupling"] = abs(changed[0] - changed[1] - changed[2] + loss) / terms
        for kind in KINDS:
            results = []
            for ratio_kind in ("node",) if level == "token" else ("node", "members"):
                value, on_nodes = process_side(numbers[kind], objective, tree, logps, ratio_kind)
                right = value, on_nodes, gradient(batch, tree, on_nodes)
                pairs = zip(left[1:], right[1:], strict=True)
                apart = [float(np.linalg.norm(b - a) / np.linalg.norm(a)) for a, b in pairs]
                results.append([abs(value - loss) / terms, *apart])
            row |= {f"{kind}_{name}": x for name, x in zip(MEASURES, min(results, key=max), strict=True)}
        rows.append(row)
    return rows


def worst(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of rows that share level, epoch and aggregation: the largest differences where exact, the smallest where not."""
    out = dict(rows[0])
    for kind, name in product(KINDS, MEASURES):
        pick = max if is_exact(out["ratio"], out["epoch"], out["aggregation"], kind) else min
        out[f"{kind}_{name}"] = pick(row[f"{kind}_{name}"] for row in rows)
    return out | {"coupling": (max if out["ratio"] == "token" else min)(row["coupling"] for row in rows)}


def violations(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Where the measurement contradicts the derivations: exact but not below 1e-12, or not exact but not above 1e-3."""
    found = []
    for row, kind, name in product(rows, KINDS, MEASURES):
        exact = is_exact(row["ratio"], row["epoch"], row["aggregation"], kind)
        x = row[f"{kind}_{name}"]
        if not (x < EXACT if exact else x > APART):
            found.append(f"{row['ratio']} level, {row['epoch']}, {row['aggregation']}: {kind} {name} {x:.1e}")
    for row in rows:
        if not (row["coupling"] < EXACT if row["ratio"] == "token" else row["coupling"] > APART):
            found.append(f"{row['ratio']} level, {row['epoch']}, {row['aggregation']}: coupling {row['coupling']:.1e}")
    return found
