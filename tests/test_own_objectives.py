"""Objectives of a user's own: worked examples, from a file, from Python, and what is told."""

import ast
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from helpers import random_rollouts, rollouts_of, tiny_model

from minigrpo import Objective, TrainSettings, load_run, train
from minigrpo.command.cli import main
from minigrpo.engine.parts import log_probabilities
from minigrpo.experiments.step_verifier import Verified
from minigrpo.objectives import Coefficients
from minigrpo.runs.own_objective import checked, described, load_objective, short_name
from minigrpo.runs.policy import make_model, make_state
from minigrpo.runs.train import train_step
from minigrpo.show.comparison import _line_names, run_settings
from minigrpo.tasks import find_task
from minigrpo.trainer import compute_gradients, parts_to_learn_from

EXAMPLES = Path(__file__).parents[1] / "tutorials" / "own_work"
SQUARE, GSPO = f"{EXAMPLES}/inverse_square_root.py:InverseSquareRoot", f"{EXAMPLES}/gspo.py:GSPO"
TINY = {"dim": 8, "n_layers": 1, "n_heads": 2, "steps": 2, "eval_every": 0}


# -- the worked examples ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inverse_square_root", "gspo", "step_verifier"])
def test_an_example_takes_under_twenty_lines(name):
    """Of its class, all lines with code count, and it says how it is run."""
    file = EXAMPLES / f"{name}.py"
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert f"{file.name}:" in ast.get_docstring(tree)
    (cls,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    start = min([cls.lineno, *(d.lineno for d in cls.decorator_list)])
    lines = text.splitlines()[start - 1 : cls.end_lineno]
    assert sum(bool(line.strip()) for line in lines) < 20


def test_the_inverse_square_root_is_alpha_one_half():
    own, same = load_objective(SQUARE), Objective.preset("lambda_grpo", alpha=0.5)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        rollouts = random_rollouts(rng, p_truncated=0.2)
        rewards = rng.random(len(rollouts.tree.paths))
        found, expected = (o.coefficients(rollouts, rewards) for o in (own, same))
        for name in vars(expected):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-14)


def test_the_step_verifier_is_that_of_the_experiment():
    task = find_task(f"{EXAMPLES}/step_verifier.py:Verified")
    for text in ("8+7=15;", "8+7=15;5+6=11;", "8+7=15;5+6+1=12;3+4+1=8;825", "825;", "", ";;"):
        assert task.score_prefix("358+467=", text) == Verified().score_prefix("358+467=", text)


def gspo_by_rows(completions, rewards, logp, old, low, high):
    """GSPO's loss by its definition (arXiv:2507.18071, equations 5 to 7), row by row.   (B,T)"""
    loss, i, n = 0.0, 0, sum(map(len, completions))
    for group in completions:
        r = rewards[i : i + len(group)]
        advantage = (r - r.mean()) / (r.std(ddof=1) + 1e-4) if np.ptp(r) else 0 * r
        for y, a in zip(group, advantage, strict=True):
            if len(y):
                s = np.exp((logp[i, : len(y)] - old[i, : len(y)]).mean())
                loss -= min(s * a, min(max(s, 1 - low), 1 + high) * a) / n
            else:  # no token, no ratio: its constant stands for nothing
                pass
            i += 1
    return loss


def test_gspo_has_the_gradient_of_its_definition():
    """In a later update, on micro-batches: central differences of code that knows no tree."""
    objective = load_objective(GSPO, clip_low=0.02, clip_high=0.03)
    model, rng, seen = tiny_model(vocab_size=3), np.random.default_rng(0), set()
    for _ in range(3):
        rollouts = random_rollouts(rng)
        tree, n = rollouts.tree, rollouts.tree.n_nodes
        start = model.parameters.flat.copy()
        whole = parts_to_learn_from(model, tree, None, 10_000)
        old = log_probabilities(model, whole, 1.0, n)
        rollouts = replace(rollouts, logp=old)
        rewards = rng.random(len(tree.paths)).round(1)
        model.parameters.flat[:] += 0.02 * rng.standard_normal(start.size)
        now = model.parameters.flat.copy()

        def value(at, tree=tree, whole=whole, rollouts=rollouts, rewards=rewards, old=old, n=n):
            model.parameters.flat[:] = at
            along = [tree.on_tokens(x) for x in (log_probabilities(model, whole, 1.0, n), old)]
            return gspo_by_rows(rollouts.completions, rewards, *along, 0.02, 0.03)

        logp = log_probabilities(model, whole, 1.0, n)
        found = objective.coefficients(rollouts, rewards, None, logp)
        parts = parts_to_learn_from(model, tree, None, 9)
        assert len(parts) > 3
        loss, _ = compute_gradients(model, parts, objective, found, 1.0, old)
        gradient = model.gradients.flat.copy()
        assert loss == pytest.approx(value(now), rel=1e-10, abs=1e-12)
        direction, h = rng.standard_normal(now.size), 1e-6
        slope = (value(now + h * direction) - value(now - h * direction)) / (2 * h)
        assert gradient @ direction == pytest.approx(slope, rel=2e-6)
        model.parameters.flat[:] = start
        share = objective.metrics(found, logp, old)["clip_ratio/region_mean"]
        seen.add(0 < share < 1)
    assert True in seen  # some completions were clipped, and some were not


def test_gspo_takes_token_advantages_and_the_first_update_is_grpo():
    """With nothing clipped yet, the gradient is that of GRPO with a mean per sequence."""
    rng = np.random.default_rng(2)
    rollouts = random_rollouts(rng)
    rewards, values = rng.random(len(rollouts.tree.paths)), rng.random(rollouts.tree.n_nodes)
    for changes in ({}, {"process_weight": 0.5}, {"process_reward": "tree"}):
        own = load_objective(GSPO, **changes)
        same = Objective.preset("grpo", aggregation="sequence_mean", **changes)
        given = (rollouts, rewards, values) if "process_weight" in changes else (rollouts, rewards)
        logp = rollouts.logp
        pair = [o.evaluate(o.coefficients(*given), logp, logp)[1] for o in (own, same)]
        np.testing.assert_allclose(*pair, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", [GSPO, SQUARE])
def test_updates_on_micro_batches_are_those_of_the_whole(name):
    after = []
    for nodes in (10_000, 25):
        settings = TrainSettings(
            **TINY, objective=name, inner_epochs=3, micro_batch_tokens=nodes, dtype="float64"
        )
        task = find_task("treewalk")
        model = make_model(settings, task)
        state = make_state(settings, model)
        train_step(state, task, settings)
        after.append(model.parameters.flat.copy())
    np.testing.assert_allclose(*after, rtol=1e-8, atol=1e-10)


def test_the_policy_is_asked_for_once_before_each_update_after_the_first():
    asked = []

    @dataclass(frozen=True)
    class Asks(Objective):
        every_update = True

        def on_nodes(self, rollouts, a, per_node=False, logp=None):
            asked.append(None if logp is None else np.abs(logp - rollouts.logp).max())
            return super().on_nodes(rollouts, a, per_node, logp)

    train(TrainSettings(**TINY, inner_epochs=3), objective=Asks(), progress=False)
    assert [x is None for x in asked] == [True, False, False] * 2
    assert all(0 < x < 0.1 for x in asked if x is not None)


# -- from the command line -------------------------------------------------------------------------

OWN = """from dataclasses import dataclass
from minigrpo import Objective
from beside import FACTOR

@dataclass(frozen=True)
class Mine(Objective):
    strength: float = 1.0

    def advantages(self, rollouts, rewards):
        return FACTOR * self.strength * super().advantages(rollouts, rewards)

def plain():
    return Objective.preset("dapo")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    (here / "my.py").write_text(OWN, encoding="utf-8")
    (here / "beside.py").write_text("FACTOR = 2.0\n", encoding="utf-8")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return here


SMALL = ["train", "--steps", "2", "--dim", "8", "--n-layers", "1", "--group-size", "4"]
SMALL += ["--prompts-per-step", "2"]


def test_a_run_with_an_objective_of_ones_own(folder, tmp_path, monkeypatch, capsys):
    """Trained, evaluated and plotted from elsewhere, resumed there, and told if it has changed."""
    options = ["--objective", "my.py:Mine", "--objective-option", "strength=3"]
    assert main([*SMALL, *options, "--checkpoint-every", "1", "--out", "../run"]) == 0
    assert main([*SMALL, "--objective", "my.py:plain", "--out", "../other"]) == 0
    assert "Mine on treewalk: 2 steps" in capsys.readouterr().out
    stored = json.loads((tmp_path / "run/settings.json").read_text(encoding="utf-8"))
    assert stored["objective_file"] == str((folder / "my.py").resolve())
    assert stored["objective"] == "my.py:Mine" and "task_file" not in stored
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for command in (["evaluate", "../run"], ["plot", "../run", "../other"]):
        assert main(command) == 0, capsys.readouterr().err
    sorted((tmp_path / "run").glob("*.mgc"))[-1].unlink()
    assert main(["train", "--resume", "../run"]) == 0
    assert capsys.readouterr().err.count("is not what it was") == 0
    with (folder / "my.py").open("a", encoding="utf-8") as file:
        file.write("# edited\n")
    load_run(tmp_path / "run")
    assert "my.py is not what it was when" in capsys.readouterr().err
    (folder / "my.py").unlink()
    assert main(["evaluate", "../run"]) == 0  # needs no objective
    sorted((tmp_path / "run").glob("*.mgc"))[-1].unlink()
    assert main(["train", "--resume", "../run"]) == 2
    assert "there is no objective file" in capsys.readouterr().err


def test_the_resumed_run_has_the_same_bits(folder):
    settings = TrainSettings(**TINY | {"steps": 3}, objective="my.py:Mine", checkpoint_every=1)
    straight, _ = train(settings, "straight", progress=False)
    train(settings, "again", progress=False)
    for old in sorted(Path("again").glob("*.mgc"))[1:]:
        old.unlink()
    resumed, _ = train(settings, "again", resume=True, progress=False)
    np.testing.assert_array_equal(straight.parameters.flat, resumed.parameters.flat)
    with pytest.raises(ValueError, match=r"other settings \(objective was 'my.py:Mine', not "):
        train(replace(settings, objective="my.py:plain"), "again", resume=True, progress=False)


def test_lines_of_a_figure_have_short_names(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("my.py", "beside.py"):
        (other / name).write_bytes((folder / name).read_bytes())
    runs = {"a": "my.py:Mine", "b": "./my.py:Mine", "c": "my.py:plain", "d": f"{other}/my.py:Mine"}
    for out, objective in runs.items():
        train(TrainSettings(**TINY, objective=objective), out, progress=False)
    a, b, c, d = (run_settings(out) for out in runs)
    assert a == b and "objective_file" not in a
    assert _line_names([a, c]) == ["Mine", "plain"] and _line_names([a]) == ["Mine"]
    assert len(set(_line_names([a, d]))) == 2  # two files have a class of that name
    assert short_name("C:/x/my.py:Mine") == "Mine" and short_name("grpo") == "grpo"


def fails(capsys, *options):
    assert main([*SMALL, *options]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("none.py:Mine", "there is no objective file 'none.py': check the path"),
        ("my.py", "'my.py' names a file but no class in it: write my.py:MyObjective"),
        ("my.py:Other", "the objective file 'my.py' has no class 'Other': it has Mine"),
        ("my.py:FACTOR", "the objective file 'my.py' has no class 'FACTOR'"),
        ("broken.py:Mine", "the objective file 'broken.py' cannot be imported: ZeroDivisionError"),
        ("my.py:dataclass", "objective 'my.py:dataclass' is <function"),
        ("ppo", "unknown objective 'ppo': choose from"),
    ],
)
def test_what_is_no_objective_is_told(folder, capsys, option, message):
    (folder / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    assert message in fails(capsys, "--objective", option)
    assert not list(folder.glob("run*"))


def test_options_of_an_own_objective_are_checked(folder, capsys):
    told = fails(capsys, "--objective", "my.py:Mine", "--objective-option", "strenght=1")
    assert "objective 'my.py:Mine' has no option 'strenght': its options are name, base" in told
    told = fails(capsys, "--objective", "my.py:Mine", "--objective-option", "beta=-1")
    assert "beta is -1: it must be a finite number" in told
    assert "has no option 'beta'" in fails(
        capsys, "--objective", "my.py:plain", "--objective-option", "beta=1"
    )


BAD = {  # the body of a method, and what is told of it
    "def advantages(self, rollouts, rewards): return 1.0": "advantages gave an array of shape ()",
    "def advantages(self, rollouts, rewards): return rewards[:-1]": "it must return shape (8,) or",
    "def advantages(self, rollouts, rewards): return rewards * float('nan')": "advantages gave nan",
    "def advantages(self, rollouts): return 1": "TypeError: ",
    "def advantages(self, rollouts, rewards): return ['a'] * 8": "it must return shape (8,)",
    "def node_weights(self, count): return 1.0": "node_weights gave an array of shape ()",
    "def node_weights(self, count): return 1 / (count - count)": "node_weights gave inf at [0]",
    "def node_weights(self, count): return 1 / undefined": "NameError: name 'undefined' is not de",
    "def node_values(self, c, logp, old): return logp": "it must return shape (2, ",
    "def node_values(self, c, logp, old): return logp, logp[1:]": "node_values gave (",
    "def node_values(self, c, logp, old): return logp, logp * float('inf')": "must be finite",
    "def coefficients(self, *args): return None": "it gave None: it must return Coefficients",
    "def on_nodes(self, *args): return super().on_nodes(*args).push": "it gave array([",
    "def evaluate(self, *args): return 1.0": "TypeError: cannot unpack",
    "def evaluate(self, c, logp, *args): return 'x', logp": "the loss gave 'x'",
    "def evaluate(self, c, logp, *args): return 1, logp * 0 + 1": "1.0 at node 0, which has no",
    "def metrics(self, *args): return 3": "TypeError: 'int' object is not iterable",
    "def metrics(self, *args): return {'x': 'y'}": "x gave 'y': it must return a number",
}


@pytest.mark.parametrize("body", BAD)
def test_what_an_own_objective_returns_is_checked(folder, capsys, body):
    head = "from minigrpo import Objective\nclass Bad(Objective):\n    "
    (folder / "bad.py").write_text(f"{head}{body}\n", encoding="utf-8")
    told = fails(capsys, "--objective", "bad.py:Bad")
    assert BAD[body] in told and "of objective 'bad.py:Bad' failed" in told, told
    assert "of bad.py" in told, told  # the place


def test_divergence_of_an_own_objective_is_divergence(folder, capsys):
    (folder / "big.py").write_text(
        "from minigrpo import Objective\nclass Big(Objective):\n"
        "    def node_values(self, c, logp, old):\n        return 1e308 * logp, 1e308 * logp\n",
        encoding="utf-8",
    )
    assert main([*SMALL, "--objective", "big.py:Big"]) in (1, 2)
    assert capsys.readouterr().err.count("\n") == 1


# -- from Python -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Half(Objective):
    part: float = 0.5

    def advantages(self, rollouts, rewards):
        return self.part * super().advantages(rollouts, rewards)


def test_a_plain_objective_given_in_python_is_written_as_changes_to_a_preset(tmp_path):
    given = Objective.preset("dapo", beta=0.1, clip_low=None)
    settings = TrainSettings(**TINY)
    model, _ = train(settings, tmp_path / "run", objective=given, progress=False)
    stored = json.loads((tmp_path / "run/settings.json").read_text(encoding="utf-8"))
    assert (stored["objective"], stored["objective_options"]) == (
        "dapo",
        {"beta": 0.1, "clip_low": None},
    )
    again = TrainSettings(**TINY | described(given))
    assert again.make_objective() == given
    same, _ = train(again, progress=False)
    np.testing.assert_array_equal(model.parameters.flat, same.parameters.flat)
    own = described(Objective(alpha=2.0))
    assert replace(TrainSettings(**own).make_objective(), name="custom") == Objective(alpha=2.0)


def test_a_class_given_in_python_has_to_be_given_again(tmp_path, capsys):
    settings, out = TrainSettings(**TINY, checkpoint_every=1), tmp_path / "run"
    train(settings, out, objective=Half(part=0.25), progress=False)
    sorted(out.glob("*.mgc"))[-1].unlink()
    stored = run_settings(out)
    assert (stored["objective"], stored["part"]) == ("Half (given in Python)", 0.25)
    assert _line_names([stored]) == ["Half"]
    assert main(["evaluate", str(out)]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", str(out)]) == 2
    assert "was started with objective Half (given in Python): resume it" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"other settings \(objective_options was"):
        train(settings, out, resume=True, objective=Half(), progress=False)
    _, history = train(settings, out, resume=True, objective=Half(part=0.25), progress=False)
    assert [metrics["step"] for metrics in history] == [2]
    with pytest.raises(ValueError, match=r"objective is 'grpo': it must be a minigrpo.Objective"):
        train(settings, objective="grpo", progress=False)


def test_a_checked_objective_is_the_same_one():
    rng = np.random.default_rng(0)
    rollouts = random_rollouts(rng)
    rewards, logp = rng.random(len(rollouts.tree.paths)), rng.standard_normal(rollouts.tree.n_nodes)
    own = Half(part=0.25, alpha=1.0, clip_high=0.1)
    seen = checked(own, "mine")
    assert isinstance(seen, Half) and seen.part == 0.25 and checked(Objective(), "x") == Objective()
    c, d = own.coefficients(rollouts, rewards), seen.coefficients(rollouts, rewards)
    for name in vars(c):
        np.testing.assert_array_equal(getattr(c, name), getattr(d, name))
    for one, two in zip(
        own.evaluate(c, logp, 0 * logp), seen.evaluate(d, logp, 0 * logp), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    assert own.metrics(c, logp, 0 * logp) == seen.metrics(d, logp, 0 * logp)


def test_coefficients_may_have_fields_of_their_own():
    @dataclass(frozen=True, eq=False)
    class More(Coefficients):
        extra: np.ndarray

    rollouts = rollouts_of([np.array([1])], [[np.array([1, 2]), np.array([1, 3])]])
    c = Objective().coefficients(rollouts, [0.0, 1.0])
    more = More(**vars(c), extra=np.arange(4.0))
    part = more.for_part(np.array([0, 1, 3]), np.array([False, True, True]))
    assert type(part) is More and part.extra.tolist() == [0, 1, 3]
    assert part.push.tolist() == [0, *more.push[[1, 3]]]


def test_task_and_objective_keep_their_folders(folder, tmp_path, capsys):
    """Both import a neighbour of their own only when they are asked, from two folders."""
    (folder / "late.py").write_text(
        "from minigrpo import Objective\nclass Late(Objective):\n"
        "    def node_weights(self, count):\n        from of_objective import power\n"
        "        return count**power\n",
        encoding="utf-8",
    )
    (folder / "of_objective.py").write_text("power = -1.0\n", encoding="utf-8")
    there = tmp_path / "there"
    there.mkdir()
    (there / "task.py").write_text(
        "from minigrpo.tasks.treewalk import TreeWalk\nclass Walk(TreeWalk):\n"
        "    def score(self, rollouts):\n        from of_task import factor\n"
        "        return factor * super().score(rollouts)\n",
        encoding="utf-8",
    )
    (there / "of_task.py").write_text("factor = 0.5\n", encoding="utf-8")
    before = list(sys.path)
    options = ["--task", f"{there}/task.py:Walk", "--objective", "late.py:Late"]
    assert main([*SMALL, *options, "--out", "run"]) == 0, capsys.readouterr().err
    assert main(["evaluate", "run"]) == 0, capsys.readouterr().err
    train(TrainSettings(**TINY, objective="late.py:Late"), progress=False)
    assert len(set(sys.path) - set(before)) <= 2  # one folder for each kind of file


def test_a_field_that_is_an_array_is_written_down_as_text(tmp_path):
    @dataclass(frozen=True)
    class Weighted(Objective):
        table: object = None

    given = Weighted(table=np.arange(3))
    train(TrainSettings(**TINY), tmp_path / "run", objective=given, progress=False)
    assert run_settings(tmp_path / "run")["table"] == "array([0, 1, 2])"


def test_options_of_a_class_that_is_no_dataclass_are_refused(tmp_path):
    """They would be silently ignored: the object has its base class's values."""
    file = tmp_path / "mine.py"
    head = "from dataclasses import dataclass\nfrom minigrpo import Objective\n"
    body = "class Mine(Objective):\n    alpha: float = 1.0\n"
    file.write_text(head + body, encoding="utf-8")
    with pytest.raises(ValueError, match=r"alpha .* would not be used: write @dataclass"):
        load_objective(f"{file}:Mine")
    file.write_text(f"{head}@dataclass(frozen=True)\n{body}", encoding="utf-8")
    assert load_objective(f"{file}:Mine").alpha == 1


def test_a_metric_of_every_run_cannot_be_overwritten(tmp_path):
    file = tmp_path / "mine.py"
    text = "from minigrpo import Objective\nclass Mine(Objective):\n"
    file.write_text(text + "    def metrics(self, *a): return {'step': 99}\n", encoding="utf-8")
    settings = TrainSettings(objective=f"{file}:Mine", steps=1)
    with pytest.raises(ValueError, match="step is a metric of every run"):
        train(settings, progress=False)


def test_node_values_of_another_shape_are_refused_in_a_loop_of_ones_own():
    """A sum would be spread over all nodes: a wrong loss without a word."""

    class Summed(Objective):
        def node_values(self, coefficients, logp, old):
            value, slope = super().node_values(coefficients, logp, old)
            return value.sum(), slope.sum()

    rollouts = random_rollouts(np.random.default_rng(0))
    logp, rewards = rollouts.logp, np.arange(len(rollouts.tree.lengths), dtype=float)
    with pytest.raises(ValueError, match="node_values gave numbers of shape"):
        Summed()(rollouts, rewards, logp, logp)
