"""Parts of a batch side by side on the cores of a CPU.

In a small model a matrix product is over before a second BLAS thread has paid, and everything between the products NumPy computes
on one core.  So parts of a batch run in threads of their own, each with a BLAS of one thread (NumPy gives the interpreter's lock
back inside its loops).  How a batch is divided depends on the work alone and sums over lanes have a fixed order, so a run has the
same bits on any number of cores.  A large model, whose products are worth all BLAS threads, and a GPU get their parts one by one.
"""

from __future__ import annotations

import contextvars
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from threadpoolctl import ThreadpoolController

LANES = 4  # at most so many parts at a time


def run_lanes(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of the jobs, which run side by side in as many threads as BLAS would have."""
    if len(jobs) == 1:
        return [jobs[0]()]
    blas = _blas()
    n_threads = min(max((library["num_threads"] for library in blas.info()), default=os.cpu_count() or 1), len(jobs))
    with blas.limit(limits=1):
        if n_threads == 1:
            return [job() for job in jobs]
        with ThreadPoolExecutor(n_threads) as pool:
            futures = [pool.submit(contextvars.copy_context().run, job) for job in jobs]  # np.errstate lives in the context
            return [future.result() for future in futures]


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")
