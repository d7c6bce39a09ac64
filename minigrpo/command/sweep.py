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

    runs = _planned(a)
    for folder in filter(checkpoints, runs):
        check_same(folder, read_settings(folder), asdict(runs[folder]))
    left = [f for f, s in runs.items() if not checkpoints(f) or steps_taken(f) != s.steps]
    print(f"{len(runs)} runs, of which {len(runs) - len(left)} are finished", flush=True)
    jobs = [{"settings": asdict(runs[folder]), "folder": str(folder)} for folder in left]
    told = zip(left, run_jobs(train_one, jobs, title="sweep", processes=a.processes), strict=True)
    print(table_text([read_run(folder) for folder in filter(checkpoints, runs)]))
    for line in (failed := [f"FAILED {folder}: {why}" for folder, why in told if why]):
        print(visible(line))
    out = quoted(a.out)
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
        given = getattr(a, name + "s" * bool(dot), None)
        if name + dot + option in grid or (option in dict(given or []) if dot else given):
            raise ValueError(f"{name + dot + option} is given twice: once is enough, as --grid")
        grid[name + dot + option] = re.split(r",(?![^\[{]*[\]}])", values)  # [1,2] is one value
    for values in product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        parts = [(*name.partition("."), value) for name, value in point.items()]
        words = [
            f"--{n.replace('_', '-')}={dot and option + '='}{v}" for n, dot, option, v in parts
        ]
        one = flags.parse_args(words, argparse.Namespace(**vars(a), resume=None))
        settings = settings_of(one)
        for seed in range(settings.seed, settings.seed + a.seeds):
            runs[Path(a.out) / _name(point | {"seed": seed})] = replace(settings, seed=seed)
    if len(set(map(repr, runs.values()))) < a.seeds * len(list(product(*grid.values()))):
        raise ValueError("--grid has the same settings twice: leave one out")
    return runs


def _name(point: dict[str, Any]) -> str:
    """A name for a folder: readable, the same for the same values, and another for others."""
    text = ",".join(f"{name}={value}" for name, value in point.items())
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
