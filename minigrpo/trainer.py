"""Training: sample a tree, score its completions, weigh its nodes, go back through it, step.   `grpo_step` is the whole loop.

Before it, if the task brings demonstrations, a supervised warm start; around it, metrics, checkpoints and a way to stop.
A run is a function of its settings: interrupted and resumed, it ends in the same bits.  What a run writes is in `runs.py`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minigrpo.engine.divergence import check_finite, diverging
from minigrpo.engine.lanes import limit_again, limited
from minigrpo.engine.optim import SGD, AdamW, clip_gradient, learning_rate_at
from minigrpo.engine.plan import split_tree
from minigrpo.engine.profiling import Stopwatch, forward_flops
from minigrpo.engine.tree_statistics import intermediate_proportion, path_depth
from minigrpo.gradients import (
    compute_gradients,
    log_probabilities,
    parts_to_learn_from,
    visit_parts,
)
from minigrpo.objectives import Objective
from minigrpo.rewards import check_rewards
from minigrpo.runs.evaluation import is_correct
from minigrpo.runs.policy import using
from minigrpo.runs.settings import TrainSettings
from minigrpo.sampler import sample
from minigrpo.system.terminal import bar
from minigrpo.tasks import Task, draw_prompts, optional, pairs, sampling_limits
from minigrpo.transformer import Transformer
from minigrpo.tree import PrefixTree, Rollouts


@dataclass
class TrainState:
    """What changes during a run; what a checkpoint holds."""

    model: Transformer
    optimizer: AdamW | SGD
    rng: (
        np.random.Generator
    )  # all randomness: prompts and rollouts; its state is the position in the data too
    reference: Any = None  # flat vector of the reference policy, if the objective has a KL term
    step: int = 0  # steps done
    num_tokens: int = 0  # tokens sampled so far, with their prompts
    updating: bool = False  # whether the parameters may be on their way to other values
    watch: Stopwatch = field(default_factory=Stopwatch)  # where the time goes


# What diverges says so itself, in one sentence.
@np.errstate(over="ignore", invalid="ignore", divide="ignore")
@limited
def grpo_step(
    state: TrainState, task: Task, objective: Objective, settings: TrainSettings
) -> tuple[dict[str, float], Rollouts, Any]:
    """One step of training.   -> metrics, rollouts, rewards"""
    model, s, watch = state.model, settings, state.watch
    started, state.updating = time.perf_counter(), False
    with watch("sample"):
        prompts = draw_prompts(task, state.rng, s.prompts_per_step)
        limits = {"temperature": s.temperature, **sampling_limits(task)}
        rollouts = sample(model, prompts, s.group_size, state.rng, **limits)
    tree, old = rollouts.tree, rollouts.logp
    with watch("score"):
        rewards = check_rewards(task.score(rollouts), tree)
        limit_again()
        coefficients = objective.coefficients(
            rollouts, rewards
        )  # one number a node: normalised before anything is split
        if s.inner_epochs == 1 and state.reference is None:
            parts = parts_to_learn_from(model, tree, coefficients, s.micro_batch_tokens)
        else:
            parts = split_tree(tree, s.micro_batch_tokens, model.lanes)
    ref, state.updating = None, True
    if state.reference is not None:
        with watch("update"), watch("forward"), using(model, state.reference):
            ref = log_probabilities(model, parts, s.temperature, tree.n_nodes)
    learning_rate = learning_rate_at(
        state.step, s.steps, s.learning_rate, s.warmup_steps, s.schedule
    )
    for _ in range(s.inner_epochs):
        with watch("update"):
            loss, logp_now = compute_gradients(
                model, parts, objective, coefficients, s.temperature, old, ref, watch
            )
        with watch("optimizer"):
            grad_norm = clip_gradient(model.gradients, s.max_grad_norm)
            check_finite(grad_norm, "norm of its gradient")
            if (
                coefficients.weight.any()
            ):  # all completions masked: nothing was learned, nothing moves
                state.optimizer.step(model.parameters, model.gradients, learning_rate)
                model.check_weights()
    flops = sum(forward_flops(model.config, part) for part, _ in parts)
    watch.flops["sample"] += forward_flops(model.config, tree)
    watch.flops["forward"] += (s.inner_epochs + (ref is not None)) * flops
    watch.flops["backward"] += 2 * s.inner_epochs * (grad_norm > 0) * flops
    state.step += 1
    state.num_tokens += int(tree.lengths.sum() + sum(map(len, prompts)) * s.group_size)
    metrics = {
        "step": state.step,
        "loss": loss,
        "grad_norm": grad_norm,
        "learning_rate": learning_rate,
    }
    metrics |= objective.metrics(coefficients, logp_now, old, ref)
    metrics |= rollout_metrics(rollouts, rewards) | {
        "frac_correct": float(is_correct(task, rewards).mean())
    }
    metrics |= {"num_tokens": state.num_tokens, "step_time": time.perf_counter() - started}
    for name, value in () if math.isfinite(sum(metrics.values())) else metrics.items():
        check_finite(value, f"metric {name}")
    return metrics, rollouts, rewards


def rollout_metrics(rollouts: Rollouts, rewards: np.ndarray) -> dict[str, float]:
    """What a batch looks like: rewards, lengths, entropy under the names that TRL uses, and the tree's own."""
    tree = rollouts.tree
    grouped = [rewards[tree.completion_group == g] for g in range(tree.n_groups)]
    return {
        "reward": float(rewards.mean()),
        "reward_std": float(np.mean([r.std(ddof=min(1, len(r) - 1)) for r in grouped])),
        "frac_reward_zero_std": float(np.mean([r.min() == r.max() for r in grouped])),
        "entropy": float(tree.on_tokens(rollouts.entropy).sum() / max(int(tree.lengths.sum()), 1)),
        "completions/mean_length": float(tree.lengths.mean()),
        "completions/clipped_ratio": float(rollouts.truncated.mean()),
        **tree_metrics(tree),
    }


def tree_metrics(tree: PrefixTree) -> dict[str, float]:
    """How much tree there is in a batch, under the names of the logs."""
    flat, unique = int(tree.lengths.sum()), int(tree.scored.sum())
    return {
        "tree/unique_tokens": unique,
        "tree/flat_tokens": flat,
        "tree/mean_count": flat
        / max(unique, 1),  # completions that pass through a node, on average
        "tree/shared_fraction": float((tree.on_tokens(tree.count) > 1).sum() / max(flat, 1)),
        "tree/path_depth": float(path_depth(tree).mean()),
        "tree/intermediate_proportion": float(intermediate_proportion(tree).mean()),
        "tree/flat_fraction": float(tree.is_flat.mean()),
    }


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
@limited
def warm_start(
    model: Transformer,
    task: Task,
    rng: np.random.Generator,
    settings: TrainSettings,
    progress: bool = False,
) -> None:
    """Supervised learning on the task's demonstrations: minimise -mean log p(token).

    Raises ValueError if there are none, DivergenceError if it diverges.
    """
    if optional(task, "demonstrations") is None:
        raise ValueError(f"task {settings.task} has no demonstrations: set warm_start_steps to 0")
    s, optimizer = settings, AdamW(model.parameters)
    for step in bar(range(s.warm_start_steps), "warm start", "step", progress):
        shown = pairs(s.warm_start_batch, task.demonstrations(rng, s.warm_start_batch))
        tree = PrefixTree.from_groups(
            [prompt for prompt, _ in shown], [[completion] for _, completion in shown]
        )
        parts, weight = (
            split_tree(tree, s.micro_batch_tokens, model.lanes),
            -1.0 / max(tree.scored.sum(), 1),
        )

        def visit(
            lane: Transformer,
            part: PrefixTree,
            nodes: np.ndarray,
            add: bool,
            weight: float = weight,
        ) -> None:
            lane.forward(part)
            lane.backward(np.where(part.scored, weight, 0.0), add)

        rate = learning_rate_at(step, s.warm_start_steps, s.warm_start_learning_rate, 20, "cosine")
        with diverging(f"warm-start step {step + 1}", lambda: "lower warm_start_learning_rate"):
            visit_parts(model, parts, visit)
            check_finite(clip_gradient(model.gradients, 1.0), "norm of its gradient")
            optimizer.step(model.parameters, model.gradients, rate)
            model.check_weights()
