"""Whole runs: the warm start, that learning happens, tasks in files of one's own, settings that
cannot work.
"""

import dataclasses
import re
import warnings

import numpy as np
import pytest
from helpers import relative

from minigrpo import PrefixTree, TransformerConfig, sample
from minigrpo.engine.optim import AdamW
from minigrpo.runs.policy import make_model, warm_start
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train
from minigrpo.tasks import load_task

TINY = {"dim": 16, "n_layers": 1, "n_heads": 2, "dtype": "float64"}


def test_the_warm_start_learns_the_demonstrations():
    task = load_task("arithmetic", digits=1)
    ends = []
    for micro_batch_tokens in (10_000, 20):
        settings = TrainSettings(
            **TINY,
            warm_start_steps=60,
            warm_start_batch=16,
            warm_start_learning_rate=0.02,
            micro_batch_tokens=micro_batch_tokens,
        )
        model = make_model(settings, task)
        pairs = task.demonstrations(np.random.default_rng(99), 50)
        tree = PrefixTree.from_groups([p for p, _ in pairs], [[c] for _, c in pairs])
        before = -model.forward(tree)[tree.scored].mean()
        warm_start(model, task, np.random.default_rng(0), settings)
        after = -model.forward(tree)[tree.scored].mean()
        assert before == pytest.approx(np.log(14), rel=0.1)  # near uniform over the vocabulary
        assert after < 0.6 * before
        ends.append(model.parameters.flat)
    assert relative(ends[1], ends[0]) < 1e-9


def test_the_warm_start_is_maximum_likelihood():
    """AdamW on the mean of -log p over a batch, every demonstration computed alone."""
    task, rate = load_task("arithmetic", digits=2), 0.01
    settings = TrainSettings(
        **TINY, warm_start_steps=25, warm_start_batch=5, warm_start_learning_rate=rate
    )
    model, usual = make_model(settings, task), make_model(settings, task)
    warm_start(model, task, np.random.default_rng(4), settings)
    rng, optimizer = np.random.default_rng(4), AdamW(usual.parameters)
    for step in range(25):
        pairs = task.demonstrations(rng, 5)
        flat = PrefixTree.from_groups([p for p, _ in pairs], [[c] for _, c in pairs], merge=False)
        usual.gradients.flat[:] = 0
        usual.forward(flat)
        usual.backward(np.where(flat.scored, -1 / sum(len(c) for _, c in pairs), 0.0))
        usual.gradients.flat[:] /= max(1, np.linalg.norm(usual.gradients.flat))
        factor = (step + 1) / 21 if step < 20 else 0.5 + 0.5 * np.cos(np.pi * (step - 20) / 5)
        optimizer.step(usual.parameters, usual.gradients, rate * factor)
    assert relative(model.parameters.flat, usual.parameters.flat) < 1e-9


def test_the_warm_start_needs_demonstrations(tmp_path):
    settings = TrainSettings(**TINY, task="treewalk", warm_start_steps=3, steps=1)
    with pytest.raises(
        ValueError, match="task treewalk has no demonstrations: set warm_start_steps to 0"
    ):
        train(settings, tmp_path / "run", progress=False)
    train(
        dataclasses.replace(settings, warm_start_steps=0), tmp_path / "run", progress=False
    )  # the folder can still be used


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_that_diverges_says_so_and_nothing_else(dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shape = TINY | {"dtype": dtype}
        rate = 1e30 if dtype == "float32" else 1e200
        with pytest.raises(
            FloatingPointError, match=r"^training diverged at step \d+: .*a lower learning rate"
        ):
            train(TrainSettings(**shape, learning_rate=rate, steps=50), progress=False)
        settings = TrainSettings(
            **shape, task="arithmetic", warm_start_steps=9, warm_start_learning_rate=rate
        )
        with pytest.raises(
            FloatingPointError, match=r"at warm-start step \d: .*; lower warm_start_learning_rate$"
        ):
            train(settings, progress=False)


def test_the_same_seed_gives_the_same_bits():
    def run(seed):
        settings = TrainSettings(
            **(
                TINY
                | {"task": "arithmetic", "task_options": {"digits": 1}, "seed": seed, "steps": 4}
            )
        )
        settings = dataclasses.replace(
            settings, warm_start_steps=5, eval_every=2, eval_prompts=4, dtype="float32"
        )
        model, history = train(settings, progress=False)
        return model.parameters.flat.tobytes(), [
            {k: v for k, v in m.items() if k != "step_time"} for m in history
        ]

    assert run(3) == run(3)
    assert run(3)[0] != run(4)[0]


def test_evaluation_along_the_way():
    """Before the first step (in the folder and for on_step only), every so many steps, and after
    the last.
    """
    seen = []
    settings = TrainSettings(**TINY, task="treewalk", steps=5, eval_every=2, eval_prompts=3)
    _, history = train(settings, progress=False, on_step=seen.append)
    assert [m["step"] for m in seen if "eval/pass@1_greedy" in m] == [0, 2, 4, 5]
    assert [m["step"] for m in seen] == [0, 1, 2, 3, 4, 5]
    assert history == seen[1:]


@pytest.mark.parametrize("objective", ["lambda_grpo", "grpo", "rloo"])
def test_training_learns(objective):
    options = {"depth": 3, "n": 1, "r_neg": -0.5, "r_other": 0.0, "target": "RLR"}
    settings = TrainSettings.for_task(
        "treewalk", task_options=options, objective=objective, learning_rate=5e-3, steps=60, dim=16
    )
    model, history = train(settings, progress=False)
    assert np.mean([m["frac_correct"] for m in history[:5]]) < 0.35  # 1/8 by chance
    assert np.mean([m["frac_correct"] for m in history[-10:]]) > 0.9
    assert np.mean([m["reward"] for m in history[-10:]]) > 0.85
    assert [m["step"] for m in history] == list(range(1, 61))
    rollouts = sample(model, [[2]], 4, np.random.default_rng(0), max_new_tokens=3, temperature=0)
    assert [c.tolist() for c in rollouts.completions[0]] == [[1, 0, 1]] * 4


USER_TASK = '''
import numpy as np
from minigrpo.tasks import CharTokenizer, score_texts


class Vowels:
    """Write vowels."""

    tokenizer = CharTokenizer("abcdei:")
    max_new_tokens = 4
    defaults = {"group_size": 8, "learning_rate": 1e-2, "steps": 40, "dim": 16, "n_layers": 1}

    def __init__(self, letters="aei"):
        self.letters = letters

    def prompts(self, rng, n, split="train"):
        return [self.tokenizer.encode(":")] * n

    def score(self, rollouts):
        return score_texts(rollouts, self.tokenizer, self.share)

    def share(self, prompt, text):
        return sum(c in self.letters for c in text) / 4
'''


def test_a_task_in_a_file_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(USER_TASK)
    settings = TrainSettings.for_task(
        f"{tmp_path / 'mine.py'}:Vowels", task_options={"letters": "e"}, steps=50
    )
    assert (settings.group_size, settings.steps, settings.dim) == (
        8,
        50,
        16,
    )  # its defaults, but for what was given
    _, history = train(settings, progress=False)
    assert history[0]["reward"] < 0.4 < 0.8 < np.mean([m["reward"] for m in history[-5:]])
    (tmp_path / "mine.py").write_text(USER_TASK.replace('"dim"', '"width"'))
    with pytest.raises(ValueError, match="there is no setting width: leave it out"):
        TrainSettings.for_task(f"{tmp_path / 'mine.py'}:Vowels")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"group_size": 1},
            "group size 1 leaves lambda_grpo nothing to compare a completion with: take at least 2",
        ),
        (
            {"group_size": 0, "objective": "reinforce"},
            "group_size is 0: it must be a whole number from 1 to 1000000000",
        ),
        ({"steps": -1}, "steps is -1"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        (
            {"learning_rate": float("nan")},
            "learning_rate is nan: it must be a finite number above 0",
        ),
        ({"temperature": 0.0}, "temperature is 0.0"),
        (
            {"max_grad_norm": float("inf")},
            "max_grad_norm is inf: it must be above 0, or none for no clipping",
        ),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0: it must be above 0, or none"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion': choose adamw or sgd"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        ({"objective": "ppo"}, "unknown objective 'ppo': choose from"),
        ({"objective_options": {"gamma": 1}}, "an objective has no field gamma"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainSettings(**changes)


def test_what_a_task_recommends_gives_way_to_what_is_asked_for():
    recommended = load_task("countdown").defaults
    settings = TrainSettings.for_task("countdown")
    assert {name: getattr(settings, name) for name in recommended} == recommended
    asked = TrainSettings.for_task("countdown", task_options={"n_numbers": 2}, steps=5)
    assert (asked.task_options, asked.steps, asked.dim) == (
        {"p_right": 0.3, "n_numbers": 2},
        5,
        recommended["dim"],
    )
    assert TrainSettings.for_task("countdown", task_options={"p_right": 1.0}).task_options == {
        "p_right": 1.0
    }


def test_a_model_has_room_for_the_longest_prompts_of_its_task():
    class Long(type(load_task("arithmetic"))):
        def prompts(self, rng, n, split="train"):
            return [np.zeros(100 + i % 7, dtype=np.int64) for i in range(n)]

    assert make_model(TrainSettings(**TINY), Long()).config == TransformerConfig(
        14, 16, 1, 2, max_seq_len=2 * 106 + 30
    )
