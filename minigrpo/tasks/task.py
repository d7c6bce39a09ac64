"""The parts of tasks: the protocol, a tokenizer of characters, scoring by text, splits of problems, checks of options."""

from __future__ import annotations

import math
import operator
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import Any, Protocol, TypeVar

import numpy as np

from minigrpo.rewards import numbers
from minigrpo.system.user_code import shown

MAX_REPEATS = 200  # test problems drawn in a row that were all known, after which the split is taken to hold no more
MAX_MISSES = 20_000  # draws in a row outside the split, after which it is taken to be empty

Problem = TypeVar("Problem")


class Tokenizer(Protocol):
    """Text to token ids and back.   eos is the id that ends a completion, or None if only the length limit ends one."""

    vocab_size: int
    eos: int | None

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Task(Protocol):
    """What training needs of a task.

    prompts(rng, n, split)   n arrays of token ids, of the "train" or the "test" split; all randomness comes from rng
    score(rollouts)          (B,) outcome rewards: any finite numbers, completion after completion

    Optional: `demonstrations(rng, n)` gives n pairs (prompt ids, completion ids with EOS) of the train split for a supervised
    warm start; `is_correct(rewards)` gives a bool array (by default a reward of 1 or more counts as correct); `stop` is as in
    `sampler.sample`; `n_drawable` says that only token ids below it can be drawn, so that a new model has no logit for the others,
    which may stand in prompts; `for_run(seed)` gives the task of a run with this seed, of the same class, for a task that is to
    differ between runs: training, evaluation, sampling and resumption of a run all call it with the seed of its settings.
    """

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def max_new_tokens(self) -> int: ...

    def prompts(
        self, rng: np.random.Generator, n: int, split: str = "train"
    ) -> list[np.ndarray]: ...

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
            raise ValueError(
                f"the alphabet {self.alphabet!r} must have at least one character, and none twice"
            )
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
            raise ValueError(
                f"character {error.args[0]!r} is not in the alphabet {self.alphabet!r}: leave it out"
            ) from None

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
            raise ValueError(
                f"{found} do not fit a vocabulary of {self.vocab_size}: decode with the tokenizer that made them"
            )
        return "".join([self.alphabet[token] for token in tokens])


def score_texts(
    rollouts: Any, tokenizer: Tokenizer, reward: Callable[[str, str], float]
) -> np.ndarray:
    """Outcome rewards by text: reward(prompt_text, completion_text), called once per distinct pair.   -> (B,) float64

    rollouts needs `prompts` (G arrays) and `completions` (G lists of arrays).  A completion that the length limit cut is judged
    by what is there.  Raises ValueError, naming prompt and completion, for a reward that is not a finite number.
    """
    known: dict[tuple[str, str], float] = {}
    rewards: list[float] = []
    for prompt, group in zip(rollouts.prompts, rollouts.completions, strict=True):
        text = prompt_text(tokenizer, prompt)
        for completion in group:
            pair = text, tokenizer.decode(completion)
            if pair not in known:
                known[pair] = _finite_reward(reward, *pair)
            rewards.append(known[pair])
    return np.array(rewards, dtype=np.float64)


def prompt_text(tokenizer: Tokenizer, prompt: np.ndarray) -> str:
    """The text that a prompt was made of; of one that was given as ids, their text, and <eos> for EOS."""
    if getattr(prompt, "text", None) is not None:
        return prompt.text
    ids, eos = np.asarray(prompt), tokenizer.eos
    cuts = [-1, *(np.flatnonzero(ids == eos).tolist() if eos is not None else ()), len(ids)]
    return "<eos>".join(tokenizer.decode(ids[a + 1 : b]) for a, b in pairwise(cuts))


def _finite_reward(reward: Callable[[str, str], float], prompt: str, completion: str) -> float:
    pair = f"completion {shown(completion)} to prompt {shown(prompt)}"
    try:
        value = reward(prompt, completion)
    except BaseException as error:
        error.add_note(f"at {pair}")
        raise
    number = math.nan
    with suppress(ValueError):
        number = float(numbers([value], 1, "rewards")[0])
    if not math.isfinite(number):
        raise ValueError(f"the reward of {pair} is {shown(value)}: return a finite number")
    return number


def exactly(n: int, found: Any, method: str) -> list[Any]:
    """What a task's method gave for n things, as a list.   Raises ValueError if these are not n."""
    no_list = isinstance(found, str | bytes | Mapping | Set) or not isinstance(found, Iterable)
    items = [] if no_list or getattr(found, "ndim", 1) == 0 else list(islice(found, n + 1))
    if len(items) != n:
        count = (
            "" if no_list else f"more than {n} things, " if items[n:] else f"{len(items)} things, "
        )
        told = f"{method} of the task gave {count}{shown(found)}"
        raise ValueError(f"{told}: it must return a list of {n}")
    return items


def pairs(n: int, found: Any) -> list[Any]:
    """n demonstrations.   Raises ValueError for another number, and for what are no pairs."""
    items = exactly(n, found, "demonstrations")
    other = next(
        (item for item in items if not isinstance(item, tuple | list) or len(item) != 2), None
    )
    if other is not None:
        raise ValueError(
            f"demonstrations of the task gave {shown(other)}: return (prompt, completion)"
        )
    return items


def draw_prompts(task: Task, rng: np.random.Generator, n: int, *split: str) -> list[np.ndarray]:
    """n prompts of a task.   Raises ValueError for another number; `sample` checks what they are."""
    return exactly(n, task.prompts(rng, n, *split), "prompts")


def optional(task: Any, name: str, default: Any = None) -> Any:
    """A part that a task may lack: then the default.   A property that fails does not lack: what it raises passes."""
    try:
        return getattr(task, name)
    except AttributeError:
        if any(
            hasattr(type(owner), name) for owner in (task, getattr(task, "task", None))
        ):  # of text, the task within
            raise
        return default


def sampling_limits(task: Task) -> dict[str, Any]:
    """What ends a completion of the task, as arguments of `sampler.sample`."""
    return {
        "max_new_tokens": task.max_new_tokens,
        "eos": (task.tokenizer.eos, optional(task, "stop")),
    }


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
                raise ValueError(
                    f"the {split} split is empty at test_share={share}: choose another share, or larger problems"
                )
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
        number = math.nan if isinstance(value, str | bool | np.bool_) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and low <= number <= high):
        allowed = f" from {low:g} to {high:g}" if math.isfinite(high - low) else ""
        raise ValueError(f"{name} is {value!r}: it must be a finite number{allowed}")
    return number
