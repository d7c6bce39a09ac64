"""Process rewards of a user's own: verifiers of prefixes, their mixture with the outcome."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import random_rollouts, rollouts_of, tiny_model

from minigrpo import Objective, PrefixTree, TrainSettings
from minigrpo.engine.tree_statistics import process_metrics
from minigrpo.experiments import step_verifier
from minigrpo.experiments.reproduce import Request
from minigrpo.experiments.step_verifier import Blind, Verified
from minigrpo.objectives import PRESETS
from minigrpo.runs.policy import make_model, make_state
from minigrpo.runs.train import train, train_step
from minigrpo.runs.warning_signs import Watchman
from minigrpo.tasks import CharTokenizer, Tokenised, process_rewards_of
from minigrpo.tasks.arithmetic import Arithmetic
from minigrpo.tasks.process_rewards import score_prefixes
from minigrpo.verify.padded import padded_loss

CHARS = CharTokenizer("abcd;")


def rollouts_of_texts(groups, prompts=None, tokenizer=CHARS, eos=True):
    encode = tokenizer.encode_with_eos if eos else tokenizer.encode
    prompts = prompts or ["a"] * len(groups)
    return rollouts_of(
        [tokenizer.encode(p) for p in prompts], [[encode(text) for text in g] for g in groups]
    )


def random_texts(rng, k):
    texts = ["".join(rng.choice(list("ab;"), rng.integers(1, 9))) for _ in range(k)]
    return [texts[0][: rng.integers(1, 9)] + text if rng.random() < 0.5 else text for text in texts]


def by_definition(groups, prompts, score, step_end):
    """Values along every completion (EOS is a token): the definition, pair by pair, in texts."""
    out = []
    for prompt, group in zip(prompts, groups, strict=True):
        along = []
        for text in group:
            if step_end is None:  # a step ends where the set of those who agree changes

                def sharing(t, text=text, group=group):
                    return [
                        i
                        for i, x in enumerate(group)
                        if (x + "$")[: t + 1] == (text + "$")[: t + 1]
                    ]

                ends = [t for t in range(len(text)) if sharing(t) != sharing(t + 1)]
            else:
                ends = [t for t in range(len(text)) if text[: t + 1].endswith(step_end)]
            ends = [*[t for t in ends if t < len(text)], len(text)]
            value_at = {t: score(prompt, text[: t + 1]) for t in ends}
            along.append([value_at[min(e for e in ends if e >= t)] for t in range(len(text) + 1)])
        for text in group:
            line = []
            for t in range(len(text) + 1):
                members = [
                    j for j, x in enumerate(group) if (x + "$")[: t + 1] == (text + "$")[: t + 1]
                ]
                line.append(np.mean([along[j][t] for j in members]))
            out.append(line)
    return out


@pytest.mark.parametrize("step_end", [";", None])
def test_a_node_has_the_mean_value_at_the_ends_of_its_members_steps(step_end):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        groups, prompts = [random_texts(rng, 5) for _ in range(2)], ["a", "b"]
        asked = []

        def score(prompt, text, asked=asked):
            asked.append((prompt, text))
            return (hash_of(prompt + "|" + text) % 97) / 97

        rollouts = rollouts_of_texts(groups, prompts)
        values = score_prefixes(rollouts, CHARS, score, step_end)
        assert len(asked) == len(set(asked))  # each distinct prefix is asked once
        expected = by_definition(groups, prompts, score, step_end)
        along = rollouts.tree.on_tokens(values)
        for row, line in zip(along, expected, strict=True):
            np.testing.assert_allclose(row[: len(line)], line, rtol=1e-12)
        assert not values[rollouts.tree.group < 0].any()


def hash_of(text):
    return sum((i + 3) ** 2 * ord(c) for i, c in enumerate(text))


def test_the_verifiers_of_the_experiment():
    score, blind = Verified().score_prefix, Blind().score_prefix
    right = "8+7=15;5+6+1=12;3+4+1=8;825"
    for text, verified, adds_up in [
        (right, 1, 1),
        ("8+7=15;", 1, 1),
        ("8+7=15;5+6=11;", 0, 1),  # the carry is forgotten
        ("8+7=15;5+6=11;3+4+1=8;", 0, 1),
        ("8+7=15;5+6+1=11;", 0, 0),
        ("8+7=16;", 0, 0),
        (right.replace("825", "815"), 0, 1),
        ("8+7=15;5+6+1=12", 0, 1),  # the completion ended here
        (right + ";", 0, 1),
        ("", 0, 1),
        (";", 0, 1),
        ("8+=15;", 0, 0),
    ]:
        assert (score("358+467=", text), blind("358+467=", text)) == (verified, adds_up), text


# -- mixed with the outcome ------------------------------------------------------------------------


def values_of(tree, rng, scale=3.0):
    """Process rewards of random size; those of prompts are nobody's."""
    return np.where(tree.group >= 0, scale * rng.standard_normal(tree.n_nodes), np.nan)


MIXED = [
    {},
    {"outcome_weight": 0.0},
    {"outcome_weight": 0.5, "alpha": 1.0},
    {"clip_low": 0.1, "clip_high": 0.2, "beta": 0.1, "alpha": 0.5},
    {"clip_low": 0.2, "clip_high": 0.2, "mask_truncated": True, "aggregation": "batch_token_mean"},
    {"scale": "batch_std", "ddof": 0, "aggregation": "sequence_mean"},
    {"scale": "none", "baseline": "leave_one_out", "aggregation": "constant"},
    {"process_reward": "tree", "clip_low": 0.2, "clip_high": 0.2, "beta": 0.1, "kl": "k2"},
]


@pytest.mark.parametrize("changes", MIXED, ids=str)
def test_the_mixture_is_that_of_padded_rows(changes):
    """Value and derivative, at ratios that are clipped, against code that knows no tree."""
    objective = Objective(process_weight=0.7, **changes)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rollouts = random_rollouts(rng, p_truncated=0.3)
        tree, shape = rollouts.tree, rollouts.tree.paths.shape
        rewards, values = rng.random(shape[0]).round(1), values_of(tree, rng)
        rewards[tree.completion_group == 1] = 0.5  # a dead group
        logp, old, ref = 0.3 * rng.standard_normal((3, tree.n_nodes)) - 1
        found = objective.coefficients(rollouts, rewards, values)
        loss, dlogp = objective.evaluate(found, logp, old, ref)
        along = [tree.on_tokens(x) for x in (logp, old, ref)]
        expected, d = padded_loss(
            objective,
            rollouts.completions,
            rewards,
            *along,
            truncated=rollouts.truncated,
            max_new_tokens=rollouts.max_new_tokens,
            process_rewards=tree.on_tokens(np.nan_to_num(values)),
        )
        assert loss == pytest.approx(expected, rel=1e-12, abs=1e-13)
        np.testing.assert_allclose(dlogp, tree.sum_over_members(d), rtol=1e-11, atol=1e-13)
        of_dead = (tree.group == 1) & (found.tokens > 0)
        assert not of_dead.any() or np.abs(found.push[of_dead]).max() > 1e-4


def test_a_weight_of_zero_changes_no_bit():
    rng = np.random.default_rng(0)
    for name in PRESETS:
        rollouts = random_rollouts(rng, p_truncated=0.2)
        rewards = rng.random(len(rollouts.tree.paths))
        plain, same = (
            Objective.preset(name, **more).coefficients(rollouts, rewards)
            for more in ({}, {"outcome_weight": 1, "process_weight": 0})
        )
        for field in vars(plain):
            np.testing.assert_array_equal(getattr(plain, field), getattr(same, field))


def test_nothing_is_shared_and_the_gradient_is_the_same():
    """The flat run, in which every completion has nodes of its own, adds up to the tree's."""
    model, rng = tiny_model(vocab_size=3), np.random.default_rng(1)
    rollouts = random_rollouts(rng)
    tree, flat = (
        rollouts.tree,
        PrefixTree.from_groups(rollouts.prompts, rollouts.completions, merge=False),
    )
    values, rewards = np.nan_to_num(values_of(tree, rng)), rng.random(len(tree.paths))
    objective = Objective.preset("grpo", process_weight=1.0, beta=0.1)
    of_flat = np.zeros(flat.n_nodes)
    of_flat[flat.paths[flat.paths >= 0]] = values[tree.paths[tree.paths >= 0]]
    gradients = []
    for one, process in ((tree, values), (flat, of_flat)):
        own = replace(rollouts, tree=one)
        logp = model.forward(one)
        model.gradients.flat[:] = 0
        found = objective.coefficients(own, rewards, process)
        loss, dlogp = objective.evaluate(found, logp, logp - 0.1, logp + 0.2)
        model.backward(dlogp)
        gradients.append(np.append(model.gradients.flat, loss))
    assert np.abs(gradients[0]).max() > 1e-3
    np.testing.assert_allclose(*gradients, rtol=1e-9, atol=1e-12)


def test_the_derivative_is_that_of_the_value():
    """Central differences along a random direction of log-probabilities, clipped ones included."""
    rng = np.random.default_rng(3)
    rollouts = random_rollouts(rng)
    objective = Objective.preset("lambda_grpo", process_weight=2.0, beta=0.1)
    rewards = rng.random(len(rollouts.tree.paths))
    found = objective.coefficients(rollouts, rewards, values_of(rollouts.tree, rng))
    logp, old, ref, direction = 0.3 * rng.standard_normal((4, rollouts.tree.n_nodes)) - 1
    h = 1e-6
    up, down = (objective.evaluate(found, logp + s * direction, old, ref)[0] for s in (h, -h))
    slope = objective.evaluate(found, logp, old, ref)[1] @ direction
    assert (up - down) / (2 * h) == pytest.approx(slope, rel=1e-7)


def test_a_dead_group_learns_from_its_steps():
    rollouts = rollouts_of_texts([["ab", "ac"]], eos=False)
    tree = rollouts.tree
    values = np.array([np.nan, 0.2, 1.0, 0.0])  # the prompt, a, ab, ac
    c = Objective(process_weight=1.0).coefficients(rollouts, [1.0, 1.0], values)
    tokens = np.array([0.2, 0.2, 1.0, 0.0])  # a counts twice
    a = (tokens - tokens.mean()) / (tokens.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(c.push, np.array([0, 2 * a[0], a[2], a[3]]) / 4, rtol=1e-12)
    equal = Objective(process_weight=1.0).coefficients(rollouts, [1.0, 1.0], np.ones(tree.n_nodes))
    assert not equal.push.any()  # equal outcomes and equal steps: nothing at all, not rounding


def test_what_is_logged():
    rollouts = rollouts_of_texts([["ab", "ac"], ["ab", "b"], ["c", "c"]], eos=False)
    tree = rollouts.tree
    values = np.where(tree.token == CHARS.encode("b")[0], 1.0, 0.0)
    rewards = np.array([1.0, 1.0, 0.0, 1.0, 0.5, 0.5])
    found = process_metrics(tree, rewards, values)
    assert found == {"process_reward": 3 / 9, "frac_groups_steps_only": pytest.approx(1 / 3)}
    assert process_metrics(tree, rewards, None) == {}


@pytest.mark.parametrize("name", ["grpo", "prm", "lambda_grpo"])
def test_a_step_of_training_in_parts(name):
    """Two updates of a run with a verifier are the same in micro-batches, and its metrics there."""
    found = []
    for nodes in (10_000, 30):
        shape = {"dim": 16, "n_heads": 2, "warm_start_steps": 0, "dtype": "float64"}
        settings = TrainSettings.for_task(
            "arithmetic",
            **shape,
            task_options={"digits": 1},
            objective=name,
            objective_options={"process_weight": 0.5},
            inner_epochs=2,
            learning_rate=1e-2,
            warmup_steps=0,
            prompts_per_step=3,
            micro_batch_tokens=nodes,
        )
        task = Verified(digits=1)
        model = make_model(settings, task)
        state = make_state(settings, model)
        metrics = [train_step(state, task, settings).metrics for _ in range(2)][-1]
        assert {"process_reward", "frac_groups_steps_only"} <= set(metrics)
        found.append(np.append(model.parameters.flat, metrics["process_reward"]))
    np.testing.assert_allclose(*found, rtol=1e-7, atol=1e-9)


# -- tasks of a language model ---------------------------------------------------------------------


class Arrows:
    """Steps that end with a character of three bytes, each of which is a token."""

    max_new_tokens = 12
    stop = "!"
    step_end = "→"

    def texts(self, rng, n, split="train"):
        return ["go"] * n

    def reward(self, prompt, completion):
        return 0.0

    def score_prefix(self, prompt, text):
        self.asked.append((prompt, text))
        return float(len(text))


def test_prefixes_of_a_language_model_are_the_decoders_texts():
    pytest.importorskip("tokenizers")
    tiny = pytest.importorskip("tiny_language_model")
    tokenizer, user = tiny.make()[1], Arrows()
    user.asked = []
    task = Tokenised(user, tokenizer)
    texts = ["é→ab→c!", "é→ab", "é→", "x→→y!"]
    ids = [np.asarray(tokenizer.encode(text)) for text in texts]
    assert len(ids[0]) > len(texts[0]) and len(tokenizer.encode("→")) == 3
    cut = ids[0][: len(tokenizer.encode("é→ab")) + 1]  # in the middle of a character
    rollouts = rollouts_of([tokenizer.encode("go")], [[*ids, cut]])
    values = process_rewards_of(task)(rollouts)
    expected = {"é→", "é→ab→", "é→ab→c", "é→ab", "x→", "x→→", "x→→y"}
    broken = tokenizer.decode(cut)
    assert {text for _, text in user.asked} == expected | {broken}
    assert len(user.asked) == len(expected) + 1 and {p for p, _ in user.asked} == {"go"}
    path = rollouts.tree.paths[0]  # é is shared by four, whose first step is "é→" in each
    assert values[path[0]] == 2 and values[path[len(ids[0]) - 1]] == len("é→ab→c")
    where = len(tokenizer.encode("é→"))  # a: the next step ends at "é→ab→", "é→ab", and where cut
    assert values[path[where]] == pytest.approx((5 + 4 + len(broken)) / 3)


# -- what is refused, and what is told -------------------------------------------------------------


class Lengths(Verified):
    def process_rewards(self, rollouts):
        return np.ones(3)

    score_prefix = None


class Both(Verified):
    def process_rewards(self, rollouts):
        return np.ones(rollouts.tree.n_nodes)


class NoNumber(Verified):
    def score_prefix(self, prompt, text):
        return float("nan")


class NoText(Verified):
    step_end = 3


class Words(Verified):
    def score_prefix(self, prompt, text):
        return "good"


SMALL = {"dim": 16, "n_heads": 2, "warm_start_steps": 0, "steps": 1, "prompts_per_step": 2}
SMALL |= {"eval_every": 0, "objective": "grpo"}


def trained(task, **changes):
    settings = TrainSettings.for_task("arithmetic", **SMALL | changes)
    return train(settings, task=task, progress=False)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Lengths(), r"\d+ nodes need as many process rewards, not an array of shape \(3,\)"),
        (Both(), "the task has process_rewards and score_prefix: leave out one"),
        (NoNumber(), "the process reward of completion .* to prompt .* is nan: return a finite"),
        (NoText(), "step_end is 3: it must be a text that is not empty"),
        (Words(), "the process reward of completion .* is 'good': return a finite number"),
        (
            Arithmetic(),
            "task arithmetic has no process rewards, which objective grpo has a process_weight "
            "for: give it process_rewards or score_prefix, or set process_weight to 0",
        ),
    ],
)
def test_what_cannot_be_used_is_told(task, message):
    with pytest.raises(ValueError, match=message):
        trained(task, objective_options={"process_weight": 1.0})


def test_process_rewards_that_are_ignored_are_told(capsys):
    trained(Verified())
    told = "note: task arithmetic has process rewards, which objective grpo does not use"
    assert told in capsys.readouterr().err
    trained(Verified(), objective_options={"process_weight": 1.0})
    assert capsys.readouterr().err == ""


def test_an_objective_alone_refuses_what_it_cannot_use():
    rollouts = rollouts_of_texts([["ab", "ac"]], eos=False)
    with pytest.raises(ValueError, match="process_weight is set, but there are no process rewards"):
        Objective(process_weight=1.0).coefficients(rollouts, [0, 1])
    with pytest.raises(ValueError, match="or set process_weight"):
        Objective().coefficients(rollouts, [0, 1], np.ones(4))
    for bad in (-1, "1", None, True, float("nan")):
        with pytest.raises(ValueError, match=r"process_weight is .*: it must be a finite number"):
            Objective(process_weight=bad)
    with pytest.raises(ValueError, match="group size 1 leaves reinforce nothing to compare"):
        TrainSettings(group_size=1, objective="reinforce", objective_options={"process_weight": 1})


@pytest.mark.parametrize(("alive", "said"), [(0.0, ["nothing to compare"]), (0.25, [])])
def test_a_run_that_learns_from_its_steps_is_not_called_dead(alive, said):
    watchman = Watchman()
    own = {"frac_groups_steps_only": alive, "frac_correct": 0.0, "grad_norm": 0.1}
    same = {"reward": 0.0, "frac_reward_zero_std": 1.0, "completions/clipped_ratio": 0.0} | own
    told = [kind for step in range(1, 25) for kind in watchman.look({"step": step} | same)]
    assert told == said


def test_the_experiments_table_compares_seed_by_seed(monkeypatch, tmp_path):
    """All arms of a seed begin with its own warm policy; measures are those of the curve."""
    asked = []

    def learned(function, jobs, title=None):
        asked.extend(jobs)
        steps = np.arange(13)
        curve = {"grpo": steps / 20, "outcome_and_verifier": steps / 20 + 0.1}
        return [
            {"greedy": list(curve[j["arm"]] + 0.01 * j["seed"]), "dead": [0.5], "steps_only": [0.1]}
            for j in jobs
        ]

    monkeypatch.setattr(step_verifier, "warm_policies", lambda _, named: {n: n for n in named})
    monkeypatch.setattr(Request, "jobs", lambda self, *args: learned(*args))
    grpo, both = step_verifier.run(Request("step-verifier", tmp_path, quick=True))
    assert [(j["seed"], j["arm"], j["warm"][-1]) for j in asked] == [
        (seed, arm, str(seed)) for seed in (0, 1) for arm in ("grpo", "outcome_and_verifier")
    ]
    assert (grpo["at_15"], grpo["at_60"], grpo["area"]) == (0.155, 0.605, 0.305)
    assert (both["area_less_grpo"], both["area_less_grpo_low"], both["seeds"]) == (0.1, 0.1, 2)
    assert both["at_20_of_seed"] == [0.3, 0.31] and both["dead_early"] == 0.5
