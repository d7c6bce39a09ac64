"""A text task as a user would write it: completions of many different characters earn more."""

from __future__ import annotations

import numpy as np


class Spaces:
    """Texts of more different characters earn more, so that rewards differ within a group."""

    max_new_tokens = 5
    stop = "\n"

    def texts(self, rng: np.random.Generator, n: int, split: str = "train") -> list[str]:
        """Prompts that share their beginning."""
        return [f"ab {rng.integers(10)}" for _ in range(n)]

    def reward(self, prompt: str, completion: str) -> float:
        """The number of distinct characters, a fifth each."""
        return len(set(completion)) / 5
