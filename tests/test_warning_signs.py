"""Defaults that leave a warm-started policy whole, and sentences where a run does not learn;
silence where it does.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from minigrpo.command.cli import main
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train
from minigrpo.runs.warning_signs import Watchman

TASK = """
import numpy as np
from minigrpo.tasks import CharTokenizer, score_texts

class Reverse:
    tokenizer = CharTokenizer("abcd=")
    max_new_tokens = 5
    def prompts(self, rng, n, split="train"):
        return [self.tokenizer.encode("".join(rng.choice(list("abcd"), 3)) + "=") for _ in range(n)]
    def demonstrations(self, rng, n):
        t = self.tokenizer
        return [(p, t.encode_with_eos(t.decode(p)[:-1][::-1])) for p in self.prompts(rng, n)]
    def score(self, rollouts):
        return score_texts(rollouts, self.tokenizer, lambda p, c: float(c == p[:-1][::-1]))

class Parity(Reverse):
    tokenizer = CharTokenizer("01=")
    max_new_tokens = 7
    def prompts(self, rng, n, split="train"):
        return [self.tokenizer.encode("".join(rng.choice(list("01"), 6)) + "=") for _ in range(n)]
    def demonstrations(self, rng, n):
        steps = [(p, np.cumsum(p[:-1]) % 2) for p in self.prompts(rng, n)]
        return [(p, np.append(running, self.tokenizer.eos)) for p, running in steps]
    def score(self, rollouts):
        right = lambda p, c: float(len(c) == 6 and c[-1] == str(p.count("1") % 2))
        return score_texts(rollouts, self.tokenizer, right)

class Rash(Reverse):
    defaults = {"learning_rate": 1e-3, "prompts_per_step": 1, "warmup_steps": 0}

class Never(Reverse):
    def score(self, rollouts):
        return score_texts(rollouts, self.tokenizer, lambda p, c: 0.25)

