"""What a task is: prompts as token ids, a tokenizer, and an outcome reward for every completion.

A task may be a file of your own of about 20 lines: a class with the attributes of `Task` below, named as "path/to/file.py:MyTask"
wherever a built-in name may stand.  `CharTokenizer`, `score_texts`, `in_test_split` and `draw_problems` are what the built-in
tasks are made of and may be used by yours.

Left out: word or byte-pair tokenizers (anything with encode, decode, vocab_size and eos will do), data sets read from disk,
and process rewards (see `rewards.py`; a task only judges outcomes).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import operator
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

BUILT_IN = {"arithmetic": "Arithmetic", "countdown": "Countdown", "treewalk": "TreeWalk"}
MAX_REPEATS = 200  # test problems drawn in a row that were all known, after which the split is taken to hold no more
MAX_MISSES = 20_000  # draws in a row outside the split, after which it is taken to be empty

Problem = TypeVar("Problem")


class Tokenizer(Protocol):
    """Text to token ids and back.   eos is the id that ends a completion, or None if only the length limit ends one."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos(self) -> int | None: ...

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Task(Protocol):
    """What training needs of a task.

    prompts(rng, n, split)   n arrays of token ids, of the "train" or the "test" split; all randomness comes from rng
    score(rollouts)          (B,) outcome rewards: any finite numbers, completion after completion

    Optional: `demonstrations(rng, n)` gives n pairs (prompt ids, completion ids with EOS) of the train split for a supervised
    warm start; `is_correct(rewards)` gives a bool array (by default a reward of 1 or more counts as correct).
    """

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def max_new_tokens(self) -> int: ...

    def prompts(self, rng: np.random.Generator, n: int, split: str = "train") -> list[np.ndarray]: ...

    def score(self, rollouts: Any) -> np.ndarray: ...


@dataclass(frozen=True)
class CharTokenizer:
    """One token a character: its id is its position in the alphabet; EOS, if there is one, is the last id.

    Pass eos=True (default) or False; the attribute `eos` is then the id len(alphabet), or None.
    Raises ValueError for an alphabet that is empty or has a character twice.
    """

    alphabet: str
    eos: int | bool | None = True

    def __post_init__(self) -> None:
        if not self.alphabet or len(set(self.alphabet)) < len(self.alphabet):
            raise ValueError(f"the alphabet {self.alphabet!r} must have at least one character, and none twice")
        has_eos = self.eos is not None and self.eos is not False
        object.__setattr__(self, "eos", len(self.alphabet) if has_eos else None)

    @property
    def vocab_size(self) -> int:
        """V, EOS included."""
        return len(self.alphabet) + (self.eos is not None)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {character: i for i, character in enumerate(self.alphabet)}

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text, without EOS.   -> (len(text),) int64.   Raises ValueError for a character outside the alphabet."""
        try:
            return np.array([self._ids[character] for character in text], dtype=np.int64)
        except KeyError as error:
            raise ValueError(f"character {error.args[0]!r} is not in the alphabet {self.alphabet!r}: leave it out") from None

    def encode_with_eos(self, text: str) -> np.ndarray:
        """As `encode`, with EOS at the end if the tokenizer has one: a finished completion."""
        return self.encode(text) if self.eos is None else np.append(self.encode(text), self.eos)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; EOS and all after it are dropped.   Raises ValueError for an id outside the vocabulary."""
        tokens = np.asarray(ids).tolist()
        if self.eos in tokens:
            tokens = tokens[: tokens.index(self.eos)]
        if tokens and not 0 <= min(tokens) <= max(tokens) < len(self.alphabet):
            found = f"token ids {min(tokens)} … {max(tokens)}"
            raise ValueError(f"{found} do not fit a vocabulary of {self.vocab_size}: decode with the tokenizer that made them")
        return "".join([self.alphabet[token] for token in tokens])


def score_texts(rollouts: Any, tokenizer: Tokenizer, reward: Callable[[str, str], float]) -> np.ndarray:
    """Outcome rewards by text: reward(prompt_text, completion_text), called once per distinct pair.   -> (B,) float64

    rollouts needs `prompts` (G arrays) and `completions` (G lists of arrays).  A completion that the length limit cut is judged
    by what is there.  Raises ValueError, naming prompt and completion, for a reward that is not a finite number.
    """
    known: dict[tuple[str, str], float] = {}
    rewards: list[float] = []
    for prompt, group in zip(rollouts.prompts, rollouts.completions, strict=True):
        prompt_text = tokenizer.decode(prompt)
        for completion in group:
            pair = prompt_text, tokenizer.decode(completion)
            if pair not in known:
                known[pair] = _finite_reward(reward(*pair), *pair)
            rewards.append(known[pair])
    return np.array(rewards, dtype=np.float64)


def _finite_reward(value: Any, prompt_text: str, completion_text: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        pair = f"completion {completion_text!r} to prompt {prompt_text!r}"
        raise ValueError(f"the reward of {pair} is {value!r}: return a finite number")
    return number


# -- splits --------------------------------------------------------------------------------------------------------------


def in_test_split(text: str, share: float = 0.1) -> bool:
    """Whether a problem belongs to the test split: crc32(text) / 2**32 < share, the same on every machine and in every run.

    Give a canonical text, so that two ways to write one problem land in the same split.
    """
    return zlib.crc32(text.encode()) < share * 2**32


def check_split(split: str) -> None:
    """Raises ValueError unless split is "train" or "test"."""
    if split not in ("train", "test"):
        raise ValueError(f'there is no split {split!r}: choose "train" or "test"')


def draw_problems(
    rng: np.random.Generator,
    n: int,
    split: str,
    draw: Callable[[np.random.Generator], Problem],
    key: Callable[[Problem], str],
    share: float,
) -> list[Problem]:
    """n problems of a split, from a function that draws one problem of either.   key(problem) is its canonical text.

    Train problems are drawn with replacement.  Test problems are distinct until MAX_REPEATS in a row bring nothing new; if n is
    more than were found, they are repeated in order.  Raises ValueError for an unknown or an empty split.
    """
    check_split(split)
    n = whole_number("the number of prompts", n, 0)
    test = split == "test"
    problems: list[Problem] = []
    seen: set[str] = set()
    misses = repeats = 0
    while len(problems) < n and repeats < MAX_REPEATS:
        problem = draw(rng)
        text = key(problem)
        if in_test_split(text, share) != test:
            misses += 1
            if misses == MAX_MISSES:
                raise ValueError(f"the {split} split is empty at test_share={share}: choose another share, or larger problems")
        elif test and text in seen:
            misses, repeats = 0, repeats + 1
        else:
            misses = repeats = 0
            problems.append(problem)
            seen.add(text)
    return [problems[i % len(problems)] for i in range(n)]


# -- options -------------------------------------------------------------------------------------------------------------


def whole_number(name: str, value: Any, low: int, high: int | None = None) -> int:
    """value as an int, or a ValueError that says that `name` must be a whole number in [low, high]."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} is {value!r}: it must be a whole number {allowed}")
    return number


def real_number(name: str, value: Any, low: float, high: float) -> float:
    """value as a float, or a ValueError that says that `name` must be a finite number in [low, high]."""
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and low <= number <= high):
        allowed = f" from {low:g} to {high:g}" if math.isfinite(high - low) else ""
        raise ValueError(f"{name} is {value!r}: it must be a finite number{allowed}")
    return number


# -- loading -------------------------------------------------------------------------------------------------------------


def load_task(name: str, **options: Any) -> Task:
    """The task of a built-in name, or of "path/to/file.py:MyTask"; options go to its constructor.

    The file is run as Python: name only files that you trust.  Raises ValueError for an unknown name, a file or class that is not
    there, a file that fails to import, an option the constructor does not have, and a class that lacks a part of `Task`.
    """
    if name in BUILT_IN:
        cls = getattr(importlib.import_module(f"{__name__}.{name}"), BUILT_IN[name])
    elif name.endswith(".py"):
        raise ValueError(f"{name!r} names a file but no class in it: write {name}:MyTask")
    elif ":" in name:
        cls = _class_in_file(*name.rsplit(":", 1))
    else:
        raise ValueError(f"there is no task {name!r}: choose {', '.join(sorted(BUILT_IN))}, or path/to/file.py:MyTask")
    _check_options(name, cls, options)
    task = cls(**options)
    _check_parts(name, task)
    return task


def _class_in_file(file: str, class_name: str) -> Callable[..., Task]:
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"there is no task file {file!r}: check the path (it is taken from the current folder)")
    if path.suffix != ".py":
        raise ValueError(f"the task file {file!r} is no .py file: name one")
    module_name = f"minigrpo_task_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ValueError(f"the task file {file!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, class_name, None)):
        classes = [key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module_name]
        raise ValueError(f"the task file {file!r} has no class {class_name!r}: it has {', '.join(classes) or 'none'}")
    return getattr(module, class_name)


def _check_options(name: str, cls: Callable[..., Task], options: dict[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [p.name for p in named]
    listed = f"its options are {', '.join(known)}" if known else "it has no options"
    unknown = sorted(set(options) - set(known))
    if unknown and not any(p.kind == p.VAR_KEYWORD for p in parameters):
        raise ValueError(f"task {name!r} has no option {unknown[0]!r}: {listed}")
    missing = [p.name for p in named if p.default is p.empty and p.name not in options]
    if missing:
        raise ValueError(f"task {name!r} needs the option {missing[0]!r}: {listed}")


def _check_parts(name: str, task: Any) -> None:
    for part in ("tokenizer", "max_new_tokens", "prompts", "score"):
        if not hasattr(task, part):
            raise ValueError(f"task {name!r} has no attribute {part!r}: a task needs tokenizer, max_new_tokens, prompts and score")
    for part in ("encode", "decode", "vocab_size", "eos"):
        if not hasattr(task.tokenizer, part):
            needs = "it needs encode, decode, vocab_size and eos"
            raise ValueError(f"the tokenizer of task {name!r} has no attribute {part!r}: {needs}")
    whole_number(f"max_new_tokens of task {name!r}", task.max_new_tokens, 1)
