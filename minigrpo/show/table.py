"""A table over runs: a row per run as CSV, and means over seeds for the terminal.

An option is a column task_options.NAME, the last value of a metric last/NAME.  An empty cell is a
value that the run does not have, such as an option that was left at its default.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.runs.folder import NoStepYet, is_finite, read_metrics
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.stored_settings import read_settings
from minigrpo.system.text import shorten, visible

GREEDY = "eval/pass@1_greedy_first", "eval/pass@1_greedy_last"
Run = tuple[dict[str, Any], dict[str, Any]]  # folder and settings; what the run has reached


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """The runs in these folders or below them, each once.   Raises ValueError if there are none."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = {file.parent for file in path.rglob("checkpoint-*.mgc")}
        if not inside:
            raise ValueError(f"{path} holds no runs: give folders of minigrpo train or sweep")
        found += [path] if path in inside else sorted(inside)
    return list({folder.resolve(): folder for folder in found}.values())


def read_run(folder: str | Path) -> Run:
    """A run as a row.   Raises ValueError if it is no run, or was damaged."""
    settings: dict[str, Any] = {"folder": str(folder)}
    for name, x in (asdict(TrainSettings()) | read_settings(folder)).items():
        settings |= {f"{name}.{k}": x[k] for k in x} if isinstance(x, dict) else {name: x}
    records: list[dict[str, Any]] = []
    with suppress(NoStepYet):
        records = read_metrics(folder, before=True)
    names = {name: 0 for record in records for name in record}
    series = {name: [r[name] for r in records if is_finite(r.get(name))] for name in names}
    results: dict[str, Any] = {"steps_done": max(series.pop("step", [0]))}
    if rewards := series.get("reward"):  # of the last tenth of the steps, as train prints it
        results["final_reward"] = float(np.mean(rewards[-max(len(rewards) // 10, 1) :]))
    if greedy := series.get("eval/pass@1_greedy"):
        results |= zip(GREEDY, (greedy[0], greedy[-1]), strict=True)
    return settings, results | {f"last/{name}": x[-1] for name, x in series.items() if x}


def table_csv(runs: Sequence[Run], every: bool = False) -> bytes:
    """A row per run, in full precision: the settings that differ, or every one; the results."""
    names = {name: 0 for settings, _ in runs for name in settings} if every else {"folder": 0}
    names |= {name: 0 for name in _differing(runs)} | {name: 0 for _, r in runs for name in r}
    writer = csv.DictWriter(text := io.StringIO(), names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(settings | results for settings, results in runs)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _differing(runs: Sequence[Run]) -> list[str]:
    names = {name: 0 for settings, _ in runs for name in settings if name != "folder"}
    return [n for n in names if len({json.dumps(s.get(n, "default")) for s, _ in runs}) > 1]


def table_text(runs: Sequence[Run]) -> str:
    """For each setting mean ± standard deviation over its runs, which differ in their seeds."""
    names = [name for name in _differing(runs) if name != "seed"] or ["objective"]
    shown = [n for n in ("steps_done", "final_reward", *GREEDY) if any(n in r for _, r in runs)]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for settings, results in runs:
        key = tuple(visible(str(settings.get(name, "default"))) for name in names)
        groups.setdefault(key, []).append(results)
    is_told = [not name.endswith("_file") for name in names]  # beside it stands who uses the file
    lines = [[*compress(names, is_told), "runs", *shown]]
    for key, group in groups.items():
        values = [[results[name] for results in group if name in results] for name in shown]
        told = [shorten(value, 30) for value in compress(key, is_told)]
        lines.append([*told, str(len(group)), *map(_mean, values)])
    padded = [[x.ljust(max(map(len, c))) for x in c] for c in zip(*lines, strict=True)]
    text = ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]
    if left := sum(results["steps_done"] < settings["steps"] for settings, results in runs):
        text.append(f"note: {left} of {len(runs)} runs have steps left to take")
    return "\n".join(text)


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(set(values)) > 1 else ""
    return f"{np.mean(values):.4g}{spread}" if values else "-"
