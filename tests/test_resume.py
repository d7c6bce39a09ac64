"""Runs that are killed or interrupted, and resumed, end in the same bits as runs that are left
alone.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import WrappedFile

from minigrpo.command.cli import main
from minigrpo.runs import folder as runs
from minigrpo.runs.checkpoint import checkpoints, load_checkpoint
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train
from minigrpo.system import files
from minigrpo.system.files import read_records

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL and fork are of Unix")

# Arithmetic that stops at the call that HOLD names, makes a file "here" to say so, and waits for a
# file "go".
TASK = """
import os, time
from pathlib import Path
from minigrpo.tasks.arithmetic import Arithmetic

CALLS = {"demonstrations": 0, "score": 0}


def hold(name):
    CALLS[name] += 1
    if os.environ.get("HOLD") == f"{name} {CALLS[name]}":
        Path(os.environ["WHERE"], "here").touch()
        while not Path(os.environ["WHERE"], "go").exists():
            time.sleep(0.005)


class Held(Arithmetic):
    def demonstrations(self, rng, n):
        hold("demonstrations")
        return super().demonstrations(rng, n)

    def score(self, rollouts):
        hold("score")
        return super().score(rollouts)
"""
ONE_THREAD = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)  # others do not survive a fork
SMALL = (
    "--task-option digits=1 --dim 16 --n-layers 1 --n-heads 2 --group-size "
    "4 --prompts-per-step 2 --steps 10 --seed 3"
)
SMALL += (
    " --checkpoint-every 4 --log-samples-every 3 --warm-start-steps "
    "6 --warm-start-batch 8 --warmup-steps 2"
)
VARIANTS = {
    "plain": "--eval-every 5 --eval-prompts 4",
    "kl": (
        "--objective grpo --objective-option beta=0.1 --inner-epochs 2 "
        "--eval-every 0 --schedule cosine --weight-decay 0.1"
    ),
}


def flags(variant, where):
    return [
        "train",
        "--task",
        f"{where / 'held.py'}:Held",
        *SMALL.split(),
        *VARIANTS[variant].split(),
    ]


def start(arguments, where, hold="", before=lambda: None, **options):
    """The command line in a process of its own, which handles signals whatever this one does with
    them.
    """

    def as_in_a_shell():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        before()

    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(
        [sys.executable, "-m", "minigrpo", *arguments],
        env=os.environ | ONE_THREAD | {"HOLD": hold, "WHERE": str(where)},
        text=True,
        preexec_fn=as_in_a_shell,
        **options,
    )


def wait_for(file, process):
    while not file.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def finished(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, (out, err)
    return out, err


def contents(folder):
    """All that a run ends in, but for times.  (A run killed before its last tidying up may keep
    more than two checkpoints.)
    """
    arrays, state = load_checkpoint(checkpoints(folder)[-1])
    metrics = [
        {k: v for k, v in record.items() if k != "step_time"}
        for record in read_records(folder / "metrics.jsonl")
    ]
    bits = {name: (array.dtype.str, array.tobytes()) for name, array in arrays.items()}
    names = [file.name for file in checkpoints(folder)][-2:]
    state["records"].pop("metrics.jsonl")  # of which the times are a part
    return (
        bits,
        state,
        metrics,
        (folder / "samples.jsonl").read_bytes(),
        (folder / "settings.json").read_bytes(),
        names,
    )


def assert_same(folder, reference):
    for mine, theirs in zip(contents(folder), reference, strict=True):
        assert mine == theirs


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "held.py").write_text(TASK)
    return folder


@pytest.fixture(scope="module", params=VARIANTS)
def uninterrupted(request, where):
    """A variant's name and what it ends in when nobody disturbs it."""
    folder = where / f"{request.param}-whole"
    finished(start([*flags(request.param, where), "--out", str(folder)], where))
    found = contents(folder)
    n_evaluations = 1 if request.param == "plain" else 0
    assert [m["step"] for m in found[2]] == [0] * n_evaluations + list(range(1, 11))
    assert {json.loads(line)["step"] for line in found[3].splitlines()} == {3, 6, 9}
    assert ("reference" in found[0]) == (request.param == "kl")
    assert found[5] == ["checkpoint-000008.mgc", "checkpoint-000010.mgc"]
    return request.param, found


# (where to stop, the checkpoints that are there then, how many steps the metrics hold then), for a
# run without evaluation
MOMENTS = {
    "during the warm start": ("demonstrations 4", [], 0),
    "before the first step": ("score 1", [0], 0),
    "before the first checkpoint of a step": ("score 3", [0], 2),
    "right after a checkpoint": ("score 5", [0, 4], 4),
    "between two checkpoints": ("score 7", [0, 4], 6),
    "before the last step": ("score 10", [4, 8], 9),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed(moment, uninterrupted, where, tmp_path):
    variant, reference = uninterrupted
    hold, saved, steps = MOMENTS[moment]
    folder = tmp_path / "run"
    process = start([*flags(variant, where), "--out", str(folder)], tmp_path, hold)
    wait_for(tmp_path / "here", process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    if variant == "kl":
        assert [int(file.stem[-6:]) for file in checkpoints(folder)] == saved
        assert len(read_records(folder / "metrics.jsonl") if steps else []) == steps
    (folder / ".checkpoint-000008.mgc.1.tmp").write_bytes(
        b"half a check"
    )  # what a kill during a write may leave behind
    finished(start(["train", "--resume", str(folder)], tmp_path))
    assert_same(folder, reference)


def test_killed_again_and_again(uninterrupted, where, tmp_path):
    variant, reference = uninterrupted
    folder = tmp_path / "run"
    arguments = [*flags(variant, where), "--out", str(folder)]
    for hold in ("demonstrations 2", "score 6", "score 5", "score 2"):
        (tmp_path / hold).mkdir()
        process = start(arguments, tmp_path / hold, hold)
        wait_for(tmp_path / hold / "here", process)
        process.kill()
        process.communicate()
        arguments = ["train", "--resume", str(folder)]
    finished(start(arguments, tmp_path))
    assert_same(folder, reference)


STOPS = [
    ("demonstrations 3", "INT"),
    ("score 2", "INT"),
    ("score 2", "TERM"),
    ("score 10", "HUP"),
    ("demonstrations 3", "TERM"),
]


@pytest.mark.parametrize(("hold", "name"), STOPS)
def test_a_signal_saves_and_says_how_to_go_on(hold, name, uninterrupted, where, tmp_path):
    variant, reference = uninterrupted
    number, folder = signal.Signals[f"SIG{name}"], tmp_path / "run"
    process = start([*flags(variant, where), "--out", str(folder)], tmp_path, hold)
    wait_for(tmp_path / "here", process)
    process.send_signal(number)
    if not hold.startswith(
        "demonstrations"
    ):  # there it stops at once: nothing is learned that could be saved
        time.sleep(0.05)
        assert process.poll() is None  # the step is finished first
        (tmp_path / "go").touch()
    _, err = finished(process, 128 + number)
    by = "interrupted" if name == "INT" else f"interrupted by SIG{name}"
    *first, last = (line for line in err.splitlines() if not line.startswith("warning"))
    assert first == (
        [f"{by}: this stops after the step; a second signal stops it at once"]
        if "score" in hold
        else []
    )
    assert (
        last
        == f"minigrpo train: {by}; go on with: minigrpo train --resume {shlex.quote(str(folder))}"
    )
    if variant == "kl":
        saved = {"demonstrations 3": [], "score 2": [0, 2], "score 10": [8, 10]}[hold]
        assert [int(file.stem[-6:]) for file in checkpoints(folder)] == saved
    finished(start(shlex.split(err.split("minigrpo ")[-1]), tmp_path))
    reference = (
        *reference[:-1],
        contents(folder)[-1],
    )  # the checkpoint at the interruption may be among the last two
    assert_same(folder, reference)


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_a_second_signal_does_not_wait(name, where, tmp_path):
    folder = tmp_path / "run"
    process = start([*flags("kl", where), "--out", str(folder)], tmp_path, "score 6")
    wait_for(tmp_path / "here", process)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("interrupted: this stops after the step")
    process.send_signal(signal.Signals[f"SIG{name}"])
    _, err = finished(process, 128 + signal.Signals[f"SIG{name}"])
    assert err.count("\n") == 1 and err.endswith(
        f"minigrpo train --resume {shlex.quote(str(folder))}\n"
    )
    assert [file.stem[-6:] for file in checkpoints(folder)] == ["000004", "000005"]


# -- at every single write, rename, sync and removal -----------------------------------------------


TINY = {
    "dim": 8,
    "n_layers": 1,
    "n_heads": 2,
    "group_size": 3,
    "steps": 5,
    "checkpoint_every": 2,
    "log_samples_every": 1,
}
TINY |= {
    "task": "treewalk",
    "task_options": {"depth": 2, "root": "L"},
    "eval_every": 3,
}
TINY |= {"eval_prompts": 2, "objective_options": {"beta": 0.1}}


def die_at(event):
    """Make this process kill itself at the event-th step of writing something, in the middle of it
    if it is a write.
    """
    left = [event]

    def tick(before=lambda: None):
        left[0] -= 1
        if not left[0]:
            before()
            os.kill(os.getpid(), signal.SIGKILL)

    class HalfWriter(WrappedFile):
        def __init__(self, *arguments, **options):
            tick()
            super().__init__(open(*arguments, **options))  # noqa: SIM115

        def write(self, data):
            tick(lambda: (self.file.write(data[: len(data) // 2]), self.file.flush()))
            return self.file.write(data)

    def mortal(function):
        return lambda *arguments: (tick(), function(*arguments), tick())

    files.open = runs.open = HalfWriter
    for name in ("replace", "unlink", "mkdir"):
        setattr(os, name, mortal(getattr(os, name)))
    os.fsync = lambda file: (
        tick()
    )  # what is written survives the process in any case; syncing matters when the machine dies


def train_in_child(folder, event):
    """Start or resume in a fork that dies at an event.   -> whether it died"""
    child = os.fork()
    if not child:
        die_at(event)
        train(
            TrainSettings(**TINY),
            folder,
            resume=(folder / "settings.json").exists(),
            progress=False,
        )
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return bool(status)


def kill_at_every_write(base, every):
    """For every so many events: die there, die once more while resuming, resume.   Prints how many
    events there were.
    """
    os.fsync = lambda file: None
    settings, event, died = TrainSettings(**TINY), 1, True
    train(settings, base / "whole", progress=False)
    reference = contents(base / "whole")
    while died:
        folder = base / f"run-{event}"
        died = train_in_child(folder, event)
        for file in checkpoints(folder):
            load_checkpoint(file)  # whole, if it is there at all
        if died:
            train_in_child(folder, 1 + event % 23)
            train(settings, folder, resume=(folder / "settings.json").exists(), progress=False)
        assert_same(folder, reference)
        event += every
    print(event)


def test_killed_at_every_write(tmp_path, request):
    """A third of them, for their time: pytest --long tests/test_resume.py tries all."""
    every = 1 if request.config.getoption("--long") else 3
    code = "import sys; sys.path[:0] = [sys.argv[1]]; import test_resume, pathlib; "
    code += "test_resume.kill_at_every_write(pathlib.Path(sys.argv[2]), int(sys.argv[3]))"
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path), str(every)]
    done = subprocess.run(arguments, env=os.environ | ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 80


# -- what the reference above rests on -------------------------------------------------------------


def test_the_comparison_sees_a_difference_of_one_bit(uninterrupted, where):
    variant, reference = uninterrupted
    bits = dict(reference[0])
    dtype, data = bits["v"]
    changed = np.frombuffer(data, dtype=dtype).copy()
    changed[7] = np.nextafter(changed[7], np.inf, dtype=dtype)
    bits["v"] = (dtype, changed.tobytes())
    assert_same(where / f"{variant}-whole", reference)
    with pytest.raises(AssertionError):
        assert_same(where / f"{variant}-whole", (bits, *reference[1:]))


def test_resuming_a_finished_run_changes_nothing(uninterrupted, where):
    variant, reference = uninterrupted
    assert main(["train", "--resume", str(where / f"{variant}-whole")]) == 0
    assert_same(where / f"{variant}-whole", reference)
