"""The folder of a training run: settings, metrics, samples and checkpoints, safe against being killed at any moment.

    settings.json             what the run was started with, and a checksum
    metrics.jsonl             one line a step
    samples.jsonl             sampled completions with their rewards, readable by `minigrpo tree`
    tokenizer.json            of a pretrained language model
    checkpoint-000100.mgc     everything needed to go on after step 100; the last two are kept
    lock                      held by the process that writes to the folder

A checkpoint vouches for the other files: it holds the settings, and of each other file the length and the SHA-256 of what the run
had written up to its step.  So it is written last, when they have been synced.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from minigrpo.checkpoint import glance, load_checkpoint, save_checkpoint
from minigrpo.files import Lock, cut, make_folder, read_records, remove_left_overs, sync_file, sync_folder, write_atomically
from minigrpo.settings import MAY_CHANGE

KEEP = 2
SETTINGS, METRICS, SAMPLES = "settings.json", "metrics.jsonl", "samples.jsonl"
TOKENIZER = "tokenizer.json"  # in the folder of a run that trains a pretrained language model


class RunFolder:
    """A run's folder while it is written, by one process at a time: a context manager.

    Raises ValueError if another process writes to it, if it cannot be written, if it holds other settings or was damaged, or,
    when starting anew, if it holds a run.  (What ended before its first checkpoint, for bad input say, left nothing to go on with
    and is no run yet.)
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], resume: bool) -> None:
        self.path = Path(path)
        self._files: dict[str, str] = {}
        self._records = {name: _Records() for name in (METRICS, SAMPLES)}
        self._unsynced: set[str] = set()
        if resume:
            read_settings(self.path)  # refuses what is no run, before anything is made
        try:
            make_folder(self.path)
            self._lock = Lock(self.path)
        except OSError as error:
            raise ValueError(f"cannot write to {self.path} ({error.strerror}): give a folder that can be written") from error
        try:
            self.settings = self._begin(settings, resume)
        except BaseException:
            self._lock.release()
            raise

    def _begin(self, settings: Mapping[str, Any], resume: bool) -> dict[str, Any]:
        remove_left_overs(self.path)
        found = checkpoints(self.path)
        if not resume and found:
            raise ValueError(f"{self.path} already holds a run: resume it with --resume {self.path}, or give another --out")
        if not found:  # what was written before the first checkpoint is written again
            for name in self._records:
                (self.path / name).unlink(missing_ok=True)
        stored = read_settings(self.path, with_file=True) if resume else _with_task_file(settings)
        if resume:
            _check_same(self.path, stored, settings)
        if not (resume and (self.path / SETTINGS).exists()):
            write_atomically(self.path / SETTINGS, [signed(stored)])
        return stored

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def write(self, name: str, data: bytes) -> None:
        """Write a file that stays as it is for the whole run; checkpoints hold its checksum."""
        write_atomically(self.path / name, [data])
        self._files[name] = hashlib.sha256(data).hexdigest()

    def append(self, name: str, records: list[dict[str, Any]]) -> None:
        """Add records to a JSON-lines file, each line written whole."""
        self._lock.check()
        data = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records).encode()
        with open(self.path / name, "ab") as file:
            file.write(data)
        self._records[name].add(data)
        self._unsynced.add(name)

    def save(self, step: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> Path:
        """Sync what was appended, write the checkpoint of a step, then remove all but the newest."""
        self._lock.check()
        for name in sorted(self._unsynced):
            sync_file(self.path / name)
        if self._unsynced:
            sync_folder(self.path)
        self._unsynced.clear()
        path = self.path / f"checkpoint-{step:06d}.mgc"
        records = {name: written.summary() for name, written in self._records.items()}
        vouched = {"settings": self.settings, "files": self._files, "records": records, "task_file": _hash_of_task(self.settings)}
        save_checkpoint(path, arrays, {**state, "step": step, **vouched})
        for old in checkpoints(self.path)[:-KEEP]:
            with suppress(PermissionError):  # on Windows, while it is being read: it goes after the next save
                old.unlink()
        return path

    def load(self) -> tuple[Mapping[str, np.ndarray], dict[str, Any]] | None:
        """The newest checkpoint, or None if the run was stopped before its first; the records of later steps are cut off.

        Raises ValueError if it is damaged, or what it vouches for.
        """
        found = checkpoints(self.path)
        if not found:
            return None
        arrays, state = load_run_checkpoint(self.path)
        for name in self._records:
            kept, self._records[name] = _vouched(self.path / name, found)
            if (self.path / name).exists():
                cut(self.path / name, kept)
        self._files = state["files"]
        was, now = state["task_file"], _hash_of_task(self.settings)
        if was and now and was != now:
            changed = f"{self.settings['task_file']} was changed after {found[-1].name} had been written"
            print(f"note: {changed}: what follows is trained with it as it is now", file=sys.stderr)
        return arrays, state


# -- checkpoints, and what they vouch for --------------------------------------------------------------------------------


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(Path(folder).glob("checkpoint-*.mgc"), key=lambda file: (len(file.name), file.name))  # 1000000 after 999999


def load_run_checkpoint(path: str | Path) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
    """A checkpoint, or the newest of a run folder, with settings and tokenizer beside it that are its own.   -> arrays, state

    Raises ValueError if there is none, or if one of these files is damaged or was changed.
    """
    path = Path(path)
    found = [path] if path.is_file() else checkpoints(path)
    if not found:
        raise ValueError(f"{path} holds no checkpoint: give the folder of a run (minigrpo train --out) or a checkpoint file")
    file = found[-1]
    arrays, state = _load(file)
    if (file.parent / SETTINGS).exists():
        _check_settings(file, _read_settings(file.parent), state)
    for name, digest in state["files"].items():
        other = file.parent / name
        if not other.is_file() or hashlib.sha256(other.read_bytes()).hexdigest() != digest:
            raise ValueError(f"{other} is not what it was when {file.name} was written: put it back from a copy")
    return arrays, state


def _load(file: Path) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
    """`load_checkpoint`, but of a damaged one with a way to go on."""
    try:
        arrays, state = load_checkpoint(file)
        if file.name.startswith("checkpoint-") and file.name != f"checkpoint-{state['step']:06d}.mgc":
            raise ValueError(f"{file} is the checkpoint of step {state['step']}, under the name of another")
    except ValueError as error:
        others = [other for other in checkpoints(file.parent) if other != file]
        way_out = f"go on from {others[-1].name}" if others else "start again (there is no other one)"
        raise ValueError(f"{error}; delete it to {way_out}") from error
    return arrays, state


class _Records:
    """How much a JSON-lines file holds: lines, bytes, and the checksum of the bytes."""

    def __init__(self) -> None:
        self.n_records, self.n_bytes, self.digest = 0, 0, hashlib.sha256()

    def add(self, data: bytes) -> None:
        self.n_records += data.count(b"\n")
        self.n_bytes += len(data)
        self.digest.update(data)

    def summary(self) -> list[Any]:
        return [self.n_records, self.n_bytes, self.digest.hexdigest()]


def _lines(path: Path) -> bytes:
    """A file's lines with the line ends that they were written with, whatever an editor has made of those."""
    return path.read_bytes().replace(b"\r\n", b"\n") if path.exists() else b""


def _vouched(path: Path, found: list[Path]) -> tuple[bytes, _Records]:
    """What the newest of the checkpoints found vouches for in a JSON-lines file, if that begins with it; otherwise ValueError."""
    wanted = glance(found[-1]).get("records", {}).get(path.name, [0, 0, None])
    n_records, n_bytes, _ = wanted
    data, records = _lines(path), _Records()
    records.add(data[:n_bytes])
    if records.summary() == wanted:
        return data[:n_bytes], records
    _load(found[-1])  # if it is damaged, that is the reason
    way_out = f"put it back from a copy, or start another run from these weights with --init {path.parent}"
    with suppress(ValueError, OSError, IndexError):
        _vouched(path, found[:-1])
        way_out = f"put it back from a copy, or delete {found[-1].name} to go on from {found[-2].name}"
    if len(data) < n_bytes:
        lost = f"the last {n_records - records.n_records} of the {n_records} records that {found[-1].name} counts"
        raise ValueError(f"{path} has lost {lost}: {way_out}")
    what = f"its first {n_records} records are not those that were there when {found[-1].name} was written"
    raise ValueError(f"{path} is damaged or was edited ({what}): {way_out}")


def check_records(folder: str | Path, name: str) -> int:
    """Compare a JSON-lines file of a run with its newest checkpoint.   -> how many records are newer, so that none vouches for them

    Raises ValueError if what the checkpoint vouches for was damaged, edited or lost.
    """
    file = Path(folder) / name
    n_records = len(read_records(file)) if file.exists() else 0
    while found := checkpoints(folder):
        with suppress(FileNotFoundError):  # a run that goes on has removed that checkpoint by now
            return n_records - _vouched(file, found)[1].n_records
    return n_records


def read_metrics(path: str | Path, before: bool = False) -> list[dict[str, Any]]:
    """The metrics of a run's steps, if asked with the evaluation before the first.

    Raises ValueError if it has not taken a step, or if what its newest checkpoint vouches for was changed.
    """
    check_records(path, METRICS)
    file = Path(path) / METRICS
    records = read_records(file) if file.exists() else []
    for record in records:
        if not (isinstance(record, dict) and is_finite(record.get("step"))):
            raise ValueError(f"{file} holds {record!r:.60}, which is not the metrics of a step: take that line out")
    if not any("loss" in record for record in records):
        raise ValueError(f"{path} has no metrics: its run has not taken a step yet")
    return [record for record in records if before or "loss" in record]


def is_finite(value: object) -> bool:
    """Whether a value that was read from JSON is a finite number, and not so large that means of it overflow."""
    return isinstance(value, int | float) and abs(value) < 1e300


# -- settings ------------------------------------------------------------------------------------------------------------


def read_settings(path: str | Path, to_load: bool = False, with_file: bool = False) -> dict[str, Any]:
    """The settings that a run was started with: settings.json, or where that is gone the newest checkpoint's own.

    to_load: a user's task by where its file was then; if it is gone, as it was called, from the current folder.
    with_file: also `task_file`, where a user's task was.
    Raises ValueError if the folder holds none, or others than its newest checkpoint.
    """
    folder = Path(path)
    newest = checkpoints(folder)[-1:]
    if (folder / SETTINGS).exists():
        stored = _read_settings(folder)
        for file in newest:
            with suppress(FileNotFoundError):  # removed by a run that goes on
                _check_settings(file, stored, glance(file))
    elif newest:
        stored = _load(newest[0])[1]["settings"]
    else:
        raise ValueError(f"{path} holds no run (no settings.json): give the folder of one (minigrpo train --out)")
    return task_by_file(stored, to_load, with_file)


def task_by_file(stored: dict[str, Any], to_load: bool = True, with_file: bool = False) -> dict[str, Any]:
    """Stored settings with their task as `read_settings` gives it."""
    stored = dict(stored)
    was = stored.get("task_file") if with_file else stored.pop("task_file", None)
    called, _, cls = stored.get("task", "").rpartition(":")
    if to_load and was and (Path(was).is_file() or not Path(called).is_file()):
        stored["task"] = f"{was}:{cls}"
    return stored


def _read_settings(folder: Path) -> dict[str, Any]:
    """What settings.json holds, if its checksum is right."""
    try:
        stored = json.loads((folder / SETTINGS).read_bytes())
        checksum = stored.pop("sha256", None)
        if checksum != _checksum(stored):
            raise ValueError("its checksum is that of other settings" if checksum else "it has no checksum")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        way_out = "delete it, and those in the newest checkpoint are taken" if checkpoints(folder) else "start another run"
        raise ValueError(f"{folder / SETTINGS} is damaged or was edited ({error}): put it back, or {way_out}") from error
    return stored


def _check_settings(file: Path, stored: dict[str, Any], state: dict[str, Any]) -> None:
    if stored != state.get("settings"):
        state = _load(file)[1]  # if it is damaged, that is the reason
        differ = ", ".join(sorted(key for key in stored | state["settings"] if stored.get(key) != state["settings"].get(key)))
        where = file.parent / SETTINGS
        raise ValueError(f"{where} and {file.name} are of different runs ({differ}): delete the one that does not belong here")


def _check_same(folder: Path, stored: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under other settings, but for those that only say where it is computed."""
    given = json.loads(json.dumps(dict(given), allow_nan=False))
    names = {stored.get("task"), task_by_file(stored).get("task")}
    changed = [name for name, value in given.items() if stored.get(name) != value and name not in (*MAY_CHANGE, "task")]
    changed += ["task"] if given.get("task") not in names else []
    if changed:
        was = ", ".join(f"{name} was {stored.get(name)!r}, not {given[name]!r}" for name in changed)
        raise ValueError(f"the run in {folder} has other settings ({was}): resume it as it was, or start another with --out")


def _with_task_file(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back, and where the file of a user's task is, for those who load the run from elsewhere."""
    try:
        stored = json.loads(json.dumps(dict(settings), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"these settings cannot be written down as JSON ({error}): {dict(settings)}") from error
    name, colon, _ = stored.get("task", "").rpartition(":")
    return stored | ({"task_file": str(Path(name).expanduser().resolve())} if colon else {})


def _hash_of_task(settings: Mapping[str, Any]) -> str | None:
    """The SHA-256 of the file of a user's task, if there is one and it is still there."""
    with suppress(OSError, KeyError):
        return hashlib.sha256(Path(settings["task_file"]).read_bytes()).hexdigest()
    return None


def signed(settings: Mapping[str, Any]) -> bytes:
    """The bytes of settings.json: the settings, and their checksum."""
    return (json.dumps({**settings, "sha256": _checksum(settings)}, indent=2, allow_nan=False) + "\n").encode()


def _checksum(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, allow_nan=False).encode()).hexdigest()
