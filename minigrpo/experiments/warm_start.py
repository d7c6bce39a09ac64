"""Policies from which an experiment's runs start, warm-started once and kept in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from pydoc import locate
from typing import Any

from minigrpo.experiments.parallel import code_of, run_jobs
from minigrpo.experiments.reproduce import Request
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
    request: Request, start: Mapping[str, TrainSettings], tasks: Mapping[str, type] | None = None
) -> dict[str, str]:
    """{name: folder of the policy}; missing ones are made in parallel.   tasks: other classes"""
    jobs = {name: {"settings": asdict(settings)} for name, settings in start.items()}
    for name, job in jobs.items():
        job["folder"] = str(request.out / f"warm-{name.replace(' ', '-')}")
        if tasks:
            job["task"] = f"{tasks[name].__module__}.{tasks[name].__qualname__}"
    missing = [job for job in jobs.values() if not checkpoints(job["folder"])]
    run_jobs(_prepare, missing, title="warm start", processes=request.processes)
    return {name: _prepare(**job) for name, job in jobs.items()}


def _prepare(settings: dict[str, Any], folder: str, task: str = "") -> str:
    return warm_policy(TrainSettings(**settings), Path(folder), locate(task)() if task else None)
