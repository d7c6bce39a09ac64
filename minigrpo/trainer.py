"""Training: sample a tree, score its completions, weigh its nodes, go back through it, update.

`grpo_step` is the whole loop.  It knows nothing of tasks, settings, folders or checkpoints, nor of
the supervised warm start before it: those are in `runs/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from minigrpo.engine.backend import Array
from minigrpo.engine.divergence import check_finite
from minigrpo.engine.lanes import limit_again, limited
from minigrpo.engine.optim import SGD, AdamW, clip_gradient
from minigrpo.engine.parameters import with_parameters
from minigrpo.engine.parts import log_probabilities, visit_parts
from minigrpo.engine.plan import prune_tree, split_tree
from minigrpo.engine.profiling import Parts
from minigrpo.engine.tree_statistics import process_metrics, rollout_metrics
from minigrpo.objectives import Coefficients, Objective
from minigrpo.rewards import check_process_rewards, check_rewards
from minigrpo.sampler import sample
from minigrpo.transformer import Transformer
from minigrpo.tree import PrefixTree, Rollouts, Tokens


@dataclass
class TrainState:
    """What a training loop holds: the policy, how it learns, and how far it has come.

    A checkpoint keeps what changes: parameters, optimiser, rng, reference, step, num_tokens.
    >>> model = mg.Transformer(mg.TransformerConfig(vocab_size=10))
    >>> optimizer, objective = mg.AdamW(model.parameters), mg.Objective.preset("lambda_grpo")
    >>> state = mg.TrainState(model, optimizer, objective, np.random.default_rng(0), group_size=8)
    """

    model: Transformer
    optimizer: AdamW | SGD
    objective: Objective
    rng: np.random.Generator  # the only source of randomness
    group_size: int = 16  # k, completions per prompt
    temperature: float = 1.0
    inner_epochs: int = 1  # μ, updates from one batch of rollouts
    max_grad_norm: float | None = 1.0
    micro_batch_tokens: int = 1024  # nodes in the model at a time; any value, the same gradient
    reference: Array | None = None  # parameters of π_ref, for an objective with a KL term
    step: int = 0  # steps done
    num_tokens: int = 0  # tokens sampled so far, with their prompts
    updating: bool = False  # an update has begun; whoever takes the next step resets this


class Step(NamedTuple):
    """What one step has seen."""

    metrics: dict[str, float]
    rollouts: Rollouts
    rewards: np.ndarray  # (B,)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # what diverges is an error below
@limited
def grpo_step(
    state: TrainState,
    prompts: Sequence[Tokens],
    score: Callable[[Rollouts], ArrayLike],
    learning_rate: float,
    limits: Mapping[str, Any],
    process_rewards: Callable[[Rollouts], np.ndarray] | None = None,
) -> Step:
    """One step of training: sample, score, weigh, and update the parameters inner_epochs times.

    -> the step's metrics, rollouts and rewards;   learning_rate: of this step
    score(rollouts) -> (B,) outcome rewards;  limits: arguments of `sample`, such as max_new_tokens
    process_rewards(rollouts) -> (N,), for an objective with a process_weight
    Raises ValueError for rewards that are no finite numbers, DivergenceError if training diverges.
    >>> model, rng = mg.Transformer(mg.TransformerConfig(vocab_size=10)), np.random.default_rng(0)
    >>> state = mg.TrainState(model, mg.AdamW(model.parameters), mg.Objective.preset("grpo"), rng)
    >>> lengths = lambda rollouts: rollouts.tree.lengths  # the reward: how long a completion is
    >>> step = mg.grpo_step(state, [[1, 2]], lengths, 1e-3, {"max_new_tokens": 5, "eos": 0})
    >>> step.metrics["step"], step.rewards.shape
    (1, (16,))
    """
    model, objective, temperature = state.model, state.objective, state.temperature
    how = {"temperature": temperature, **limits}
    rollouts = sample(model, prompts, state.group_size, state.rng, **how)
    rewards = check_rewards(score(rollouts), rollouts.tree)  # the outcome reward model
    own = process_rewards and check_process_rewards(process_rewards(rollouts), rollouts.tree)
    coefficients = objective.coefficients(rollouts, rewards, own)  # what is added up at each node
    parts, ref = _parts_and_reference(state, rollouts, coefficients)  # parts: micro-batches
    old = rollouts.logp  # log π_old; ref is log π_ref, if there is a KL term
    for epoch in range(state.inner_epochs):
        if epoch and objective.every_update:
            logp = log_probabilities(model, parts, temperature, len(old))
            coefficients = objective.coefficients(rollouts, rewards, own, logp)
        loss, logp = compute_gradients(model, parts, objective, coefficients, temperature, old, ref)
        grad_norm = _update(state, coefficients, learning_rate)
    state.step += 1
    state.num_tokens += sum(map(len, prompts)) * state.group_size + int(rollouts.tree.lengths.sum())
    metrics = {"step": state.step, "loss": loss, "grad_norm": grad_norm}
    metrics |= {"learning_rate": learning_rate, "num_tokens": state.num_tokens}
    metrics |= objective.metrics(coefficients, logp, old, ref)
    metrics |= rollout_metrics(rollouts, rewards) | process_metrics(rollouts.tree, rewards, own)
    for name, value in metrics.items():
        check_finite(value, f"metric {name}")
    return Step(metrics, rollouts, rewards)


def _parts_and_reference(
    state: TrainState, rollouts: Rollouts, coefficients: Coefficients
) -> tuple[Parts, np.ndarray | None]:
    """The parts of the tree that the model computes one by one, and log p under the reference."""
    limit_again()  # the scorer may have changed the number of BLAS threads
    push, old = None, rollouts.logp
    if state.inner_epochs == 1 and state.reference is None:  # the first update is the only one
        _, push = state.objective.evaluate(coefficients, old, old)
    parts = parts_to_learn_from(state.model, rollouts.tree, push, state.micro_batch_tokens)
    state.updating = True
    if state.reference is None:
        return parts, None
    with with_parameters(state.model, state.reference):
        n_nodes = rollouts.tree.n_nodes
        return parts, log_probabilities(state.model, parts, state.temperature, n_nodes)


def _update(state: TrainState, coefficients: Coefficients, learning_rate: float) -> float:
    """Clip the gradient and let the optimiser step.   -> the gradient's norm before clipping"""
    model = state.model
    grad_norm = clip_gradient(model.gradients, state.max_grad_norm)
    if coefficients.weight.any():  # else all completions are masked, and nothing may move
        state.optimizer.step(model.parameters, model.gradients, learning_rate)
        model.check_weights()
    return grad_norm


def parts_to_learn_from(
    model: Transformer, tree: PrefixTree, push: np.ndarray | None, max_nodes: int
) -> Parts:
    """The parts of a tree; given d loss / d logp (N,), without nodes that only lead to zeros of it.

    It is known before a first update without KL; above all, groups of equal rewards are dropped.
    """
    if push is None:
        return split_tree(tree, max_nodes, model.lanes)
    live, nodes = prune_tree(tree, push != 0)
    if live is None:
        return []
    return [(part, nodes[of_live]) for part, of_live in split_tree(live, max_nodes, model.lanes)]


def compute_gradients(
    model: Transformer,
    parts: Parts,
    objective: Objective,
    coefficients: Coefficients,
    temperature: float,
    old: np.ndarray,
    ref: np.ndarray | None = None,
) -> tuple[float, np.ndarray]:
    """Forward, objective and backward over all parts; the gradients are left in model.gradients.

    old, ref (N,): log p under the sampling and the reference policy -> loss, logp (N,)
    logp is `old` for nodes that no part scores.
    """
    if not parts:
        model.gradients.flat[:] = 0
    logp_now = np.array(old, dtype=np.float64)

    def visit(lane: Transformer, part: PrefixTree, nodes: np.ndarray, add: bool) -> float:
        logp = lane.forward(part, temperature)
        part_ref = None if ref is None else ref[nodes]
        of_part = coefficients.for_part(nodes, part.scored)
        loss, dlogp = objective.evaluate(of_part, logp, old[nodes], part_ref)
        lane.backward(dlogp, add)
        logp_now[nodes[part.scored]] = logp[part.scored]
        return loss

    return float(sum(visit_parts(model, parts, visit))), logp_now
