"""Two processes that want the same run: one has it at a time, the other is refused in one line."""

import itertools
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from . import ground
from .ground import end, ended, start

WHAT = "two processes that want one run"
FLAGS = ground.SMALL + " --task rival.py:Rival --steps 12"
PAIRS = (("--out", "--out"), ("--out", "--resume"), ("--resume", "--resume"))
TASK = """
import os, time
from minigrpo.tasks.treewalk import TreeWalk

class Rival(TreeWalk):
    def score(self, rollouts):
        with open(os.environ["WHERE"] + "owners", "a") as file:
            file.write(f"{os.getpid()} ")
        time.sleep(0.05)
        return super().score(rollouts)
"""


def prepare() -> None:
    """The task, the undisturbed run, and one that was stopped on its way."""
    Path("rival.py").write_text(TASK, encoding="utf-8")
    _, _, events = ground.reference("rivals", FLAGS)
    stop = {"at": events // 3, "signals": [signal.SIGINT]}
    end(start(["train", *FLAGS.split(), "--out", "begun"], stop))
    if not list(Path("begun").glob("checkpoint-*.mgc")):
        raise RuntimeError("the run that was stopped on its way has no checkpoint")


def cases() -> int:
    """How many there are."""
    return 50


def case(number: int) -> dict:
    """Start two at a random distance, perhaps kill one, then go on to the end, and compare."""
    rng = np.random.default_rng([3, number])
    kinds, problems, rivals = PAIRS[number * len(PAIRS) // cases()], [], []
    whole, seconds, _ = ground.reference("rivals", FLAGS)
    with tempfile.TemporaryDirectory(dir=".") as where:
        folder, owners = Path(where, "run"), Path(where, "owners")
        owners.touch()
        if kinds[0] == "--resume":
            shutil.copytree("begun", folder)
        for kind in kinds:
            if rivals:  # a run that is to be resumed takes a while to begin
                fraction = rng.random() ** 3 if kind == kinds[0] else rng.uniform(0.2, 0.9)
                time.sleep(seconds * fraction)
            flags = FLAGS.split() if kind == "--out" else []
            command = ["train", *flags, kind, folder]
            rivals.append(start(command, wait=False, where=f"{where}/"))
        killed = rivals[rng.integers(2)] if rng.random() < 0.4 else None
        if killed:
            time.sleep(seconds * rng.random() / 2)
            killed.kill()
        said = [end(rival) for rival in rivals]
        for rival, (code, err) in zip(rivals, said, strict=True):
            if not (code == 0 or (code == 2 and ground.one_line(err)) or rival is killed):
                kind = "traceback" if "Traceback" in err else "said"
                problems.append((kind, f"{kinds}: exit code {code}, saying {err!r}"))
        if not killed and all(code for code, _ in said):
            problems.append(("lost", f"{kinds}: both are refused: {said}"))
        if not one_after_another(owners.read_text().split()):
            problems.append(("owners", f"{kinds}: both train: {owners.read_text()}"))
        code, err = end(start(ground.next_command(folder, FLAGS), where=f"{where}/"))
        if code:
            problems.append(("lost", f"{kinds}: going on ends with {code}: {err}"))
        elif other := ground.difference(folder, ground.contents(whole)):
            problems.append(("bits", f"{kinds}: not as undisturbed: {other}"))
    return ended("refused" if any(code == 2 for code, _ in said) else "same", problems)


def one_after_another(pids: list[str]) -> bool:
    """Whether no process took a step after another had taken one: else both had the run."""
    turns = [pid for pid, _ in itertools.groupby(pids)]
    return len(turns) == len(set(turns))
