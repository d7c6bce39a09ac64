"""Where a policy comes from: made anew, a pretrained language model, or the checkpoint of a run; with the task it is for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.engine.divergence import DivergenceError
from minigrpo.engine.optim import SGD, AdamW
from minigrpo.engine.parameters import TransformerConfig
from minigrpo.runs.folder import TOKENIZER, load_run_checkpoint
from minigrpo.runs.memory import micro_batch_within
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.stored_settings import hash_of_task, task_by_file
from minigrpo.system.user_code import shown
from minigrpo.tasks import Task, draw_prompts, load_task, optional, pairs
from minigrpo.trainer import TrainState, imitate
from minigrpo.transformer import Transformer


def make_policy(settings: TrainSettings, task: Task | None = None) -> tuple[Transformer, Task]:
    """The policy that a run starts from, and its task (unless one is given).   Raises ValueError for bad input."""
    if settings.model is None:
        task = task or make_task(settings)
        return make_model(settings, task), task
    from minigrpo.models import load_model  # needs the extra `lm`

    model, tokenizer = load_model(settings.model, settings.backend, settings.dtype)
    return model, task or make_task(settings, tokenizer)


def make_task(settings: TrainSettings, tokenizer: Any = None) -> Task:
    """The task of a run with these settings: `load_task`, then the task's own `for_run`, if it has one, with their seed."""
    task = load_task(settings.task, tokenizer, **settings.task_options)
    if optional(task, "for_run") is None:
        return task
    own = task.for_run(settings.seed)
    if type(own) is not type(task):
        raise ValueError(
            f"for_run of task {settings.task!r} gave {shown(own)}: it must return a task of the same class"
        )
    return own


def make_model(settings: TrainSettings, task: Task) -> Transformer:
    """A new model of the settings' shape for the task's vocabulary, with room for prompts of any length that fits its context."""
    longest = max(np.size(p) for p in draw_prompts(task, np.random.default_rng(0), 64))
    config = TransformerConfig(
        vocab_size=task.tokenizer.vocab_size,
        **{
            name: getattr(settings, name)
            for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim")
        },
        max_seq_len=max(64, 2 * longest + task.max_new_tokens),
        n_drawable=optional(task, "n_drawable"),
    )
    micro_batch_within(settings, config)  # before anything so large is made
    return Transformer(config, seed=settings.seed, backend=settings.backend, dtype=settings.dtype)


def make_state(settings: TrainSettings, model: Transformer) -> TrainState:
    """What a run with these settings begins with: optimiser, objective, randomness of their seed."""
    if settings.optimizer == "sgd":
        optimizer = SGD(model.parameters)
    else:
        optimizer = AdamW(model.parameters, weight_decay=settings.weight_decay)
    names = "group_size temperature inner_epochs max_grad_norm micro_batch_tokens".split()
    rng = np.random.default_rng(settings.seed)
    same = {name: getattr(settings, name) for name in names}
    return TrainState(model, optimizer, settings.make_objective(), rng, **same)


def warm_start(
    model: Transformer,
    task: Task,
    rng: np.random.Generator,
    settings: TrainSettings,
    progress: bool = False,
) -> None:
    """Supervised learning on the task's demonstrations.   Raises ValueError if it has none."""
    if optional(task, "demonstrations") is None:
        raise ValueError(f"task {settings.task} has no demonstrations: set warm_start_steps to 0")
    s, n = settings, settings.warm_start_batch
    steps = s.warm_start_steps, s.warm_start_learning_rate, s.micro_batch_tokens, progress
    imitate(model, lambda: pairs(n, task.demonstrations(rng, n)), *steps)


def load_run(path: str | Path, **changes: Any) -> tuple[Transformer, Task, TrainSettings]:
    """The model of a run's newest checkpoint (or of a checkpoint file in a run folder), with its task and settings."""
    arrays, state = load_run_checkpoint(path)
    stored = task_by_file(state["settings"])
    if stored.get("backend") == "cupy":
        stored["backend"] = "auto"  # trained on a GPU, looked at anywhere
    settings = replace(
        TrainSettings(
            **{f.name: stored[f.name] for f in fields(TrainSettings) if f.name in stored}
        ),
        **changes,
    )
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    model, task = restore_policy(settings, folder, state)
    _fill(model, arrays["parameters"], path)
    return model, task, settings


def restore_policy(
    settings: TrainSettings, folder: Path, state: Mapping[str, Any], task: Task | None = None
) -> tuple:
    """A model of the shape that a checkpoint's state tells, its parameters still 0, and its task.   -> Transformer, Task"""
    config = TransformerConfig(**state["config"])
    model = Transformer(config, seed=None, backend=settings.backend, dtype=settings.dtype)
    tokenizer = None
    if settings.model is not None:
        from minigrpo.models import TextTokenizer

        tokenizer = TextTokenizer.from_file(folder / TOKENIZER, config.vocab_size, state["eos"])
    task = task or make_task(settings, tokenizer)
    if type(task).__qualname__ != state["task"]:
        raise ValueError(
            f"{folder} was trained on a task of class {state['task']}, not {type(task).__qualname__}: give that one"
        )
    if state["task_sha256"] not in (None, hash_of_task(settings.task)):
        print(
            f"note: {settings.task.rpartition(':')[0]} is not what it was when {folder} was trained",
            file=sys.stderr,
        )
    if tokenizer is None and task.tokenizer.vocab_size != config.vocab_size:
        now = f"task {settings.task!r} has {task.tokenizer.vocab_size}: it has changed since"
        raise ValueError(
            f"{folder} holds a model with a vocabulary of {config.vocab_size}, but {now} (a new run is needed)"
        )
    return model, task


def load_weights(model: Transformer, path: str | Path) -> None:
    """Copy the parameters of a run or checkpoint into a model of the same shape.   Raises ValueError if the shapes differ."""
    arrays, state = load_run_checkpoint(path)
    if TransformerConfig(**state["config"]) != model.config:
        changed = sorted(
            name
            for name, value in model.settings().items()
            if state["config"].get(name, value) != value
        )
        raise ValueError(
            f"{path} holds a model of another shape (it differs in {', '.join(changed)})"
        )
    _fill(model, arrays["parameters"], path)


def _fill(model: Transformer, parameters: np.ndarray, path: str | Path) -> None:
    if parameters.shape != model.parameters.flat.shape or parameters.dtype.kind != "f":
        raise ValueError(
            f"{path} cannot be used: its parameters are {parameters.dtype} of shape {parameters.shape}"
        )
    try:
        with np.errstate(all="ignore"):  # float64 may overflow in float32
            model.parameters.flat[:] = model.backend.to_device(parameters, dtype=model.dtype)
            model.check_weights()
    except DivergenceError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
