"""Runs that are killed or asked to stop, once or again and again, at any moment or in a write, and resumed."""

import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from .ground import SETUPS, SMALL, contents, difference, end, ended, make_language_model, next_command, reference, references, start

CASES = 1000
CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SENT = [[signal.SIGKILL]] * 4 + [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP]]
SENT += [[signal.SIGINT] * 2, [signal.SIGINT, signal.SIGKILL]]


def prepare() -> None:
    """The undisturbed runs."""
    make_language_model()
    references({name: f"{SMALL} {flags}" for name, flags in SETUPS.items()})


def case(number: int) -> dict:
    """Train, be disturbed one to five times, go on to the end, and compare."""
    rng = np.random.default_rng([1, number])
    name = list(SETUPS)[number % len(SETUPS)]
    flags = f"{SMALL} {SETUPS[name]}"
    whole, seconds, events = reference(name, flags)
    with tempfile.TemporaryDirectory(dir=".") as where:
        folder, problems, killed = Path(where, "run"), [], False
        for _ in range(1 if rng.random() < 0.6 else rng.integers(2, 6)):
            sent = SENT[rng.integers(len(SENT))]
            plan = {"at": int(rng.integers(1, events + 1)), "signals": sent} if rng.random() < 0.5 else {}
            process = start(next_command(folder, flags), plan)
            if not plan:
                time.sleep(rng.random() ** 0.5 * seconds)  # more of them later, when it trains
                for i, one in enumerate(sent):
                    time.sleep(0.02 * i)
                    process.send_signal(one)
            code, err = end(process)
            problems += judged(code, err, sent)
            killed |= len(sent) > 1 or signal.SIGKILL in sent
            if code and not killed and steps(folder)[0] != steps(folder)[1]:
                problems.append(("lost", f"{sent}: saved and taken steps are {steps(folder)}"))
            if code == 0:
                break
        code, err = end(start(next_command(folder, flags)))
        if code:
            problems.append(("traceback" if "Traceback" in err else "lost", f"resuming ends with {code}: {err}"))
        elif other := difference(folder, contents(whole)):
            problems.append(("bits", f"not as undisturbed: {other}"))
        elif left := [file.name for file in folder.iterdir() if file.name.endswith(".tmp")]:
            problems.append(("said", f"left over: {left}"))
    return ended("same", problems)


def judged(code: int | str, err: str, sent: list[int]) -> list[tuple[str, str]]:
    """The problems of how a process ended that was sent these signals."""
    if "Traceback" in err:
        return [("traceback", f"{sent}: {err}")]
    wanted = {0, *(CODES[one] for one in sent)}  # 0: it was done before
    silent = code not in (0, -signal.SIGKILL) and not err.strip()
    return [("said", f"{sent} ended with {code}, saying {err!r}")] if code not in wanted or silent else []


def steps(folder: Path) -> tuple[int, int]:
    """The steps that the newest checkpoint has, and that the metrics have."""
    file = folder / "metrics.jsonl"
    taken = [line for line in file.read_text().splitlines() if '"loss"' in line] if file.exists() else []
    saved = [int(name.stem[-6:]) for name in folder.glob("checkpoint-*.mgc")]
    return (max(saved, default=0), len(taken))
