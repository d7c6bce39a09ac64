"""Tasks made of problems that are drawn at random, in two kinds: of characters, and of text.

A subclass says how a problem is drawn and written down, and what is right; what is held out for the
test split is decided by a hash of the problem.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from minigrpo.tasks.tools import CharTokenizer, real_number, score_texts, whole_number

MAX_REPEATS = 200  # known test problems drawn in a row, after which the split holds no more
MAX_MISSES = 20_000  # draws in a row outside of the split, after which it is taken to be empty


def in_test_split(text: str, share: float = 0.1) -> bool:
    """Whether a problem is of the test split: crc32(text) / 2**32 < share, on every machine.

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
    draw: Callable[[np.random.Generator], Any],
    key: Callable[[Any], str],
    share: float,
) -> list[Any]:
    """n problems of a split; draw(rng) gives one of either, key(problem) is its canonical text.

    Train problems are drawn with replacement.  Test problems are distinct until MAX_REPEATS in a
    row bring nothing new; if n is more than were found, they are repeated in order.  Raises
    ValueError for an unknown or an empty split.
    """
    check_split(split)
    n, test = whole_number("the number of prompts", n, 0), split == "test"
    problems, seen, misses, repeats = [], set(), 0, 0
    while len(problems) < n and repeats < MAX_REPEATS:
        problem = draw(rng)
        text = key(problem)
        if in_test_split(text, share) != test:
            misses += 1
            if misses == MAX_MISSES:
                told = f"the {split} split is empty at test_share={share}"
                raise ValueError(f"{told}: choose another share, or larger problems")
        elif test and text in seen:
            misses, repeats = 0, repeats + 1
        else:
            misses = repeats = 0
            problems.append(problem)
            seen.add(text)
    return [problems[i % len(problems)] for i in range(n)]


@dataclass(frozen=True, kw_only=True)
class CharTask:
    """A task whose problems and completions are characters.

    test_share: of the problems held out.  A subclass has `tokenizer` and `max_new_tokens`,
    draw(rng) -> problem, key(problem), its canonical text, question(problem), the prompt,
    demonstration(problem, rng), and outcome(prompt, completion), the reward.
    """

    test_share: float = 0.1

    tokenizer: ClassVar[CharTokenizer]

    def __post_init__(self) -> None:
        real_number("test_share", self.test_share, 0, 1)

    def prompts(self, rng: np.random.Generator, n: int, split: str = "train") -> list[np.ndarray]:
        """n problems as token ids, drawn by `draw_problems`."""
        return [self.tokenizer.encode(self.question(p)) for p in self._problems(rng, n, split)]

    def demonstrations(
        self, rng: np.random.Generator, n: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """n train problems, each with a text to copy: (prompt ids, completion ids with EOS)."""
        encode, encode_with_eos = self.tokenizer.encode, self.tokenizer.encode_with_eos
        return [
            (encode(self.question(problem)), encode_with_eos(self.demonstration(problem, rng)))
            for problem in self._problems(rng, n, "train")
        ]

    def score(self, rollouts: Any) -> np.ndarray:
        """(B,) `outcome` of each completion."""
        return score_texts(rollouts, self.tokenizer, self.outcome)

    def _problems(self, rng: np.random.Generator, n: int, split: str) -> list[Any]:
        return draw_problems(rng, n, split, self.draw, self.key, self.test_share)


def few_shot(examples: Sequence[tuple[str, str]], question: str) -> str:
    """Solved examples, one per line, then the question, so that a base model sees what is asked."""
    return "".join(f"{asked} {answer}\n" for asked, answer in examples) + question


@dataclass(frozen=True, kw_only=True)
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
