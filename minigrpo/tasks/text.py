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
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np

from minigrpo.sampler import Stop
from minigrpo.system.user_code import shown
from minigrpo.tasks.task import exactly, pairs
from minigrpo.tasks.tools import draw_problems, real_number, score_texts, whole_number


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
        return self._demonstrations if name == "demonstrations" else found

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


# -- solved examples, then a question --------------------------------------------------------------


def few_shot(examples: Sequence[tuple[str, str]], question: str) -> str:
    """Solved examples, one per line, then the question, so that a base model sees what is asked."""
    return "".join(f"{asked} {answer}\n" for asked, answer in examples) + question


@dataclass(frozen=True)
class FewShot:
    """A text task whose prompts are the same solved examples and then a question, line by line.

    examples: how many are solved; test_share: of the problems held out.  A subclass has
    `max_new_tokens`, draw(rng) -> problem, key(problem), its canonical text, question(problem) and
    answer(question).   reward = 1 if the completion is the answer, else 0
    """

    examples: int = 6
    test_share: float = 0.1

    stop: ClassVar[str] = "\n"
    defaults: ClassVar[dict[str, Any]] = (  # for SmolLM2, and prompts that share their examples
        {"steps": 30, "group_size": 8, "prompts_per_step": 8, "learning_rate": 1e-5}
        | {"warmup_steps": 0, "schedule": "cosine"}
        | {"eval_every": 10, "eval_prompts": 100, "log_samples_every": 1}
    )
    preamble_seed: ClassVar[int] = 2  # its six examples bring SmolLM2 to a third of sums right

    def __post_init__(self) -> None:
        whole_number("examples", self.examples, 0, 64)
        real_number("test_share", self.test_share, 0, 1)

    @cached_property
    def solved(self) -> list[tuple[str, str]]:
        """The solved examples: question, answer."""
        rng = np.random.default_rng(self.preamble_seed)
        return [(asked, self.answer(asked)) for asked in self._questions(rng, self.examples)]

    def texts(self, rng: np.random.Generator, n: int, split: str = "train") -> list[str]:
        """n prompts: the examples, then the question."""
        return [few_shot(self.solved, asked) for asked in self._questions(rng, n, split)]

    def reward(self, prompt: str, completion: str) -> float:
        """1 for the answer to the prompt's last line, else 0."""
        return float(completion.strip() == self.answer(prompt.rsplit("\n", 1)[-1]))

    def _questions(self, rng: np.random.Generator, n: int, split: str = "train") -> list[str]:
        problems = draw_problems(rng, n, split, self.draw, self.key, self.test_share)
        return [self.question(problem) for problem in problems]
