"""The format of a checkpoint: arrays and small state in one file that is whole or refused.

The file is a line of JSON (the arrays' names, dtypes and shapes, and the state), the arrays' bytes,
and a SHA-256 over all before it.  There is no pickle.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.system.files import write_atomically

MAGIC = "minigrpo-checkpoint-2"
DIGEST = 32  # bytes of the SHA-256 at the end


def save_checkpoint(path: Path, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
    """Write arrays (on the host) and JSON-able state as one checksummed file."""
    table = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    header = {"format": MAGIC, "arrays": table, "state": state}
    pieces = [json.dumps(header, allow_nan=False).encode() + b"\n"]
    full = [np.ascontiguousarray(array) for array in arrays.values() if array.size]
    pieces += [memoryview(array).cast("B") for array in full]
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    write_atomically(path, [*pieces, digest.digest()])


class CheckpointArrays(Mapping):
    """The arrays of a checkpoint file, each read when it is asked for: they may be large."""

    def __init__(self, path: Path, table: list[tuple[str, str, list[int]]], start: int) -> None:
        self._path, self._places = path, {}
        for name, dtype, shape in table:
            self._places[name] = dtype, shape, start
            start += math.prod(shape) * np.dtype(dtype).itemsize

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, start = self._places[name]
        return np.fromfile(self._path, dtype, math.prod(shape), offset=start).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def load_checkpoint(path: str | Path) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
    """Read a checkpoint back.   -> arrays by name, state

    Raises ValueError if the file is no checkpoint, is cut short, or has a single bit changed.
    """
    path = Path(path)
    rest, digest = path.stat().st_size - DIGEST, hashlib.sha256()
    with open(path, "rb") as file:
        while rest > 0 and (piece := file.read(min(rest, 1 << 20))):
            digest.update(piece)
            rest -= len(piece)
        if rest or digest.digest() != file.read():
            what = "is damaged or no checkpoint of minigrpo (its checksum does not match)"
            raise ValueError(f"{path} {what}")
        file.seek(0)
        line = file.readline()
    header = json.loads(line)
    if header.get("format") != MAGIC:
        found = header.get("format")
        raise ValueError(f"{path} has format {found!r}; this version reads {MAGIC!r}")
    return CheckpointArrays(path, header["arrays"], len(line)), header["state"]


def unchecked_state(path: str | Path) -> dict[str, Any]:
    """The state in a checkpoint without a look at the checksum; {} if it cannot be read.

    This is quick, for comparisons that call `load_checkpoint` before they refuse anything.
    """
    with suppress(ValueError, TypeError, KeyError, RecursionError), open(path, "rb") as file:
        return dict(json.loads(file.readline(1 << 26))["state"])
    return {}


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = Path(folder).glob("checkpoint-*.mgc")
    found = [file for file in found if re.fullmatch(r"checkpoint-\d{6,}", file.stem)]
    return sorted(found, key=lambda file: (len(file.name), file.name))  # 1000000 after 999999


def steps_taken(folder: str | Path) -> int:
    """The step of a run's newest checkpoint; 0 if it has none."""
    return max((int(file.stem.partition("-")[2]) for file in checkpoints(folder)), default=0)


def load_with_advice(file: Path) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
    """`load_checkpoint` of a run's folder: an error also says what to do."""
    beside = checkpoints(file.parent)
    try:
        arrays, state = load_checkpoint(file)
        if file in beside and file.name != f"checkpoint-{state['step']:06d}.mgc":
            what = f"is the checkpoint of step {state['step']}, under the name of another"
            raise ValueError(f"{file} {what}")
    except ValueError as error:
        others = [other for other in beside if other != file]
        way_out = "start another run (there is no other checkpoint)"
        if others:
            way_out = f"delete it to go on from {others[-1].name}"
        raise ValueError(f"{error}; {way_out}") from error
    return arrays, state
