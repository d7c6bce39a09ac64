"""The training with a student's functions: tutorials/scaffold.py."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from minigrpo.system.user_code import run_file

ROOT = Path(__file__).parent.parent
SOLUTIONS, STUBS = ROOT / "tutorials/solutions", ROOT / "tutorials/exercises"
scaffold = run_file(ROOT / "tutorials/scaffold.py", "scaffold")


def trained(capsys, folder):
    code = scaffold.main(str(folder))
    return code, capsys.readouterr()


@pytest.fixture
def briefly(monkeypatch):
    """The training takes so few steps that it shows only whether two curves agree."""
    monkeypatch.setattr(scaffold, "report", partial(scaffold.report, steps=20))


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A student's folder in which all is right; a text appended to a file changes a function.

    The functions run in this process, which is faster; one test has processes of their own.
    """
    monkeypatch.setattr(scaffold, "loader", lambda stack: own)
    for chapter in set(scaffold.PARTS.values()):
        shutil.copy(SOLUTIONS / f"{chapter}.py", tmp_path)
    return tmp_path


def add(folder, chapter, text):
    with (folder / f"{chapter}.py").open("a", encoding="utf-8") as file:
        file.write(f"\n\n{text}\n")


def test_right_answers_train_as_the_reference(capsys, desk, monkeypatch):
    curves, train = {}, scaffold.train

    def recorded(functions, arm, *steps):
        curves[arm] = train(functions, arm, *steps)
        return curves[arm]

    monkeypatch.setattr(scaffold, "train", recorded)
    code, said = trained(capsys, desk)
    assert (code, said.err) == (0, "")
    assert said.out.count("the same as the reference's") == 4
    assert said.out.endswith("8 of 8 functions are yours: your code trains the walk\n")
    assert abs(curves["grpo"] - curves["prm"]).max() < 1e-9  # Theorem 1
    assert curves["lambda_grpo"][-1] > curves["grpo"][-1]
    assert len(curves["grpo"]) == scaffold.STEPS


def own(file, name):
    return getattr(run_file(file, f"own_{file.stem}"), name, None)


@pytest.mark.usefixtures("briefly")
def test_stubs_are_named_and_the_solutions_stand_in(capsys, desk):
    for chapter in ("ch06", "ch07"):
        shutil.copy(STUBS / f"{chapter}.py", desk)
    (desk / "ch03.py").unlink()
    add(desk, "ch05", "del step_advantages")
    code, said = trained(capsys, desk)
    assert code == 0
    lines = said.out.splitlines()
    assert "lambda_weights     ch06  to do: the solution's stands in" in lines[3]
    assert "no ch03.py: the solution's stands in" in lines[0]
    assert "no def step_advantages" in lines[4]
    assert "1 of 8 functions are yours" in lines[-1]


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize(
    ("chapter", "function", "body", "words"),
    [
        ("ch04", "group_advantages(r)", "return r - r.mean(1, keepdims=True)", "grpo "),
        ("ch06", "lambda_weights(c)", "return [np.ones(len(x)) for x in c]", "lambda_grpo "),
        ("ch05", "step_advantages(c, r)", "return [np.ones(len(x)) for x in c]", "prm "),
        ("ch03", "completion_logps(z, y, n, t)", "return np.zeros(len(y) - n)", "grpo_twice "),
        ("ch03", "draw(z, t, u)", "return np.zeros(len(u))", "grpo "),
    ],
)
def test_a_wrong_function_changes_the_curve(chapter, function, body, words, capsys, desk):
    differs(chapter, function, body, words, capsys, desk)


def test_a_missing_constant_changes_the_curve_of_the_whole_training(capsys, desk):
    body = "return (r - r.mean(1, keepdims=True)) / r.std(1, ddof=1, keepdims=True)"  # + 1e-4
    differs("ch04", "group_advantages(r)", body, "grpo ", capsys, desk)


def differs(chapter, function, body, words, capsys, desk):
    add(desk, chapter, f"def {function}:\n    {body}")
    code, said = trained(capsys, desk)
    assert code == 1
    assert f"yours, though minigrpo check {chapter} calls it not right yet" in said.out
    (line,) = (x for x in said.out.splitlines() if x.startswith(f"  {words}"))
    assert "differs from the reference's after" in line
    assert "something is wrong" in said.out


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize(
    ("chapter", "function", "body", "words"),
    [
        ("ch04", "group_advantages(r)", "return r / 0 * 0", "a nan or an infinity"),
        ("ch04", "group_advantages(r)", "return r[0]", "returned shape (16,); the training needs"),
        ("ch07", "clipped_tree_loss(*a)", "return 1.0", "no pair (loss, dlogp)"),
        ("ch07", "logits_gradient(*a)", "return 'x'", "returned str, not numbers"),
        ("ch03", "draw(z, t, u)", "return u + 1", "neither 0 nor 1"),
        ("ch03", "draw(z, t, u)", "return 1 / 0", "draw: "),
    ],
)
def test_an_answer_that_cannot_be_used_stops_the_training(
    chapter, function, body, words, capsys, desk
):
    add(desk, chapter, f"def {function}:\n    {body}")
    code, said = trained(capsys, desk)
    assert code == 1
    assert "stopped: " in said.out and words in said.out


@pytest.mark.usefixtures("briefly")
def test_in_processes_of_their_own(capsys, tmp_path, monkeypatch):
    for chapter in ("ch05", "ch06"):
        shutil.copy(SOLUTIONS / f"{chapter}.py", tmp_path)
    code, said = trained(capsys, tmp_path)
    assert (code, said.err) == (0, "")
    assert "2 of 8 functions are yours: your code trains the walk" in said.out
    add(tmp_path, "ch05", "def step_advantages(*a):\n    import os\n    os._exit(0)")
    code, said = trained(capsys, tmp_path)
    assert code == 1 and "stopped: step_advantages: " in said.out


def test_bad_input_is_one_line(capsys, tmp_path):
    for folder in (tmp_path / "gone", tmp_path):
        (tmp_path / "ch03.py").write_text("x = (\n")
        code, said = trained(capsys, folder)
        assert (code, said.out) == (2, "")
        assert said.err.count("\n") == 1 and "scaffold: error: " in said.err
