"""Finding a task by name: built in, or a class in a file of the user's own."""

from __future__ import annotations

import importlib
import inspect
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from minigrpo.system.user_code import explain, named, run_file
from minigrpo.tasks.task import Task, Tokenizer, optional
from minigrpo.tasks.text import Tokenised, prompts_method, stop_strings
from minigrpo.tasks.tools import whole_number

BUILT_IN = {"arithmetic": "Arithmetic", "countdown": "Countdown", "largest": "Largest"}
BUILT_IN |= {"rows": "Rows", "sums": "Sums", "treewalk": "TreeWalk"}
TASK_PARTS = ("tokenizer", "max_new_tokens", "prompts", "score")
TEXT_TASK_PARTS = ("max_new_tokens", "stop", "texts", "reward")
CHAT_TASK_PARTS = ("max_new_tokens", "messages", "reward")
TOKENIZER_PARTS = ("encode", "decode", "vocab_size", "eos")
ARGUMENTS = {"prompts": 3, "texts": 3, "score": 1, "reward": 2}  # of each method, how many
ARGUMENTS |= {"messages": 3, "demonstrations": 2, "is_correct": 1, "for_run": 1}
ARGUMENTS |= {"process_rewards": 1, "score_prefix": 2}


def load_task(name: str, tokenizer: Tokenizer | None = None, **options: Any) -> Task:
    """The task of a built-in name, or of "path/to/file.py:MyTask"; options go to its constructor.

    tokenizer: of a language model, for a task that is made of text.  Raises ValueError as
    `find_task` does, and for a task of text without a tokenizer or the other way round.
    >>> task = mg.load_task("arithmetic", digits=2)
    >>> task.tokenizer.decode(task.prompts(np.random.default_rng(0), 1)[0])
    '86+67='
    """
    task = find_task(name, **options)
    is_text = prompts_method(task) is not None
    if is_text and tokenizer is None:
        told = f"task {name!r} is made of text, for a language model"
        raise ValueError(f"{told}: give one, such as --model smollm2")
    if tokenizer is not None and not is_text:
        told = f"task {name!r} has tokens of its own, not a language model's"
        raise ValueError(f"{told}: leave out --model, or take sums or largest")
    return Tokenised(task, tokenizer) if is_text else task


def find_task(name: str, **options: Any) -> Any:
    """As `load_task`, but a task that is made of text comes as it is, a `text.TextTask`.

    The file is run as Python: name only files that you trust.  Raises ValueError for an unknown
    name, a file or class that is not there, a file that fails to import, an option the constructor
    does not have, and a class that lacks a part of a task.  What a user's class raises, whatever
    its type, is a ValueError that names the line.
    """
    if name in BUILT_IN:
        cls = getattr(importlib.import_module(f"minigrpo.tasks.{name}"), BUILT_IN[name])
        _check_options(name, cls, options)
        return cls(**options)
    if name.endswith(".py"):
        raise ValueError(f"{name!r} names a file but no class in it: write {name}:MyTask")
    if ":" not in name:
        known = f"choose {', '.join(sorted(BUILT_IN))}, or path/to/file.py:MyTask"
        raise ValueError(f"there is no task {name!r}: {known}")
    path, task = made_from_file("task", name, options)
    _check_parts(name, task, str(path))
    return task


def made_from_file(kind: str, name: str, options: dict[str, Any]) -> tuple[Path, Any]:
    """What the class "path/to/file.py:Name" makes of options.   kind: what it is, for messages

    It may be a function, too.   -> the file, the object.   Raises ValueError as `find_task` does.
    """
    path, cls = _class_in_file(kind, *name.rsplit(":", 1))
    _check_options(name, cls, options, kind)
    with named(f"{kind} {name!r} cannot be made", cls):
        return path, cls(**options)


def _class_in_file(kind: str, file: str, class_name: str) -> tuple[Path, Callable[..., Any]]:
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        advice = "check the path (a relative one is taken from the current folder)"
        raise ValueError(f"there is no {kind} file {file!r}: {advice}")
    if path.suffix != ".py":
        raise ValueError(f"the {kind} file {file!r} is no .py file: name one")
    module_name = f"minigrpo_{kind}_{path.stem}_{zlib.crc32(os.fsencode(path)):08x}"
    with named(f"the {kind} file {file!r} cannot be imported"):
        module = run_file(path, module_name, kind == "objective")  # beside a task's file
    if not callable(found := getattr(module, class_name, None)):
        found = {key: value for key, value in vars(module).items() if inspect.isclass(value)}
        classes = [key for key, value in found.items() if value.__module__ == module_name]
        told = f"the {kind} file {file!r} has no class {class_name!r}"
        raise ValueError(f"{told}: it has {', '.join(classes) or 'none'}")
    return path, found


def _check_options(
    name: str, cls: Callable[..., Any], options: dict[str, Any], kind: str = "task"
) -> None:
    parameters = inspect.signature(cls).parameters.values()
    accepted = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [p.name for p in accepted]
    listed = f"its options are {', '.join(known)}" if known else "it has no options"
    unknown = sorted(set(options) - set(known))
    if unknown and not any(p.kind == p.VAR_KEYWORD for p in parameters):
        raise ValueError(f"{kind} {name!r} has no option {unknown[0]!r}: {listed}")
    for p in accepted:
        if p.default is p.empty and p.name not in options:
            raise ValueError(f"{kind} {name!r} needs the option {p.name!r}: {listed}")


def _check_parts(name: str, task: Any, file: str) -> None:
    method = prompts_method(task)
    parts, kind = (TEXT_TASK_PARTS, "a text task") if method else (TASK_PARTS, "a task")
    if method == "messages":
        parts, kind = CHAT_TASK_PARTS, "a task of messages"
        if optional(task, "texts") is not None:
            raise ValueError(f"task {name!r} has both texts and messages: leave one of them out")
    for part in parts:  # a property that fails is there, and is told below
        if not hasattr(task, part) and not hasattr(type(task), part):
            needs = f"{kind} needs {', '.join(parts[:-1])} and {parts[-1]}"
            raise ValueError(f"task {name!r} has no attribute {part!r}: {needs}")
    whole_number(f"max_new_tokens of task {name!r}", task.max_new_tokens, 1)
    if method:
        stop_strings(optional(task, "stop"))
    else:
        for part in TOKENIZER_PARTS:
            if not hasattr(task.tokenizer, part):
                told = f"the tokenizer of task {name!r} has no attribute {part!r}"
                raise ValueError(f"{told}: it needs encode, decode, vocab_size and eos")
        size = whole_number(f"vocab_size of task {name!r}", task.tokenizer.vocab_size, 1)
        whole_number(f"eos of task {name!r}", task.tokenizer.eos or 0, 0, size - 1)
        if optional(task, "n_drawable") is not None:
            whole_number(f"n_drawable of task {name!r}", task.n_drawable, 1, size)
    for part, n in ARGUMENTS.items():
        if part not in parts and optional(task, part) is None:
            continue
        try:
            with suppress(ValueError):  # Python does not know the arguments of some C functions
                inspect.signature(getattr(task, part)).bind(*range(n))
        except TypeError as error:
            told = explain(error, file, getattr(task, part))
            failed = f"{part} of task {name!r} cannot be called with {n} arguments"
            raise ValueError(f"{failed}: {told}") from None
