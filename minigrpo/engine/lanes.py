"""Parts of a batch side by side on the cores of a CPU, with the same bits on any number of threads.

In a small model a matrix product is over before a second BLAS thread has paid, and NumPy computes
all between the products on one core.  So parts of a batch run in threads of their own (NumPy
releases the interpreter's lock inside its loops), and every product of such a model, in a lane or
not, has a BLAS of one thread.  How a batch is divided depends on the work alone, and sums over
lanes have a fixed order, so no bit depends on the number of threads.

A large model, whose products are worth all BLAS threads, and a GPU get their parts one by one.  The
bits of a large model are the same as long as BLAS has the same number of threads.

threadpoolctl can limit OpenBLAS (which NumPy's own packages bring), MKL and BLIS.  With another
BLAS, such as macOS's Accelerate, what is said of large models holds for small ones too.
"""

from __future__ import annotations

import contextvars
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController

LANES = 4  # at most so many parts at a time
_lock = threading.Lock()
# What `one_blas_thread` found: the threads of each BLAS, once per Python thread that is inside.
_before: list[list[int | None]] = []
_here = threading.local()  # .inside: whether this Python thread is


def run_lanes(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of the jobs, which run side by side in as many threads as BLAS would have."""
    if len(jobs) == 1:
        return [jobs[0]()]
    with one_blas_thread():
        n_threads = min(max(filter(None, _before[0]), default=os.cpu_count() or 1), len(jobs))
        if n_threads == 1:
            return [job() for job in jobs]
        # np.errstate is of the context, the limit of some libraries is of the thread.
        jobs = [
            functools.partial(contextvars.copy_context().run, one_blas_thread()(job))
            for job in jobs
        ]
        with ThreadPoolExecutor(n_threads) as pool:
            futures = [pool.submit(job) for job in jobs]
            return [future.result() for future in futures]


@contextmanager
def one_blas_thread(model: Any = None) -> Iterator[None]:
    """Limit BLAS to one thread until the last Python thread that is inside has left.

    Nothing is limited for a model that is not divided into lanes.
    """
    if getattr(_here, "inside", False) or getattr(model, "lanes", LANES) == 1:
        yield
        return
    with _lock:
        libraries = _blas().lib_controllers
        _before.append(_before[0] if _before else [library.num_threads for library in libraries])
        _set_threads([1] * len(libraries))
    _here.inside = True
    try:
        yield
    finally:
        _here.inside = False
        with _lock:
            before = _before.pop()
            if not _before:
                _set_threads(before)


def limit_again() -> None:
    """Take back threads that a user's code, such as a scorer, gave to BLAS inside the limit."""
    if getattr(_here, "inside", False):
        _set_threads([1] * len(_blas().lib_controllers))


def limited(function: Callable) -> Callable:
    """The function inside `one_blas_thread(model)`; its first argument is the model, or has one."""
    first = function.__code__.co_varnames[0]

    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        if getattr(_here, "inside", False):  # the usual case, and the quickest
            return function(*args, **kwargs)
        model = args[0] if args else kwargs.get(first)
        with one_blas_thread(getattr(model, "model", model)):
            return function(*args, **kwargs)

    return inner


def _set_threads(n_threads: Sequence[int | None]) -> None:
    for library, n in zip(_blas().lib_controllers, n_threads, strict=True):
        if library.num_threads != n:
            # threadpoolctl 3.8 heeds only the Python thread that limited OpenBLAS first.
            release = getattr(library, "clear_controlling_thread", lambda force: None)
            release(force=True)
            library.set_num_threads(n)
            release(force=True)


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")
