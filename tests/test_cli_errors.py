"""Bad input on the command line: exit code 2 and exactly one line that says what was wrong and what
to do.
"""

# ruff: noqa: F811 (a fixture that is imported and an argument have the same name)

import json
import shlex
import shutil
import sys

import pytest
from test_cli import LOG, TINY, run, stored  # noqa: F401

from minigrpo.command.flags import FLAGS
from minigrpo.runs.checkpoint import checkpoints

BAD = {
    "an unknown task": (
        "train --task walk",
        "there is no task 'walk': choose arithmetic, countdown, largest, ",
    ),
    "an unknown command": ("wander", "'wander'", "choose from", "minigrpo --help"),
    "an unknown flag": (
        "train --group 4 --colour blue",
        "unrecognized arguments: --colour blue",
        "--help",
    ),
    "a flag without its value": (
        "train --steps",
        "--steps: expected one argument",
        "minigrpo train --help",
    ),
    "a flag of another type": (
        "train --steps many",
        "--steps: invalid int value: 'many'",
        "minigrpo train --help",
    ),
    "neither number nor none": ("train --max-grad-norm some", "--max-grad-norm", "'some'"),
    "an option without a value": ("train --task-option n", "'n' is not KEY=VALUE"),
    "a choice that is none": ("tree {group} --unit bytes", "'bytes'", "characters"),
    "a group of one": (
        "train --group-size 1",
        "group size 1 leaves lambda_grpo nothing to compare a completion with: take",
    ),
    "negative steps": (
        "train --steps -3",
        "steps is -3: it must be a whole number from 0 to 1000000000",
    ),
    "more steps than can be meant": (
        "train --steps 100000000000000000000",
        "steps is 100000000000000000000: it must be a whole",
    ),
    "more completions than can be meant": (
        "train --group-size 2000000",
        "2000000 × 1 completions a step are more than a million",
    ),
    "more problems than can be meant": (
        "evaluate {one} --prompts 10000000",
        "--prompts: 10000000 is not from 0 to 1,000,000",
    ),
    "a model larger than the memory": (
        "train --dim 100000 --n-heads 2",
        "training this model takes",
        "raise memory_limit",
    ),
    "a learning rate that is no number": (
        "train --learning-rate nan",
        "learning_rate is nan: it must be a finite number above",
    ),
    "a gradient norm below 0": (
        "train --max-grad-norm -1",
        "max_grad_norm is -1.0: it must be above 0, or none",
    ),
    "an unknown objective": (
        "train --objective ppo",
        "unknown objective 'ppo': choose from reinforce, rloo",
    ),
    "an unknown objective option": (
        "train --objective-option gamma=1",
        "an objective has no field gamma",
    ),
    "an unknown choice in an objective": (
        "train --objective-option kl=k4",
        "kl 'k4' is unknown: choose from k1, k2, k3",
    ),
    "an unknown task option": (
        "train --task-option color=red",
        "has no option 'color': its options are depth, n, r_neg",
    ),
    "a task option out of range": (
        "train --task-option depth=99",
        "depth is 99: it must be a whole number from 2 to 12",
    ),
    "an unknown backend": (
        "train --backend tpu",
        "unknown backend 'tpu': choose auto, numpy or cupy",
    ),
    "an unknown dtype": (
        "train --dtype float16",
        "dtype 'float16' is not supported: choose float32 or float64",
    ),
    "heads that do not divide": (
        "train --dim 30 --n-heads 4",
        "dim 30 must divide into 4 heads of an even width",
    ),
    "no demonstrations": (
        "train {tiny} --warm-start-steps 2",
        "has no demonstrations: set warm_start_steps to 0",
    ),
    "a reward that is no number": (
        "train --task {mine}:NoNumber",
        "the reward of completion 2 of prompt 0 is nan: rewards must be finite numbers",
    ),
    "a reward that is nothing": (
        "train --task {mine}:NoNumberByText",
        "to prompt 'a' is None: return a finite number",
    ),
    "a task file that is not there": (
        "train --task gone.py:Mine",
        "there is no task file 'gone.py': check the path",
    ),
    "a task that is not in its file": (
        "train --task {mine}:Yours",
        "has no class 'Yours': it has Mine, NoNumber",
    ),
    "a task file without a class": ("train --task {mine}", "names a file but no class in it"),
    "a task that fails to import": (
        "train --task {broken}:Mine",
        "cannot be imported: ModuleNotFoundError: No module named",
    ),
    "prompts that outgrow the context": (
        "train --task {mine}:Lengthening",
        "101 tokens",
        "holds 64: shorten the prompt or",
    ),
    "a prompt longer than the context": (
        "sample {one} --prompt {long}",
        "max_seq_len) holds 64: shorten the prompt or",
    ),
    "a prompt outside the alphabet": (
        "sample {one} --prompt ABC",
        "character 'A' is not in the alphabet 'LR^': leave it out",
    ),
    "an empty prompt": ("sample {one} --prompt=", "every prompt needs at least one token"),
    "a folder that cannot be made": (
        "train {tiny} --out {group}/below",
        "cannot write to",
        "give a folder that can be written",
    ),
    "a folder that is a file": (
        "train {tiny} --out {group}",
        "cannot write to",
        "give a folder that can be written",
    ),
    "a report that cannot be written": (
        "demo --out {group}/below",
        "cannot write to",
        "give a folder that can be written",
    ),
    "one seed": ("demo --seeds 1 --out {new}", "1 seeds give no confidence band: take at least 2"),
    "a figure in a place that is none": (
        "tree {group} --out {group}/below/tree.png",
        "Not a directory",
    ),
    "a figure of no known kind": (
        "tree {group} --out tree.jpg",
        "cannot write a figure to 'tree.jpg': end its name in .png or",
    ),
    "a plot of no known kind": (
        "plot {one} --out plot",
        "cannot write a figure to 'plot': end its name in .png or .svg",
    ),
    "a folder with a run": (
        "train {tiny} --out {one}",
        "already holds a run: resume it with --resume",
        "or give another --out",
    ),
    "resuming nothing": ("train --resume {new}", "holds no run (no settings.json)"),
    "resuming elsewhere": (
        "train --resume {one} --out {new}",
        "--resume goes on in its own folder: leave out --out",
    ),
    "resuming with other settings": (
        "train --resume {one} --seed 9 --dim 16",
        "seed was 0, not 9",
        "dim was 8, not 16",
        "--out",
    ),
    "resuming with another option": (
        "train --resume {one} --task-option n=2",
        "task_options was {{}}, not {{'n': 2}}",
    ),
    "weights of another shape": (
        "train --dim 16 --init {one}",
        "holds a model of another shape (it differs in dim, ",
    ),
    "weights that are not there": (
        "train {tiny} --init {new}",
        "holds no checkpoint: give the folder of a run",
    ),
    "evaluating nothing": (
        "evaluate {new}",
        "holds no checkpoint: give the folder of a run (minigrpo train --out) or a",
    ),
    "evaluating something else": (
        "evaluate {one}/metrics.jsonl",
        "metrics.jsonl is damaged or no checkpoint of minigrpo",
    ),
    "ks without samples": ("evaluate {one} --k 1 2", "--k needs samples: give --samples too"),
    "more than there are samples": (
        "evaluate {one} --k 4 --samples 2",
        "pass@4 cannot be estimated from 2 samples: take at",
    ),
    "no problems": ("evaluate {one} --prompts 0", "0 problems give no estimate: take at least 1"),
    "a tree of no file": ("tree gone.json", "No such file or directory: gone.json"),
    "a tree of a folder": ("tree {one}", "a folder without completions_*.parquet"),
    "plotting nothing": ("plot {new}", "holds no run (no settings.json)"),
    "plotting a run without steps": (
        "plot {unborn}",
        "unborn has no metrics: its run has not taken a step yet",
    ),
    "comparing a run without steps": (
        "plot {one} {unborn}",
        "unborn has no metrics: its run has not taken a step yet",
    ),
    "plotting what was not measured": (
        "plot {one} {two} --key joy",
        "there is no 'joy' in the metrics of a run: it has",
        "reward, ",
    ),
    "an unknown experiment": ("reproduce table9", "'table9'", "table1"),
    "an experiment with one seed": (
        "reproduce table1 --seeds 1 --out {new}",
        "1 seeds give no interval: take at least 2",
    ),
    "more seeds than targets": (
        "reproduce smollm2-walk --seeds 17 --out {new}",
        "17 seeds, but there are 16 targets, each run once: take at most 16",
    ),
    "an experiment in a place that is none": (
        "reproduce table1 --quick --out {group}/below",
        "Not a directory",
    ),
    "checking groups of one": ("equivalence --group-size 1", "take a group size of at least 2"),
    "checking nothing": (
        "equivalence --task arithmetic --beta 0 --prompts 1",
        "all rewards are equal in every group",
    ),
}


def one_line(outcome):
    """The one line on standard error of a command that must have failed, after notes."""
    code, _, err = outcome
    err = "".join(line for line in err.splitlines(keepends=True) if not line.startswith("note: "))
    assert code == 2, outcome
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert err.startswith("minigrpo")
    assert "Traceback" not in err
    assert len(err) < 1000
    return err


NAMED = [
    (command, name, options)
    for command, flags in FLAGS.items()
    for name, options in flags
    if {"file", "folder", "run", "path", "out", "model", "init", "resume"}
    & {options.get("metavar", "").lower(), name.lstrip("-")}
]


@pytest.mark.parametrize(("command", "name", "options"), NAMED, ids=lambda x: str(x)[:12])
def test_an_empty_name_is_no_file(run, tmp_path, monkeypatch, command, name, options):
    """`--out "$OUT"` with OUT unset: it is not the folder that one happens to be in, and not a flag
    left out.
    """
    monkeypatch.chdir(tmp_path)
    words = {"chapter": ["ch01"], "name": ["theorem"]}  # what has to be given besides
    needed = [n for n, o in FLAGS[command] if (o.get("required") or n in words) and n != name]
    others = [word for n in needed for word in words.get(n, [n, "x"])]
    for empty in ("", " "):
        code, _, err = run(command, *others, *([name, empty] if name[0] == "-" else [empty]))
        assert code == 2
        written = name if name[0] == "-" else options["metavar"]
        assert f"argument {written}: the name is empty (see minigrpo {command} --help)" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what, run, stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line, *expected = BAD[what]
    places = {name: stored / name for name in ("one", "two", "unborn")} | {
        "new": tmp_path / "new",
        "long": "LR" * 40,
    }
    places |= {
        "mine": stored / "mine.py",
        "broken": stored / "broken.py",
        "group": stored / "group.json",
    }
    places = {name: shlex.quote(str(place)) for name, place in places.items()} | {
        "tiny": " ".join(TINY)
    }
    before = {file: file.read_bytes() for file in stored.rglob("*") if file.is_file()}
    err = one_line(run(*shlex.split(line.format(**places))))
    for words in expected:
        assert words.format() in err
    assert {file: file.read_bytes() for file in stored.rglob("*") if file.is_file()} == before
    assert not (tmp_path / "new").exists() or not checkpoints(tmp_path / "new")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no input: a group is a JSON object"),
        (" \n\n", "no input"),
        ('{"completions": ["a", "b"]', "malformed JSON at line 1"),
        (
            '{"prompt": "q", "completion": "a"}\n{"prompt": "q", "completion": oops}',
            "malformed JSON at line 2",
        ),
        ('{"answers": ["a"]}', 'neither "completions" nor "completion"'),
        ("[1, 2]", "group 0 (from 0) is not a JSON object"),
        ('{"completions": []}', "at least one"),
        ('{"completions": ["a", "b"], "rewards": [1]}', "2 completions but 1 rewards"),
        ('{"completions": ["a", "b"], "rewards": [1, NaN]}', "it must be a finite number"),
        ('{"completions": ["a", [1]]}', "texts or token ids, not both"),
        ('{"completions": [[1.5]]}', "neither a text nor a list of token ids"),
        ('{"completions": [[-1]]}', "outside [0, 2**31)"),
        (
            "\n".join(json.dumps({"prompt": p, "completion": c}) for p, c, _ in LOG[4:]),
            "no group has two completions (2 groups of one)",
        ),
    ],
)
def test_bad_groups(text, expected, run):
    err = one_line(run("tree", "-", stdin=text))
    assert err.startswith("minigrpo tree: ")
    assert expected in err


def test_tables_that_cannot_be_read(run, tmp_path, monkeypatch):
    assert "a folder without completions_*.parquet, which TRL writes" in one_line(
        run("tree", tmp_path)
    )
    (tmp_path / "completions_00001.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for what in (tmp_path, tmp_path / "completions_00001.parquet"):
        assert (
            "completions_00001.parquet is a Parquet file, and to read it takes pyarrow"
            in one_line(run("tree", what))
        )


def test_a_missing_or_empty_metrics_file(run, stored, tmp_path):
    folder = shutil.copytree(stored / "one", tmp_path / "one")
    for spoil in (
        (folder / "metrics.jsonl").unlink,
        lambda: (folder / "metrics.jsonl").write_text(""),
    ):
        spoil()
        assert (
            "metrics.jsonl has lost the last 4 of the 4 records that checkpoint-000004.mgc counts"
            in one_line(run("plot", folder))
        )
    for file in checkpoints(folder):
        file.unlink()
    assert "one has no metrics: its run has not taken a step yet" in one_line(run("plot", folder))


def test_a_bad_start_does_not_use_up_a_folder(run, stored, tmp_path):
    """The corrected command may name the same folder."""
    out = ["--out", tmp_path / "run"]
    for wrong in (
        ["--warm-start-steps", 3],
        ["--init", stored / "nothing"],
        ["--init", stored / "one", "--dim", 16],
    ):
        one_line(run("train", *TINY, *out, *wrong))
    assert run("train", *TINY, *out)[0] == 0
    assert [int(file.stem[-6:]) for file in checkpoints(tmp_path / "run")] == [0, 4]


def test_divergence_is_no_bad_input(run):
    code, _, err = run(
        "train",
        *TINY,
        "--task-option",
        "root=L",
        "--task-option",
        "target=RRRR",
        "--learning-rate",
        1e30,
    )
    assert code == 1
    weights = "the model's weights are not finite, or so large that what it computes overflows"
    advice = (
        "train again with a lower learning rate (or smaller rewards or beta, if they are large)"
    )
    assert err == f"minigrpo train: training diverged at step 1: {weights}; {advice}\n"
