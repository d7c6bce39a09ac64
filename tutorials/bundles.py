"""What a course hands out, as a folder, or as an archive if OUT ends with .zip.

    python tutorials/bundles.py students OUT      # the package, notebooks, exercises; no solutions
    python tutorials/bundles.py teachers OUT      # the whole repository
    python tutorials/bundles.py gradescope OUT    # an autograder: upload the archive as it is
    python tutorials/bundles.py classroom OUT     # the repository of a GitHub Classroom assignment

--chapter ch05 (may be repeated) takes these chapters' exercises alone, in the last two.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from minigrpo.command.flags import path
from minigrpo.course.runner import CHAPTERS, chapter_name, tasks_of
from minigrpo.system.files import write_output

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = ROOT / "tutorials/autograder"
PACKAGE = ("minigrpo/**/*",)
INSTALLABLE = (*PACKAGE, "results/*.json", "benchmarks/results.json", "pyproject.toml", "setup.py")
INSTALLABLE += ("README.md", "LICENSE", "CITATION.cff", "MANIFEST.in")
FOR_STUDENTS = (
    "*.ipynb",
    "one_page.py",
    "context.md",
    "LICENSE.md",
    "own_work/*",
    "exercises/*.py",
)
KEPT_OUT = ("__pycache__", ".ipynb_checkpoints")
Files = dict[str, bytes]  # by path in the bundle

STEP = """\
      - name: {title}
        id: {id}
        uses: classroom-resources/autograding-command-grader@v1
        with:
          test-name: "{title}"
          command: python -P -m minigrpo check {chapter} exercises --task {n}
          timeout: 5
          max-score: 1
"""
WORKFLOW = """\
# GitHub Classroom: one point per task.  Protect .github and grader in the assignment's settings.
name: Autograding Tests
on: [push, repository_dispatch]
permissions:
  checks: write
  actions: read
  contents: read
jobs:
  run-autograding-tests:
    runs-on: ubuntu-latest
    if: github.actor != 'github-classroom[bot]'
    env:
      PYTHONPATH: ${{{{ github.workspace }}}}/grader
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - run: pip install -r grader/requirements.txt
{steps}      - name: Autograding Reporter
        uses: classroom-resources/autograding-grading-reporter@v1
        env:
{results}        with:
          runners: {ids}
"""


def main(arguments: list[str] | None = None) -> None:
    """Write a bundle."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=list(KINDS), help="what it is for")
    parser.add_argument("out", help="a new folder, or a .zip file", metavar="OUT", type=path)
    parser.add_argument("--chapter", action="append", help="such as ch05; may be repeated")
    a = parser.parse_args(arguments)
    try:
        chapters = sorted(set(map(chapter_name, a.chapter or CHAPTERS)))
        if a.chapter and a.kind in ("students", "teachers"):
            raise ValueError(
                "--chapter is for gradescope and classroom: a course is handed out whole"
            )
        files = KINDS[a.kind](chapters)
        write(Path(a.out), files)
    except (ValueError, OSError) as error:
        sys.exit(f"bundles.py: {error}")
    print(f"{len(files)} files for {a.kind}: {a.out}")


def write(out: Path, files: Files) -> None:
    """Write a folder, or an archive.   Raises ValueError for a folder that holds something."""
    if out.suffix == ".zip":
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in files.items():
                entry = zipfile.ZipInfo(name)  # without a time, so that it is the same each time
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o100755 if is_program(data) else 0o100644) << 16
                file.writestr(entry, data)
        return write_output(out, archive.getvalue())
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: give a folder that is new, or empty")
    for name, data in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
        (out / name).chmod(0o755 if is_program(data) else 0o644)


def is_program(data: bytes) -> bool:
    """Whether a file is started by its name."""
    return data.startswith(b"#!")


def found(*patterns: str, below: str = "") -> Files:
    """The files of the repository that patterns name, by their path below a folder of it."""
    base = ROOT / below

    def of(pattern: str) -> Iterator[Path]:
        for file in sorted(base.glob(pattern)):
            if file.is_file() and not set(KEPT_OUT) & set(file.relative_to(base).parts):
                yield file

    return {
        path.relative_to(base).as_posix(): path.read_bytes() for p in patterns for path in of(p)
    }


def moved(files: Files, folder: str) -> Files:
    """The files in another folder."""
    return {f"{folder}/{name}": data for name, data in files.items()}


def students(chapters: list[str]) -> Files:
    """An installable repository without answers: no solutions, no tests, no teacher's guide."""
    start = {"START.md": (TEMPLATES / "students.md").read_bytes()}
    course = found(*FOR_STUDENTS, below="tutorials")
    return start | found(*INSTALLABLE) | moved(course, "tutorials")


def teachers(chapters: list[str]) -> Files:
    """Everything."""
    everything = ("*.md", "*.cff", "LICENSE", "*.toml", "*.py", "*.in", ".ci/*", ".github/**/*")
    everything += (".gitignore", ".pre-commit-config.yaml")
    return found(*everything, *(f"{room}/**/*" for room in ("minigrpo", "tutorials", "tests"))) | (
        found("results/*", "benchmarks/**/*", "vectors/**/*")
    )


def requirements() -> bytes:
    """What the package needs, for pip."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return "".join(f"{line}\n" for line in project["dependencies"]).encode()


def gradescope(chapters: list[str]) -> Files:
    """The autograder's archive."""
    files = found("setup.sh", "run_autograder", "results.py", below="tutorials/autograder")
    files |= {"requirements.txt": requirements(), "chapters.json": json.dumps(chapters).encode()}
    return files | moved(found(*PACKAGE), "package")


def classroom(chapters: list[str]) -> Files:
    """The repository that GitHub Classroom copies for each student."""
    tasks = [
        (chapter, n, task) for chapter in chapters for n, task in enumerate(tasks_of(chapter), 1)
    ]
    ids = [f"{chapter}-{n}" for chapter, n, _ in tasks]
    steps = "".join(
        STEP.format(
            title=f"{chapter} task {n}, {task.title}", id=f"{chapter}-{n}", chapter=chapter, n=n
        )
        for chapter, n, task in tasks
    )
    results = "".join(
        f'          {id.upper()}_RESULTS: "${{{{ steps.{id}.outputs.result }}}}"\n' for id in ids
    )
    workflow = WORKFLOW.format(steps=steps, results=results, ids=",".join(ids))
    files = {".github/workflows/classroom.yml": workflow.encode()}
    files |= moved(
        found(*(f"{chapter}.py" for chapter in chapters), below="tutorials/exercises"), "exercises"
    )
    return files | {"grader/requirements.txt": requirements()} | moved(found(*PACKAGE), "grader")


KINDS = {f.__name__: f for f in (students, teachers, gradescope, classroom)}

if __name__ == "__main__":
    main()
