"""A whole training run: step after step, with its folder, evaluations and a way to stop.

A run is a function of its settings: stopped at any moment and resumed, it ends in the same bits.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigrpo.engine.divergence import DivergenceError, diverging
from minigrpo.engine.lanes import one_blas_thread
from minigrpo.engine.optim import learning_rate_at
from minigrpo.engine.profiling import Stopwatch
from minigrpo.objectives import Objective
from minigrpo.runs.checkpoint import checkpoints, steps_taken
from minigrpo.runs.evaluation import evaluate, is_correct
from minigrpo.runs.folder import METRICS, SAMPLES, TOKENIZER, RunFolder
from minigrpo.runs.memory import micro_batch_within
from minigrpo.runs.own_objective import described, short_name
from minigrpo.runs.policy import load_weights, make_policy, make_state, restore_policy, warm_start
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.warning_signs import Watchman
from minigrpo.system.files import read_records
from minigrpo.system.signals import stopping_between_steps
from minigrpo.system.terminal import bar, say
from minigrpo.tasks import Task, draw_prompts, optional, prompt_text, sampling_limits, score
from minigrpo.tasks.process_rewards import process_rewards_of
from minigrpo.trainer import Step, TrainState, grpo_step
from minigrpo.transformer import Transformer
from minigrpo.tree import Rollouts

SAVE_SECONDS = 300  # between checkpoints, at most
ADVICE = "train again with a lower learning rate (or smaller rewards or beta, if they are large)"
Metrics = dict[str, Any]
Parts = dict[str, np.ndarray]  # (B,) each: the named parts of the rewards


class _Run(NamedTuple):
    settings: TrainSettings
    folder: RunFolder | None
    state: TrainState
    task: Task


def train(
    settings: TrainSettings,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    task: Task | None = None,
    objective: Objective | None = None,
    progress: bool = True,
    on_step: Callable[[Metrics], None] | None = None,
    watch: Stopwatch | None = None,
) -> tuple[Transformer, list[Metrics]]:
    """Train from these settings; write a run folder if `out` is given.   -> model, metrics per step

    resume=True goes on from the newest checkpoint in `out`, or from the start if there is none yet;
    with other `steps` it ends there, to the bits of a run that was started with so many.
    `task` and `objective` override those that the settings name.  `watch` measures the steps.
    Ctrl-C, SIGTERM and SIGHUP finish the step, save a checkpoint and raise KeyboardInterrupt.
    Raises ValueError for bad input, DivergenceError (a FloatingPointError) if training diverges:
    nothing of that step is kept.
    >>> settings = mg.TrainSettings(task="treewalk", steps=3)
    >>> model, history = mg.train(settings, "run", progress=False)
    >>> [metrics["step"] for metrics in history]
    [1, 2, 3]
    """
    on_step = on_step or (lambda metrics: None)
    if objective is not None:
        settings = replace(settings, **described(objective))
    objective = objective or settings.make_objective()
    with RunFolder(out, asdict(settings), resume) if out is not None else nullcontext() as folder:
        run, seen = _begin(settings, folder, task, objective, progress)
        for metrics in seen:
            on_step(metrics)
        state, history, past = run.state, [], seen
        if folder and (folder.path / METRICS).exists():  # of a run that goes on, the steps so far
            past = read_records(folder.path / METRICS)
        watchman = Watchman(past, state.model.parameters.flat, settings.steps - state.step)
        with stopping_between_steps() as stopped, one_blas_thread(state.model):
            title = f"{short_name(settings.objective)} on {settings.task}"
            done = {"initial": state.step, "total": settings.steps}
            steps = bar(range(state.step, settings.steps), title, "step", progress, **done)
            for _ in steps:
                step = _step(run, watch, parts := {})
                history.append(metrics := step.metrics)
                shown = {"reward": metrics["reward"], "unique": 1 / metrics["tree/mean_count"]}
                steps.set_postfix({n: f"{x:.2f}" for n, x in shown.items()}, refresh=False)
                stopping = bool(stopped)  # once: a signal from here on ends the next step
                if folder:
                    _write(run, step, parts, stopping)
                on_step(metrics)
                for warning in watchman.look(metrics).values() if progress else ():
                    say(f"warning: {warning}", sys.stderr)
                if stopping:
                    break
    return state.model, history


def train_step(
    state: TrainState, task: Task, settings: TrainSettings, parts: Parts | None = None
) -> Step:
    """`grpo_step` on prompts of a task; the metrics also tell frac_correct and step_time.

    Named parts of rewards go into `parts`, their mean and std (n - 1, as TRL's) to the metrics.
    """
    s, started, parts = settings, time.perf_counter(), {} if parts is None else parts

    def outcome(rollouts: Rollouts) -> np.ndarray:
        rewards, found = score(task, rollouts)
        parts.update(found)
        return rewards

    prompts = draw_prompts(task, state.rng, s.prompts_per_step)
    rate = learning_rate_at(state.step, s.steps, s.learning_rate, s.warmup_steps, s.schedule)
    own = process_rewards_of(task) if state.objective.process_weight else None
    step = grpo_step(state, prompts, outcome, rate, sampling_limits(task), own)
    for name, values in parts.items():
        step.metrics[f"rewards/{name}/mean"] = float(values.mean())
        step.metrics[f"rewards/{name}/std"] = float(values.std(ddof=min(1, len(values) - 1)))
    step.metrics["frac_correct"] = float(is_correct(task, step.rewards).mean())
    step.metrics["step_time"] = time.perf_counter() - started
    return step


def _step(run: _Run, watch: Stopwatch | None, parts: Parts) -> Step:
    """A step of a run, evaluated if that is due; what ends it leaves the run as it was before."""
    settings, folder, state, task = run
    with diverging(f"step {state.step + 1}", lambda: _advice(folder)):
        with _nothing_lost(folder, state, task), watch or nullcontext():
            step = train_step(state, task, settings, parts)
        every = settings.eval_every
        if every and (state.step == settings.steps or state.step % every == 0):
            step.metrics.update(_evaluate(run))
    return step


def _write(run: _Run, step: Step, parts: Parts, stopping: bool) -> None:
    """The records of a step and, if that is due or the run stops, a checkpoint."""
    settings, folder, state, task = run
    folder.append(METRICS, [step.metrics])
    if state.step % settings.log_samples_every == 0:
        found = sample_records(step.rollouts, step.rewards, task, state.step, parts)
        folder.append(SAMPLES, found)
    last, late = state.step == settings.steps, time.monotonic() > folder.saved_at + SAVE_SECONDS
    if last or late or stopping or state.step % settings.checkpoint_every == 0:
        _save(folder, state, task)


def _begin(
    settings: TrainSettings,
    folder: RunFolder | None,
    task: Task | None,
    objective: Objective,
    progress: bool,
) -> tuple[_Run, list[Metrics]]:
    """The run before its next step, and the evaluation before step 1 if that was now taken."""
    if saved := folder.load() if folder else None:
        model, task = restore_policy(settings, folder.path, saved[1], task)
    else:
        model, task = make_policy(settings, task)
    settings = replace(settings, micro_batch_tokens=micro_batch_within(settings, model.config))
    _check_process_rewards(task, objective, settings)
    run = _Run(settings, folder, state := make_state(settings, model, objective), task)
    if saved:
        _restore(state, *saved)
        return run, []
    if settings.init is not None:
        load_weights(model, settings.init)
    elif settings.warm_start_steps:
        warm_start(model, task, state.rng, settings, progress)
    if state.objective.beta:
        state.reference = model.parameters.flat.copy()
    before = [{"step": 0} | _evaluate(run, progress)] if settings.eval_every else []
    if folder:
        if settings.model is not None:
            folder.write(TOKENIZER, task.tokenizer.to_json().encode())
        if before:  # it precedes the checkpoint, so that a resumed run has it exactly once
            folder.append(METRICS, before)
        _save(folder, state, task)
    return run, before


def _check_process_rewards(task: Task, objective: Objective, settings: TrainSettings) -> None:
    """Tell whose process rewards will not be used, and refuse an objective that has none to use."""
    own, names = process_rewards_of(task), (settings.task, short_name(settings.objective))
    if objective.process_weight and own is None:
        told = "task {} has no process rewards, which objective {} has a process_weight for"
        way_out = "give it process_rewards or score_prefix, or set process_weight to 0"
        raise ValueError(f"{told.format(*names)}: {way_out}")
    if own is not None and not objective.process_weight:
        told = "note: task {} has process rewards, which objective {} does not use".format(*names)
        say(f"{told} (it would with --objective-option process_weight=1)", sys.stderr)


def _evaluate(run: _Run, progress: bool = False) -> Metrics:
    n_prompts = run.settings.eval_prompts
    return evaluate(run.state.model, run.task, n_prompts=n_prompts, progress=progress)


def sample_records(
    rollouts: Rollouts, rewards: np.ndarray, task: Task, step: int, parts: Parts | None = None
) -> list[dict[str, Any]]:
    """Completions as records that `minigrpo tree` reads; named parts stand beside the reward."""
    columns = {"reward": rewards} | {f"rewards/{n}": a for n, a in (parts or {}).items()}
    rows, tokenizer, records = zip(*columns.values(), strict=True), task.tokenizer, []
    for g, (prompt, group) in enumerate(zip(rollouts.prompts, rollouts.completions, strict=True)):
        text = prompt_text(tokenizer, prompt)
        shared = {"step": step, "group": g, "prompt": getattr(text, "asked", text)}
        for completion in group:
            text = tokenizer.decode(completion)
            own = dict(zip(columns, map(float, next(rows)), strict=True))
            records.append({**shared, "completion": text, **own})
    return records


def _advice(folder: RunFolder | None) -> str:
    """How to go on after training has diverged."""
    if not folder or not checkpoints(folder.path):
        return ADVICE
    step = steps_taken(folder.path)
    weights = f", from its weights with --init {folder.path}" if step else ""
    return f"the checkpoint of step {step} is kept: {ADVICE} and another --out{weights}"


# -- checkpoints -----------------------------------------------------------------------------------


@contextmanager
def _nothing_lost(folder: RunFolder | None, state: TrainState, task: Task) -> Iterator[None]:
    """An error while a step samples or scores leaves a checkpoint of the step before."""
    rng, state.updating = state.rng.bit_generator.state, False
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
    model, tokenizer = state.model, task.tokenizer
    arrays = {"parameters": model.parameters.flat} | state.optimizer.arrays()
    if state.reference is not None:
        arrays["reference"] = state.reference
    counters = {
        "num_tokens": state.num_tokens,
        "step_count": state.optimizer.step_count,
        "rng": state.rng.bit_generator.state,
        "config": model.settings(),
        "eos": tokenizer.ends if getattr(tokenizer, "more_eos", ()) else tokenizer.eos,
        "task": type(task).__qualname__,
        "data_sha256": optional(task, "data_sha256"),
    }
    if chat := getattr(tokenizer, "chat", None):
        counters["chat"] = [chat.source, chat.tokens]
    on_host = {name: model.backend.to_host(array) for name, array in arrays.items()}
    folder.save(state.step, on_host, counters)


def _restore(state: TrainState, arrays: Mapping[str, np.ndarray], counters: dict[str, Any]) -> None:
    device = state.model.backend.to_device
    wanted = {"parameters": state.model.parameters.flat} | state.optimizer.arrays()
    odd = [n for n, a in wanted.items() if n not in arrays or arrays[n].shape != a.shape]
    bad = odd or [n for n, a in arrays.items() if a.dtype.kind != "f" or not np.isfinite(a).all()]
    if bad:
        why = "missing or of another shape" if odd else "not all finite numbers"
        told = f"the run's newest checkpoint cannot be used (its {' and '.join(bad)} are {why})"
        raise ValueError(f"{told}: delete it to go on from the one before")
    for name, array in wanted.items():
        array[:] = device(arrays[name])
    if "reference" in arrays:
        state.reference = device(arrays["reference"])
    state.optimizer.step_count = counters["step_count"]
    state.rng.bit_generator.state = counters["rng"]
    state.step, state.num_tokens = counters["step"], counters["num_tokens"]
