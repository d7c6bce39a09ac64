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

from threadpoolctl import threadpool_limits
from tqdm import tqdm

from minigrpo.files import read_records

MOST = 61 if sys.platform == "win32" else 4096  # processes that Windows can wait for


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
    if not waiting:
        return [known[key] for key in keys]
    if cache:
        cache.parent.mkdir(parents=True, exist_ok=True)
        if cache.exists() and not cache.read_bytes().endswith(b"\n"):  # a line that was cut short: end it
            cache.write_text("".join(json.dumps(record) + "\n" for record in read_records(cache)))
    processes = min(processes or _cores(), len(waiting), MOST)
    spawn, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=_one_thread) as pool:
        futures = {pool.submit(function, **jobs[i]): keys[i] for i in waiting}
        try:
            done = as_completed(futures)
            for future in tqdm(done, total=len(waiting), desc=title, unit="run", disable=not sys.stderr.isatty()):
                key = futures[future]
                known[key] = future.result()
                if cache:
                    with open(cache, "a", encoding="utf-8") as file:
                        file.write(json.dumps({"job": key, "result": known[key]}) + "\n")
        except BaseException:
            for future in futures:
                future.cancel()
            for worker in set(multiprocessing.active_children()) - others:  # a job may take minutes; `with` waits for its end
                worker.terminate()
            raise
    return [known[key] for key in keys]


def _one_thread() -> None:
    threadpool_limits(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
