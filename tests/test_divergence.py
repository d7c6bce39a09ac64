"""No NaN that ends well: what diverges stops with one sentence, keeps its last good checkpoint, and
writes no NaN anywhere.
"""

import ast
import json
import re
import shlex
import shutil
import warnings
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from helpers import rollouts_of, tiny_model

from minigrpo import sample, trainer
from minigrpo.command.cli import main
from minigrpo.engine import tree_statistics
from minigrpo.engine.divergence import DivergenceError
from minigrpo.rewards import check_rewards
from minigrpo.runs.checkpoint import load_checkpoint, save_checkpoint
from minigrpo.runs.folder import checkpoints
from minigrpo.runs.policy import load_run
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train
from minigrpo.tree import PrefixTree

TINY = {
    "dim": 8,
    "n_layers": 1,
    "n_heads": 2,
    "group_size": 8,
    "prompts_per_step": 1,
    "steps": 4,
    "log_samples_every": 1,
}
UNEQUAL = {
    "task_options": {"depth": 3, "target": "LLL"}
}  # rewards that differ within the first group
HUGE = {"float32": 1e30, "float64": 1e200}


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def strictly(text: str) -> list:
    """JSON lines, without the NaN and Infinity that Python's reader takes."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def good_until(folder: Path, step: int) -> None:
    """The run's newest checkpoint is that of `step`, its files hold finite numbers, and its records
    are JSON of no other step.
    """
    file = checkpoints(folder)[-1]
    arrays, state = load_checkpoint(file)
    assert state["step"] == step
    assert all(np.isfinite(array).all() for array in arrays.values())
    load_run(folder)
    for name in ("metrics.jsonl", "samples.jsonl"):
        records = (
            strictly((folder / name).read_text(encoding="utf-8"))
            if (folder / name).exists()
            else []
        )
        assert {record["step"] for record in records} <= set(range(step + 1))
        assert step == 0 or records


# -- training --------------------------------------------------------------------------------------

DIVERGING = {
    "adamw": {"learning_rate": None},
    "sgd": {"learning_rate": None, "optimizer": "sgd"},
    "sgd without clipping": {"learning_rate": None, "optimizer": "sgd", "max_grad_norm": None},
    "a decay": {"learning_rate": None, "weight_decay": 1e-300},
    "several updates a step": {"learning_rate": None, "inner_epochs": 3},
    "finite weights, too large": {"learning_rate": 1e15},
    "a last step": {"learning_rate": None, "steps": 1},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("what", DIVERGING)
def test_a_run_stops_at_the_step_that_diverges(what: str, dtype: str, tmp_path: Path) -> None:
    rate = DIVERGING[what]["learning_rate"] or HUGE[dtype]
    if what == "finite weights, too large" and dtype == "float64":
        rate = 1e60
    changes = DIVERGING[what] | {"learning_rate": rate, "dtype": dtype, "checkpoint_every": 1}
    with pytest.raises(
        DivergenceError,
        match=r"^training diverged at step 1: the model's weights are not finite, or so large",
    ):
        train(TrainSettings(**TINY | UNEQUAL | changes), tmp_path / "run", progress=False)
    good_until(tmp_path / "run", 0)


def test_what_the_message_advises_works(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A KL term is 0 at the first step, so that its weight of 1e100 shows at the second."""
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in TINY.items())
    command = f"train {flags} --task-option target=LLLL --checkpoint-every 1 --learning-rate 0.1"
    run = tmp_path / "run"
    assert main([*command.split(), "--objective-option", "beta=1e100", "--out", str(run)]) == 1
    said = capsys.readouterr().err
    start = (
        r"minigrpo train: training diverged at step 2: the norm of its gradient "
        r"is (nan|inf); the checkpoint of step 1 is kept: "
    )
    assert re.match(start, said)
    assert (
        said.endswith(f"another --out, from its weights with --init {run}\n")
        and said.count("\n") == 1
    )
    good_until(run, 1)
    advice = shlex.split(said[said.index("--init") :])
    again = tmp_path / "again"
    assert main([*command.split(), "--learning-rate", "1e-4", "--out", str(again), *advice]) == 0
    good_until(again, 4)
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 1  # the same bits, and so the same end
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_warm_start_that_diverges_leaves_no_run(dtype: str, steps: int, tmp_path: Path) -> None:
    changes = {
        "task": "arithmetic",
        "warm_start_steps": steps,
        "warm_start_learning_rate": HUGE[dtype],
        "dtype": dtype,
    }
    with pytest.raises(
        DivergenceError,
        match=r"^training diverged at warm-start step 1: .*; lower warm_start_learning_rate$",
    ):
        train(TrainSettings(**TINY | changes), tmp_path, progress=False)
    assert not checkpoints(tmp_path)


def test_a_metric_that_is_not_finite_stops_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = {"tree/mean_count": float("nan")}
    monkeypatch.setattr(tree_statistics, "tree_metrics", lambda tree: broken)
    with pytest.raises(
        DivergenceError,
        match=r"step 1: the metric tree/mean_count is nan; the checkpoint of step 0 is kept",
    ):
        train(TrainSettings(**TINY), tmp_path, progress=False)
    good_until(tmp_path, 0)


def test_a_language_model_diverges_likewise(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for extra in ("safetensors", "tokenizers", "gguf"):
        pytest.importorskip(extra, reason="language models need the extra lm")
    from tiny_language_model import make

    from minigrpo.models import save_hugging_face

    model = save_hugging_face(*make(max_seq_len=400), tmp_path / "model")
    task = Path(__file__).parent / "text_task.py"
    command = [
        "train",
        "--model",
        str(model),
        "--task",
        f"{task}:Spaces",
        "--steps",
        "3",
        "--group-size",
        "4",
    ]
    assert main([*command, "--learning-rate", "1e38", "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert (
        said.startswith("minigrpo train: training diverged at step 1: ") and said.count("\n") == 1
    )
    good_until(tmp_path / "run", 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"weight_decay": 1e308},
            (
                r"^weight_decay \(1e\+308\) × learning_rate \(0\.0001\) "
                r"is above 1: every step would turn"
            ),
        ),
        ({"weight_decay": 11.0, "learning_rate": 0.1}, "is above 1"),
        *(
            ({"temperature": t}, r"^temperature is .*: it must be from 1e-06 to 1e\+06")
            for t in (1e-300, 1e300, 9e-7, np.nan, -1.0)
        ),
    ],
)
def test_settings_that_nobody_can_mean_are_refused(changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainSettings(**TINY | changes)


def test_settings_that_somebody_may_mean_are_not() -> None:
    for changes in ({"weight_decay": 10.0, "learning_rate": 0.1}, {"temperature": 1e-6}):
        TrainSettings(**TINY | changes)


# -- rewards ---------------------------------------------------------------------------------------

BAD_REWARDS = {
    "nan": (
        float("nan"),
        "the reward of completion 1 of prompt 1 is nan: rewards must be finite numbers",
    ),
    "inf": (float("inf"), "the reward of completion 1 of prompt 1 is inf"),
    "a sum that overflows": (
        1e308,
        r"the reward of completion 1 of prompt 1 is 1e\+308: .*, up to 1e\+100 in size",
    ),
    "another": (-1e308, r"the reward of completion 1 of prompt 1 is -1e\+308"),
    "squares that overflow": (1e160, r"is 1e\+160"),
    "float32's nan": (np.float32("nan"), "is nan"),
    "None": (None, "is nan"),
    "a number that no float holds": (10**400, "4 completions need as many rewards, not "),
    "a string": ("1", "4 completions need as many rewards, not "),
    "a complex number": (1j, "4 completions need as many rewards, not "),
    "a text among objects": (
        np.array("1", dtype=object),
        "4 completions need as many rewards, not ",
    ),
    "a text of NumPy among objects": (np.str_("1"), "4 completions need as many rewards, not "),
    "a list": ([1.0], "4 completions need as many rewards, not "),
}


@pytest.mark.parametrize("what", BAD_REWARDS)
def test_rewards_that_are_no_finite_numbers_are_refused(what: str) -> None:
    value, said = BAD_REWARDS[what]
    with pytest.raises(ValueError, match=said):
        check_rewards([1.0, 0.0, 0.5, value], np.array([0, 0, 1, 1]))
    if isinstance(value, str | complex | np.ndarray):
        objects = np.array([1.0, 0.0, 0.5, None], dtype=object)
        objects[3] = value
        with pytest.raises(ValueError, match=said):
            check_rewards(objects, np.array([0, 0, 1, 1]))


@pytest.mark.parametrize("value", [True, 10**90, np.float16(2), np.int8(3), 1e100])
def test_other_numbers_are_rewards(value: object) -> None:
    np.testing.assert_array_equal(check_rewards([value, 0], np.array([0, 0])), [float(value), 0])


def test_rewards_too_large_for_the_dtype_stop_the_run(tmp_path: Path) -> None:
    changes = {
        "task_options": {"depth": 3, "r_neg": -1e100, "target": "RRR"},
        "objective": "dr_grpo",
    }
    with pytest.raises(
        DivergenceError, match=r"step 1: the norm of its gradient is (nan|inf); .*smaller rewards"
    ):
        train(TrainSettings(**TINY | changes), tmp_path, progress=False)
    good_until(tmp_path, 0)


# -- weights that came from elsewhere --------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(TrainSettings(**TINY | {"steps": 2}), folder, progress=False)
    return folder


def rewritten(run: Path, folder: Path, name: str, value: float, everywhere: bool = False) -> Path:
    """A copy of a run whose newest checkpoint holds this value in an array, its checksum right."""
    shutil.copytree(run, folder)
    file = checkpoints(folder)[-1]
    arrays, state = load_checkpoint(file)
    changed = {each: np.array(array) for each, array in arrays.items()}
    changed[name][0 if not everywhere else slice(None)] = value
    save_checkpoint(file, changed, state)
    return folder


COMMANDS = {
    "evaluate": "evaluate {run}",
    "sample": "sample {run}",
    "export": "export {run} --out {out}",
    "equivalence": "equivalence {run}",
    "init": "train --init {run} --dim 8 --n-layers 1 --n-heads 2 --steps 1 --out {out}",
}


FLOAT64 = "equivalence", 1e30  # it computes in float64, which has room for these


@pytest.mark.parametrize(
    ("command", "value"),
    sorted({*product(COMMANDS, (np.nan, np.inf, -np.inf, 1e30))} - {FLOAT64}, key=str),
)
def test_a_checkpoint_of_such_weights_is_refused(
    command: str, value: float, run: Path, tmp_path: Path, capsys
) -> None:
    bad = rewritten(run, tmp_path / "bad", "parameters", value, everywhere=value == 1e30)
    assert main(COMMANDS[command].format(run=bad, out=tmp_path / "out").split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert (
        f"{bad} cannot be used: the model's weights are not finite, or "
        f"so large that what it computes overflows"
    ) in said
    assert not checkpoints(tmp_path / "out") and not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("name", ["parameters", "m", "v"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_such_a_checkpoint_is_not_gone_on_with(
    name: str, value: float, run: Path, tmp_path: Path, capsys
) -> None:
    bad = rewritten(run, tmp_path / "bad", name, value)
    before = {file.name: file.read_bytes() for file in bad.iterdir()}
    assert main(["train", "--resume", str(bad)]) == 2
    said = capsys.readouterr().err
    assert (
        f"the run's newest checkpoint cannot be used (its {name} are not "
        f"all finite numbers): delete it to go on"
    ) in said
    assert (
        said.count("\n") == 1
        and {file.name: file.read_bytes() for file in bad.iterdir() if file.name in before}
        == before
    )


def test_float64_weights_that_float32_cannot_hold_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "bad")
    file = checkpoints(tmp_path / "bad")[-1]
    arrays, state = load_checkpoint(file)
    save_checkpoint(
        file, {name: array.astype(np.float64) + 1e100 for name, array in arrays.items()}, state
    )
    with pytest.raises(ValueError, match="cannot be used: the model's weights are not finite"):
        load_run(tmp_path / "bad")


# -- the model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", list(tiny_model().parameters))
def test_one_weight_that_is_no_number_stops_sampling(name: str, dtype: str) -> None:
    for value in (np.nan, np.inf):
        model = tiny_model(dtype=dtype)
        model.parameters[name].flat[0] = value
        with pytest.raises(DivergenceError, match="the model's weights are not finite"):
            sample(model, [[1], [2, 3]], 4, np.random.default_rng(0), max_new_tokens=3)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float32", 1e15), ("float32", 1e30), ("float64", 1e120), ("float64", 1e300)],
)
def test_weights_that_overflow_stop_sampling(dtype: str, value: float) -> None:
    """All of them at once: squares of the residual stream overflow, a norm makes 0 of it, and every
    logit is an innocent 0.
    """
    model = tiny_model(dtype=dtype)
    model.parameters.flat[:] = value
    with pytest.raises(DivergenceError, match="so large that what it computes overflows"):
        sample(model, [[1], [2, 3]], 4, np.random.default_rng(0), max_new_tokens=3)


def test_large_weights_that_do_not_overflow_are_sampled_from() -> None:
    model = tiny_model(dtype="float32")
    model.parameters["lm_head.weight"][...] *= 1e9
    rollouts = sample(model, [[1]], 4, np.random.default_rng(0), max_new_tokens=3)
    assert np.isfinite(rollouts.logp).all()


def test_logits_that_overflow_stop_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the trial of the weights has not shown it."""
    model = tiny_model(dtype="float32")
    model.parameters["lm_head.weight"][1] = 3e38
    monkeypatch.setattr(type(model), "check_weights", lambda self: None)
    with pytest.raises(DivergenceError, match="overflows"):
        sample(model, [[1]], 4, np.random.default_rng(0), max_new_tokens=3)


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "lm_head.weight", "model.layers.1.mlp.down_proj.weight"]
)
def test_a_forward_of_such_weights_says_so(name: str) -> None:
    model = tiny_model(dtype="float32")
    model.parameters[name].flat[0] = np.nan
    tree = rollouts_of([np.array([1])], [[np.array([1, 2]), np.array([0])]]).tree
    with pytest.raises(DivergenceError, match="the model's weights are not finite"):
        model.forward(tree)


def test_a_tree_without_completions_has_nothing_that_could_overflow() -> None:
    tree = PrefixTree.from_groups([np.array([1, 2])], [[np.array([], dtype=int)] * 2])
    assert not tiny_model().forward(tree).any()


# -- JSON ------------------------------------------------------------------------------------------


def test_no_file_of_the_package_can_hold_nan() -> None:
    """Wherever JSON is made, NaN raises, but for what quotes somebody's input in a message."""
    quoting = {"logs/rows", "logs/grouping", "logs/reward_columns", "logs/groups"}
    quoting |= {"command/commands", "experiments/warm_start", "models/hugging_face"}
    quoting |= {"system/tables", "show/watch", "show/table"}  # these only read what is there
    quoting |= {"models/text_tokenizer"}  # a filter of chat templates
    quoting |= {"course/student", "course/plain"}  # an answer may be NaN: it is told that it is
    loose, strict = Counter(), 0
    package = Path(trainer.__file__).parent
    for file in package.rglob("*.py"):
        name = file.relative_to(package).with_suffix("").as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("dumps", "dump"):
                loose[name] += 1
            if isinstance(node, ast.Call) and any(
                k.arg == "allow_nan" and not k.value.value for k in node.keywords
            ):
                loose[name] -= 1
                strict += 1
    assert strict > 10
    assert {name for name, n in loose.items() if n} <= quoting
