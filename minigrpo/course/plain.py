"""Values as plain data, for the pipe to the process in which a student's code runs (`student.py`).

JSON has None, bools, numbers, texts and lists; all else is an object with one key, its kind.
Reading makes values of Python and NumPy, whatever the bytes are: no code of a student runs in it.
"""

from __future__ import annotations

import json
import math
import re
from base64 import b64decode, b64encode
from typing import IO, Any

import numpy as np

from minigrpo.system.user_code import Told

LARGEST, DEEPEST = 8 << 20, 40  # bytes of a message; lists within lists
LARGEST_SET = 1000  # a hash table of chosen integers takes quadratic time
# A subclass may lie about itself, so values are read by the methods of the base class.
BASES = {str: str.__str__, int: int.__int__, float: float.__float__}
SETS = {"tuple": tuple, "set": set, "frozenset": frozenset}


def to_plain(value: Any, depth: int = 0) -> Any:
    """The value as data for JSON; of a type that is not plain, the numbers, or its name and text.

    Raises Told if it is nested too deeply or too large, and whatever a student's type raises.
    """
    if depth > DEEPEST:
        raise Told(f"it is nested more than {DEEPEST} deep")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        return {"objects": [value.shape, [to_plain(x, depth + 1) for x in value.flat]]}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufcSU":
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        if value.nbytes > LARGEST // 2:
            raise Told("it is too large")
        array = np.array(value, subok=False)
        return {kind: [array.dtype.str, array.shape, b64encode(array.tobytes()).decode()]}
    for base, plain in BASES.items():
        if isinstance(value, base):
            return plain(value)
    if isinstance(value, list):
        return [to_plain(x, depth + 1) for x in list.__iter__(value)]
    for name, base in SETS.items():
        if isinstance(value, base):
            return {name: [to_plain(x, depth + 1) for x in base.__iter__(value)]}
    if isinstance(value, dict):
        return {"dict": [to_plain(list(pair), depth + 1) for pair in dict.items(value)]}
    if isinstance(value, bytes):
        return {"bytes": bytes.decode(value, "latin-1")}
    if isinstance(value, complex):
        return to_plain(np.complex128(value))
    if isinstance(value, np.random.Generator):
        return {"generator": value.bit_generator.state}
    try:
        array = np.array(value, subok=False)
        is_one = array.dtype.kind == "O" and not array.ndim
        return to_plain(np.float64(value) if is_one else array, depth + 1)
    except Exception:
        return {"other": [type(value).__name__[:60], str.__str__(repr(value))[:500]]}


def from_plain(data: Any) -> Any:
    """The value of `to_plain`'s data.   Raises an error of some kind for anything else."""
    if isinstance(data, list):
        return list(map(from_plain, data))
    if not isinstance(data, dict):
        return data
    ((kind, body),) = data.items()
    if kind in ("set", "frozenset", "dict") and len(body) > LARGEST_SET:
        raise ValueError(f"no answer is a {kind} of {len(body)}")
    if kind in SETS:
        return SETS[kind](map(from_plain, body))
    if kind == "dict":
        return dict(map(from_plain, body))
    if kind == "bytes":
        return body.encode("latin-1")
    if kind == "generator":
        rng = np.random.default_rng()
        rng.bit_generator.state = body
        return rng
    if kind == "other":
        name, shown = body
        return type(name, (), {"__repr__": lambda self: shown})()
    if kind == "objects":
        check_shape(body[0])
        array = np.empty(len(body[1]), dtype=object)
        for i, item in enumerate(body[1]):
            array[i] = from_plain(item)
        return array.reshape(body[0])
    dtype, shape, written = body
    if not re.fullmatch("[<>|][biufcSU][0-9]+", dtype):
        raise ValueError(f"no type of numbers: {dtype}")
    check_shape(shape)
    array = np.frombuffer(b64decode(written), dtype).reshape(shape).copy()
    return array if kind == "array" else array[()]


def check_shape(shape: list[int]) -> None:
    """Raises ValueError for endlessly many rows of nothing, which fit into a message."""
    if 0 in shape and math.prod(filter(None, shape)) > LARGEST_SET:
        raise ValueError(f"no answer has the shape {shape}")


def send(pipe: IO[bytes], message: Any) -> None:
    """Write a message: its length, then JSON."""
    data = json.dumps(message).encode()
    pipe.write(len(data).to_bytes(8, "big") + data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """Read a message.   Raises EOFError at the end, and ValueError for what is none."""
    size = int.from_bytes(pipe.read(8), "big")
    data = pipe.read(size) if size <= LARGEST else b""
    if not data or len(data) < size:
        raise EOFError
    return json.loads(data)
