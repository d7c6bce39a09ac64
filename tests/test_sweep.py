"""`minigrpo sweep` and `minigrpo table`: a grid of settings times seeds, and a row per run."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from minigrpo import TrainSettings
from minigrpo.command import sweep
from minigrpo.command.cli import main
from minigrpo.experiments import parallel
from minigrpo.runs.checkpoint import checkpoints, load_checkpoint, steps_taken
from minigrpo.runs.stored_settings import read_settings
from minigrpo.runs.train import train
from minigrpo.show.table import find_runs, read_run, table_csv, table_text
from minigrpo.system.files import read_records

TINY = ["--dim", "8", "--n-layers", "1", "--n-heads", "2", "--group-size", "3"]
TINY += ["--prompts-per-step", "1", "--steps", "4"]
GRID = ["--grid", "objective=grpo,lambda_grpo", "--grid", "learning-rate=1e-4,3e-3"]
TASK = '''
import time
from pathlib import Path

import numpy as np
from minigrpo.tasks import CharTokenizer


class Mine:
    """Completions earn the share of their letters b; a reward too many fails for bad=True."""

    tokenizer = CharTokenizer("ab")
    max_new_tokens = 3
    defaults = {"dim": 8, "n_layers": 1, "group_size": 4, "prompts_per_step": 1}

    def __init__(self, bad=False, letters=("b",), r_neg=0.0):
        self.bad = bad

    def prompts(self, rng, n, split="train"):
        return [self.tokenizer.encode("a")] * n

    def score(self, rollouts):
        if self.bad:
            raise KeyError("a fault")
        if Path("slow").exists():
            time.sleep(0.03)
        return np.array([(c == 1).mean() for group in rollouts.completions for c in group])
'''


@pytest.fixture
def jobs(monkeypatch):
    """Jobs run one after the other in this process.   -> the folders of those that were run"""
    seen = []

    def run_jobs(function, jobs, **_):
        seen.extend(job["folder"] for job in jobs)
        return [function(**json.loads(json.dumps(job))) for job in jobs]

    monkeypatch.setattr(parallel, "run_jobs", run_jobs)
    return seen


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with a task, in which commands are run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(TASK, encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(capsys):
    """Run a command in this process.   -> exit code, standard output, standard error"""

    def call(*arguments):
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two objectives, two learning rates and two seeds, and what it printed."""
    out, patch = tmp_path_factory.mktemp("swept"), pytest.MonkeyPatch()
    serial = lambda function, jobs, **_: [function(**job) for job in jobs]  # noqa: E731
    with patch.context() as patched:
        patched.setattr(parallel, "run_jobs", serial)
        patched.setattr(sys, "stdout", printed := io.StringIO())
        command = ["sweep", *GRID, "--seeds", "2", *TINY, "--eval-every", "2", "--out", str(out)]
        assert main([*command, "--eval-prompts", "2"]) == 0
    return out, command, printed.getvalue()


def bits(folder):
    arrays, _ = load_checkpoint(checkpoints(folder)[-1])
    return {name: array.tobytes() for name, array in arrays.items()}


# -- sweeps ----------------------------------------------------------------------------------------


def test_every_point_has_the_same_seeds_and_a_readable_folder(swept):
    out, _, printed = swept
    names = [
        f"objective={objective},learning_rate={rate},seed={seed}"
        for objective in ("grpo", "lambda_grpo")
        for rate in ("1e-4", "3e-3")
        for seed in (0, 1)
    ]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert "0 of 8 runs are finished" in printed
    assert f"minigrpo table {out} --out runs.csv" in printed and f"plot {out}/*/" in printed


def test_a_run_of_a_sweep_is_the_run_that_train_makes(swept, tmp_path):
    out, _, _ = swept
    folder = out / "objective=grpo,learning_rate=3e-3,seed=1"
    stored = read_settings(folder)
    assert (stored["objective"], stored["learning_rate"], stored["seed"]) == ("grpo", 3e-3, 1)
    train(TrainSettings.from_stored(stored), tmp_path / "run", progress=False)
    assert bits(folder) == bits(tmp_path / "run")


def test_finished_runs_are_not_run_again_and_others_go_on(here, jobs, run):
    command = ["sweep", "--grid", "objective=grpo,rloo", "--seeds", 2, *TINY, "--out", "s"]
    command += ["--checkpoint-every", 2]
    assert run(*command)[0] == 0 and len(jobs) == 4
    whole = {folder: bits(folder) for folder in jobs}
    jobs.clear()
    code, printed, _ = run(*command)
    assert (code, jobs) == (0, []) and "4 of 4 runs are finished" in printed
    half, new = "s/objective=grpo,seed=1", "s/objective=rloo,seed=0"
    checkpoints(half)[-1].unlink()
    shutil.rmtree(new)
    assert run(*command)[0] == 0 and jobs == [half, new]
    assert {folder: bits(folder) for folder in whole} == whole


def test_more_steps_extend_all_runs(here, jobs, run):
    command = ["sweep", "--grid", "objective=grpo,rloo", *TINY, "--out", "s"]
    assert run(*command)[0] == 0
    assert run(*command, "--steps", 6)[0] == 0
    assert [steps_taken(folder) for folder in jobs] == [6] * 4 and len(set(jobs)) == 2
    code, _, err = run(*command)  # back to four
    assert (code, err.count("\n")) == (2, 1) and "has taken 6 steps" in err


def test_a_grid_that_contradicts_what_is_there_is_refused(here, jobs, run):
    command = ["sweep", "--grid", "objective=grpo,rloo", *TINY, "--out", "s"]
    assert run(*command)[0] == 0
    before, n = {f: bits(f) for f in jobs}, len(jobs)
    code, out, err = run(*command, "--seeds", 2, "--temperature", "0.5")
    assert (code, out, err.count("\n"), len(jobs)) == (2, "", 1, n)
    assert "s/objective=grpo,seed=0 has other settings (temperature was 1.0, not 0.5)" in err
    assert {f: bits(f) for f in before} == before


def test_a_run_that_fails_does_not_stop_the_others(here, jobs, run):
    command = ["sweep", "--task", "mine.py:Mine", "--grid", "task-option.bad=true,false"]
    command += ["--grid", "learning_rate=1e-3,1e30", "--steps", 3, "--out", "s"]
    code, out, err = run(*command)
    assert code == 1 and err == ""
    failed = [line for line in out.splitlines() if line.startswith("FAILED")]
    names = [f"s/task_option.bad={b},learning_rate={r},seed=0" for b, r in
             (("true", "1e-3"), ("true", "1e30"), ("false", "1e30"))]  # fmt: skip
    assert [line.split(": ")[0] for line in failed] == [f"FAILED {name}" for name in names]
    assert "KeyError: 'a fault' (line " in failed[0] and "of mine.py" in failed[0]
    assert "step 1" in failed[2] and "lower learning rate" in failed[2]
    assert "note: 3 of 4 runs have steps left to take" in out
    assert steps_taken("s/task_option.bad=false,learning_rate=1e-3,seed=0") == 3


def test_a_fault_of_the_package_is_told_by_its_name(here, jobs, run, monkeypatch):
    monkeypatch.setattr("minigrpo.runs.train._write", lambda *_: {}["nothing"])
    code, out, _ = run("sweep", *TINY, "--out", "s")
    assert code == 1 and "FAILED s/seed=0: KeyError('nothing')" in out


BAD = {
    "colour=1,2": "--grid: unrecognized arguments: --colour=1",
    "learn=1": "--grid: unrecognized arguments: --learn=1",
    "out=a,b": "out is given twice",
    "seeds=1,2": "seeds is given twice",
    "learning_rate": "--grid: argument --learning-rate: invalid float value: ''",
    "learning_rate=1e-3,fast": "--grid: argument --learning-rate: invalid float value: 'fast'",
    "learning_rate=1e-3,-1": "learning_rate is -1.0: it must be a finite number above 0",
    "learning_rate=1e-3,": "--grid: argument --learning-rate: invalid float value: ''",
    "learning_rate=1e-3,0.001": "--grid has the same settings twice",
    "objective=grpo,grpo": "--grid has the same settings twice",
    "objective=grpo,gppo": "unknown objective 'gppo'",
    "task=treewalk,nothing": "there is no task 'nothing'",
    "task=treewalk,largest": "task 'largest' has no option 'depth'",
    "steps=4,8": "steps is given twice",
    "task_option.m=1": "task 'treewalk' has no option 'm'",
    "task_option.depth=3": "task_option.depth is given twice",
    "task_option=1": "--grid: argument --task-option: '1' is not KEY=VALUE",
    "objective_option.beta=0.1,no": "beta",
    "max_grad_norm=1,0": "max_grad_norm is 0.0",
}


@pytest.mark.parametrize("grid", BAD)
def test_a_bad_grid_is_refused_before_anything_starts(grid, here, jobs, run):
    command = ["sweep", *TINY, "--task-option", "depth=4", "--out", "s", "--grid", grid]
    code, out, err = run(*command)
    assert (code, out, err.count("\n"), jobs) == (2, "", 1, [])
    assert BAD[grid] in err and not (here / "s").exists()


def test_the_same_name_twice_is_refused(here, jobs, run):
    code, _, err = run("sweep", "--grid", "dim=8", "--grid", "dim=16", "--out", "s")
    assert (code, jobs) == (2, []) and "dim is given twice" in err


@pytest.mark.parametrize(
    ("grid", "setting", "values"),
    [
        ("task_options.letters=[1,2],[3]", "task_options", [{"letters": [1, 2]}, {"letters": [3]}]),
        ("task-option.r_neg=-1,-.5", "task_options", [{"r_neg": -1}, {"r_neg": -0.5}]),
        ("task_option.letters=a/b,a:b", "task_options", [{"letters": "a/b"}, {"letters": "a:b"}]),
        ("objective_option.beta=0.1,1", "objective_options", [{"beta": 0.1}, {"beta": 1}]),
        ("max-grad-norm=none,1", "max_grad_norm", [None, 1.0]),
        ("weight-decay=0,1e-2", "weight_decay", [0.0, 0.01]),
    ],
)
def test_values_reach_their_setting(grid, setting, values, here, jobs, run):
    command = ["sweep", "--task", "mine.py:Mine", "--objective", "grpo", "--steps", 1, "--out", "s"]
    assert run(*command, "--grid", grid)[0] == 0
    assert [read_settings(folder)[setting] for folder in jobs] == values
    assert len(find_runs(["s"])) == len(set(jobs)) == 2  # names that no file can have are apart


def test_seeds_begin_at_seed(here, jobs, run):
    assert run("sweep", *TINY, "--seed", 7, "--seeds", 2, "--out", "s")[0] == 0
    assert jobs == ["s/seed=7", "s/seed=8"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_ctrl_c_leaves_runs_that_go_on(here, jobs, run):
    """In real processes: the same command goes on to the same bits."""
    command = ["sweep", "--task", "mine.py:Mine", "--seeds", "2", "--steps", "99", "--out", "s"]
    (here / "slow").write_text("", encoding="utf-8")
    folders = [here / "s" / f"seed={seed}" for seed in (0, 1)]
    words = [sys.executable, "-m", "minigrpo", *command, "--processes", "2"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not all((folder / "metrics.jsonl").exists() for folder in folders):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in err
    stops, last = "interrupted by SIGTERM: this stops after the step", err.splitlines()[-1]
    assert last == "minigrpo sweep: interrupted; the same command goes on with it"
    assert all(line.startswith(stops) for line in err.splitlines()[:-1]), err
    taken = [steps_taken(folder) for folder in folders]
    assert 0 < max(taken) < 99  # the first to end its step has saved it
    (here / "slow").unlink()
    assert run(*command)[0] == 0 and jobs == ["s/seed=0", "s/seed=1"]
    settings = TrainSettings.from_stored(read_settings_of_task(folders[1]))
    train(settings, here / "whole", progress=False)
    assert bits(folders[1]) == bits(here / "whole")


def read_settings_of_task(folder):
    return {name: x for name, x in read_settings(folder).items() if name != "task_file"}


def test_a_process_that_is_killed_is_one_line(here, run, monkeypatch):
    monkeypatch.setattr(sweep, "train_one", os._exit)

    def jobs(function, jobs, real=parallel.run_jobs, **options):
        return real(os.abort, [{}], **options)

    monkeypatch.setattr(parallel, "run_jobs", jobs)
    code, _, err = run("sweep", *TINY, "--out", "s")
    assert code == 2 and "ended from outside, perhaps for lack of memory" in err
    assert "Traceback" not in err


# -- tables ----------------------------------------------------------------------------------------


def rows_of(data):
    return list(csv.DictReader(io.StringIO(data.decode("utf-8"), newline="")))


def test_a_row_per_run_in_full_precision(swept, run, tmp_path):
    out, _, printed = swept
    code, shown, err = run("table", out, "--out", tmp_path / "runs.csv")
    assert (code, err) == (0, "") and shown.splitlines()[:-1] == printed.splitlines()[1:-1]
    rows = rows_of((tmp_path / "runs.csv").read_bytes())
    assert list(rows[0])[:6] == [
        *("folder", "objective", "seed", "learning_rate", "steps_done", "final_reward")
    ]
    assert len(rows) == 8
    for row in rows:
        records = read_records(f"{row['folder']}/metrics.jsonl")
        assert float(row["final_reward"]) == records[-1]["reward"]  # of 4 steps, a tenth is one
        assert float(row["eval/pass@1_greedy_first"]) == records[0]["eval/pass@1_greedy"]
        assert float(row["last/loss"]) == records[-1]["loss"] and row["steps_done"] == "4"
        assert all(float(x) is not None for name, x in row.items() if name.startswith("last/"))
    every = rows_of(table_csv([read_run(folder) for folder in find_runs([out])], every=True))
    assert set(TrainSettings.__dataclass_fields__) - {"task_options", "objective_options"} < set(
        every[0]
    )
    assert every[0]["folder"] == rows[0]["folder"]


def test_means_and_deviations_over_seeds(swept):
    out, _, printed = swept
    header, *lines = printed.splitlines()[1:-1]
    assert header.startswith("objective    learning_rate  runs  steps_done  final_reward  ")
    assert [line.split()[:4] for line in lines] == [
        [objective, rate, "2", "4"]
        for objective in ("grpo", "lambda_grpo")
        for rate in ("0.0001", "0.003")
    ]
    for line, name in zip(lines[:2], ("1e-4", "3e-3"), strict=True):
        folders = [out / f"objective=grpo,learning_rate={name},seed={seed}" for seed in (0, 1)]
        rewards = [read_records(f / "metrics.jsonl")[-1]["reward"] for f in folders]
        assert f"{np.mean(rewards):.4g} ± {np.std(rewards, ddof=1):.2g}" in line


def made(folder, settings, records):
    """A row of made-up numbers."""
    return {"folder": folder, "steps": 10, "objective": "grpo", **settings}, records


def test_options_missing_values_and_hostile_names():
    name = 'a,"b"\r\n=1+1\u202e'
    runs = [
        made(name, {"task_options.n": 1, "seed": 0}, {"steps_done": 10, "final_reward": 0.1}),
        made("b", {"seed": 1}, {"steps_done": 5, "last/rewards/x/mean": 1e-9}),
    ]
    rows = rows_of(table_csv(runs))
    assert rows[0]["folder"] == name and rows[0]["task_options.n"] == "1"
    assert rows[1]["task_options.n"] == rows[1]["final_reward"] == ""
    assert float(rows[1]["last/rewards/x/mean"]) == 1e-9
    text = table_text(runs).splitlines()
    assert text[0].split() == ["task_options.n", "runs", "steps_done", "final_reward"]
    assert text[1].split() == ["1", "1", "10", "0.1"]
    assert text[2].split() == ["default", "1", "5", "-"]
    assert text[3] == "note: 1 of 2 runs have steps left to take"
    half = table_csv([made("a\udc80", {}, {"steps_done": 1})])
    assert b"a\\udc80" in half  # a name on disk that is no text


def test_files_of_one_name_are_apart_but_not_told():
    about = [{"task": "m.py:T", "task_file": f"/{folder}/m.py"} for folder in "ab"]
    runs = [made(f"{i}", settings, {"final_reward": i, "steps_done": 10}) for i, settings in
            enumerate((about[0], about[1], about[0]))]  # fmt: skip
    lines = [line.split() for line in table_text(runs).splitlines()]
    assert lines == [["runs", "steps_done", "final_reward"], ["2", "10", "1", "±", "1.4"],
                     ["1", "10", "1"]]  # fmt: skip
    assert b"/b/m.py" in table_csv(runs)


def test_runs_are_found_once_and_wherever_they_are(swept, run, tmp_path):
    out, _, _ = swept
    one = out / "objective=grpo,learning_rate=1e-4,seed=0"
    assert find_runs([one, out, one / "."]) == [one / ".", *sorted(out.iterdir())[1:]]
    for path in (tmp_path, tmp_path / "nothing", __file__):
        code, printed, err = run("table", path)
        assert (code, printed, err.count("\n")) == (2, "", 1) and "holds no runs" in err


def test_a_run_without_a_step_and_one_that_was_damaged(here, run):
    assert run("train", *TINY, "--steps", 0, "--out", "unborn")[0] == 0
    assert run("train", *TINY, "--out", "born")[0] == 0
    code, out, _ = run("table", "unborn", "born", "--out", "t.csv")
    assert code == 0 and out.splitlines()[1].split() == ["0", "1", "0", "-"]
    assert [row["steps_done"] for row in rows_of((here / "t.csv").read_bytes())] == ["0", "4"]
    (here / "born" / "metrics.jsonl").write_bytes(b"{}\n")
    code, out, err = run("table", "unborn", "born", "--out", "other.csv")
    assert (code, out, err.count("\n")) == (2, "", 1) and not (here / "other.csv").exists()
