"""Policies from which an experiment's runs start, warm-started once and kept in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from minigrpo.experiments.parallel import code_of, run_jobs
from minigrpo.runs.checkpoint import checkpoints
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.stored_settings import read_settings
from minigrpo.runs.train import train
from minigrpo.system.files import write_atomically
from minigrpo.tasks import Task


def warm_policy(settings: TrainSettings, folder: Path, task: Task | None = None) -> str:
    """Warm-start once and keep the weights as a run of no steps.   -> folder, as text

    One of other code is made anew.   Raises ValueError if the folder holds one of other settings.
    """
    settings, noted, code = replace(settings, steps=0), folder / "code.txt", code_of(warm_policy)
    if checkpoints(folder) and read_settings(folder) != json.loads(json.dumps(asdict(settings))):
        other = f"{folder} holds a policy of other settings"
        raise ValueError(f"{other}: delete it, or give another --out")
    if not noted.exists() or noted.read_text(encoding="utf-8") != code:
        for old in checkpoints(folder):
            old.unlink()
    if not checkpoints(folder):
        train(settings, folder, task=task, progress=False)
        write_atomically(noted, [code.encode()])
    return str(folder)


def warm_policies(
    prepare: Callable[[str, str], str], folders: Mapping[str, Path], processes: int | None
) -> dict[str, str]:
    """{name: prepare(name, folder)} for all folders; missing ones are made in parallel."""
    missing = [name for name, folder in folders.items() if not checkpoints(folder)]
    jobs = [{"name": name, "folder": str(folders[name])} for name in missing]
    run_jobs(prepare, jobs, title="warm start", processes=processes)
    return {name: prepare(name, str(folder)) for name, folder in folders.items()}
