"""settings.json, what a run was started with: believed only if its checksum is right."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from minigrpo.runs.checkpoint import checkpoints, load_with_advice, steps_taken, unchecked_state
from minigrpo.runs.settings import MAY_CHANGE
from minigrpo.system.files import checksum

SETTINGS = "settings.json"
BY_FILE = ("task", "objective")  # settings that may name a class in a file of the user's
REPLACED = "replaced_settings"  # in a checkpoint of a run that was resumed with other steps


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that a run was started with, with `task_file` and `data_file` if it has some.

    So it is with `objective_file`.

    They are those of settings.json, or where that is gone of the newest checkpoint.  Raises
    ValueError if the folder holds none, or others than its newest checkpoint.
    """
    folder, newest = Path(path), checkpoints(path)[-1:]
    if (folder / SETTINGS).exists():
        stored = settings_file(folder)
        for file in newest:
            with suppress(FileNotFoundError):  # removed by a run that goes on
                check_settings(file, stored, unchecked_state(file))
        return stored
    if not newest:
        what = "holds no run (no settings.json): give the folder of one (minigrpo train --out)"
        raise ValueError(f"{path} {what}")
    return load_with_advice(newest[0])[1]["settings"]


def task_by_file(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings to load a run with: a user's files are where they were at the run's start.

    What is gone is taken as it was called, from the current folder.
    """
    stored, options = dict(stored), dict(stored.get("task_options") or {})
    for name in BY_FILE:
        was = stored.pop(f"{name}_file", None)
        called, _, cls = stored.get(name, "").rpartition(":")
        if was and (Path(was).is_file() or not Path(called).is_file()):
            stored[name] = f"{was}:{cls}"
    data = stored.pop("data_file", None)
    if data and (Path(data).is_file() or not Path(options["file"]).is_file()):
        stored["task_options"] = options | {"file": data}
    return stored


def settings_file(folder: Path) -> dict[str, Any]:
    """What settings.json holds, if its checksum is right."""
    try:
        stored = json.loads((folder / SETTINGS).read_bytes())
        sha256 = stored.pop("sha256", None)
        if sha256 != checksum(stored):
            found = "its checksum is that of other settings" if sha256 else "it has no checksum"
            raise ValueError(found)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        other = "delete it, and those in the newest checkpoint are taken"
        way_out = other if checkpoints(folder) else "start another run"
        what = f"is damaged or was edited ({error})"
        raise ValueError(f"{folder / SETTINGS} {what}: put it back, or {way_out}") from error
    return stored


def check_settings(file: Path, stored: dict[str, Any], state: dict[str, Any]) -> None:
    """Refuse settings that are not those in the state of a checkpoint, or those it replaced."""
    own = state.get("settings")
    if stored == own or (isinstance(own, dict) and stored == own | state.get(REPLACED, {})):
        return
    other = load_with_advice(file)[1]["settings"]  # if it is damaged, that is the reason
    differ = sorted(key for key in stored | other if stored.get(key) != other.get(key))
    what = f"are of different runs ({', '.join(differ)}): delete the one that does not belong here"
    raise ValueError(f"{file.parent / SETTINGS} and {file.name} {what}")


def check_same(folder: Path, stored: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings to go on with: those stored, with the steps that are given.

    Raises ValueError for other settings, but for those that say where it computes.
    """
    given, fixed = _as_json(given), {*given} - {*MAY_CHANGE, *BY_FILE, "steps"}
    fixed |= {"steps"} if stored.get("schedule") == "cosine" else set()
    changed = [name for name in given if name in fixed and stored.get(name) != given[name]]
    found = (task_by_file(s).get("task_options") for s in (stored, with_task_file(given)))
    if "task_options" in changed and next(found) == next(found):
        changed.remove("task_options")  # the table is called otherwise, as from another folder
    for name in BY_FILE:
        was, now, file = stored.get(name), given.get(name), stored.get(f"{name}_file")
        same_class = str(was).rpartition(":")[2] == str(now).rpartition(":")[2]
        moved = file is not None and not Path(file).exists() and same_class
        if not (moved or now in (was, task_by_file(stored).get(name))):
            changed.append(name)
    if changed:
        told = ", ".join(f"{n} was {stored.get(n)!r}, not {given[n]!r}" for n in changed)
        way_out = "resume it as it was, or start another with --out"
        if changed == ["steps"]:
            way_out = f"its cosine ends there, so train on with --init {folder} --out ANOTHER"
        raise ValueError(f"the run in {folder} has other settings ({told}): {way_out}")
    planned, taken = stored.get("steps", 0), steps_taken(folder)
    if (steps := given.get("steps", planned)) != planned and steps <= taken:
        raise ValueError(f"the run in {folder} has taken {taken} steps: give more with --steps")
    if steps < planned:
        print(f"note: {folder} now ends at step {steps}, not {planned}", file=sys.stderr)
    return stored | {"steps": steps}


def with_task_file(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back, and where a user's files and the table of `rows` are."""
    stored = _as_json(settings)
    found = {f"{name}_file": stored.get(name, "").rpartition(":")[0] for name in BY_FILE}
    file = stored["task_options"].get("file") if stored.get("task") == "rows" else None
    found["data_file"] = file if type(file) is str else ""
    return stored | {k: str(Path(f).expanduser().resolve()) for k, f in found.items() if f}


def hash_of_task(task: str) -> str | None:
    """The SHA-256 of a user's file, named as path/to/file.py:Class; None if there is no file."""
    with suppress(OSError):
        return hashlib.sha256(Path(task.rpartition(":")[0]).expanduser().read_bytes()).hexdigest()
    return None


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(settings), allow_nan=False, default=os.fspath))
    except (TypeError, ValueError) as error:
        what = f"these settings cannot be written down as JSON ({error})"
        raise ValueError(f"{what}: {dict(settings)}") from error


def signed(settings: Mapping[str, Any]) -> bytes:
    """The bytes of settings.json: the settings, and their checksum."""
    content = {**settings, "sha256": checksum(settings)}
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
