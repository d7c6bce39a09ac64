"""Jobs that worker processes run: in a file of their own, which a worker imports in no time."""

import json
import os
import time
import zlib

import numpy as np


def square(x, log=None):
    if log:
        with open(log, "a") as file:
            file.write(f"{x}\n")
    if x < 0:
        raise ValueError("no negative numbers today")
    return x * x


def fails_or_sleeps(fails):
    if fails:
        raise ValueError("this one fails")
    time.sleep(600)


def noted(**job):
    """Numbers of hits in place of `walk`, and a note in a file.   With INTERRUPT, a learning rate,
    one job ends as if by Ctrl-C.
    """
    with open(os.environ["WALKED"], "a") as file:
        file.write(json.dumps(job) + "\n")
    if (job["arm"], str(job["learning_rate"])) == ("placebo", os.environ.get("INTERRUPT")):
        raise KeyboardInterrupt
    rng = np.random.default_rng(zlib.crc32(json.dumps(job, sort_keys=True).encode()))
    return rng.integers(50 * 16 + 1, size=job["runs"]).tolist()
