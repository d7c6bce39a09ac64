"""Independent jobs in parallel processes, each on one thread, finished ones remembered on disk."""

from __future__ import annotations

import hashlib
import inspect
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from minigrpo.system.files import Lock, checksum, make_folder, write_atomically
from minigrpo.system.signals import parent_alone
from minigrpo.system.terminal import bar

MOST = 61 if sys.platform == "win32" else 4096  # processes; Windows cannot wait for more than 61


def run_jobs(
    function: Callable[..., Any],
    jobs: Sequence[dict[str, Any]],
    *,
    title: str,
    processes: int | None = None,
    cache: Path | None = None,
    any_code: bool = False,
) -> list[Any]:
    """[function(**job) for job in jobs], in parallel processes (one per core if None).

    function must be importable by name, jobs and results JSON-able.  With `cache`, a JSON-lines
    file, each result is written as soon as it is there, and a job found in the file is not run
    again: stop at any time, start again, get the same list.  Results of other code (see `code_of`)
    are computed again, or taken with any_code=True; a note says which.  Small matrices gain
    nothing from threads, so every process gets one.  An exception in a job is raised here.
    Raises ValueError if another process uses the cache, and for a damaged or edited line.
    """
    name = [function.__module__, function.__qualname__]
    keys = [json.dumps([*name, job], sort_keys=True, allow_nan=False) for job in jobs]
    if cache is None:
        found = _run(function, jobs, keys, title, processes, lambda key, result: None)
        return [found[key] for key in keys]
    make_folder(cache.parent)
    lock, code = Lock(cache.parent, f".{cache.name}.lock"), code_of(function)
    try:
        if cache.exists():
            os.truncate(cache, cache.read_bytes().rfind(b"\n") + 1)  # a kill may cut a line short
        else:
            write_atomically(cache, [])
        finished = read_cache(cache)
        known = {r["job"]: r["result"] for r in finished if r["code"] == code}
        wanted = set(keys) - set(known)
        others = {r["job"]: r["result"] for r in finished if r["job"] in wanted}
        if others:
            happens = "taken as they are" if any_code else "computed again"
            said = f"note: {len(others)} results in {cache} are of other code than this"
            print(f"{said}, and are {happens}", file=sys.stderr)
        known |= others if any_code else {}

        def keep(key: str, result: Any) -> None:
            with open(cache, "ab") as file:
                file.write(cache_line(key, code, result))
                file.flush()
                os.fsync(file.fileno())

        todo = {key: job for key, job in zip(keys, jobs, strict=True) if key not in known}
        known |= _run(function, list(todo.values()), list(todo), title, processes, keep)
    finally:
        lock.release()
    return [known[key] for key in keys]


def _run(
    function: Callable[..., Any],
    jobs: Sequence[dict[str, Any]],
    keys: Sequence[str],
    title: str,
    processes: int | None,
    keep: Callable[[str, Any], None],
) -> dict[str, Any]:
    """The jobs' results by their keys; each is given to `keep` as soon as it is there."""
    if not jobs:
        return {}
    processes = min(processes or _cores(), len(jobs), MOST)
    spawn, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    found = {}
    with parent_alone():  # this starts a process of multiprocessing's own, too
        pool = ProcessPoolExecutor(processes, spawn, initializer=threadpool_limits, initargs=(1,))
    with pool:
        try:
            with parent_alone():
                futures = [pool.submit(function, **job) for job in jobs]
            by_future = dict(zip(futures, keys, strict=True))
            for future in bar(as_completed(by_future), title, "run", total=len(jobs)):
                key = by_future[future]
                found[key] = future.result()
                keep(key, found[key])
        except BaseException as error:  # a job may take minutes, and `with` waits for its end
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            if isinstance(error, BrokenProcessPool):
                told = "a process was ended from outside, perhaps for lack of memory"
                raise ValueError(f"{told}: start again, with fewer --processes") from error
            raise
    return found


def code_of(function: Callable[..., Any]) -> str:
    """A hash of what a result depends on: this package's Python files, and that of the function."""
    digest, package = hashlib.sha256(), Path(__file__).resolve().parents[1]
    for file in sorted({*package.rglob("*.py"), Path(inspect.getfile(function)).resolve()}):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def cache_line(job: str, code: str, result: Any) -> bytes:
    """A finished job as a line of a cache, with its checksum.   Raises ValueError for NaN."""
    record = {"job": job, "code": code, "result": result}
    try:
        signed = record | {"sha256": checksum(record)[:16]}
        return json.dumps(signed, allow_nan=False).encode() + b"\n"
    except ValueError as error:
        raise ValueError(f"the result of {job} cannot be written as JSON ({error})") from error


def read_cache(file: Path) -> list[dict[str, Any]]:
    """The finished jobs of a cache: job, code, result; a last line that was cut short is left out.

    Raises ValueError for a line that is not as it was written.
    """
    records = []
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
            if record.pop("sha256", None) != checksum(record)[:16]:
                raise ValueError("its checksum is missing, or that of another line")
            records.append({name: record[name] for name in ("job", "code", "result")})
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            why = f"damaged, was edited, or is of an earlier version ({error})"
            advice = "delete the line to run its job again"
            raise ValueError(f"{file}, line {number} is {why}: {advice}") from error
    return records


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
