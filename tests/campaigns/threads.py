"""Runs on another number of BLAS threads, whole, and stopped on one and resumed on another."""

import signal
import tempfile
from pathlib import Path

from . import ground
from .ground import SHORT, SMALL, end, ended, start

COUNTS = (1, 2, 4)
TASKS = {
    "countdown": f"{SMALL} --task countdown --dim 32 --steps 4 --warm-start-steps 10",
    "arithmetic": f"{SMALL} --task arithmetic --task-option digits=1 --dim 32",
    "wide": f"{SMALL} --task treewalk --dim 128 --max-grad-norm 0.05 --group-size 16",
    "KL": f"{SMALL} --task arithmetic --dim 64 --inner-epochs 2 --objective-option beta=0.1",
    "language model": f"{SHORT} --model model --task sums --steps 4 --eval-every 2",
}
WHAT = "1, 2, 4 BLAS threads, whole, and resumed with another number"
prepare = ground.make_language_model


def cases() -> int:
    """How many there are."""
    return len(COUNTS) * len(TASKS)


def case(number: int) -> dict:
    """One task on one number of threads, whole; and stopped there, resumed on the next number."""
    count, following = COUNTS[number % 3], COUNTS[(number + 1) % 3]
    name, problems = list(TASKS)[number // 3], []
    whole, _, events = ground.reference(name, TASKS[name])
    with tempfile.TemporaryDirectory(dir=".") as where:
        folders = {"whole": Path(where, "whole"), "resumed": Path(where, "resumed")}
        begin = {kind: ["train", *TASKS[name].split(), "--out", folders[kind]] for kind in folders}
        stop = {"at": events // 2, "signals": [signal.SIGINT]}
        ends = {"whole": end(start(begin["whole"], {"threads": count}, count))}
        ends["stopped"] = end(start(begin["resumed"], {"threads": count} | stop, count))
        on = ["train", "--resume", folders["resumed"]]
        ends["resumed"] = end(start(on, {"threads": following}, following))
        for kind, (code, err) in ends.items():
            if code != (130 if kind == "stopped" else 0):
                problems.append(("said", f"{name}, {count} threads, {kind}: {code}, {err}"))
            elif kind in folders:
                other = ground.difference(folders[kind], ground.contents(whole))
                if other:
                    problems.append(("bits", f"{name}, {count} threads, {kind}: other {other}"))
    return ended("same", problems)
