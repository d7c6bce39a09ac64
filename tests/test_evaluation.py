"""pass@k against all subsets; evaluation of policies whose success is known."""

import re
from dataclasses import asdict
from itertools import combinations

import numpy as np
import pytest

from minigrpo import sample
from minigrpo.runs import evaluation
from minigrpo.runs.evaluation import evaluate, is_correct, pass_at_k
from minigrpo.runs.policy import load_run, make_model
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.stored_settings import signed
from minigrpo.runs.train import train
from minigrpo.tasks import load_task

TINY = {"dim": 16, "n_layers": 1, "n_heads": 2, "dtype": "float64"}


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n):
    for correct in range(n + 1):
        right = [i < correct for i in range(n)]
        for k in range(1, n + 1):
            share = np.mean([any(subset) for subset in combinations(right, k)])
            assert pass_at_k(n, correct, k) == pytest.approx(share, abs=1e-15)
    assert pass_at_k(n, n, 1) == 1
    for k in (0, n + 1, -1):
        with pytest.raises(
            ValueError,
            match=re.escape(f"pass@{k} cannot be estimated from {n} samples: take at least k"),
        ):
            pass_at_k(n, 0, k)


def test_pass_at_k_is_unbiased():
    """Its mean over binomial counts is the true 1 - (1-p)^k."""
    p, n = 0.3, 8
    chances = np.array(
        [
            np.prod([n - i for i in range(c)]) / np.prod([i + 1 for i in range(c)])
            for c in range(n + 1)
        ]
    )
    chances *= p ** np.arange(n + 1) * (1 - p) ** (n - np.arange(n + 1))
    for k in (1, 3, 8):
        assert sum(chances * [pass_at_k(n, c, k) for c in range(n + 1)]) == pytest.approx(
            1 - (1 - p) ** k, rel=1e-12
        )


def walker(task, sharpness):
    """A policy on `treewalk` that goes on in the direction it came from (> 0), turns (< 0), or does
    not care (0).

    Without its layers the model scores a move by the product of its embedding with that of the
    last move.
    """
    model = make_model(TrainSettings(**TINY), task)
    for name, view in model.parameters.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            view[...] = 0
    model.parameters["model.embed_tokens.weight"][...] = np.outer([1.0, -1.0], np.ones(16))
    model.parameters["model.norm.weight"][...] = sharpness
    return model


@pytest.mark.parametrize(
    ("sharpness", "path"), [(50.0, "LLLL"), (-50.0, "RLRL")]
)  # the prompt is L
def test_a_policy_that_always_walks_one_path(sharpness, path):
    for target, right, reward in ((path, 1.0, 1.0), ("LLRR", 0.0, -1.0 if path[0] == "L" else 0.7)):
        task = load_task("treewalk", target=target, root="L")
        result = evaluate(
            walker(task, sharpness), task, n_prompts=70, samples=3, ks=(1, 3), progress=False
        )
        assert result.pop("eval/reward_greedy") == pytest.approx(reward)
        assert result == {
            "eval/pass@1_greedy": right,
            "eval/pass@1": right,
            "eval/pass@3": right,
            "eval/prompts": 70,
        }


def test_a_policy_that_walks_at_random():
    task = load_task("treewalk", depth=2, target="LR", root="L")
    result = evaluate(
        walker(task, 0.0), task, n_prompts=300, samples=6, ks=(1, 2, 6), progress=False
    )
    for k in (1, 2, 6):
        chance = 1 - 0.75**k
        assert abs(result[f"eval/pass@{k}"] - chance) < 4 * np.sqrt(
            chance * (1 - chance) / (1800 / k)
        )
    sharper = evaluate(
        walker(task, -0.1), task, n_prompts=300, samples=6, temperature=0.05, progress=False
    )
    assert sharper["eval/pass@1"] < 0.01 < result["eval/pass@1"]  # it turns: RL


class Seen:
    """A task, and every problem that it was asked for."""

    def __init__(self, task):
        self.task, self.seen = task, []

    def __getattr__(self, name):
        return getattr(self.task, name)

    def prompts(self, rng, n, split="train"):
        problems = self.task.prompts(rng, n, split)
        self.seen.append((split, [p.tolist() for p in problems]))
        return problems


def test_the_same_seed_takes_the_same_problems_whatever_was_trained():
    task = Seen(load_task("arithmetic", digits=2))
    models = [make_model(TrainSettings(**TINY, seed=seed), task) for seed in (0, 1)]
    task.seen.clear()
    for model, seed in ((models[0], 0), (models[1], 0), (models[0], 1)):
        evaluate(model, task, n_prompts=20, samples=2, seed=seed, progress=False)
    assert [split for split, _ in task.seen] == ["test"] * 3
    first, again, other = (problems for _, problems in task.seen)
    assert first == again != other
    assert len({tuple(p) for p in first}) == 20
    evaluate(models[0], task, n_prompts=2, split="train", progress=False)
    assert task.seen[-1][0] == "train"


def test_in_chunks_as_at_once(monkeypatch):
    shape = TINY | {
        "warm_start_steps": 70,
        "warm_start_batch": 16,
        "warm_start_learning_rate": 0.02,
    }
    settings = TrainSettings(**shape, task="arithmetic", task_options={"digits": 1}, steps=0)
    task = load_task("arithmetic", digits=1)
    model, _ = train(settings, progress=False)
    results = []
    for chunk in (64, 3):
        monkeypatch.setattr(evaluation, "CHUNK", chunk)
        results.append(evaluate(model, task, n_prompts=10, split="train", progress=False))
    assert results[0] == results[1]
    # And by hand: the share of right answers among the greedy ones.
    prompts = task.prompts(np.random.default_rng(0), 10, "train")
    greedy = sample(
        model,
        prompts,
        1,
        np.random.default_rng(9),
        max_new_tokens=task.max_new_tokens,
        eos=13,
        temperature=0,
    )
    sums = [eval_sum(task.tokenizer.decode(p)) for p in prompts]
    answers = [task.tokenizer.decode(group[0]).rpartition(";")[2] for group in greedy.completions]
    assert results[0]["eval/pass@1_greedy"] == np.mean(
        [a == b for a, b in zip(answers, sums, strict=True)]
    )
    assert 0 < results[0]["eval/pass@1_greedy"] < 1


def test_problems_are_judged_one_by_one():
    """Half of the problems are always solved, half never: more samples do not help."""

    class Halves(type(load_task("treewalk"))):
        def prompts(self, rng, n, split="train"):
            return [np.array([i % 2]) for i in range(n)]

        def score(self, rollouts):
            return np.array(
                [
                    1.0 - prompt[0]
                    for prompt, group in zip(rollouts.prompts, rollouts.completions, strict=True)
                    for _ in group
                ]
            )

    result = evaluate(
        walker(Halves(root="L"), 0.0),
        Halves(root="L"),
        n_prompts=90,
        samples=4,
        ks=(1, 2, 4),
        progress=False,
    )
    assert {name: value for name, value in result.items() if "@" in name} == dict.fromkeys(
        ["eval/pass@1_greedy", "eval/pass@1", "eval/pass@2", "eval/pass@4"], 0.5
    )


def eval_sum(prompt):
    """'3+4=' -> '7'"""
    return str(sum(map(int, prompt.rstrip("=").split("+"))))


def test_what_counts_as_right():
    class Strict:
        def is_correct(self, rewards):
            return rewards > 5

    rewards = np.array([0.0, 0.999, 1.0, 6.0])
    assert is_correct(object(), rewards).tolist() == [False, False, True, True]
    assert is_correct(Strict(), rewards).tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_prompts": 0}, "0 problems give no estimate: take at least 1"),
        (
            {"samples": 2, "ks": (1, 4)},
            "pass@4 cannot be estimated from 2 samples: take at least 4 samples",
        ),
        ({"split": "dev"}, "there is no split 'dev'"),
    ],
)
def test_bad_questions(arguments, message):
    task = load_task("treewalk", root="L")
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate(walker(task, 1.0), task, progress=False, **arguments)


def test_a_stored_run_is_what_was_trained(tmp_path):
    settings = TrainSettings(**TINY, task_options={"n": 2}, steps=3, checkpoint_every=1)
    model, _ = train(settings, tmp_path, progress=False)
    for path in (tmp_path, tmp_path / "checkpoint-000003.mgc"):
        loaded, task, read = load_run(path)
        assert read == settings
        assert (task.n, loaded.config, loaded.dtype) == (2, model.config, model.dtype)
        np.testing.assert_array_equal(loaded.parameters.flat, model.parameters.flat)
    earlier, _, _ = load_run(tmp_path / "checkpoint-000002.mgc")
    assert (earlier.parameters.flat != model.parameters.flat).any()
    assert load_run(tmp_path, dtype="float32")[0].dtype == np.float32


def test_a_run_from_a_gpu_can_be_looked_at_without_one(tmp_path):
    (tmp_path / "settings.json").write_bytes(
        signed(asdict(TrainSettings(**TINY, steps=0, backend="cupy")))
    )
    train(TrainSettings(**TINY, steps=0, backend="numpy"), tmp_path, resume=True, progress=False)
    assert load_run(tmp_path)[2].backend == "auto"
