"""Runs on a table of the user's own, with a language model of a few thousand weights: warm start,
training, and evaluation from another folder.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="language models need the extra lm")
pytest.importorskip("tokenizers", reason="language models need the extra lm")
pytest.importorskip("gguf", reason="language models need the extra lm")
from tiny_language_model import make

from minigrpo import tasks
from minigrpo.command.cli import main
from minigrpo.models import save_hugging_face
from minigrpo.runs.checkpoint import checkpoints
from minigrpo.runs.folder import read_metrics
from minigrpo.runs.policy import load_run
from minigrpo.runs.stored_settings import read_settings
from minigrpo.system.files import read_records

CSV = "q,a,split\nab,1,train\nba,2,train\nabc,3,train\nbb,4,test\n"
OPTIONS = ["--task-option", "prompt=q", "--task-option", "answer=a"]
OPTIONS += ["--task-option", "max_new_tokens=4"]
SMALL = ["--steps", "2", "--group-size", "4", "--prompts-per-step", "2"]
SMALL += ["--checkpoint-every", "1"]
WARM = ["--warm-start-steps", "120", "--warm-start-batch", "3"]
WARM += ["--warm-start-learning-rate", "0.01"]
TASK = '''"""Short answers, from a table of mine."""
from minigrpo.tasks import Rows
from weights import SHORT


class Mine(Rows):
    file, prompt, answer, split = "t.csv", "{q}:", "a", "split"
    max_new_tokens, reward_weights = 4, {"short": SHORT}

    def score_row(self, row, completion):
        return {"right": completion.strip() == row["a"], "short": len(completion) < 3}
'''


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_hugging_face(*make(max_seq_len=400), tmp_path_factory.mktemp("model") / "m"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "here/data").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here/data/t.csv").write_text(CSV, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def run(capsys, *words, code=0):
    found = main([*map(str, words)])
    out, err = capsys.readouterr()
    assert found == code and "Traceback" not in err, err
    return out, err


def test_the_rows_are_learned_from_their_answers(model, here, capsys):
    """The warm start copies the answers of the train split, and only those."""
    split = ["--task-option", "split=split", "--task-option", "file=data/t.csv"]
    command = ["train", "--model", model, "--task", "rows", *OPTIONS, *split, *SMALL, *WARM]
    run(capsys, *command, "--learning-rate", "1e-6", "--out", "run")
    first, *_, last = read_metrics("run", before=True)
    assert first["eval/prompts"] == last["eval/prompts"] == 1  # as many as are held out
    samples = read_records("run/samples.jsonl")
    asked = dict(line.split(",")[:2] for line in CSV.splitlines()[1:4])
    assert {sample["prompt"] for sample in samples} <= set(asked)
    right = [s["completion"].strip() == asked[s["prompt"]] for s in samples]
    assert [bool(s["reward"]) for s in samples] == right and np.mean(right) > 0.5
    task = load_run("run")[1]
    assert task.texts(np.random.default_rng(0), 3, "test") == ["bb"] * 3


def test_a_run_finds_its_table_from_another_folder(model, here, capsys, monkeypatch):
    command = ["train", "--model", model, "--task", "rows", *OPTIONS, "--task-option", "split=0.4"]
    run(capsys, *command, "--task-option", "file=data/t.csv", *SMALL, "--out", "../run")
    stored = read_settings("../run")
    assert stored["task_options"]["file"] == "data/t.csv"
    assert stored["data_file"] == str(here / "here/data/t.csv")
    metrics = Path("../run/metrics.jsonl").read_bytes()
    for folder, name in (("elsewhere", ""), ("here", "data/t.csv"), ("here/data", "t.csv")):
        monkeypatch.chdir(here / folder)
        checkpoints(here / "run")[-1].unlink()
        named = ["--task-option", f"file={name}"] if name else []
        run(capsys, "train", "--resume", here / "run", *named)
        out, err = run(capsys, "evaluate", here / "run", "--prompts", 2)
        assert "eval/pass@1_greedy" in out and "note" not in err
        run(capsys, "sample", here / "run", "--group-size", 2, "--prompt", "ab")
    again = (here / "run/metrics.jsonl").read_bytes()
    timeless = [
        [
            {k: v for k, v in json.loads(line).items() if k != "step_time"}
            for line in text.split(b"\n")[:-1]
        ]
        for text in (metrics, again)
    ]
    assert timeless[0] == timeless[1]
    # another table of this name in the current folder is not taken, and refused where it is given
    monkeypatch.chdir(here / "elsewhere")
    Path("data").mkdir()
    Path("data/t.csv").write_text("q,a\nother,1\n", encoding="utf-8")
    assert "note" not in run(capsys, "evaluate", here / "run", "--prompts", 1)[1]
    checkpoints(here / "run")[-1].unlink()
    named = ["--task-option", "file=elsewhere.csv"]
    assert "has other settings" in run(capsys, "train", "--resume", here / "run", *named, code=2)[1]
    # a table that has changed is noted, and one that is gone is sought where it is called
    table = here / "here/data/t.csv"
    table.write_text(CSV.replace("bb,4", "bb,5"), encoding="utf-8")
    err = run(capsys, "evaluate", here / "run", "--prompts", 1)[1]
    assert f"note: {table} is not what it was when {here / 'run'} was trained" in err
    table.unlink()
    shutil.rmtree("data")
    err = run(capsys, "evaluate", here / "run", "--prompts", 1, code=2)[1]
    assert f"there is no file '{table}': check the path" in err
    Path("data").mkdir()
    Path("data/t.csv").write_text(CSV, encoding="utf-8")
    assert "note" not in run(capsys, "evaluate", here / "run", "--prompts", 1)[1]


def test_a_task_of_rows_with_its_neighbours_from_another_folder(model, here, capsys, monkeypatch):
    Path("data/mine.py").write_text(TASK, encoding="utf-8")
    Path("data/weights.py").write_text("SHORT = 0.25\n", encoding="utf-8")
    command = ["train", "--model", model, "--task", "data/mine.py:Mine", *SMALL]
    run(capsys, *command, "--warm-start-steps", 2, "--out", "../run")
    monkeypatch.chdir(here / "elsewhere")
    Path("t.csv").write_text("another,table\n", encoding="utf-8")
    Path("weights.py").write_text("raise ValueError('another file')\n", encoding="utf-8")
    out, err = run(capsys, "evaluate", "../run", "--prompts", 1)
    assert "eval/rewards/right" in out and "note" not in err
    found = read_metrics("../run")[-1]
    total = found["rewards/right/mean"] + found["rewards/short/mean"] / 4
    assert np.isclose(found["reward"], total)
    checkpoints("../run")[-1].unlink()
    run(capsys, "train", "--resume", "../run")
    with (here / "here/data/t.csv").open("a", encoding="utf-8") as file:
        file.write("bc,5,test\n")
    err = run(capsys, "evaluate", "../run", "--prompts", 1)[1]
    assert f"note: {here / 'here/data/t.csv'} is not what it was" in err


TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }}<end>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}assistant {% endif %}"


def test_a_chat_of_rows_is_learned(model, here, capsys):
    """Prompts are rendered by the model's template, answers end where it ends a turn."""
    pytest.importorskip("jinja2", reason="chat templates need the extra lm")
    shutil.copytree(model, "chat")
    Path("chat/chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    options = ["chat=true", "system=Brief.", "split=split", "file=data/t.csv", "scorer=number"]
    options = [word for option in options for word in ("--task-option", option)]
    command = ["train", "--model", "chat", "--task", "rows", *OPTIONS, *options, *SMALL, *WARM]
    run(capsys, *command, "--learning-rate", "1e-6", "--out", "run")
    samples = read_records("run/samples.jsonl")
    asked = dict(line.split(",")[:2] for line in CSV.splitlines()[1:4])
    assert {s["prompt"][0]["content"] for s in samples} == {"Brief."}
    right = [s["completion"] == asked[s["prompt"][-1]["content"]] for s in samples]
    assert [bool(s["reward"]) for s in samples] == right and np.mean(right) > 0.5
    out, err = run(capsys, "evaluate", "run")  # all that are held out, once each
    assert "note" not in err and re.search(r"eval/prompts +1$", out, re.MULTILINE)
    err = run(capsys, "evaluate", "run", "--prompts", 2, code=2)[1]
    assert "the table holds 1 held-out problems, not 2: take --prompts 1" in err


def test_runs_on_one_table_are_one_task_however_it_is_called(model, here, capsys):
    files = ["data/t.csv", here / "here/data/t.csv"]
    for seed, file in enumerate(files):
        command = ["train", "--model", model, "--task", "rows", *OPTIONS, *SMALL, "--seed", seed]
        options = ["--task-option", f"file={file}", "--task-option", "split=split"]
        run(capsys, *command, *options, "--out", f"run{seed}")
    assert "figure" in run(capsys, "plot", "run0", "run1", "--out", "both.svg")[0]
    (here / "here/data/u.csv").write_text(CSV + "bc,5,test\n", encoding="utf-8")
    run(capsys, *command, *options, "--task-option", "file=data/u.csv", "--out", "run2")
    err = run(capsys, "plot", "run0", "run2", "--out", "both.svg", code=2)[1]
    assert "runs of different tasks cannot be compared" in err and len(err) < 2000


def test_messages_of_the_command(model, here, capsys):
    train = ["train", "--model", model, "--task", "rows", "--steps", 1]
    err = run(capsys, *train, code=2)[1]
    assert "a task of rows needs the option 'file'" in err
    table = ["--task-option", "file=data/t.csv"]
    err = run(capsys, *train, *OPTIONS, *table, "--task-option", "split=1", code=2)[1]
    assert "t.csv has no train problem at split=1: give another share" in err
    err = run(
        capsys, "train", "--task", "rows", *OPTIONS, "--task-option", "file=data/t.csv", code=2
    )[1]
    assert "task 'rows' is made of text, for a language model: give one" in err


def test_the_example_of_the_readme(model, here, capsys):
    readme = (Path(tasks.__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Your own data")[1].split("\n## ")[0]
    command, python = (
        section.split(f"```{kind}\n")[1].split("```")[0] for kind in ("bash", "python")
    )
    Path("my_task.py").write_text(python, encoding="utf-8")
    cities = {"Peru": "Lima", "Cuba": "Havana", "Egypt": "Cairo", "Chad": "N'Djamena"}
    table = "country,capital\n" + "".join(f"{c},{a}\n" for c, a in cities.items())
    Path("capitals.csv").write_text(table, encoding="utf-8")
    words = shlex.split(command.replace("smollm2", shlex.quote(model)))
    assert words.pop(0) == "minigrpo"
    run(capsys, *words, *SMALL, "--task-option", "max_new_tokens=3", "--warm-start-steps", 1)
    assert "The capital of" in Path("capitals/samples.jsonl").read_text(encoding="utf-8")
    task = tasks.find_task("my_task.py:Capitals")
    (prompt, text), *_ = task.demonstrations(np.random.default_rng(0), 1)
    assert json.loads(text)["capital"] in cities.values() and "{" not in prompt[0]["content"]
    assert task.reward(prompt, text) == {"json": True, "right": True, "short": True}
    assert task.reward(prompt, "x" * 40) == {"json": False, "right": False, "short": False}
