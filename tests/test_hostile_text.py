"""What comes from outside steers no terminal: whatever a command prints, only line ends and tabs
are left of control characters.
"""

# ruff: noqa: F811 (a fixture that is imported and an argument have the same name)

import io
import json
import os
import sys
import unicodedata

import pytest
from test_cli import TINY, run, stored  # noqa: F401

from minigrpo.command import cli
from minigrpo.experiments import parallel
from minigrpo.runs.checkpoint import checkpoints
from minigrpo.system import terminal

# A colour, the title of the window, C1's CSI, a bell, backspaces, a line that is written over, text
# that runs backwards, nothing.
NASTY = "\x1b[31m\x1b]0;owned\x07\x9b2J\x07ab\b\bcd\rover"
NASTY += "\u202egnp.exe\u2066x\u200b\ufeff\u2028y\x7f\x00"
ON_DISK = os.fsdecode(NASTY.replace("\x00", "").encode())  # also where this process has ASCII alone
TASK = f"""
from minigrpo.tasks.treewalk import TreeWalk
NASTY = {NASTY!r}
class Mine(TreeWalk):
    def score(self, rollouts):
        print("a scorer says " + NASTY)
        return super().score(rollouts)
class Broken(TreeWalk):
    def score(self, rollouts):
        raise KeyError(NASTY)
class Loud(TreeWalk):
    def __init__(self):
        raise ValueError(NASTY)
class Exits(TreeWalk):
    def score(self, rollouts):
        raise SystemExit(NASTY)
"""


@pytest.fixture(scope="module")
def foreign(stored, tmp_path_factory):
    """Files and runs whose names and contents are hostile."""
    where = tmp_path_factory.mktemp("foreign") / ON_DISK
    where.mkdir()
    (where / f"{ON_DISK}.py").write_text(TASK, encoding="utf-8")
    (where / "answers.py").write_text(f"raise KeyError({NASTY!r})", encoding="utf-8")
    group = {"completions": [f"a{NASTY}", f"b{NASTY}"], "rewards": [1, 0], "prompt": NASTY}
    (where / "group.json").write_text(json.dumps(group), encoding="utf-8")
    rows = [
        {"step": s, "prompt": NASTY, "completion": f"{c}{NASTY}", "reward": c, f"r{NASTY}": 1}
        for s in (1, 2)
        for c in (0, 1)
    ]
    (where / "log.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    unknown = [{f"k{NASTY}": 1, f"l{NASTY}": NASTY}] * 2
    (where / "unknown.jsonl").write_text("\n".join(map(json.dumps, unknown)), encoding="utf-8")
    assert (
        cli.main(
            [
                "train",
                "--task",
                f"{where / ON_DISK}.py:Mine",
                *map(str, TINY[2:]),
                "--out",
                str(where / "run"),
            ]
        )
        == 0
    )
    return where


COMMANDS = {
    "training": "train --task {py}:Mine --steps 1 --out {w}/new",
    "resuming": "train --resume {w}/run",
    "a run that is there": "train --task {py}:Mine --out {w}/run",
    "a task that fails": "train --task {py}:Broken --steps 1",
    "a task that exits": "train --task {py}:Exits --steps 1",
    "a task that cannot be made": "train --task {py}:Loud",
    "a class that is not there": "train --task {py}:{n}",
    "an option": "train --task-option {n}=1",
    "an objective": "train --objective {n}",
    "a setting": "train --dtype {n}",
    "a number": "train --steps {n}",
    "evaluate": "evaluate {w}/run --prompts 2",
    "sample": "sample {w}/run --group-size 2 --out {w}/f.png",
    "a prompt": "sample {w}/run --prompt {n}",
    "a folder without a run": "evaluate {w}/{n}",
    "a group": "tree {w}/group.json --html {w}/{n}.html",
    "a log": "tree {w}/log.jsonl --show 5",
    "fields": "tree {w}/unknown.jsonl",
    "a field": "tree {w}/log.jsonl --reward-name {n}",
    "a step": "tree {w}/log.jsonl --step {n}",
    "plot": "plot {w}/run --out {w}/{n}.png",
    "watching": "plot {w}/run --watch --out {w}/{n}.html",
    "labels": "plot {w}/run --key reward --label {n} --smooth 2 --out {w}/{n}.png",
    "a metric": "plot {w}/run --key {n}",
    "a figure": "plot {w}/run --out {w}/{n}",
    "export": "export {w}/run --out {w}/{n}",
    "exercises": "exercises --out {w}/ex{n}",
    "the walk": "walk --out {w}/{n}.html",
    "answers": "check ch05 {w}/answers.py",
    "a chapter": "check {n}",
    "no such command": "{n}",
    "no such flag": "tree x --{n}",
    "pull": "pull {n}",
    "bench": "bench --workload {n}",
    "reproduce": "reproduce {n}",
    "no such file": "tree {w}/{n}{n}",
}


def steers(character):
    return unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") and character not in "\n\t"


@pytest.mark.parametrize("what", COMMANDS)
def test_nothing_from_outside_steers_the_terminal(what, foreign, run, monkeypatch):
    names = {"w": foreign, "n": ON_DISK, "py": foreign / f"{ON_DISK}.py"}
    words = [word.format(**names) for word in COMMANDS[what].split()]
    size = [
        "--group-size",
        "4",
        "--prompts-per-step",
        "1",
        "--dim",
        "8",
        "--n-layers",
        "1",
        "--n-heads",
        "2",
    ]
    code, out, err = run(*words, *(size if words[0] == "train" and "--resume" not in words else []))
    assert code in (0, 1, 2)
    assert {c for c in out + err if steers(c)} == set()
    assert err.count("\n") == (code == 2)


def test_what_the_tests_above_would_see(foreign, run, monkeypatch):
    """Without the cleaning, hostile text does reach the streams."""
    monkeypatch.setattr(terminal, "clean", lambda text: text)
    for line in ("evaluate {w}/run --prompts 2", "tree x --{n}", "export {n} --out x"):
        out, err = run(*(word.format(w=foreign, n=ON_DISK) for word in line.split()))[1:]
        assert {c for c in out + err if steers(c)} >= {"\x1b", "\x07", "\x7f"}


class Screen(io.StringIO):
    """A terminal, which is asked whether it is one."""

    def isatty(self):
        return True


def test_bars_alone_move_the_cursor(foreign, monkeypatch):
    """A bar on a terminal begins its line anew, but not its title or what is printed above."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    words = [
        "train",
        "--task",
        f"{foreign / ON_DISK}.py:Mine",
        *map(str, TINY[2:]),
        "--out",
        str(foreign / "shown"),
    ]
    assert cli.main(words) == 0 and len(checkpoints(foreign / "shown")) == 2
    shown = screen.getvalue()
    assert "lambda_grpo on " in shown or "grpo on " in shown
    assert {c for c in shown if steers(c)} == {"\r"}
    assert "\rover" not in shown and "\\rover" in shown


def test_a_line_above_a_bar_clears_it_first(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)

    def command():
        for _ in terminal.bar(range(1), f"title {NASTY}", "step"):
            terminal.say(f"said {NASTY}", sys.stderr)
        return 0

    assert terminal.on_any_terminal(command) == 0
    before, said, _ = screen.getvalue().partition("said ")
    assert said and before.endswith("\r")  # the bar's line was wiped
    assert {c for c in screen.getvalue() if steers(c)} == {"\r"}


def test_titles_of_parallel_jobs(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    assert parallel.run_jobs(max, [], title=NASTY) == []
    list(terminal.bar([1], NASTY, "run"))
    assert {c for c in screen.getvalue() if steers(c)} == {"\r"}


@pytest.mark.parametrize("text", ["plain", "Ünïcödé λ │├└─ 模型 🌲", "a\tb\nc\n", "e\u0301"])
def test_ordinary_text_is_left_as_it_is(text):
    assert terminal.clean(text) == text


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("run", "run"),
        ("a b", "'a b'"),
        ("a\nb'", r"$'a\x0ab\x27'"),
        ("\x1b\u202e", r"$'\x1b\xe2\x80\xae'"),
    ],
)
def test_a_path_as_a_shell_reads_it_back(path, word):
    assert terminal.quoted(path) == word
