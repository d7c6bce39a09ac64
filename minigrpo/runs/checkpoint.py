"""The format of a checkpoint: arrays and small state in one file that is whole or refused.

The file is a line of JSON (the arrays' names, dtypes and shapes, and the state), the arrays' bytes, and a SHA-256 over all before
it.  No pickle.
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
    header = (
        json.dumps({"format": MAGIC, "arrays": table, "state": state}, allow_nan=False).encode()
        + b"\n"
    )
    pieces = [
        header,
        *(
            memoryview(np.ascontiguousarray(array)).cast("B")
            for array in arrays.values()
            if array.size
        ),
    ]
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
        return np.fromfile(self._path, dtype=dtype, count=math.prod(shape), offset=start).reshape(
            shape
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def load_checkpoint(path: str | Path) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
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
            raise ValueError(
                f"{path} is damaged or no checkpoint of minigrpo (its checksum does not match)"
            )
        file.seek(0)
        line = file.readline()
    header = json.loads(line)
    if header.get("format") != MAGIC:
        raise ValueError(
            f"{path} has format {header.get('format')!r}; this version reads {MAGIC!r}"
        )
    return CheckpointArrays(path, header["arrays"], len(line)), header["state"]


def unchecked_state(path: str | Path) -> dict[str, Any]:
    """The state in a checkpoint, quickly: without a look at the checksum, and {} if the first line cannot be read.

    For comparisons that end well only if the state is whole, and call `load_checkpoint` before they say that it is not.
    """
    with suppress(ValueError, TypeError, KeyError, RecursionError), open(path, "rb") as file:
        return dict(json.loads(file.readline(1 << 26))["state"])
    return {}


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [
        file
        for file in Path(folder).glob("checkpoint-*.mgc")
        if re.fullmatch(r"checkpoint-\d{6,}", file.stem)
    ]
    return sorted(found, key=lambda file: (len(file.name), file.name))  # 1000000 after 999999


def load_with_advice(file: Path) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
    """`load_checkpoint` of a run's folder: an error also says what to do."""
    try:
        arrays, state = load_checkpoint(file)
        if file in checkpoints(file.parent) and file.name != f"checkpoint-{state['step']:06d}.mgc":
            raise ValueError(
                f"{file} is the checkpoint of step {state['step']}, under the name of another"
            )
    except ValueError as error:
        others = [other for other in checkpoints(file.parent) if other != file]
        way_out = (
            f"delete it to go on from {others[-1].name}"
            if others
            else "start another run (there is no other checkpoint)"
        )
        raise ValueError(f"{error}; {way_out}") from error
    return arrays, state
