"""settings.json, what a run was started with: written with a checksum, and believed only if nothing in it was changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from minigrpo.runs.checkpoint import checkpoints, load_with_advice, unchecked_state
from minigrpo.runs.settings import MAY_CHANGE

SETTINGS = "settings.json"


def read_settings(
    path: str | Path, to_load: bool = False, with_file: bool = False
) -> dict[str, Any]:
    """The settings that a run was started with: settings.json, or where that is gone the newest checkpoint's own.

    to_load: a user's task by where its file was then; if it is gone, as it was called, from the current folder.
    with_file: also `task_file`, where a user's task was.
    Raises ValueError if the folder holds none, or others than its newest checkpoint.
    """
    folder = Path(path)
    newest = checkpoints(folder)[-1:]
    if (folder / SETTINGS).exists():
        stored = settings_file(folder)
        for file in newest:
            with suppress(FileNotFoundError):  # removed by a run that goes on
                check_settings(file, stored, unchecked_state(file))
    elif newest:
        stored = load_with_advice(newest[0])[1]["settings"]
    else:
        raise ValueError(
            f"{path} holds no run (no settings.json): give the folder of one (minigrpo train --out)"
        )
    return task_by_file(stored, to_load, with_file)


def task_by_file(
    stored: dict[str, Any], to_load: bool = True, with_file: bool = False
) -> dict[str, Any]:
    """Stored settings with their task as `read_settings` gives it."""
    stored = dict(stored)
    was = stored.get("task_file") if with_file else stored.pop("task_file", None)
    called, _, cls = stored.get("task", "").rpartition(":")
    if to_load and was and (Path(was).is_file() or not Path(called).is_file()):
        stored["task"] = f"{was}:{cls}"
    return stored


def settings_file(folder: Path) -> dict[str, Any]:
    """What settings.json holds, if its checksum is right."""
    try:
        stored = json.loads((folder / SETTINGS).read_bytes())
        checksum = stored.pop("sha256", None)
        if checksum != _checksum(stored):
            raise ValueError(
                "its checksum is that of other settings" if checksum else "it has no checksum"
            )
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        way_out = (
            "delete it, and those in the newest checkpoint are taken"
            if checkpoints(folder)
            else "start another run"
        )
        raise ValueError(
            f"{folder / SETTINGS} is damaged or was edited ({error}): put it back, or {way_out}"
        ) from error
    return stored


def check_settings(file: Path, stored: dict[str, Any], state: dict[str, Any]) -> None:
    """Refuse settings that are not those in the state of a checkpoint beside them."""
    if stored != state.get("settings"):
        state = load_with_advice(file)[1]  # if it is damaged, that is the reason
        differ = ", ".join(
            sorted(
                key
                for key in stored | state["settings"]
                if stored.get(key) != state["settings"].get(key)
            )
        )
        where = file.parent / SETTINGS
        raise ValueError(
            f"{where} and {file.name} are of different runs ({differ}): delete the one that does not belong here"
        )


def check_same(folder: Path, stored: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under other settings, but for those that only say where it is computed."""
    given = _as_json(given)
    changed = [
        name
        for name, value in given.items()
        if stored.get(name) != value and name not in (*MAY_CHANGE, "task")
    ]
    (_, _, cls), (_, _, other) = (
        str(settings.get("task")).rpartition(":") for settings in (stored, given)
    )
    moved = "task_file" in stored and not Path(stored["task_file"]).exists() and cls == other
    if not (moved or given.get("task") in (stored.get("task"), task_by_file(stored).get("task"))):
        changed.append("task")
    if changed:
        was = ", ".join(f"{name} was {stored.get(name)!r}, not {given[name]!r}" for name in changed)
        raise ValueError(
            f"the run in {folder} has other settings ({was}): resume it as it was, or start another with --out"
        )


def with_task_file(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back, and where the file of a user's task is, for those who load the run from elsewhere."""
    stored = _as_json(settings)
    name, colon, _ = stored.get("task", "").rpartition(":")
    return stored | ({"task_file": str(Path(name).expanduser().resolve())} if colon else {})


def hash_of_task(task: str) -> str | None:
    """The SHA-256 of the file of a user's task, path/to/file.py:Class; None of a built-in one, or if it is not there."""
    with suppress(OSError):
        return hashlib.sha256(Path(task.rpartition(":")[0]).expanduser().read_bytes()).hexdigest()
    return None


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(settings), allow_nan=False, default=os.fspath))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"these settings cannot be written down as JSON ({error}): {dict(settings)}"
        ) from error


def signed(settings: Mapping[str, Any]) -> bytes:
    """The bytes of settings.json: the settings, and their checksum."""
    return (
        json.dumps({**settings, "sha256": _checksum(settings)}, indent=2, allow_nan=False) + "\n"
    ).encode()


def _checksum(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(
        json.dumps(settings, sort_keys=True, allow_nan=False).encode()
    ).hexdigest()
