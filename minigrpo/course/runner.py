"""Finding a student's file, running its checks, and reporting: `minigrpo check ch05`."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from minigrpo.course.grading import Task, WrongAnswer
from minigrpo.course.isolation import Desk, Limits
from minigrpo.system.files import shipped, write_output
from minigrpo.system.terminal import clean
from minigrpo.system.user_code import explain

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
RIGHT, WRONG, TO_DO, MISSING = "right", "not right yet", "to do", "missing"
NOT_THEIRS, DEEPEST = {("minigrpo", "course"), ("tutorials", "solutions")}, 50  # of folders
LIMITS, LONGEST = Limits(), 3000  # characters of a message


@dataclass(frozen=True)
class Verdict:
    """The result of one task; the message says what is wrong."""

    task: str  # "ch05 task 2: process set of a token"
    state: str  # RIGHT, WRONG, TO_DO or MISSING
    message: str = ""
    notes: tuple[str, ...] = ()  # what a teacher should look at: "loads minigrpo.objectives"
    printed: str = ""  # the beginning of what the student's code printed

    @property
    def points(self) -> int:
        """1 for a right answer, else 0."""
        return int(self.state == RIGHT)

    def text(self) -> str:
        """One line, and below it what is wrong."""
        wrap = textwrap.TextWrapper(110, " " * 4, " " * 6, break_long_words=False)
        lines = clean(self.message[:LONGEST]).splitlines() + [f"Note: {n}." for n in self.notes]
        below = [piece for line in lines for piece in wrap.wrap(line)]
        return "\n".join([f"{self.task} … {self.state}", *below])


def tasks_of(chapter: str) -> list[Task]:
    """The tasks of a chapter, in order; task 1 comes first."""
    checks = vars(import_module(f"minigrpo.course.{chapter}")).values()
    return [check for check in checks if isinstance(check, Task)]


def check(
    chapter: str,
    path: str | None = None,
    task: int | None = None,
    limits: Limits = LIMITS,
    strict: bool = False,
) -> list[Verdict]:
    """Check the tasks of a chapter, or one of them, counted from 1, in the student's file.

    chapter: its name, or the path of its file.  path: the file, or a folder that holds chNN.py;
    None looks for it (see `find`).
    limits: what each task may take.  strict: an answer with a note (see `Verdict`) is not right.
    Raises ValueError for an unknown chapter or task, and for a file that is missing or no Python.
    """
    chapter, path = chosen(chapter, path)
    tasks = dict(enumerate(tasks_of(chapter), start=1))
    if task is not None and task not in tasks:
        raise ValueError(f"{chapter} has no task {task}: its tasks are 1 to {len(tasks)}")
    with Desk(limits) as desk:
        return checked(desk, chapter, find(chapter, path), task, strict)


def check_all(
    files: Mapping[str, Sequence[Path]], limits: Limits = LIMITS, strict: bool = False
) -> Iterator[tuple[str, list[Verdict], str]]:
    """Check all chapters, whose files may be missing.   -> chapter, verdicts, what its file lacks

    A chapter without a file, or whose first file cannot be run, is not right.  Others are told.
    """
    with Desk(limits) as desk:
        for chapter in CHAPTERS:
            state, trouble = MISSING, f"there is no {chapter}.py"
            if own := files.get(chapter):
                told = f"{own[0]} was checked, of {len(own)} files of its name" * (len(own) > 1)
                try:
                    yield chapter, checked(desk, chapter, own[0], None, strict), told
                    continue
                except (ValueError, OSError) as error:
                    state, trouble = WRONG, "; ".join(filter(None, [str(error), told]))
            labels = [f"{chapter} task {n}: {t.title}" for n, t in enumerate(tasks_of(chapter), 1)]
            yield chapter, [Verdict(label, state, trouble) for label in labels], trouble


def checked(
    desk: Desk, chapter: str, file: Path, task: int | None = None, strict: bool = False
) -> list[Verdict]:
    """Check tasks of a file, each in a process of its own."""
    if file.suffix != ".py":
        raise ValueError(f"{file} is no Python file: its name must end in .py")
    verdicts = []
    for n, asked in enumerate(tasks_of(chapter), start=1):
        if task in (None, n):
            with desk.task(file, asked.function) as (answer, printed):
                function = answer if answer.is_function else None
                answers = SimpleNamespace(**{asked.function: function})
                found = verdict(f"{chapter} task {n}: {asked.title}", asked, answers)
                if not function:
                    hint = meant(asked.function, chapter, answer.alike)
                    found = replace(found, message=found.message + hint)
                found = replace(found, notes=answer.imports or answer.notes, printed=printed())
            if strict and found.notes and found.state == RIGHT:
                problem = f"Expected an answer of your own, got a file that {found.notes[0]}."
                found = replace(found, state=WRONG, message=problem)
            verdicts.append(found)
    return verdicts


def meant(asked: str, chapter: str, alike: Sequence[str]) -> str:
    """A hint at what a file may have in place of the function that is asked for."""
    others = {task.function for task in tasks_of(chapter)} - {asked}
    name = next((name for name in alike if name not in others), None)
    if name == asked:
        return "\nHint: it has a def of this name: is that indented, or the name used again below?"
    return f"\nHint: it has def {name}(…): is that its name misspelt?" if name else ""


def verdict(label: str, task: Task, answers: ModuleType | SimpleNamespace) -> Verdict:
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
        return Verdict(label, WRONG, str(error)[:LONGEST])
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
        where = ", and name that folder after it" * Path(name).is_dir()
        told = f"choose from {', '.join(CHAPTERS)}, or all{where}"
        raise ValueError(f"there is no chapter {name!r}: {told}")
    return chapter


def chosen(name: str, path: str | None) -> tuple[str, str | None]:
    """The chapter and the path, also where the path of a file stands for its chapter: my/ch01.py"""
    chapter = Path(name).stem.lower()
    if chapter == name.lower() or chapter not in CHAPTERS:
        return chapter_name(name), path
    if path is not None:
        raise ValueError(f"{name!r} names a file, so {path!r} is one too many: give one file")
    if not Path(name).expanduser().exists():
        raise ValueError(f"there is no file {name!r}: give its path, or minigrpo check {chapter}")
    return chapter, name


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


def find_all(folder: str | None) -> dict[str, list[Path]]:
    """The student's files by chapter.   Raises ValueError if there is none at all.

    Without a folder, where `find` looks; else anywhere in it, first that nearest to its top.
    """
    files, below = {}, python_files(Path(folder).expanduser()) if folder is not None else []
    for chapter in CHAPTERS:
        if folder is None:
            with suppress(ValueError):
                files[chapter] = [find(chapter, None)]
        else:
            found = [file for file in below if file.name == f"{chapter}.py"]
            files[chapter] = sorted(found, key=lambda file: (len(file.parts), file))
    return files if any(files.values()) else {"": [find("ch01", folder)]}


def python_files(folder: Path) -> list[Path]:
    """The Python files below a folder, but for links, what is hidden, and the course's own."""
    found, left, too_deep = [], [folder], DEEPEST + len(folder.parts)
    while left:
        with suppress(OSError), os.scandir(left.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_file(follow_symlinks=False):
                    found += [path] * (path.suffix == ".py")
                elif entry.is_dir(follow_symlinks=False) and len(path.parts) < too_deep:
                    is_hidden = path.name.startswith(("__", ".ipy"))
                    left += [path] * (not is_hidden and path.parts[-2:] not in NOT_THEIRS)
    return sorted(found)


def write_exercises(folder: str | Path) -> tuple[int, int]:
    """Write the files to fill in, except where one is there already.   -> written, left"""
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    new = [f"{chapter}.py" for chapter in CHAPTERS if not (folder / f"{chapter}.py").exists()]
    for name in new:
        write_output(folder / name, shipped(f"tutorials/exercises/{name}").read_bytes())
    return len(new), len(CHAPTERS) - len(new)


def report(verdicts: Sequence[Verdict], troubles: Sequence[str] = ()) -> dict[str, Any]:
    """Points and verdicts as data for JSON.   troubles: what chapters' files lack"""
    tasks = [asdict(verdict) | {"points": verdict.points} for verdict in verdicts]
    points = {"points": sum(v.points for v in verdicts), "of": len(verdicts)}
    return points | {"tasks": tasks, "troubles": list(troubles)}


def summary(verdicts: Sequence[Verdict]) -> str:
    """How far the student has come, and what to do next."""
    states = [v.state for v in verdicts]
    n, right = len(states), states.count(RIGHT)
    if n == 1 or right == n:
        return states[0] if n == 1 else f"all {n} tasks are right"
    rest = [f"{states.count(s)} {s}" for s in (WRONG, TO_DO, MISSING) if s in states]
    return f"{right} of {n} tasks {'is' if right == 1 else 'are'} right; {', '.join(rest)}"
