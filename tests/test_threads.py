"""A run of a small model has the same bits on any number of threads, from its first step to its
last file.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_model
from thread_runs import run_all
from threadpoolctl import threadpool_limits

from minigrpo import Objective, PrefixTree, Transformer, TransformerConfig, ops, sample, transformer
from minigrpo.engine import lanes
from minigrpo.engine.optim import clip_gradient
from minigrpo.engine.parts import log_probabilities
from minigrpo.engine.plan import split_tree
from minigrpo.runs.evaluation import evaluate
from minigrpo.runs.policy import make_policy, make_state
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train, train_step
from minigrpo.tasks.treewalk import TreeWalk
from minigrpo.trainer import compute_gradients

pytestmark = pytest.mark.skipif(
    not lanes._blas().lib_controllers, reason="threadpoolctl does not know this BLAS"
)

EASY = {"n_numbers": 2, "max_number": 5, "p_right": 1.0, "test_share": 0.3}
SHORT = {"steps": 4, "checkpoint_every": 2, "log_samples_every": 2}
RUNS = {
    "evaluation and lanes": {
        "steps": 2,
        "eval_every": 2,
        "eval_prompts": 16,
        "log_samples_every": 1,
    }
    | {
        "task": "countdown",
        "task_options": EASY,
        "warm_start_steps": 30,
        "prompts_per_step": 64,
        "group_size": 32,
    },
    "narrow": SHORT
    | {"task": "arithmetic", "task_options": {"digits": 1}, "dim": 32, "warm_start_steps": 20},
    "wide and clipped": SHORT
    | {"task": "treewalk", "dim": 128, "n_heads": 4, "max_grad_norm": 0.05, "group_size": 64},
    "two updates and KL": SHORT
    | {
        "task": "treewalk",
        "dim": 128,
        "objective": "grpo",
        "inner_epochs": 2,
        "objective_options": {"beta": 0.04},
    },
    "float64 and SGD": SHORT
    | {"task": "treewalk", "dim": 96, "optimizer": "sgd", "dtype": "float64", "learning_rate": 0.1},
}
RESUMED = ("narrow", "two updates and KL")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """The runs, and one of a language model where its packages are there; in folders for each
    number of threads.
    """
    runs = dict(RUNS)
    try:
        from tiny_language_model import make

        from minigrpo.models import save_hugging_face
    except ImportError:
        pass
    else:
        model = save_hugging_face(*make(max_seq_len=400), tmp_path_factory.mktemp("model") / "m")
        small = {
            "group_size": 4,
            "prompts_per_step": 2,
            "learning_rate": 1e-3,
            "eval_every": 4,
            "eval_prompts": 4,
        }
        task = f"{Path(__file__).parent / 'text_task.py'}:Spaces"
        runs["language model and a user's task"] = (
            SHORT | small | {"task": task, "model": str(model)}
        )
    folder = tmp_path_factory.mktemp("runs")
    return lambda who: {
        name: {"settings": settings, "out": str(folder / who / name)}
        for name, settings in runs.items()
    }


def test_runs_have_the_same_bits_on_any_number_of_threads(jobs):
    found = {n: run_all(list(jobs(f"{n} threads").values()), n) for n in (1, 2, 4)}
    assert all(set(found[n]["threads"]) == {n} for n in found)
    assert [found[n]["lanes"] for n in found] == [1, 2, 4]
    for n in (2, 4):
        for name, expected, got in zip(jobs(""), found[1]["runs"], found[n]["runs"], strict=True):
            assert got == expected, f"{name}: {n} threads and 1"
    stopped = [jobs("stopped")[name] | {"stop": 2} for name in RESUMED]
    halfway = run_all(stopped, 4)["runs"]
    resumed = run_all([jobs("stopped")[name] for name in RESUMED], 1)["runs"]
    for name, half, whole in zip(RESUMED, halfway, resumed, strict=True):
        expected = found[1]["runs"][list(jobs("")).index(name)]
        assert half["parameters"] != whole["parameters"], f"{name} was not stopped"
        assert whole == expected, f"{name}: stopped with 4 threads, resumed with 1"


def test_without_the_limit_they_differ(jobs):
    """The runs above can tell: the promise is broken here, by BLAS that keeps its threads."""
    one, two = (
        run_all([jobs(f"unlimited {n}")["wide and clipped"]], n, limited=False)["runs"]
        for n in (1, 2)
    )
    assert one != two


@pytest.fixture
def threads():
    """How many threads BLAS has; three, until somebody limits it."""
    with threadpool_limits(3, user_api="blas"):
        yield lambda: {library.num_threads for library in lanes._blas().lib_controllers}


def test_rewards_are_computed_within_the_limit_which_is_lifted_afterwards(threads, monkeypatch):
    """A user's scorer may call BLAS as well."""
    seen = []
    score = TreeWalk.score
    monkeypatch.setattr(
        TreeWalk, "score", lambda self, rollouts: seen.append(threads()) or score(self, rollouts)
    )

    def stop(metrics):
        seen.append(threads())
        raise FloatingPointError("here")

    with pytest.raises(FloatingPointError, match="here"):
        train(TrainSettings(steps=2), on_step=stop, progress=False)
    assert seen == [{1}, {1}]
    assert threads() == {3}
    evaluate(tiny_model(vocab_size=4, n_drawable=2), TreeWalk(), n_prompts=2, progress=False)
    assert seen[2:] == [{1}]
    assert threads() == {3}


def test_a_large_model_has_all_threads_and_with_the_same_number_the_same_bits(threads, monkeypatch):
    monkeypatch.setattr(transformer, "MAX_LANE_PARAMETERS", 1)
    seen = []

    def parameters():
        settings = TrainSettings.for_task(**RUNS["wide and clipped"] | {"steps": 2})
        return train(settings, on_step=lambda metrics: seen.append(threads()), progress=False)[
            0
        ].parameters.flat

    np.testing.assert_array_equal(parameters(), parameters())
    assert seen == [{3}] * 4


def library_calls():
    """The calls of somebody who writes their own loop.   -> arrays"""
    model = Transformer(TransformerConfig(700, 128, 2, 4), seed=3)
    prompts = np.random.default_rng(0).integers(700, size=(5, 12))
    rollouts = sample(model, prompts, 8, np.random.default_rng(1), max_new_tokens=12)
    tree = rollouts.tree
    parts, objective = split_tree(tree, 1024, model.lanes), Objective.preset("grpo", beta=0.1)
    ref = log_probabilities(model, parts, 1.0, tree.n_nodes) - 0.1
    coefficients = objective.coefficients(
        rollouts, np.random.default_rng(2).standard_normal(len(tree.paths))
    )
    loss, logp = compute_gradients(model, parts, objective, coefficients, 1.0, rollouts.logp, ref)
    norm = clip_gradient(model.gradients, 1e-3)
    return [
        rollouts.logp,
        ref,
        loss,
        logp,
        norm,
        model.gradients.flat,
        model.forward(tree),
        model.logits(prompts[0]),
    ]


def test_calls_of_the_library_keep_the_promise_by_themselves(monkeypatch):
    def found(n):
        with threadpool_limits(n, user_api="blas"):
            return library_calls()

    one, two = found(1), found(2)
    assert list(map(np.array_equal, one, two)) == [True] * len(one)
    monkeypatch.setattr(lanes, "_set_threads", lambda n_threads: None)
    assert not all(map(np.array_equal, one, found(2)))  # the promise is broken here


@pytest.mark.parametrize("call", ["forward", "logits", "residual", "sample", "grpo_step"])
def test_every_product_of_a_call_has_one_thread(call, threads, monkeypatch):
    """Most products have the same bits on any number of threads, so that equal bits alone would not
    tell.
    """
    settings, seen = TrainSettings(group_size=2, prompts_per_step=2), []
    model, task = make_policy(settings)
    prompt, rng = np.array([2]), np.random.default_rng(0)
    tree = PrefixTree.from_groups([prompt], [[[0, 1]]])
    state = make_state(settings, model)
    calls = {
        "forward": lambda: model.backward(model.forward(tree)),
        "logits": lambda: model.logits(prompt),
        "residual": lambda: model.residual(prompt),
        "sample": lambda: sample(model, [prompt], 2, rng, max_new_tokens=2),
        "grpo_step": lambda: train_step(state, task, settings),
    }
    for module, name in ((ops, "linear"), (ops, "linear_backward"), (TreeWalk, "score")):
        original = getattr(module, name)

        def record(*args, original=original):
            seen.append(threads())
            return original(*args)

        monkeypatch.setattr(module, name, record)
    calls[call]()
    assert len(seen) >= 8
    assert seen == [{1}] * len(seen)
    assert threads() == {3}


def test_trainings_side_by_side_in_one_process(threads):
    """The limit holds until the longer one has ended, and neither changes the other."""
    settings = [
        TrainSettings.for_task(**RUNS["wide and clipped"] | {"steps": steps}) for steps in (2, 12)
    ]

    def parameters(s):
        return train(s, progress=False)[0].parameters.flat

    alone = [parameters(s) for s in settings]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(parameters, settings))
    assert threads() == {3}
    for expected, got in zip(alone, together, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_scorer_that_sets_the_threads_changes_nothing(threads, tmp_path):
    """A scorer that gives BLAS other threads, and leaves it so, does it for itself alone."""
    wide = TrainSettings(**SHORT, task="treewalk", dim=128, n_heads=4, max_grad_norm=0.05)

    class Sets(TreeWalk):
        def score(self, rollouts):
            threadpool_limits(self.threads, user_api="blas")
            return super().score(rollouts)

    found = []
    for n in (1, 2):
        Sets.threads = n
        model, _ = train(wide, task=Sets(), progress=False)
        found.append(model.parameters.flat.tobytes())
    assert found[0] == found[1]
