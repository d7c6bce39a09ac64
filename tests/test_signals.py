"""Ctrl-C, SIGTERM and SIGHUP at any moment: one line, the exit code of a shell, nothing lost and
nothing half-written.

Signals in the middle of a run are in test_resume.py.
"""

# ruff: noqa: F811 (a fixture that is imported and an argument have the same name)

import importlib
import os
import signal
import subprocess
import sys
import time

import pytest
from test_cli import TINY, run, stored  # noqa: F401
from test_resume import finished, flags, start, wait_for, where  # noqa: F401

from minigrpo.command import cli, demo
from minigrpo.runs import evaluation, policy
from minigrpo.runs import train as training
from minigrpo.runs.checkpoint import checkpoints
from minigrpo.runs.settings import TrainSettings
from minigrpo.show import plots
from minigrpo.system import signals
from minigrpo.system.files import read_records

fcntl, termios = (
    pytest.importorskip("fcntl"),
    pytest.importorskip("termios"),
)  # Windows has neither, nor SIGHUP
NAMES = ("INT", "TERM", "HUP")


def number_of(name):
    return signal.Signals[f"SIG{name}"]


def raising(name, then=lambda: None):
    """A function that stands for any other, during which a signal comes."""

    def interrupted(*_, **__):
        signal.raise_signal(number_of(name))
        return then()

    return interrupted


def by(name):
    return "interrupted" if name == "INT" else f"interrupted by SIG{name}"


# -- before, beside and after the steps ------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_while_the_program_is_being_loaded(name, tmp_path):
    (tmp_path / "numpy.py").write_text(
        f"import os, signal, time; os.kill(os.getpid(), signal.SIG{name}); time.sleep(60)"
    )
    # As the script that pip makes.
    code = "import sys; from minigrpo.__main__ import main; sys.exit(main())"
    for words in (["-m", "minigrpo", "--help"], ["-c", code, "train"]):
        process = subprocess.Popen(
            [sys.executable, *words],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: [signal.signal(number_of(each), signal.SIG_DFL) for each in NAMES],
        )
        assert process.communicate(timeout=60)[1] == f"minigrpo: {by(name)}\n"
        assert process.returncode == 128 + number_of(name)


def test_nothing_large_is_loaded_before_a_signal_has_an_answer():
    code = "import sys, minigrpo.__main__; "
    code += "print(*(m for m in sys.modules if m.startswith('minigrpo') or m == 'numpy'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = ["minigrpo", "minigrpo.system", "minigrpo.system.signals", "minigrpo.__main__"]
    assert done.stdout.split() == loaded


COMMANDS = {  # what is interrupted, and where
    "a warm start": ("train {tiny} --warm-start-steps 2 --out {out}", training, "warm_start"),
    "the first evaluation": ("train {tiny} --eval-every 1 --out {out}", training, "evaluate"),
    "loading a run": ("evaluate {one}", policy, "load_run"),
    "evaluate": ("evaluate {one}", evaluation, "sample"),
    "sample": ("sample {one} --out {out}/f.png", plots, "save"),
    "a figure": ("plot {one} --out {out}/f.png", plots, "write_output"),
    "demo": ("demo --out {out}", demo, "_demo"),
    "reproduce": ("reproduce theorem --quick --out {out}", signal, "pthread_sigmask"),
    "pull": ("pull smollm2", subprocess, "run"),
}


@pytest.mark.parametrize(
    ("name", "what"), [(NAMES[i % 3], what) for i, what in enumerate(COMMANDS)]
)
def test_outside_the_steps(name, what, stored, run, tmp_path, monkeypatch):
    line, module, function = COMMANDS[what]
    out, stopped = tmp_path / "out", raising(name)
    monkeypatch.setenv("MINIGRPO_CACHE", str(out))
    monkeypatch.setattr(importlib.import_module("minigrpo.models.pull"), "_pip", lambda: ["pip"])
    monkeypatch.setattr(module, function, stopped)
    code, _, err = run(
        *line.format(tiny=" ".join(map(str, TINY)), one=stored / "one", out=out).split()
    )
    command = line.split()[0]
    hint = f"; go on with: minigrpo train --resume {out}" if command == "train" else ""
    assert (code, err) == (128 + number_of(name), f"minigrpo {command}: {by(name)}{hint}\n")
    left = {path.name.lstrip(".") for path in out.rglob("*")} if out.exists() else set()
    allowed = {
        "train": {"settings.json", "lock"},
        "reproduce": {"theorem.cache.jsonl", "theorem.cache.jsonl.lock"},
    }
    assert left == allowed.get(command, set())


@pytest.mark.parametrize("name", NAMES)
def test_while_it_waits_for_input(name, tmp_path):
    process = start(["tree", "-"], tmp_path, stdin=subprocess.PIPE)
    process.stdin.write(" " * 10**6)  # more than a pipe holds: it is being read
    process.stdin.flush()
    process.send_signal(number_of(name))
    assert finished(process, 128 + number_of(name)) == ("", f"minigrpo tree: {by(name)}\n")


def test_a_signal_leaves_the_handlers_as_they_were(run, monkeypatch):
    before = [signal.getsignal(number) for number in signals.ENDING]
    hook = sys.unraisablehook
    monkeypatch.setattr(evaluation, "sample", raising("TERM"))
    assert run("evaluate", "gone")[0] == 2
    assert [signal.getsignal(number) for number in signals.ENDING] == before
    assert sys.unraisablehook is hook


# -- in the steps ----------------------------------------------------------------------------------


TASK = {
    "task": "arithmetic",
    "task_options": {"digits": 1},
    "dim": 8,
    "n_layers": 1,
    "n_heads": 2,
    "group_size": 4,
    "steps": 3,
}


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("moment", ["append", "_save", "on_step"])
def test_between_the_look_and_the_save(moment, at, tmp_path, monkeypatch, capsys):
    """It ends the next step, or, in the last one, the run: never lost, never saved twice."""
    settings, saved, done = TrainSettings(**TASK), [], []

    def come(step):
        if step == at:
            signal.raise_signal(signal.SIGTERM)

    def save(folder, state, task):
        saved.append(state.step)
        if moment == "_save":
            come(state.step)
        real(folder, state, task)

    def append(folder, name, records):
        real_append(folder, name, records)
        if moment == "append" and name == "metrics.jsonl":
            come(records[0]["step"])

    def on_step(metrics):
        done.append(metrics["step"])
        if moment == "on_step":
            come(metrics["step"])

    real, real_append = training._save, training.RunFolder.append
    monkeypatch.setattr(training, "_save", save)
    monkeypatch.setattr(training.RunFolder, "append", append)
    settings = TrainSettings(**TASK, checkpoint_every=1 if moment == "_save" else 50)
    with pytest.raises(KeyboardInterrupt) as stopped:
        training.train(settings, tmp_path / "run", progress=False, on_step=on_step)
    assert stopped.value.args == (signal.SIGTERM,)
    last = min(at + 1, 3)
    assert done == list(range(1, last + 1))
    assert saved == ([0, *done] if moment == "_save" else [0, last])
    assert [record["step"] for record in read_records(tmp_path / "run" / "metrics.jsonl")] == done
    assert checkpoints(tmp_path / "run")[-1].stem.endswith(str(last))
    assert (
        capsys.readouterr().err
        == f"{by('TERM')}: this stops after the step; a second signal stops it at once\n"
    )


def test_under_nohup_a_hangup_is_nothing(where, tmp_path):
    process = start(
        [*flags("kl", where), "--out", str(tmp_path / "run")],
        tmp_path,
        "score 2",
        before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_for(tmp_path / "here", process)
    process.send_signal(signal.SIGHUP)
    (tmp_path / "go").touch()
    assert "interrupted" not in finished(process)[1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a terminal is made as on Linux")
def test_a_terminal_that_closes(where, tmp_path):
    """The bar of progress, the messages and the end all go to a terminal that is gone: the run is
    saved all the same.
    """
    ours, theirs = os.openpty()

    def controlled():
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    arguments = [*flags("kl", where), "--out", str(tmp_path / "run")]
    process = start(
        arguments,
        tmp_path,
        "score 2",
        before=controlled,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    wait_for(tmp_path / "here", process)
    os.close(ours)  # the kernel sends SIGHUP
    process.send_signal(signal.SIGHUP)  # and the shell once more
    (tmp_path / "go").touch()
    assert process.wait(60) == 129
    assert [file.stem[-6:] for file in checkpoints(tmp_path / "run")] == ["000000", "000002"]


# -- what Python and processes make of it ----------------------------------------------------------


def test_a_burst_does_not_disturb_the_tidying_up(monkeypatch):
    ended = []
    monkeypatch.setattr(signals, "end_at_once", ended.append)
    with signals.interrupting():
        with pytest.raises(KeyboardInterrupt) as stopped:
            signal.raise_signal(signal.SIGTERM)
        for name in NAMES:
            signal.raise_signal(number_of(name))
        assert ended == []
        monkeypatch.setattr(signals, "BURST", -1.0)
        signal.raise_signal(signal.SIGINT)
    assert ended == [signal.SIGINT]
    assert signals.exit_code(stopped.value) == 143


def test_a_signal_that_python_drops_comes_again():
    """Python prints and forgets what a __del__ or a weak reference's callback raises."""

    class Dying:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt) as stopped, signals.interrupting():
        dying = Dying()
        del dying
        signal.pause()
    assert stopped.value.args == (signal.SIGTERM,)


JOBS = """
import os, time
from pathlib import Path
def job(where, i):
    Path(where, f"{i}.new").write_text(str(os.getpid()))
    Path(where, f"{i}.new").rename(Path(where, f"here-{i}"))
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        Path(where, "seen").touch()
"""


def test_workers_end_with_their_parent(tmp_path):
    """Ctrl-C of a terminal goes to the workers, too: they must not see it, which would be a
    traceback each, and be gone.
    """
    (tmp_path / "jobs.py").write_text(JOBS)
    code = "import sys; from minigrpo.command import cli; "
    code += "from minigrpo.experiments.parallel import run_jobs; from jobs import job; "
    code += f"jobs = [{{'where': {str(tmp_path)!r}, 'i': i}} for i in range(8)]; "
    code += "cli.commands.run_reproduce = lambda _: run_jobs(job, jobs, title='', processes=2); "
    code += "sys.exit(cli.main(['reproduce', 'theorem']))"
    paths = {"PYTHONPATH": str(tmp_path)}
    options = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "start_new_session": True,
    }
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | paths, **options)
    for i in range(2):
        wait_for(tmp_path / f"here-{i}", process)
        os.kill(int((tmp_path / f"here-{i}").read_text()), signal.SIGINT)
    time.sleep(0.1)
    assert not (tmp_path / "seen").exists()
    os.killpg(process.pid, signal.SIGINT)
    _, err = finished(process, 130)
    assert err == "minigrpo reproduce: interrupted\n"
    with pytest.raises(ProcessLookupError):
        for _ in range(500):  # multiprocessing's own helper ends a moment later
            os.killpg(process.pid, 0)
            time.sleep(0.02)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is of Unix")
def test_a_scorers_processes_end_when_they_are_told_to(tmp_path):
    """Forked processes have the handlers of their parent, unless somebody takes them away."""
    task = "import multiprocessing, os\nfrom minigrpo.tasks.treewalk import TreeWalk\n"
    task += "def f(x): return x\nclass P(TreeWalk):\n    def score(self, r):\n"
    task += (
        "        with multiprocessing.get_context('fork').Pool(2) as pool: pool.map(f, range(4))\n"
    )
    task += "        return super().score(r)\n"
    (tmp_path / "pool.py").write_text(task)
    arguments = [
        "train",
        "--task",
        f"{tmp_path / 'pool.py'}:P",
        "--steps",
        "3",
        "--dim",
        "8",
        "--n-layers",
        "1",
    ]
    _, err = finished(start(arguments, tmp_path))
    assert "interrupted" not in err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is of Unix")
def test_a_forked_process_ends_however_early_it_is_told_to():
    """A pool may end a process that has only just begun; were that lost, it would wait for ever."""
    code = """if True:
        import os, signal, time
        from minigrpo.system.signals import interrupting, stopping_between_steps
        with interrupting(), stopping_between_steps():
            for _ in range(30):
                child = os.fork()
                if child == 0:
                    time.sleep(5)
                    os._exit(7)
                os.kill(child, signal.SIGTERM)
                _, status = os.waitpid(child, 0)
                assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
            was = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            assert not was, was
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_names_of_the_package_come_when_they_are_asked_for():
    code = "import minigrpo as mg, sys; assert 'numpy' not in sys.modules; "
    code += "assert set(mg.__all__) <= set(dir(mg)); [getattr(mg, name) for name in mg.__all__]; "
    code += "from minigrpo import *; assert PrefixTree is mg.tree.PrefixTree; import pickle; "
    code += "assert pickle.loads(pickle.dumps(mg.Objective)) is Objective; "
    code += "print(hasattr(mg, 'nothing'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_the_exit_code_of_the_command_is_that_of_the_program(monkeypatch):
    monkeypatch.setattr(cli, "_run", raising("HUP"))
    assert cli.main([]) == 129
