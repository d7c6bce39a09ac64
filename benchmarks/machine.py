"""What a benchmark ran on: processor, libraries, and the rate of matrix products of each, measured
in the same run.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from minigrpo.engine.backend import get_backend
from minigrpo.engine.profiling import peak_rate


def describe() -> dict[str, Any]:
    """The machine, the libraries and their rates, as a flat dict."""
    return (
        libraries()
        | {"numpy sgemm GFLOP/s": round(peak_rate(get_backend("numpy"), size=2048) / 1e9, 1)}
        | _torch_rate()
    )


def libraries() -> dict[str, Any]:
    """The machine and the libraries, as a flat dict."""
    blas = [
        library
        for library in threadpool_info()
        if library["user_api"] == "blas" and "numpy" in library["filepath"]
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {
        "processor": _processor(),
        "cores": cores,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    if blas:
        found["numpy's BLAS"] = (
            f"{blas[0]['internal_api']} {blas[0]['version']} ({blas[0]['architecture']})"
        )
    if "torch" in sys.modules:
        found["torch"] = sys.modules["torch"].__version__
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    vectors = [
        name
        for name in ("avx2", "avx512f")
        if any(name in line.split() for line in lines if line.startswith("flags"))
    ]
    return f"{names[0] if names else platform.processor()} ({', '.join(vectors)})"


def _torch_rate() -> dict[str, float]:
    if "torch" not in sys.modules:
        return {}
    import time

    import torch

    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = np.inf
    for _ in range(11):
        started = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - started)
    return {"torch sgemm GFLOP/s": round(2 * 2048**3 / best / 1e9, 1)}
