"""The hidden PRM: exact values against other ways, measures against loops, rules by examples."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import rollouts_of, tiny_model

from minigrpo import PrefixTree
from minigrpo.experiments import first_error, monte_carlo, prm_quality
from minigrpo.experiments.prm_quality import (
    brute_force,
    draw,
    exact_moments,
    heap_index,
    means_below,
    text,
    value_row,
)
from minigrpo.experiments.prm_quality_figures import first_error_figure, values_figure
from minigrpo.show.plots import save
from minigrpo.tasks.arithmetic import CHARACTERS, Arithmetic, first_wrong_step, write_steps
from minigrpo.tasks.treewalk import TreeWalk

TASK = TreeWalk(depth=3, n=1)


def place(prefix):
    """Heap order, from its definition."""
    return 2 ** len(prefix) - 1 + int("0" + "".join(map(str, prefix)), 2)


def probability(model, path):
    """Path by path, without a tree of paths."""
    tree = PrefixTree.from_groups([[2]], [[path]])
    return float(np.exp(model.forward(tree, keep=False)[tree.scored].sum()))


# -- exact values ----------------------------------------------------------------------------------


def test_exact_values_are_the_conditional_means_of_enumerated_paths():
    model = tiny_model(vocab_size=3, n_drawable=2, seed=3)
    values, rewards = exact_moments(model, TASK)[0], TASK.path_rewards()
    paths = [tuple(path) for path in TASK.paths().tolist()]
    p = {path: probability(model, path) for path in paths}
    assert len(values) == 15 and sum(p.values()) == pytest.approx(1, abs=1e-12)
    for prefix in {path[:d] for path in paths for d in range(4)}:
        through = [
            (p[path], r)
            for path, r in zip(paths, rewards, strict=True)
            if path[: len(prefix)] == prefix
        ]
        mean = sum(q * r for q, r in through) / sum(q for q, _ in through)
        variance = sum(q * (r - mean) ** 2 for q, r in through) / sum(q for q, _ in through)
        assert values[place(prefix)] == pytest.approx(mean, abs=1e-12)
        assert exact_moments(model, TASK)[1][place(prefix)] == pytest.approx(variance, abs=1e-12)


def test_exact_values_agree_with_real_rollouts_within_the_standard_error():
    model = tiny_model(vocab_size=3, n_drawable=2, seed=3)
    exact, spread = exact_moments(model, TASK)
    rollouts, rewards = draw(model, TASK, 1, 40_000, np.random.default_rng(0))
    tree, index = rollouts.tree, heap_index(rollouts.tree)
    nodes = np.flatnonzero(tree.scored & (spread[index] > 1e-9) & (tree.count > 100))
    z = (tree.sum_over_members(rewards) / tree.count - exact[index])[nodes] / np.sqrt(
        spread[index] / tree.count
    )[nodes]
    root = (rewards.mean() - exact[0]) / np.sqrt(spread[0] / len(rewards))
    assert len(nodes) >= 2 and np.abs([*z, root]).max() < 3.5
    assert 0.05 / np.sqrt(spread[0] / len(rewards)) > 7  # an error of 0.05 would not have passed


def test_brute_force_compares_both_sources():
    rows = brute_force(0, 0, 60_000)
    assert [row["source"] for row in rows] == ["enumerated policy", "sampler"]
    for row in rows:
        assert (
            abs(row["z"]) < 3.5
            and row["max_abs_z"] < 4
            and row["chi2_per_dof"] < 2.5
            and row["prefixes"] == 4
        )
        assert row["z"] == pytest.approx((row["estimate"] - row["value"]) / row["standard_error"])


# -- measures --------------------------------------------------------------------------------------


def test_value_row_against_loops():
    p, outcome = (
        np.random.default_rng(1).dirichlet(np.ones(8)),
        np.random.default_rng(2).normal(size=8),
    )
    exact = means_below(p, outcome)
    spread = means_below(p, outcome**2) - exact**2
    k, n_groups = 5, 6
    leaves = np.random.default_rng(3).choice(8, size=(n_groups, k), p=p)
    groups = [TASK.paths()[row].tolist() for row in leaves]
    tree = PrefixTree.from_groups([[0]] * n_groups, groups)
    row = value_row(tree, outcome[leaves].ravel(), exact, spread, 2)
    errors, expected, own, nodes, tokens, moves, gains = [], [], [], [], [], [], []
    for group, rewards in zip(groups, outcome[leaves], strict=True):
        prefixes = [tuple(path[:2]) for path in group]
        for prefix in set(prefixes):
            members = [i for i in range(k) if prefixes[i] == prefix]
            estimate, value = rewards[members].mean(), exact[place(prefix)]
            parent = rewards[[i for i in range(k) if prefixes[i][0] == prefix[0]]].mean()
            errors.append(estimate - value)
            expected.append(spread[place(prefix)] / len(members))
            own += [(estimate - value, rewards[i] - value) for i in members]
            nodes.append((estimate - rewards.mean(), value - exact[0]))
            tokens += [nodes[-1]] * len(members)
            moves.append(estimate - parent)
            gains.append(value - exact[place(prefix[:1])])
    assert row["nodes"] == len(errors) / n_groups
    assert row["bias"] == pytest.approx(np.mean(errors))
    assert (
        row["rmse"] ** 2
        == pytest.approx(row["bias"] ** 2 + row["sd"] ** 2)
        == pytest.approx(np.mean(np.square(errors)))
    )
    assert row["predicted"] == pytest.approx(np.sqrt(np.mean(expected)))
    assert row["move"] == pytest.approx(np.corrcoef(moves, gains)[0, 1])
    assert row["centred"] == pytest.approx(np.corrcoef(*zip(*nodes, strict=True))[0, 1])
    for name, pairs in (("own_weight", own), ("slope_nodes", nodes), ("slope_tokens", tokens)):
        assert row[name] == pytest.approx(
            [sum(a * b for a, b in pairs), sum(b * b for _, b in pairs)]
        )


def test_r_hat_is_unbiased_and_its_variance_and_shrinkage_are_as_derived():
    """Given its count, a node's outcomes are independent draws.

    Over tokens, R̂ - mean(r) keeps 1 - 1/k of the exact advantage.
    """
    k, n_groups, rng = 4, 10_000, np.random.default_rng(4)
    p, outcome = rng.dirichlet(np.ones(8)), rng.normal(size=8)
    exact = means_below(p, outcome)
    spread = means_below(p, outcome**2) - exact**2
    leaves = rng.choice(8, size=(n_groups, k), p=p)
    tree = PrefixTree.from_groups([[0]] * n_groups, [TASK.paths()[row] for row in leaves])
    for depth in (1, 2):
        row = value_row(tree, outcome[leaves].ravel(), exact, spread, depth)
        assert abs(row["bias"]) < 3.5 * row["bias_error"] < 0.1
        assert row["rmse"] == pytest.approx(row["predicted"], rel=0.03)
        above, below = row["slope_tokens"]
        assert above / below == pytest.approx(1 - 1 / k, abs=0.02)


def test_equal_tokens_counts_every_token_that_a_monte_carlo_prm_samples(monkeypatch):
    sampled, real = [], monte_carlo.sample

    def counting(*args, **options):
        rollouts = real(*args, **options)
        sampled.append(int(rollouts.tree.lengths.sum()))
        return rollouts

    monkeypatch.setattr(prm_quality, "MONTE_CARLO", [(4, 2)])
    monkeypatch.setattr(monte_carlo, "sample", counting)  # the group's own are not counted
    steps, prefixes = prm_quality.equal_tokens(0, 0, n_groups=8)
    assert steps["tokens"] * 8 == sum(sampled) + 8 * 4 * 4
    assert prefixes["tokens"] > steps["tokens"] and steps["hidden_k"] == round(steps["tokens"] / 4)


def test_tables_text_and_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(prm_quality, "SIZES", (4, 8))
    monkeypatch.setattr(prm_quality, "MONTE_CARLO", [(4, 1), (4, 2)])
    found = {"value_errors": {}, "equal_tokens": {}}
    for steps in (0, 1):
        found["value_errors"][steps] = [
            prm_quality.value_errors(seed, steps, completions=256) for seed in (0, 1)
        ]
        found["equal_tokens"][steps] = [
            prm_quality.equal_tokens(seed, steps, n_groups=4) for seed in (0, 1)
        ]
    table = prm_quality.tables(found) | {"brute_force": brute_force(0, 0, 1000)}
    table |= first_error.table(
        {writing: [pupil_marks(writing, 0)] for writing in first_error.TASKS}
    )
    row = table["value_errors"][0]
    seeds = [rows[0] for rows in found["value_errors"][0]]
    assert row["rmse"] == pytest.approx(np.mean([r["rmse"] for r in seeds]), rel=1e-5)
    assert row["rmse_low"] <= row["rmse"] <= row["rmse_high"]
    (a, b), (c, d) = (r["slope_nodes"] for r in seeds)
    assert row["slope_nodes"] == pytest.approx((a + c) / (b + d), rel=1e-5)
    assert "hidden_rmse" in text(table)
    assert save(values_figure(table), tmp_path / "a.png").stat().st_size > 10_000
    assert save(first_error_figure(table), tmp_path / "b.png").stat().st_size > 10_000


def test_committed_table_can_be_regenerated(monkeypatch):
    """The rows that each untrained policy draws first, all 8 seeds.

    Nothing but a draw in a million can depend on the machine.
    """
    committed = json.loads((Path(__file__).parents[1] / "results" / "prm-quality.json").read_text())
    monkeypatch.setattr(prm_quality, "SIZES", prm_quality.SIZES[:1])
    monkeypatch.setattr(prm_quality, "MONTE_CARLO", prm_quality.MONTE_CARLO[:1])
    functions = (prm_quality.value_errors, prm_quality.equal_tokens)
    table = prm_quality.tables(
        {f.__name__: {0: [f(seed, steps=0) for seed in range(8)]} for f in functions}
    )
    assert [len(rows) for rows in table.values()] == [TreeWalk().depth, 2]
    for name, rows in table.items():
        for row, expected in zip(rows, committed[name], strict=False):
            assert row == {
                key: pytest.approx(x, rel=0.01, abs=1e-3) if isinstance(x, float) else x
                for key, x in expected.items()
            }


# -- the first wrong step --------------------------------------------------------------------------


def pupil_rollouts(task, prompts, k, rng):
    """Groups that the careless pupil himself writes."""
    completions = []
    for prompt in prompts:
        a, b = CHARACTERS.decode(prompt).rstrip("=").split("+")
        texts = [write_steps(int(a), int(b), rng.random(3) < 0.5) for _ in range(k)]
        if isinstance(task, first_error.AnyOrder):
            texts = [first_error.shuffle_summands(text, rng) for text in texts]
        completions.append([CHARACTERS.encode_with_eos(text) for text in texts])
    return rollouts_of(prompts, completions, max_new_tokens=task.max_new_tokens)


def pupil_marks(writing, seed):
    """`first_error.marks` with the pupil in place of a model."""
    with pytest.MonkeyPatch.context() as patch:
        task = first_error.TASKS[writing]()
        patch.setattr(first_error, "load_weights", lambda model, folder: None)
        patch.setattr(
            first_error,
            "sample",
            lambda model, prompts, k, rng, **_: pupil_rollouts(task, prompts, k, rng),
        )
        return first_error.marks(writing, "", seed, 20)


def test_summands_in_any_order_stay_right():
    rng, seen = np.random.default_rng(0), set()
    for _ in range(50):
        written = first_error.shuffle_summands(write_steps(358, 467), rng)
        seen.add(written)
        assert first_wrong_step("358+467=", written) is None and len(written) == len(
            write_steps(358, 467)
        )
    assert len(seen) > 10
    pairs = first_error.AnyOrder(forget=0.0).demonstrations(rng, 20)
    assert all(
        first_wrong_step(CHARACTERS.decode(p), CHARACTERS.decode(c)) is None
        and c[-1] == CHARACTERS.eos
        for p, c in pairs
    )


def test_step_ends():
    assert first_error.step_ends("8+7=15;5+6=11;1", 16).tolist() == [
        6,
        13,
        15,
    ]  # 15 characters and EOS
    assert first_error.step_ends("8+7=15;5+", 9).tolist() == [6, 8]  # cut by the length limit
    assert first_error.step_ends("8+7=15;", 7).tolist() == [6]


def test_count_on_a_typed_example():
    """Four members: three steps each, the second of `text` is wrong; one shuffle."""
    prompt, text = "15+27=", "5+7=12;1+2=3;32"  # the carry is forgotten
    length = len(text) + 1
    values = np.full((2, length), 0.5)
    values[0, :7] = 0.4  # the right first step: below the mean of 0.5, so accused
    values[0, 10:] = 0.0  # from the "=" on nobody is right
    values[1, :7] = 0.75  # shuffled: first step above the mean, the others on it
    n, *numbers = first_error.count(prompt, text, values, 0.5)
    by_rule = np.array(numbers[:32]).reshape(4, 8).tolist()
    assert n == 1
    #                     true false  found accused exact  of the shuffle
    assert by_rule[0] == [2, 1, 2, 1, 0, 0, 0, 0]  # negative
    assert by_rule[1] == [2, 1, 2, 0, 1, 0, 0, 0]  # zero
    assert by_rule[2] == [
        1,
        2,
        1,
        1,
        0,
        1,
        0,
        1,
    ]  # drop; the shuffled value falls at the second step too
    assert by_rule[3] == [length - 7, 7, length - 10, 7, 0, 0, 0, 0]  # token
    profile = np.array(numbers[32:]).reshape(5, 3).tolist()
    assert profile == [[0, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]]  # offsets -2 … 2


@pytest.mark.parametrize(
    ("text", "eos", "steps", "error"),
    [
        ("6+8=14;14;", 1, 3, 2),  # a step too many, of EOS alone
        ("6+8=14;14;", 0, 2, 1),  # the same, cut by the length limit: it broke off in the last step
        ("6+8=14;14;;;", 1, 5, 2),
        (
            "6+8=14",
            1,
            1,
            0,
        ),  # the answer is missing: the step that ends with EOS is where it should have gone on
        ("6+8=14;", 1, 2, 1),
        ("6+8=14;", 0, 1, 0),
        ("", 1, 1, 0),
        (";", 1, 2, 0),
        (";;;", 0, 3, 0),
        ("6+8=1", 0, 1, 0),
    ],
)
def test_count_takes_every_wrong_completion(text, eos, steps, error):
    length = len(text) + eos
    ends = first_error.step_ends(text, length)
    assert len(ends) == steps and ends[-1] == length - 1 and (np.diff(ends) > 0).all()
    values = np.full((2, length), 0.5)
    values[0, ends[error] :] = 0.0  # falls at the end of the wrong step
    n, *numbers = first_error.count("6+8=", text, values, 0.25)
    by_rule = np.array(numbers[:32]).reshape(4, 8).tolist()
    assert n == 1 and np.isfinite(numbers).all()
    assert by_rule[0] == by_rule[1] == [steps - error, error, steps - error, 0, 1, 0, 0, 0]
    assert by_rule[2] == [1, steps - 1, 1, 0, 1, 0, 0, 0]
    assert sum(by_rule[3][:2]) == length


def test_marks_take_completions_of_every_kind(monkeypatch):
    """Also one without any token, which says nothing, and such as are too long or too short."""
    task = first_error.TASKS["one order"](digits=1)
    texts = ["6+8=14;14", "6+8=14;14;", "6+8=14", "", ";", "6+8=13;13", "14;14", ";;"]
    completions = [CHARACTERS.encode_with_eos(text) for text in texts[:-1]] + [
        CHARACTERS.encode(texts[-1])
    ]
    completions[3] = completions[3][:0]
    rollouts = rollouts_of([CHARACTERS.encode("6+8=")], [completions])
    monkeypatch.setattr(first_error, "SIZES", (8,))
    monkeypatch.setattr(first_error, "TASKS", {"one order": lambda: task})
    monkeypatch.setattr(first_error, "load_weights", lambda model, folder: None)
    monkeypatch.setattr(first_error, "sample", lambda model, prompts, k, rng, **_: rollouts)
    (total,) = first_error.marks("one order", "", 0, 1)["8"]
    assert total[0] == 5 and np.isfinite(total).all()
    assert len(first_error.table({"one order": [{"8": [total]}]})["first_error"]) > 3


def test_with_one_right_text_the_sign_never_fails_and_chance_does():
    table = first_error.table({"one order": [pupil_marks("one order", 0)]})["first_error"]
    of = {(row["k"], row["rule"], row["detector"]): row for row in table}
    for k in first_error.SIZES:
        row = of[k, "negative", "hidden"]
        assert (
            row["precision"] == row["recall"] == row["exact"] == 1
            and row["false_alarms"] == 0
            and row["groups"] >= 5
        )
        chance, everything = of[k, "negative", "shuffled"], of[k, "negative", "outcome"]
        assert chance["recall"] < 0.8 and chance["exact"] < 0.8
        assert everything["recall"] == everything["false_alarms"] == 1
        assert row["precision_low"] == row["precision_high"] == 1
        assert chance["recall_low"] < chance["recall"] < chance["recall_high"]


def test_with_many_right_texts_right_steps_are_accused():
    table = first_error.table({"any order": [pupil_marks("any order", 0)]})["first_error"]
    row = next(r for r in table if (r["k"], r["rule"], r["detector"]) == (8, "negative", "hidden"))
    assert row["recall"] == 1 and row["false_alarms"] > 0.1 and row["exact"] < 0.9


def test_without_mixed_groups_there_is_a_clear_error():
    with pytest.raises(ValueError, match="both outcomes"):
        first_error.table({"one order": [{"8": []}]})


def test_arithmetic_has_the_longest_completions_of_any_order():
    assert first_error.AnyOrder().max_new_tokens == Arithmetic().max_new_tokens
