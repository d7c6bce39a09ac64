"""NumPy or CuPy, and the border between host and device.

Only the transformer's arrays live on the device.  Trees, rewards, objectives and random numbers are NumPy on the host, so a
run draws the same random numbers on every backend, and what crosses the border (token ids, indices, one number a node) is small.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np


def array_module(x: Any) -> ModuleType:
    """The module, numpy or cupy, whose functions take x."""
    return np if isinstance(x, np.ndarray) else sys.modules["cupy"]


@dataclass(frozen=True)
class Backend:
    """An array module and its border: `xp` computes, `to_device` and `to_host` carry arrays across."""

    name: str
    xp: ModuleType

    def to_device(self, array: np.ndarray, dtype: Any = None) -> Any:
        """A device array with the same numbers (a view where none need be copied)."""
        return self.xp.asarray(array, dtype=dtype)

    def to_host(self, array: Any) -> np.ndarray:
        """A NumPy array with the same numbers (the array itself on the numpy backend)."""
        return array if self.name == "numpy" else self.xp.asnumpy(array)


def get_backend(name: str = "auto") -> Backend:
    """ "numpy", "cupy", or "auto": cupy where it is installed and finds a GPU, else numpy.

    Raises ValueError if the name is unknown, or if cupy is asked for and cannot be used (the message says what to do).
    """
    if name not in ("auto", "numpy", "cupy"):
        raise ValueError(f"unknown backend {name!r}: choose auto, numpy or cupy")
    if name == "numpy":
        _reuse_freed_memory()
        return Backend("numpy", np)
    try:
        cupy = importlib.import_module("cupy")
        if cupy.cuda.runtime.getDeviceCount() < 1:
            raise RuntimeError("no CUDA device was found")
    except Exception as error:  # cupy raises many types of its own: missing driver, old driver, missing libraries
        if name == "auto":
            return get_backend("numpy")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the cupy backend cannot be used ({reason}): install a CUDA driver and minigrpo[gpu], or take --backend numpy"
        ) from error
    return Backend("cupy", cupy)


def _reuse_freed_memory() -> None:
    """Ask glibc to keep freed arrays for the next ones: handing each back to the system costs a third of a training step."""
    if sys.platform == "linux":
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        with contextlib.suppress(OSError, AttributeError):  # another C library: its own way is fine
            libc = ctypes.CDLL(None)
            libc.mallopt(mmap_threshold, 1 << 30)
            libc.mallopt(trim_threshold, (1 << 31) - 1)
