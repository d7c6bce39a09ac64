"""Training: sample a tree, score its completions, weigh its nodes, go back through it, step.   `grpo_step` is the whole loop.

Before it, if the task brings demonstrations, a supervised warm start; around it, metrics, checkpoints and a way to stop.
A run is a function of its settings: interrupted and resumed, it ends in the same bits.  What a run writes is in `runs.py`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.divergence import DivergenceError, check_finite, diverging, way_out
from minigrpo.evaluation import evaluate, is_correct
from minigrpo.gradients import compute_gradients, log_probabilities, parts_to_learn_from, visit_parts
from minigrpo.lanes import limit_again, limited, one_blas_thread
from minigrpo.memory import micro_batch_within
from minigrpo.objectives import Objective
from minigrpo.optim import SGD, AdamW, clip_gradient, learning_rate_at
from minigrpo.plan import split_tree
from minigrpo.policy import load_weights, make_optimizer, make_policy, restore_policy, using
from minigrpo.profiling import Stopwatch, forward_flops
from minigrpo.rewards import check_rewards
from minigrpo.runs import METRICS, SAMPLES, TOKENIZER, RunFolder, checkpoints
from minigrpo.sampler import Rollouts, sample
from minigrpo.settings import TrainSettings
from minigrpo.signals import stopping_between_steps
from minigrpo.tasks import Task, draw_prompts, optional, pairs, prompt_text, sampling_limits
from minigrpo.terminal import bar, say
from minigrpo.transformer import Transformer
from minigrpo.tree import PrefixTree
from minigrpo.warning_signs import warning_sign

SAVE_SECONDS = 300  # at the latest so long after a checkpoint comes the next one


@dataclass
class TrainState:
    """What changes during a run; what a checkpoint holds."""

    model: Transformer
    optimizer: AdamW | SGD
    rng: np.random.Generator  # all randomness: prompts and rollouts; its state is the position in the data too
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
        # The weights were checked when they were loaded, or after the last update.
        rollouts = sample(model, prompts, s.group_size, state.rng, check=False, **limits)
    tree, old = rollouts.tree, rollouts.logp
    with watch("score"):
        rewards = check_rewards(task.score(rollouts), tree)
        limit_again()
        coefficients = objective.coefficients(rollouts, rewards)  # one number a node: normalised before anything is split
        if s.inner_epochs == 1 and state.reference is None:
            parts = parts_to_learn_from(model, tree, coefficients, s.micro_batch_tokens)
        else:
            parts = split_tree(tree, s.micro_batch_tokens, model.lanes)
    ref, state.updating = None, True
    if state.reference is not None:
        with watch("update"), watch("forward"), using(model, state.reference):
            ref = log_probabilities(model, parts, s.temperature, tree.n_nodes)
    learning_rate = learning_rate_at(state.step, s.steps, s.learning_rate, s.warmup_steps, s.schedule)
    for _ in range(s.inner_epochs):
        with watch("update"):
            loss, logp_now = compute_gradients(model, parts, objective, coefficients, s.temperature, old, ref, watch)
        with watch("optimizer"):
            grad_norm = clip_gradient(model.gradients, s.max_grad_norm)
            check_finite(grad_norm, "norm of its gradient")
            if coefficients.weight.any():  # all completions masked: nothing was learned, nothing moves
                state.optimizer.step(model.parameters, model.gradients, learning_rate)
                model.check_weights()
    flops = sum(forward_flops(model.config, part) for part, _ in parts)
    watch.flops["sample"] += forward_flops(model.config, tree)
    watch.flops["forward"] += (s.inner_epochs + (ref is not None)) * flops
    watch.flops["backward"] += 2 * s.inner_epochs * (grad_norm > 0) * flops
    state.step += 1
    state.num_tokens += int(tree.lengths.sum() + sum(map(len, prompts)) * s.group_size)
    metrics = {"step": state.step, "loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate}
    metrics |= objective.metrics(coefficients, logp_now, old, ref)
    metrics |= rollout_metrics(rollouts, rewards) | {"frac_correct": float(is_correct(task, rewards).mean())}
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
        "tree/mean_count": flat / max(unique, 1),  # completions that pass through a node, on average
        "tree/shared_fraction": float((tree.on_tokens(tree.count) > 1).sum() / max(flat, 1)),
        "tree/path_depth": float(tree.path_depth.mean()),
        "tree/intermediate_proportion": float(tree.intermediate_proportion.mean()),
        "tree/flat_fraction": float(tree.is_flat.mean()),
    }


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
@limited
def warm_start(model: Transformer, task: Task, rng: np.random.Generator, settings: TrainSettings, progress: bool = False) -> None:
    """Supervised learning on the task's demonstrations: minimise -mean log p(token).

    Raises ValueError if there are none, DivergenceError if it diverges.
    """
    if optional(task, "demonstrations") is None:
        raise ValueError(f"task {settings.task} has no demonstrations: set warm_start_steps to 0")
    s, optimizer = settings, AdamW(model.parameters)
    for step in bar(range(s.warm_start_steps), "warm start", "step", progress):
        shown = pairs(s.warm_start_batch, task.demonstrations(rng, s.warm_start_batch))
        tree = PrefixTree.from_groups([prompt for prompt, _ in shown], [[completion] for _, completion in shown])
        parts, weight = split_tree(tree, s.micro_batch_tokens, model.lanes), -1.0 / max(tree.scored.sum(), 1)

        def visit(lane: Transformer, part: PrefixTree, nodes: np.ndarray, add: bool, weight: float = weight) -> None:
            lane.forward(part)
            lane.backward(np.where(part.scored, weight, 0.0), add)

        rate = learning_rate_at(step, s.warm_start_steps, s.warm_start_learning_rate, 20, "cosine")
        with diverging(f"warm-start step {step + 1}", lambda: "lower warm_start_learning_rate"):
            visit_parts(model, parts, visit)
            check_finite(clip_gradient(model.gradients, 1.0), "norm of its gradient")
            optimizer.step(model.parameters, model.gradients, rate)
            model.check_weights()


def train(
    settings: TrainSettings,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    task: Task | None = None,
    progress: bool = True,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    watch: Stopwatch | None = None,
) -> tuple[Transformer, list[dict[str, Any]]]:
    """Train from these settings; write a run folder if `out` is given.   -> the model, one dict of metrics a step (of this call)

    resume=True goes on from the newest checkpoint in `out` (from the start if there is none yet).  `task` overrides the one
    that the settings name.  `watch` is told where the time goes.  Ctrl-C, SIGTERM and SIGHUP finish the step, save a checkpoint and
    raise KeyboardInterrupt.
    Raises ValueError for bad input, DivergenceError (a FloatingPointError) if training diverges:
    nothing of that step is kept.
    """
    with RunFolder(out, asdict(settings), resume) if out is not None else nullcontext() as folder:
        return _train(settings, folder, task, progress, on_step, watch)


def _train(
    settings: TrainSettings,
    folder: RunFolder | None,
    task: Task | None,
    progress: bool,
    on_step: Callable[[dict[str, Any]], None] | None,
    watch: Stopwatch | None,
) -> tuple[Transformer, list[dict[str, Any]]]:
    objective = settings.make_objective()
    saved = folder.load() if folder else None
    model, task = restore_policy(settings, folder.path, saved[1], task) if saved else make_policy(settings, task)
    settings = replace(settings, micro_batch_tokens=micro_batch_within(settings, model.config))
    rng = np.random.default_rng(settings.seed)
    state = TrainState(model, make_optimizer(settings, model), rng, watch=watch or Stopwatch())
    before = None
    if saved:
        _restore(state, *saved)
    else:
        if settings.init is not None:
            load_weights(model, settings.init)
        elif settings.warm_start_steps:
            warm_start(model, task, state.rng, settings, progress)
        if objective.beta:
            state.reference = model.parameters.flat.copy()
        if folder and settings.model is not None:
            folder.write(TOKENIZER, task.tokenizer.to_json().encode())
        if settings.eval_every:
            before = {"step": 0} | evaluate(model, task, n_prompts=settings.eval_prompts, progress=False)
            if folder:
                folder.append(METRICS, [before])  # before the checkpoint: a resumed run then neither lacks nor repeats it
            if on_step:
                on_step(before)
        if folder:
            _save(folder, state, task)
    saved_at = time.monotonic()
    history, watched, said = [], [] if before is None else [before], set()
    with stopping_between_steps() as stopped, one_blas_thread(model):
        title = f"{settings.objective} on {settings.task}"
        steps = bar(range(state.step, settings.steps), title, "step", progress)
        for _ in steps:
            with diverging(f"step {state.step + 1}", lambda: way_out(checkpoints(folder.path) if folder else [])):
                with _nothing_lost(folder, state, task):
                    metrics, rollouts, rewards = grpo_step(state, task, objective, settings)
                last, every = state.step == settings.steps, settings.eval_every
                if every and (last or state.step % every == 0):
                    n_prompts = settings.eval_prompts
                    metrics |= evaluate(model, task, n_prompts=n_prompts, progress=False)
            history.append(metrics)
            steps.set_postfix(reward=f"{metrics['reward']:.2f}", unique=f"{1 / metrics['tree/mean_count']:.2f}", refresh=False)
            stopping = bool(stopped)  # looked at once: a signal from here on ends the next step, so that it saves too
            if folder:
                folder.append(METRICS, [metrics])
                if state.step % settings.log_samples_every == 0:
                    folder.append(SAMPLES, sample_records(rollouts, rewards, task, state.step))
                due = state.step % settings.checkpoint_every == 0 or time.monotonic() > saved_at + SAVE_SECONDS
                if due or state.step == settings.steps or stopping:
                    _save(folder, state, task)
                    saved_at = time.monotonic()
            if on_step:
                on_step(metrics)
            watched.append(metrics)
            if progress and (sign := warning_sign(watched)) and sign[0] not in said:
                said.add(sign[0])
                say(f"warning: {sign[1]}", sys.stderr)
            if stopping:
                break
    return model, history


def sample_records(rollouts: Rollouts, rewards: np.ndarray, task: Task, step: int) -> list[dict[str, Any]]:
    """Completions as records that `minigrpo tree` reads: step, group, prompt, completion, reward."""
    rows, tokenizer = iter(rewards.tolist()), task.tokenizer
    prompts = [prompt_text(tokenizer, prompt) for prompt in rollouts.prompts]
    return [
        {"step": step, "group": g, "prompt": prompt, "completion": tokenizer.decode(c), "reward": next(rows)}
        for g, (prompt, group) in enumerate(zip(prompts, rollouts.completions, strict=True))
        for c in group
    ]


@contextmanager
def _nothing_lost(folder: RunFolder | None, state: TrainState, task: Task) -> Iterator[None]:
    """What ends a step while it samples or scores, such as a user's error, leaves a checkpoint of the step before."""
    rng = state.rng.bit_generator.state
    try:
        yield
    except DivergenceError:
        raise
    except BaseException:
        if folder and not state.updating and folder.saved_step < state.step:
            state.rng.bit_generator.state = rng
            _save(folder, state, task)
        raise


def _save(folder: RunFolder, state: TrainState, task: Task) -> None:
    model = state.model
    arrays = {"parameters": model.parameters.flat} | state.optimizer.arrays()
    if state.reference is not None:
        arrays["reference"] = state.reference
    counters = {"num_tokens": state.num_tokens, "step_count": state.optimizer.step_count}
    eos = task.tokenizer.ends if getattr(task.tokenizer, "more_eos", ()) else task.tokenizer.eos
    counters |= {"rng": state.rng.bit_generator.state, "config": model.settings(), "eos": eos, "task": type(task).__qualname__}
    folder.save(state.step, {name: model.backend.to_host(array) for name, array in arrays.items()}, counters)


def _restore(state: TrainState, arrays: Mapping[str, np.ndarray], counters: dict[str, Any]) -> None:
    device = state.model.backend.to_device
    wanted = {"parameters": state.model.parameters.flat} | state.optimizer.arrays()
    odd = [name for name, array in wanted.items() if name not in arrays or arrays[name].shape != array.shape]
    bad = odd or [name for name, array in arrays.items() if array.dtype.kind != "f" or not np.isfinite(array).all()]
    if bad:
        why = "missing or of another shape" if odd else "not all finite numbers"
        what = f"cannot be used (its {' and '.join(bad)} are {why})"
        raise ValueError(f"the run's newest checkpoint {what}: delete it to go on from the one before")
    state.model.parameters.flat[:] = device(arrays["parameters"])
    for name, array in state.optimizer.arrays().items():
        array[:] = device(arrays[name])
    state.optimizer.step_count = counters["step_count"]
    state.rng.bit_generator.state = counters["rng"]
    state.step, state.num_tokens = counters["step"], counters["num_tokens"]
    if "reference" in arrays:
        state.reference = device(arrays["reference"])
