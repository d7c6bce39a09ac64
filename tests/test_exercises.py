"""The exercises of the course: a check fails on the stub and on every wrong answer, with a message
that says what is wrong, and passes on the solution.

Wrong answers are in wrong_answers/: functions <function>__<mistake>, whose docstrings have
the texts that the message must contain.
"""

# ruff: noqa: F811 (a fixture that is imported and an argument have the same name)

import ast
import doctest
import shutil
import types
from functools import cache
from pathlib import Path

import numpy as np
import other_right_answers
import pytest
from test_cli import run  # noqa: F401

from minigrpo.course.grading import Answer, WrongAnswer, text
from minigrpo.course.isolation import Desk, Limits
from minigrpo.course.runner import (
    CHAPTERS,
    RIGHT,
    TO_DO,
    WRONG,
    check,
    checked,
    tasks_of,
    verdict,
)
from minigrpo.system.user_code import run_file

ROOT = Path(__file__).parent.parent
STUBS, SOLUTIONS = ROOT / "tutorials/exercises", ROOT / "tutorials/solutions"
WRONG_ANSWERS = ROOT / "tests/wrong_answers"
TASKS = [(chapter, n, task) for chapter in CHAPTERS for n, task in enumerate(tasks_of(chapter), 1)]


@pytest.fixture(scope="module", autouse=True)
def one_server():
    """One process forks those of all commands, rather than one for each, which takes long."""
    start, leave, servers = Desk._start_server, Desk.__exit__, {}

    def started(desk):
        environment = str(desk._environment)
        if environment not in servers or servers[environment][1].fileno() < 0:  # it was stopped
            servers[environment] = start(desk)
        return servers[environment]

    def left(desk, *error):
        desk._server = None
        leave(desk, *error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Desk, "_start_server", started)
        patch.setattr(Desk, "__exit__", left)
        yield
    for process, control in servers.values():
        control.close()
        process.kill()
        process.wait()


def load(file):
    return run_file(file, f"answers_{file.stem}")


@cache
def wrong_answers(chapter):
    return load(WRONG_ANSWERS / f"{chapter}.py")


MISTAKES = [
    (chapter, n, task, name)
    for chapter, n, task in TASKS
    for name in vars(wrong_answers(chapter))
    if name.startswith(f"{task.function}__")
]
OTHER_WAYS = [
    (chapter, n, task, name, function)
    for name, function in vars(other_right_answers).items()
    for chapter, n, task in TASKS
    if name.startswith(f"{task.function}__")
]
identity = [f"{chapter}-{task.function}" for chapter, _, task in TASKS]


@pytest.fixture(scope="module")
def answers():
    return {chapter: load(SOLUTIONS / f"{chapter}.py") for chapter in CHAPTERS}


def label(chapter, n, task):
    return f"{chapter} task {n}: {task.title}"


def graded(chapter, n, task, function):
    return verdict(
        label(chapter, n, task), task, types.SimpleNamespace(**{task.function: function})
    )


# -- stubs, solutions, wrong answers ---------------------------------------------------------------


def test_there_is_enough_to_do():
    assert len(TASKS) >= 24
    assert all(len(tasks_of(chapter)) >= 3 for chapter in CHAPTERS)
    per_task = [sum(task is other for _, _, other, _ in MISTAKES) for _, _, task in TASKS]
    assert min(per_task) >= 2
    everything = [
        name
        for chapter in CHAPTERS
        for name in vars(wrong_answers(chapter))
        if "__" in name.strip("_")
    ]
    assert len(everything) == len(MISTAKES)  # none belongs to no task


@pytest.mark.parametrize(("chapter", "n", "task"), TASKS, ids=identity)
def test_the_stub_names_its_task(chapter, n, task):
    stub = getattr(load(STUBS / f"{chapter}.py"), task.function)
    with pytest.raises(NotImplementedError) as raised:
        stub(*[None] * stub.__code__.co_argcount)
    assert str(raised.value) == label(chapter, n, task)
    assert stub.__doc__.startswith(label(chapter, n, task) + ".   ")
    got = graded(chapter, n, task, stub)
    assert got.state == TO_DO
    assert got.text() == f"{label(chapter, n, task)} … to do"


@pytest.mark.parametrize(("chapter", "n", "task"), TASKS, ids=identity)
def test_the_solution_passes(chapter, n, task, answers):
    assert (
        graded(chapter, n, task, getattr(answers[chapter], task.function)).text()
        == f"{label(chapter, n, task)} … right"
    )


@pytest.mark.parametrize(
    ("chapter", "n", "task", "name", "function"), OTHER_WAYS, ids=[way[3] for way in OTHER_WAYS]
)
def test_other_ways_pass(chapter, n, task, name, function):
    assert graded(chapter, n, task, function).text() == f"{label(chapter, n, task)} … right"


@pytest.mark.parametrize(
    ("chapter", "n", "task", "name"), MISTAKES, ids=[f"{m[0]}-{m[3]}" for m in MISTAKES]
)
def test_a_wrong_answer_is_told_what_is_wrong(chapter, n, task, name):
    function = getattr(wrong_answers(chapter), name)
    got, again = graded(chapter, n, task, function), graded(chapter, n, task, function)
    assert got.state == WRONG
    assert got == again
    said = " ".join(got.text().split())
    assert said.startswith(f"{label(chapter, n, task)} … not right yet ")
    assert "expected" in said.lower()
    assert "got" in said
    assert len(said) < 900
    for words in function.__doc__.split("|"):
        assert words.strip().lower() in got.message.lower(), got.message


def single(values):
    """Numbers in single precision, in the same containers."""
    if isinstance(values, list | tuple):
        return type(values)(single(value) for value in values)
    if isinstance(values, float | np.floating) or getattr(values, "dtype", None) == np.float64:
        return np.asarray(values, dtype=np.float32)[()]
    return values


@pytest.mark.parametrize(("chapter", "n", "task"), TASKS, ids=identity)
def test_single_precision_is_right(chapter, n, task, answers):
    """Computed in float32, or only handed in as float32."""
    function = getattr(answers[chapter], task.function)

    def computed(*arguments):
        return single(function(*map(single, arguments)))

    for way in (computed, lambda *arguments: single(function(*arguments))):
        assert graded(chapter, n, task, way).text() == f"{label(chapter, n, task)} … right"


def test_1_part_in_5000_is_not_right(answers):
    """What a missing 1e-4 changes, and less, on every task that asks for real numbers."""
    exact = {"process_sets_by_hand", "process_set", "flawed_group", "placebo_weights", "draw"}
    exact |= {"completion_mask", "dead_groups", "verify", "tokens_until_stop"}

    def scaled(values):
        if isinstance(values, list | tuple):
            return type(values)(map(scaled, values))
        return np.asarray(values) * (1 + 2e-4)

    for chapter, n, task in TASKS:
        if task.function not in exact:
            right = getattr(answers[chapter], task.function)
            got = graded(chapter, n, task, lambda *a, right=right: scaled(right(*a)))
            assert got.state == WRONG, task.function


def test_the_table_of_mistakes_is_current():
    run = run_file(WRONG_ANSWERS / "table.py", "table_of_mistakes")
    assert (WRONG_ANSWERS / "README.md").read_text(encoding="utf-8") == run.table()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_another_process_changes_no_word(chapter, tmp_path, request):
    """The same messages where the answer runs by itself.

    Of each task the first wrong answer and the first other right one, for their time:
    pytest --long tests/test_exercises.py tries all.
    """
    file = tmp_path / f"{chapter}.py"
    entries = [m for m in MISTAKES if m[0] == chapter]
    entries += [(*way[:3], way[3]) for way in OTHER_WAYS if way[0] == chapter]
    if not request.config.getoption("--long"):
        entries = {(entry[1], entry in MISTAKES): entry for entry in reversed(entries)}.values()
    with Desk(Limits(60.0)) as desk:
        for _, n, task, name in entries:
            source = WRONG_ANSWERS / f"{chapter}.py"
            source = (
                source if (chapter, n, task, name) in MISTAKES else other_right_answers.__file__
            )
            text = Path(source).read_text(encoding="utf-8")
            file.write_text(f"{text}\n{task.function} = {name}\n", encoding="utf-8")
            (got,) = checked(desk, chapter, file, n)
            here = graded(chapter, n, task, getattr(load(file), task.function))
            assert (got.state, got.message) == (here.state, here.message)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_examples_of_the_stubs_are_true(chapter, answers):
    """The docstrings' examples, run with the solutions."""
    stubs, names = load(STUBS / f"{chapter}.py"), {"np": np, **vars(answers[chapter])}
    runner, n = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), 0
    for task in tasks_of(chapter):
        test = doctest.DocTestParser().get_doctest(
            getattr(stubs, task.function).__doc__, dict(names), task.function, None, 0
        )
        n += len(test.examples)
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
    assert n >= 3


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_files_are_short_and_of_one_shape(chapter, answers):
    """Stubs and solutions have the same functions with the same arguments, and nothing else."""
    stubs = load(STUBS / f"{chapter}.py")
    names = [task.function for task in tasks_of(chapter)]
    tree = ast.parse((STUBS / f"{chapter}.py").read_text(encoding="utf-8"))
    assert [node.name for node in tree.body if isinstance(node, ast.FunctionDef)] == names
    for name in names:
        code, other = getattr(stubs, name).__code__, getattr(answers[chapter], name).__code__
        assert code.co_varnames[: code.co_argcount] == other.co_varnames[: other.co_argcount]
    assert all(
        len((f / f"{chapter}.py").read_text(encoding="utf-8").splitlines()) <= 330
        for f in (STUBS, SOLUTIONS, WRONG_ANSWERS)
    )


def test_answers_may_do_what_they_like_to_their_arguments(answers):
    """Arguments are copies, so an answer that is right and untidy is still right."""
    right = answers["ch04"].group_advantages
    chapter, n, task = next(entry for entry in TASKS if entry[2].function == "group_advantages")

    def untidy(rewards):
        answer = right(rewards)
        rewards[:] = np.nan
        return answer

    assert graded(chapter, n, task, untidy).state == RIGHT
    assert graded(chapter, n, task, lambda rewards: right(rewards).tolist()).state == RIGHT


@pytest.mark.parametrize(("chapter", "n", "task"), TASKS, ids=identity)
def test_any_kind_of_answer_gets_a_message(chapter, n, task):
    """Whatever a function returns, no check stops with an error of its own."""
    kinds = [None, "x", b"x", 3, 0.5, 1j, True, [], (), {}, {1}, [[]], [None], [[1], [2, 3]]]
    kinds += [("a", "b"), (None, None), ([], []), object(), np.zeros((2, 3)), np.array(np.nan)]
    kinds += [np.array(["a"]), (1.0, [1.0]), ([[1], [2], [3]], ["a", "b", "c"]), [(1, 2)]]
    kinds += [([[1]] * 9, 7)]
    for kind in kinds:
        # For "verify" a number is right on some texts: it fails on another one.
        if not (task.function == "verify" and isinstance(kind, int)):
            got = graded(chapter, n, task, lambda *arguments, kind=kind: kind)
            assert got.state == WRONG, kind
            assert "expected" in got.message.lower(), kind


# -- messages of the comparison --------------------------------------------------------------------


def said(call, *arguments, **options):
    with pytest.raises(WrongAnswer) as raised:
        call(*arguments, **options)
    return str(raised.value)


@pytest.mark.parametrize(
    ("got", "words"),
    [
        ([[1.0, 2.0, 3.0]], "Expected shape (3,), got shape (1, 3)"),
        ([1.0, 2.0], "one missing"),
        (2.0, "an axis too few"),
        ([-1.0, -2.0, -4.0], "sign is flipped"),
        ([3.0, 6.0, 12.0], "3 times"),
        ([1.5, 2.5, 4.5], "off by the same +0.5"),
        ([2.0, 4.0, 9.0], "off by one position"),
        ([1.0, 2.0, np.nan], "nan or an infinity"),
        ([1.0, 2.0, 4.000045], "got 4.000045"),
        (["a", "b", "c"], "Expected numbers, got list"),
        ([1.0, 5.0, 4.0], "At place 1: expected 2, got 5 (1 of 3 numbers are wrong)"),
        ([1.0, 7.0, 4.0], "Hint: you took 7."),
    ],
)
def test_common_mistakes_are_recognised(got, words):
    answer = Answer(lambda: got, ("place",), {"seven": "you took 7."})
    message = said(answer.check, "something", (), np.array([1.0, 2.0, 4.0]), seven=[1.0, 7.0, 4.0])
    assert message.startswith("Given something:\n")
    assert words in message


@pytest.mark.parametrize(("got", "words"), [(3.0, "got 3."), (-2.0, "sign"), (7.5, "got 7.5.")])
def test_a_single_number_is_compared_in_the_same_way(got, words):
    message = said(Answer(lambda: got).check, "x", (), 2.0)
    assert message.startswith("Given x:\nExpected 2, got ") and words in message


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (3, "Expected a list with an array for each completion, got int"),
        ([[1, 1], []], "list of 3 arrays, got 2"),
        ([[1, 1], [], [0, 1]], "2 needs one number per token: expected shape (3,), got shape (2,)"),
        ([[1, 1], [], [0, 5, 2]], "At completion 2, position 1: expected 1, got 5"),
    ],
)
def test_rows_of_different_lengths(got, words):
    right = [np.ones(2), np.zeros(0), np.arange(3.0)]
    Answer(lambda: [[1, 1], [], [0, 1, 2]]).check("", (), right)
    assert words in said(Answer(lambda: got).check, "", (), right)


def test_what_stops_or_returns_nothing():
    def divides(n):
        return 1 / n

    assert "got None.\nHint: does the function end with" in said(Answer(lambda: None).ask, "")
    message = said(Answer(divides).ask, "n = 0", 0)
    assert "got ZeroDivisionError: division by zero (line " in message
    assert "return 1 / n" in message
    assert "can be 0" in message
    assert "got SystemExit: 0 (line " in said(Answer(lambda: exit(0)).ask, "")
    assert "keep the arguments of the stub" in said(Answer(lambda: 1).ask, "", 2)
    assert text([True, -0.0, (1.23456789, "a")]) == "[True, 0, (1.2346, 'a')]"


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A student's copy of the repository's tutorials."""
    shutil.copytree(STUBS, tmp_path / "tutorials/exercises")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tutorials"


def test_check_from_the_root_from_tutorials_and_by_path(run, desk, monkeypatch):
    code, out, err = run("check", "ch01")
    assert (code, err) == (1, "")
    assert out.splitlines()[0] == "ch01 task 1: gradient of the expected reward … to do"
    assert out.splitlines()[-1] == "0 of 4 tasks are right; 4 to do (tutorials/exercises/ch01.py)"
    for folder, path in ((desk, "exercises"), (desk / "exercises", "../exercises")):
        monkeypatch.chdir(folder)
        assert run("check", "1") == (1, out.replace("tutorials/exercises", path), "")
    assert run("check", "ch01", SOLUTIONS / "ch01.py")[0] == 0
    assert run("check", "ch01", SOLUTIONS)[1].endswith(
        f"all 4 tasks are right ({SOLUTIONS / 'ch01.py'})\n"
    )


def test_check_one_task_while_it_is_being_done(run, desk):
    file = desk / "exercises/ch04.py"
    stub = file.read_text(encoding="utf-8")
    todo = '    raise NotImplementedError("ch04 task 4: dead groups")'
    assert todo in stub
    for line, code, words in (
        ("    return (rewards == 0).all(1)", 1, "as dead as one where all are wrong"),
        (
            "    return (rewards == rewards[:, :1]).all(1)",
            0,
            "ch04 task 4: dead groups … right\nright (tutorials/exercises/ch04.py)\n",
        ),
        ("    return rewards.shape(1)", 1, "TypeError: 'tuple' object is not callable (line"),
    ):
        # The file is written again at once, so a cached module would be noticed.
        file.write_text(stub.replace(todo, line), encoding="utf-8")
        got = run("check", "ch04", "--task", 4)
        assert (got[0], got[2]) == (code, "")
        assert words in got[1]
    assert run("check", "ch04", "--task", 4)[1].endswith(
        "\nnot right yet (tutorials/exercises/ch04.py)\n"
    )
    file.write_text(stub.replace("def dead_groups", "def dead"), encoding="utf-8")
    assert (
        "Expected def dead_groups(…), as in the stub, got a file without it"
        in run("check", "ch04", "--task", 4)[1]
    )
    assert run("check", "ch04")[1].endswith(
        "0 of 5 tasks are right; 1 not right yet, 4 to do (tutorials/exercises/ch04.py)\n"
    )


LOOKS = "Hint: it has def {}(…): is that its name misspelt?"
INDENTED = "Hint: it has a def of this name: is that indented"


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("def softmx_backward(dp, p): return dp", LOOKS.format("softmx_backward")),
        ("def softmaxBackward(dp, p): return dp", LOOKS.format("softmaxBackward")),
        (
            "class Mine:\n    def softmax_backwards(self, dp, p): return dp",
            "def softmax_backwards(…)",
        ),
        ("class Mine:\n    def softmax_backward(self, dp, p): return dp", INDENTED),
        ("if False:\n    def softmax_backward(dp, p): return dp", INDENTED),
        ("def softmax_backward(dp, p): return dp\nsoftmax_backward = 3", INDENTED),
        (f"def softmax_backward{'d' * 99}(): pass\ndef softmax_bckward(): pass", "softmax_bckward"),
        # The function of another task is no misspelt one, and a far name none that is meant.
        ("def log_softmax_backward(dlogp, logp): return dlogp", ""),
        ("def mine(dp, p): return dp\nsoftmax_bckward = 3", ""),
        ("", ""),
    ],
)
def test_a_function_with_another_name_is_named(code, hint, run, tmp_path):
    (tmp_path / "ch02.py").write_text(code, encoding="utf-8")
    code, out, err = run("check", "ch02", tmp_path, "--task", 1)
    problem = "    Expected def softmax_backward(…), as in the stub, got a file without it.\n"
    assert (code, err) == (1, "") and problem in out
    below = out.partition(problem)[2].splitlines()[:-1]
    assert hint in " ".join(below) and bool(below) == bool(hint)


@pytest.mark.parametrize(
    ("forged", "hint"),
    [
        ("['softmx\\n1 of 1 tasks is right', 'a\\x1b[2J', 7, 'fine']", ""),
        ("['x' * 10**6]", f"it has def {'x' * 60}(…)"),
        ("['no name', '']", ""),
        *[(value, "") for value in ("7", "None", "{'a': 1}", "[[['a']]]", "'1 2'")],
    ],
)
def test_a_name_that_is_forged_says_nothing(forged, hint, run, tmp_path):
    """It comes from the student's process: one that is no name of Python is not told."""
    code = "import difflib\n"
    code += f"difflib.get_close_matches = lambda *_: {forged}\n"
    (tmp_path / "ch02.py").write_text(code, encoding="utf-8")
    code, out, err = run("check", "ch02", tmp_path, "--task", 1)
    assert (code, err) == (1, "")
    assert out.startswith("ch02 task 1: backward of softmax … not right yet\n    Expected def")
    assert hint in out and ("Hint" in out) == bool(hint)
    assert len(out.splitlines()) <= 5 and "1 of 1" not in out and "x" * 61 not in out


def test_check_everything(run, desk):
    assert "check your answers to a chapter's exercises" in " ".join(
        run("check", "--help")[1].split()
    )
    code, out, err = run("check", "all")
    assert (code, err) == (1, "")
    assert len(out.splitlines()) == len(CHAPTERS) + 1
    assert out.splitlines()[-1] == f"0 of {len(TASKS)} tasks are right; {len(TASKS)} to do"
    (desk / "mine").mkdir()
    shutil.copy(SOLUTIONS / "ch01.py", desk / "mine")
    assert (
        "ch01 policy gradients             all 4 tasks are right"
        in run("check", "all", desk / "mine")[1]
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("check ch09", "there is no chapter 'ch09': choose from ch01, ch02"),
        ("check five", "there is no chapter 'five'"),
        ("check ch05 --task 7", "ch05 has no task 7: its tasks are 1 to 6"),
        ("check ch05 --task 0", "ch05 has no task 0"),
        ("check ch05 gone.py", "there is no file 'gone.py': give the path of your ch05.py"),
        ("check ch05 notes.txt", "notes.txt is no Python file"),
        (
            "check ch05 broken.py",
            "broken.py cannot be imported: SyntaxError: invalid syntax "
            "(line 2 of broken.py: def f(:)",
        ),
        (
            "check ch05 raises.py",
            "raises.py cannot be imported: NameError: name 'nothing' is not defined",
        ),
        ("check ch05 leaves.py", "leaves.py cannot be imported: SystemExit: 0"),
        ("check all raises.py", "all chapters have a file each"),
        ("check all --task 1", "all chapters have a file each"),
        ("check ch05", "found no tutorials/exercises/ch05.py from here"),
        ("check", "CHAPTER"),
    ],
)
def test_bad_input_is_one_line(run, line, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {
        "broken.py": "x = 1\ndef f(:\n",
        "raises.py": "x = nothing\n",
        "leaves.py": "exit(0)\n",
        "notes.txt": "x = 1\n",
    }
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    code, out, err = run(*line.split())
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert expected in err


def test_a_path_may_stand_for_its_chapter(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my").mkdir()
    for file in ("ch01.py", "my/ch01.py"):
        shutil.copy(SOLUTIONS / "ch01.py", file)
    for path in ("ch01.py", "./ch01.py", "my/ch01.py", "my/../ch01.py", tmp_path / "my/ch01.py"):
        code, out, err = run("check", path, "--task", 2)
        assert (code, err) == (0, "") and out.endswith(f"right ({Path(path)})\n")
    assert [v.state for v in check("my/ch01.py")] == [RIGHT] * 4
    for line, told in {
        "ch02.py": "there is no file 'ch02.py': give its path, or minigrpo check ch02\n",
        "my/ch01": "there is no file 'my/ch01': give its path",
        "my": f"there is no chapter 'my': choose from {', '.join(CHAPTERS)}, or all, and name that "
        "folder after it\n",
        "my/mine.py": "there is no chapter 'my/mine.py'",
        "my/ch01.py ch01.py": "'my/ch01.py' names a file, so 'ch01.py' is one too many",
        "ch01.py my": "'ch01.py' names a file, so 'my' is one too many: give one file",
        "ch01.py --task 9": "ch01 has no task 9",
    }.items():
        code, out, err = run("check", *line.split())
        assert (code, out, err.count("\n")) == (2, "", 1) and told in err
    Path("ch03.txt").write_text("x = 1")
    assert "ch03.txt is no Python file" in run("check", "ch03.txt")[2]


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "nulls"])
def test_a_file_in_utf_16_is_told_to_be_saved_as_utf_8(coding, run, tmp_path):
    """Also one that the file imports, which is named by the line of the import."""
    source = (SOLUTIONS / "ch02.py").read_text(encoding="utf-8")
    data = f"{source}\0".encode() if coding == "nulls" else source.encode(coding)
    (tmp_path / "ch02.py").write_bytes(data)
    told = "SyntaxError: the file has null bytes, as one saved as UTF-16 has: save it as UTF-8"
    code, out, err = run("check", "ch02", tmp_path)
    assert (code, out) == (2, "") and err.endswith(f"ch02.py cannot be imported: {told}\n")
    (tmp_path / "helper.py").write_bytes(data)
    (tmp_path / "ch02.py").write_text("import helper\n", encoding="utf-8")
    code, out, err = run("check", "ch02", tmp_path)
    where = "(line 1 of ch02.py, in <module>: import helper)"
    assert (code, out) == (2, "") and err.endswith(f"cannot be imported: {told} {where}\n")


def test_the_library_raises_the_same():
    with pytest.raises(ValueError, match="ch02 has no task 9"):
        check("ch02", str(SOLUTIONS), 9)
    assert [v.state for v in check("02", str(SOLUTIONS))] == [RIGHT] * 5


ERRORS = ["1 / 0", "sys.exit(0)", "raise MemoryError"]
METHODS = ["repr", "len", "iter", "eq", "str", "float", "array", "getitem"]


@pytest.mark.parametrize("first", range(len(ERRORS)), ids=ERRORS)
@pytest.mark.parametrize("method", METHODS)
def test_an_answer_that_cannot_be_looked_at_is_a_wrong_one(method, first, tmp_path, request):
    """Whatever its own methods raise; and the other tasks are still checked.

    Every task gets every method, and each method raises every error, but at every third task:
    pytest --long tests/test_exercises.py has them all raise at all.
    """
    odd = f"import sys\nclass Odd(list):\n    def __{method}__(self, *_, **__): {ERRORS[first]}\n"
    (tmp_path / "odd.py").write_text(f"{odd}\ndef answer(*_, **__): return Odd([Odd([1])])\n")
    answer = load(tmp_path / "odd.py").answer
    begin, step = (0, 1) if request.config.getoption("--long") else (first, len(ERRORS))
    for chapter, n, task in TASKS[begin::step]:
        got = graded(chapter, n, task, answer)
        assert got.state == WRONG and "xpected" in got.message and "got" in got.message


@pytest.mark.parametrize("error", ["1 / 0", "exit(0)", "raise Exception('no name')"])
def test_an_answer_that_cannot_be_shown_does_not_end_the_chapter(error, run, desk):
    file = desk / "exercises/ch05.py"
    odd = f"class Odd:\n    def __repr__(self): {error}\n\n\n"
    answer = f"def {tasks_of('ch05')[0].function}(*_): return [Odd()]\n"
    right = (SOLUTIONS / "ch05.py").read_text(encoding="utf-8")
    file.write_text(f"{odd}{right}\n{answer}", encoding="utf-8")
    code, out, err = run("check", "ch05", file)
    assert (code, err) == (1, "")
    said = " ".join(out.split())
    assert "task 1: process sets by hand … not right yet Expected an answer, got one that" in said
    assert "cannot be looked at: " in said
    assert "(line 2 of ch05.py, in __repr__: def" in said and "ch05 task 6" in said
    assert out.count("… right") == 5


def test_a_call_that_fails_shows_no_line_of_the_checks(tmp_path):
    """Too few arguments: the error is raised in what calls the answer, not in the answer."""
    file = tmp_path / "ch01.py"
    file.write_text("def expected_reward_gradient(logits):\n    return logits\n")
    said = check("ch01", str(file), 1)[0].message
    assert "takes 1 positional argument but 2 were given.\nHint: keep the arguments" in said
