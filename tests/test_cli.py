"""The command line: what every command prints and writes, and one clear line with exit code 2 for
bad input.
"""

import io
import json
import os
import re
import subprocess
import sys

import pytest
from matplotlib.image import imread

from minigrpo.command.cli import main
from minigrpo.runs.stored_settings import read_settings
from minigrpo.show import comparison
from minigrpo.system.files import read_records

TINY = ["--dim", "8", "--n-layers", "1", "--n-heads", "2", "--group-size", "4", "--steps", "4"]
CLASSROOM = {"prompt": "2+3=", "completions": ["5", "6", "5!", "5"], "rewards": [1, 0, 0, 1]}
LOG = [
    ("2+2=", "4.", 1),
    ("2+2=", "5.", 0),
    ("1+2=", "3.", 1),
    ("1+2=", "3!", 1),
    ("7", "alone", 0),
    ("2+2=", "4!", 0),
]
TASK = '''
import numpy as np
from minigrpo.tasks import CharTokenizer, score_texts


class Mine:
    tokenizer = CharTokenizer("ab")
    max_new_tokens = 2
    defaults = {"dim": 8, "n_layers": 1, "steps": 2, "group_size": 4}

    def prompts(self, rng, n, split="train"):
        return [self.tokenizer.encode("a")] * n

    def score(self, rollouts):
        return np.ones(len(rollouts.truncated))


class NoNumber(Mine):
    def score(self, rollouts):
        return np.where(np.arange(len(rollouts.truncated)) == 2, np.nan, 1.0)


class NoNumberByText(Mine):
    def score(self, rollouts):
        return score_texts(rollouts, self.tokenizer, lambda prompt, text: None)


class Lengthening(Mine):
    """Its prompts outgrow the context while it trains."""

    calls = 0

    def prompts(self, rng, n, split="train"):
        type(self).calls += 1
        return [np.zeros(1 if self.calls < 2 else 99, dtype=int)] * n
'''


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command in this process.   -> exit code, standard output, standard error"""

    def call(*arguments, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse: --help, and flags that it cannot read
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Folders of runs, a task file, groups."""
    where = tmp_path_factory.mktemp("stored")
    (where / "mine.py").write_text(TASK)
    (where / "broken.py").write_text("import nothing_of_that_name\n")
    (where / "group.json").write_text(json.dumps(CLASSROOM))
    names = ("prompt", "completion", "reward")
    (where / "log.jsonl").write_text(
        "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in LOG)
    )
    for name, objective, seed in (
        ("one", "grpo", 0),
        ("two", "lambda_grpo", 0),
        ("three", "grpo", 1),
    ):
        assert (
            main(
                [
                    "train",
                    *TINY,
                    "--objective",
                    objective,
                    "--seed",
                    str(seed),
                    "--out",
                    str(where / name),
                ]
            )
            == 0
        )
    assert main(["train", *TINY, "--steps", "0", "--out", str(where / "unborn")]) == 0
    return where


# -- what the commands do --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "purpose"),
    [
        ("demo", "the main result in a minute"),
        ("train", "train a policy"),
        ("evaluate", "measure a trained policy: greedy pass@1"),
        ("sample", "sample a group from a trained policy and draw it"),
        ("tree", "draw groups that you typed or logged, without any model"),
        ("equivalence", "check Theorem 1 on real rollouts"),
        ("plot", "draw the metrics of runs"),
        ("reproduce", "run an experiment, with data and figures"),
    ],
)
def test_help_teaches(run, command, purpose):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert purpose in " ".join(out.split())
    assert all(f"  {command}" in run(*top)[1] for top in ((), ("--help",)))


def test_help_explains_every_setting_of_train(run):
    help_text = " ".join(run("train", "--help")[1].split())
    for flag in (
        "task",
        "objective",
        "steps",
        "seed",
        "group-size",
        "learning-rate",
        "checkpoint-every",
        "out",
        "resume",
        "dtype",
    ):
        assert f"--{flag} " in help_text
    assert "rloo" in help_text
    assert "countdown" in help_text


def test_train(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [
        "--task-option",
        "n=2",
        "--task-option",
        "depth=3",
        "--objective-option",
        "beta=0.1",
        "--max-grad-norm",
        "none",
    ]
    code, out, err = run(
        "train",
        *TINY,
        *options,
        "--out",
        "here/run",
        "--seed",
        5,
        "--eval-every",
        2,
        "--eval-prompts",
        3,
    )
    assert (code, err) == (0, "")
    assert "lambda_grpo on treewalk: 4 steps of 1 × 4 completions, seed 5, float32" in out
    assert out.count("of 3 held-out problems") == 3  # before step 1, after 2 and 4
    assert f"{4 * 4 * (3 + 1)} tokens in all, prompts included" in out
    settings = read_settings("here/run")
    assert settings["task_options"] == {"n": 2, "depth": 3}
    assert settings["objective_options"] == {"beta": 0.1}
    assert (settings["max_grad_norm"], settings["seed"], settings["steps"]) == (None, 5, 4)
    assert settings["learning_rate"] == 3e-4  # what the task recommends
    assert sorted(os.listdir("here/run")) == [
        "checkpoint-000000.mgc",
        "checkpoint-000004.mgc",
        "lock",
        "metrics.jsonl",
        "settings.json",
    ]
    assert (
        run("train", *TINY, "--resume", "here/run", "--seed", 5)[0] == 0
    )  # the settings that it has may be said again


def test_train_without_a_folder_writes_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("train", *TINY)[0] == 0
    assert os.listdir(tmp_path) == []


def test_samples_of_a_run_are_what_tree_reads(run, tmp_path):
    assert run("train", *TINY, "--log-samples-every", 2, "--out", tmp_path)[0] == 0
    code, out, _ = run("tree", tmp_path / "samples.jsonl", "--show", 1)
    assert code == 0
    assert "2 with 8 completions" in " ".join(out.split())


def test_train_starts_from_another_run(run, stored, tmp_path):
    run("train", *TINY, "--steps", 0, "--init", stored / "two", "--out", tmp_path)
    files = [
        folder / name
        for folder, name in (
            (tmp_path, "checkpoint-000000.mgc"),
            (stored / "two", "checkpoint-000004.mgc"),
        )
    ]
    outputs = [run("evaluate", file, "--samples", 3) for file in files]
    assert outputs[0] == outputs[1]


def test_evaluate(run, stored):
    code, out, err = run("evaluate", stored / "one", "--prompts", 5, "--samples", 3, "--k", 1, 2)
    assert (code, err) == (0, "")
    names = [
        "eval/pass@1_greedy",
        "eval/reward_greedy",
        "eval/pass@1",
        "eval/pass@2",
        "eval/prompts",
    ]
    assert [line.split()[0] for line in out.splitlines()] == names
    assert out.split()[-1] == "5"
    first = run("evaluate", stored / "one" / "checkpoint-000000.mgc", "--samples", 3)[1]
    assert "eval/pass@3" in first
    assert (
        first
        == run("evaluate", stored / "one" / "checkpoint-000000.mgc", "--samples", 3, "--seed", 0)[1]
    )
    assert (
        first
        != run("evaluate", stored / "one" / "checkpoint-000000.mgc", "--samples", 3, "--seed", 1)[1]
    )
    cold = run("evaluate", stored / "one", "--samples", 3, "--temperature", 1e-6)[1].splitlines()
    assert [line.split()[1] for line in cold[2:4]] == [cold[0].split()[1]] * 2  # as greedy


def test_sample(run, stored, tmp_path):
    code, out, err = run(
        "sample",
        stored / "one",
        "--group-size",
        5,
        "--prompt",
        "RL",
        "--out",
        tmp_path / "tree.svg",
    )
    assert (code, err) == (0, "")
    assert re.search(r"prompt +RL\ngroup +k = 5, 20 tokens", out)
    assert f"figure: {tmp_path / 'tree.svg'}" in out
    assert "<svg" in (tmp_path / "tree.svg").read_text(encoding="utf-8")
    assert (
        run("sample", stored / "one", "--seed", 1)[1]
        == run("sample", stored / "one", "--seed", 1)[1]
    )
    assert (
        "k = 8, 32 tokens of which 4 distinct"
        in run("sample", stored / "one", "--temperature", 1e-6)[1]
    )


def test_tree(run, stored, tmp_path):
    code, out, err = run("tree", stored / "group.json", "--out", tmp_path / "tree.png")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert "k = 4, 5 tokens of which 3 distinct (40% shared)" in out
    assert ["├─", "5", "3", "0.67", "+0.29", "y0", "y2", "y3"] in rows  # (2/3 - 1/2) / 0.577
    assert ["│", "└─", "!", "1", "0.00", "-0.87", "y2"] in rows
    assert ["└─", "6", "1", "0.00", "-0.87", "y1"] in rows
    assert (tmp_path / "tree.png").read_bytes().startswith(b"\x89PNG")
    assert run("tree", "-", stdin=json.dumps(CLASSROOM))[1] == out.partition("figure")[0]
    ids = {"completions": [[10, 11], [10, 12]]}
    assert "10" in run("tree", "-", stdin=json.dumps(ids))[1]
    for unit, n_tokens in (("auto", 4), ("words", 4), ("characters", 8)):
        assert (
            f"k = 2, {n_tokens} tokens"
            in run("tree", "-", "--unit", unit, stdin='{"completions": ["ab c", "ab d"]}')[1]
        )
    logged = (
        '{"completion": "a", "good": 3, "reward": 1}\n{"completion": "b", "good": 5, "reward": 1}'
    )
    assert "3 5; mean 4.00" in run("tree", "-", "--reward-name", "good", stdin=logged)[1]


def test_tree_of_many_groups(run, stored, tmp_path):
    code, out, err = run("tree", stored / "log.jsonl", "--out", tmp_path / "page.png", "--show", 2)
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "groups 2 with 5 completions (and 1 of one completion, left out)" in text
    assert text.count("process step") == 2
    assert "10, of which 8 distinct" in text
    assert (tmp_path / "page.png").stat().st_size > 10_000
    (tmp_path / "first.jsonl").write_text(
        "\n".join(x for x in (stored / "log.jsonl").read_text().splitlines() if "2+2=" in x)
    )
    run("tree", tmp_path / "first.jsonl", "--out", tmp_path / "first.png")
    assert (
        imread(tmp_path / "page.png").shape != imread(tmp_path / "first.png").shape
    )  # all groups, not the first


def test_ascii_is_ascii(run, stored):
    for file in ("group.json", "log.jsonl"):
        assert not run("tree", stored / file)[1].isascii()
        code, out, _ = run("tree", stored / file, "--ascii")
        assert code == 0
        assert out.isascii()
        assert "|L|" in out


def test_equivalence(run, stored):
    code, out, err = run("equivalence")
    assert (code, err) == (0, "")
    assert "Theorem 1 holds (tolerance 1e-12)" in out
    value, gradient = map(float, re.findall(r"difference (?:at most )?(\S+)", out))
    assert gradient > 2 * value
    assert run("equivalence", "--tolerance", gradient / 2)[0] == 1  # both must hold
    code, out, _ = run("equivalence", "--tolerance", 0, "--beta", 0.5, "--prompts", 3, "--seed", 4)
    assert code == 1
    assert "Theorem 1 FAILS (tolerance 0)" in out
    assert run("equivalence", stored / "two", "--group-size", 12)[0] == 0
    assert run("equivalence", "--beta", 0)[1] != run("equivalence", "--beta", 0.5)[1]
    code, out, _ = run(
        "equivalence", "--task", "arithmetic", "--prompts", 1
    )  # untrained: nothing is right
    assert code == 0
    assert "all rewards are equal in every group, so only the KL term was compared" in out


def test_plot(run, stored, tmp_path, monkeypatch):
    code, out, err = run("plot", stored / "one")
    assert (code, err, out) == (0, "", f"figure: {stored / 'one' / 'metrics.png'}\n")
    assert (stored / "one" / "metrics.png").stat().st_size > 10_000
    runs, drawn, draw = (
        [stored / name for name in ("one", "two", "three")],
        [],
        comparison.learning_curves,
    )
    monkeypatch.setattr(
        comparison,
        "learning_curves",
        lambda curves, **options: drawn.append(curves) or draw(curves, **options),
    )
    assert run("plot", *runs, "--key", "entropy", "--out", tmp_path / "curves.svg")[0] == 0
    one, two, three = (
        [record["entropy"] for record in read_records(folder / "metrics.jsonl")] for folder in runs
    )
    assert {name: values.tolist() for name, values in drawn[0].items()} == {
        "grpo": [one, three],
        "lambda_grpo": [two],
    }
    figure = (tmp_path / "curves.svg").read_text(encoding="utf-8")
    assert all(
        word in figure
        for word in ("<!-- grpo (2) -->", "<!-- lambda_grpo (1) -->", "<!-- entropy -->")
    )


def test_as_a_program_without_a_terminal(tmp_path, stored):
    """Standard output has nothing but results, standard error nothing at all, so no bars."""

    def program(*arguments, stdin=None):
        command = [sys.executable, "-m", "minigrpo", *map(str, arguments)]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, encoding="utf-8"
        )

    warm = [
        "--task",
        "arithmetic",
        "--task-option",
        "digits=1",
        "--warm-start-steps",
        3,
        "--prompts-per-step",
        2,
    ]
    done = program("train", *TINY, *warm, "--eval-every", 4, "--out", tmp_path / "run")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(read_records(tmp_path / "run" / "metrics.jsonl")) == 5
    assert program("evaluate", tmp_path / "run", "--samples", 2).stderr == ""
    done = program("tree", "-", stdin=json.dumps(CLASSROOM))
    assert (done.returncode, done.stderr) == (0, "")
    assert "2+3=" in done.stdout
    done = program("tree", "-", stdin="")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert program().stdout.startswith("usage: minigrpo")
