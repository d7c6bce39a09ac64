"""A run survives a power cut at any moment: the order of its writes and syncs, played back on a
disk that forgets.

What a training run does to its folder is recorded: names made, renamed and removed, bytes written,
files and folders synced.  A model of the strictest disk that POSIX allows then answers what may be
left if the power fails after any of these events: of what was not synced, a file may have any
earlier content, half of a write, or zeros in its place, and a folder any part of its changed names.
From every such state the run must go on, without a complaint, to the same end.
"""

import builtins
import os
import re
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from helpers import WrappedFile

from minigrpo.runs import folder as runs
from minigrpo.runs.checkpoint import checkpoints, load_checkpoint
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train
from minigrpo.system import files
from minigrpo.system.files import read_records

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the recorder asks Linux for the names of open files"
)

TINY = {
    "dim": 8,
    "n_layers": 1,
    "n_heads": 2,
    "group_size": 3,
    "steps": 4,
    "checkpoint_every": 2,
    "log_samples_every": 1,
}
SETTINGS = TrainSettings(**TINY, eval_every=4, eval_prompts=2, objective_options={"beta": 0.1})
VARIANTS = 10  # what may be left, after each event: four extremes, and six drawn


@contextmanager
def recorded(folder, monkeypatch):
    """A list of what happens in a folder, as (event, name, …)."""
    journal, real = (
        [],
        {name: getattr(os, name) for name in ("fsync", "replace", "unlink", "truncate", "mkdir")},
    )

    def note(event, path, *rest):
        path = os.path.relpath(path, folder)
        if not path.startswith("..") and path != "lock":
            journal.append((event, path, *rest))

    class Recorder(WrappedFile):
        def __init__(self, path, mode):
            super().__init__(builtins.open(path, mode))  # noqa: SIM115
            self.path = path
            if mode == "wb" or (mode == "ab" and not self.file.tell()):
                note("create", path)

        def write(self, data):
            note("write", self.path, bytes(data))
            return self.file.write(data)

    def fsync(descriptor):
        note("sync", os.readlink(f"/proc/self/fd/{descriptor}"))

    def named(event):
        def function(path, *rest, **options):
            real[event](path, *rest, **options)
            note(
                event,
                path,
                *(os.path.relpath(r, folder) if event == "replace" else r for r in rest),
            )

        return function

    with monkeypatch.context() as patch:
        for module in (files, runs):

            def opened(path, mode):
                return (builtins.open if mode == "rb" else Recorder)(path, mode)

            patch.setattr(module, "open", opened, raising=False)
        patch.setattr(os, "fsync", fsync)
        for event in ("replace", "unlink", "truncate", "mkdir"):
            patch.setattr(os, event, named(event))
        yield journal


class Disk:
    """A folder as processes see it, and what of it would be left after a power cut."""

    def __init__(self, contents=()):
        self.versions = [
            [data] for _, data in contents
        ]  # of each file: what is synced, then what was written since
        self.names = {name: i for i, (name, _) in enumerate(contents)}
        self.synced_names, self.changes = (
            dict(self.names),
            [],
        )  # of the folder: changes since its last sync

    def apply(self, event, name, *rest):
        file = self.names.get(name)
        if event == "create":
            self.versions.append([b""])
            self._change({name: len(self.versions) - 1})
        elif event == "write":
            parts = (
                rest[0][: len(rest[0]) // 2],
                bytes(len(rest[0])),
                rest[0],
            )  # half of it, room for it, all of it
            self.versions[file] += [self.versions[file][-1] + part for part in parts]
        elif event == "truncate":
            self.versions[file].append(self.versions[file][-1][: rest[0]])
        elif event == "replace":
            self._change({rest[0]: file, name: None})
        elif event == "unlink":
            self._change({name: None})
        elif event == "sync" and name == ".":
            self.synced_names, self.changes = dict(self.names), []
        elif event == "sync":
            self.versions[file] = self.versions[file][-1:]

    def _change(self, change):
        self.changes.append(change)
        self.names = self._changed(self.names, change)

    @staticmethod
    def _changed(names, change):
        return {name: file for name, file in (names | change).items() if file is not None}

    def after_power_cut(self, variant):
        """What may be left.   -> name -> bytes"""
        rng = np.random.default_rng(variant)
        names_survive, data_survives = {0: (0, 0), 1: (1, 1), 2: (1, 0), 3: (0, 1)}.get(
            variant, (0.5, None)
        )
        names = self.synced_names
        for change in self.changes:
            if rng.random() < names_survive:
                names = self._changed(names, change)
        pick = {
            0: lambda versions: versions[0],
            1: lambda versions: versions[-1],
            None: lambda versions: rng.choice(len(versions)),
        }
        chosen = [pick[data_survives](versions) for versions in self.versions]
        return {
            name: v if isinstance(v := chosen[file], bytes) else self.versions[file][v]
            for name, file in names.items()
        }


def end_of(folder):
    """What a run ends in, but for times."""
    arrays, state = load_checkpoint(checkpoints(folder)[-1])
    state["records"].pop("metrics.jsonl")
    metrics = [
        {k: v for k, v in record.items() if k != "step_time"}
        for record in read_records(folder / "metrics.jsonl")
    ]
    samples = (folder / "samples.jsonl").read_bytes()
    return {name: array.tobytes() for name, array in arrays.items()}, state, metrics, samples


def power_cuts(journal, disk, base, reference, capsys, enough=10**6, settings=SETTINGS):
    """From what each power cut leaves, go on.   -> how many different states there were, and what
    went wrong, until it is enough
    """
    seen, wrong = set(), []
    for event in [None, *journal]:
        if event:
            disk.apply(*event)
        for variant in range(VARIANTS if len(wrong) < enough else 0):
            left = disk.after_power_cut(variant)
            if (key := hash(tuple(sorted(left.items())))) in seen:
                continue
            seen.add(key)
            folder = base / f"{len(seen)}"
            folder.mkdir()
            for name, data in left.items():
                (folder / name).write_bytes(data)
            try:
                train(
                    settings,
                    folder,
                    resume="settings.json" in left or bool(checkpoints(folder)),
                    progress=False,
                )
                assert end_of(folder) == reference
                assert capsys.readouterr().err == ""
            except (ValueError, AssertionError) as error:
                wrong.append((event and event[:2], variant, str(error)[:200]))
    return len(seen), wrong


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """A run that nothing disturbs, and what it did to its folder."""
    with recorded(tmp_path / "whole", monkeypatch) as journal:
        train(SETTINGS, tmp_path / "whole", progress=False)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return tmp_path / "whole", [event for event in journal if event[0] != "mkdir"]


def test_a_new_run(whole, tmp_path, capsys):
    folder, journal = whole
    assert [sum(event[0] == kind for event in journal) for kind in ("write", "sync", "unlink")] > [
        20,
        20,
        1,
    ]
    n, wrong = power_cuts(journal, Disk(), tmp_path, end_of(folder), capsys)
    assert not wrong
    assert n > 50


def test_a_run_that_is_resumed(whole, tmp_path, monkeypatch, capsys):
    """Its last checkpoint is lost, so that it has records to cut off; and somebody's half file is
    to be removed.
    """
    folder, _ = whole
    reference = end_of(folder)
    checkpoints(folder)[-1].unlink()
    (folder / ".checkpoint-000004.mgc.1.tmp").write_bytes(b"half")
    contents = [
        (file.name, file.read_bytes()) for file in sorted(folder.iterdir()) if file.name != "lock"
    ]
    with recorded(folder, monkeypatch) as journal:
        train(SETTINGS, folder, resume=True, progress=False)
    assert {"truncate", "unlink"} < {event[0] for event in journal}
    n, wrong = power_cuts(journal, Disk(contents), tmp_path, reference, capsys)
    assert not wrong
    assert n > 25


def test_a_run_that_is_extended(whole, tmp_path, monkeypatch, capsys):
    """To one step more: from any state that a power cut leaves, it can be."""
    folder, _ = whole
    longer = replace(SETTINGS, steps=5)
    train(longer, tmp_path / "longer", progress=False)
    contents = [
        (file.name, file.read_bytes()) for file in sorted(folder.iterdir()) if file.name != "lock"
    ]
    with recorded(folder, monkeypatch) as journal:
        train(longer, folder, resume=True, progress=False)
    replaced = [event[2] for event in journal if event[0] == "replace"]
    assert replaced[:3] == ["checkpoint-000002.mgc", "checkpoint-000004.mgc", "settings.json"]
    reference = end_of(tmp_path / "longer")
    n, wrong = power_cuts(journal, Disk(contents), tmp_path, reference, capsys, settings=longer)
    assert not wrong
    assert n > 25


@pytest.mark.parametrize(
    "forgotten", [r"metrics\.jsonl", r"samples\.jsonl", r"\.", r"\.checkpoint.*"]
)
def test_without_a_sync_it_is_found_out(forgotten, whole, tmp_path, capsys):
    """The test can fail: each kind of sync is needed."""
    folder, journal = whole
    fewer = [
        event for event in journal if not (event[0] == "sync" and re.fullmatch(forgotten, event[1]))
    ]
    assert len(fewer) < len(journal)
    assert power_cuts(fewer, Disk(), tmp_path, end_of(folder), capsys, enough=1)[1]
