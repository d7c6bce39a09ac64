"""NumPy or CuPy, and the border between host and device.

Only the transformer's arrays live on the device.  Trees, rewards, objectives and random numbers are
NumPy on the host, so a run draws the same random numbers on every backend, and what crosses the
border (token ids, indices, one number per node) is small.
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
from numpy.typing import NDArray

Array = NDArray[Any]  # or a cupy.ndarray, which has the same methods

INSTALL = 'pip install "minigrpo[gpu]" (CUDA 12) or "minigrpo[gpu-cuda13]"'
NO_DEVICE = "the driver shows no GPU: see nvidia-smi, and whether CUDA_VISIBLE_DEVICES hides it"
STATUS_NO_DEVICE, STATUS_DRIVER = 100, 35  # cudaErrorNoDevice, cudaErrorInsufficientDriver
NO_MEMORY = "cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"


def array_module(x: Array) -> ModuleType:
    """The module, numpy or cupy, whose functions take x."""
    return np if isinstance(x, np.ndarray) else sys.modules["cupy"]


@dataclass(frozen=True)
class Backend:
    """An array module and its border: `xp` computes, `to_device` and `to_host` carry arrays."""

    name: str
    xp: ModuleType

    def to_device(self, array: np.ndarray, dtype: Any = None) -> Array:
        """A device array with the same numbers (a view where none need be copied)."""
        return self.xp.asarray(array, dtype=dtype)

    def to_host(self, array: Array) -> np.ndarray:
        """A NumPy array with the same numbers (the array itself on the numpy backend)."""
        return array if self.name == "numpy" else self.xp.asnumpy(array)


def get_backend(name: str = "auto") -> Backend:
    """The backend "numpy" or "cupy"; "auto" is cupy where it is installed and a GPU computes.

    Raises ValueError for another name, and for cupy where it cannot be used, with what to do.
    >>> mg.Transformer(mg.TransformerConfig(vocab_size=10), backend=mg.get_backend("numpy")).dtype
    dtype('float32')
    """
    if name not in ("auto", "numpy", "cupy"):
        raise ValueError(f"unknown backend {name!r}: choose auto, numpy or cupy")
    found = _find_cupy() if name != "numpy" else ""
    if not isinstance(found, str):
        return Backend("cupy", found)
    if name == "cupy":
        raise ValueError(f"the cupy backend cannot be used: {found}; or take --backend numpy")
    _reuse_freed_memory()
    return Backend("numpy", np)


def describe_backend(name: str) -> str:
    """One line on where a backend computes here: the GPU, or why there is none.   ValueError"""
    backend = get_backend(name)
    if backend.name == "cupy":
        runtime = backend.xp.cuda.runtime
        device = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
        free, total = runtime.memGetInfo()
        return f"on the GPU: {device}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if name == "auto":
        return f"on the CPU, since no GPU can be used: {_find_cupy()}"
    return "on the CPU"


def _find_cupy() -> ModuleType | str:
    """CuPy, if a first product works on the GPU; else what is wrong and what to do about it."""
    try:
        cupy = importlib.import_module("cupy")
        if not cupy.cuda.runtime.getDeviceCount():
            return NO_DEVICE
        one = cupy.ones((2, 2), dtype=np.float32)
        float((one @ one).sum())  # needs NVRTC and cuBLAS, which an installation may lack
        return cupy
    except Exception as error:  # cupy raises many types of its own
        return _advice(error)


def _advice(error: Exception) -> str:
    status = getattr(error, "status", None)  # of a CUDARuntimeError
    if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
        return f"CuPy is not installed: {INSTALL}"
    if ran_out_of_memory(error):
        return "the GPU has too little free memory even to start: end what uses it (see nvidia-smi)"
    if status == STATUS_NO_DEVICE:
        return NO_DEVICE
    if status == STATUS_DRIVER:
        version = sys.modules["cupy"].cuda.runtime.driverGetVersion()  # 12040 is CUDA 12.4
        if not version:
            return "there is no NVIDIA driver: install one, until nvidia-smi shows the GPU"
        found = f"CUDA {version // 1000}.{version % 1000 // 10}"
        advice = f"update it, or install CuPy for that CUDA: {INSTALL}"
        return f"the NVIDIA driver is too old ({found}): {advice}"
    reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
    if isinstance(error, ImportError) or "failed to load" in reason:
        return f"CUDA's libraries are not found ({reason}): {INSTALL} brings them"
    return f"{reason}: check driver and installation, {INSTALL}"


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the host or on the device."""
    return isinstance(error, MemoryError) or any(name in str(error) for name in NO_MEMORY)


def _reuse_freed_memory() -> None:
    """Let glibc keep freed arrays: handing each back to the system costs a third of a step."""
    if sys.platform == "linux":
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        with contextlib.suppress(OSError, AttributeError):  # another C library: its own way is fine
            libc = ctypes.CDLL(None)
            libc.mallopt(mmap_threshold, 1 << 30)
            libc.mallopt(trim_threshold, (1 << 31) - 1)
