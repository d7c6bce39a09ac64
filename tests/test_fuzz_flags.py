"""Random command lines: whatever is typed, a command ends soon, without a traceback, with an exit
code that has a meaning.

python tests/test_fuzz_flags.py 2000 [SEED]     # more of them; prints what went wrong and how often
each code came
"""

import argparse
import collections
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest

from minigrpo.command import cli, demo
from minigrpo.experiments import EXPERIMENTS
from minigrpo.runs import bench

SECONDS = 20  # in which every one of these commands must end
SMALL = [
    "--dim",
    "8",
    "--n-layers",
    "1",
    "--n-heads",
    "2",
    "--group-size",
    "4",
    "--steps",
    "1",
    "--warm-start-steps",
    "0",
]
NASTY = (
    "|0|-1|-0|1e20|1e400|nan|inf|-inf|none|None|true|1.5|0x10|1_0|٣|½"
    "|9223372036854775808|-9223372036854775809|" + "9" * 5000
)
NASTY += (
    "|1e-320|--|-|=|\0|a\nb|\ud800|λ|🌲|../|~|~nobody/x|$HOME|%s|{}|"
    + "x" * 5000
    + '|con|a:b|*|\\|\'|"|{"a": 1}|[1]|n=1|n=nan'
)
NASTY = NASTY.split("|")
INTS, FLOATS = ["1", "2", "3", "4"], ["0", "0.5", "1", "1e-3"]


class TooLong(BaseException):
    """A command that did not end."""


def parsers():
    """The commands' parsers by name."""
    (commands,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    return commands.choices


def plausible(action, folder):
    """Values that a flag may well be given."""
    kind = getattr(action.type, "__name__", "")
    if action.dest in ("path", "resume", "init", "chapter", "file", "name"):
        there = [
            "run",
            "group.json",
            "run/metrics.jsonl",
            "missing",
            "",
            "run/checkpoint-000001.mgc",
            "exercises",
        ]
        return [str(folder / name) for name in there] + ["ch01", "all", "smollm2", *EXPERIMENTS]
    if action.dest in ("out", "html"):
        return [
            str(folder / name)
            for name in ("new", "run", "group.json", "f.png", "f.svg", "a/b/c", "f.txt")
        ]
    options = {
        "task": ["treewalk", "arithmetic", "sums", "countdown", "nothing", "1"],
        "model": ["smollm2", str(folder)],
    }
    options |= {
        "objective": ["grpo", "lambda_grpo", "prm", "rloo"],
        "optimizer": ["sgd", "adamw"],
        "dtype": ["float64"],
    }
    options |= {
        "schedule": ["cosine"],
        "backend": ["numpy", "auto"],
        "key": ["reward", "loss"],
        "workload": ["W1", "W9"],
    }
    options |= {
        "grid": ["objective=grpo,rloo", "task_option.depth=3,4", "seed=1,2", "dim=8", "n=1"],
        "task_options": ["n=2", "depth=3", "digits=1"],
        "objective_options": ["beta=0.1", "kl=k2", "scale=none"],
    }
    return options.get(
        action.dest, list(action.choices or []) or (INTS if kind in ("int", "count") else FLOATS)
    )


def command_line(rng, folder):
    """A command with some of its flags, in any order, perhaps twice, with values good and bad."""
    name, parser = list(parsers().items())[rng.integers(len(parsers()))]
    words = [*SMALL] if name in ("train", "sweep") else []
    words += ["--out", str(folder / "swept")] if name == "sweep" else []
    share = rng.choice([0.05, 0.5])  # of nasty values
    actions = [a for a in parser._actions if a.dest != "help"]
    places = [a for a in actions if not a.option_strings and rng.random() < 0.85]
    flags = [
        actions[i]
        for i in rng.integers(len(actions), size=rng.integers(5))
        if actions[i].option_strings
    ]
    for action in [*places, *flags] if rng.random() < 0.7 else [*flags, *places]:
        values = NASTY if rng.random() < share else plausible(action, folder)
        chosen = [
            values[i]
            for i in rng.integers(len(values), size=1 + (action.nargs == "+") * rng.integers(3))
        ]
        chosen = (
            [] if action.nargs == 0 else chosen[: rng.integers(2) if rng.random() < 0.05 else None]
        )
        words += [*action.option_strings[:1], *chosen]
    return [name, *words] + (["--no-such-flag"] if rng.random() < 0.03 else [])


def outcome(line, folder):
    """-> the exit code, or in words what must not happen"""
    out, err = io.StringIO(), io.StringIO()

    def stop(*_):
        raise TooLong

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(line)
    except SystemExit as stopped:
        code = stopped.code
    except TooLong:
        return "did not end"
    except Exception as error:
        place = error.__traceback__
        while place.tb_next:
            place = place.tb_next
        where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}"
        return f"{type(error).__name__}: {error} ({where})"[:400]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    if code not in (0, 1, 2, 130):
        return f"exit code {code!r}"
    if code == 2 and (err.getvalue().count("\n") != 1 or "Traceback" in err.getvalue()):
        return f"not one line: {err.getvalue()!r}"[:400]
    return code


def prepare(folder, patch):
    """Things to name on command lines; what takes minutes, or a network, is played."""
    (folder / "group.json").write_text(
        json.dumps({"completions": ["ab", "ac"], "rewards": [1, 0]}), encoding="utf-8"
    )
    assert cli.main(["train", *SMALL, "--out", str(folder / "run")]) == 0
    done = subprocess.CompletedProcess([], 1, "", "ERROR: no network")
    patch.setattr(subprocess, "run", lambda *_, **__: done)
    patch.setattr(
        demo, "_demo", lambda out, *_: (out / "report.html").write_text("", encoding="utf-8")
    )
    patch.setattr(bench.Bench, "timed_step", lambda *_: (_ for _ in ()).throw(ValueError("played")))
    patch.setattr("minigrpo.experiments.reproduce.reproduce", lambda *_, **__: "played")
    serial = lambda function, jobs, **_: [function(**job) for job in jobs]  # noqa: E731
    patch.setattr("minigrpo.experiments.parallel.run_jobs", serial)
    patch.setenv("MINIGRPO_CACHE", str(folder / "cache"))
    patch.chdir(folder)


def fuzz(n, seed, folder, patch):
    """n command lines.   -> how often each outcome came, with an example"""
    prepare(folder, patch)
    rng, seen = np.random.default_rng(seed), collections.defaultdict(list)
    for _ in range(n):
        line = command_line(rng, folder)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            seen[outcome(line, folder)].append(line)
        for warning in warned:
            seen[f"warning: {warning.message} ({warning.filename}:{warning.lineno})"[:400]].append(
                line
            )
    return seen


@pytest.mark.skipif(
    not hasattr(signal, "SIGALRM"),
    reason="the guard against commands that do not end needs SIGALRM",
)
def test_no_command_line_ends_in_a_traceback_or_not_at_all(tmp_path, monkeypatch):
    seen = fuzz(120, 0, tmp_path, monkeypatch)
    assert {key: lines[0] for key, lines in seen.items() if not isinstance(key, int)} == {}
    assert len(seen[0]) > 3
    assert len(seen[2]) > 40


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as where, pytest.MonkeyPatch.context() as patch:
        found = fuzz(int(sys.argv[1]), int((sys.argv[2:] or [0])[0]), Path(where), patch)
    for outcome_, lines in found.items():
        print(
            len(lines),
            outcome_,
            "" if isinstance(outcome_, int) else [word[:60] for word in lines[0]],
        )
    sys.exit(any(not isinstance(key, int) for key in found))
