"""Runs on another number of BLAS threads, whole, and stopped on one number and resumed on another."""

import signal
import tempfile
from pathlib import Path

from .ground import SMALL, contents, difference, end, ended, make_language_model, reference, references, start

COUNTS = (1, 2, 4)
TASKS = {
    "countdown": f"{SMALL} --task countdown --dim 32 --steps 4 --warm-start-steps 10",
    "arithmetic": f"{SMALL} --task arithmetic --task-option digits=1 --dim 32",
    "wide": f"{SMALL} --task treewalk --dim 128 --max-grad-norm 0.05 --group-size 16",
    "KL": f"{SMALL} --task arithmetic --dim 64 --inner-epochs 2 --objective-option beta=0.1",
    "language model": f"{SMALL} --model model --task sums --steps 4 --eval-every 2 --eval-prompts 8",
}
CASES = len(COUNTS) * len(TASKS)


def prepare() -> None:
    """A language model, and each run on one thread."""
    make_language_model()
    references(TASKS)


def case(number: int) -> dict:
    """One task on one number of threads, whole; and stopped there, resumed on the next number."""
    count, name = COUNTS[number % 3], list(TASKS)[number // 3]
    flags, problems, plan = TASKS[name], [], {"threads": count}
    whole, _, events = reference(name, flags)
    with tempfile.TemporaryDirectory(dir=".") as where:
        for kind in ("whole", "resumed"):
            folder = Path(where, kind)
            command = ["train", *flags.split(), "--out", folder]
            code, err = 0, ""
            if kind == "resumed":
                stop = {"at": events // 2, "signals": [signal.SIGINT]}
                code, err = end(start(command, plan | stop, count))
                command = ["train", "--resume", folder]
                plan = {"threads": COUNTS[(number + 1) % 3]}
            if code in (0, 130):
                code, err = end(start(command, plan, plan["threads"]))
            if code:
                problems.append(("lost", f"{name}, {count} threads, {kind}: ends with {code}: {err}"))
            elif other := difference(folder, contents(whole)):
                problems.append(("bits", f"{name}, {count} threads, {kind}: other {other}"))
    return ended("same", problems)
