"""Numbers that cannot be meant, flags that would be ignored, and places that cannot be written to:
one line each, exit code 2.
"""

# ruff: noqa: F811 (a fixture that is imported and an argument have the same name)

import builtins
import errno
import importlib
import inspect
import json
import math
import os
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from helpers import WrappedFile
from test_cli import TINY, run, stored  # noqa: F401
from test_fuzz_flags import parsers

from minigrpo.command.cli import main
from minigrpo.command.flags import key_value, path
from minigrpo.objectives import Objective
from minigrpo.runs import folder as runs
from minigrpo.runs.checkpoint import checkpoints, load_checkpoint
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train
from minigrpo.system import files
from minigrpo.tasks import BUILT_IN, find_task


def refused(done):
    """The one line on stderr of a command that did nothing else."""
    code, _, err = done
    assert (code, err.count("\n")) == (2, 1), err
    return err


# -- numbers ---------------------------------------------------------------------------------------

WHOLE = ("1e20", "1e3", "1.5", "10" + "0" * 18, "-1", "nan", "inf", "true", "")
REAL = ("-1", "nan", "inf", "-inf", "true", "", "1e400")
NEEDED = {
    "evaluate": ["x"],
    "sample": ["x"],
    "tree": ["x"],
    "check": ["ch05"],
    "reproduce": ["theorem"],
    "sweep": ["--out", "x"],
}


def numeric_flags():
    """Every flag of every command that takes a number, with what it cannot mean."""
    for command, parser in parsers().items():
        for action in parser._actions:
            if action.option_strings and action.type not in (None, str, path, key_value):
                whole = action.type is int or getattr(action.type, "__name__", "") == "count"
                for value in WHOLE if whole else REAL:
                    yield command, action.option_strings[0], value


NUMERIC = list(numeric_flags())


def test_the_flags_are_found():
    found = {(command, flag) for command, flag, _ in NUMERIC}
    assert len(found) > 40
    assert {
        ("train", "--steps"),
        ("evaluate", "--k"),
        ("equivalence", "--beta"),
        ("reproduce", "--processes"),
    } <= found


@pytest.mark.parametrize(
    ("command", "flag"), sorted({(command, flag) for command, flag, _ in NUMERIC})
)
def test_numbers_that_cannot_be_meant(command, flag, run):
    for value in (v for c, f, v in NUMERIC if (c, f) == (command, flag)):
        err = refused(run(command, *NEEDED.get(command, []), f"{flag}={value}"))
        assert flag in err or flag[2:].replace("-", "_") in err, (value, err)


IMPOSSIBLE = [
    True,
    False,
    math.nan,
    math.inf,
    -math.inf,
    -1,
    10**400,
    "1",
    [1],
    {"a": 1},
    b"1",
    np.float64("nan"),
    1j,
]


@pytest.mark.parametrize(
    "field",
    [f for f in fields(TrainSettings) if f.type.removesuffix(" | None") in ("int", "float")],
)
def test_settings_from_python(field):
    more = [1e20, 10**18 * 10, 1.0, np.True_] if field.type.startswith("int") else []
    for value in [*IMPOSSIBLE, *more, *([] if field.type.endswith("None") else [None])]:
        with pytest.raises(ValueError, match=rf"^{field.name} is ") as told:
            TrainSettings(**{field.name: value})
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["task_options", "objective_options"])
@pytest.mark.parametrize(
    "value", [None, [], "n=1", {1: 2}, {"a": math.nan}, {"a": [math.inf]}, {"a": object()}, True]
)
def test_options_that_no_file_can_hold(name, value):
    with pytest.raises(ValueError, match=rf"^{name} is "):
        TrainSettings(**{name: value})


def test_many_steps_may_be_meant():
    assert TrainSettings(steps=10**9).steps == 10**9
    assert TrainSettings(seed=2**63 - 1, learning_rate=1, memory_limit=1e6).learning_rate == 1


def options():
    for name, cls in BUILT_IN.items():
        for parameter in inspect.signature(
            getattr(importlib.import_module(f"minigrpo.tasks.{name}"), cls)
        ).parameters.values():
            yield name, parameter.name


@pytest.mark.parametrize(("name", "option"), list(options()))
def test_options_of_tasks(name, option):
    for value in (True, False, math.nan, math.inf, 10**400, 1e20, "1", [1], {"a": 1}):
        with pytest.raises(ValueError, match=option):
            find_task(name, **{option: value})


@pytest.mark.parametrize("option", ["n=1e20", "depth=99", "depth=true", "r_neg=NaN", "seed=-1"])
def test_options_of_tasks_on_the_command_line(option, run):
    assert option.split("=")[0] in refused(
        run("train", "--task", "treewalk", "--task-option", option)
    )


@pytest.mark.parametrize("field", ["alpha", "beta", "std_eps", "clip_low", "clip_high", "ddof"])
def test_numbers_of_objectives(field):
    for value in (True, math.nan, math.inf, -1, 10**400, "1", [1]):
        with pytest.raises(ValueError, match=field):
            Objective.preset("grpo", **{field: value})


# -- what would be ignored -------------------------------------------------------------------------

IGNORED = {
    "evaluate {one} --task treewalk": "--task goes with --model",
    "evaluate {one} --task-option n=2": "--task-option goes with --model",
    "evaluate {one} --k 1": "--k needs samples: give --samples too",
    "evaluate {one} --temperature 0.5": "--temperature needs samples: give --samples too",
    "evaluate {one} --model smollm2": "give either the folder of a run or a pretrained model",
    "sample {one} --task treewalk": "--task goes with --model",
    "sample {one} --max-new-tokens 3": "--max-new-tokens goes with --model alone",
    "sample --model gone.gguf one --prompt two": "two prompts",
    "sample --model gone.gguf one --out f.png": "--out draws rewards, which are of a task",
    "sample --model gone.gguf one --task-option n=1": "--task-option is of a task",
    "equivalence {one} --task treewalk": "--task goes without RUN",
    "train {tiny} --checkpoint-every 1": "--checkpoint-every is of what is written: give --out too",
    "train {tiny} --log-samples-every 1": "--log-samples-every is of what is written",
    "train {tiny} --warm-start-batch 3": "--warm-start-batch is of a warm start: give --warm",
    "train {tiny} --warm-start-learning-rate 0.1": "--warm-start-learning-rate is of a warm start",
    "train {tiny} --eval-prompts 3": "--eval-prompts is of evaluations: give --eval-every too",
    "train {tiny} --init {one} --warm-start-steps 2": "of a warm start, but --init",
    "train {tiny} --init {one} --warm-start-batch 2": "--init brings the weights",
    "train --task sums --model gone.gguf --dim 8": "--dim is of a new model",
    "train {tiny} --optimizer sgd --weight-decay 0.1": "weight_decay is of adamw",
    "train --resume {one} --init {two}": "init was None",
    "train --resume {one} --learning-rate 0.5": "learning_rate was",
    "train --resume {one} --out elsewhere": "leave out --out",
    "tree {group} --group-size 1": "--group-size splits the lines of a log",
    "tree {ids} --unit words": "--unit is of texts",
    "tree {group} --show 1": "--show is of several groups, and there is one",
    "tree {group} --step 3": "no group is of step",
    "tree {group} --reward-name nothing": "no line has 'nothing'",
    "plot {one} --key nothing": "there is no 'nothing' in the metrics",
    "check all --task 1": "all chapters have a file each",
}


@pytest.mark.parametrize("line", IGNORED)
def test_what_would_be_ignored_is_refused(line, stored, run, tmp_path):
    (tmp_path / "ids.json").write_text(json.dumps({"completions": [[1, 2], [1, 3]]}))
    names = {name: stored / name for name in ("one", "two")} | {
        "group": stored / "group.json",
        "ids": tmp_path / "ids.json",
    }
    before = {path: path.stat().st_mtime_ns for path in stored.rglob("*") if path.name != "lock"}
    words = line.format(tiny=" ".join(map(str, TINY)), **names).split()
    assert IGNORED[line] in refused(run(*words))
    assert before == {
        path: path.stat().st_mtime_ns for path in stored.rglob("*") if path.name != "lock"
    }


def test_no_time_of_no_steps(stored, run):
    assert (
        "no step was taken, so there is no time to show"
        in run("train", "--resume", stored / "one", "--profile")[1]
    )


# -- places ----------------------------------------------------------------------------------------

WRITERS = {
    "train": "train {tiny} --out {out}",
    "export": "export {run} --out {out}",
    "exercises": "exercises --out {out}",
    "plot": "plot {one} --out {out}/f.png",
    "sample": "sample {one} --out {out}/f.svg",
    "tree": "tree {group} --out {out}/f.png",
    "explorer": "tree {group} --html {out}/f.html",
    "walk": "walk --out {out}/f.html",
    "demo": "demo --seeds 2 --out {out}",
    "reproduce": "reproduce theorem --quick --out {out}",
}
PLACES = {
    "a file": "{w}/file",
    "below a file": "{w}/file/below",
    "a link to nothing": "{w}/broken",
    "a name that is too long": "{w}/" + "x" * 300,
    "a file with a name of two lines": "{w}/two\nlines\x1b",
}


@pytest.fixture(scope="module")
def without_drawable(tmp_path_factory):
    """A run of a task whose model may draw every token, which alone can be exported."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    settings = TrainSettings(
        task="arithmetic", task_options={"digits": 1}, dim=8, n_layers=1, group_size=2, steps=1
    )
    train(settings, folder, progress=False)
    return folder


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("writer", WRITERS)
def test_places_that_cannot_be_written_to(writer, place, stored, without_drawable, run, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "two\nlines\x1b").write_text("mine")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere" / "there")
    before = sorted(tmp_path.rglob("*"))
    out = PLACES[place].format(w=tmp_path)
    names = {
        "tiny": " ".join(map(str, TINY)),
        "one": stored / "one",
        "group": stored / "group.json",
        "run": without_drawable,
    }
    words = [
        word.format(out=out, **names) if "out" in word else word for word in WRITERS[writer].split()
    ]
    words = [
        part
        for word in words
        for part in (word.format(**names).split() if word.startswith("{") else [word])
    ]
    err = refused(run(*words))
    told = ("folder", "path", "file", "place")
    assert any(word in err for word in told) and "\x1b" not in err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


def full(monkeypatch, which, code=errno.ENOSPC):
    """Let the first bytes of a file whose name `which` takes be written, and no more."""

    class Full(WrappedFile):
        def write(self, data):
            self.file.write(data[: len(data) // 2])
            raise OSError(code, os.strerror(code))

    def opened(path, mode="r", *arguments, **options):
        file = builtins.open(path, mode, *arguments, **options)  # noqa: SIM115
        return Full(file) if mode != "r" and "r" not in mode and which(Path(path).name) else file

    for module in (files, runs):
        monkeypatch.setattr(module, "open", opened, raising=False)


@pytest.mark.parametrize("name", ["checkpoint-000004.mgc", "metrics.jsonl", "samples.jsonl"])
def test_a_full_disk_is_named_and_loses_nothing(name, run, tmp_path, monkeypatch):
    arguments = ["train", *TINY, "--checkpoint-every", 1, "--log-samples-every", 1]
    assert run(*arguments, "--out", tmp_path / "whole")[0] == 0
    seen = []

    def which(file):
        seen.append(file)
        return name in file and (file.startswith(".") or seen.count(name) == 3)

    with monkeypatch.context() as patch:
        full(patch, which)
        err = refused(run(*arguments, "--out", tmp_path / "run"))
    told = f"minigrpo train: No space left on device: {tmp_path / 'run' / name} (free some space)"
    assert err == f"{told}: go on with: minigrpo train --resume {tmp_path / 'run'}\n"
    assert not list((tmp_path / "run").glob(".*"))
    assert run("train", "--resume", tmp_path / "run")[0] == 0
    one, other = (load_checkpoint(checkpoints(tmp_path / each)[-1]) for each in ("whole", "run"))
    assert all(np.array_equal(one[0][key], other[0][key]) for key in one[0])
    assert (tmp_path / "whole" / "samples.jsonl").read_bytes() == (
        tmp_path / "run" / "samples.jsonl"
    ).read_bytes()


@pytest.mark.parametrize("writer", ["exercises", "plot", "sample", "tree", "explorer", "export"])
def test_a_full_disk_leaves_no_half_a_file(
    writer, stored, without_drawable, run, tmp_path, monkeypatch
):
    full(monkeypatch, lambda file: file.endswith(".tmp"))
    names = {
        "one": stored / "one",
        "group": stored / "group.json",
        "run": without_drawable,
        "out": tmp_path / "out",
    }
    (tmp_path / "out").mkdir()
    err = refused(run(*WRITERS[writer].format(**names).split()))
    assert f"No space left on device: {tmp_path / 'out'}" in err and "(free some space)" in err
    assert list((tmp_path / "out").rglob("*")) == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_what_the_system_refuses_is_told_with_a_way_out(code, stored, run, tmp_path, monkeypatch):
    full(monkeypatch, lambda file: file.endswith(".tmp"), code)
    err = refused(run("tree", stored / "group.json", "--html", tmp_path / "f.html"))
    assert f"{os.strerror(code)}: {tmp_path / 'f.html'} (" in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the full device of Linux")
def test_a_device_is_written_into_and_stays(stored, run):
    assert "No space left on device: /dev/full" in refused(
        run("tree", stored / "group.json", "--html", "/dev/full")
    )
    assert not os.path.isfile("/dev/full")
    assert run("tree", stored / "group.json", "--html", "/dev/null")[0] == 0
    assert not os.path.isfile("/dev/null")


def test_a_link_is_written_through(stored, run, tmp_path):
    (tmp_path / "link.html").symlink_to(tmp_path / "page.html")
    assert run("tree", stored / "group.json", "--html", tmp_path / "link.html")[0] == 0
    assert (tmp_path / "link.html").is_symlink() and "<html" in (tmp_path / "page.html").read_text(
        encoding="utf-8"
    )


def test_a_folder_that_is_deleted_under_a_run(tmp_path, capsys, monkeypatch):
    from minigrpo.runs import train as training

    step, taken = training.grpo_step, []

    def deleting(*arguments):
        taken.append(1)
        if len(taken) == 2:
            shutil.rmtree(tmp_path / "run")
        return step(*arguments)

    monkeypatch.setattr(training, "grpo_step", deleting)
    assert main(["train", *map(str, TINY), "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(tmp_path / "run") in err and "--resume" not in err


@pytest.mark.parametrize("name", ["checkpoint", "file", "broken"])
def test_what_is_no_folder_of_a_run(name, stored, run, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    path = checkpoints(stored / "one")[-1] if name == "checkpoint" else tmp_path / name
    assert "holds no run" in refused(run("train", "--resume", path))


@pytest.mark.skipif(
    os.name == "nt" or os.fsencode("\udcff") != b"\xff",
    reason="a name that is no UTF-8 needs Linux",
)
def test_a_path_that_is_no_text(run, stored, tmp_path):
    out = tmp_path / os.fsdecode(b"\xff")
    assert run("train", *TINY, "--out", out)[0] == 0
    assert (
        run("train", "--resume", out)[0]
        == run("evaluate", out, "--prompts", 2)[0]
        == run("plot", out)[0]
        == 0
    )
