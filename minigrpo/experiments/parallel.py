"""Independent jobs in parallel processes, each on one thread, with results in the order of the jobs."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from tqdm import tqdm

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def run_jobs(function: Callable[[Any], Any], jobs: Sequence[Any], *, title: str, processes: int | None = None) -> list[Any]:
    """[function(job) for job in jobs], in `processes` processes (all cores if None).   function and jobs must be picklable

    Small matrices gain nothing from threads, so every process gets one; a job's result does not depend on how many run.
    An exception in a job is raised here.
    """
    processes = min(
        processes or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, len(jobs)
    )
    kept = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))  # read by the BLAS library when a child starts
    results: dict[int, Any] = {}
    try:
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = {pool.submit(function, job): i for i, job in enumerate(jobs)}
            for future in tqdm(as_completed(futures), total=len(jobs), desc=title, unit="run", disable=not sys.stderr.isatty()):
                results[futures[future]] = future.result()
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    return [results[i] for i in range(len(jobs))]
