"""Where a policy and its task come from: made anew, a pretrained language model, a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.engine.divergence import DivergenceError, diverging
from minigrpo.engine.lanes import limited
from minigrpo.engine.optim import SGD, AdamW, clip_gradient, learning_rate_at
from minigrpo.engine.parameters import TransformerConfig
from minigrpo.engine.parts import visit_parts
from minigrpo.engine.plan import split_tree
from minigrpo.objectives import Objective
from minigrpo.runs.folder import TOKENIZER, load_run_checkpoint
from minigrpo.runs.memory import micro_batch_within
from minigrpo.runs.own_objective import checked
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.stored_settings import hash_of_task, task_by_file
from minigrpo.system.terminal import bar
from minigrpo.system.user_code import shown
from minigrpo.tasks import Task, draw_prompts, load_task, optional, pairs
from minigrpo.trainer import TrainState
from minigrpo.transformer import Transformer
from minigrpo.tree import PrefixTree


def make_policy(settings: TrainSettings, task: Task | None = None) -> tuple[Transformer, Task]:
    """The policy that a run starts from, and its task, unless one is given.

    Raises ValueError for bad input.
    >>> model, task = mg.make_policy(mg.TrainSettings(task="arithmetic", dim=64))
    >>> model.config.dim
    64
    """
    if settings.model is None:
        task = task or make_task(settings)
        return make_model(settings, task), task
    from minigrpo.models import load_model  # needs the extra `lm`

    model, tokenizer = load_model(settings.model, settings.backend, settings.dtype)
    return model, task or make_task(settings, tokenizer)


def make_task(settings: TrainSettings, tokenizer: Any = None) -> Task:
    """The task of these settings: `load_task`, then its own `for_run`, if any, with their seed."""
    task = load_task(settings.task, tokenizer, **settings.task_options)
    for_run = optional(task, "for_run")
    if for_run is None:
        return task
    own = for_run(settings.seed)
    if type(own) is not type(task):
        gave = f"for_run of task {settings.task!r} gave {shown(own)}"
        raise ValueError(f"{gave}: it must return a task of the same class")
    return own


def make_model(settings: TrainSettings, task: Task) -> Transformer:
    """A new model of the settings' shape, with room for any prompt of the task."""
    longest = max(np.size(p) for p in draw_prompts(task, np.random.default_rng(0), 64))
    names = "dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim"
    config = TransformerConfig(
        vocab_size=task.tokenizer.vocab_size,
        max_seq_len=max(64, 2 * longest + task.max_new_tokens),
        n_drawable=optional(task, "n_drawable"),
        **{name: getattr(settings, name) for name in names},
    )
    micro_batch_within(settings, config)  # refuses what is too large before it is made
    return Transformer(config, settings.seed, settings.backend, settings.dtype)


def make_state(
    settings: TrainSettings, model: Transformer, objective: Objective | None = None
) -> TrainState:
    """What a run begins with: optimiser, objective, and the randomness of the settings' seed."""
    if settings.optimizer == "sgd":
        optimizer = SGD(model.parameters)
    else:
        optimizer = AdamW(model.parameters, weight_decay=settings.weight_decay)
    names = "group_size", "temperature", "inner_epochs", "max_grad_norm", "micro_batch_tokens"
    same = {name: getattr(settings, name) for name in names}
    rng = np.random.default_rng(settings.seed)
    objective = checked(objective or settings.make_objective(), settings.objective)
    return TrainState(model, optimizer, objective, rng, **same)


def warm_start(
    model: Transformer,
    task: Task,
    rng: np.random.Generator,
    settings: TrainSettings,
    progress: bool = False,
) -> None:
    """Supervised learning on the task's demonstrations.   Raises ValueError if it has none."""
    demonstrations = optional(task, "demonstrations")
    if demonstrations is None:
        raise ValueError(f"task {settings.task} has no demonstrations: set warm_start_steps to 0")
    s, n = settings, settings.warm_start_batch
    rest = s.warm_start_steps, s.warm_start_learning_rate, s.micro_batch_tokens, progress
    imitate(model, lambda: pairs(n, demonstrations(rng, n)), *rest)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
@limited
def imitate(
    model: Transformer,
    draw: Callable[[], Sequence[tuple[np.ndarray, np.ndarray]]],
    steps: int,
    learning_rate: float,
    micro_batch_tokens: int = 1024,
    progress: bool = False,
) -> None:
    """Supervised learning: each step minimises -mean log p(token) of what draw() demonstrates.

    Raises DivergenceError if it diverges.
    """
    optimizer = AdamW(model.parameters)
    for step in bar(range(steps), "warm start", "step", progress):
        prompts, completions = zip(*draw(), strict=True)
        tree = PrefixTree.from_groups(prompts, [[completion] for completion in completions])
        c = -1.0 / max(tree.scored.sum(), 1)  # d loss / d logp

        def visit(lane: Transformer, part: PrefixTree, _: Any, add: bool, c: float = c) -> None:
            lane.forward(part)
            lane.backward(np.where(part.scored, c, 0.0), add)

        with diverging(f"warm-start step {step + 1}", lambda: "lower warm_start_learning_rate"):
            visit_parts(model, split_tree(tree, micro_batch_tokens, model.lanes), visit)
            clip_gradient(model.gradients, 1.0)
            rate = learning_rate_at(step, steps, learning_rate, 20, "cosine")
            optimizer.step(model.parameters, model.gradients, rate)
            model.check_weights()


def load_run(path: str | Path, **changes: Any) -> tuple[Transformer, Task, TrainSettings]:
    """The model of a run's newest checkpoint, or of a checkpoint file, with task and settings.

    changes: to its settings, such as dtype.  Raises ValueError for a folder without a run, damaged
    files, and a task that is not there or is another one.
    >>> _ = mg.train(mg.TrainSettings(steps=2), "run", progress=False)
    >>> model, task, settings = mg.load_run("run", dtype="float64")
    """
    path = Path(path)
    arrays, state = load_run_checkpoint(path)
    stored = task_by_file(state["settings"])
    if stored.get("backend") == "cupy":
        stored["backend"] = "auto"  # trained on a GPU, looked at anywhere
    known = {f.name: stored[f.name] for f in fields(TrainSettings) if f.name in stored}
    settings = TrainSettings(**known | changes)
    model, task = restore_policy(settings, path.parent if path.is_file() else path, state)
    _fill(model, arrays["parameters"], path)
    return model, task, settings


def restore_policy(
    settings: TrainSettings, folder: Path, state: Mapping[str, Any], task: Task | None = None
) -> tuple[Transformer, Task]:
    """A model of a checkpoint's shape, its parameters still 0, and its task."""
    config, tokenizer = TransformerConfig(**state["config"]), None
    model = Transformer(config, None, settings.backend, settings.dtype)
    if settings.model is not None:
        from minigrpo.models.text_tokenizer import ChatTemplate, TextTokenizer

        file = folder / TOKENIZER
        tokenizer = TextTokenizer.from_file(file, config.vocab_size, state["eos"])
        tokenizer = replace(tokenizer, chat=ChatTemplate(*state.get("chat", ())))
    task = task or make_task(settings, tokenizer)
    was, now = state["task"], type(task).__qualname__
    if now != was:
        raise ValueError(f"{folder} was trained on a task of class {was}, not {now}: give that one")
    for name in (settings.task, settings.objective):
        kind = "task" if name == settings.task else "objective"
        if state.get(f"{kind}_sha256") not in (None, hash_of_task(name)):
            file = name.rpartition(":")[0]
            print(f"note: {file} is not what it was when {folder} was trained", file=sys.stderr)
    if state.get("data_sha256") not in (None, optional(task, "data_sha256")):
        file = optional(task, "file", "its data")
        print(f"note: {file} is not what it was when {folder} was trained", file=sys.stderr)
    if tokenizer is None and task.tokenizer.vocab_size != config.vocab_size:
        what = f"{folder} holds a model with a vocabulary of {config.vocab_size}"
        now = f"task {settings.task!r} has {task.tokenizer.vocab_size}: it has changed since"
        raise ValueError(f"{what}, but {now} (a new run is needed)")
    return model, task


def load_weights(model: Transformer, path: str | Path) -> None:
    """Copy the parameters of a run or checkpoint.   Raises ValueError if the shapes differ."""
    arrays, state = load_run_checkpoint(path)
    if TransformerConfig(**state["config"]) != model.config:
        own, other = model.settings(), state["config"]
        changed = ", ".join(sorted(n for n in own if other.get(n, own[n]) != own[n]))
        raise ValueError(f"{path} holds a model of another shape (it differs in {changed})")
    _fill(model, arrays["parameters"], path)


def _fill(model: Transformer, found: np.ndarray, path: str | Path) -> None:
    what = f"{path} cannot be used"
    if found.shape != model.parameters.flat.shape or found.dtype.kind != "f":
        raise ValueError(f"{what}: its parameters are {found.dtype} of shape {found.shape}")
    try:
        with np.errstate(all="ignore"):  # float64 may overflow in float32
            model.parameters.flat[:] = model.backend.to_device(found, dtype=model.dtype)
            model.check_weights()
    except DivergenceError as error:
        raise ValueError(f"{what}: {error}") from error
