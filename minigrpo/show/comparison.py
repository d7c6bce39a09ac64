"""Runs side by side: one metric of several runs, a line for each setting (`minigrpo plot`).

Which runs are seeds of one line, and what the lines are called, follows from the runs' settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from minigrpo.runs.folder import is_finite, read_metrics
from minigrpo.runs.own_objective import short_name
from minigrpo.runs.settings import MAY_CHANGE, TrainSettings
from minigrpo.runs.stored_settings import read_settings, task_by_file
from minigrpo.show.drawing import BLUE
from minigrpo.show.fonts import printed
from minigrpo.show.plots import learning_curves, metrics_figure, running_mean, unit
from minigrpo.system.text import columns, visible
from minigrpo.tasks import BUILT_IN, find_task

# These settings must mean the same in all runs of a figure, though they may be written otherwise.
TASK = "task", "task_options", "model"

Runs = dict[str, tuple[str | Path, dict[int, float]]]  # by seed: folder, and values by step


def compare_runs(
    folders: Sequence[str | Path],
    key: str = "reward",
    smooth: int = 1,
    labels: Sequence[str] | None = None,
) -> Figure:
    """One metric of runs of a task: the mean over the runs that differ in their seed alone.

    smooth: draw running means of so many values of each run.  labels: the names of the lines, in
    the order of their first runs; by default they are called by what differs in their settings.

    What does not change the metric does not part runs: when checkpoints and samples were written;
    where it was computed, unless time is drawn; how often and on how many problems it was
    evaluated, unless evaluations are drawn.  A mean stands only where all its runs have a finite
    value.
    Raises ValueError for runs of several tasks, a run (or the same seed and settings) given twice,
    a run without the metric, and labels that are not as many as the lines, or not all different.
    """
    ignored = {"seed", "checkpoint_every", "log_samples_every", "task_file", "data_file", *TASK}
    ignored |= set() if key == "step_time" else set(MAY_CHANGE)
    ignored |= set() if key.startswith("eval/") else {"eval_every", "eval_prompts"}
    settings_of: dict[str | Path, dict] = {}
    lines: list[tuple[dict, Runs]] = []  # a line's settings and its runs
    for folder in folders:
        settings, values = run_settings(folder), _values(folder, key)
        for (other, known), name in product(settings_of.items(), TASK):
            by_file = "task_file" in known and "task_file" in settings
            one, two = (_resolved(s, name, by_file) for s in (known, settings))
            if one != two:
                told = f"{other} has {name} {one!r}, {folder} has {two!r}"
                why = "runs of different tasks cannot be compared, so plot them apart"
                raise ValueError(f"{told}: {why}")
        settings_of[folder] = settings
        line = {name: value for name, value in settings.items() if name not in ignored}
        runs = next((runs for known, runs in lines if known == line), None)
        if runs is None:
            lines.append((line, runs := {}))
        seed = str(settings["seed"])
        if seed in runs:
            why = f"seed {seed} and all settings that change {key} are the same"
            both = f"{runs[seed][0]} and {folder}"
            raise ValueError(f"{both} are one run, not two seeds ({why}): leave one out")
        runs[seed] = folder, values
    curves, steps, note, raw = {}, {}, [], np.empty(0)
    names = _line_names([line for line, _ in lines])
    if labels is not None:
        if len(labels) != len(lines):
            counts = f"labels: {len(labels)} given, {len(lines)} wanted"
            raise ValueError(f"{counts}, one for each line: {visible('; '.join(names))}")
        names = [printed(label, 60) for label in labels]
        if not all(names) or len(set(names)) < len(names):
            raise ValueError("labels must be texts that differ within their first 60 columns")
    for name, (_, runs) in zip(names, lines, strict=True):
        common = sorted(set.intersection(*(set(values) for _, values in runs.values())))
        if not common:
            why = f"have {key} at no step in common, so they have no mean"
            raise ValueError(f"the runs of {name} {why}: plot them apart")
        if any(len(values) > len(common) for _, values in runs.values()):
            note = ["only where all have a value"]
        steps[name] = common
        raw = np.array([[values[step] for step in common] for _, values in runs.values()])
        curves[name] = running_mean(raw, smooth)
    note += [f"running means of {smooth} values"] * (smooth > 1)
    metric = printed(key, 38, "bold")
    about = {"ylabel": f"{metric}\n{unit(key)}".strip(), "note": "; ".join(note)}
    title = f"{metric} on {task_name(settings)}"
    figure = learning_curves(curves, steps=steps, title=title, **about)
    if smooth > 1 and len(folders) == 1:  # the raw line, pale
        figure.axes[0].plot(*steps.values(), raw[0], color=BLUE, lw=0.8, alpha=0.35, zorder=1)
    return figure


def plot_runs(
    folder: str | Path,
    *more: str | Path,
    key: str | None = None,
    smooth: int | None = None,
    labels: Sequence[str] | None = None,
) -> Figure:
    """The figure of `minigrpo plot`: all metrics of a run, or one (the reward) of several runs.

    key, smooth, labels: as in `metrics_figure` and `compare_runs`.  Raises ValueError as these do,
    and for labels of a figure without lines to name.
    >>> _ = mg.train(mg.TrainSettings(steps=3), "run", progress=False)
    >>> figure = mg.plot_runs("run")  # figure.savefig("metrics.png")
    """
    if more or key is not None:
        several = (folder, *more), "reward" if key is None else key
        return compare_runs(*several, 1 if smooth is None else smooth, labels)
    if labels is not None:
        raise ValueError("labels name lines, of one key or of several runs: this figure has none")
    title, records = run_title(run_settings(folder)), read_metrics(folder, before=True)
    return metrics_figure(records, title=title, smooth=smooth)


def _values(folder: str | Path, key: str) -> dict[int, float]:
    """A metric of a run by step, where it is finite."""
    records = read_metrics(folder, before=True)
    values = {record["step"]: record[key] for record in records if is_finite(record.get(key))}
    if not values:
        names = sorted({k for record in records for k in record if is_finite(record[k])})
        told = f"it has {visible(', '.join(names))} (as finite numbers)"
        raise ValueError(f"{folder}: there is no {key!r} in the metrics of a run: {told}")
    return values


def run_settings(folder: str | Path) -> dict[str, Any]:
    """A run's settings, with defaults for those that it was stored without.

    The objective's options stand among them.
    """
    settings = asdict(TrainSettings()) | read_settings(folder)
    if file := settings.pop("objective_file", None):  # the user's, wherever the run was started
        settings["objective"] = f"{file}:{settings['objective'].rpartition(':')[2]}"
    return settings | (settings.pop("objective_options") or {})


def _resolved(settings: Mapping[str, Any], name: str, by_file: bool) -> Any:
    """A setting without what may differ between runs of one task.

    That is the way to a user's file, and options that are the defaults.
    """
    if name == "task" and by_file:
        return f"{settings['task_file']}:{settings['task'].rpartition(':')[2]}"
    if name == "task_options" and settings["task"] in BUILT_IN:
        with suppress(ValueError, TypeError):  # as of options that this version does not know
            found = vars(find_task(settings["task"], **task_by_file(settings)[name]))
            return {key: value for key, value in found.items() if key[0] != "_"}
    return settings[name]


def task_name(settings: Mapping[str, Any]) -> str:
    """The task of a run, and the model, for a title: classes and files without their folders."""
    names = [short_name(settings["task"]), Path(settings["model"] or "").name]
    return printed(" with ".join(filter(None, names)), 60, "bold")


def run_title(settings: Mapping[str, Any]) -> str:
    """What a single run is, in one line."""
    objective = printed(short_name(settings["objective"]), 40, "bold")
    return f"{objective} on {task_name(settings)}, one run (seed {settings['seed']})"


def _line_names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each line: the settings in which lines differ; else the objective."""
    parts: list[list[str]] = [[] for _ in settings]
    for key in dict.fromkeys(key for s in settings for key in s):
        values = [str(s.get(key, "default")) for s in settings]
        short = [short_name(value) for value in values]  # unless two are alike
        alike = len(set(short)) < len(set(values))
        values = _without_common_folders(values if alike else short)
        if len({printed(value, 30) for value in values}) < len(set(values)):
            # Cut to 30 columns, some would look the same: then begin just before the difference.
            letters = enumerate(zip(*values, strict=False))
            shortest = min(map(len, values))
            same = next((i for i, column in letters if len(set(column)) > 1), shortest)
            values = ["…" * (same > 4) + value[max(same - 4, 0) :] for value in values]
        for part, value in zip(parts, values, strict=True):
            if len(set(values)) > 1:
                part.append(("" if key == "objective" else f"{key}=") + printed(value, 30))
    between = ", " if all(columns(", ".join(part)) <= 50 for part in parts) else ",\n"
    objective = printed(short_name(settings[0]["objective"]), 30)
    names = [between.join(part) or objective for part in parts]
    return [name if names.count(name) == 1 else f"{name} #{i}" for i, name in enumerate(names, 1)]


def _without_common_folders(values: list[str]) -> list[str]:
    """Paths without the folders, at their start and at their end, that are the same in all."""
    paths = [value.split("/") for value in values]
    for end, rest in ((0, slice(1, None)), (-1, slice(None, -1))):
        while min(map(len, paths)) > 1 and len({path[end] for path in paths}) == 1:
            paths = [path[rest] for path in paths]
    return ["/".join(path) for path in paths]
