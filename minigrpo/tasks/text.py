"""Tasks of text for pretrained language models: prompts and rewards are strings.

A text task of your own is a class with the attributes of `TextTask`, named like any other:

    class Capitals:
        max_new_tokens = 6
        stop = "\\n"
        def texts(self, rng, n, split="train"):
            return [f"Q: the capital of {c}? A:" for c in rng.choice(COUNTRIES[split], n)]
        def reward(self, prompt, completion):
            return float(CAPITALS[prompt] in completion)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from minigrpo.sampler import Stop
from minigrpo.system.user_code import shown
from minigrpo.tasks.task import exactly, pairs
from minigrpo.tasks.tools import score_texts


class TextTask(Protocol):
    """What training a language model needs of a task.

    texts(rng, n, split)        n prompts, of the "train" or the "test" split; all randomness comes
                                from rng
    reward(prompt, completion)  the outcome reward of one completion, without the stop string
    stop                        a completion ends where this string, or one of several, appears
                                (None: only at EOS or the length limit)
    max_new_tokens              the length limit, in tokens

    Optional: `is_correct`, `for_run` and `defaults`, as in `Task`; `demonstrations(rng, n)`, n
    pairs of texts (prompt, completion), for a supervised warm start.
    """

    max_new_tokens: int
    stop: str | Sequence[str] | None

    def texts(self, rng: np.random.Generator, n: int, split: str = "train") -> list[str]: ...

    def reward(self, prompt: str, completion: str) -> float: ...


@dataclass(frozen=True, eq=False)
class Tokenised:
    """A text task as a `Task`: over the tokens of one tokenizer."""

    task: TextTask
    tokenizer: Any  # models.TextTokenizer

    def __getattr__(self, name: str) -> Any:  # max_new_tokens, and what a task may lack
        task = object.__getattribute__(self, "task")
        found = getattr(task, name)
        if name == "for_run":
            return lambda seed: Tokenised(found(seed), self.tokenizer)
        own = {"demonstrations": self._demonstrations, "score_prefix": self._score_prefix}
        return own.get(name, found)

    @property
    def stop(self) -> Stop | None:
        """The rule that ends a completion at the task's stop string."""
        return self.tokenizer.stops_at(*stop_strings(self.task.stop))

    def prompts(self, rng: np.random.Generator, n: int, split: str = "train") -> list[np.ndarray]:
        """n prompts as token ids, which remember their texts."""
        texts = exactly(n, self.task.texts(rng, n, split), "texts")
        return [self.tokenizer.encode(_text(text, "texts")) for text in texts]

    def score(self, rollouts: Any) -> np.ndarray:
        """(B,) the reward of each completion, which is judged up to its stop string."""
        stops = stop_strings(self.task.stop)

        def reward(prompt: str, completion: str) -> float:
            return self.task.reward(prompt, _until(completion, stops))

        return score_texts(rollouts, self.tokenizer, reward)

    def _score_prefix(self, prompt: str, text: str) -> float:
        """Of a task that has one: of a text so far, which is cut before a stop string."""
        return self.task.score_prefix(prompt, _until(text, stop_strings(self.task.stop)))

    def _demonstrations(
        self, rng: np.random.Generator, n: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of a task that has some: n pairs of token ids, ended as sampling ends them."""
        stops, tokenizer = stop_strings(self.task.stop), self.tokenizer
        end = [tokenizer.eos] if not stops and tokenizer.eos is not None else []

        def as_ids(prompt: Any, completion: Any) -> tuple[np.ndarray, np.ndarray]:
            prompt, completion = (_text(text, "demonstrations") for text in (prompt, completion))
            text = _until(completion, stops) + (stops[0] if stops else "")
            ids = np.append(tokenizer.encode_after(prompt, text), end).astype(np.int64)
            ends = np.flatnonzero(np.isin(ids, tokenizer.ends))  # sampling stops at the first
            return tokenizer.encode(prompt), ids[: ends[0] + 1] if len(ends) else ids

        return [as_ids(*pair) for pair in pairs(n, self.task.demonstrations(rng, n))]


def stop_strings(stop: Any) -> tuple[str, ...]:
    """A task's stop as texts, none for None.   Raises ValueError for what is no text, or empty."""
    stops = () if stop is None else (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, tuple | list) or not all(isinstance(s, str) and s for s in stops):
        allowed = "it must be a text that is not empty, several, or None"
        raise ValueError(f"stop is {shown(stop)}: {allowed}")
    return tuple(stops)


def _until(completion: str, stops: tuple[str, ...]) -> str:
    return completion[: min((completion.find(s) for s in stops if s in completion), default=None)]


def _text(value: Any, method: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{method} of the task gave {shown(value)} where a text is wanted")
    return str.__str__(value)  # of a subclass, such as an Enum's, the characters and not its name
