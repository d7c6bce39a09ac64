"""Where Theorem 1 holds: a part of the table, both sides by other means, and wrong entries."""

import json

import numpy as np
import pytest

from minigrpo import Objective
from minigrpo.engine.tree_statistics import path_depth
from minigrpo.experiments import theorem
from minigrpo.experiments.reproduce import Request, reproduce
from minigrpo.experiments.theorem import EPOCHS, KINDS, MEASURES

SCALES, KLS = ("group_std", "none"), ("none", "k3")


@pytest.fixture(scope="module")
def batch():
    return theorem.make_batch(0)


@pytest.fixture(scope="module")
def rows(batch, request):
    """Each scale with one KL; pytest --long tests/test_experiment_theorem.py has all pairs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theorem, "make_batch", {0: batch}.__getitem__)  # made once
        if request.config.getoption("--long"):
            return theorem.measure(0, SCALES, KLS)
        pairs = zip(SCALES, KLS, strict=True)
        return [row for scale, kl in pairs for row in theorem.measure(0, [scale], [kl])]


def test_the_rollouts_are_what_the_table_needs(batch):
    tree = batch.rollouts.tree
    assert tree.n_groups == 4
    assert len(set(tree.lengths.tolist())) > 4  # ragged
    assert path_depth(tree).max() >= 2  # branching
    grpo = Objective.preset("grpo")
    coefficients = grpo.coefficients(batch.rollouts, batch.rewards)
    active = grpo.metrics(coefficients, batch.tree_logp["now"], batch.tree_logp["old"])
    assert min(active.values()) > 0.05  # clipping on both sides
    assert (
        max(grpo.metrics(coefficients, batch.tree_logp["old"], batch.tree_logp["old"]).values())
        == 0
    )
    both_signs = (coefficients.tokens_up > 0) & (coefficients.tokens_down > 0)
    ratio = np.exp(batch.tree_logp["now"] - batch.tree_logp["old"])
    assert (both_signs & (np.abs(ratio - 1) > 0.2)).sum() > 5  # where (a) and (b) must fail


def test_exact_entries_are_below_1e_12_and_all_others_above_1e_3(rows):
    assert theorem.violations(rows) == []
    pairs = len({(row["scale"], row["kl"]) for row in rows})
    assert len(rows) == 2 * 3 * 5 * pairs and pairs >= 2
    exact = {True: [], False: []}
    for row in rows:
        for kind in KINDS:
            expected, difference = theorem.difference(row, kind)
            exact[expected].append(difference)
    assert max(exact[True]) < 1e-12
    assert min(exact[False]) > 1e-3
    assert (len(exact[True]), len(exact[False])) == (35 * pairs, 55 * pairs)


def test_the_derivations_in_words(rows):
    """Written down once more, by hand, from the sentences of the docstring."""
    for row in rows:
        token, clipped = row["ratio"] == "token", row["epoch"] == EPOCHS[2]
        first, per_completion = row["epoch"] == EPOCHS[0], row["aggregation"] == "sequence_mean"
        holds = {kind: max(row[f"{kind}_{name}"] for name in MEASURES) < 1e-12 for kind in KINDS}
        assert holds["two_sums"] == (token or first)
        assert holds["mean"] == (holds["two_sums"] and not clipped and not per_completion)
        assert holds["length_weighted"] == (holds["two_sums"] and not clipped and per_completion)
        assert (row["coupling"] < 1e-12) == token


def test_a_wrong_entry_is_found(rows):
    for i in (0, 21, len(rows) - 1):
        for kind in KINDS:
            exact, _ = theorem.difference(rows[i], kind)
            changed = [dict(row) for row in rows]
            changed[i][f"{kind}_nodes"] = 1e-2 if exact else 1e-13
            (found,) = theorem.violations(changed)
            assert f"{kind}_nodes" in found and rows[i]["aggregation"] in found
    nan = [rows[0] | {"mean_value": float("nan")}]
    assert len(theorem.violations(nan)) == 1


@pytest.mark.parametrize("wrong", ["reward", "expectation"])
def test_a_wrong_computation_is_found(wrong, batch, monkeypatch):
    monkeypatch.setattr(theorem, "make_batch", {0: batch}.__getitem__)
    if wrong == "reward":  # the right side sees one reward that is off by a hundredth
        honest = theorem.process_numbers

        def process_numbers(kind, objective, tree, rewards, limit):
            return honest(
                kind,
                objective,
                tree,
                rewards * np.where(np.arange(len(rewards)) == 3, 1.01, 1.0),
                limit,
            )

        monkeypatch.setattr(theorem, "process_numbers", process_numbers)
        expected = 35  # all that were exact
    else:  # (a) is claimed for sequence_mean too
        honest_claim = theorem.is_exact
        monkeypatch.setattr(
            theorem,
            "is_exact",
            lambda *at: honest_claim(*at) or (at[0] == "token" and at[3] == "mean"),
        )
        expected = 1 + 1 + 5  # sequence_mean unclipped in two epochs, all clipped
    found = theorem.violations(theorem.measure(0, ("none",), ("none",)))
    entries = {line.rsplit("_", 1)[0] for line in found}  # without measure and number
    assert len(entries) == expected


def test_scale_and_kl_change_no_entry(rows):
    for row in rows:
        plain = next(
            r for r in rows if all(r[x] == row[x] for x in ("ratio", "epoch", "aggregation"))
        )
        assert [theorem.difference(row, kind)[1] < 1e-12 for kind in KINDS] == [
            theorem.difference(plain, kind)[1] < 1e-12 for kind in KINDS
        ]


# -- the two sides ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@pytest.mark.parametrize("aggregation", theorem.AGGREGATIONS)
def test_the_sequence_ratio_by_its_definition(batch, aggregation, kl):
    objective = Objective(
        scale="none", aggregation=aggregation, clip_low=0.1, clip_high=0.3, beta=0.1, kl=kl
    )
    rollouts, logp = batch.rollouts, batch.flat_logp["now"]
    loss, dlogp = theorem.outcome_side(objective, "sequence", batch, logp)
    expected, lengths = 0.0, rollouts.tree.lengths
    for i, length in enumerate(lengths):
        own = rollouts.tree.completion_group == rollouts.tree.completion_group[i]
        a = batch.rewards[i] - batch.rewards[own].mean()
        log_ratio = logp[i, :length] - batch.flat_logp["old"][i, :length]
        s = np.exp(log_ratio.mean())
        x = batch.flat_logp["ref"][i, :length] - logp[i, :length]
        divergence = {"k1": -x, "k2": x**2 / 2, "k3": np.exp(x) - 1 - x}[kl]
        share = {
            "group_token_mean": 1 / 4 / lengths[own].sum(),
            "batch_token_mean": 1 / lengths.sum(),
            "sequence_mean": 1 / 32 / length,
            "sequence_sum": 1 / 32,
            "constant": 1 / 32 / 8,
        }[aggregation]
        expected -= share * (length * min(s * a, np.clip(s, 0.9, 1.3) * a) - 0.1 * divergence.sum())
    assert loss == pytest.approx(expected, rel=1e-12)
    direction = np.where(
        rollouts.tree.paths >= 0, np.random.default_rng(1).standard_normal(logp.shape), 0.0
    )
    up, down = (
        theorem.outcome_side(objective, "sequence", batch, logp + h * direction)[0]
        for h in (1e-6, -1e-6)
    )
    assert (up - down) / 2e-6 == pytest.approx((dlogp * direction).sum(), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_the_process_side(batch, kind):
    tree = batch.rollouts.tree
    objective = Objective(clip_low=0.2, clip_high=0.2, beta=0.1, kl="k3")
    numbers = theorem.process_numbers(kind, objective, tree, batch.rewards, 8)
    logp, old, ref = (batch.tree_logp[name] for name in ("now", "old", "ref"))
    _, dlogp = theorem.process_side(numbers, objective, (logp, old, ref))
    direction = np.where(tree.scored, np.random.default_rng(1).standard_normal(len(logp)), 0.0)
    up, down = (
        theorem.process_side(numbers, objective, (logp + h * direction, old, ref))[0]
        for h in (1e-6, -1e-6)
    )
    assert (up - down) / 2e-6 == pytest.approx(dlogp @ direction, rel=1e-6)


def test_process_numbers_of_a_group_by_hand():
    """Two members share a token, one ends a token later than the other; rewards 1, 0 and 0."""
    from helpers import rollouts_of

    rollouts = rollouts_of([[0]], [[[1, 2], [1, 3, 3], [2]]])
    tree, rewards = rollouts.tree, np.array([1.0, 0.0, 0.0])
    shared = tree.paths[0, 0]
    for kind, share, up, down in [
        ("mean", "sequence_sum", 2 / 3 * (1 / 2 - 1 / 3), 0),
        ("two_sums", "sequence_sum", 1 / 3 * 2 / 3, -1 / 3 * 1 / 3),
        (
            "length_weighted",
            "sequence_mean",
            (1 / 6 + 1 / 9) * ((1 / 2) / (1 / 2 + 1 / 3) - 1 / 3),
            0,
        ),
        ("two_sums", "group_token_mean", 1 / 6 * 2 / 3, -1 / 6 * 1 / 3),
    ]:
        numbers = theorem.process_numbers(
            kind, Objective(scale="none", aggregation=share), tree, rewards, 3
        )
        np.testing.assert_allclose(numbers[:2, shared], [up, down], rtol=1e-12, atol=1e-15)


# -- run -------------------------------------------------------------------------------------------


def test_run_writes_table_and_figure(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(
        Request, "jobs", lambda self, function, jobs: [[dict(row) for row in rows] for _ in jobs]
    )
    text = reproduce("theorem", tmp_path, seeds=2)
    assert text.splitlines()[-1] == f"{len(rows)} settings, 0 contradict the derivations"
    assert len(text.splitlines()) == 2 + 30 + 1
    table = json.loads((tmp_path / "theorem.json").read_text())
    assert len(table) == len(rows)
    assert [row["aggregation"] for row in table] == [row["aggregation"] for row in rows]
    for row, rounded in zip(rows, table, strict=True):
        assert rounded["mean_nodes"] == pytest.approx(row["mean_nodes"], rel=6e-3)
    assert (tmp_path / "theorem.png").stat().st_size > 10_000


def test_joining_rows_takes_the_worst_case(rows):
    row = rows[0]  # token ratio, first epoch, group_token_mean: (a) is exact, (b) is not
    other = row | {"mean_nodes": 1e-3, "length_weighted_nodes": 1e-5}
    (joined,) = theorem.joined([row, other], "ratio", "epoch", "aggregation")
    assert (joined["mean_nodes"], joined["length_weighted_nodes"]) == (1e-3, 1e-5)
    assert len(theorem.violations([joined])) == 2
