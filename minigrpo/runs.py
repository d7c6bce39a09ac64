"""The folder of a training run: settings, metrics, samples and checkpoints, safe against being killed at any moment.

    settings.json             what the run was started with
    metrics.jsonl             one line a step
    samples.jsonl             sampled completions with their rewards, readable by `minigrpo tree`
    tokenizer.json            of a pretrained language model
    checkpoint-000100.mgc     everything needed to go on after step 100; the last two are kept

A checkpoint is one file: a line of JSON (what follows, and small state), the arrays' bytes, and a SHA-256 over all before it.
It is written to a temporary file, synced and renamed, so a checkpoint either is whole or is not there.  No pickle.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = "minigrpo-checkpoint-1"
DIGEST = 32  # bytes of the SHA-256 at the end
KEEP = 2
TOKENIZER = "tokenizer.json"  # in the folder of a run that trains a pretrained language model


def write_atomically(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file that is whole or absent, whatever happens: temporary file, sync, rename, sync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # of a disk that is full, Python does not say which file it was
        raise
    finally:
        with suppress(OSError):  # it may not be there, nor its folder
            temporary.unlink()
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except PermissionError:
        return  # Windows opens no folders, and needs no sync of them
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # of file systems that cannot sync a folder
            raise
    finally:
        os.close(folder)


def write_output(path: Path, data: bytes) -> None:
    """Write what a command was asked for: whole or not at all, behind a symbolic link, and into a device as it is."""
    path = path.resolve()
    if not path.exists() or path.is_file():
        return write_atomically(path, [data])
    try:
        path.write_bytes(data)
    except OSError as error:
        error.filename = str(path)
        raise


def replace(source: Path, target: Path) -> None:
    """os.replace, tried again for a second: on Windows it fails while another program has the target open."""
    for wait in (0.05, 0.2, 0.75, None):
        try:
            return os.replace(source, target)
        except PermissionError:
            if wait is None or target.is_dir():
                raise
            time.sleep(wait)


def save_checkpoint(path: Path, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
    """Write arrays (on the host) and JSON-able state as one checksummed file."""
    table = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    header = json.dumps({"format": MAGIC, "arrays": table, "state": state}).encode() + b"\n"
    pieces = [header, *(memoryview(np.ascontiguousarray(array)).cast("B") for array in arrays.values() if array.size)]
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    write_atomically(path, [*pieces, digest.digest()])


class CheckpointArrays(Mapping):
    """The arrays of a checkpoint file, each read when it is asked for: a large model's are never in memory all at once."""

    def __init__(self, path: Path, table: list[tuple[str, str, list[int]]], start: int) -> None:
        self._path, self._places = path, {}
        for name, dtype, shape in table:
            self._places[name] = dtype, shape, start
            start += math.prod(shape) * np.dtype(dtype).itemsize

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, start = self._places[name]
        return np.fromfile(self._path, dtype=dtype, count=math.prod(shape), offset=start).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def load_checkpoint(path: Path) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
    """Read a checkpoint back.   -> arrays by name, state

    Raises ValueError if the file is not a checkpoint, is cut short, or has a single bit changed.
    """
    path = Path(path)
    rest, digest = path.stat().st_size - DIGEST, hashlib.sha256()
    with open(path, "rb") as file:
        while rest > 0 and (piece := file.read(min(rest, 1 << 20))):
            digest.update(piece)
            rest -= len(piece)
        if rest or digest.digest() != file.read():
            raise ValueError(f"{path} is damaged or no checkpoint of minigrpo (its checksum does not match)")
        file.seek(0)
        line = file.readline()
    header = json.loads(line)
    if header.get("format") != MAGIC:
        raise ValueError(f"{path} has format {header.get('format')!r}; this version reads {MAGIC!r}")
    return CheckpointArrays(path, header["arrays"], len(line)), header["state"]


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(Path(folder).glob("checkpoint-*.mgc"), key=lambda file: (len(file.name), file.name))  # 1000000 after 999999


def latest_checkpoint(path: Path) -> Path:
    """A checkpoint file as it is, or the newest one of a run folder.   Raises ValueError if there is none."""
    path = Path(path)
    if path.is_file():
        return path
    found = checkpoints(path)
    if not found:
        raise ValueError(f"{path} holds no checkpoint: give the folder of a run (minigrpo train --out) or a checkpoint file")
    return found[-1]


class RunFolder:
    """A run's folder while it is written.

    Raises ValueError if it cannot be written or, when starting anew, holds a run.  (What ended before its first checkpoint, for
    bad input say, left nothing to go on with and is no run yet.)
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], resume: bool) -> None:
        self.path = Path(path)
        file = self.path / "settings.json"
        if resume:
            if not file.exists():
                raise ValueError(f"{self.path} holds no run to resume (no settings.json): start one with --out {self.path}")
        elif file.exists() and checkpoints(self.path):
            raise ValueError(f"{self.path} already holds a run: resume it with --resume {self.path}, or give another --out")
        else:
            file_of_task, colon, _ = settings.get("task", "").rpartition(":")
            if colon:  # for those who load the run from another folder
                settings = {**settings, "task_file": str(Path(file_of_task).expanduser().resolve())}
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                write_atomically(file, [(json.dumps(settings, indent=2) + "\n").encode()])
            except OSError as error:
                raise ValueError(f"cannot write to {self.path} ({error.strerror}): give a folder that can be written") from error

    def save(self, step: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of a step, then remove all but the newest."""
        path = self.path / f"checkpoint-{step:06d}.mgc"
        save_checkpoint(path, arrays, state)
        for old in checkpoints(self.path)[:-KEEP]:
            with suppress(PermissionError):  # on Windows, while it is being read: it goes after the next save
                old.unlink()
        return path

    def load(self) -> tuple[Mapping[str, np.ndarray], dict[str, Any]] | None:
        """The newest checkpoint, or None if the run was stopped before its first.   Raises ValueError if it is damaged."""
        found = checkpoints(self.path)
        if not found:
            return None
        try:
            return load_checkpoint(found[-1])
        except ValueError as error:
            way_out = f"go on from {found[-2].name}" if len(found) > 1 else "start again (there is no earlier one)"
            raise ValueError(f"{error}; delete it to {way_out}") from error

    def append(self, name: str, records: list[dict[str, Any]]) -> None:
        """Add records to a JSON-lines file, each line written whole."""
        try:
            with open(self.path / name, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        except OSError as error:
            error.filename = str(self.path / name)
            raise

    def forget_after(self, step: int) -> None:
        """Drop what metrics.jsonl and samples.jsonl hold beyond a step, a half-written last line included."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.path / name
            if path.exists():
                kept = [json.dumps(r, ensure_ascii=False) + "\n" for r in read_records(path) if r["step"] <= step]
                write_atomically(path, ["".join(kept).encode()])


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a last line that was cut short is left out."""
    records = []
    text = Path(path).read_bytes().decode("utf-8", errors="replace")  # the cut may go through a character
    lines = text.removesuffix("\n").split("\n") if text else []  # splitlines would cut at U+2028 in a completion
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is not JSON: {error.msg}") from error
    return records


def read_metrics(path: str | Path, before: bool = False) -> list[dict[str, Any]]:
    """The metrics of a run's steps, if asked with the evaluation before the first.   Raises ValueError if it has not taken one."""
    file = Path(path) / "metrics.jsonl"
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


def read_settings(path: str | Path, to_load: bool = False, with_file: bool = False) -> dict[str, Any]:
    """The settings that a run was started with.   Raises ValueError if the folder holds none, or something else.

    to_load: a user's task by where its file was then; if it is gone, as it was called, from the current folder.
    with_file: also `task_file`, where a user's task was.
    """
    file = Path(path) / "settings.json"
    if not file.exists():
        raise ValueError(f"{path} holds no run (no settings.json): give the folder of one (minigrpo train --out)")
    try:
        stored = dict(json.loads(file.read_text(encoding="utf-8")).items())
        was = stored.get("task_file") if with_file else stored.pop("task_file", None)
        called, _, cls = stored.get("task", "").rpartition(":")
        if to_load and was and (Path(was).is_file() or not Path(called).is_file()):
            stored["task"] = f"{was}:{cls}"
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}): restore it, or start another run") from error
    return stored
