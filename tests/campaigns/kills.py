"""Runs that are killed or asked to stop, up to five times, at any moment or in a write; resumed."""

import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from . import ground
from .ground import SHORT, SMALL, end, ended, next_command, start

WHAT = "killed or asked to stop, up to five times a run, then resumed"
ARITHMETIC = f"{SMALL} --task arithmetic --task-option digits=1"
SETUPS = {
    "plain": f"{SMALL} --task treewalk",
    "inner epochs": f"{ARITHMETIC} --objective grpo --inner-epochs 2",
    "KL": f"{SMALL} --task treewalk --objective-option beta=0.1 --schedule cosine",
    "SGD": f"{ARITHMETIC} --optimizer sgd --max-grad-norm none",
    "language model": f"{SHORT} --model model --task sums --task-option high=20 --steps 5",
    "evaluation": f"{ARITHMETIC} --eval-every 2 --eval-prompts 4",
    "samples": f"{ARITHMETIC} --log-samples-every 1 --checkpoint-every 1",
    "warm start": f"{ARITHMETIC} --warm-start-steps 6 --warm-start-batch 8",
    "float64": f"{SMALL} --task countdown --dtype float64 --micro-batch-tokens 16",
    "everything": f"{ARITHMETIC} --inner-epochs 2 --objective-option beta=0.1 --weight-decay 0.1"
    " --warm-start-steps 4 --warm-start-batch 8 --eval-every 3 --eval-prompts 4",
}
KILL, INT, TERM, HUP = signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP
CODES = {KILL: -KILL, INT: 130, TERM: 143, HUP: 129}
SENT = ([KILL], [KILL], [KILL], [KILL], [INT], [TERM], [HUP], [INT, INT], [INT, KILL])
prepare = ground.make_language_model


def cases() -> int:
    """How many there are."""
    return 1000


def case(number: int) -> dict:
    """Train, be disturbed one to five times, go on to the end, and compare."""
    rng = np.random.default_rng([1, number])
    name = list(SETUPS)[number % len(SETUPS)]
    whole, seconds, events = ground.reference(name, SETUPS[name])
    with tempfile.TemporaryDirectory(dir=".") as where:
        folder, problems, killed, stopped = Path(where, "run"), [], False, 0
        for _ in range(1 if rng.random() < 0.6 else rng.integers(2, 6)):
            sent = SENT[rng.integers(len(SENT))]
            in_write = rng.random() < 0.5
            plan = {"at": int(rng.integers(1, events + 1)), "signals": sent} if in_write else {}
            process = start(next_command(folder, SETUPS[name]), plan)
            if not in_write:
                time.sleep(seconds * rng.random() ** 0.5)  # more of them late, when it trains
                for one in sent:
                    process.send_signal(one)
                    time.sleep(0.02 * (len(sent) - 1))
            code, err = end(process)
            problems += judged(code, err, sent)
            stopped += code != 0  # else it was done before the signal came
            killed |= len(sent) > 1 or KILL in sent
            saved, taken = steps(folder)
            if code and not killed and saved != taken:
                problems.append(("lost", f"{sent}: of {taken} steps, {saved} are saved"))
            if code == 0:
                break
        code, err = end(start(next_command(folder, SETUPS[name])))
        left = [file.name for file in folder.glob("*.tmp")]
        if code:
            kind = "traceback" if "Traceback" in err else "lost"
            problems.append((kind, f"going on ends with {code}: {err}"))
        elif other := ground.difference(folder, ground.contents(whole)):
            problems.append(("bits", f"not as undisturbed: {other}"))
        elif left:
            problems.append(("said", f"left over: {left}"))
    return ended("same", problems) | {"stopped": stopped}


def judged(code: int | str, err: str, sent: list[int]) -> list[tuple[str, str]]:
    """The problems of how a process ended that was sent these signals."""
    if "Traceback" in err:
        return [("traceback", f"{sent}: {err}")]
    as_wanted = code in (0, *(CODES[one] for one in sent))  # 0: it was done before
    if as_wanted and (err.strip() or code in (0, -KILL)):
        return []
    return [("said", f"{sent}: exit code {code}, saying {err!r}")]


def steps(folder: Path) -> tuple[int, int]:
    """How many steps the newest checkpoint has, and how many the metrics have."""
    file = folder / "metrics.jsonl"
    taken = file.read_text(encoding="utf-8").count('"loss"') if file.exists() else 0
    return max((int(f.stem[-6:]) for f in folder.glob("checkpoint-*.mgc")), default=0), taken
