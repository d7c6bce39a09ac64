"""Checking all chapters, and a class; the notes for a teacher; what a course hands out."""

# ruff: noqa: F811 (a fixture that is imported and an argument have the same name)

import ast
import csv
import inspect
import io
import json
import os
import shutil
import site
import subprocess
import sys
import time
import zipfile
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FunctionType, SimpleNamespace

import numpy as np
import pytest
from test_cli import run  # noqa: F401
from test_exercises import one_server  # noqa: F401

from minigrpo.command.cli import main
from minigrpo.course.grading import Answer, WrongAnswer
from minigrpo.course.isolation import _flatten
from minigrpo.course.runner import CHAPTERS, RIGHT, WRONG, tasks_of, verdict
from minigrpo.system.user_code import run_file

ROOT = Path(__file__).parent.parent
classes = run_file(ROOT / "tutorials/grade.py", "grade_a_class")
bundles = run_file(ROOT / "tutorials/bundles.py", "bundles_of_a_course")
TEXTBOOK = ("tree", "rewards", "objectives", "ops", "transformer", "sampler", "trainer")
SOLUTIONS, STUBS = ROOT / "tutorials/solutions", ROOT / "tutorials/exercises"


def copied(folder, *chapters, source=SOLUTIONS):
    folder.mkdir(parents=True, exist_ok=True)
    for chapter in chapters:
        shutil.copy(source / f"{chapter}.py", folder)
    return folder


def report_on(run, *arguments):
    code, out, err = run("check", *arguments, "--json")
    assert err == ""
    found = json.loads(out)
    assert found["points"] == sum(task["points"] for task in found["tasks"])
    assert found["of"] == len(found["tasks"])
    assert code == (0 if found["points"] == found["of"] else 1)
    return found


# -- one student -----------------------------------------------------------------------------------


def test_a_missing_chapter_counts_nothing_and_ends_nothing(run, tmp_path):
    folder = copied(tmp_path / "mine", "ch01", "ch08")
    copied(folder, "ch02", source=STUBS)
    (folder / "ch03.py").write_text("def f(:\n", encoding="utf-8")
    code, out, err = run("check", "all", folder)
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[0] == "ch01 policy gradients             all 4 tasks are right"
    assert lines[1].endswith("0 of 5 tasks are right; 5 to do")
    assert lines[2].endswith("0 of 5 tasks are right; 5 not right yet")
    assert "ch03.py cannot be imported: SyntaxError: invalid syntax" in lines[3]
    assert lines[4].endswith("0 of 5 tasks are right; 5 missing")
    assert lines[5].strip() == "there is no ch04.py"
    assert lines[-1] == "9 of 40 tasks are right; 5 not right yet, 5 to do, 21 missing"
    found = report_on(run, "all", folder)
    assert (found["points"], found["of"]) == (9, 40)
    assert [t.partition(".py")[0][-4:] for t in found["troubles"]] == ["ch03", *list(CHAPTERS)[3:7]]


def test_of_several_files_the_one_that_counts_is_told(run, tmp_path):
    copied(tmp_path / "final", "ch01", "ch02")
    copied(tmp_path / "backup/old", "ch01", source=STUBS)
    copied(tmp_path / "draft", "ch02", source=STUBS)
    (tmp_path / "draft/ch02.py").write_text("def f(:\n", encoding="utf-8")
    found = report_on(run, "all", tmp_path)
    nearest, first = tmp_path / "final/ch01.py", tmp_path / "draft/ch02.py"
    assert found["points"] == 4
    assert found["troubles"][0] == f"{nearest} was checked, of 2 files of its name"
    assert found["troubles"][1].startswith(f"{first} cannot be imported: SyntaxError")
    assert found["troubles"][1].endswith(f"; {first} was checked, of 2 files of its name")


def test_a_file_that_may_not_be_read_ends_nothing(run, tmp_path, monkeypatch):
    folder, copy = copied(tmp_path, "ch01", "ch02"), shutil.copyfile

    def refused(path, to):
        if path.name == "ch01.py":
            raise PermissionError(13, "Permission denied", str(path))
        return copy(path, to)

    monkeypatch.setattr(shutil, "copyfile", refused)
    found = report_on(run, "all", folder)
    assert found["points"] == 5
    assert "Permission denied" in found["troubles"][0]


def test_no_chapter_at_all_is_a_wrong_folder(run, tmp_path):
    code, out, err = run("check", "all", tmp_path)
    assert (code, out) == (2, "")
    assert "there is no file" in err and err.count("\n") == 1


def test_what_an_answer_prints_is_shown_above_its_verdict(run, tmp_path):
    file = copied(tmp_path, "ch01") / "ch01.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text + "\nprint('at import \\x1b[2J λ')\n", encoding="utf-8")
    lines = run("check", "ch01", file, "--task", 1)[1].splitlines()
    assert lines[0].startswith("at import \\x1b[2J ")
    assert lines[1] == "ch01 task 1: gradient of the expected reward … right"
    assert report_on(run, "ch01", file)["tasks"][3]["printed"] == "at import \x1b[2J λ\n"


IMPORTS = {
    "from minigrpo.objectives import advantages": "imports minigrpo.objectives.advantages (line 1)",
    "import minigrpo": "imports minigrpo (line 1)",
    "import numpy, minigrpo.rewards as r": "imports minigrpo.rewards (line 1)",
    "def f():\n    from minigrpo import step_rewards": "imports minigrpo.step_rewards (line 2)",
    "import importlib as i; i.import_module('mini' + 'grpo.objectives')": "loads minigrpo.",
    "__import__('minigrpo.tree')": "loads minigrpo.tree",
    "try: import solutions.ch01\nexcept ImportError: pass": "imports solutions.ch01 (line 1)",
    "try: from tutorials.solutions import ch01\nexcept ImportError: pass": "imports tutorials.",
}


@pytest.mark.parametrize("line", IMPORTS)
def test_imports_of_the_package_are_noted(line, run, tmp_path):
    file = copied(tmp_path, "ch01") / "ch01.py"
    file.write_text(f"{line}\n{file.read_text(encoding='utf-8')}", encoding="utf-8")
    found = report_on(run, "ch01", file, "--task", 2)
    assert found["points"] == 1
    assert found["tasks"][0]["notes"][0].startswith(IMPORTS[line])
    said = run("check", "ch01", file, "--task", 2)[1]
    assert f"Note: {IMPORTS[line]}" in " ".join(said.split())
    found = report_on(run, "ch01", file, "--task", 2, "--strict")
    assert found["points"] == 0
    assert "expected an answer of your own" in found["tasks"][0]["message"].lower()


@pytest.mark.parametrize("line", ["import numpy as minigrpo", "import minigrpo_of_mine", "x = 1"])
def test_nothing_else_is_noted(line, run, tmp_path):
    file = copied(tmp_path, "ch01") / "ch01.py"
    (tmp_path / "minigrpo_of_mine.py").write_text("x = 1\n")
    file.write_text(f"{line}\n{file.read_text(encoding='utf-8')}", encoding="utf-8")
    assert [t["notes"] for t in report_on(run, "ch01", file, "--strict")["tasks"]] == [[]] * 4


def test_an_answer_may_use_its_neighbours(run, tmp_path):
    copied(tmp_path, "ch01")
    (tmp_path / "ch01.py").rename(tmp_path / "helper.py")
    (tmp_path / "ch01.py").write_text("from helper import *\n")
    assert run("check", "ch01", tmp_path)[0] == 0


def test_a_link_is_no_answer(run, tmp_path):
    """Nor is one beside it, as to another student's file."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "ch01.py").symlink_to(SOLUTIONS / "ch01.py")
    assert "ch01.py is a link" in run("check", "ch01", folder)[2]
    assert "40 missing" in run("check", "all", folder)[1]
    (folder / "ch01.py").unlink()
    (folder / "other.py").symlink_to(SOLUTIONS / "ch01.py")
    (folder / "ch01.py").write_text("from other import *\n")
    assert "No module named 'other'" in run("check", "ch01", folder)[2]


def test_libraries_and_packages_of_a_user_are_found(run, tmp_path, monkeypatch):
    """In a folder of PYTHONPATH at home, and where pip install --user puts them."""
    home, libraries = tmp_path / "home", tmp_path / "home/libraries"
    copied(libraries / "library-1.dist-info")
    (libraries / "library.py").write_text("x = 1\n")
    (home / "own.py").write_text("x = 1\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(libraries), str(home)]))
    monkeypatch.setattr(sys, "path", [str(libraries), str(home), *sys.path])
    monkeypatch.setattr(site, "USER_BASE", str(home / "local"))
    file = copied(home / "mine", "ch01") / "ch01.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(f"import library, os\nprint(os.environ['PYTHONUSERBASE'])\n{text}")
    found = report_on(run, "ch01", file)
    assert (found["points"], found["tasks"][0]["printed"]) == (4, f"{home / 'local'}\n")
    file.write_text(f"import own\n{text}", encoding="utf-8")
    assert "may not read this file" in run("check", "ch01", file)[2]


OF_OTHER_TYPES = {  # by chapter and function
    ("ch03", "verify"): np.asarray,
    ("ch08", "tokens_until_stop"): np.asarray,
    ("ch04", "kl_estimates"): lambda got: np.array(got, dtype=object),
    ("ch04", "token_weights"): lambda got: np.array(got, dtype=object),
    ("ch08", "blockwise_logp"): lambda got: np.array(got, dtype=object),
}


@pytest.mark.parametrize(("chapter", "name"), OF_OTHER_TYPES)
def test_a_right_answer_may_be_an_array_of_one_number_or_of_objects(chapter, name):
    """Such as np.where gives, or a list of fractions."""
    right = getattr(run_file(SOLUTIONS / f"{chapter}.py", f"right_{chapter}"), name)
    (task,) = (task for task in tasks_of(chapter) if task.function == name)

    def graded(made):
        answer = SimpleNamespace(**{name: lambda *arguments: made(right(*arguments))})
        return verdict("", task, answer)

    made = OF_OTHER_TYPES[chapter, name]
    assert graded(made).state == RIGHT, graded(made).message
    wrong = graded(lambda got: made(np.asarray(got, dtype=float) + 1))
    assert wrong.state == WRONG
    assert "expected " in wrong.message.lower() and "looked at" not in wrong.message


@pytest.mark.parametrize("kind", [str, lambda i: i + 0.5])
def test_texts_and_fractions_are_no_members(kind):
    right = run_file(SOLUTIONS / "ch05.py", "right_ch05").process_sets_by_hand()
    made = [([kind(i) for i in members], start, end) for members, start, end in right]
    found = verdict("", tasks_of("ch05")[0], SimpleNamespace(process_sets_by_hand=lambda: made))
    assert found.state == WRONG and "expected a triple" in found.message.lower()


@pytest.mark.parametrize("flags", [("--seconds", "-1"), ("--memory", "much"), ("--closed",)])
def test_bad_limits_are_one_line(flags, run):
    code, out, err = run("check", "ch01", SOLUTIONS, *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)


# -- a class ---------------------------------------------------------------------------------------


@pytest.fixture
def handed_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "handed in"
    copied(folder / "Ada", "ch01", "ch02")
    copied(folder / "Bob_12_file/my work/exercises", "ch01")
    copied(folder / "=cmd()", "ch03", source=STUBS)
    (folder / "Cy").mkdir()
    (folder / "Dan").mkdir()
    (folder / "Dan/ch01.py").write_text("import os; os._exit(0)")
    (folder / "Eve").mkdir()
    stolen = folder / "Ada/ch01.py"
    (folder / "Eve/ch01.py").write_text(f"exec(open({str(stolen)!r}).read())\n")
    (folder / "Eve/ch02.py").symlink_to(folder / "Ada/ch02.py")
    (folder / "Fay").symlink_to(folder / "Ada")
    (folder / "__MACOSX").mkdir()
    (folder / ".git").mkdir()
    (folder / "list.txt").write_text("Ada\n")
    return folder


@pytest.fixture
def grade(capsys):
    """Grade a class.   -> exit message, output"""

    def run(*arguments):
        capsys.readouterr()
        try:
            classes.main(list(map(str, arguments)))
        except SystemExit as error:
            return error.code, capsys.readouterr().out
        return None, capsys.readouterr().out

    return run


@pytest.fixture
def here(monkeypatch):
    """Students are checked in this process, which is faster: --processes has to be 1."""

    def done(command, **_):
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            code = main(command[command.index("minigrpo") + 1 :])
        return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())

    monkeypatch.setattr(classes, "subprocess", SimpleNamespace(run=done, DEVNULL=None))


def table(path="grades.csv"):
    with open(path, encoding="utf-8", newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


def test_a_class_is_a_table(grade, handed_in):
    code, out = grade("handed in", "--reports", "told", "--processes", 2)
    assert (code, out.splitlines()) == (
        None,
        [
            "6 students, 2.2 of 40 points in the mean: grades.csv",
            "1 of them handed in nothing that can be checked: column troubles",
        ],
    )
    rows = table()
    assert list(rows) == ["'=cmd()", "Ada", "Bob_12_file", "Cy", "Dan", "Eve"]
    assert {row["of"] for row in rows.values()} == {"40"}
    assert [row["points"] for row in rows.values()] == ["0", "9", "4", "0", "0", "0"]
    ada = rows["Ada"]
    assert [ada[chapter] for chapter in CHAPTERS] == ["4", "5", "0", "0", "0", "0", "0", "0"]
    assert sum(int(ada[task]) for task in classes.TASKS) == 9
    assert rows["Cy"]["troubles"].startswith("nothing could be checked: minigrpo check: there is")
    assert "ended the process" in rows["Dan"]["troubles"]
    assert "may not read this file" in rows["Eve"]["troubles"]
    assert "there is no ch02.py" in rows["Eve"]["troubles"]
    told = Path("told/Ada.txt").read_text(encoding="utf-8")
    assert told.startswith("9 of 40 points\nch01 task 1: gradient of the expected reward … right\n")
    assert len(list(Path("told").iterdir())) == 6


def test_a_note_is_of_each_chapter(grade, here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for chapter in ("ch01", "ch03", "ch04"):
        file = copied(tmp_path / "class/Ada", chapter) / f"{chapter}.py"
        text = file.read_text(encoding="utf-8")
        file.write_text("import minigrpo\n" * (chapter != "ch03") + text, encoding="utf-8")
    assert grade("class", "--processes", 1)[0] is None
    notes = "ch01 task 4 imports minigrpo (line 1); ch04 task 5 imports minigrpo (line 1)"
    assert table()["Ada"]["notes"] == notes


@pytest.fixture
def asked(monkeypatch):
    """The students who are checked; the checks are left out."""
    names = []

    def graded(student, digest, flags, reports):
        names.append(student.name)
        if names[-1] == "Bob_12_file" and len(names) == 3:
            for _ in range(6000):
                if list(table()) == ["=cmd()", "Ada"]:  # the two before are written
                    raise KeyboardInterrupt
                time.sleep(0.01)
        row = {"student": student.name, "files": digest, "points": len(names)}
        return student.name, dict.fromkeys(classes.COLUMNS, "") | row

    monkeypatch.setattr(classes, "_graded", graded)
    return names


def test_rows_that_are_there_stay(grade, handed_in, asked):
    (handed_in / "Bob_12_file").rename(handed_in / "Bob")
    assert grade(handed_in)[0] is None
    first = Path("grades.csv").read_text(encoding="utf-8")
    assert sorted(asked) == ["=cmd()", "Ada", "Bob", "Cy", "Dan", "Eve"]
    assert grade(handed_in)[0] is None
    assert (len(asked), Path("grades.csv").read_text(encoding="utf-8")) == (6, first)
    copied(handed_in / "Cy", "ch01")
    shutil.rmtree(handed_in / "Dan")
    assert grade(handed_in)[0] is None
    assert asked[6:] == ["Cy"]
    assert list(table()) == ["=cmd()", "Ada", "Bob", "Cy", "Eve"]
    for flags in (["--strict"], ["--seconds", "9"]):  # what the rows depend on, besides the files
        del asked[:]
        assert grade(handed_in, *flags)[0] is None
        assert len(asked) == 5


def test_an_interruption_loses_no_row(grade, handed_in, asked):
    assert "the same command goes on with it" in grade(handed_in, "--processes", 1)[0]
    assert list(table()) == ["=cmd()", "Ada"]
    asked[:] = ["nobody"]
    assert grade(handed_in, "--processes", 1)[0] is None
    assert asked == ["nobody", "Bob_12_file", "Cy", "Dan", "Eve"]
    assert len(table()) == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("gone", "gone"),
        ("empty", "empty holds no folders: give one that holds a folder per student"),
        ("class --csv other.csv", "other.csv is another table: give --csv a name that is free"),
        ("class --csv binary.csv", "binary.csv is another table: give --csv a name that is free"),
        ("class --csv nul.csv", "nul.csv is another table: give --csv a name that is free"),
        ("class --csv gone/grades.csv", "gone/grades.csv"),
        ("class --seconds -1", "nothing could be checked: minigrpo check: argument --seconds"),
    ],
)
def test_bad_input_is_one_line(arguments, words, grade, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    copied(tmp_path / "class/Ada", "ch01")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "binary.csv").write_bytes(b"\x89PNG\xff")
    (tmp_path / "nul.csv").write_text("a\0b\n1,2\n" + "x" * 200_000)
    code, out = grade(*arguments.split())
    assert (out, code.count("\n")) == ("", 0)
    assert words in code
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only there may a name be any bytes")
def test_a_name_that_is_no_utf_8(grade, tmp_path, monkeypatch):
    """As archives made on Windows leave it."""
    monkeypatch.chdir(tmp_path)
    copied(tmp_path / "class" / os.fsdecode(b"M\xfcller"), "ch01")
    for _ in range(2):
        assert grade("class", "--reports", "told")[0] is None
        assert [row["points"] for row in table().values()] == ["4"]
        assert list(table()) == ["M\\udcfcller"]


def test_a_folder_of_any_name_and_with_the_reports_in_it(grade, here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copied(tmp_path / "__class/Ada", "ch01")
    for _ in range(2):
        assert grade("__class", "--reports", "__class/told", "--processes", 1)[0] is None
        assert {name: row["points"] for name, row in table().items()} == {"Ada": "4"}


def test_a_class_whose_name_begins_as_a_flag(grade, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copied(tmp_path / "-class/Ada", "ch01")
    assert grade("./-class", "--csv=./-t.csv", "--reports=./-told")[0] is None
    assert table("./-t.csv")["Ada"]["points"] == "4"


@pytest.mark.skipif(os.name == "nt", reason="names that Windows does not allow")
def test_names_that_are_no_flags_formulas_or_lines(grade, here, tmp_path, monkeypatch):
    folder = tmp_path / "class"
    long = "n" * 255
    for name in ("-x", "--help", "=1", "\t1", "a\rb", "a\nb", long):
        copied(folder / name, "ch01")
    monkeypatch.chdir(folder)
    for _ in range(2):
        flags = "--csv", "../grades.csv", "--reports", "../told", "--processes", 1
        assert grade(".", *flags)[0] is None
        rows = table("../grades.csv")
        assert list(rows) == ["'\t1", "'--help", "'-x", "'=1", "a\nb", "a\\rb", long]
        assert {row["points"] for row in rows.values()} == {"4"}
        assert not any(row["troubles"].startswith(classes.FORMULAS) for row in rows.values())
    assert len(list((tmp_path / "told").iterdir())) == 7


def test_who_hands_in_everything_hands_in_the_exercises(grade, here, tmp_path, monkeypatch):
    """Not the package's checks or solutions, which have the same names."""
    monkeypatch.chdir(tmp_path)
    for place in ("Ada", "Bob/minigrpo-main"):
        copied(tmp_path / "class" / place / "tutorials/exercises", "ch01", "ch04")
        for room in ("minigrpo/course", ".venv/lib/python3/site-packages/minigrpo/course"):
            copied(tmp_path / "class" / place / room, *CHAPTERS, source=ROOT / "minigrpo/course")
        copied(tmp_path / "class" / place / "tutorials/solutions", *CHAPTERS)
    copied(tmp_path / "class/Cy/tutorials/work/mine", "ch01")  # behind solutions, and deeper
    copied(tmp_path / "class/Cy/tutorials/solutions", *CHAPTERS)
    assert grade("class", "--processes", 1)[0] is None
    assert [row["points"] for row in table().values()] == ["9", "9", "4"]


@pytest.mark.skipif(os.name == "nt", reason="paths that Windows does not allow")
def test_folders_a_thousand_deep_in_what_is_handed_in(grade, here, tmp_path, monkeypatch):
    monkeypatch.chdir(copied(tmp_path / "class/Ada", "ch01"))
    for _ in range(1200):
        os.mkdir("d")
        os.chdir("d")
    monkeypatch.chdir(tmp_path)
    try:
        assert grade("class", "--processes", 1)[0] is None
        assert table()["Ada"]["points"] == "4"
    finally:
        _flatten(str(tmp_path))  # which pytest could not remove


def test_a_damaged_row_is_made_anew(grade, handed_in, asked):
    (handed_in / "Bob_12_file").rename(handed_in / "Bob")
    assert grade(handed_in)[0] is None
    whole = Path("grades.csv").read_text(encoding="utf-8")
    for damage in ("Ada\n", "Ada," + 99 * ","):  # too few cells, too many
        Path("grades.csv").write_text(whole.replace("Ada,", damage, 1), encoding="utf-8")
        del asked[:]
        assert grade(handed_in)[0] is None
        assert asked == ["Ada"]


def test_a_file_that_cannot_be_read_ends_nothing(grade, tmp_path, monkeypatch, asked):
    """It is told in the row; here, where files are hashed, it must not end the others."""
    monkeypatch.chdir(tmp_path)
    for name in ("Ada", "Eve"):
        copied(tmp_path / f"class/{name}", "ch01")
    read = Path.read_bytes

    def refused(path):
        if "Eve" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert grade("class")[0] is None
    assert sorted(asked) == ["Ada", "Eve"]


def test_an_answer_reads_no_grades(grade, here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("Ada", "Eve"):
        copied(tmp_path / f"class/{name}", "ch01")
    for path in ("grades.csv", "told/Ada.txt"):
        text = f"raise ValueError(open({str(tmp_path / path)!r}).read())"
        (tmp_path / "class/Eve/ch01.py").write_text(text)
        assert grade("class", "--reports", "told", "--processes", 1)[0] is None
        assert "may not read this file" in table()["Eve"]["troubles"]


def test_what_could_not_be_checked_is_tried_again(grade, tmp_path, monkeypatch):
    """An interruption, or a machine without memory, is no reason to keep a row."""
    monkeypatch.chdir(tmp_path)
    copied(tmp_path / "class/Ada", "ch01")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", shutil.which("false"))
        assert "nothing could be checked" in grade("class")[0]
    assert grade("class")[0] is None
    assert table()["Ada"]["points"] == "4"


def test_a_huge_neighbour_is_not_copied(run, tmp_path):
    folder = copied(tmp_path, "ch01")
    with (folder / "other.py").open("wb") as file:
        file.truncate(1 << 40)
    assert run("check", "ch01", folder)[0] == 0


# -- what is handed out ----------------------------------------------------------------------------


def bundle(kind, out, *flags):
    bundles.main([kind, str(out), *flags])


def test_students_get_no_answers(tmp_path):
    bundle("students", tmp_path / "students")
    names = {f.relative_to(tmp_path / "students").as_posix() for f in tmp_path.rglob("*.*")}
    assert {"START.md", "pyproject.toml", "minigrpo/course/ch05.py"} <= names
    assert {f"tutorials/exercises/{chapter}.py" for chapter in CHAPTERS} <= names
    chapters = len(list((ROOT / "tutorials").glob("*.ipynb")))
    assert len([name for name in names if name.endswith(".ipynb")]) == chapters
    rooms = {Path(name).parts[0] for name in names}
    assert rooms.isdisjoint({"tests", ".git", ".venv"})
    course = {name for name in names if name.startswith("tutorials/")}
    assert not [name for name in course if "solution" in name or "README" in Path(name).parts[1]]
    secrets = {line for f in SOLUTIONS.glob("ch*.py") for line in f.read_text("utf-8").split("\n")}
    for name in course:
        if name.startswith("tutorials/exercises"):
            lines = (tmp_path / "students" / name).read_text("utf-8").split("\n")
            assert not {line for line in lines if line.startswith("    return")} & secrets
    code = "from minigrpo.command.cli import main; main(['check', 'ch01'])"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "students")}
    options = dict(cwd=tmp_path / "students", env=environment, encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, **options)
    assert done.stdout.splitlines()[-1].startswith("0 of 4 tasks are right; 4 to do")


def functions_of(file):
    """The functions that a notebook defines, without running what is slow."""
    space = {"__name__": file.stem}
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        lines = cell["source"] if cell["cell_type"] == "code" else ()
        code = ast.parse("".join(line for line in lines if not line.startswith(("%", "!"))))
        for node in code.body:
            if not isinstance(node, ast.FunctionDef | ast.Import | ast.ImportFrom):
                continue
            with suppress(
                ImportError, NameError
            ):  # IPython is an extra; a default may be a variable
                exec(compile(ast.Module([node], []), str(file), "exec"), space)
    own = {name: f for name, f in space.items() if isinstance(f, FunctionType)}
    return {f"{file.stem}: {name}": f for name, f in own.items() if f.__globals__ is space}


def functions_of_the_package():
    """The functions of the textbook, by their names."""
    modules = [import_module(f"minigrpo.{name}") for name in TEXTBOOK]
    found = [(f"{m.__name__}.{name}", f) for m in modules for name, f in vars(m).items()]
    return {name: f for name, f in found if isinstance(f, FunctionType)}


@cache
def stubs_of(chapter):
    """The module of the functions to fill in."""
    return run_file(STUBS / f"{chapter}.py", f"stubs_{chapter}")


@cache
def first_arguments(chapter, name):
    """What a check first asks its function with."""
    given = []

    def asked(*arguments):
        given.append(arguments)
        raise ValueError

    (task,) = (task for task in tasks_of(chapter) if task.function == name)
    assert verdict("", task, SimpleNamespace(**{name: asked})).state == WRONG
    return given[0]


def answers_as_it_stands(task, function):
    """Whether a function that was written for something else passes.

    Most raise when they are first asked, and are then asked no more, as a check takes its time.
    """
    chapter = task.check.__module__[-4:]
    wanted = inspect.signature(getattr(stubs_of(chapter), task.function))
    try:
        inspect.signature(function).bind(*wanted.parameters)
        Answer(function).ask("", *first_arguments(chapter, task.function))
    except (TypeError, WrongAnswer):
        return False
    answers = SimpleNamespace(**{task.function: function}, __file__="")
    return verdict("", task, answers).state == RIGHT


@cache
def shown_to_students():
    """What the notebooks and the package define, by name."""
    found = functions_of_the_package()
    for file in (ROOT / "tutorials").glob("0*.ipynb"):
        found |= functions_of(file)
    return found


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_nothing_that_students_get_is_an_answer_as_it_stands(chapter):
    """The chapters show the mathematics, and the package has it, but with other arguments."""
    candidates = shown_to_students()
    assert len(candidates) > 100
    tasks = tasks_of(chapter)
    solutions = run_file(SOLUTIONS / f"{chapter}.py", f"solutions_{chapter}")
    for task in tasks:
        assert answers_as_it_stands(task, getattr(solutions, task.function))
        found = [name for name, f in candidates.items() if answers_as_it_stands(task, f)]
        assert not found, (task.title, found)


def test_the_guide_names_the_functions_of_the_engine_that_are_answers():
    """Beside the textbook the package has what two tasks ask for, which a note tells if loaded."""
    modules = [
        import_module(f"minigrpo.engine.{file.stem}")
        for file in (ROOT / "minigrpo/engine").glob("[a-z]*.py")
    ]
    candidates = {f"{m.__name__}.{name}": f for m in modules for name, f in vars(m).items()}
    candidates = {name: f for name, f in candidates.items() if isinstance(f, FunctionType)}
    found = {
        f.__name__
        for task in [task for chapter in CHAPTERS for task in tasks_of(chapter)]
        for f in candidates.values()
        if answers_as_it_stands(task, f)
    }
    guide = (ROOT / "tutorials/README.md").read_text(encoding="utf-8")
    assert found == {"lambda_weights", "rotate_neighbours"}
    assert "`lambda_weights` is an answer to chapter 6, task 2, `rotate_neighbours` to" in guide


def test_archives_are_the_same_each_time_and_hold_the_same(tmp_path):
    archives = [tmp_path / "one.zip", tmp_path / "two.zip"]
    for archive in archives:
        bundle("gradescope", archive)
    assert archives[0].read_bytes() == archives[1].read_bytes()
    bundle("gradescope", tmp_path / "folder")
    with zipfile.ZipFile(archives[0]) as file:
        assert {"setup.sh", "run_autograder", "results.py"} <= set(file.namelist())
        assert file.getinfo("run_autograder").external_attr >> 16 == 0o100755
        for name in file.namelist():
            assert (tmp_path / "folder" / name).read_bytes() == file.read(name)


def test_teachers_get_everything(tmp_path):
    command = [sys.executable, ROOT / "tutorials/bundles.py", "teachers", tmp_path / "all.zip"]
    assert subprocess.run(command).returncode == 0
    with zipfile.ZipFile(tmp_path / "all.zip") as file:
        names = set(file.namelist())
    listed = ["tutorials/solutions/ch05.py", "tests/test_exercises.py", "tutorials/README.md"]
    for name in (*listed, ".pre-commit-config.yaml"):
        assert name in names
    assert not [name for name in names if "__pycache__" in name]


@pytest.mark.skipif(os.name == "nt", reason="Gradescope's machines have a POSIX shell")
def test_gradescope_reads_the_results(tmp_path):
    """A stand-in for /autograder; what setup.sh would install is this environment."""
    source = tmp_path / "source"
    bundle("gradescope", source, "--chapter", "5", "--chapter", "ch01")
    (source / "venv/bin").mkdir(parents=True)
    python = source / "venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "results").mkdir()
    submission = copied(tmp_path / "submission/handed in", "ch01")
    text = (submission / "ch01.py").read_text(encoding="utf-8")
    text = f"import minigrpo.tree\nprint('hello')\n{text}\ndef best_baseline(*_): 1 / 0\n"
    (submission / "ch01.py").write_text(text, encoding="utf-8")
    environment = {**os.environ, "AUTOGRADER": str(tmp_path)}
    subprocess.run([source / "run_autograder"], env=environment, check=True)
    found = json.loads((tmp_path / "results/results.json").read_text(encoding="utf-8"))
    assert found["score"] == 3
    assert [t["score"] for t in found["tests"]] == [1, 1, 0, 1, *[0] * 6, 0]
    assert [t["max_score"] for t in found["tests"]] == [*[1] * 10, 0]
    assert "ZeroDivisionError" in found["tests"][2]["output"]
    assert "Your code printed:\nhello" in found["tests"][2]["output"]
    assert found["tests"][-1]["visibility"] == "hidden"
    assert "imports minigrpo.tree" in found["tests"][-1]["output"]
    shutil.rmtree(submission)
    subprocess.run([source / "run_autograder"], env=environment, check=True)
    found = json.loads((tmp_path / "results/results.json").read_text(encoding="utf-8"))
    assert (found["score"], found["tests"]) == (0, [])
    assert "there is no file" in found["output"]


def test_the_workflow_for_github_classroom(tmp_path):
    yaml = pytest.importorskip("yaml", reason="reads the workflow with PyYAML")
    bundle("classroom", tmp_path / "c")
    text = (tmp_path / "c/.github/workflows/classroom.yml").read_text(encoding="utf-8")
    job = yaml.safe_load(text)["jobs"]["run-autograding-tests"]
    steps = [step for step in job["steps"] if "command" in step.get("with", {})]
    assert [step["with"]["max-score"] for step in steps] == [1] * 40
    reporter = job["steps"][-1]
    ids = reporter["with"]["runners"].split(",")
    assert ids == [step["id"] for step in steps]
    assert list(reporter["env"]) == [f"{name.upper()}_RESULTS" for name in ids]
    assert len(list((tmp_path / "c/exercises").iterdir())) == 8
    command = steps[4]["with"]["command"].replace("python", sys.executable, 1).split()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "c/grader")}
    done = subprocess.run(command, cwd=tmp_path / "c", env=environment, capture_output=True)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0].startswith(b"ch02 task 1: backward of softmax ")
    (tmp_path / "c/minigrpo").mkdir()  # of a student, beside the grader's
    (tmp_path / "c/minigrpo/__main__.py").write_text("")
    assert subprocess.run(command, cwd=tmp_path / "c", env=environment).returncode == 1


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (classes.main, [""]),
        (classes.main, ["class", "--csv", ""]),
        (classes.main, ["class", "--reports", " "]),
        (bundles.main, ["students", ""]),
    ],
)
def test_an_empty_name_is_not_the_folder_one_is_in(main, words, tmp_path, monkeypatch, capsys):
    """A variable of a shell that is not set."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2 and "the name is empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bundles_refuse_what_they_cannot_do(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    for arguments, words in (
        (("students", tmp_path / "full"), "is there already"),
        (("students", tmp_path / "new", "--chapter", "ch01"), "handed out whole"),
        (("gradescope", tmp_path / "new", "--chapter", "ch09"), "there is no chapter 'ch09'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            bundle(*arguments)
        assert words in stopped.value.code and "\n" not in stopped.value.code
