"""What tasks are made of: a tokenizer of characters, scores by text, checks of options."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrpo.system.user_code import numbers, shown
from minigrpo.tasks.task import Tokenizer, has_parts


@dataclass(frozen=True)
class CharTokenizer:
    """One token per character: its id is its position in the alphabet; EOS is the last id, if any.

    Pass eos=True (default) or False; the attribute `eos` is then the id len(alphabet), or None.
    Raises ValueError for an alphabet that is empty or has a character twice.
    """

    alphabet: str
    eos: int | bool | None = True

    def __post_init__(self) -> None:
        if not self.alphabet or len(set(self.alphabet)) < len(self.alphabet):
            told = f"the alphabet {self.alphabet!r} must have at least one character"
            raise ValueError(f"{told}, and none twice")
        has_eos = self.eos is not None and self.eos is not False
        object.__setattr__(self, "eos", len(self.alphabet) if has_eos else None)

    @property
    def vocab_size(self) -> int:
        """V, EOS included."""
        return len(self.alphabet) + (self.eos is not None)

    def encode(self, text: str) -> np.ndarray:
        """Text -> (len(text),) int64, without EOS.   Raises ValueError for a foreign character."""
        if foreign := set(text).difference(self.alphabet):
            told = f"character {min(foreign)!r} is not in the alphabet {self.alphabet!r}"
            raise ValueError(f"{told}: leave it out")
        return np.array([self.alphabet.index(character) for character in text], dtype=np.int64)

    def encode_with_eos(self, text: str) -> np.ndarray:
        """As `encode`, with EOS at the end if the tokenizer has one: a finished completion."""
        return self.encode(text) if self.eos is None else np.append(self.encode(text), self.eos)

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids -> text, cut before the first EOS.   Raises ValueError for a foreign id."""
        tokens = np.asarray(ids).tolist()
        if self.eos in tokens:
            tokens = tokens[: tokens.index(self.eos)]
        if tokens and not 0 <= min(tokens) <= max(tokens) < len(self.alphabet):
            told = f"token ids {min(tokens)} … {max(tokens)} do not fit a vocabulary of"
            raise ValueError(f"{told} {self.vocab_size}: decode with the tokenizer that made them")
        return "".join([self.alphabet[token] for token in tokens])


def score_texts(
    rollouts: Any, tokenizer: Tokenizer, reward: Callable[[str, str], float | dict[str, float]]
) -> np.ndarray | dict[str, np.ndarray]:
    """Outcome rewards by text: reward(prompt, completion), once per distinct pair.  -> (B,) float

    Where reward gives a dict of named parts, the parts, (B,) each.

    rollouts needs `prompts` (G arrays) and `completions` (G lists of arrays).  A completion that
    the length limit cut is judged by what is there.  Raises ValueError, naming prompt and
    completion, for a reward or part that is not a finite number, and for other parts than before.
    """
    known: dict[tuple[str, str], dict[str, float]] = {}
    rewards: list[dict[str, float]] = []
    for prompt, group in zip(rollouts.prompts, rollouts.completions, strict=True):
        text = prompt_text(tokenizer, prompt)
        for completion in group:
            pair = text, tokenizer.decode(completion)
            if pair not in known:
                known[pair] = _parts(reward, pair, rewards[0] if rewards else None)
            rewards.append(known[pair])
    names = rewards[0] if rewards else {"": 0.0}
    parts = {name: np.array([r[name] for r in rewards], dtype=np.float64) for name in names}
    return parts.get("", parts)


def prompt_text(tokenizer: Tokenizer, prompt: np.ndarray) -> str:
    """The text that a prompt was made of; of one given as ids, their text, <eos> for each EOS."""
    if getattr(prompt, "text", None) is not None:
        return prompt.text
    ids = np.asarray(prompt)
    pieces = np.split(ids, np.flatnonzero(ids == tokenizer.eos))  # all but the first begin with EOS
    return "<eos>".join(tokenizer.decode(piece[i > 0 :]) for i, piece in enumerate(pieces))


def finite_reward(
    judge: Callable[[str, str], Any], prompt: str, completion: str, what: str = "reward"
) -> float:
    """What a user's function gives for a pair.   Raises ValueError unless it is a finite number."""
    pair = f"completion {shown(completion)} to prompt {shown(prompt)}"
    return _finite(_asked(judge, prompt, completion, pair), f"the {what} of {pair}")


def _parts(
    reward: Callable[[str, str], Any], pair: tuple[str, str], first: dict[str, float] | None
) -> dict[str, float]:
    """A reward by its named parts; a plain number is a part without a name.   first: of another"""
    told = f"completion {shown(pair[1])} to prompt {shown(pair[0])}"
    value, of = _asked(reward, *pair, told), f"the reward of {told}"
    parts = value if has_parts(value, of) else {"": value}
    if first is not None and parts.keys() != first.keys():
        other = f"{of} is {shown(value)}, that of another completion had"
        had = f"the parts {', '.join(first)}" if "" not in first else "no parts"
        raise ValueError(f"{other} {had}: return the same parts for all")
    return {k: _finite(v, f"part {k} of {of}" if k else of) for k, v in parts.items()}


def _asked(judge: Callable[[str, str], Any], prompt: str, completion: str, pair: str) -> Any:
    try:
        return judge(prompt, completion)
    except BaseException as error:
        error.add_note(f"at {pair}")
        raise


def _finite(value: Any, what: str) -> float:
    number = math.nan
    with suppress(ValueError):
        number = float(numbers([value], 1, "rewards")[0])
    if not math.isfinite(number):
        raise ValueError(f"{what} is {shown(value)}: return a finite number")
    return number


# -- options ---------------------------------------------------------------------------------------


def whole_number(name: str, value: Any, low: int, high: int | None = None) -> int:
    """value as an int.   Raises ValueError unless it is a whole number in [low, high]."""
    number = None
    with suppress(TypeError):
        number = None if isinstance(value, bool) else operator.index(value)
    if number is None or number < low or (high is not None and number > high):
        allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} is {value!r}: it must be a whole number {allowed}")
    return number


def real_number(name: str, value: Any, low: float, high: float) -> float:
    """value as a float.   Raises ValueError unless it is a finite number in [low, high]."""
    number = math.nan
    with suppress(TypeError, ValueError, OverflowError):
        number = math.nan if isinstance(value, str | bool | np.bool_) else float(value)
    if not (math.isfinite(number) and low <= number <= high):
        allowed = f" from {low:g} to {high:g}" if math.isfinite(high - low) else ""
        raise ValueError(f"{name} is {value!r}: it must be a finite number{allowed}")
    return number
