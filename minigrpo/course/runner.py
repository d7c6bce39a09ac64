"""Finding a student's file, running its checks, and reporting: `minigrpo check ch05`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from minigrpo.course.grading import Task, WrongAnswer
from minigrpo.system.files import shipped, write_output
from minigrpo.system.user_code import explain, named, run_file

CHAPTERS = {
    "ch01": "policy gradients",
    "ch02": "a transformer by hand",
    "ch03": "rollouts",
    "ch04": "GRPO from scratch",
    "ch05": "a group is a tree",
    "ch06": "the flaw and the fix",
    "ch07": "the theorem as a speed-up",
    "ch08": "a real language model",
}
RIGHT, WRONG, TO_DO = "right", "not right yet", "to do"


@dataclass(frozen=True)
class Verdict:
    """The result of one task; the message says what is wrong."""

    task: str  # "ch05 task 2: process set of a token"
    state: str  # RIGHT, WRONG or TO_DO
    message: str = ""

    def text(self) -> str:
        """One line, and below it what is wrong."""
        wrap = textwrap.TextWrapper(
            110, initial_indent="    ", subsequent_indent="      ", break_long_words=False
        )
        below = [piece for line in self.message.splitlines() for piece in wrap.wrap(line)]
        return "\n".join([f"{self.task} … {self.state}", *below])


def tasks_of(chapter: str) -> list[Task]:
    """The tasks of a chapter, in order; task 1 comes first."""
    checks = vars(import_module(f"minigrpo.course.{chapter}")).values()
    return [check for check in checks if isinstance(check, Task)]


def check(chapter: str, path: str | None = None, task: int | None = None) -> list[Verdict]:
    """Check the tasks of a chapter, or one of them, counted from 1, in the student's file.

    path: the file, or a folder that holds chNN.py; None looks for it (see `find`).
    Raises ValueError for an unknown chapter or task, and for a file that is missing or no Python.
    """
    chapter = chapter_name(chapter)
    tasks = dict(enumerate(tasks_of(chapter), start=1))
    if task is not None and task not in tasks:
        raise ValueError(f"{chapter} has no task {task}: its tasks are 1 to {len(tasks)}")
    answers = load(find(chapter, path))
    return [
        verdict(f"{chapter} task {n}: {tasks[n].title}", tasks[n], answers)
        for n in (tasks if task is None else [task])
    ]


def verdict(label: str, task: Task, answers: ModuleType) -> Verdict:
    """Check one task of a student's file."""
    function = getattr(answers, task.function, None)
    if not callable(function):
        problem = f"Expected def {task.function}(…), as in the stub, got a file without it."
        return Verdict(label, WRONG, problem)
    try:
        task.grade(function)
    except NotImplementedError as error:
        return Verdict(label, TO_DO, str(error) if str(error) != label else "")
    except WrongAnswer as error:
        return Verdict(label, WRONG, str(error))
    except (Exception, SystemExit) as error:  # of an answer's own type, such as its __repr__
        got = explain(error, getattr(answers, "__file__", ""))
        problem = f"Expected an answer that can be looked at and compared, got {got}."
        return Verdict(label, WRONG, problem)
    return Verdict(label, RIGHT)


def chapter_name(name: str) -> str:
    """ "ch05" from "ch05", "5" or "05".   Raises ValueError for an unknown chapter."""
    digits = name.lower().removeprefix("ch")
    chapter = f"ch{int(digits):02}" if digits.isascii() and digits.isdigit() else name
    if chapter not in CHAPTERS:
        raise ValueError(f"there is no chapter {name!r}: choose from {', '.join(CHAPTERS)}, or all")
    return chapter


def find(chapter: str, path: str | None) -> Path:
    """The student's file of a chapter.   Raises ValueError if there is none.

    Without a path: in tutorials/exercises or exercises of this folder and those above, or here.
    """
    if path is not None:
        file = Path(path).expanduser()
        file = file / f"{chapter}.py" if file.is_dir() else file
        if not file.is_file():
            raise ValueError(f"there is no file {str(file)!r}: give the path of your {chapter}.py")
        return file
    above = [Path(*[".."] * n) for n in range(len(Path.cwd().parts))]
    folders = [up / name for up in above for name in ("tutorials/exercises", "exercises")]
    for file in (folder / f"{chapter}.py" for folder in [*folders, Path()]):
        if file.is_file():
            return file
    raise ValueError(
        f"found no tutorials/exercises/{chapter}.py from here: change to the repository, or give "
        "the path of your file (minigrpo exercises writes files to fill in)"
    )


def write_exercises(folder: str | Path) -> tuple[int, int]:
    """Write the files to fill in, except where one is there already.   -> written, left"""
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    new = [f"{chapter}.py" for chapter in CHAPTERS if not (folder / f"{chapter}.py").exists()]
    for name in new:
        write_output(folder / name, shipped(f"tutorials/exercises/{name}").read_bytes())
    return len(new), len(CHAPTERS) - len(new)


def load(file: Path) -> ModuleType:
    """Run a student's file as a module.   Raises ValueError, with the line, if Python cannot."""
    name = f"minigrpo_exercises_{file.stem}"
    if file.suffix != ".py":
        raise ValueError(f"{file} is no Python file: its name must end in .py")
    try:
        with named(f"{file} cannot be imported"):
            return run_file(file, name)
    finally:
        sys.modules.pop(name, None)


def summary(verdicts: Sequence[Verdict]) -> str:
    """How far the student has come, and what to do next."""
    states = [v.state for v in verdicts]
    n, right = len(states), states.count(RIGHT)
    if right == n:
        return "right" if n == 1 else f"all {n} tasks are right"
    rest = [f"{states.count(state)} {state}" for state in (WRONG, TO_DO) if state in states]
    return f"{right} of {n} tasks {'is' if right == 1 else 'are'} right; {', '.join(rest)}"
