"""A training step against the usual way: padded rows, one forward a completion, the batch in one
piece.
"""

import warnings

import numpy as np
import pytest
from helpers import relative

from minigrpo import PrefixTree, sample
from minigrpo.engine.optim import AdamW
from minigrpo.engine.parameters import with_parameters
from minigrpo.runs.policy import make_model, make_state, warm_start
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train, train_step
from minigrpo.tasks import CharTokenizer, load_task, score_texts
from minigrpo.verify.padded import padded_loss

TINY = {"dim": 16, "n_layers": 1, "n_heads": 2, "dtype": "float64"}
NAMES = {
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "kl",
    "entropy",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "completions/mean_length",
    "completions/clipped_ratio",
    "grad_norm",
    "loss",
    "learning_rate",
    "num_tokens",
    "step_time",
    "tree/unique_tokens",
    "tree/flat_tokens",
    "tree/mean_count",
    "tree/shared_fraction",
    "tree/path_depth",
    "tree/intermediate_proportion",
    "tree/flat_fraction",
}


class Letters:
    """Two prompts of unequal length, ragged completions with EOS, fractional rewards."""

    tokenizer = CharTokenizer("abc")
    max_new_tokens = 5

    def prompts(self, rng, n, split="train"):
        return [self.tokenizer.encode("c" if rng.random() < 0.5 else "cb") for _ in range(n)]

    def score(self, rollouts):
        return score_texts(
            rollouts,
            self.tokenizer,
            lambda prompt, text: text.count("a") / 3 - 0.1 * len(text + prompt),
        )


class Silent(Letters):
    """EOS is one of 41 tokens, so that hardly a completion ends by itself."""

    tokenizer = CharTokenizer("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN")
    max_new_tokens = 2


def settings_of(**changes):
    return TrainSettings(
        **(TINY | {"task": "letters", "group_size": 6, "prompts_per_step": 3} | changes)
    )


def start(settings, task=None):
    """Task and the state before step 1, with a policy that is not uniform."""
    task = task or Letters()
    model = make_model(settings, task)
    model.parameters.flat[:] += 0.2 * np.random.default_rng(5).standard_normal(
        model.parameters.flat.size
    )
    state = make_state(settings, model)
    if state.objective.beta:
        state.reference = model.parameters.flat.copy()
    return task, state


def usual_step(state, task, settings):
    """The same step without a tree: every completion on its own row, one advantage a completion,
    the batch in one piece.
    """
    model, s = state.model, settings
    prompts = task.prompts(state.rng, s.prompts_per_step)
    limits = {
        "max_new_tokens": task.max_new_tokens,
        "eos": task.tokenizer.eos,
        "temperature": s.temperature,
    }
    rollouts = sample(model, prompts, s.group_size, state.rng, **limits)
    rewards = np.asarray(task.score(rollouts))
    flat = PrefixTree.from_groups(prompts, rollouts.completions, merge=False)
    own = model.parameters.flat.copy()
    old, ref = flat.on_tokens(model.forward(flat, s.temperature)), None
    if state.reference is not None:
        model.parameters.flat[:] = state.reference
        ref = flat.on_tokens(model.forward(flat, s.temperature))
        model.parameters.flat[:] = own
    for _ in range(s.inner_epochs):
        model.gradients.flat[:] = 0
        logp = flat.on_tokens(model.forward(flat, s.temperature))
        given = {"truncated": rollouts.truncated, "max_new_tokens": task.max_new_tokens}
        loss, d = padded_loss(
            state.objective, rollouts.completions, rewards, logp, old, ref, **given
        )
        dlogp = np.zeros(flat.n_nodes)
        dlogp[flat.paths[flat.paths >= 0]] = d[flat.paths >= 0]
        model.backward(dlogp)
        norm = np.linalg.norm(model.gradients.flat)
        model.gradients.flat[:] *= min(1, s.max_grad_norm / norm)
        rate = s.learning_rate * min((state.step + 1) / (s.warmup_steps + 1), 1)
        state.optimizer.step(model.parameters, model.gradients, rate)
    state.step += 1
    return loss, norm, rewards, rollouts


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        ("grpo", {}),
        ("lambda_grpo", {"temperature": 0.7, "warmup_steps": 3, "max_grad_norm": 0.05}),
        (
            "lambda_grpo",
            {"objective_options": {"beta": 0.3}, "inner_epochs": 4, "learning_rate": 0.03},
        ),
        (
            "lambda_grpo",
            {
                "objective_options": {"alpha": 0.5, "beta": 0.3},
                "inner_epochs": 4,
                "learning_rate": 0.03,
            },
        ),
        ("grpo_original", {"inner_epochs": 2, "temperature": 1.5, "learning_rate": 0.03}),
        ("dapo", {"inner_epochs": 4, "learning_rate": 0.03}),
        ("dr_grpo", {"optimizer": "sgd", "learning_rate": 1.0, "inner_epochs": 3}),
        ("rloo", {}),
    ],
)
def test_a_step_is_the_usual_step(objective, changes):
    settings = settings_of(objective=objective, **changes)
    task, state = start(settings)
    _, usual = start(settings)
    before, tokens, clipped = usual.model.parameters.flat.copy(), 0, 0.0
    for _ in range(3):
        metrics, rollouts, rewards = train_step(state, task, settings)
        loss, norm, expected_rewards, expected = usual_step(usual, task, settings)
        assert [c.tolist() for g in rollouts.completions for c in g] == [
            c.tolist() for g in expected.completions for c in g
        ]
        np.testing.assert_array_equal(rewards, expected_rewards)
        assert metrics["loss"] == pytest.approx(loss, rel=1e-9, abs=1e-12)
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-9)
        assert (
            relative(state.model.parameters.flat - before, usual.model.parameters.flat - before)
            < 1e-8
        )
        assert metrics["step"] == state.step == usual.step
        tokens += sum(
            len(p) + len(c)
            for p, g in zip(rollouts.prompts, rollouts.completions, strict=True)
            for c in g
        )
        assert metrics["num_tokens"] == tokens
        clipped += metrics["clip_ratio/low_mean"] + metrics["clip_ratio/high_mean"]
        assert metrics["reward"] == pytest.approx(rewards.mean())
        assert metrics["reward_std"] == pytest.approx(
            np.mean([rewards[i : i + 6].std(ddof=1) for i in (0, 6, 12)])
        )
    assert (clipped > 0) == (settings.inner_epochs > 1)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_micro_batches_do_not_change_a_gradient(optimizer):
    ends = []
    for micro_batch_tokens in (10_000, 30, 7, 1):
        options = {
            "objective_options": {"beta": 0.2},
            "inner_epochs": 2,
            "learning_rate": 0.1 if optimizer == "sgd" else 1e-3,
        }
        settings = settings_of(
            optimizer=optimizer, micro_batch_tokens=micro_batch_tokens, **options
        )
        task, state = start(settings)
        metrics = [train_step(state, task, settings)[0] | {"step_time": 0} for _ in range(4)]
        ends.append((state.model.parameters.flat, metrics))
    for flat, metrics in ends[1:]:
        assert relative(flat, ends[0][0]) < 1e-12
        for mine, theirs in zip(metrics, ends[0][1], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-12)


def test_metrics_have_the_names_that_users_know():
    settings = settings_of(objective_options={"beta": 0.04}, steps=2)
    _, history = train(settings, task=Letters(), progress=False)
    assert [NAMES - set(metrics) for metrics in history] == [set(), set()]
    assert all(np.isfinite(value) for metrics in history for value in metrics.values())
    for m in history:
        assert m["tree/flat_tokens"] == m["completions/mean_length"] * 18
        assert m["tree/mean_count"] == m["tree/flat_tokens"] / m["tree/unique_tokens"] > 1
        assert 0 < m["tree/intermediate_proportion"] <= m["tree/shared_fraction"] < 1
        assert 0 < m["entropy"] <= np.log(4)
        assert m["tree/flat_fraction"] == 0 < m["step_time"]


def test_the_warm_start_clips_its_gradient_and_warms_up():
    """Step by step against the usual loop, with gradients of a norm far above 1 and rates that rise
    over 20 steps.
    """
    task = load_task("arithmetic", digits=1)
    settings = TrainSettings(
        **TINY,
        task="arithmetic",
        warm_start_steps=6,
        warm_start_batch=4,
        warm_start_learning_rate=0.02,
    )
    model, usual = make_model(settings, task), make_model(settings, task)
    for each in (model, usual):
        each.parameters.flat[:] *= 4
    warm_start(model, task, np.random.default_rng(5), settings)
    rng, optimizer, norms = np.random.default_rng(5), AdamW(usual.parameters), []
    for step in range(6):
        pairs = task.demonstrations(rng, 4)
        flat = PrefixTree.from_groups([p for p, _ in pairs], [[c] for _, c in pairs], merge=False)
        usual.forward(flat)
        usual.backward(np.where(flat.scored, -1 / sum(len(c) for _, c in pairs), 0.0), add=False)
        norms.append(np.linalg.norm(usual.gradients.flat))
        usual.gradients.flat[:] /= max(1, norms[-1])
        optimizer.step(usual.parameters, usual.gradients, 0.02 * (step + 1) / 21)
    assert max(norms) > 2 and max(norms) > 1.5 * min(
        norms
    )  # AdamW does not see a factor that all have
    assert relative(model.parameters.flat, usual.parameters.flat) < 1e-9


def test_the_reference_policy_is_the_one_that_training_began_with():
    runs = {}
    for beta in (0.0, 0.5):
        settings = settings_of(objective_options={"beta": beta}, learning_rate=0.02)
        task, state = start(settings)
        reference = state.model.parameters.flat.copy()
        runs[beta] = [train_step(state, task, settings)[0] for _ in range(6)]
        if beta:
            np.testing.assert_array_equal(state.reference, reference)
            assert relative(state.model.parameters.flat, reference) > 0.01
        runs[beta, "end"] = state.model.parameters.flat
    assert all("kl" not in metrics for metrics in runs[0.0])
    kl = [metrics["kl"] for metrics in runs[0.5]]
    assert abs(kl[0]) < 1e-14
    assert min(kl[1:]) > 1e-4
    assert relative(runs[0.5, "end"], runs[0.0, "end"]) > 1e-3


def test_a_step_that_is_all_truncated_and_masked_moves_nothing():
    settings = settings_of(task="silent", objective="dapo", group_size=4, prompts_per_step=1)
    task, state = start(settings, Silent())
    state.optimizer.m[:], state.optimizer.weight_decay = (
        1.0,
        0.1,
    )  # what would move the parameters even without a gradient
    moved = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(6):
            before = state.model.parameters.flat.copy()
            metrics, rollouts, _ = train_step(state, task, settings)
            moved.append((rollouts.truncated.all(), (state.model.parameters.flat != before).any()))
            if rollouts.truncated.all():
                assert metrics["loss"] == metrics["grad_norm"] == 0
                assert metrics["completions/clipped_ratio"] == 1
    assert {(True, False), (False, True)} == set(
        moved
    )  # both happened: nothing moves exactly when all are masked


def test_equal_rewards_give_no_gradient():
    class Same(Letters):
        def score(self, rollouts):
            return np.full(len(rollouts.truncated), 0.1)

    settings = settings_of(group_size=7, optimizer="sgd", learning_rate=10.0)
    task, state = start(settings, Same())
    before = state.model.parameters.flat.copy()
    metrics, _, _ = train_step(state, task, settings)
    np.testing.assert_array_equal(state.model.parameters.flat, before)
    assert (metrics["grad_norm"], metrics["frac_reward_zero_std"], metrics["reward_std"]) == (
        0,
        1,
        pytest.approx(0),
    )


def test_one_completion_is_enough_where_nothing_is_compared():
    settings = settings_of(objective="reinforce", group_size=1, steps=2)
    _, history = train(settings, task=Letters(), progress=False)
    assert all(metrics["reward_std"] == 0 for metrics in history)


def test_borrowing_other_parameters_gives_them_back_even_after_an_error():
    model = make_model(settings_of(), Letters())
    own = model.parameters.flat.copy()
    with pytest.raises(KeyError), with_parameters(model, np.full_like(own, 7.0)):
        assert (model.parameters["model.norm.weight"] == 7).all()
        raise KeyError
    np.testing.assert_array_equal(model.parameters.flat, own)
