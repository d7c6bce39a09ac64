"""Folders of runs that are damaged, by chance or bit by bit, and then resumed, measured, sampled, drawn and exported.

A damage is harmless (the same numbers as without it), or is refused in one line that names the file.
If the line says what to do, that is done, and the run then must go on to the same bits.
"""

import contextlib
import functools
import io
import json
import re
import shutil
import signal
import tempfile
import time
import traceback
from pathlib import Path
from unittest import mock

import numpy as np

from minigrpo import cli, plots
from minigrpo.runs import checkpoints
from minigrpo.settings import TrainSettings
from minigrpo.trainer import train

from .ground import LIMIT, SECONDS, contents, difference, ended, make_language_model, one_line

CASES = 5000
SETTINGS = {"steps": 6, "group_size": 4, "prompts_per_step": 2, "learning_rate": 0.01, "n_layers": 1}
SETTINGS |= {"dim": 8, "eval_every": 3, "eval_prompts": 4, "checkpoint_every": 2, "log_samples_every": 1}
TASKS = {
    "walk": {"task": "treewalk", "task_options": {"depth": 3, "root": "L"}},
    "words": {"task": "sums", "model": "model", "task_options": {"high": 20}, "steps": 4},
}
STOPPED = ("walk-stopped", "words-stopped")  # after a step that no checkpoint has
BASES = ("walk", *STOPPED, "words")
SHARES = (0.35, 0.35, 0.15, 0.15)
ACTIONS = ("evaluate", "sample", "plot", "export")


def prepare() -> None:
    """The folders to be damaged, and of each kind another run to copy from; always the same bytes."""
    make_language_model()
    with mock.patch.object(time, "perf_counter", lambda: 0.0):  # times are in the metrics
        for name, options in TASKS.items():
            settings = SETTINGS | options
            for end, seed in (("", 0), ("-other", 1)):
                train(TrainSettings(**settings, seed=seed), name + end, progress=False)
            stop = functools.partial(stop_after, settings["steps"] - 1)
            with contextlib.suppress(StopAsync):
                train(TrainSettings(**settings, seed=0), f"{name}-stopped", progress=False, on_step=stop)


class StopAsync(Exception):
    """Not an error: how an undisturbed run is left between two checkpoints."""


def stop_after(step: int, metrics: dict) -> None:
    """Leave a run after a step."""
    if metrics["step"] == step:
        raise StopAsync


# -- damages ---------------------------------------------------------------------------------------


def blocks(data: bytes, rng: np.random.Generator) -> bytes:
    """Two blocks of a file change places."""
    size = int(rng.integers(1, max(len(data) // 4, 2)))
    i, j = sorted(int(x) for x in rng.integers(max(len(data) - size, 1), size=2))
    j = max(j, i + size)
    return data[:i] + data[j : j + size] + data[i + size : j] + data[i : i + size] + data[j + size :]


def number(data: bytes, rng: np.random.Generator) -> bytes:
    """One number of a JSON file is another."""
    found = list(re.finditer(rb"(?<=[ \[])-?\d+(\.\d+)?(e-?\d+)?(?=[,\n}\]])", data))
    if not found:
        return data
    place = found[rng.integers(len(found))]
    other = json.dumps(json.loads(place[0]) * 2 + 1).encode()
    return data[: place.start()] + other + data[place.end() :]


def lines(data: bytes, rng: np.random.Generator) -> bytes:
    """A line is missing, is there twice, or has changed places with another."""
    split = data.splitlines(keepends=True)
    i, j = rng.integers(len(split), size=2)
    kind = rng.integers(3)
    if kind == 2:
        split[i], split[j] = split[j], split[i]
    else:
        split[i : i + 1] = [split[i]] * 2 * int(kind)
    return b"".join(split)


def put(data: bytes, rng: np.random.Generator, new: bytes, length: int) -> bytes:
    """New bytes in place of so many old ones, anywhere."""
    i = int(rng.integers(len(data)))
    return data[:i] + new + data[i + length :]


def flip(data: bytes, bit: int) -> bytes:
    """One bit is another."""
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


KINDS = {
    "bit flipped": lambda data, rng: flip(data, int(rng.integers(8 * len(data)))),
    "byte replaced": lambda data, rng: put(data, rng, rng.bytes(1), 1),
    "cut": lambda data, rng: data[: rng.integers(len(data))],
    "bytes inserted": lambda data, rng: put(data, rng, rng.bytes(rng.integers(1, 17)), 0),
    "zeros": lambda data, rng: put(data, rng, bytes(size := int(rng.integers(1, 65))), size)[: len(data)],
    "blocks exchanged": blocks,
    "empty": lambda data, rng: b"",
    "number edited": number,
    "line": lines,
}


def damage(folder: Path, base: str, rng: np.random.Generator) -> tuple[Path, str]:
    """Damage a file of a run.   -> the file, what was done"""
    names = sorted(file.name for file in folder.iterdir())
    file = folder / names[rng.integers(len(names))]
    kinds = [*KINDS, "deleted", "a folder", "of another run", "of an earlier step"]
    kind = kinds[rng.integers(len(kinds))]
    before = file.read_bytes()
    other = Path(f"{base.removesuffix('-stopped')}-other", file.name)
    if kind == "of an earlier step" and file == checkpoints(folder)[-1]:
        shutil.copy(checkpoints(folder)[0], file)
    elif kind == "of another run" and other.exists():
        shutil.copy(other, file)
    elif kind == "deleted":
        file.unlink()
    elif kind == "a folder":
        file.unlink()
        file.mkdir()
    elif kind in KINDS and before and (after := KINDS[kind](before, rng)) != before:
        file.write_bytes(after)
    else:
        return damage(folder, base, rng)  # this cannot be done here, or changes nothing: another
    return file, kind


# -- what comes of them ----------------------------------------------------------------------------


class TooLong(BaseException):
    """A command that does not end."""


def call(*arguments) -> tuple[int | str, str, str]:
    """A command in this process.   -> exit code or what went wrong, its output, what it says on stderr"""
    out, err = io.StringIO(), io.StringIO()

    def stop(*_):
        raise TooLong

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main([str(argument) for argument in arguments])
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
    """One of the actions.   -> exit code or what went wrong, what came out, what it says on stderr

    A plot is what is drawn; what is known to be drawn without a fault is not drawn again.
    """
    seed = ("--seed", 1)
    if action == "evaluate":
        return call("evaluate", folder, "--prompts", 8, "--samples", 8, "--k", 1, 4, *seed)
    if action == "sample":
        return call("sample", folder, "--group-size", 4, *seed)
    if action == "export":
        out = folder.with_name("exported")
        code, _, err = call("export", folder, "--out", out)
        written = {file.name: file.read_bytes() for file in out.iterdir()} if out.is_dir() else {}
        shutil.rmtree(out, ignore_errors=True)
        return code, written, err
    drawn, draw = [], plots.metrics_figure

    def look(records, title):
        drawn.extend([title, *records])
        return None if drawn == known else draw(records, title=title)

    with mock.patch.object(plots, "metrics_figure", look), mock.patch.object(plots, "save"):
        code, _, err = call("plot", folder)
    return code, drawn, err


@functools.cache
def expected(base: str) -> tuple[dict, dict]:
    """What the actions give on an undamaged folder, and if its newest checkpoint is not there yet."""
    with tempfile.TemporaryDirectory(dir=".") as where:
        folder = Path(shutil.copytree(base, Path(where, "run")))
        now = {action: act(action, folder) for action in ACTIONS}
        checkpoints(folder)[-1].unlink()
        earlier = {action: act(action, folder) for action in ACTIONS}
    for found in (*now.values(), *earlier.values()):
        if found[0]:
            raise RuntimeError(f"an undamaged run, {base}, gives {found}")
    return now, earlier


def trial(base: str, hurt, actions=ACTIONS) -> dict:
    """Damage a copy of a folder, act, resume, and judge.   hurt(folder) -> the file, what was done"""
    now, earlier = expected(base)
    whole, problems, refused = base.removesuffix("-stopped"), [], False
    with tempfile.TemporaryDirectory(dir=".") as where:
        folder = Path(shutil.copytree(base, Path(where, "run")))
        newest = checkpoints(folder)[-1].name
        file, kind = hurt(folder)
        what = f"{base}, {file.name}: {kind}"
        gone = file.name == newest and not file.exists()  # as if it had not been written yet
        for action in actions:
            code, found, err = act(action, folder, now[action][1])
            if code:
                problems += judged(f"{what}: {action}", file, code, err)
                refused = True
            elif not (
                found == now[action][1]
                or (gone and found == earlier[action][1])
                or (action == "plot" and covered_alike(found, now[action][1], err, int(newest[11:17])))
            ):
                problems.append(("bits", f"{what}: {action} gives something else"))
        advised = []
        while (answer := call("train", "--resume", folder))[0]:
            code, _, err = answer
            problems += judged(f"{what}: resume", file, code, err)
            refused = True
            if len(advised) == 3 or not follow(err, file, Path(base, file.name)):
                if not advised or "start" not in err or sound(folder, base):
                    problems.append(("lost", f"{what}: after {advised} it cannot go on: {code} {err}"))
                break
            advised.append(err)
        else:
            if other := difference(folder, contents(Path(whole))):
                problems.append(("bits", f"{what}: resumed, after {advised}, to other {other}"))
    return ended("refused" if refused else "same", problems)


def judged(what: str, file: Path, code: int | str, err: str) -> list[tuple[str, str]]:
    """The problems of how a command did not end well."""
    if code == 2 and one_line(err) and file.name in err:
        return []
    kind = "traceback" if "Traceback" in str(code) + err else "said"
    return [(kind, f"{what}: exit code {code}, saying {err!r}")]


def covered_alike(found: list, wanted: list, err: str, step: int) -> bool:
    """Whether plots differ only in steps that no checkpoint covers, and `plot` says that there are such, if there are."""
    both = [[r for r in drawn if isinstance(r, str) or r["step"] <= step] for drawn in (found, wanted)]
    return both[0] == both[1] and (found == both[0] or "metrics.jsonl" in err)


def follow(err: str, file: Path, undamaged: Path) -> bool:
    """Do what a refusal advises: delete what it names, else put the file back.   -> whether it advises something"""
    advice = re.search(r"delete (\S+)", err)
    if advice:
        named = file.with_name(advice[1])
        target = named if named.exists() else file
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    elif "put it back" in err:
        shutil.rmtree(file, ignore_errors=True)
        shutil.copy(undamaged, file)
    return bool(advice) or "put it back" in err


def sound(folder: Path, base: str) -> bool:
    """Whether an undamaged checkpoint of a step is still there."""
    return any(file.is_file() and file.read_bytes() == Path(base, file.name).read_bytes() for file in checkpoints(folder))


def case(number: int) -> dict:
    """A random damage."""
    rng = np.random.default_rng([2, number])
    base = BASES[rng.choice(len(BASES), p=SHARES)]
    return trial(base, lambda folder: damage(folder, base, rng))


# -- every bit of settings.json --------------------------------------------------------------------


def flips() -> int:
    """How many bits there are."""
    return 8 * len(Path("walk-stopped/settings.json").read_bytes())


def flip_case(bit: int) -> dict:
    """One bit of settings.json is another: resume and evaluate."""

    def hurt(folder: Path) -> tuple[Path, str]:
        file = folder / "settings.json"
        file.write_bytes(flip(file.read_bytes(), bit))
        return file, f"bit {bit}"

    return trial("walk-stopped", hurt, ("evaluate",))
