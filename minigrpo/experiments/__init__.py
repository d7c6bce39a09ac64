"""The experiments behind results/README.md, which `minigrpo reproduce NAME` runs.

Each module answers one question: run(request) measures and gives tables, text(tables) puts them
into words, and figures(tables) draws them; the last two need nothing but the tables, so a figure
can be made again from a table that was published.  Everything else in this folder serves several
of them.
"""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

from minigrpo.system.files import shipped

EXPERIMENTS = {  # the question that each answers, and its time on two cores
    "table1": "does λ-GRPO find the paper's walk where GRPO does not? (70 min)",
    "when": "when is λ-GRPO ahead of GRPO, and why? (12 min)",
    "theorem": "for which objectives is GRPO a process reward model? (36 s)",
    "prm-quality": "how good are the hidden process rewards? (4 min)",
    "enumeration": "is |λ| a mistake, or part of the gradient? (1 min)",
    "trees": "how much tree is there along training? (4 min)",
    "flaw": "which tokens does each objective push up, and which down? (3 min)",
    "learning": "does λ-GRPO learn tasks with text faster? (32 min)",
    "alpha": "is 1 the best power of |λ|? (20 min)",
    "step-verifier": "does a verifier of steps teach faster than the outcome? (15 min)",
    "language-model": "does SmolLM2-135M learn sums? (25 min)",
    "smollm2-walk": "does SmolLM2-135M find the paper's walk? (5 h)",
}


def module_of(name: str) -> Any:
    """The module of an experiment."""
    longer = {"when": "when_lambda_matters", "trees": "trees_in_training"}
    return import_module(f"minigrpo.experiments.{longer.get(name, name.replace('-', '_'))}")


def committed(name: str) -> Any:
    """A table that the project measured, as published: "results/table1.json", for example.

    Raises ValueError for a table that there is not.
    """
    return json.loads(shipped(name).read_text(encoding="utf-8"))
