"""A run has one owner at a time, and is one thing: what belongs to another run, or was changed, is
refused by name.
"""

import errno
import json
import os
import shutil
import signal
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from minigrpo.command.cli import main
from minigrpo.engine import parameters
from minigrpo.runs import folder as runs
from minigrpo.runs import train as training
from minigrpo.runs.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from minigrpo.runs.policy import load_run
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.stored_settings import read_settings, signed
from minigrpo.runs.train import train
from minigrpo.system import files
from minigrpo.system.files import Lock, read_records
from minigrpo.tasks.treewalk import TreeWalk

TINY = {
    "dim": 8,
    "n_layers": 1,
    "n_heads": 2,
    "group_size": 3,
    "steps": 6,
    "checkpoint_every": 2,
    "log_samples_every": 2,
}
SETTINGS = TrainSettings(**TINY)
FLAGS = ["train", "--steps", "6", "--dim", "8", "--n-layers", "1", "--group-size", "3"]


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


def one_line(capsys, *arguments):
    """The one line that a command ends with on bad input."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Traceback" not in err
    return err


def bits(folder):
    """What a run ends in, but for times."""
    arrays, state = load_checkpoint(checkpoints(folder)[-1])
    state["records"].pop("metrics.jsonl")
    metrics = [
        {k: v for k, v in record.items() if k != "step_time"}
        for record in read_records(folder / "metrics.jsonl")
    ]
    return (
        {k: v.tobytes() for k, v in arrays.items()},
        state,
        metrics,
        (folder / "samples.jsonl").read_bytes(),
    )


# -- one owner -------------------------------------------------------------------------------------


def test_a_second_owner_is_refused_while_the_first_is_there(run, whole, capsys):
    (run / "checkpoint-000006.mgc").unlink()
    with_other_name = run.parent / "link"
    os.symlink(run, with_other_name)
    lock = Lock(run)
    for command in (["train", "--resume"], [*FLAGS, "--out"]):
        for folder in (run, with_other_name):
            err = one_line(capsys, *command, folder)
            assert (
                f"is in use by another process (pid {os.getpid()}): wait until that has ended"
                in err
            )
    assert main(["evaluate", str(run), "--prompts", "2"]) == 0  # who only reads needs no lock
    assert len(checkpoints(run)) == 1
    lock.release()
    assert main(["train", "--resume", str(run)]) == 0
    assert bits(run) == bits(whole)


def test_a_folder_that_is_not_yet_a_run_has_one_owner_too(tmp_path, capsys):
    lock = Lock(tmp_path)
    assert "is in use by another process" in one_line(capsys, *FLAGS, "--out", tmp_path)
    assert os.listdir(tmp_path) == ["lock"]
    lock.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL and fork are of Unix")
def test_a_killed_owner_leaves_no_lock_and_a_child_that_outlives_it_has_none(tmp_path):
    read, write = os.pipe()
    if not (owner := os.fork()):
        lock = Lock(tmp_path)
        if not os.fork():  # what a pool of workers is to a scorer
            os.write(write, str(os.getpid()).encode())  # by now it has let go of the lock
        signal.pause()
        lock.release()
    child = int(os.read(read, 20))
    try:
        with pytest.raises(ValueError, match=rf"is in use by another process \(pid {owner}\)"):
            Lock(tmp_path)
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        Lock(tmp_path).release()
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("code", sorted(files.NO_LOCKS))
def test_a_file_system_without_locks_is_said(code, tmp_path, monkeypatch, capsys, whole):
    def none(file):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "_lock", none)
    train(SETTINGS, tmp_path / "run", progress=False)
    assert "has no locks: see to it that nobody else writes there" in capsys.readouterr().err
    assert bits(tmp_path / "run") == bits(whole)


def test_on_windows_a_byte_that_nobody_reads_is_locked(tmp_path, monkeypatch):
    """With a stand-in for Windows's module, whose locks are of bytes and of this process."""
    taken = set()

    def locking(descriptor, mode, n):
        place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR), n
        if place in taken:
            raise PermissionError(errno.EACCES, "Permission denied")
        taken.add(place)

    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(
        files, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking), raising=False
    )
    lock = Lock(tmp_path)
    (place,) = taken
    assert place[1:] == (1 << 30, 1)
    with pytest.raises(ValueError, match=rf"is in use by another process \(pid {os.getpid()}\)"):
        Lock(tmp_path)
    lock.release()
    assert (tmp_path / "lock").read_text() == str(os.getpid())


@pytest.mark.parametrize("again", [False, True], ids=["removed", "replaced"])
def test_a_folder_that_goes_away_under_a_run(again, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"

    def remove(state, *arguments, real=training.grpo_step):
        if state.step == 2:
            shutil.rmtree(folder)
            if again:
                Lock(make(folder)).release()
        return real(state, *arguments)

    def make(path):
        path.mkdir()
        return path

    monkeypatch.setattr(training, "grpo_step", remove)
    assert "the folder was removed or replaced while it was in use" in one_line(
        capsys, *FLAGS, "--out", folder
    )
    assert not again or os.listdir(folder) == ["lock"]


def test_left_over_temporary_files_are_removed_by_the_owner_alone(run, capsys):
    left = [run / name for name in (".checkpoint-000008.mgc.77.tmp", ".settings.json.1.tmp")]
    mine = [run / name for name in ("notes.tmp", ".hidden")]
    for file in left + mine:
        file.write_bytes(b"half")
    lock = Lock(run)
    one_line(capsys, "train", "--resume", run)
    assert all(file.exists() for file in left)
    lock.release()
    assert main(["train", "--resume", str(run)]) == 0
    assert [file.exists() for file in left + mine] == [False, False, True, True]


def test_a_checkpoint_comes_after_some_minutes_too(tmp_path, monkeypatch, whole):
    seconds, saved = [0.0], []
    monkeypatch.setattr(training.time, "monotonic", lambda: seconds[0])

    def step(*arguments, real=training.grpo_step):
        seconds[0] += 200
        return real(*arguments)

    def save(folder, state, task, real=training._save):
        saved.append(state.step)
        real(folder, state, task)

    monkeypatch.setattr(training, "grpo_step", step)
    monkeypatch.setattr(training, "_save", save)
    train(TrainSettings(**TINY | {"checkpoint_every": 50}), tmp_path / "run", progress=False)
    assert saved == [0, 2, 4, 6]
    assert bits(tmp_path / "run")[0] == bits(whole)[0]


@pytest.mark.parametrize("late", [1, 4, 6])
def test_an_error_of_a_scorer_loses_no_step(late, tmp_path, whole, monkeypatch, capsys):
    fails = [True]

    def score(task, rollouts, real=TreeWalk.score):
        if fails and rollouts_seen.append(1) is None and len(rollouts_seen) == late:
            raise ValueError("no net today")
        return real(task, rollouts)

    rollouts_seen: list[int] = []
    monkeypatch.setattr(TreeWalk, "score", score)
    settings = TrainSettings(**TINY | {"checkpoint_every": 50})
    with pytest.raises(ValueError, match="no net today"):
        train(settings, tmp_path / "run", progress=False)
    assert load_checkpoint(checkpoints(tmp_path / "run")[-1])[1]["step"] == late - 1
    fails.clear()
    train(settings, tmp_path / "run", resume=True, progress=False)
    assert (
        bits(tmp_path / "run")[0] == bits(whole)[0]
        and bits(tmp_path / "run")[2:] == bits(whole)[2:]
    )


def test_an_error_after_the_update_saves_nothing_of_the_step(tmp_path, whole, monkeypatch):
    """The parameters are those of the next step by then, the randomness is not."""
    calls = []

    def is_correct(task, rewards, real=TreeWalk.is_correct):
        calls.append(1)
        if len(calls) == 4:
            raise ValueError("no net today")
        return real(task, rewards)

    monkeypatch.setattr(TreeWalk, "is_correct", is_correct)
    settings = TrainSettings(**TINY | {"checkpoint_every": 50})
    with pytest.raises(ValueError, match="no net today"):
        train(settings, tmp_path / "run", progress=False)
    assert [file.stem[-6:] for file in checkpoints(tmp_path / "run")] == ["000000"]
    train(settings, tmp_path / "run", resume=True, progress=False)
    assert bits(tmp_path / "run")[0] == bits(whole)[0]


def test_what_ends_a_step_in_its_update_saves_nothing_of_it(tmp_path, monkeypatch):
    """With a KL term, parameters and reference change places meanwhile."""
    settings, swapped = (
        TrainSettings(**TINY | {"checkpoint_every": 50}, objective_options={"beta": 0.1}),
        [],
    )

    def swap(a, b, real=parameters._swap):
        swapped.append(1)
        if len(swapped) == 7:  # in the fourth step
            raise KeyboardInterrupt
        real(a, b)

    train(settings, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parameters, "_swap", swap)
        train(settings, tmp_path / "run", progress=False)
    assert [file.stem[-6:] for file in checkpoints(tmp_path / "run")] == ["000000"]
    train(settings, tmp_path / "run", resume=True, progress=False)
    assert bits(tmp_path / "run")[0] == bits(tmp_path / "whole")[0]


# -- one thing -------------------------------------------------------------------------------------

READERS = [
    ["train", "--resume"],
    ["evaluate"],
    ["sample"],
    ["plot"],
    ["export", "--out", "exported"],
    ["equivalence"],
]
READERS += [[*FLAGS, "--out", "new", "--init"]]


def edited(value):
    """Another value of the same kind."""
    kinds = {
        bool: lambda v: not v,
        int: lambda v: v + 1,
        float: lambda v: v * 2 + 0.5,
        str: lambda v: v + "x",
        type(None): lambda v: 3,
    }
    return kinds.get(type(value), lambda v: {"n": 1})(value)


@pytest.mark.parametrize("name", asdict(SETTINGS))
@pytest.mark.parametrize("resigned", [False, True], ids=["", "with its own checksum"])
def test_edited_settings_are_refused_by_every_command(
    name, resigned, run, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    stored = json.loads((run / "settings.json").read_text())
    stored[name] = edited(stored[name])
    checksum = stored.pop("sha256")
    text = signed(stored) if resigned else json.dumps(stored | {"sha256": checksum}).encode()
    (run / "settings.json").write_bytes(text)
    for reader in READERS:
        err = one_line(capsys, *reader, run)
        assert f"{run / 'settings.json'} " in err
        assert (
            f"are of different runs ({name})" if resigned else "is damaged or was edited"
        ) in err
    assert not (tmp_path / "exported").exists() and not checkpoints(tmp_path / "new")
    (run / "settings.json").unlink()  # what the messages advise
    assert main(["train", "--resume", str(run)]) == 0
    assert asdict(SETTINGS) == read_settings(run)


def test_the_settings_of_a_lost_file_are_those_of_the_checkpoint(run, whole):
    (run / "settings.json").unlink()
    (run / "checkpoint-000006.mgc").unlink()
    assert main(["evaluate", str(run), "--prompts", "2"]) == main(["plot", str(run)]) == 0
    assert main(["train", "--resume", str(run)]) == 0
    assert (run / "settings.json").read_bytes() == (whole / "settings.json").read_bytes()
    assert bits(run) == bits(whole)


def test_other_settings_from_python_are_refused_too(run):
    for changes in (
        {"learning_rate": 0.5},
        {"task": "arithmetic"},
        {"max_grad_norm": None},
        {"task_options": {"n": 2}},
    ):
        with pytest.raises(ValueError, match=rf"has other settings \({next(iter(changes))} was "):
            train(TrainSettings(**TINY | changes), run, resume=True, progress=False)
    train(
        TrainSettings(**TINY, micro_batch_tokens=7, memory_limit=3.5),
        run,
        resume=True,
        progress=False,
    )


DAMAGES = {
    "a digit": lambda data: data.replace(b'": 0.', b'": 1.', 1),
    "a line lost": lambda data: data.split(b"\n", 1)[1],
    "a line twice": lambda data: data.split(b"\n", 1)[0] + b"\n" + data,
    "two lines swapped": lambda data: b"\n".join(
        [(lines := data.split(b"\n"))[1], lines[0], *lines[2:]]
    ),
    "the end lost": lambda data: data[:-40],
    "empty": lambda data: b"",
    "a space": lambda data: data.replace(b": ", b":  ", 1),
}


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_records_are_refused(name, damage, run, capsys):
    data = (run / name).read_bytes()
    (run / name).write_bytes(DAMAGES[damage](data))
    assert DAMAGES[damage](data) != data
    said = (
        f"{run / name} has lost the last "
        if damage in ("the end lost", "empty", "a line lost")
        else f"{run / name} is damaged"
    )
    show = ["plot", run] if name == "metrics.jsonl" else ["tree", run / name]
    for command in (["train", "--resume", run], show):
        assert said in one_line(capsys, *command)
    assert (
        main(["train", "--init", str(run), *FLAGS[1:], "--out", str(run.parent / "next")]) == 0
    )  # what the message advises
    (run / name).write_bytes(data + b'{"step": 7')  # what a kill leaves is no damage
    assert main(["train", "--resume", str(run)]) == 0
    assert (run / name).read_bytes() == data


def test_a_loss_after_an_earlier_checkpoint_can_be_made_good(run, whole, capsys):
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:5]))
    err = one_line(capsys, "train", "--resume", run)
    assert (
        "metrics.jsonl has lost the last 1 of the 6 records that checkpoint-000006.mgc counts"
        in err
    )
    assert "delete checkpoint-000006.mgc to go on from checkpoint-000004.mgc" in err
    (run / "checkpoint-000006.mgc").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert bits(run) == bits(whole)


def test_records_that_no_checkpoint_vouches_for_are_shown_and_said(run, capsys):
    (run / "checkpoint-000006.mgc").unlink()
    assert main(["plot", str(run)]) == 0
    assert (
        capsys.readouterr().err
        == f"note: no checkpoint vouches yet for the last 2 records in {run / 'metrics.jsonl'}\n"
    )


def test_checkpoints_under_each_others_names(run, capsys):
    one, two = checkpoints(run)
    one.rename(run / "x")
    two.rename(one)
    (run / "x").rename(two)
    for command in (["train", "--resume", run], ["evaluate", run], ["evaluate", one]):
        assert "is the checkpoint of step " in one_line(capsys, *command)


def test_a_checkpoint_of_another_run(run, tmp_path, capsys):
    train(TrainSettings(**TINY, seed=1), tmp_path / "other", progress=False)
    shutil.copy(tmp_path / "other" / "checkpoint-000006.mgc", run)
    for reader in (["train", "--resume"], ["evaluate"], ["plot"]):
        assert "settings.json and checkpoint-000006.mgc are of different runs (seed)" in one_line(
            capsys, *reader, run
        )


def test_a_task_that_was_changed_on_the_way_is_said(tmp_path, capsys):
    task = tmp_path / "mine.py"
    task.write_text("from minigrpo.tasks.treewalk import TreeWalk\nclass T(TreeWalk):\n    pass\n")
    assert (
        main(
            [
                *FLAGS,
                "--task",
                f"{task}:T",
                "--checkpoint-every",
                "4",
                "--out",
                str(tmp_path / "run"),
            ]
        )
        == 0
    )
    checkpoints(tmp_path / "run")[-1].unlink()
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert "note" not in capsys.readouterr().err
    checkpoints(tmp_path / "run")[-1].unlink()
    task.write_text(task.read_text() + "# other\n")
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert (
        f"note: {task} is not what it was when {tmp_path / 'run'} was trained\n"
        in capsys.readouterr().err
    )


TASK = (
    "from minigrpo.tasks.treewalk import TreeWalk\nclass T(TreeWalk):\n    def "
    "score(self, r): return {sign} * super().score(r)\n"
)


def signs(folder):
    """The signs of the mean rewards of a run's steps, that of the first being +."""
    rewards = [record["reward"] for record in read_records(folder / "metrics.jsonl")]
    return [reward * rewards[0] > 0 for reward in rewards]


def test_a_task_that_is_edited_while_its_run_goes_on(tmp_path, monkeypatch, capsys):
    """What counts is the file that was loaded, not the one that is there when a checkpoint is
    written.
    """
    task, run = tmp_path / "mine.py", tmp_path / "run"
    task.write_text(TASK.format(sign=1))

    def edit(state, *arguments, real=training.grpo_step):
        if state.step == 1:
            task.write_text(TASK.format(sign=-1))
        return real(state, *arguments)

    monkeypatch.setattr(training, "grpo_step", edit)
    assert main([*FLAGS, "--task", f"{task}:T", "--checkpoint-every", "4", "--out", str(run)]) == 0
    checkpoints(run)[-1].unlink()
    capsys.readouterr()
    for command in (["evaluate", "--prompts", "2"], ["sample"], ["train", "--resume"]):
        assert main([*command, str(run)]) == 0
        assert (
            capsys.readouterr().err == f"note: {task} is not what it was when {run} was trained\n"
        )


def test_another_file_of_the_same_name_is_not_taken_silently(tmp_path, monkeypatch, capsys):
    for name, sign in (("one", 1), ("two", -1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(TASK.format(sign=sign))
    monkeypatch.chdir(tmp_path / "one")
    assert main([*FLAGS, "--task", "mine.py:T", "--checkpoint-every", "4", "--out", "../run"]) == 0
    checkpoints(tmp_path / "run")[-1].unlink()
    (tmp_path / "one" / "mine.py").rename(tmp_path / "moved.py")
    monkeypatch.chdir(tmp_path / "two")
    capsys.readouterr()
    assert main(["train", "--resume", "../run"]) == 0
    assert capsys.readouterr().err == "note: mine.py is not what it was when ../run was trained\n"
    checkpoints(tmp_path / "run")[-1].unlink()
    assert (
        main(["train", "--resume", "../run", "--task", "../moved.py:T"]) == 0
    )  # where it is now may be said
    assert capsys.readouterr().err == ""


def test_a_task_that_was_given_from_python_is_asked_for_again(tmp_path):
    class Other(TreeWalk):
        def score(self, rollouts):
            return -super().score(rollouts)

    train(SETTINGS, tmp_path / "run", task=Other(), progress=False)
    checkpoints(tmp_path / "run")[-1].unlink()
    for use in (load_run, lambda run: train(SETTINGS, run, resume=True, progress=False)):
        with pytest.raises(
            ValueError, match=r"was trained on a task of class .*Other, not TreeWalk: give that one"
        ):
            use(tmp_path / "run")
    train(SETTINGS, tmp_path / "run", resume=True, task=Other(), progress=False)


def test_copies_of_checkpoints_stay_and_are_no_checkpoints(run, tmp_path):
    for name in (
        "checkpoint-000004-backup.mgc",
        "checkpoint-best.mgc",
        "checkpoint-12.mgc",
        "checkpoint-0000x4.mgc",
    ):
        shutil.copy(run / "checkpoint-000004.mgc", run / name)
    (run / "checkpoint-000006.mgc").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert [file.name for file in checkpoints(run)] == [
        "checkpoint-000004.mgc",
        "checkpoint-000006.mgc",
    ]
    assert len(list(run.glob("*.mgc"))) == 6
    assert main(["evaluate", str(run / "checkpoint-best.mgc"), "--prompts", "2"]) == 0


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "samples.jsonl", "settings.json", "tokenizer.json"]
)
def test_what_is_no_runs_is_not_overwritten(name, tmp_path, capsys):
    (tmp_path / name).write_text('{"mine": 1}\n')
    assert str(tmp_path / name) in one_line(capsys, *FLAGS, "--out", tmp_path).replace(
        " holds a ", "/"
    )
    assert (tmp_path / name).read_text() == '{"mine": 1}\n'


@pytest.mark.parametrize("how", ["emptied", "removed", "longer"])
def test_records_that_somebody_changes_during_the_run(how, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"

    def change(state, *arguments, real=training.grpo_step):
        if state.step == 3:
            file = run / "metrics.jsonl"
            {
                "emptied": lambda: file.write_text(""),
                "removed": file.unlink,
                "longer": lambda: file.write_bytes(b"x" * 9999),
            }[how]()
        return real(state, *arguments)

    monkeypatch.setattr(training, "grpo_step", change)
    assert "metrics.jsonl was changed by somebody else while the run wrote to it" in one_line(
        capsys, *FLAGS, "--out", run
    )


def test_a_copy_by_hard_links_leaves_the_original_alone(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy", copy_function=os.link)
    before = (run / "metrics.jsonl").read_bytes()
    (tmp_path / "copy" / "checkpoint-000006.mgc").unlink()
    assert main(["train", "--resume", str(tmp_path / "copy")]) == 0
    assert (run / "metrics.jsonl").read_bytes() == before and main(["plot", str(run)]) == 0


def test_a_checkpoint_behind_a_broken_link_ends_the_command(run, capsys):
    (run / "checkpoint-000006.mgc").unlink()
    os.symlink(run / "nowhere", run / "checkpoint-000006.mgc")
    assert "checkpoint-000006.mgc" in one_line(capsys, "plot", run)


def test_samples_are_checked_wherever_they_are_found(run, tmp_path, capsys):
    data = (run / "samples.jsonl").read_bytes()
    (run / "samples.jsonl").write_bytes(data.replace(b"L", b"R", 1))
    os.symlink(run / "samples.jsonl", tmp_path / "link.jsonl")
    for place in (run, run / "samples.jsonl", tmp_path / "link.jsonl", tmp_path):
        assert "samples.jsonl is damaged or was edited" in one_line(capsys, "tree", place)


def test_paths_are_settings_too(run, tmp_path):
    settings = TrainSettings(**TINY, init=run)
    train(settings, tmp_path / "next", progress=False)
    train(settings, tmp_path / "next", resume=True, progress=False)


def test_the_tokenizer_of_a_run_is_its_own(run, capsys):
    """Any file that checkpoints name, as a language model's run names its tokenizer.json."""
    (run / "tokenizer.json").write_text("{}")
    arrays, state = load_checkpoint(run / "checkpoint-000006.mgc")
    hashed = files_hash(run / "tokenizer.json")
    save_checkpoint(
        run / "checkpoint-000006.mgc", dict(arrays), state | {"files": {"tokenizer.json": hashed}}
    )
    assert main(["evaluate", str(run), "--prompts", "2"]) == 0
    for spoil in (
        lambda: (run / "tokenizer.json").write_text("{ }"),
        (run / "tokenizer.json").unlink,
    ):
        spoil()
        for reader in (["train", "--resume"], ["evaluate"], ["sample"]):
            err = one_line(capsys, *reader, run)
            assert (
                f"{run / 'tokenizer.json'} is not what it was when "
                f"checkpoint-000006.mgc was written"
            ) in err


@pytest.mark.parametrize("odd", ["missing", "one number", "complex", "whole numbers"])
def test_arrays_that_are_not_the_models(odd, run, capsys):
    """Such as somebody's program may write, with a right checksum."""
    file = run / "checkpoint-000006.mgc"
    arrays, state = load_checkpoint(file)
    made = {
        "missing": lambda a: a[:-1],
        "one number": lambda a: a[:1],
        "complex": lambda a: a.astype(complex),
        "whole numbers": lambda a: a.astype(int),
    }
    save_checkpoint(file, dict(arrays) | {"parameters": made[odd](arrays["parameters"])}, state)
    for reader in (
        ["train", "--resume"],
        ["evaluate"],
        [*FLAGS, "--out", run.parent / "next", "--init"],
    ):
        assert "cannot be used" in one_line(capsys, *reader, run)


def files_hash(path):
    return runs.hashlib.sha256(path.read_bytes()).hexdigest()
