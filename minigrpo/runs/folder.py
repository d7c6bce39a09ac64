"""The folder of a training run: whole, whenever the run is killed.

    settings.json             what the run was started with (--resume may set its steps anew)
    metrics.jsonl             one line per step
    samples.jsonl             sampled completions with their rewards, readable by `minigrpo tree`
    tokenizer.json            of a pretrained language model
    checkpoint-000100.mgc     everything needed to go on after step 100; the last two are kept
    lock                      held by the process that writes to the folder

A checkpoint vouches for the other files: it holds the settings, and of each other file the length
and the SHA-256 of what the run had written up to its step.  So it is written last, after a sync.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from minigrpo.runs import stored_settings
from minigrpo.runs.checkpoint import checkpoints, load_with_advice, save_checkpoint, unchecked_state
from minigrpo.runs.stored_settings import SETTINGS, read_settings, settings_file
from minigrpo.system import files
from minigrpo.system.files import read_records, write_atomically

KEEP = 2
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
TOKENIZER = "tokenizer.json"  # in the folder of a run that trains a pretrained language model


class RunFolder:
    """A run's folder while it is written, by one process at a time: a context manager.

    Raises ValueError if another process writes to it, if it cannot be written, if it holds other
    settings or was damaged, or, when starting anew, if it holds a run.  (What ended before its
    first checkpoint, for bad input say, left nothing to go on with and is no run yet.)
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], resume: bool) -> None:
        self.path = Path(path)
        self.saved_step, self.saved_at = -1, time.monotonic()  # of the newest checkpoint
        self._files: dict[str, str] = {}
        self._records = {name: _Records() for name in (METRICS, SAMPLES)}
        self._unsynced: set[str] = set()
        # The user's files are hashed now, when they are loaded: they may be edited later.
        self._hashes = {
            f"{name}_sha256": stored_settings.hash_of_task(str(settings.get(name)))
            for name in stored_settings.BY_FILE
        }
        if resume:
            read_settings(self.path)  # refuses what is no run, before anything is made
        try:
            files.make_folder(self.path)
            self._lock = files.Lock(self.path)
        except IsADirectoryError:  # in place of the lock
            raise
        except OSError as error:
            what = f"cannot write to {self.path} ({error.strerror})"
            raise ValueError(f"{what}: give a folder that can be written") from error
        try:
            self.settings = self._begin(settings, resume)
        except BaseException:
            self._lock.release()
            raise

    def _begin(self, settings: Mapping[str, Any], resume: bool) -> dict[str, Any]:
        files.remove_left_overs(self.path)
        found = checkpoints(self.path)
        if not resume and found:
            way_out = f"resume it with --resume {self.path}, or give another --out"
            raise ValueError(f"{self.path} already holds a run: {way_out}")
        if not found:
            self._forget_what_is_no_run()
        was = read_settings(self.path) if resume else None
        if was is None:
            stored = stored_settings.with_task_file(settings)
        else:
            stored = stored_settings.check_same(self.path, was, settings)
        if stored != was:
            for file in found:  # each then vouches for both, so that a kill may come at any moment
                arrays, state = load_with_advice(file)
                both = {"settings": stored, stored_settings.REPLACED: {"steps": was["steps"]}}
                save_checkpoint(file, arrays, state | both)
        if stored != was or not (self.path / SETTINGS).exists():
            write_atomically(self.path / SETTINGS, [stored_settings.signed(stored)])
        return stored

    def _forget_what_is_no_run(self) -> None:
        """Remove the evaluation that precedes a run's first checkpoint; refuse anything else."""
        if (self.path / SETTINGS).exists():
            settings_file(self.path)
        elif (self.path / TOKENIZER).exists():
            told = f"{self.path} holds a {TOKENIZER} that is no run's"
            raise ValueError(f"{told}: give another --out")
        for file in (self.path / name for name in self._records):
            if file.exists() and any(record.get("step") != 0 for record in read_records(file)):
                what = f"{file} has records, but {self.path} has no checkpoint"
                raise ValueError(f"{what}: move it away, or give another --out")
            file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def write(self, name: str, data: bytes) -> None:
        """Write a file that stays as it is for the whole run; checkpoints hold its checksum."""
        write_atomically(self.path / name, [data])
        self._files[name] = hashlib.sha256(data).hexdigest()

    def append(self, name: str, records: list[dict[str, Any]]) -> None:
        """Add records to a JSON-lines file.   A kill may cut the last one; `load` removes it."""
        self._lock.check()
        lines = [json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in records]
        data = "".join(lines).encode()
        with files.naming(self.path / name), open(self.path / name, "ab") as file:
            if file.tell() != self._records[name].n_bytes:
                what = "was changed by somebody else while the run wrote to it"
                raise ValueError(f"{self.path / name} {what}")
            file.write(data)
        self._records[name].add(data)
        self._unsynced.add(name)

    def save(self, step: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> Path:
        """Sync what was appended, write the checkpoint of a step, remove all but the newest."""
        self._lock.check()
        for name in sorted(self._unsynced):
            files.sync_file(self.path / name)
        if self._unsynced:
            files.sync_folder(self.path)
        self._unsynced.clear()
        path = self.path / f"checkpoint-{step:06d}.mgc"
        vouched = {"settings": self.settings, "files": self._files} | self._hashes
        vouched["records"] = {name: some.summary() for name, some in self._records.items()}
        save_checkpoint(path, arrays, {**state, "step": step, **vouched})
        self.saved_step, self.saved_at = step, time.monotonic()
        for old in checkpoints(self.path)[:-KEEP]:
            with suppress(PermissionError):  # on Windows, while it is read: the next save does it
                old.unlink()
        return path

    def load(self) -> tuple[Mapping[str, np.ndarray], dict[str, Any]] | None:
        """The newest checkpoint, or None if the run was stopped before its first.

        The records of later steps are cut off.  Raises ValueError if it is damaged, or what it
        vouches for.
        """
        found = checkpoints(self.path)
        if not found:
            return None
        arrays, state = load_run_checkpoint(self.path)
        for name in self._records:
            kept, self._records[name] = _vouched(self.path / name, found)
            if (self.path / name).exists():
                files.shorten_to(self.path / name, kept)
        self._files, self.saved_step = state["files"], state["step"]
        return arrays, state


# -- checkpoints, and what they vouch for ----------------------------------------------------------


def load_run_checkpoint(path: str | Path) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
    """A checkpoint, or the newest of a run folder, if the files beside it are its own.

    -> arrays, state.   Raises ValueError if there is none, or if one was damaged or changed.
    """
    path = Path(path)
    found = [path] if path.is_file() else checkpoints(path)
    if not found:
        way_out = "give the folder of a run (minigrpo train --out) or a checkpoint file"
        raise ValueError(f"{path} holds no checkpoint: {way_out}")
    file, folder = found[-1], found[-1].parent
    arrays, state = load_with_advice(file)
    if (folder / SETTINGS).exists():
        stored_settings.check_settings(file, settings_file(folder), state)
    for other, digest in ((folder / name, digest) for name, digest in state["files"].items()):
        if not other.is_file() or hashlib.sha256(other.read_bytes()).hexdigest() != digest:
            what = f"is not what it was when {file.name} was written"
            raise ValueError(f"{other} {what}: put it back from a copy")
    return arrays, state


class _Records:
    """How much a JSON-lines file holds: lines, bytes, and the checksum of the bytes."""

    def __init__(self, data: bytes = b"") -> None:
        self.n_records, self.n_bytes, self.digest = 0, 0, hashlib.sha256()
        self.add(data)

    def add(self, data: bytes) -> None:
        self.n_records += data.count(b"\n")
        self.n_bytes += len(data)
        self.digest.update(data)

    def summary(self) -> list[Any]:
        return [self.n_records, self.n_bytes, self.digest.hexdigest()]


def _vouched(path: Path, found: list[Path]) -> tuple[bytes, _Records]:
    """What the newest checkpoint vouches for in a JSON-lines file, if that begins with it.

    Otherwise it raises ValueError.   found: the checkpoints, oldest first
    """
    wanted = unchecked_state(found[-1]).get("records", {}).get(path.name, [0, 0, None])
    n_records, n_bytes, _ = wanted
    # An editor may have changed the line ends.
    data = path.read_bytes().replace(b"\r\n", b"\n") if path.exists() else b""
    records = _Records(data[:n_bytes])
    if records.summary() == wanted:
        return data[:n_bytes], records
    load_with_advice(found[-1])  # if it is damaged, that is the reason
    other = f"start another run from these weights with --init {path.parent}"
    with suppress(ValueError, OSError, IndexError):
        _vouched(path, found[:-1])
        other = f"delete {found[-1].name} to go on from {found[-2].name}"
    way_out = f"put it back from a copy, or {other}"
    if len(data) < n_bytes and records.n_records < n_records:
        lost = f"the last {n_records - records.n_records} of the {n_records} records"
        raise ValueError(f"{path} has lost {lost} that {found[-1].name} counts: {way_out}")
    what = f"its first {n_records} records are not those that were there when {found[-1].name}"
    raise ValueError(f"{path} is damaged or was edited ({what} was written): {way_out}")


def check_records(folder: str | Path, name: str) -> int:
    """Compare a JSON-lines file of a run with its newest checkpoint.   -> the newer records

    Raises ValueError if what the checkpoint vouches for was damaged, edited or lost.
    """
    file, found = Path(folder) / name, checkpoints(folder)
    try:
        n_vouched = _vouched(file, found)[1].n_records if found else 0
        return len(read_records(file)) - n_vouched if file.exists() else 0
    except FileNotFoundError:
        if checkpoints(folder) == found:
            raise
        return check_records(folder, name)  # a run that goes on has removed that checkpoint by now


class NoStepYet(ValueError):
    """A run has no metrics yet."""


def read_metrics(path: str | Path, before: bool = False) -> list[dict[str, Any]]:
    """The metrics of a run's steps, if asked with the evaluation before the first.

    Raises NoStepYet if it has not taken a step, or ValueError if what its checkpoint vouches for
    was changed.
    """
    check_records(path, METRICS)
    file = Path(path) / METRICS
    records = read_records(file) if file.exists() else []
    for record in records:
        if not (isinstance(record, dict) and is_finite(record.get("step"))):
            what = f"holds {record!r:.60}, which is not the metrics of a step"
            raise ValueError(f"{file} {what}: take that line out")
    if not any("loss" in record for record in records):
        raise NoStepYet(f"{path} has no metrics: its run has not taken a step yet")
    return [record for record in records if before or "loss" in record]


def is_finite(value: object) -> bool:
    """Whether a value from JSON is a finite number, so small that means do not overflow."""
    return isinstance(value, int | float) and abs(value) < 1e300
