"""How every experiment is run: jobs with a cache, then a table, figures and words.

tables = module.run(request)           out/NAME.json
module.figures(tables)                 out/NAME.png, out/NAME-….png
module.text(tables)                    for the terminal
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigrpo.experiments import module_of
from minigrpo.experiments.parallel import run_jobs
from minigrpo.show.plots import save
from minigrpo.system.files import write_output


@dataclass(frozen=True)
class Request:
    """What is to be run, and where.   seeds, processes: None for the experiment's own number."""

    name: str
    out: Path
    quick: bool = False
    seeds: int | None = None
    processes: int | None = None

    def jobs(
        self, function: Callable[..., Any], jobs: Sequence[dict], title: str | None = None
    ) -> list:
        """[function(**job) for job in jobs]; finished jobs are kept in out/NAME.cache.jsonl."""
        where = {"processes": self.processes, "cache": self.out / f"{self.name}.cache.jsonl"}
        return run_jobs(function, jobs, title=title or self.name, **where)

    def seeded(
        self, function: Callable[..., Any], jobs: Mapping, seeds: int, title: str | None = None
    ) -> dict:
        """{key: [function(**job, seed=0), function(**job, seed=1), …]} for jobs by their keys."""
        each = [job | {"seed": seed} for job in jobs.values() for seed in range(seeds)]
        found = iter(self.jobs(function, each, title))
        return {key: [next(found) for _ in range(seeds)] for key in jobs}


def reproduce(name: str, out: Path, **options: Any) -> str:
    """Run an experiment; write out/NAME.json and its figures.   options: those of Request"""
    return publish(name, module_of(name).run(Request(name, out, **options)), out)


def publish(name: str, tables: Any, out: Path) -> str:
    """Write out/NAME.json and every figure made from it.   -> the experiment's words"""
    module = module_of(name)
    write_tables(out / f"{name}.json", tables)
    for file, figure in module.figures(tables).items():
        save(figure, out / f"{file}.png")
    return module.text(tables)


def write_tables(file: Path, tables: Mapping[str, Sequence] | Sequence) -> None:
    """Write rows, or tables of rows by name, as JSON, one row per line.

    Raises ValueError for NaN and infinity, which JSON lacks.
    """

    def lines(rows: Sequence) -> str:
        return "[\n" + ",\n".join(json.dumps(row, allow_nan=False) for row in rows) + "\n]"

    if isinstance(tables, Mapping):
        text = "{" + ",\n".join(f'"{name}": {lines(rows)}' for name, rows in tables.items()) + "}"
    else:
        text = lines(tables)
    write_output(file, (text + "\n").encode())
