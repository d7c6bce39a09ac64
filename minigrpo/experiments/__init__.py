"""The experiments behind results/README.md, which `minigrpo reproduce NAME` runs.

Each module answers one question: run(request) measures and gives tables, text(tables) puts them
into words, and figures(tables) draws them; the last two need nothing but the tables, so a figure
can be made again from a table that was published.  Everything else in this folder serves several
of them.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from minigrpo.system.shipped import shipped


class Experiment(NamedTuple):
    """An experiment: its module here, its time on two cores, and the question that it answers."""

    module: str
    time: str
    question: str

    def __str__(self) -> str:
        return f"{self.question} ({self.time})"


EXPERIMENTS = {
    name: Experiment(*about)
    for name, about in {
        "table1": ("table1", "70 min", "does λ-GRPO find the paper's walk where GRPO does not?"),
        "when": ("when_lambda_matters", "12 min", "when is λ-GRPO ahead of GRPO, and why?"),
        "theorem": ("theorem", "36 s", "for which objectives is GRPO a process reward model?"),
        "prm-quality": ("prm_quality", "4 min", "how good are the hidden process rewards?"),
        "enumeration": ("enumeration", "1 min", "is |λ| a mistake, or part of the gradient?"),
        "trees": ("trees_in_training", "4 min", "how much tree is there along training?"),
        "flaw": ("flaw", "3 min", "which tokens does each objective push up, and which down?"),
        "learning": ("learning", "32 min", "does λ-GRPO learn tasks with text faster?"),
        "alpha": ("alpha", "20 min", "is 1 the best power of |λ|?"),
        "language-model": ("language_model", "25 min", "does SmolLM2-135M learn sums?"),
        "smollm2-walk": ("smollm2_walk", "5 h", "does SmolLM2-135M find the paper's walk?"),
    }.items()
}


def committed(name: str) -> Any:
    """A table that the project measured, as published: "results/table1.json", for example.

    Raises ValueError for a table that there is not.
    """
    return json.loads(shipped(name).read_text(encoding="utf-8"))
