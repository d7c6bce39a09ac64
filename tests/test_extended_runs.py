"""`--resume RUN --steps N`: a run goes on to more steps than it was started with, to the bits of a
run that was started with so many; what cannot be so is refused.
"""

import json
from dataclasses import replace

import numpy as np
import pytest

from minigrpo import TrainSettings, load_run
from minigrpo.command.cli import main
from minigrpo.runs import folder as run_folder
from minigrpo.runs.checkpoint import checkpoints, load_checkpoint
from minigrpo.runs.stored_settings import read_settings, signed
from minigrpo.runs.train import train
from minigrpo.system.files import read_records

TINY = {"dim": 8, "n_layers": 1, "n_heads": 2, "group_size": 3, "prompts_per_step": 1}
SETTINGS = TrainSettings(
    **TINY, steps=4, checkpoint_every=2, log_samples_every=1, objective_options={"beta": 0.1}
)
LONGER = replace(SETTINGS, steps=7)


def end_of(folder):
    """What a run ends in, but for times: weights and state, metrics, samples, settings."""
    arrays, state = load_checkpoint(checkpoints(folder)[-1])
    state["records"].pop("metrics.jsonl")
    metrics = read_records(folder / "metrics.jsonl")
    for record in metrics:
        record.pop("step_time", None)
    samples = (folder / "samples.jsonl").read_bytes()
    bits = {name: array.tobytes() for name, array in arrays.items()}
    return bits, state, metrics, samples, read_settings(folder)


@pytest.fixture
def run(tmp_path):
    train(SETTINGS, tmp_path / "run", progress=False)
    return tmp_path / "run"


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """A run that was started with the longer plan."""
    folder = tmp_path_factory.mktemp("longer") / "run"
    train(LONGER, folder, progress=False)
    return end_of(folder)


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_an_extended_run_has_the_bits_of_a_longer_one(run, longer, capsys):
    assert main(["train", "--resume", str(run), "--steps", "7"]) == 0
    assert end_of(run) == longer
    assert "7 steps of" in capsys.readouterr().out
    assert main(["train", "--resume", str(run)]) == 0  # nothing is left, and how to go on is told
    assert "all its steps had been taken: go on to more with --steps" in capsys.readouterr().out
    assert end_of(run) == longer


def test_from_python_in_two_goes(run, longer):
    train(replace(SETTINGS, steps=5), run, resume=True, progress=False)
    train(LONGER, run, resume=True, progress=False)
    assert end_of(run) == longer


def test_an_unfinished_run_may_end_earlier_and_says_so(tmp_path, longer, capsys):
    for plan in (5, 9):

        def stop(metrics):
            if metrics["step"] == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(replace(SETTINGS, steps=20), folder := tmp_path / f"{plan}", on_step=stop)
        train(replace(SETTINGS, steps=plan), folder, resume=True, progress=False)
        assert load_checkpoint(checkpoints(folder)[-1])[1]["step"] == plan
        assert end_of(folder)[2][:5] == longer[2][:5]
        note = f"note: {folder} now ends at step {plan}, not 20\n"
        assert capsys.readouterr().err == note


def test_the_evaluation_at_the_last_step_stays(tmp_path):
    settings = replace(SETTINGS, eval_every=3, eval_prompts=2)
    train(settings, tmp_path / "run", progress=False)
    train(replace(settings, steps=7), tmp_path / "run", resume=True, progress=False)
    train(replace(settings, steps=7), tmp_path / "whole", progress=False)

    def evaluated(name):
        records = read_records(tmp_path / name / "metrics.jsonl")
        return [record["step"] for record in records if "eval/pass@1_greedy" in record]

    assert (evaluated("run"), evaluated("whole")) == ([0, 3, 4, 6, 7], [0, 3, 6, 7])
    weights = [load_run(tmp_path / name)[0].parameters.flat for name in ("run", "whole")]
    assert np.array_equal(*weights)


@pytest.mark.parametrize("steps", [0, 3])
def test_fewer_steps_than_were_taken_are_refused(steps, run, capsys):
    before = end_of(run)
    err = refused(capsys, "train", "--resume", run, "--steps", steps)
    assert "has taken 4 steps: give more with --steps" in err
    assert end_of(run) == before


def test_a_cosine_cannot_be_extended(tmp_path, capsys):
    train(replace(SETTINGS, schedule="cosine"), tmp_path / "run", progress=False)
    before = end_of(tmp_path / "run")
    err = refused(capsys, "train", "--resume", tmp_path / "run", "--steps", 9)
    assert "steps was 4, not 9" in err and "cosine" in err and f"--init {tmp_path / 'run'}" in err
    assert end_of(tmp_path / "run") == before


def test_another_setting_beside_the_steps_is_refused(run, capsys):
    err = refused(capsys, "train", "--resume", run, "--steps", 9, "--learning-rate", "1")
    assert "has other settings (learning_rate was" in err
    assert read_settings(run)["steps"] == 4


class Killed(BaseException):
    """The process ends here."""


def stop(*_):
    raise Killed


@pytest.mark.parametrize("n_writes", range(4))
def test_killed_while_it_is_extended(n_writes, run, longer, capsys, monkeypatch):
    """Between any two writes the run is whole, is read as one of the two, and goes on as either."""
    real, written = run_folder.write_atomically, []

    def write(path, pieces):
        if len(written) == n_writes:
            raise Killed
        written.append(path.name)
        real(path, pieces)

    monkeypatch.setattr("minigrpo.runs.folder.write_atomically", write)
    monkeypatch.setattr("minigrpo.runs.checkpoint.write_atomically", write)
    with pytest.raises(Killed):
        train(LONGER, run, resume=True, progress=False)
    monkeypatch.undo()
    names = ["checkpoint-000002.mgc", "checkpoint-000004.mgc", "settings.json"]
    assert written == names[:n_writes]
    assert read_settings(run)["steps"] == (7 if n_writes == 3 else 4)
    for path in (run, *checkpoints(run)):
        assert main(["evaluate", str(path), "--prompts", "1"]) == 0
    if n_writes == 1:  # the newest was lost, too: the other one goes on
        checkpoints(run)[-1].unlink()
    elif n_writes == 2:
        (run / "settings.json").unlink()
        assert read_settings(run)["steps"] == 7
    train(LONGER, run, resume=True, progress=False)
    assert end_of(run) == longer
    assert "steps was" not in capsys.readouterr().err


def test_killed_while_it_is_extended_it_also_ends_as_it_was(tmp_path, monkeypatch):
    """An unfinished run that goes on without the wish to extend it."""
    run, planned = tmp_path / "run", replace(SETTINGS, steps=6)
    with pytest.raises(Killed):
        train(planned, run, on_step=lambda metrics: metrics["step"] < 5 or stop(), progress=False)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("minigrpo.runs.folder.write_atomically", stop)
        train(LONGER, run, resume=True, progress=False)
    assert main(["train", "--resume", str(run)]) == 0
    train(planned, tmp_path / "whole", progress=False)
    assert end_of(run)[0] == end_of(tmp_path / "whole")[0]
    assert end_of(run)[4] == end_of(tmp_path / "whole")[4]


def test_steps_that_were_edited_are_refused(run, capsys):
    """With a right checksum, too: the checkpoints know of an extension."""
    stored = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    stored.pop("sha256")
    (run / "settings.json").write_bytes(signed(stored | {"steps": 9}))
    assert "are of different runs (steps)" in refused(capsys, "train", "--resume", run)
