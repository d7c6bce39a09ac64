"""For which objectives is GRPO a PRM?   (results/README.md, "Where Theorem 1 holds …")

Left: trajectory advantages on padded rows, each completion through the model alone.  Right: numbers
of a process set λ, fixed by outcomes and lengths before the policy moves, on the tree, each node
computed once:

    left    Σᵢ cᵢ Σₜ ( S(ρ, aᵢ) - β·D )         S(ρ, a) = min(ρ·a, clip(ρ, 1±ε)·a)
    right   Σ_nodes ( S(ρ, numbers of λ) - β·W·D )              W = Σ_{i∈λ} cᵢ

with cᵢ from the aggregation and aᵢ = (rᵢ - mean) / scale.  The kinds of numbers:

  (a) mean             W·S(ρ, Â),  Â = (mean_{i∈λ} rᵢ - mean) / scale: Theorem 1
  (b) length-weighted  the same with R̂ = Σ_{i∈λ} rᵢ/|yᵢ| / Σ_{i∈λ} 1/|yᵢ|
  (c) two sums         S(ρ, A⁺) + S(ρ, A⁻),  A± = Σ_{i∈λ} (cᵢaᵢ)±
  (d) nothing          no function of each node's own log-probability will do

is_exact() holds what the derivations in results/README.md say.  `coupling` measures (d): in a sum
over nodes of functions of the node's own log-probability, the gradient at a node does not depend on
other nodes; under a ratio of the whole sequence (GSPO) it does, after the first epoch.

Left out: |λ|-weights (λ-GRPO) and other baselines, numbers of the set or group, which change
nothing.  Sources: theorem 1 of arXiv:2509.21154; GSPO, arXiv:2507.18071, its ratio in every token's
term and cᵢ as above (sequence_mean is the printed form).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from matplotlib.figure import Figure

from minigrpo.engine.optim import AdamW
from minigrpo.experiments import tables as t
from minigrpo.experiments.figures import cell, matrix_axes, matrix_style, panels
from minigrpo.experiments.reproduce import Request
from minigrpo.objectives import CHOICES, Objective, kl_estimate
from minigrpo.sampler import sample
from minigrpo.transformer import Transformer, TransformerConfig
from minigrpo.tree import PrefixTree, Rollouts
from minigrpo.verify.padded import padded_loss

LEVELS = ("token", "sequence")
# In the first, clipping is on but all ratios are 1.
EPOCHS = ("first epoch", "later epochs, unclipped", "later epochs, clipped")
KINDS = {"mean": "(a) mean", "length_weighted": "(b) 1/|y|", "two_sums": "(c) ± sums"}
SCALES, AGGREGATIONS, KLS = CHOICES["scale"], CHOICES["aggregation"], ("none", *CHOICES["kl"])
MEASURES = ("value", "nodes", "parameters")  # the loss; its gradient for nodes' log p, for weights
SETTING = ("ratio", "epoch", "aggregation", "scale", "kl")
EXACT, APART = 1e-12, 1e-3
CLIP, BETA = 0.2, 0.04
UPDATES, LEARNING_RATE = 3, 5e-3  # μ = 4: three updates by AdamW, then the measurement
SHAPE = {"dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 24}


def is_exact(level: str, epoch: str, aggregation: str, kind: str) -> bool:
    """What the derivations say."""
    if level == "sequence" and epoch != EPOCHS[0]:
        return False
    fits = (aggregation == "sequence_mean") == (kind == "length_weighted")
    return kind == "two_sums" or (epoch != EPOCHS[2] and fits)


@dataclass(frozen=True, eq=False)
class Batch:
    """Rollouts in several groups, and what three policies say of them.

    The policies: "old" sampled, "now" is three updates later, "ref" is a reference.
    """

    rollouts: Rollouts
    flat: PrefixTree  # the same completions, nothing shared
    rewards: np.ndarray  # (B,)
    flat_logp: dict[str, np.ndarray]  # (B,T), every completion computed alone
    tree_logp: dict[str, np.ndarray]  # (N,), every node computed once
    slopes: dict[str, tuple]  # d log p / d parameters: of the flat nodes, of the tree's


def make_batch(seed: int) -> Batch:
    """Four groups of eight completions of 1 to 8 tokens, from a small transformer in float64."""
    rng = np.random.default_rng([7, seed])
    config = TransformerConfig(vocab_size=4, max_seq_len=16, tie_embeddings=False, **SHAPE)
    model = Transformer(config, dtype="float64")
    for view in model.parameters.values():  # far from a uniform policy
        view[...] = 0.3 * rng.standard_normal(view.shape) + (view.ndim == 1)
    rollouts = sample(model, [[1], [2, 3], [1], [3]], 8, rng, max_new_tokens=8, eos=0)
    tree, theta = rollouts.tree, model.parameters.flat
    rewards = rng.choice([-1.0, 0.1, 0.7, 1.0], size=len(rollouts.truncated))
    flat = PrefixTree.from_groups(rollouts.prompts, rollouts.completions, merge=False)
    policies = {"old": theta.copy(), "ref": theta * (1 + 0.05 * rng.standard_normal(theta.shape))}
    objective, optimizer = Objective.preset("grpo"), AdamW(model.parameters)
    for _ in range(UPDATES):
        model.gradients.flat[:] = 0
        model.backward(objective(rollouts, rewards, model.forward(tree), rollouts.logp)[1])
        optimizer.step(model.parameters, model.gradients, LEARNING_RATE)
    policies["now"] = theta.copy()
    batch = Batch(rollouts, flat, rewards, {}, {}, {})
    for name, parameters in policies.items():
        theta[:] = parameters
        batch.flat_logp[name] = flat.on_tokens(model.forward(flat, keep=False))
        batch.tree_logp[name] = model.forward(tree, keep=False)
        batch.slopes[name] = jacobian(model, flat), jacobian(model, tree)
    return batch


def outcome_side(objective: Objective, level: str, batch: Batch, logp: np.ndarray) -> tuple:
    """The loss with one advantage per completion, on padded rows.   logp (B,T) -> loss, d/dlogp"""
    old, ref, r = batch.flat_logp["old"], batch.flat_logp["ref"], batch.rollouts

    def loss_at(rows: np.ndarray, beta: float) -> tuple[float, np.ndarray]:
        those = (replace(objective, beta=beta), r.completions, batch.rewards, rows, old, ref)
        return padded_loss(*those, max_new_tokens=r.max_new_tokens)

    if level == "token":
        return loss_at(logp, objective.beta)
    mask = r.tree.paths >= 0
    lengths = mask.sum(1, keepdims=True)
    log_s = np.where(mask, logp - old, 0.0).sum(1, keepdims=True) / lengths  # (B,1)
    value, drows = loss_at(np.where(mask, old + log_s, 0.0), 0.0)  # every token's ratio is now sᵢ
    dlogp = np.where(mask, drows.sum(1, keepdims=True) / lengths, 0.0)
    with_kl, without = loss_at(logp, objective.beta), loss_at(logp, 0.0)
    return value + with_kl[0] - without[0], dlogp + with_kl[1] - without[1]  # KL: a token's own


def process_numbers(
    kind: str, objective: Objective, tree: PrefixTree, rewards: np.ndarray, limit: int
) -> np.ndarray:
    """A⁺, A⁻ and W of every node, from the members of its process step.   -> (3,N)"""
    lengths, total = tree.lengths, tree.group_sizes.sum()
    numbers = np.zeros((3, tree.n_nodes))
    for group in range(tree.n_groups):
        own = tree.completion_group == group
        r, mean = rewards[own], rewards[own].mean()
        scales = {"group_std": r.std(ddof=1) + 1e-4, "batch_std": rewards.std(ddof=1) + 1e-4}
        scale = scales.get(objective.scale, 1.0)
        shares = {
            "group_token_mean": 1 / (tree.n_groups * lengths[own].sum()),
            "batch_token_mean": 1 / lengths.sum(),
            "sequence_mean": 1 / (total * lengths),
            "sequence_sum": 1 / total,
            "constant": 1 / (total * limit),
        }
        c = np.broadcast_to(shares[objective.aggregation], lengths.shape)  # cᵢ
        for step in tree.steps(group):
            i = list(step.members)
            if kind == "two_sums":
                terms = c[i] * (rewards[i] - mean) / scale
            else:
                weights = None if kind == "mean" else 1 / lengths[i]
                reward = np.average(rewards[i], weights=weights)
                terms = np.array([c[i].sum() * (reward - mean) / scale])
            signs = terms[terms > 0].sum(), terms[terms < 0].sum(), c[i].sum()
            numbers[:, list(step.nodes)] = np.array(signs)[:, None]
    return numbers


def process_side(
    numbers: np.ndarray, objective: Objective, logps: Sequence[np.ndarray]
) -> tuple[float, np.ndarray]:
    """The loss with numbers for every process step.   numbers (3,N), logps: now, old, ref (N,)

    -> loss, d loss / d logp now (N,)
    """
    (up, down, weight), (logp, old, ref) = numbers, logps
    ratio, clip = np.exp(logp - old), objective.clip_high
    high, low = (np.inf, 0.0) if clip is None else (1 + clip, 1 - objective.clip_low)
    divergence, d_divergence = kl_estimate(objective.kl, logp, ref)
    gain = up * np.minimum(ratio, high) + down * np.maximum(ratio, low)
    value = (gain - objective.beta * weight * divergence).sum()
    slope = (up * (ratio <= high) + down * (ratio >= low)) * ratio  # of the gain
    return float(-value), objective.beta * weight * d_divergence - slope


def jacobian(model: Transformer, tree: PrefixTree) -> np.ndarray:
    """d log p / d parameters of every node, by one pass backward per node.   -> (N, parameters)"""
    rows = np.empty((tree.n_nodes, model.parameters.flat.size))
    for row, one in zip(rows, np.eye(tree.n_nodes), strict=True):
        model.gradients.flat[:] = 0
        model.forward(tree)
        row[:] = model.backward(one).flat
    return rows


def measure(seed: int, scales: Sequence[str] = SCALES, kls: Sequence[str] = KLS) -> list[t.Row]:
    """Relative differences of the two sides for every setting, on the rollouts of one seed.

    For each kind of numbers: of the value, over Σ|terms|; of the gradient with respect to the
    nodes' log-probabilities and to the model's parameters (Euclidean norms).  coupling: the
    relative change of the left side's gradient at the nodes of even depth when the
    log-probabilities of those of odd depth change.
    """
    batch = make_batch(seed)
    tree = batch.rollouts.tree
    mask, odd, rows = tree.paths >= 0, tree.depth % 2 == 1, []

    def on(its: PrefixTree, values: np.ndarray) -> np.ndarray:  # (B,T) -> (N,)
        return np.bincount(its.paths[mask], values[mask], minlength=its.n_nodes)

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(b - a) / np.linalg.norm(a))

    for setting in product(LEVELS, EPOCHS, AGGREGATIONS, scales, kls):
        row: t.Row = dict(zip(SETTING, setting, strict=True))
        level, epoch, aggregation, scale, kl = setting
        clip = None if epoch == EPOCHS[1] else CLIP
        options = {"aggregation": aggregation, "scale": scale, "clip_low": clip, "clip_high": clip}
        objective = Objective(**options, **({} if kl == "none" else {"beta": BETA, "kl": kl}))
        policy = "old" if epoch == EPOCHS[0] else "now"
        logps = [batch.tree_logp[name] for name in (policy, "old", "ref")]
        shared = (objective, tree, batch.rewards, batch.rollouts.max_new_tokens)
        numbers = {kind: process_numbers(kind, *shared) for kind in KINDS}
        up, down, _ = numbers["two_sums"]
        terms = float(((up - down) * np.exp(logps[0] - logps[1])).sum())
        logp = batch.flat_logp[policy]
        loss, dlogp = outcome_side(objective, level, batch, logp)
        left = on(tree, dlogp), on(batch.flat, dlogp) @ batch.slopes[policy][0]
        moved = outcome_side(objective, level, batch, logp - 0.05 * tree.on_tokens(odd))[1]
        row["coupling"] = apart(left[0][~odd], on(tree, moved)[~odd])
        for kind in KINDS:
            value, on_nodes = process_side(numbers[kind], objective, logps)
            right = on_nodes, on_nodes @ batch.slopes[policy][1]
            found = (abs(value - loss) / terms, *map(apart, left, right))
            row |= {f"{kind}_{name}": x for name, x in zip(MEASURES, found, strict=True)}
        rows.append(row)
    return rows


def judged(row: t.Row) -> dict[str, bool]:
    """The columns that were measured, and whether each should be exact."""
    exact = {kind: is_exact(row["ratio"], row["epoch"], row["aggregation"], kind) for kind in KINDS}
    columns = {f"{kind}_{name}": exact[kind] for kind in KINDS for name in MEASURES}
    return {"coupling": row["ratio"] == "token"} | columns


def joined(rows: t.Rows, *names: str) -> list[t.Row]:
    """A row for the rows that agree in these columns: the worst of what was measured.

    That is the largest of the differences where exact, the smallest where not.
    """
    out: dict[tuple, t.Row] = {}
    for row in rows:
        known = out.setdefault(tuple(row[name] for name in names), dict(row))
        for name, exact in judged(row).items():
            known[name] = (max if exact else min)(known[name], row[name])
    return list(out.values())


def violations(rows: t.Rows) -> list[str]:
    """Where a measurement contradicts the derivations.

    That is: exact and not below 1e-12, or not exact and not above 1e-3.  Two functions that differ
    may agree in value at a point by chance, so what is not exact is judged by its gradients.
    """
    return [
        " ".join([*(row[name] for name in SETTING), f"{column} {row[column]:.1e}"])
        for row in rows
        for column, exact in judged(row).items()
        if not (row[column] < EXACT if exact else row[column] > APART or column.endswith("value"))
    ]


def difference(row: t.Row, kind: str) -> tuple[bool, float]:
    """Whether it should be exact; the largest of the differences of value and gradients."""
    exact = is_exact(row["ratio"], row["epoch"], row["aggregation"], kind)
    return exact, max(row[f"{kind}_{name}"] for name in MEASURES)


def text(rows: t.Rows) -> str:
    """A line for each level, epoch and aggregation; "=" marks what is exact."""
    shown = joined(rows, *SETTING[:3])
    for row in shown:
        for kind in KINDS:
            exact, apart = difference(row, kind)
            row[kind] = f"{'= ' * exact}{apart:.1e}"
    found, title = violations(rows), "the larger of the differences in value and gradient"
    told = f"{len(rows)} settings, {len(found)} contradict the derivations"
    columns = " ".join([*SETTING[:3], *KINDS, "coupling"])
    return "\n".join([t.show({title: shown}, {title: columns}), *found, told])


@matrix_style
def figures(rows: t.Rows) -> dict[str, Figure]:
    """Six small matrices, aggregation by kind of numbers: exact cells are framed and marked "="."""
    worst = joined(rows, *SETTING[:3])
    drawn, grid = panels(2, 3, 10, 6.6, sharey=True)
    for ax, (level, epoch) in zip(grid.flat, product(LEVELS, EPOCHS), strict=True):
        own = t.select(worst, ratio=level, epoch=epoch)
        for (y, row), (x, kind) in product(enumerate(own), enumerate(KINDS)):
            exact, apart = difference(row, kind)
            shade = 1.0 if exact else float(np.interp(np.log10(apart), [-2, 0.5], [0.9, 0.45]))
            told = f"=  {apart:.0e}" if exact else f"{apart:.2g}"
            cell(ax, x, y, told, str(shade), exact, size=10)
        matrix_axes(ax, list(KINDS.values()), t.distinct(own, "aggregation"))
        nothing = "" if is_exact(level, epoch, "", "two_sums") else ": (d) nothing"
        ax.set_title(f"ratio of the {level}\n{epoch}{nothing}")
    title = "Which process rewards give the same objective?  (=: the same)"
    drawn.suptitle(title, x=0.01, ha="left", weight="bold")
    about = "Relative difference of value or gradient, the larger"
    drawn.supxlabel(f"{about}; worst case over scale, KL and rollouts", fontsize=9)
    return {"theorem": drawn}


def run(request: Request) -> list[t.Row]:
    """Measure on four batches of rollouts (quick: one)."""
    seeds = request.seeds or (1 if request.quick else 4)
    found = request.jobs(measure, [{"seed": seed} for seed in range(seeds)])
    return t.round_rows(joined([row for rows in found for row in rows], *SETTING), 3)
