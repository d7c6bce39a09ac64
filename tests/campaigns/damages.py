"""Folders of runs that are damaged, then measured, sampled, drawn, exported and resumed.

A damage is harmless (the same numbers as without it), or is refused in one line that names the
file.  What the line advises is done, and the run then must go on to the same bits.
"""

import contextlib
import functools
import io
import json
import os
import re
import shutil
import signal
import tempfile
import time
import traceback
from pathlib import Path
from unittest import mock

import numpy as np

from minigrpo.command import cli
from minigrpo.runs.checkpoint import checkpoints
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train
from minigrpo.show import comparison, plots

from . import ground
from .ground import LIMIT, SECONDS, ended

WHAT = "one file damaged; then evaluate, sample, plot, export, resume"
SETTINGS = {"group_size": 4, "prompts_per_step": 2, "learning_rate": 0.01, "n_layers": 1, "dim": 8}
SETTINGS |= {"eval_every": 3, "eval_prompts": 4, "checkpoint_every": 2, "log_samples_every": 1}
WALK = {"task": "treewalk", "task_options": {"depth": 3, "root": "L"}, "steps": 6}
SUMS = {"task": "sums", "model": "model", "task_options": {"high": 20}, "steps": 4}
TASKS = {"walk": SETTINGS | WALK, "words": SETTINGS | SUMS}
BASES = ("walk", "walk-stopped", "words", "words-stopped")
SHARES = (0.35, 0.35, 0.15, 0.15)
ACTIONS = {
    "evaluate": ("--prompts", "8", "--samples", "8", "--k", "1", "4"),
    "sample": ("--group-size", "4"),
    "plot": (),
    "export": ("--out", f"exported-{os.getpid()}"),
}


class Stopped(Exception):
    """No error: how a run is left between two checkpoints."""


def prepare() -> None:
    """The folders to be damaged, always of the same bytes, and others to copy from."""
    ground.make_language_model()

    def stop(last: int, metrics: dict) -> None:
        if metrics["step"] == last:
            raise Stopped

    with mock.patch.object(time, "perf_counter", lambda: 0.0):  # times are in the metrics
        for name, settings in TASKS.items():
            train(TrainSettings(**settings), name, progress=False)
            train(TrainSettings(**settings, seed=1), f"{name}-other", progress=False)
            late = functools.partial(stop, settings["steps"] - 1)
            with contextlib.suppress(Stopped):
                train(TrainSettings(**settings), f"{name}-stopped", progress=False, on_step=late)


# -- damages ---------------------------------------------------------------------------------------


def flip(data: bytes, bit: int) -> bytes:
    """One bit is another."""
    return put(data, bit // 8, bytes([data[bit // 8] ^ 1 << bit % 8]), 1)


def put(data: bytes, i: int, new: bytes, length: int) -> bytes:
    """New bytes in place of so many old ones."""
    return data[:i] + new + data[i + length :]


def blocks(data: bytes, i: int, rng: np.random.Generator) -> bytes:
    """A block of a file is at another place."""
    block = data[i : i + int(rng.integers(1, 65))]
    rest = put(data, i, b"", len(block))
    return put(rest, int(rng.integers(len(rest) + 1)), block, 0)


def number(data: bytes, i: int, rng: np.random.Generator) -> bytes:
    """A number of a JSON file is another: the first after i."""
    place = re.search(rb"(?<=: )-?\d+(\.\d+)?(e-?\d+)?(?=[,\n}])", data[i:])
    if place is None:
        return data
    other = json.dumps(json.loads(place[0]) * 2 + 1).encode()
    return put(data, i + place.start(), other, len(place[0]))


def lines(data: bytes, i: int, rng: np.random.Generator) -> bytes:
    """A line is missing, is there twice, or has changed places with another."""
    split = data.splitlines(keepends=True)
    n, other = data[:i].count(b"\n"), rng.integers(len(split))
    kind = int(rng.integers(3))
    split[n : n + 1] = [split[n]] * kind
    if kind == 1:
        split[n], split[other] = split[other], split[n]
    return b"".join(split)


# What is done to the bytes of a file at a place i.
KINDS = {
    "bit flipped": lambda data, i, rng: flip(data, 8 * i + int(rng.integers(8))),
    "byte replaced": lambda data, i, rng: put(data, i, rng.bytes(1), 1),
    "cut": lambda data, i, rng: data[:i],
    "bytes inserted": lambda data, i, rng: put(data, i, rng.bytes(rng.integers(1, 17)), 0),
    "zeros": lambda data, i, rng: put(data, i, bytes(n := min(64, len(data) - i)), n),
    "blocks moved": blocks,
    "empty": lambda data, i, rng: b"",
    "number edited": number,
    "lines": lines,
}
WHOLE = ("deleted", "a folder", "of another run", "of an earlier step")


def damage(folder: Path, base: str, rng: np.random.Generator) -> tuple[Path, str]:
    """Damage a file of a run.   -> the file, what was done"""
    names, kinds = sorted(file.name for file in folder.iterdir()), (*KINDS, *WHOLE)
    file, kind = folder / names[rng.integers(len(names))], kinds[rng.integers(len(kinds))]
    other, before = Path(base.removesuffix("-stopped") + "-other"), file.read_bytes()
    after = before
    if kind in KINDS and before:
        after = KINDS[kind](before, int(rng.integers(len(before))), rng)
    elif kind == "of an earlier step" and file == checkpoints(folder)[-1]:
        after = checkpoints(folder)[0].read_bytes()
    elif kind == "of another run" and (other / file.name).exists():
        after = (other / file.name).read_bytes()
    if kind in ("deleted", "a folder"):
        file.unlink()
    if kind == "a folder":
        file.mkdir()
    elif after != before:
        file.write_bytes(after)
    elif kind != "deleted":
        return damage(folder, base, rng)  # this changes nothing here: another
    return file, kind


# -- what comes of them ----------------------------------------------------------------------------


class TooLong(BaseException):
    """A command that does not end."""


def call(*words: str) -> tuple[int | str, str, str]:
    """A command in this process.   -> exit code or what went wrong, its output, its stderr"""
    out, err = io.StringIO(), io.StringIO()

    def stop(*_):
        raise TooLong

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(words)
    except SystemExit as stopped:
        code = stopped.code
    except TooLong:
        code = LIMIT
    except Exception:
        code = traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return code, out.getvalue(), err.getvalue()


def act(action: str, folder: Path, known: object = None) -> tuple[int | str, object, str]:
    """One of the actions.   -> exit code or what went wrong, what came out, its stderr

    Of a plot, what is to be drawn comes out.  It is drawn only where it is not what is known.
    """
    drawn, draw, exported = [], plots.metrics_figure, Path(ACTIONS["export"][-1])

    def look(records, title, smooth=None):
        drawn.extend([title, *records])
        return draw(records, title=title) if known and drawn != known else None

    with mock.patch.object(comparison, "metrics_figure", look), mock.patch.object(plots, "save"):
        code, out, err = call(action, str(folder), *ACTIONS[action])
    if action == "export" and exported.exists():
        out = {file.name: file.read_bytes() for file in exported.iterdir()}
        shutil.rmtree(exported)
    return code, drawn if action == "plot" else out, err


@functools.cache
def expected(base: str) -> tuple[dict, dict]:
    """What the actions give undamaged, and if the newest checkpoint has not been written yet."""
    with tempfile.TemporaryDirectory(dir=".") as where:
        folder = Path(shutil.copytree(base, Path(where, "run")))
        now = {action: act(action, folder) for action in ACTIONS}
        checkpoints(folder)[-1].unlink()
        earlier = {action: act(action, folder) for action in ACTIONS}
    for found in (*now.values(), *earlier.values()):
        if found[0]:
            raise RuntimeError(f"an undamaged run, {base}, gives {found}")
    return now, earlier


def trial(base: str, hurt, actions=tuple(ACTIONS)) -> dict:
    """Damage a copy of a folder, act, resume, judge.   hurt(folder) -> the file, what was done"""
    (now, earlier), problems, advised, refused = expected(base), [], [], False
    with tempfile.TemporaryDirectory(dir=".") as where:
        folder = Path(shutil.copytree(base, Path(where, "run")))
        newest = checkpoints(folder)[-1].name
        file, kind = hurt(folder)
        what = f"{base}, {file.name}: {kind}"
        gone = file.name == newest and not file.exists()  # as if it had not been written yet
        for action in actions:
            wanted = now[action][1]
            code, found, err = act(action, folder, wanted)
            refused |= bool(code)
            if code:
                problems += judged(f"{what}: {action}", file, code, err)
            elif found == wanted or (gone and found == earlier[action][1]):
                pass
            elif action != "plot" or not covered_alike(found, wanted, err, int(newest[11:17])):
                problems.append(("bits", f"{what}: {action} gives something else"))
        while (answer := call("train", "--resume", str(folder)))[0]:
            code, _, err = answer
            problems += judged(f"{what}: resume", file, code, err)
            refused = True
            if len(advised) == 3 or not follow(err, file, Path(base, file.name)):
                problems.append(("lost", f"{what}: it cannot go on, after {[*advised, err]}"))
                break
            advised.append(err)
        else:
            wanted = ground.contents(Path(base.removesuffix("-stopped")))
            if other := ground.difference(folder, wanted):
                problems.append(("bits", f"{what}: goes on, after {advised}, to other {other}"))
    return ended("refused" if refused else "same", problems)


def judged(what: str, file: Path, code: int | str, err: str) -> list[tuple[str, str]]:
    """The problems of how a command did not end well."""
    if code == 2 and ground.one_line(err) and file.name in err:
        return []
    kind = "traceback" if "Traceback" in f"{code}{err}" else "said"
    return [(kind, f"{what}: exit code {code}, saying {err!r}")]


def covered_alike(found: list, wanted: list, err: str, step: int) -> bool:
    """Whether plots differ in nothing but what comes after a checkpoint's records, and it is said.

    Both are a title and records.
    """
    n = 1 + sum(record["step"] <= step for record in wanted[1:])
    return found[:n] == wanted[:n] and (len(found) == n or "metrics.jsonl" in err)


def follow(err: str, file: Path, undamaged: Path) -> bool:
    """Delete what a refusal says, else put the file back.   -> whether it advises something"""
    delete = re.search(r"(?:delete|remove) (\S+)", err)
    put_back = re.search("put it back|restore", err)
    if delete:
        named = file.with_name(delete[1])
        target = named if named.exists() else file
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    elif put_back:
        shutil.rmtree(file, ignore_errors=True)
        shutil.copy(undamaged, file)
    return bool(delete or put_back)


def cases() -> int:
    """How many there are."""
    return 5000


def case(n: int) -> dict:
    """A random damage."""
    rng = np.random.default_rng([2, n])
    base = BASES[rng.choice(len(BASES), p=SHARES)]
    return trial(base, lambda folder: damage(folder, base, rng))
