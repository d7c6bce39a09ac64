"""Tasks made of text, for pretrained language models: prompts and rewards are strings, the model brings the tokenizer.

A text task of your own is a class with the attributes of `TextTask`, named as "path/to/file.py:MyTask" like any other:

    class Capitals:
        max_new_tokens = 6
        stop = "\\n"
        def texts(self, rng, n, split="train"): return [f"Q: the capital of {c}? A:" for c in rng.choice(COUNTRIES[split], n)]
        def reward(self, prompt, completion): return float(CAPITALS[prompt] in completion)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from minigrpo.sampler import Stop
from minigrpo.tasks.task import score_texts

FEW_SHOT_SETTINGS = {  # for a model of SmolLM2's size and prompts that share their examples
    "steps": 30,
    "group_size": 8,
    "prompts_per_step": 8,
    "learning_rate": 1e-5,
    "warmup_steps": 0,
    "schedule": "cosine",
    "eval_every": 10,
    "eval_prompts": 100,
    "log_samples_every": 1,
}


class TextTask(Protocol):
    """What training a language model needs of a task.

    texts(rng, n, split)          n prompts, of the "train" or the "test" split; all randomness comes from rng
    reward(prompt, completion)    the outcome reward of one completion, without the stop string
    stop                          a completion ends where this string appears (None: only at EOS or the length limit)
    max_new_tokens                the length limit, in tokens

    Optional: `is_correct(rewards)` and `defaults`, as in `tasks.Task`.
    """

    @property
    def max_new_tokens(self) -> int: ...

    @property
    def stop(self) -> str | None: ...

    def texts(self, rng: np.random.Generator, n: int, split: str = "train") -> list[str]: ...

    def reward(self, prompt: str, completion: str) -> float: ...


@dataclass(frozen=True, eq=False)
class Tokenised:
    """A text task as a `tasks.Task`: over the tokens of one tokenizer."""

    task: TextTask
    tokenizer: Any  # models.TextTokenizer

    @property
    def max_new_tokens(self) -> int:
        """The length limit, in tokens."""
        return self.task.max_new_tokens

    @property
    def stop(self) -> Stop | None:
        """The rule that ends a completion at the task's stop string."""
        return None if self.task.stop is None else self.tokenizer.stops_at(self.task.stop)

    @property
    def defaults(self) -> dict[str, Any]:
        """The settings that the task recommends."""
        return getattr(self.task, "defaults", {})

    def prompts(self, rng: np.random.Generator, n: int, split: str = "train") -> list[np.ndarray]:
        """n prompts as token ids."""
        return [self.tokenizer.encode(text) for text in self.task.texts(rng, n, split)]

    def score(self, rollouts: Any) -> np.ndarray:
        """(B,) the reward of each completion, which is judged up to its stop string."""
        stop = self.task.stop

        def reward(prompt: str, completion: str) -> float:
            return self.task.reward(prompt, completion if stop is None else completion.split(stop)[0])

        return score_texts(rollouts, self.tokenizer, reward)

    def is_correct(self, rewards: np.ndarray) -> np.ndarray:
        """(B,) bool: the task's own rule, else a reward of 1 or more."""
        return np.asarray(self.task.is_correct(rewards) if hasattr(self.task, "is_correct") else np.asarray(rewards) >= 1)


def few_shot(examples: Sequence[tuple[str, str]], question: str) -> str:
    """Solved examples, a line each, then the question: what a base model needs to see to know what is asked."""
    return "".join(f"{asked} {answer}\n" for asked, answer in examples) + question
