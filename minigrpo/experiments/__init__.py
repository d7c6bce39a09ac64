"""Experiments: each one function from settings and seeds to data, and a figure and words made from that data alone.

`minigrpo reproduce NAME` runs one.  A finished job is remembered on disk, so a run can be stopped and continued.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minigrpo.system.files import write_output
from minigrpo.system.shipped import shipped

EXPERIMENTS = {
    "table1": "the paper's Table 1 on the binary tree, with controls and a sweep of the learning rate",
    "when": "where λ-GRPO is ahead of GRPO on the tree walk, by learning rate, start and weight, and why",
    "theorem": "for which objectives GRPO is a process reward model, and for which it is not",
    "prm-quality": "bias and variance of the hidden process rewards against exact values",
    "enumeration": "whether |λ| belongs to the gradient: exact expected gradients, for each way to sample a group",
    "trees": "how much tree there is along training (the paper's section 3.2)",
    "flaw": "who is pushed where, token by token, under GRPO and under λ-GRPO",
    "learning": "GRPO, λ-GRPO and the controls on a task with text",
    "alpha": "weights |λ|^-α between GRPO (α = 0) and λ-GRPO (α = 1), and beyond, on tasks with text",
    "language-model": "SmolLM2-135M learns sums",
    "smollm2-walk": "SmolLM2-135M walks the paper's tree, to each of its 16 leaves",
}


def write_tables(file: Path, tables: Mapping[str, Sequence] | Sequence) -> None:
    """Write rows, or tables of rows by name, as JSON, a row a line.

    Raises ValueError for NaN and infinity, which JSON lacks.
    """

    def lines(rows: Sequence) -> str:
        return "[\n" + ",\n".join(json.dumps(row, allow_nan=False) for row in rows) + "\n]"

    if isinstance(tables, Mapping):
        text = "{" + ",\n".join(f'"{name}": {lines(rows)}' for name, rows in tables.items()) + "}\n"
    else:
        text = lines(tables) + "\n"
    write_output(file, text.encode())


def committed(name: str) -> Any:
    """A table that the project measured, as it was published: "results/table1.json", "benchmarks/results.json", …

    Raises ValueError for a table that there is not.
    """
    return json.loads(shipped(name).read_text(encoding="utf-8"))
