"""settings.json, what a run was started with: believed only if its checksum is right."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from minigrpo.runs.checkpoint import checkpoints, load_with_advice, steps_taken, unchecked_state
from minigrpo.runs.settings import MAY_CHANGE

SETTINGS = "settings.json"
REPLACED = "replaced_settings"  # in a checkpoint of a run that was resumed with other steps


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that a run was started with, with `task_file` and `data_file` if it has some.

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
    """Stored settings to load the task with: a user's files are where they were at the run's start.

    What is gone is taken as it was called, from the current folder.
    """
    stored, options = dict(stored), dict(stored.get("task_options") or {})
    was, data = (stored.pop(name, None) for name in ("task_file", "data_file"))
    called, _, cls = stored.get("task", "").rpartition(":")
    if was and (Path(was).is_file() or not Path(called).is_file()):
        stored["task"] = f"{was}:{cls}"
    if data and (Path(data).is_file() or not Path(options["file"]).is_file()):
        stored["task_options"] = options | {"file": data}
    return stored


def settings_file(folder: Path) -> dict[str, Any]:
    """What settings.json holds, if its checksum is right."""
    try:
        stored = json.loads((folder / SETTINGS).read_bytes())
        checksum = stored.pop("sha256", None)
        if checksum != _checksum(stored):
            found = "its checksum is that of other settings" if checksum else "it has no checksum"
            raise ValueError(found)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        other = "delete it, and those in the newest checkpoint are taken"
        way_out = other if checkpoints(folder) else "start another run"
        what = f"is damaged or was edited ({error})"
        raise ValueError(f"{folder / SETTINGS} {what}: put it back, or {way_out}") from error
    return stored


def check_settings(file: Path, stored: dict[str, Any], state: dict[str, Any]) -> None:
    """Refuse settings that are not those in the state of a checkpoint beside them.

    The steps may be those before the run was resumed with others, if that was cut short.
    """
    own = state.get("settings")
    if stored == own or (isinstance(own, dict) and stored == own | state.get(REPLACED, {})):
        return
    other = load_with_advice(file)[1]["settings"]  # if it is damaged, that is the reason
    differ = sorted(key for key in stored | other if stored.get(key) != other.get(key))
    what = f"are of different runs ({', '.join(differ)}): delete the one that does not belong here"
    raise ValueError(f"{file.parent / SETTINGS} and {file.name} {what}")


def check_same(folder: Path, stored: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse to go on with a run under other settings, but for those that say where it computes.

    -> the settings to go on with: the stored ones, with the steps that were given
    """
    given, fixed = _as_json(given), {*given} - {*MAY_CHANGE, "task", "steps"}
    changed = [name for name in given if name in fixed and stored.get(name) != given[name]]
    if "data_file" in stored and given.get("task_options") == task_by_file(stored)["task_options"]:
        changed.remove("task_options")  # the same, but for how the file is called
    was, now = stored.get("task"), given.get("task")
    same_class = str(was).rpartition(":")[2] == str(now).rpartition(":")[2]
    moved = "task_file" in stored and not Path(stored["task_file"]).exists() and same_class
    if not (moved or now in (was, task_by_file(stored).get("task"))):
        changed.append("task")
    if changed:
        told = ", ".join(
            f"{name} was {stored.get(name)!r}, not {given[name]!r}" for name in changed
        )
        way_out = "resume it as it was, or start another with --out"
        raise ValueError(f"the run in {folder} has other settings ({told}): {way_out}")
    return stored | {"steps": _check_steps(folder, stored, given.get("steps"))}


def _check_steps(folder: Path, stored: dict[str, Any], steps: Any) -> Any:
    """The steps to go on to.   Raises ValueError if they are taken, or part of the schedule."""
    planned, taken = stored.get("steps"), steps_taken(folder)
    if steps in (None, planned):
        return planned
    if stored.get("schedule") == "cosine":
        why = f"its learning rate follows a cosine to 0 at step {planned}"
        way_out = f"train on from its weights in another folder with --init {folder}"
        raise ValueError(f"the run in {folder} cannot end at step {steps} ({why}): {way_out}")
    if steps <= taken:
        raise ValueError(f"the run in {folder} has taken {taken} steps: give more with --steps")
    return steps


def with_task_file(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back, and where a user's task and the table of `rows` are."""
    stored = _as_json(settings)
    name, colon, _ = stored.get("task", "").rpartition(":")
    file = stored["task_options"].get("file") if stored.get("task") == "rows" else None
    found = {"task_file": name if colon else "", "data_file": file if type(file) is str else ""}
    return stored | {k: str(Path(f).expanduser().resolve()) for k, f in found.items() if f}


def hash_of_task(task: str) -> str | None:
    """The SHA-256 of the file of a user's task, path/to/file.py:Class; None if there is no file."""
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
    content = {**settings, "sha256": _checksum(settings)}
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _checksum(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(
        json.dumps(settings, sort_keys=True, allow_nan=False).encode()
    ).hexdigest()
