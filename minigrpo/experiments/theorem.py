"""Where Theorem 1 holds and where it stops: is an objective the same as one with a process reward for every step of the tree?

Left: trajectory advantages on padded rows, each completion through the model alone.  Right: numbers of a process set λ, fixed by
outcomes and lengths before the policy moves, on the tree, each node computed once:

    left    Σᵢ cᵢ Σₜ ( S(ρ, aᵢ) - β·D )         S(ρ, a) = min(ρ·a, clip(ρ, 1±ε)·a)        cᵢ aggregation, aᵢ = (rᵢ - mean) / scale
    right   Σ_nodes ( S(ρ, numbers of λ) - β·W·D )                                        W = Σ_{i∈λ} cᵢ

  (a) mean             W·S(ρ, Â),  Â = (mean_{i∈λ} rᵢ - mean) / scale: Theorem 1
  (b) length-weighted  the same with R̂ = Σ_{i∈λ} rᵢ/|yᵢ| / Σ_{i∈λ} 1/|yᵢ|
  (c) two sums         S(ρ, A⁺) + S(ρ, A⁻),  A± = Σ_{i∈λ} (cᵢaᵢ)±
  (d) nothing          no function of each node's own log-probability will do

Derivations, for the members of λ, which share ρ and D at every token of its step:
* Unclipped, the set needs Σ cᵢρaᵢ = ρ·Σ cᵢaᵢ.  If cᵢ = c for the group, that is c|λ|ρÂ: (a).  Four of five aggregations are so.
* sequence_mean has cᵢ = 1/(B·|yᵢ|), which differs between members: Σ cᵢaᵢ = W·(weighted mean of aᵢ, weights 1/|yᵢ|): (b), not (a).
* scale divides all aᵢ of a group by one number, and KL is a quantity of the node that gets W on both sides: neither matters.
* Clipped, S(ρ, a) = a·min(ρ, 1+ε) for a > 0, a·max(ρ, 1-ε) for a < 0: linear in a on either side of 0 only, so a set with members
  of both signs needs both sums: (c).  (a) and (b) put the mean's sign in place of the members', and fail once such a set's ρ leaves
  the clip range.  (c) holds for all token-level settings: A± have the cᵢ inside.
* Sequence level, sᵢ = exp(mean_t log ρᵢₜ) (GSPO): members of λ differ in what follows, so sᵢ is no quantity of the set.  In the
  first epoch all sᵢ = ρ = 1 and the gradient at token t is cᵢsᵢaᵢ: value and gradient are as at token level.  Later, (d): in a sum
  over nodes of functions of the node's own log-probability, the gradient at a node does not depend on other nodes; here it does.
  `coupling` measures that: it rules out all numbers, not only the kinds above.

Left out: |λ|-weights (λ-GRPO) and other baselines, numbers of the set or group, which change nothing.  Sources: theorem 1 of
arXiv:2509.21154; GSPO, arXiv:2507.18071, its sᵢ in every token's term and cᵢ as above (sequence_mean is the printed form).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minigrpo.engine.optim import AdamW
from minigrpo.experiments import write_tables
from minigrpo.experiments.parallel import run_jobs
from minigrpo.objectives import CHOICES, Objective, kl_estimate
from minigrpo.sampler import sample
from minigrpo.show.drawing import INK
from minigrpo.show.plots import STYLE, save
from minigrpo.transformer import Transformer, TransformerConfig
from minigrpo.tree import PrefixTree, Rollouts
from minigrpo.verify.padded import padded_loss

LEVELS = ("token", "sequence")
EPOCHS = (
    "first epoch",
    "later epochs, unclipped",
    "later epochs, clipped",
)  # in the first, clipping is on but all ratios are 1
KINDS = {"mean": "(a) mean", "length_weighted": "(b) 1/|y|", "two_sums": "(c) ± sums"}
SCALES, AGGREGATIONS, KLS = CHOICES["scale"], CHOICES["aggregation"], ("none", *CHOICES["kl"])
MEASURES = (
    "value",
    "nodes",
    "parameters",
)  # of the loss; of its gradient for the nodes' log p, and for the model's parameters
EXACT, APART = 1e-12, 1e-3
CLIP, BETA, UPDATES, LEARNING_RATE = (
    0.2,
    0.04,
    3,
    5e-3,
)  # μ = 4: three updates by AdamW, then the measurement


def is_exact(level: str, epoch: str, aggregation: str, kind: str) -> bool:
    """What the derivations say."""
    if level == "sequence" and epoch != EPOCHS[0]:
        return False
    return kind == "two_sums" or (
        epoch != EPOCHS[2] and (aggregation == "sequence_mean") == (kind == "length_weighted")
    )


@dataclass(frozen=True, eq=False)
class Batch:
    """Rollouts in several groups, and three policies: the sampling one, one three updates later, a reference."""

    rollouts: Rollouts
    flat: PrefixTree  # the same completions, nothing shared
    rewards: np.ndarray  # (B,)
    flat_logp: dict[
        str, np.ndarray
    ]  # of each policy, "old", "now", "ref": (B,T), every completion computed alone
    tree_logp: dict[str, np.ndarray]  # (N,), every node computed once
    slopes: dict[
        str, tuple[np.ndarray, np.ndarray]
    ]  # d log p / d parameters: of the flat nodes, of the tree's


def make_batch(seed: int) -> Batch:
    """Four groups of eight completions of 1 to 8 tokens, from a small random transformer in float64 that is far from uniform."""
    rng = np.random.default_rng([7, seed])
    shape = {
        "dim": 16,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "ffn_dim": 24,
        "tie_embeddings": False,
    }
    model = Transformer(TransformerConfig(vocab_size=4, max_seq_len=16, **shape), dtype="float64")
    for view in model.parameters.values():
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


# -- the two sides -------------------------------------------------------------------------------------------------------


def outcome_side(
    objective: Objective, level: str, batch: Batch, logp: np.ndarray
) -> tuple[float, np.ndarray]:
    """The loss with one advantage a completion, on padded rows, and its derivative.   logp (B,T) -> loss, (B,T)"""
    old, ref = batch.flat_logp["old"], batch.flat_logp["ref"]

    def loss_at(rows: np.ndarray, beta: float) -> tuple[float, np.ndarray]:
        r, changed = batch.rollouts, replace(objective, beta=beta)
        return padded_loss(
            changed, r.completions, batch.rewards, rows, old, ref, max_new_tokens=r.max_new_tokens
        )

    if level == "token":
        return loss_at(logp, objective.beta)
    mask = batch.rollouts.tree.paths >= 0
    lengths = mask.sum(1, keepdims=True)
    log_s = np.where(mask, logp - old, 0.0).sum(1, keepdims=True) / lengths  # (B,1)
    value, drows = loss_at(np.where(mask, old + log_s, 0.0), 0.0)  # every token's ratio is now sᵢ
    dlogp = np.where(mask, drows.sum(1, keepdims=True) / lengths, 0.0)
    with_kl, without_kl = (
        loss_at(logp, objective.beta),
        loss_at(logp, 0.0),
    )  # the KL term stays a token's own
    return value + with_kl[0] - without_kl[0], dlogp + with_kl[1] - without_kl[1]


def process_numbers(
    kind: str, objective: Objective, tree: PrefixTree, rewards: np.ndarray, limit: int
) -> np.ndarray:
    """A⁺, A⁻ and W of every node, from the members of its process step, by the definitions above.   -> (3,N)"""
    lengths, sizes = tree.lengths, tree.group_sizes
    numbers = np.zeros((3, tree.n_nodes))
    for group in range(tree.n_groups):
        own = tree.completion_group == group
        r, mean = rewards[own], rewards[own].mean()
        scale = {
            "group_std": r.std(ddof=1) + 1e-4,
            "batch_std": rewards.std(ddof=1) + 1e-4,
            "none": 1.0,
        }[objective.scale]
        for step in tree.steps(group):
            i = list(step.members)
            shares = {
                "group_token_mean": 1 / (tree.n_groups * lengths[own].sum()),
                "batch_token_mean": 1 / lengths.sum(),
                "sequence_mean": 1 / (sizes.sum() * lengths[i]),
                "sequence_sum": 1 / sizes.sum(),
                "constant": 1 / (sizes.sum() * limit),
            }
            share = np.ones(len(i)) * shares[objective.aggregation]  # cᵢ
            if kind == "two_sums":
                terms = share * (rewards[i] - mean) / scale
            else:
                reward = (
                    rewards[i].mean()
                    if kind == "mean"
                    else np.average(rewards[i], weights=1 / lengths[i])
                )
                terms = np.array([share.sum() * (reward - mean) / scale])
            numbers[:, list(step.nodes)] = [
                [terms[terms > 0].sum()],
                [terms[terms < 0].sum()],
                [share.sum()],
            ]
    return numbers


def process_side(
    numbers: np.ndarray, objective: Objective, logps: Sequence[np.ndarray]
) -> tuple[float, np.ndarray]:
    """The loss with numbers for every process step, and its derivative.   numbers (3,N), logps: now, old, ref (N,) -> loss, (N,)"""
    (up, down, weight), (logp, old, ref) = numbers, logps
    ratio = np.exp(logp - old)
    high, low = (
        (np.inf, 0.0)
        if objective.clip_high is None
        else (1 + objective.clip_high, 1 - objective.clip_low)
    )
    divergence, d_divergence = kl_estimate(objective.kl, logp, ref)
    value = (
        up * np.minimum(ratio, high)
        + down * np.maximum(ratio, low)
        - objective.beta * weight * divergence
    ).sum()
    slope = (up * (ratio <= high) + down * (ratio >= low)) * ratio  # d value / d logp, before KL
    return float(-value), objective.beta * weight * d_divergence - slope


def jacobian(model: Transformer, tree: PrefixTree) -> np.ndarray:
    """d log p / d parameters of every node, by one pass backward a node.   -> (N,P)"""
    rows = np.empty((tree.n_nodes, model.parameters.flat.size))
    for row, one in zip(rows, np.eye(tree.n_nodes), strict=True):
        model.gradients.flat[:] = 0
        model.forward(tree)
        row[:] = model.backward(one).flat
    return rows


# -- the measurement -----------------------------------------------------------------------------------------------------


def measure(
    seed: int, scales: Sequence[str] = SCALES, kls: Sequence[str] = KLS
) -> list[dict[str, Any]]:
    """Relative differences of the two sides for every setting, on the rollouts of one seed.   -> a flat row a setting

    For each kind of numbers: of the value, over Σ|terms|; of the gradient with respect to the nodes' log-probabilities and to the
    model's parameters (Euclidean norms).  coupling: the relative change of the left side's gradient at the nodes of even depth when
    the log-probabilities of those of odd depth change.
    """
    batch = make_batch(seed)
    tree = batch.rollouts.tree
    mask = tree.paths >= 0
    odd, rows = tree.depth % 2 == 1, []

    def on(t: PrefixTree, values: np.ndarray) -> np.ndarray:  # (B,T) -> (N,)
        return np.bincount(t.paths[mask], values[mask], minlength=t.n_nodes)

    for level, epoch, aggregation, scale, kl in product(LEVELS, EPOCHS, AGGREGATIONS, scales, kls):
        clip = None if epoch == EPOCHS[1] else CLIP
        settings = {"aggregation": aggregation, "scale": scale, "clip_low": clip, "clip_high": clip}
        objective = Objective(**settings, **({} if kl == "none" else {"beta": BETA, "kl": kl}))
        policy = "old" if epoch == EPOCHS[0] else "now"
        logps = [batch.tree_logp[name] for name in (policy, "old", "ref")]
        numbers = {
            kind: process_numbers(
                kind, objective, tree, batch.rewards, batch.rollouts.max_new_tokens
            )
            for kind in KINDS
        }
        terms = float(
            ((numbers["two_sums"][0] - numbers["two_sums"][1]) * np.exp(logps[0] - logps[1])).sum()
        )
        logp = batch.flat_logp[policy]
        loss, dlogp = outcome_side(objective, level, batch, logp)
        left = on(tree, dlogp), on(batch.flat, dlogp) @ batch.slopes[policy][0]
        elsewhere = on(
            tree, outcome_side(objective, level, batch, logp - 0.05 * tree.on_tokens(odd))[1]
        )
        row = {"ratio": level, "epoch": epoch, "aggregation": aggregation, "scale": scale, "kl": kl}
        row["coupling"] = float(
            np.linalg.norm((elsewhere - left[0])[~odd]) / np.linalg.norm(left[0][~odd])
        )
        for kind in KINDS:
            value, on_nodes = process_side(numbers[kind], objective, logps)
            right = on_nodes, on_nodes @ batch.slopes[policy][1]
            apart = [
                float(np.linalg.norm(b - a) / np.linalg.norm(a))
                for a, b in zip(left, right, strict=True)
            ]
            row |= {
                f"{kind}_{name}": x
                for name, x in zip(MEASURES, [abs(value - loss) / terms, *apart], strict=True)
            }
        rows.append(row)
    return rows


# -- the table and the figure --------------------------------------------------------------------------------------------


def judged(row: dict[str, Any]) -> list[tuple[str, bool]]:
    """The columns that were measured, and whether each should be exact."""
    kinds = [
        (kind, is_exact(row["ratio"], row["epoch"], row["aggregation"], kind)) for kind in KINDS
    ]
    return [("coupling", row["ratio"] == "token")] + [
        (f"{kind}_{name}", exact) for kind, exact in kinds for name in MEASURES
    ]


def joined(rows: Sequence[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """A row for the rows that agree in these columns: the largest of the differences where exact, the smallest where not."""
    out: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        known = out.setdefault(tuple(row[name] for name in names), dict(row))
        known |= {
            name: (max if exact else min)(known[name], row[name]) for name, exact in judged(row)
        }
    return list(out.values())


def violations(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Where a measurement contradicts the derivations: exact and not below 1e-12, or not exact and not above 1e-3.

    Two functions that differ may agree in value at a point by chance, so what is not exact is judged by its gradients.
    """
    return [
        " ".join(
            [
                *(row[name] for name in ("ratio", "epoch", "aggregation", "scale", "kl")),
                f"{column} {row[column]:.1e}",
            ]
        )
        for row in rows
        for column, exact in judged(row)
        if not (row[column] < EXACT if exact else row[column] > APART or column.endswith("value"))
    ]


def cell(row: dict[str, Any], kind: str) -> tuple[bool, float]:
    """Whether it should be exact; the largest of the differences of value, node gradient and parameter gradient."""
    return is_exact(row["ratio"], row["epoch"], row["aggregation"], kind), max(
        row[f"{kind}_{name}"] for name in MEASURES
    )


def text(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each level, epoch and aggregation; "=" marks what is exact."""
    lines = [
        f"{'ratio':9}{'epoch':25}{'aggregation':18}"
        + "".join(f"{name:>12}" for name in (*KINDS.values(), "coupling"))
    ]
    for row in joined(rows, "ratio", "epoch", "aggregation"):
        cells = [
            f"{'= ' * exact}{apart:.1e}" for exact, apart in (cell(row, kind) for kind in KINDS)
        ]
        cells = [f"{x:>12}" for x in (*cells, f"{row['coupling']:.1e}")]
        lines.append("".join(["{ratio:9}{epoch:25}{aggregation:18}".format(**row), *cells]))
    found = violations(rows)
    return "\n".join(
        [*lines, f"{len(rows)} settings, {len(found)} contradict the derivations", *found]
    )


def figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Six small matrices, aggregation by kind of process numbers: exact cells are white, framed and marked "="."""
    cells = {
        (row["ratio"], row["epoch"], row["aggregation"]): row
        for row in joined(rows, "ratio", "epoch", "aggregation")
    }
    with matplotlib.rc_context(
        STYLE | {"axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}
    ):
        fig = Figure(figsize=(10, 6.6), layout="constrained")
        for ax, (level, epoch) in zip(
            fig.subplots(2, 3, sharey=True).flat, product(LEVELS, EPOCHS), strict=True
        ):
            for (y, aggregation), (x, kind) in product(enumerate(AGGREGATIONS), enumerate(KINDS)):
                exact, apart = cell(cells[level, epoch, aggregation], kind)
                shade = 1.0 if exact else float(np.interp(np.log10(apart), [-2, 0.5], [0.9, 0.45]))
                frame = {
                    "ec": INK if exact else "white",
                    "lw": 1.6 if exact else 1,
                    "zorder": 2 + exact,
                }
                ax.add_patch(Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, fc=str(shade), **frame))
                style = {
                    "weight": "bold" if exact else "normal",
                    "ha": "center",
                    "va": "center",
                    "zorder": 4,
                }
                ax.text(x, y, f"=  {apart:.0e}" if exact else f"{apart:.2g}", **style)
            ax.set(
                xlim=(-0.5, 2.5),
                ylim=(4.5, -0.5),
                yticks=range(5),
                yticklabels=AGGREGATIONS,
                xticks=range(3),
            )
            ax.set_xticklabels(KINDS.values())
            nothing = "" if is_exact(level, epoch, "", "two_sums") else ": (d) nothing"
            ax.set_title(f"ratio of the {level}\n{epoch}{nothing}")
            ax.tick_params(length=0, labelsize=9)
        fig.suptitle(
            "Which process rewards give the same objective?  (=: the same)",
            x=0.01,
            ha="left",
            weight="bold",
        )
        fig.supxlabel(
            "Relative difference of value or gradient, the larger; worst case over scale, KL and rollouts",
            fontsize=9,
        )
    return fig


def run(
    out: Path, *, quick: bool = False, seeds: int | None = None, processes: int | None = None
) -> str:
    """Measure on several rollouts, write theorem.json and theorem.png, return the table as text."""
    jobs = [{"seed": seed} for seed in range(seeds or (1 if quick else 4))]
    results = run_jobs(
        measure, jobs, title="theorem", processes=processes, cache=out / "theorem.cache.jsonl"
    )
    rows = joined(
        [row for result in results for row in result],
        "ratio",
        "epoch",
        "aggregation",
        "scale",
        "kl",
    )
    rounded = [
        {name: x if isinstance(x, str) else float(f"{x:.3g}") for name, x in row.items()}
        for row in rows
    ]
    write_tables(out / "theorem.json", rounded)
    save(figure(rounded), out / "theorem.png")
    return text(rounded)
