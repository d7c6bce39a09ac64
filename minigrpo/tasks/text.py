"""Tasks of text for pretrained language models: prompts and rewards are strings.

A text task of your own is a class with the attributes of `TextTask`, named like any other:

    class Capitals:
        max_new_tokens = 6
        stop = "\\n"
        def texts(self, rng, n, split="train"):
            return [f"Q: the capital of {c}? A:" for c in rng.choice(COUNTRIES[split], n)]
        def reward(self, prompt, completion):
            return float(CAPITALS[prompt] in completion)

With a chat model, `messages` in place of `texts` gives conversations, which the model's own chat
template turns into text; an answer ends where the model ends its turn, and needs no `stop`:

    class Even:
        max_new_tokens = 4
        def messages(self, rng, n, split="train"):
            rule = {"role": "system", "content": "Answer yes or no."}
            numbers = rng.integers(0, 100, n) + {"train": 0, "test": 100}[split]
            return [[rule, {"role": "user", "content": f"Is {i} even?"}] for i in numbers]
        def reward(self, prompt, completion):  # prompt is the conversation
            even = int(prompt[-1]["content"].split()[1]) % 2 == 0
            return float(completion.lower().startswith("yes" if even else "no"))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from minigrpo.sampler import Stop
from minigrpo.system.user_code import shown
from minigrpo.tasks.task import exactly, optional, pairs
from minigrpo.tasks.tools import score_texts


class TextTask(Protocol):
    """What training a language model needs of a task.

    texts(rng, n, split)        n prompts, of the "train" or the "test" split; all randomness comes
                                from rng
    messages(rng, n, split)     in place of `texts`: n conversations, each a user's text or a list
                                of {"role": text, "content": text}; the model's chat template makes
                                text of them (and sees 26 July 2024 as the date on any day)
    reward(prompt, completion)  the outcome reward of one completion, without the stop string;
                                prompt is what `texts` or `messages` gave
    stop                        a completion ends where this string, or one of several, appears
                                (None: only at EOS or the length limit; with `messages` the default)
    max_new_tokens              the length limit, in tokens

    Optional: `is_correct`, `for_run`, `defaults` and `reward_weights`, as in `Task`, where a reward
    may be a dict of parts; `demonstrations(rng, n)`, n pairs (prompt, completion text), for a
    supervised warm start.
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
        if name == "score_prefix" and found is not None:
            return self._judged_by(found)
        return self._demonstrations if name == "demonstrations" else found

    @property
    def stop(self) -> Stop | None:
        """The rule that ends a completion at the task's stop string."""
        return self.tokenizer.stops_at(*stop_strings(optional(self.task, "stop")))

    def encode(self, prompt: Any, method: str = "texts") -> np.ndarray:
        """A prompt of the task, a text or a conversation, as token ids, which remember it."""
        if prompts_method(self.task) == "messages":
            return self.tokenizer.encode_chat(prompt)
        return self.tokenizer.encode(_text(prompt, method))

    def prompts(self, rng: np.random.Generator, n: int, split: str = "train") -> list[np.ndarray]:
        """n prompts as token ids, which remember what they were made of."""
        method = prompts_method(self.task) or "texts"
        found = getattr(self.task, method)(rng, n, split)
        return [self.encode(prompt) for prompt in exactly(n, found, method)]

    def score(self, rollouts: Any) -> np.ndarray:
        """(B,) the reward of each completion, which is judged up to its stop string."""
        return score_texts(rollouts, self.tokenizer, self._judged_by(self.task.reward))

    def _judged_by(self, judge: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
        """judge(prompt, text), asked of what the prompt was made of, and up to the stop string."""
        stops = stop_strings(optional(self.task, "stop"))

        def asked(prompt: Any, text: str) -> Any:
            own = deepcopy(getattr(prompt, "asked", prompt))  # which a reward may change
            return judge(own, _until(text, stops))

        return asked

    def _demonstrations(
        self, rng: np.random.Generator, n: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of a task that has some: n pairs of token ids, ended as sampling ends them."""
        stops, tokenizer = stop_strings(optional(self.task, "stop")), self.tokenizer
        is_chat = prompts_method(self.task) == "messages"
        eos = tokenizer.answer_end() if is_chat else tokenizer.eos
        end = [eos] if not stops and eos is not None else []

        def as_ids(prompt: Any, completion: Any) -> tuple[np.ndarray, np.ndarray]:
            asked = self.encode(prompt, "demonstrations")
            text = _until(_text(completion, "demonstrations"), stops) + "".join(stops[:1])
            ids = np.append(tokenizer.encode_after(str(asked.text), text), end).astype(np.int64)
            ends = np.flatnonzero(np.isin(ids, tokenizer.ends))  # sampling stops at the first
            return asked, ids[: ends[0] + 1] if len(ends) else ids

        return [as_ids(*pair) for pair in pairs(n, self.task.demonstrations(rng, n))]


def prompts_method(task: Any) -> str | None:
    """Which method gives a task's prompts as text, if any."""
    return next((it for it in ("messages", "texts") if optional(task, it) is not None), None)


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
