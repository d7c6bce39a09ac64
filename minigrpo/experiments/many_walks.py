"""Runs of the paper's tree walk, as many as wanted at once, for every arm that is compared on it.

A group of k walks is k leaf numbers, its process sets are counts at the moves of the whole tree,
and every objective is a sum over members, so all is arrays of shape (runs,k) and (runs,moves).  The
numbers are those of `minigrpo.sample`, `TreeWalk.score` and `Objective` on one run after the other
(the tests compare them), at a twentieth of the time.  The arms are those of `controls.py`,
unclipped (one update per batch, so clipping would not act), and

    monte_carlo_prm    a group of 4; the other sampled tokens are spent on rollouts from each step
                       (as VinePPO)

The walks of a run are drawn by a generator of its own, default_rng(seed), so that arms are paired
and a run does not depend on its neighbours; what the placebo and the Monte-Carlo PRM draw besides
comes from another one.  Source: Sullivan & Koller, arXiv:2509.21154, section 4.3 (the walk).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from minigrpo.engine.optim import SGD, AdamW
from minigrpo.engine.parameters import TransformerConfig
from minigrpo.experiments.controls import AT_THE_NORM_OF
from minigrpo.experiments.many_policies import (
    DEPTH,
    OneModel,
    Tabular,
    Transformers,
    moves_to,
    n_moves,
)
from minigrpo.objectives import advantages

GROUP_SIZE, MC_GROUP_SIZE, STEPS, LAST, BLOCK = 16, 4, 250, 50, 10
R_OTHER = 0.7
Policy = Tabular | Transformers | OneModel
SMALL = TransformerConfig(vocab_size=3, dim=32, n_layers=2, n_heads=2, max_seq_len=64)


def leaf_rewards(target: np.ndarray, n: int, r_neg: float) -> np.ndarray:
    """1 at the target, r_neg at leaves that share its first n moves, 0.7 elsewhere.

    target (runs,) leaf numbers -> (runs,2**depth)
    """
    leaf, target = np.arange(2**DEPTH), np.asarray(target)[:, None]
    shares = leaf >> (DEPTH - n) == target >> (DEPTH - n)
    return np.where(leaf == target, 1.0, np.where(shares, r_neg, R_OTHER))


def path_logp(logp: np.ndarray) -> np.ndarray:
    """log p of every leaf.   (runs,moves) -> (runs,2**depth)"""
    depth = (logp.shape[1] + 2).bit_length() - 2
    return logp[:, moves_to(np.arange(2**depth), depth)].sum(-1)


def draw(logp: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Walk from the root, move after move.   uniform (runs,k,depth) -> leaves (runs,k)"""
    place = np.zeros(uniform.shape[:2], dtype=np.int64)
    run = np.arange(len(logp))[:, None]
    for level in range(uniform.shape[2]):
        first = 2 * (2**level - 1 + place)  # the move L after each prefix
        place = 2 * place + (uniform[:, :, level] >= np.exp(logp[run, first]))
    return place


def sums(values: np.ndarray | float, moves: np.ndarray, n: int) -> np.ndarray:
    """Σ over a group's tokens, by move.   values broadcast to moves (runs,k,depth) -> (runs,n)"""
    runs = len(moves)
    at = (moves + n * np.arange(runs)[:, None, None]).ravel()
    values = np.broadcast_to(values, moves.shape).ravel()
    return np.bincount(at, values, minlength=runs * n).reshape(runs, n)


def on_tokens(values: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Values of moves at each token of a group.   (runs,moves), (runs,k,depth) -> (runs,k·depth)"""
    return np.take_along_axis(values, moves.reshape(len(moves), -1), 1)


def group_advantages(rewards: np.ndarray, **choices: Any) -> np.ndarray:
    """`objectives.advantages` of every run's group, for its tokens.   (runs,k) -> (runs,k,1)"""
    group = np.repeat(np.arange(len(rewards)), rewards.shape[1])
    return advantages(rewards.ravel(), group, **choices).reshape(*rewards.shape, 1)


def loss_gradient(
    arm: str, leaves: np.ndarray, rewards: np.ndarray, rng: np.random.Generator | None = None
) -> np.ndarray:
    """d loss / d log p of every move, at the sampling policy.   (runs,k) both -> (runs,moves)

    rng serves the placebo alone.  Raises ValueError for an unknown arm.
    """
    moves, n = moves_to(leaves), n_moves(DEPTH)  # (runs,k,depth)
    tokens = moves[0].size
    if arm == "dr_grpo":
        return -sums(group_advantages(rewards, scale="none"), moves, n) / tokens
    if arm == "rloo":
        advantage = group_advantages(rewards, baseline="leave_one_out", scale="none")
        return -sums(advantage, moves, n) / rewards.shape[1]
    advantage = group_advantages(rewards)
    if arm == "placebo":
        count = on_tokens(sums(1.0, moves, n), moves)  # |λ(i,t)|
        weight = rng.permuted(1 / count, axis=1).reshape(moves.shape)
        return -sums(weight * advantage, moves, n) / tokens
    weight = np.maximum(sums(1.0, moves, n), 1) ** -alpha_of(arm)
    return -weight * sums(advantage, moves, n) / tokens


def alpha_of(arm: str) -> float:
    """The exponent of |λ| in an arm's weights.   Raises ValueError for an arm that has none."""
    powers = {"grpo": 0.0, "lambda_grpo": 1.0}
    if arm.startswith("alpha="):
        powers[arm] = float(arm.removeprefix("alpha="))
    if not 0 <= powers.get(arm, np.nan) < np.inf:
        raise ValueError(f"unknown arm {arm!r}")
    return powers[arm]


def loss_gradient_of_values(values: np.ndarray, leaves: np.ndarray) -> np.ndarray:
    """As `loss_gradient`, for process rewards of every move (runs,moves): the preset `prm`."""
    moves = moves_to(leaves)
    count = sums(1.0, moves, values.shape[1])  # (runs,moves)
    tokens = moves[0].size
    mean = (count * values).sum(1, keepdims=True) / tokens
    square = (count * (values - mean) ** 2).sum(1, keepdims=True) / (tokens - 1)
    same = np.ptp(on_tokens(values, moves), axis=1, keepdims=True) == 0
    return -np.where(same, 0.0, count * (values - mean) / (np.sqrt(square) + 1e-4)) / tokens


def monte_carlo_values(
    logp: np.ndarray, leaves: np.ndarray, by_leaf: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Mean outcome of fresh rollouts from the end of each move's process step.   -> (runs,moves)

    As many rollouts per step as the tokens of a group of 16 leave, the same number for each; a step
    that ends at a leaf has that leaf's reward.   leaves (runs,k), by_leaf (runs,2**depth)
    """
    n, n_leaves = logp.shape[1], 2**DEPTH
    count = sums(1.0, moves_to(leaves), n).astype(np.int64)
    end = np.broadcast_to(np.arange(n), count.shape).copy()  # the move that ends each one's step
    level = np.log2(np.arange(n) + 2).astype(np.int64)  # 1 … depth
    for move in range(n - n_leaves - 1, -1, -1):
        for child in (2 * move + 2, 2 * move + 3):
            goes_on = (count[:, child] == count[:, move]) & (count[:, move] > 0)
            end[goes_on, move] = end[goes_on, child]
    is_end = np.zeros(count.shape, dtype=bool)
    np.put_along_axis(is_end, np.where(count > 0, end, n - 1), True, 1)
    is_end &= (level < DEPTH) & (count > 0)
    left = (is_end * (DEPTH - level)).sum(1)  # tokens that one rollout from each of them takes
    each = np.maximum((GROUP_SIZE - leaves.shape[1]) * DEPTH // np.maximum(left, 1), 1)  # (runs,)
    values = np.zeros(count.shape)
    values[:, n - n_leaves :] = by_leaf
    p = np.exp(path_logp(logp))  # (runs,2**depth)
    for move in np.flatnonzero(is_end.any(0)):
        width = 2 ** (DEPTH - level[move])
        first = (move + 2 - 2 ** level[move]) * width
        below = slice(first, first + width)
        conditional = p[:, below] / p[:, below].sum(1, keepdims=True)
        drawn = rng.multinomial(np.where(is_end[:, move], each, 0), conditional)
        values[:, move] = np.where(is_end[:, move], (drawn * by_leaf[:, below]).sum(1) / each, 0)
    return np.take_along_axis(values, end, 1)


def gradients_of_arm(
    arm: str,
    model: Policy,
    logp: np.ndarray,
    leaves: np.ndarray,
    rewards: np.ndarray,
    by_leaf: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """The arm's gradient for the parameters of all runs, in one vector."""
    if arm == "monte_carlo_prm":
        values = monte_carlo_values(logp, leaves, by_leaf, rng)
        return model.gradients(loss_gradient_of_values(values, leaves))
    if arm not in AT_THE_NORM_OF:
        return model.gradients(loss_gradient(arm, leaves, rewards, rng))
    direction, scale = (
        model.gradients(loss_gradient(name, leaves, rewards, rng)).reshape(len(logp), -1).copy()
        for name in AT_THE_NORM_OF[arm]
    )
    own, wanted = (
        np.sqrt((g.astype(np.float64) ** 2).sum(1, keepdims=True)) for g in (direction, scale)
    )
    return (direction * (wanted / np.maximum(own, 1e-300)).astype(direction.dtype)).ravel()


def run_walks(
    arm: str,
    n: int,
    r_neg: float,
    optimizer: str,
    learning_rate: float,
    *,
    runs: int = 48,
    first_seed: int = 0,
    policy: str = "transformer",
    target: int | None = None,
    start: float | None = None,
    steps: int = STEPS,
    observe: Callable[..., None] | None = None,
) -> list[list[int]]:
    """Train runs with the seeds first_seed, first_seed + 1, …

    target: a leaf number for all; None: seed mod 16, so each of the 16 targets as often as any
    other.  policy: "transformer", or "tabular" with the target's probability before training,
    `start` (None: 1/16).   -> for each run, the target paths drawn in every ten steps
    Raises ValueError for what is out of range.
    """
    known = policy in ("transformer", "tabular") and optimizer in ("adamw", "sgd")
    known = known and target in (None, *range(2**DEPTH)) and 0 < learning_rate < np.inf
    if start is not None:
        known = known and policy == "tabular" and 0 < start < 1
    if not known or steps % BLOCK or n not in range(1, DEPTH) or runs < 1:
        told = f"policy is {policy!r}, start {start}, steps {steps}, n {n}, runs {runs}"
        told += f", target {target}, optimizer {optimizer!r}, learning_rate {learning_rate}"
        take = f"transformer, or tabular with a start between 0 and 1; a multiple of {BLOCK} steps"
        take += f"; n from 1 to {DEPTH - 1}; at least one run; a target from 0 to {2**DEPTH - 1}"
        raise ValueError(f"{told}: take {take}; adamw or sgd; a finite rate above 0")
    seeds = range(first_seed, first_seed + runs)
    aim = np.array([seed % 2**DEPTH if target is None else target for seed in seeds])
    if policy == "tabular":
        model = Tabular(runs, DEPTH, target_logits(aim, start))
    else:
        model = Transformers(SMALL, seeds, DEPTH)
    hits = train(model, arm, aim, seeds, n, r_neg, optimizer, learning_rate, steps, observe)
    return hits.reshape(runs, -1, BLOCK).sum(2).tolist()


def train(
    model: Policy,
    arm: str,
    aim: np.ndarray,
    seeds: Sequence[int],
    n: int,
    r_neg: float,
    optimizer: str,
    learning_rate: float,
    steps: int,
    observe: Callable[..., None] | None = None,
) -> np.ndarray:
    """Train a policy's runs, each to its own target, aim (runs,).   -> targets drawn, (runs,steps)

    observe(model, logp, leaves, rewards, aim) is called in every step before the update, and at the
    end with leaves None.
    """
    rngs = [np.random.default_rng(seed) for seed in seeds]
    extra = np.random.default_rng((seeds[0], len(seeds)))  # so that the walks of arms stay paired
    group_size = MC_GROUP_SIZE if arm == "monte_carlo_prm" else GROUP_SIZE
    by_leaf = leaf_rewards(aim, n, r_neg)
    stepper = SGD(model) if optimizer == "sgd" else AdamW(model)
    hits = np.zeros((len(aim), steps), dtype=np.int64)
    for step in range(steps):
        logp = model.logp()
        leaves = draw(logp, np.stack([rng.random((group_size, DEPTH)) for rng in rngs]))
        hits[:, step] = (leaves == aim[:, None]).sum(1)
        rewards = np.take_along_axis(by_leaf, leaves, 1)
        if observe:
            observe(model, logp, leaves, rewards, aim)
        flat = gradients_of_arm(arm, model, logp, leaves, rewards, by_leaf, extra)
        stepper.step(model, SimpleNamespace(flat=flat), learning_rate)
    if observe:
        observe(model, model.logp(), None, None, aim)
    return hits


def target_logits(target: np.ndarray, start: float | None) -> np.ndarray | None:
    """Logits that give every target the probability `start`, each of its moves the same.

    -> (runs,moves), or None for None
    """
    if start is None:
        return None
    p = start ** (1 / DEPTH)
    logits = np.zeros((len(target), n_moves(DEPTH)))
    np.put_along_axis(logits, moves_to(target), np.log(p / (1 - p)), 1)
    return logits
