"""A user with work of their own, in an empty folder: a task, a table of problems, a sweep, its
figure and table, more steps, and a model to take away.
"""

import csv
import json
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from minigrpo.command.cli import main
from minigrpo.experiments import parallel
from minigrpo.system.files import read_records

PROBLEMS = "question,answer,split\n" + "".join(
    f"{a}{b},{b}{a},{'test' if a == b else 'train'}\n" for a in "abc" for b in "abc"
)
TASK = '''
"""Write two letters backwards: ab= is answered by ba."""

import csv
from pathlib import Path

from minigrpo.tasks import CharTokenizer, score_texts

TABLE = Path(__file__).with_name("problems.csv").read_text(encoding="utf-8")
ROWS = list(csv.DictReader(TABLE.splitlines()))
ANSWERS = {row["question"] + "=": row["answer"] for row in ROWS}


class Backwards:
    tokenizer = CharTokenizer("abc=")
    max_new_tokens = 3
    defaults = {"dim": 16, "n_layers": 1, "warm_start_steps": 4, "eval_every": 5,
                "eval_prompts": 3, "group_size": 4, "prompts_per_step": 2}

    def prompts(self, rng, n, split="train"):
        own = [row["question"] + "=" for row in ROWS if row["split"] == split]
        return [self.tokenizer.encode(prompt) for prompt in rng.choice(own, n)]

    def score(self, rollouts):
        """A half for each letter that is right, and the whole reward for nothing else."""

        def reward(prompt, text):
            right = sum(a == b for a, b in zip(ANSWERS[prompt], text))
            return right / 2 - 0.25 * (len(text) != 2)

        return score_texts(rollouts, self.tokenizer, reward)

    def demonstrations(self, rng, n):
        encode, eos = self.tokenizer.encode, self.tokenizer.eos
        pairs = [(p, ANSWERS[self.tokenizer.decode(p)]) for p in self.prompts(rng, n)]
        return [(p, [*encode(text), eos]) for p, text in pairs]
'''


@pytest.fixture
def minigrpo(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder.   -> what it prints; nothing is on standard error"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["minigrpo"])

    def run(line, *more):
        capsys.readouterr()
        assert main([*line.split(), *more]) == 0, capsys.readouterr().err
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


def serial(function, jobs, **_):
    """Jobs in this process, one after the other."""
    return [function(**json.loads(json.dumps(job))) for job in jobs]


def numbers(path):
    """A table as pandas reads it: numbers where all of a column's values are numbers."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in rows[0]:
        try:
            for row, value in zip(rows, [float(row[name] or "nan") for row in rows], strict=True):
                row[name] = value
        except ValueError:
            continue
    return rows


def test_with_a_task_of_characters(minigrpo, tmp_path, monkeypatch):
    (tmp_path / "problems.csv").write_text(PROBLEMS, encoding="utf-8")
    (tmp_path / "backwards.py").write_text(TASK, encoding="utf-8")
    sweep = "sweep --task backwards.py:Backwards --grid objective=grpo,lambda_grpo --seeds 2"
    sweep += " --out sweep --processes 2 --steps"
    printed = minigrpo(f"{sweep} 10")  # in two processes
    lines = printed.splitlines()
    assert lines[0].startswith("0 of 4 runs are finished; while the others run, minigrpo table ")
    assert lines[1].startswith("objective    runs  steps_done  ")
    folders = [f"sweep/objective={o},seed={s}" for o in ("grpo", "lambda_grpo") for s in (0, 1)]
    assert sorted(map(str, (tmp_path / "sweep").iterdir())) == [str(tmp_path / f) for f in folders]

    minigrpo("table sweep --out runs.csv")
    rows = numbers("runs.csv")
    assert [(row["folder"], row["seed"], row["steps_done"]) for row in rows] == [
        (folder, seed, 10) for folder, seed in zip(folders, (0, 1, 0, 1), strict=True)
    ]
    assert all(-0.25 <= row["final_reward"] <= 1 for row in rows)
    assert {type(x) for row in rows for n, x in row.items() if n.startswith("last/")} == {float}

    assert "figure: curves.png" in minigrpo("plot --out curves.png", *folders)
    assert imread("curves.png").std() > 0.01
    minigrpo("plot --key eval/pass@1_greedy --out greedy.png", *folders)

    printed = minigrpo("train --steps 15 --resume", folders[3])  # one of them goes on
    assert "15 steps" in printed and "greedy pass@1" in printed
    monkeypatch.setattr(parallel, "run_jobs", serial)
    assert minigrpo(f"{sweep} 15").startswith("1 of 4 runs are finished; ")  # then all
    minigrpo("table sweep --all --out all.csv")
    assert [row["steps_done"] for row in numbers("all.csv")] == [15] * 4
    assert {row["task"] for row in numbers("all.csv")} == {"backwards.py:Backwards"}
    steps = [record["step"] for record in read_records(f"{folders[3]}/metrics.jsonl")]
    assert steps == list(range(16))

    assert "eval/pass@1_greedy" in minigrpo("evaluate --prompts 3 --samples 2", folders[0])
    assert "ab=" in minigrpo("sample --prompt ab= --group-size 4", folders[0])
    assert "completions" in minigrpo("tree --show 1", f"{folders[0]}/samples.jsonl")


def test_with_a_language_model_and_a_table_of_problems(minigrpo, tmp_path, monkeypatch):
    for package in ("safetensors", "tokenizers", "gguf"):
        pytest.importorskip(package, reason="language models need the extra lm")
    from tiny_language_model import make

    from minigrpo.models import load_model, save_hugging_face
    from minigrpo.runs.policy import load_run

    monkeypatch.setattr(parallel, "run_jobs", serial)
    save_hugging_face(*make(), tmp_path / "model")
    (tmp_path / "problems.csv").write_text(PROBLEMS, encoding="utf-8")
    task = f"--model model --task rows --task-option file={tmp_path / 'problems.csv'}"
    for option in ("prompt={question}=", "answer=answer", "split=split", "max_new_tokens=3"):
        task += f" --task-option {option}"
    sizes = "--group-size 4 --prompts-per-step 2 --eval-every 2 --eval-prompts 2"
    sizes += " --schedule constant --warm-start-steps 1 --out sweep"
    grid = "--grid learning_rate=1e-3,1e-2 --grid task-option.scorer=exact,contains"
    printed = minigrpo(f"sweep {task} {sizes} {grid} --steps 2")
    header = printed.splitlines()[1].split()
    assert header[:4] == ["task_options.scorer", "learning_rate", "runs", "steps_done"]

    folder = "sweep/learning_rate=1e-2,task_option.scorer=exact,seed=0"
    minigrpo("train --steps 3 --resume", folder)
    minigrpo("table sweep --out runs.csv")
    assert {row["folder"]: row["steps_done"] for row in numbers("runs.csv")}[folder] == 3
    assert sorted(row["steps_done"] for row in numbers("runs.csv")) == [2, 2, 2, 3]
    minigrpo("plot --out one.svg", folder)

    minigrpo("export --out mine", folder)
    assert minigrpo("sample --model mine --group-size 2 ab=").count("log p") == 2
    given, made, trained = load_model("model")[0], load_model("mine")[0], load_run(folder)[0]
    assert np.array_equal(made.parameters.flat, trained.parameters.flat)
    assert not np.array_equal(made.parameters.flat, given.parameters.flat)
