"""Files that a user brings are run from their source: as last saved, with their neighbours, and
nothing is left beside them.
"""

import os
import subprocess
import sys

import pytest

from minigrpo.system.user_code import run_file


@pytest.fixture(autouse=True)
def bytecode_is_written(monkeypatch):
    """As on an ordinary machine, whatever this one's environment says."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "path", list(sys.path))


def save(file, text, second=1_000_000_000):
    file.write_text(text)
    os.utime(file, (second, second))  # the same second and size: bytecode would be taken for fresh
    return file


def test_a_file_saved_again_within_the_second_is_read_anew(tmp_path):
    file = save(tmp_path / "mine.py", "VALUE = 1\n")
    assert run_file(file, "mine_1").VALUE == 1
    assert run_file(save(file, "VALUE = 2\n"), "mine_1").VALUE == 2
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]


def test_a_neighbour_saved_again_is_read_anew(tmp_path):
    save(tmp_path / "neighbour_of_mine.py", "VALUE = 1\n")
    file = save(tmp_path / "mine.py", "from neighbour_of_mine import VALUE\n")
    assert run_file(file, "mine_2").VALUE == 1
    save(tmp_path / "neighbour_of_mine.py", "VALUE = 2\n")
    assert run_file(file, "mine_2").VALUE == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.py", "neighbour_of_mine.py"]


def test_two_folders_have_neighbours_of_the_same_name(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "parts").mkdir(parents=True)
        save(tmp_path / name / "parts" / "__init__.py", "from parts.inner import VALUE\n")
        save(tmp_path / name / "parts" / "inner.py", f"VALUE = {name!r}\n")
        save(
            tmp_path / name / "mine.py",
            "def value():\n    from parts import VALUE\n    return VALUE\nHERE = value()\n",
        )
    a, b = (run_file(tmp_path / name / "mine.py", f"mine_3{name}") for name in ("a", "b"))
    assert (a.HERE, b.HERE) == ("a", "b")


def test_a_folder_without_init_is_a_neighbour_too(tmp_path):
    (tmp_path / "plain_parts").mkdir()
    file = save(tmp_path / "mine.py", "from plain_parts.inner import VALUE\n")
    for value in (1, 2):
        save(tmp_path / "plain_parts" / "inner.py", f"VALUE = {value}\n")
        assert value == run_file(file, "mine_7").VALUE


def test_an_import_inside_a_function_finds_the_neighbour_later(tmp_path):
    save(tmp_path / "late_neighbour.py", "VALUE = 3\n")
    module = run_file(
        save(
            tmp_path / "mine.py",
            "def value():\n    import late_neighbour\n    return late_neighbour.VALUE\n",
        ),
        "mine_4",
    )
    assert module.value() == 3


def test_late_neighbours_of_the_same_name(tmp_path):
    """Which are imported after the file was run, in a function."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "late_too.py", f"VALUE = {name!r}\n")
        text = "def value():\n    import late_too\n    return late_too.VALUE\n"
        module = run_file(save(tmp_path / name / "mine.py", text), f"mine_8{name}")
        assert module.value() == name
        assert f"mine_8{name}" in sys.modules


def test_installed_packages_below_the_folder_are_left_alone(tmp_path):
    import xml.dom

    folder = os.path.dirname(os.path.dirname(os.path.dirname(xml.dom.__file__)))
    sys.modules.pop("xml.dom.pulldom", None)
    run_file(save(tmp_path / "mine.py", "import xml.dom.pulldom\n"), "mine_5")
    assert folder and "xml.dom.pulldom" in sys.modules
    run_file(tmp_path / "mine.py", "mine_5")
    assert "xml.dom.pulldom" in sys.modules and sys.modules["xml.dom"] is xml.dom


def test_a_file_that_fails_leaves_no_module_behind(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run_file(save(tmp_path / "mine.py", "1 / 0\n"), "mine_6")
    assert "mine_6" not in sys.modules


def test_the_suite_hides_no_bytecode(tmp_path):
    """A task file named on the command line leaves nothing beside it, in a process with an ordinary
    user's environment.
    """
    save(tmp_path / "mine.py", "from helper_beside import MyTask\n")
    (tmp_path / "helper_beside.py").write_text(
        "from minigrpo.tasks.treewalk import TreeWalk\nclass MyTask(TreeWalk): pass\n"
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [
        sys.executable,
        "-m",
        "minigrpo",
        "train",
        "--task",
        "mine.py:MyTask",
        "--steps",
        "1",
        "--eval-every",
        "0",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["helper_beside.py", "mine.py"]
