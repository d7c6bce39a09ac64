"""Independent jobs in parallel processes, each on one thread, finished ones remembered on disk."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minigrpo.runs import read_records

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def run_jobs(
    function: Callable[..., Any],
    jobs: Sequence[dict[str, Any]],
    *,
    title: str,
    processes: int | None = None,
    cache: Path | None = None,
) -> list[Any]:
    """[function(**job) for job in jobs], in `processes` processes (all cores if None), in the order of the jobs.

    function must be importable by name, jobs and results JSON-able.  With `cache`, a JSON-lines file, a result is written as
    soon as it is there and a job found in the file is not run again: stop at any time, start again, get the same list.
    Small matrices gain nothing from threads, so every process gets one.  An exception in a job is raised here.
    """
    keys = [json.dumps([function.__module__, function.__qualname__, job], sort_keys=True) for job in jobs]
    known = {record["job"]: record["result"] for record in read_records(cache)} if cache and cache.exists() else {}
    waiting = [i for i, key in enumerate(keys) if key not in known]
    if waiting:
        _run(function, jobs, keys, waiting, known, title, min(processes or _cores(), len(waiting)), cache)
    return [known[key] for key in keys]


def _run(
    function: Callable[..., Any],
    jobs: Sequence[dict[str, Any]],
    keys: list[str],
    waiting: list[int],
    known: dict[str, Any],
    title: str,
    processes: int,
    cache: Path | None,
) -> None:
    kept = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))  # read by the BLAS library when a child starts
    if cache:
        cache.parent.mkdir(parents=True, exist_ok=True)
        if cache.exists() and not cache.read_bytes().endswith(b"\n"):  # a line that was cut short: end it
            cache.write_text("".join(json.dumps(record) + "\n" for record in read_records(cache)))
    try:
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = {pool.submit(_call, function, jobs[i]): i for i in waiting}
            try:
                for future in tqdm(
                    as_completed(futures), total=len(waiting), desc=title, unit="run", disable=not sys.stderr.isatty()
                ):
                    key = keys[futures[future]]
                    known[key] = future.result()
                    if cache:
                        with open(cache, "a", encoding="utf-8") as file:
                            file.write(json.dumps({"job": key, "result": known[key]}) + "\n")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _call(function: Callable[..., Any], job: dict[str, Any]) -> Any:
    return function(**job)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
