"""Odd terminals and other systems: missing characters, closed pipes, closed streams, and what
Windows and macOS do differently.
"""

# ruff: noqa: F811 (a fixture that is imported and an argument have the same name)

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_model
from test_cli import LOG, TINY, run, stored  # noqa: F401
from threadpoolctl import ThreadpoolController

from minigrpo.command import cli, demo
from minigrpo.course.runner import CHAPTERS, check
from minigrpo.engine import lanes
from minigrpo.engine.lanes import run_lanes
from minigrpo.experiments import parallel
from minigrpo.runs import folder as runs
from minigrpo.system import files, terminal
from minigrpo.tasks import find_task

COMMANDS = {
    "help": ["--help"],
    "the help of a command": ["train", "--help"],
    "a group": ["tree", "{stored}/group.json"],
    "many groups": ["tree", "{stored}/log.jsonl"],
    "Theorem 1": ["equivalence"],
    "a sample": ["sample", "{stored}/one"],
    "training": ["train", *TINY],
    "an error": ["tree", "gone-λ-🌲.json"],
    "an unknown flag": ["train", "--λ🌲"],
    "no command": [],
}


def stream(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "latin-1", "utf-8"])
@pytest.mark.parametrize("what", COMMANDS)
def test_no_encoding_ends_a_command(what, encoding, stored, monkeypatch):
    arguments = [word.format(stored=stored) for word in COMMANDS[what]]
    codes, texts = [], []
    for used in ("utf-8", encoding):
        out, err = stream(used), stream(used)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        try:
            codes.append(cli.main(arguments))
        except SystemExit as stopped:
            codes.append(stopped.code)
        texts.append((out.buffer.getvalue() + err.buffer.getvalue()).decode(used))
    assert codes[0] == codes[1]
    assert texts[1] == "".join(c if can(c, encoding) else terminal.plain(c) for c in texts[0])
    assert "Traceback" not in texts[1]


def can(character, encoding):
    try:
        return character.encode(encoding) is not None
    except UnicodeEncodeError:
        return False


def test_a_tree_without_unicode_is_the_ascii_tree(stored, run, monkeypatch):
    wanted = run("tree", stored / "group.json", "--ascii")[1]
    out = stream("ascii")
    monkeypatch.setattr(sys, "stdout", out)
    cli.main(["tree", str(stored / "group.json")])
    assert out.buffer.getvalue().decode("ascii") == wanted


def test_half_a_surrogate_pair_is_printed(run):
    code, _, err = run(
        "tree", "-", stdin='{"completions": ["a\\ud83c", "ab"], "prompt": "\\udfff"}'
    )
    assert (code, err) == (0, "")


def test_standard_input_is_utf8_in_any_locale(monkeypatch, capsys):
    data = (
        json.dumps({"completions": ["λ", "μ"]}, ensure_ascii=False).replace("}", "}\r\n").encode()
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="cp1252"))
    assert cli.main(["tree", "-"]) == 0
    assert "λ" in capsys.readouterr().out


# -- pipes and closed streams, in processes of their own -------------------------------------------


def program(arguments, **options):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | options.pop(
        "env", {}
    )
    return subprocess.Popen(
        [sys.executable, "-m", "minigrpo", *map(str, arguments)], env=environment, **options
    )


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["tree", "log.jsonl"], ["tree", "log.jsonl", "--show", "3000"]],
    ids=lambda words: words[-1],
)
def test_a_reader_that_leaves(arguments, tmp_path):
    """As `| head -0`: the pipe is closed before anything is written."""
    names = ("prompt", "completion", "reward")
    rows = [
        dict(zip(names, (f"{i} {row[0]}", *row[1:]), strict=True)) for i in range(60) for row in LOG
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read, write = os.pipe()
    os.close(read)
    process = program(arguments, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert process.communicate()[1] == b""
    assert process.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(stored):
    with open("/dev/full", "wb") as full:
        process = program(["tree", stored / "group.json"], stdout=full, stderr=subprocess.PIPE)
        err = process.communicate()[1].decode()
    assert (process.returncode, err) == (
        2,
        "minigrpo: cannot write the output: No space left on device\n",
    )


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_streams_that_are_closed(name, monkeypatch, stored):
    """As `>&-`: Python has None for such a stream."""
    monkeypatch.setattr(sys, name, None)
    assert cli.main(["evaluate", str(stored / "one"), "--prompts", "2"]) == 0
    getattr(sys, name).close()


def test_without_a_home_folder(run, monkeypatch):
    def nobody(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nobody)
    code, out, err = run("train", "--model", "~nobody/model", "--task", "sums")
    assert (code, out.count("\n") < 3, err.count("\n")) == (2, True, 1)
    assert "Could not determine home directory. Write the path without ~." in err


# -- Windows ---------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_opened_needs_no_sync(tmp_path, monkeypatch, run):
    real = os.open

    def windows(path, flags, *rest, **named):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", windows)
    assert run("train", *TINY, "--out", tmp_path / "run")[0] == 0
    assert run("train", "--resume", tmp_path / "run")[0] == 0
    assert (tmp_path / "run" / "checkpoint-000004.mgc").stat().st_size > 1000


@pytest.mark.parametrize(
    ("code", "fails"),
    [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EBADF, False), (errno.EIO, True)],
)
def test_a_file_system_that_cannot_sync_folders(code, fails, tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def fsync(descriptor):
        synced.append(
            os.path.isdir(f"/proc/self/fd/{descriptor}")
            if os.path.isdir("/proc/self/fd")
            else len(synced) == 1
        )
        if synced[-1]:
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if code == errno.EIO:
        with pytest.raises(OSError, match=os.strerror(code)):
            files.write_atomically(tmp_path / "file", [b"text"])
    else:
        files.write_atomically(tmp_path / "file", [b"text"])
    assert synced == [False, True]  # the file, then its folder
    assert (tmp_path / "file").read_bytes() == b"text"


@pytest.mark.parametrize("refusals", [0, 1, 3, 4])
def test_a_file_that_another_program_has_open(refusals, tmp_path, monkeypatch):
    """Windows refuses to replace it; the old file stays until it is let go, or for good."""
    (tmp_path / "file").write_bytes(b"old")
    left, waited, real = [refusals], [], os.replace

    def replace(source, target):
        left[0] -= 1
        if left[0] >= 0:
            raise PermissionError(errno.EACCES, "Access is denied", str(target))
        real(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    monkeypatch.setattr(files.time, "sleep", waited.append)
    if refusals == 4:
        with pytest.raises(PermissionError):
            files.write_atomically(tmp_path / "file", [b"new"])
    else:
        files.write_atomically(tmp_path / "file", [b"new"])
    assert (tmp_path / "file").read_bytes() == (b"old" if refusals == 4 else b"new")
    assert len(waited) == min(refusals, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_checkpoint_that_is_being_read_is_deleted_later(tmp_path, monkeypatch):
    folder = runs.RunFolder(tmp_path / "run", {}, resume=False)
    real = Path.unlink
    busy = ["checkpoint-000001.mgc"]

    def unlink(path, missing_ok=False):
        if path.name in busy:
            raise PermissionError(errno.EACCES, "Access is denied", str(path))
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with folder:
        for step in (1, 2, 3):
            folder.save(step, {"x": np.zeros(3)}, {})
        assert [path.stem[-1] for path in runs.checkpoints(folder.path)] == ["1", "2", "3"]
        busy.clear()
        folder.save(4, {"x": np.zeros(3)}, {})
    assert [path.stem[-1] for path in runs.checkpoints(folder.path)] == ["3", "4"]


def test_names_of_files_are_allowed_on_windows(stored, run, tmp_path):
    run(
        "train",
        "--task",
        f"{stored / 'mine.py'}:Mine",
        "--log-samples-every",
        1,
        "--out",
        tmp_path / "run",
    )
    names = [path.name for path in tmp_path.rglob("*")]
    assert len(names) > 4
    assert not [
        name for name in names if set(name) & set('<>:"/\\|?*') or name.endswith((" ", "."))
    ]


def test_a_drive_in_the_name_of_a_task_file():
    with pytest.raises(
        ValueError, match=r"there is no task file 'C:\\\\tasks\\\\mine.py': check the path"
    ):
        find_task(r"C:\tasks\mine.py:Mine")


@pytest.mark.parametrize("asked", [None, 100, 8])
def test_windows_waits_for_61_processes_at_most(asked, monkeypatch):
    started = []

    class Pool:
        def __init__(self, processes, mp_context, **_):
            started.append((processes, mp_context.get_start_method()))
            raise KeyboardInterrupt

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(parallel, "MOST", 61)
    monkeypatch.setattr(parallel, "_cores", lambda: 128)
    with pytest.raises(KeyboardInterrupt):
        parallel.run_jobs(pow, [{"base": i} for i in range(200)], title="", processes=asked)
    assert started == [(min(asked or 128, 61), "spawn")]


# -- macOS, and line ends --------------------------------------------------------------------------


def test_lanes_without_a_known_blas(monkeypatch):
    """threadpoolctl knows OpenBLAS, MKL and BLIS, but not macOS's Accelerate."""
    monkeypatch.setattr(
        lanes, "_blas", lambda: ThreadpoolController().select(user_api="there is none")
    )
    assert run_lanes([lambda i=i: i * i for i in range(5)]) == [0, 1, 4, 9, 16]
    monkeypatch.setattr(lanes.os, "cpu_count", lambda: None)
    assert run_lanes([lambda: tiny_model().config.dim, lambda: 2]) == [16, 2]


def with_crlf(path):
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))


def test_files_with_windows_line_ends(stored, run, tmp_path):
    for name in ("group.json", "log.jsonl"):
        (tmp_path / name).write_bytes((stored / name).read_bytes())
        with_crlf(tmp_path / name)
        assert run("tree", tmp_path / name) == run("tree", stored / name)
    one = tmp_path / "one"
    assert run("train", *TINY, "--seed", 3, "--log-samples-every", 2, "--out", one)[0] == 0
    before = run("plot", one), run("tree", one / "samples.jsonl"), run("evaluate", one)
    for name in ("settings.json", "metrics.jsonl", "samples.jsonl"):
        with_crlf(one / name)
    assert before == (run("plot", one), run("tree", one / "samples.jsonl"), run("evaluate", one))
    assert run("train", "--resume", one)[0] == 0
    task = tmp_path / "mine.py"
    task.write_bytes((stored / "mine.py").read_bytes())
    with_crlf(task)
    assert run("train", "--task", f"{task}:Mine")[0] == 0
    run("exercises", "--out", tmp_path / "exercises")
    with_crlf(tmp_path / "exercises" / "ch05.py")
    assert [v.state for v in check("ch05", str(tmp_path / "exercises"))] == ["to do"] * 6


# -- the demo --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ValueError, KeyboardInterrupt, MemoryError], ids=lambda error: error.__name__
)
def test_a_demo_that_fails_leaves_the_last_report(error, tmp_path, monkeypatch, run):
    def fails(out, *_):
        (out / "tree.png").write_text("new")
        (out / "report.html").write_text("half")
        raise error

    for name in ("report.html", "tree.png"):
        (tmp_path / name).write_text("old")
    monkeypatch.setattr(demo, "_demo", fails)
    assert run("demo", "--out", tmp_path)[0] in (1, 2, 130)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "report.html": "old",
        "tree.png": "old",
    }
    monkeypatch.setattr(demo, "_demo", lambda out, *_: (out / "report.html").write_text("new"))
    assert run("demo", "--out", tmp_path)[0] == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "report.html": "new",
        "tree.png": "old",
    }


def test_the_exercises_are_written_and_found(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("exercises")
    assert (code, err) == (0, "")
    assert out.startswith(
        "8 files with exercises are written to exercises: "
        "fill them in, then minigrpo check ch01 exercises"
    )
    assert sorted(path.stem for path in (tmp_path / "exercises").iterdir()) == list(CHAPTERS)
    assert run("check", "ch05")[1].endswith("0 of 6 tasks are right; 6 to do (exercises/ch05.py)\n")
    (tmp_path / "exercises/ch01.py").write_text("mine = 1\n")
    (tmp_path / "exercises/ch02.py").unlink()
    assert (
        "1 files with exercises are written to exercises; "
        "7 that were there already are as they were" in run("exercises")[1]
    )
    assert (tmp_path / "exercises/ch01.py").read_text() == "mine = 1\n"
    monkeypatch.chdir(tmp_path / "exercises")
    assert run("check", "ch05")[1].endswith("(../exercises/ch05.py)\n")
    run("exercises", "--out", tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    assert run("check", "ch05")[1].endswith("(../exercises/ch05.py)\n")
    (tmp_path / "exercises").rename(tmp_path / "other")
    assert run("check", "ch05")[1].endswith("(ch05.py)\n")
    code, out, err = run("exercises", "--out", tmp_path / "mine/ch01.py")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_the_program_says_its_version(run):
    from minigrpo import __version__

    assert run("--version") == (0, f"minigrpo {__version__}\n", "")


def test_a_closed_standard_input_is_no_input():
    closed = "import sys; sys.stdin = None\n"
    closed += "from minigrpo.command.cli import main; sys.exit(main(['tree', '-']))"
    done = subprocess.run(
        [sys.executable, "-c", closed], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "no input" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the full device of Linux")
@pytest.mark.parametrize("code", [0, 1])
def test_what_a_full_device_swallows_is_told_whatever_the_command_found(code):
    command = "import sys; from minigrpo.system.terminal import on_any_terminal as run; "
    command += f"sys.exit(run(lambda: print('rows') or {code}))"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (
        2,
        "minigrpo: cannot write the output: No space left on device\n",
    )


def test_a_task_file_is_found_by_any_path_in_any_locale(tmp_path):
    folder = tmp_path / os.fsdecode("w ö".encode())  # also where this process has ASCII alone
    folder.mkdir()
    (folder / "mine.py").write_text(
        "from minigrpo.tasks.treewalk import TreeWalk\nclass Mine(TreeWalk): pass\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LC_", "LANG"))}
    env |= {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    run = [sys.executable, "-m", "minigrpo"]
    train = [
        "train",
        "--task",
        f"{folder / 'mine.py'}:Mine",
        "--steps",
        "1",
        "--dim",
        "8",
        "--out",
        "run",
    ]
    for arguments in (train, ["evaluate", "run", "--prompts", "1"]):
        done = subprocess.run(
            [*run, *arguments], cwd=tmp_path, env=env, capture_output=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
