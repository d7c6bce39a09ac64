"""Two processes that want the same run: one has it at a time, the other is refused in one line."""

import itertools
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from .ground import SMALL, contents, difference, end, ended, next_command, one_line, reference, start

CASES = 50
FLAGS = SMALL + " --task rival.py:Rival --steps 12"
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
    _, _, events = reference("rivals", FLAGS)
    plan = {"at": events // 3, "signals": [signal.SIGINT]}
    end(start(["train", *FLAGS.split(), "--out", "begun"], plan))
    if not list(Path("begun").glob("checkpoint-*.mgc")):
        raise RuntimeError("the run that was stopped on its way has no checkpoint")


def case(number: int) -> dict:
    """Start two at a random distance, perhaps kill one, then go on to the end, and compare."""
    rng = np.random.default_rng([3, number])
    kinds, problems = PAIRS[number * len(PAIRS) // CASES], []
    whole, seconds, _ = reference("rivals", FLAGS)
    with tempfile.TemporaryDirectory(dir=".") as where:
        folder, rivals = Path(where, "run"), []
        if kinds[0] == "--resume":
            shutil.copytree("begun", folder)
        for kind in kinds:
            flags = FLAGS.split() if kind == "--out" else []
            if rivals:  # a run that is to be resumed takes a while to begin
                time.sleep(seconds * (rng.uniform(0.2, 0.9) if kinds[0] != kind else rng.random() ** 3))
            rivals.append(start(["train", *flags, kind, folder], wait=False, where=f"{where}/"))
        killed = rivals[rng.integers(2)] if rng.random() < 0.4 else None
        if killed:
            time.sleep(seconds * rng.random() / 2)
            killed.kill()
        said = [(rival is killed, *end(rival)) for rival in rivals]
        for was_killed, code, err in said:
            if not (code == 0 or (code == 2 and one_line(err)) or was_killed):
                kind = "traceback" if "Traceback" in err else "said"
                problems.append((kind, f"{kinds}: exit code {code}, saying {err!r}"))
        if not killed and all(code for _, code, _ in said):
            problems.append(("lost", f"{kinds}: both are refused: {said}"))
        owners = Path(where, "owners")
        if owners.exists() and take_turns(owners.read_text().split()):
            problems.append(("owners", f"{kinds}: both train: {owners.read_text()}"))
        code, err = end(start(next_command(folder, FLAGS), where=f"{where}/"))
        if code:
            problems.append(("lost", f"{kinds}: going on ends with {code}: {err}"))
        elif other := difference(folder, contents(whole)):
            problems.append(("bits", f"{kinds}: not as undisturbed: {other}"))
    return ended("refused" if any(code == 2 for _, code, _ in said) else "same", problems)


def take_turns(pids: list[str]) -> bool:
    """Whether a process took a step after another had taken one in between: then both had the run."""
    turns = [pid for pid, _ in itertools.groupby(pids)]
    return len(turns) > len(set(turns))
