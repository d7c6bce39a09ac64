"""`minigrpo sweep`: a grid of settings times seeds, in parallel processes; and `minigrpo table`.

Each run is an ordinary one in a folder of its own: a sweep that was stopped goes on by the same
command, finished runs are only read, and more --steps extend them.
"""

from __future__ import annotations

import argparse
import os
import re
import zlib
from dataclasses import asdict, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

from minigrpo.command.flags import setting
from minigrpo.command.policies import settings_of
from minigrpo.runs.checkpoint import checkpoints, steps_taken
from minigrpo.runs.policy import make_task
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.stored_settings import check_same, read_settings
from minigrpo.system.files import write_output
from minigrpo.system.terminal import quoted, reason_of
from minigrpo.system.text import visible
from minigrpo.system.user_code import OURS, named


def run_sweep(a: argparse.Namespace) -> int:
    """All runs of a grid.   -> exit code: 1 if a run failed"""
    from minigrpo.experiments.parallel import run_jobs
    from minigrpo.show.table import read_run, table_text

    runs, out = _planned(a), quoted(a.out)
    for folder in filter(checkpoints, runs):
        check_same(folder, read_settings(folder), asdict(runs[folder]))
    left = [f for f, s in runs.items() if not checkpoints(f) or steps_taken(f) != s.steps]
    how_far = f"; while the others run, minigrpo table {out} tells how far they are" if left else ""
    print(f"{len(runs) - len(left)} of {len(runs)} runs are finished{how_far}", flush=True)
    jobs = [{"settings": asdict(runs[folder]), "folder": str(folder)} for folder in left]
    told = zip(left, run_jobs(train_one, jobs, title="sweep", processes=a.processes), strict=True)
    if rows := [read_run(folder) for folder in filter(checkpoints, runs)]:
        print(table_text(rows))
    for line in (failed := [f"FAILED {folder}: {why}" for folder, why in told if why]):
        print(visible(line))
    print(f"a row per run: minigrpo table {out} --out runs.csv; curves: minigrpo plot {out}/*/")
    return 1 if failed else 0


class _Flags(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"--grid: {message}")


def _planned(a: argparse.Namespace) -> dict[Path, TrainSettings]:
    """The runs of a sweep by their folders.   Raises ValueError for settings that cannot work."""
    flags, grid, runs = _Flags(add_help=False, allow_abbrev=False), {}, {}
    for name, options in map(setting, fields(TrainSettings)):
        flags.add_argument(name, **options)
    for name, _, values in (text.partition("=") for text in a.grid or []):
        name, dot, option = name.replace("-", "_").replace("options.", "option.").partition(".")
        given, key = getattr(a, name + "s" * bool(dot), None), name + dot + option
        if key in grid or (option in dict(given or []) if dot else given):
            raise ValueError(f"{key} is given twice: once is enough, as --grid")
        word = f"--{name.replace('_', '-')}={dot and option + '='}"
        values = re.split(r",(?![^\[{]*[\]}])", values)  # [1,2] is one value
        grid[key] = [(word + value, value) for value in values]
    for chosen in product(*grid.values()):
        words, point = [word for word, _ in chosen], [value for _, value in chosen]
        settings = settings_of(flags.parse_args(words, argparse.Namespace(**vars(a), resume=None)))
        settings.make_objective()  # what each of the runs would refuse is refused now
        if settings.model is None:
            make_task(settings)
        for seed in range(settings.seed, settings.seed + a.seeds):
            name = _name([*zip(grid, point, strict=True), ("seed", seed)])
            runs[Path(a.out) / name] = replace(settings, seed=seed)
    if len(set(map(repr, runs.values()))) < a.seeds * len(list(product(*grid.values()))):
        raise ValueError("--grid has the same settings twice: leave one out")
    return runs


def _name(point: list[tuple[str, Any]]) -> str:
    """A name for a folder: readable, the same for the same values, and another for others."""
    text = ",".join(f"{name}={value}" for name, value in point)
    name = re.sub(r"[^\w.,=+-]+", "_", text, flags=re.ASCII)[:150]
    return name if name == text else f"{name}-{zlib.crc32(text.encode()):08x}"


def train_one(settings: dict[str, Any], folder: str) -> str | None:
    """One run, or what is left of it, in a process of its own.   -> why it failed, or None"""
    from minigrpo.runs.train import train

    try:
        with named():
            again = bool(checkpoints(folder))  # what ended before the first is no run yet
            train(TrainSettings.from_stored(settings), folder, resume=again, progress=False)
    except KeyboardInterrupt:  # the sweep was stopped, and train has saved a checkpoint
        os._exit(143)
    except Exception as error:  # whatever it is, the other runs go on
        return reason_of(error) if isinstance(error, OURS) else repr(error)
    return None


def run_table(a: argparse.Namespace) -> None:
    """A table over runs."""
    from minigrpo.show.table import find_runs, read_run, table_csv, table_text

    runs = [read_run(folder) for folder in find_runs(a.path)]
    print(table_text(runs))
    if a.out:
        write_output(Path(a.out), table_csv(runs, a.all))
        print(f"a row per run: {visible(a.out)}")
