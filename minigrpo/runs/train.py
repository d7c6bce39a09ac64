"""A whole training run: grpo_step again and again, with its folder, its checkpoints, its evaluations and a way to stop."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.engine.divergence import DivergenceError, diverging, way_out
from minigrpo.engine.lanes import one_blas_thread
from minigrpo.engine.profiling import Stopwatch
from minigrpo.runs.evaluation import evaluate
from minigrpo.runs.folder import METRICS, SAMPLES, TOKENIZER, RunFolder, checkpoints
from minigrpo.runs.memory import micro_batch_within
from minigrpo.runs.policy import load_weights, make_optimizer, make_policy, restore_policy
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.warning_signs import warning_sign
from minigrpo.system.signals import stopping_between_steps
from minigrpo.system.terminal import bar, say
from minigrpo.tasks import Task, prompt_text
from minigrpo.trainer import TrainState, grpo_step, warm_start
from minigrpo.transformer import Transformer
from minigrpo.tree import Rollouts

SAVE_SECONDS = 300  # at the latest so long after a checkpoint comes the next one


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
    model, task = (
        restore_policy(settings, folder.path, saved[1], task)
        if saved
        else make_policy(settings, task)
    )
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
            before = {"step": 0} | evaluate(
                model, task, n_prompts=settings.eval_prompts, progress=False
            )
            if folder:
                folder.append(
                    METRICS, [before]
                )  # before the checkpoint: a resumed run then neither lacks nor repeats it
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
            with diverging(
                f"step {state.step + 1}",
                lambda: way_out(checkpoints(folder.path) if folder else []),
            ):
                with _nothing_lost(folder, state, task):
                    metrics, rollouts, rewards = grpo_step(state, task, objective, settings)
                last, every = state.step == settings.steps, settings.eval_every
                if every and (last or state.step % every == 0):
                    n_prompts = settings.eval_prompts
                    metrics |= evaluate(model, task, n_prompts=n_prompts, progress=False)
            history.append(metrics)
            steps.set_postfix(
                reward=f"{metrics['reward']:.2f}",
                unique=f"{1 / metrics['tree/mean_count']:.2f}",
                refresh=False,
            )
            stopping = bool(
                stopped
            )  # looked at once: a signal from here on ends the next step, so that it saves too
            if folder:
                folder.append(METRICS, [metrics])
                if state.step % settings.log_samples_every == 0:
                    folder.append(SAMPLES, sample_records(rollouts, rewards, task, state.step))
                due = (
                    state.step % settings.checkpoint_every == 0
                    or time.monotonic() > saved_at + SAVE_SECONDS
                )
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


def sample_records(
    rollouts: Rollouts, rewards: np.ndarray, task: Task, step: int
) -> list[dict[str, Any]]:
    """Completions as records that `minigrpo tree` reads: step, group, prompt, completion, reward."""
    rows, tokenizer = iter(rewards.tolist()), task.tokenizer
    prompts = [prompt_text(tokenizer, prompt) for prompt in rollouts.prompts]
    return [
        {
            "step": step,
            "group": g,
            "prompt": prompt,
            "completion": tokenizer.decode(c),
            "reward": next(rows),
        }
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
    counters |= {
        "rng": state.rng.bit_generator.state,
        "config": model.settings(),
        "eos": eos,
        "task": type(task).__qualname__,
    }
    folder.save(
        state.step, {name: model.backend.to_host(array) for name, array in arrays.items()}, counters
    )


def _restore(state: TrainState, arrays: Mapping[str, np.ndarray], counters: dict[str, Any]) -> None:
    device = state.model.backend.to_device
    wanted = {"parameters": state.model.parameters.flat} | state.optimizer.arrays()
    odd = [
        name
        for name, array in wanted.items()
        if name not in arrays or arrays[name].shape != array.shape
    ]
    bad = odd or [
        name
        for name, array in arrays.items()
        if array.dtype.kind != "f" or not np.isfinite(array).all()
    ]
    if bad:
        why = "missing or of another shape" if odd else "not all finite numbers"
        what = f"cannot be used (its {' and '.join(bad)} are {why})"
        raise ValueError(
            f"the run's newest checkpoint {what}: delete it to go on from the one before"
        )
    state.model.parameters.flat[:] = device(arrays["parameters"])
    for name, array in state.optimizer.arrays().items():
        array[:] = device(arrays[name])
    state.optimizer.step_count = counters["step_count"]
    state.rng.bit_generator.state = counters["rng"]
    state.step, state.num_tokens = counters["step"], counters["num_tokens"]
    if "reference" in arrays:
        state.reference = device(arrays["reference"])
