"""The folder of a run: checkpoints that are whole or refused, files that are written whole or not
at all.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from dataclasses import asdict

import numpy as np
import pytest

from minigrpo.command.cli import main
from minigrpo.runs import checkpoint
from minigrpo.runs.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from minigrpo.runs.folder import RunFolder
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.stored_settings import signed
from minigrpo.runs.train import train
from minigrpo.system.files import read_records, write_atomically

SETTINGS = TrainSettings(
    dim=8,
    n_layers=1,
    n_heads=2,
    group_size=3,
    steps=6,
    checkpoint_every=2,
    objective_options={"beta": 0.1},
)
STATE = {"step": 7, "rng": {"big": 2**127 + 1}, "text": "λ\n"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that ended by itself."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train(SETTINGS, folder, progress=False)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "run")


def assert_same_checkpoint(mine, theirs):
    """The same arrays and the same state, but for the checksum of the metrics, of which the times
    are a part.
    """
    (arrays, state), (others, other) = load_checkpoint(mine), load_checkpoint(theirs)
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: array.tobytes() for name, array in others.items()
    }
    assert state["records"].pop("metrics.jsonl")[0] == other["records"].pop("metrics.jsonl")[0]
    assert state == other


def some_arrays():
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((3, 4)),
        "b": rng.standard_normal(5).astype("f4"),
        "scalar": np.array(1.5),
    }
    return arrays | {
        "empty": np.zeros((0, 2)),
        "turned": rng.standard_normal((3, 2)).T,
        "odd": np.array([np.nan, -0.0, np.inf]),
    }


def test_a_checkpoint_gives_back_what_it_was_given(tmp_path):
    path = tmp_path / "checkpoint-000007.mgc"
    save_checkpoint(path, some_arrays(), STATE)
    arrays, state = load_checkpoint(path)
    assert state == STATE
    assert list(arrays) == list(some_arrays())
    for name, array in some_arrays().items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        assert arrays[name].tobytes() == array.tobytes()
    assert os.listdir(tmp_path) == [path.name]  # no temporary file


def test_a_checkpoint_is_read_without_this_package(tmp_path):
    """A line of JSON, the arrays' bytes, a SHA-256: no pickle."""
    path = tmp_path / "c.mgc"
    save_checkpoint(path, some_arrays(), STATE)
    data = path.read_bytes()
    header, _, rest = data.partition(b"\n")
    header = json.loads(header)
    assert header["format"] == "minigrpo-checkpoint-2"
    assert header["state"] == STATE
    for name, dtype, shape in header["arrays"]:
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert rest[:count] == some_arrays()[name].tobytes()
        rest = rest[count:]
    assert rest == hashlib.sha256(data[:-32]).digest()


def damaged_versions(data):
    """(what was done, bytes): cut at many places, one bit flipped anywhere, a byte too many."""
    rng = np.random.default_rng(0)
    for length in (
        0,
        1,
        31,
        32,
        33,
        len(data) // 2,
        len(data) - 32,
        len(data) - 1,
        *rng.integers(len(data), size=30),
    ):
        yield f"cut to {length}", data[:length]
    header, digest = range(60), range(len(data) - 32, len(data))
    for place in (*header, *digest, *rng.integers(len(data), size=150).tolist()):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        yield f"a bit of byte {place}", bytes(flipped)
    yield "a byte more", data + b"\0"
    yield "two bytes swapped", data[:200] + data[201:202] + data[200:201] + data[202:]


def test_damage_anywhere_is_found(run):
    newest, copy = checkpoints(run)[-1], run / "copy.mgc"
    data = newest.read_bytes()
    for what, damaged in damaged_versions(data):
        if damaged == data:
            continue
        copy.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=re.escape(f"{copy} is damaged or no checkpoint of minigrpo")
        ):
            load_checkpoint(copy)
            pytest.fail(what)


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_goes_on(damage, run, whole, capsys):
    before, newest = checkpoints(run)
    data = bytearray(newest.read_bytes())
    data[len(data) // 3] ^= 4
    newest.write_bytes({"cut": bytes(data[:-100]), "bit": bytes(data), "empty": b""}[damage])
    for arguments in (
        ["train", "--resume", str(run)],
        ["evaluate", str(run)],
        ["sample", str(run)],
    ):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert f"{newest} is damaged" in err
        if arguments[0] == "train":
            assert err.endswith("delete it to go on from checkpoint-000004.mgc\n")
    assert load_checkpoint(before)[1]["step"] == 4
    newest.unlink()
    assert main(["train", "--resume", str(run)]) == 0
    for name in ("checkpoint-000004.mgc", "checkpoint-000006.mgc"):
        assert_same_checkpoint(run / name, whole / name)
    for name in ("samples.jsonl", "settings.json"):
        assert (run / name).exists() == (whole / name).exists()
        assert not (run / name).exists() or (run / name).read_bytes() == (whole / name).read_bytes()
    steps = [
        [{**m, "step_time": 0} for m in read_records(folder / "metrics.jsonl")]
        for folder in (run, whole)
    ]
    assert steps[0] == steps[1]


def test_a_damaged_only_checkpoint(run, whole, capsys):
    before, newest = checkpoints(run)
    before.unlink()
    newest.write_bytes(b"nothing")
    assert main(["train", "--resume", str(run)]) == 2
    assert capsys.readouterr().err.endswith("start another run (there is no other checkpoint)\n")
    newest.unlink()
    assert main(["train", "--resume", str(run)]) == 2
    assert "metrics.jsonl has records, but" in capsys.readouterr().err
    (run / "metrics.jsonl").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert_same_checkpoint(newest, whole / newest.name)


def test_a_checkpoint_of_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAGIC", "minigrpo-checkpoint-9")
    save_checkpoint(tmp_path / "c.mgc", {}, {})
    monkeypatch.undo()
    with pytest.raises(
        ValueError,
        match="has format 'minigrpo-checkpoint-9'; this version reads 'minigrpo-checkpoint-2'",
    ):
        load_checkpoint(tmp_path / "c.mgc")


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("there_before", [True, False])
def test_a_write_that_fails_leaves_the_old_file(function, there_before, tmp_path, monkeypatch):
    path = tmp_path / "file"
    if there_before:
        path.write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, [b"new", b"er"])
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["file"] * there_before
    assert not there_before or path.read_bytes() == b"old"
    write_atomically(path, [b"new", memoryview(b"er")])
    assert path.read_bytes() == b"newer"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a folder may not be synced")
def test_file_and_folder_are_synced_so_that_a_power_cut_loses_neither(tmp_path, monkeypatch):
    """The file before it takes its name, the folder after: otherwise the name may be lost, or be
    there before the bytes.
    """
    events, fsync, rename = [], os.fsync, os.replace

    def recorded_fsync(descriptor):
        events.append(("sync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def recorded_replace(source, target):
        events.append(("rename", os.stat(source).st_ino))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write_atomically(tmp_path / "x", [b"some ", b"bytes"])
    file, folder = (tmp_path / "x").stat().st_ino, tmp_path.stat().st_ino
    assert events == [("sync", file), ("rename", file), ("sync", folder)]
    assert (tmp_path / "x").read_bytes() == b"some bytes"


def test_a_full_disk_while_training_keeps_the_last_checkpoint(run, monkeypatch, capsys, whole):
    checkpoints(run)[-1].unlink()

    def fail(*arguments):
        raise OSError(28, "No space left on device", str(arguments[1]))

    monkeypatch.setattr(os, "replace", fail)
    assert main(["train", "--resume", str(run)]) == 2
    told = (
        f"minigrpo train: No space left on device: "
        f"{run / 'checkpoint-000006.mgc'} (free some space)"
    )
    assert capsys.readouterr().err == f"{told}: go on with: minigrpo train --resume {run}\n"
    monkeypatch.undo()
    assert main(["train", "--resume", str(run)]) == 0
    assert_same_checkpoint(run / "checkpoint-000006.mgc", whole / "checkpoint-000006.mgc")


def test_the_last_two_checkpoints_are_kept_in_the_order_of_steps(tmp_path):
    with RunFolder(tmp_path / "run", {}, resume=False) as folder:
        for step in (5, 999_998, 999_999, 1_000_000, 12_000_000):
            folder.save(step, {"a": np.arange(step % 7)}, {})
            assert folder.load()[1]["step"] == step
    assert [load_checkpoint(file)[1]["step"] for file in checkpoints(folder.path)] == [
        1_000_000,
        12_000_000,
    ]


def test_records_of_any_text_and_lines_cut_anywhere(tmp_path):
    path = tmp_path / "samples.jsonl"
    records = [
        {"step": i, "completion": text}
        for i, text in enumerate(["a\nb", "λ=½", "one\u2028line\x85\x0b\x1c", '"', ""])
    ]
    with RunFolder(tmp_path / "run", {}, resume=False) as folder:
        folder.append("samples.jsonl", records)
    data = (folder.path / "samples.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    assert len(ends) == len(records)
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        complete = sum(length >= end - 1 for end in ends)  # the line end alone may be missing
        assert read_records(path) == records[:complete]
    path.write_bytes(data[1:])
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        read_records(path)


def test_a_folder_holds_one_run(run, tmp_path):
    with pytest.raises(
        ValueError, match=r"already holds a run: resume it with --resume .*, or give another --out"
    ):
        RunFolder(run, {}, resume=False)
    with pytest.raises(ValueError, match="holds no run"):
        RunFolder(tmp_path / "nothing", {}, resume=True)
    assert not (tmp_path / "nothing").exists()
    for file in checkpoints(run):
        file.unlink()
    for resume in (False, True):
        with pytest.raises(
            ValueError, match=r"metrics\.jsonl has records, but .* has no checkpoint: move it away"
        ):
            train(SETTINGS, run, resume=resume, progress=False)
    (run / "metrics.jsonl").write_text(
        '{"step": 0, "eval/prompts": 3}\n'
    )  # what there may be before the first checkpoint
    train(SETTINGS, run, progress=False)
    assert [r["step"] for r in read_records(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_damaged_settings(text, run, capsys):
    (run / "settings.json").write_text(text)
    assert main(["train", "--resume", str(run)]) == 2
    err = capsys.readouterr().err
    assert f"{run / 'settings.json'} is damaged" in err
    assert err.count("\n") == 1


def test_settings_of_another_version(run, capsys):
    file = run / "settings.json"
    for saved in checkpoints(run):
        saved.unlink()
    file.write_bytes(signed({**asdict(SETTINGS), "colour": "blue"}))
    assert main(["train", "--resume", str(run)]) == 2
    assert capsys.readouterr().err == (
        "minigrpo train: there is no setting colour: leave it out "
        "(or take the version that knows it)\n"
    )
