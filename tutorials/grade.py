"""A class: a folder with a folder per student, checked side by side into one table.

    python tutorials/grade.py HANDED_IN [--csv grades.csv] [--reports FOLDER] [--processes N]

A student's files may lie anywhere in the student's folder.  The table has the points in all, by
chapter and by task (a task is a point: weigh them in a spreadsheet), notes on imports of the
package or of a solution, and what could not be checked.  It is written anew after each student, and
the same command goes on with it: a row stays while the student's files, the flags and the checks
are the same.  --reports: also write what each student may read.  --strict, --seconds and --memory
are those of `minigrpo check`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from minigrpo.command.flags import path
from minigrpo.course import runner
from minigrpo.course.isolation import LARGEST_SOURCE, ROOT
from minigrpo.course.runner import CHAPTERS, Verdict, tasks_of
from minigrpo.system.files import make_folder, write_output
from minigrpo.system.terminal import bar

TASKS = {
    f"{chapter} task {n}": task.title
    for chapter in CHAPTERS
    for n, task in enumerate(tasks_of(chapter), start=1)
}
COLUMNS = ["student", "points", "of", *CHAPTERS, *TASKS, "notes", "troubles", "files"]
FORMULAS = ("=", "+", "-", "@", "\t")  # a spreadsheet computes a text that begins so
LONGEST_NAME = 200  # bytes of a report's name, of 255 that most systems allow
ESCAPED = "backslashreplace"  # a name may be no UTF-8
UNCHECKED = "nothing could be checked:"
Row = dict[str, str | int]


def grade(
    folder: Path, table: Path, flags: Sequence[str], reports: Path | None, processes: int | None
) -> list[Row]:
    """Write the table.   -> its rows

    Each student is checked by a process of its own, `minigrpo check all` with these flags.
    Raises ValueError if the folder holds no folders, or the file is another table.
    """
    students = [f for f in sorted(folder.iterdir()) if f.is_dir() and not f.is_symlink()]
    students = [f for f in students if not f.name.startswith((".", "__"))]
    students = [f for f in students if not (reports and f.resolve() == reports.resolve())]
    if not students:
        raise ValueError(f"{folder} holds no folders: give one that holds a folder per student")
    known: dict[str, Row] = {}
    if table.exists():
        try:
            lines = csv.DictReader(io.StringIO(table.read_bytes().decode(), newline=""))
            found = list(lines) if lines.fieldnames == COLUMNS else None
        except (csv.Error, UnicodeDecodeError):
            found = None
        if found is None:
            raise ValueError(f"{table} is another table: give --csv a name that is free")
        whole = [row for row in found if None not in (*row, *row.values())]
        rows_there = [row for row in whole if not row["troubles"].startswith(UNCHECKED)]
        known = {row["files"]: row for row in rows_there}
    if reports:
        make_folder(reports)
    rows: dict[str, Row] = {}

    def write() -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows))
        write_output(table, text.getvalue().encode(errors=ESCAPED))

    digests = {student: _digest(student, flags) for student in students}
    for student, digest in digests.items():
        if digest in known and not (reports and not _report(reports, student).exists()):
            rows[student.name] = known[digest]
    write()
    closed = [f"--closed={path}" for path in (table, reports) if path]
    left = [(f, d, [*flags, *closed], reports) for f, d in digests.items() if f.name not in rows]
    pool = ThreadPoolExecutor(processes or os.cpu_count())
    try:
        jobs = [pool.submit(_graded, *arguments) for arguments in left]
        for job in bar(as_completed(jobs), "grading", "student", total=len(jobs)) if jobs else ():
            student, row = job.result()
            rows[student] = row
            write()
    finally:
        pool.shutdown(cancel_futures=True)
    return [rows[name] for name in sorted(rows)]


def _digest(student: Path, flags: Sequence[str]) -> str:
    """A hash of what a row depends on: the name, the files, the flags and the checks."""
    digest = hashlib.sha256(repr([student.name, *flags]).encode())
    checks = sorted(Path(runner.__file__).parent.glob("*.py"))
    for file in [*checks, *runner.python_files(student)]:
        text = b""
        with suppress(OSError):  # what cannot be read is told in the row
            text = file.read_bytes() if file.stat().st_size <= LARGEST_SOURCE else b""
        digest.update(repr([str(file), text]).encode())
    return digest.hexdigest()[:16]


def _report(reports: Path, student: Path) -> Path:
    """Where a student's report is written."""
    name = os.fsencode(student.name)
    if len(name) > LONGEST_NAME:
        name = name[:LONGEST_NAME] + b"-" + hashlib.sha256(name).hexdigest()[:8].encode()
    return reports / f"{os.fsdecode(name)}.txt"


def _graded(
    student: Path, digest: str, flags: Sequence[str], reports: Path | None
) -> tuple[str, Row]:
    """Check a student in another process.   -> the name, the row"""
    paths = filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)])
    given = os.path.join(os.curdir, student)  # else a name that begins with - is a flag
    command = [sys.executable, "-P", "-X", "utf8", "-m", "minigrpo", "check", "all", given]
    done = subprocess.run(
        [*command, "--json", f"--closed={student.parent}", *flags],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    trouble = f"{UNCHECKED} {done.stderr.strip()[-300:]} (exit code {done.returncode})"
    found = {"points": 0, "of": len(TASKS), "tasks": [], "troubles": [trouble]}
    with suppress(ValueError):
        found = json.loads(done.stdout)
    points = {task["task"].partition(":")[0]: task["points"] for task in found["tasks"]}
    labels = [(task["task"].partition(":")[0], task["notes"]) for task in found["tasks"]]
    notes = {(label[:4], note): f"{label} {note}" for label, noted in labels for note in noted}
    row: Row = dict.fromkeys(COLUMNS, 0) | points | {key: found[key] for key in ("points", "of")}
    row |= {
        chapter: sum(points.get(task, 0) for task in TASKS if chapter in task)
        for chapter in CHAPTERS
    }
    texts = {"student": student.name, "troubles": "; ".join(found["troubles"])}
    texts |= {"notes": "; ".join(notes.values())}
    row |= {
        key: "'" * text.startswith(FORMULAS) + text.replace("\r", "\\r")  # some write it as it is
        for key, text in texts.items()
    }
    row |= {"files": digest}
    if reports:
        texts = [Verdict(t["task"], t["state"], t["message"]).text() for t in found["tasks"]]
        text = "\n".join([f"{row['points']} of {row['of']} points", *texts, *found["troubles"], ""])
        write_output(_report(reports, student), text.encode(errors=ESCAPED))
    return student.name, row


def main(arguments: Sequence[str] | None = None) -> None:
    """Grade a class."""
    parser = argparse.ArgumentParser(description="grade a class")
    parser.add_argument("folder", help="a folder that holds a folder per student", type=path)
    table = "the table (default: grades.csv)"
    parser.add_argument("--csv", help=table, default="grades.csv", type=path)
    parser.add_argument("--reports", help="a folder for what each student may read", type=path)
    parser.add_argument("--processes", help="so many at a time (default: a core each)", type=int)
    parser.add_argument(
        "--seconds", help="what a task may take (default: 10)", default=10.0, type=float
    )
    parser.add_argument(
        "--memory", help="GB that a task may take (default: 2)", default=2.0, type=float
    )
    parser.add_argument("--strict", help="what has a note is not right", action="store_true")
    a = parser.parse_args(arguments)
    flags = ["--seconds", str(a.seconds), "--memory", str(a.memory), *["--strict"] * a.strict]
    try:
        reports = Path(a.reports) if a.reports else None
        rows = grade(Path(a.folder), Path(a.csv), flags, reports, a.processes)
    except (ValueError, OSError) as error:
        sys.exit(f"grade.py: {error}")
    except KeyboardInterrupt:
        sys.exit("grade.py: interrupted; the same command goes on with it")
    unchecked = [row for row in rows if str(row["troubles"]).startswith(UNCHECKED)]
    if len(unchecked) == len(rows):
        sys.exit(f"grade.py: {unchecked[0]['troubles']}")
    mean = sum(int(row["points"]) for row in rows) / len(rows)
    print(f"{len(rows)} students, {mean:.1f} of {len(TASKS)} points in the mean: {a.csv}")
    if unchecked:
        print(f"{len(unchecked)} of them handed in nothing that can be checked: column troubles")


if __name__ == "__main__":
    main()
