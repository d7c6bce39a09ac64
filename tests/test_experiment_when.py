"""When λ-GRPO matters: exact measures, tables from made-up runs, the committed table."""

import json
from pathlib import Path

import numpy as np
import pytest

from minigrpo.experiments import when_lambda_matters as when
from minigrpo.experiments.many_policies import Tabular, Transformers, n_moves
from minigrpo.experiments.many_walks import (
    DEPTH,
    R_OTHER,
    SMALL,
    draw,
    leaf_rewards,
    loss_gradient,
    moves_to,
    path_logp,
)
from minigrpo.experiments.when_lambda_matters import (
    PATTERNS,
    UNIFORM,
    cell,
    map_table,
    moved,
    needed,
    pushes,
    targets_table,
)
from minigrpo.experiments.when_lambda_matters_figures import (
    family_figure,
    map_figure,
    targets_figure,
)

COMMITTED = Path(__file__).parents[1] / "results" / "when.json"


@pytest.mark.parametrize("rate", [0.3, 7.0])
def test_a_tabular_policy_moves_at_its_own_rate(rate):
    assert moved("sgd", rate, policy="tabular", runs=4, steps=10) == pytest.approx(rate, rel=1e-9)


def a_step(seed=0, runs=3):
    rng = np.random.default_rng(seed)
    aim = rng.integers(0, 16, runs)
    leaves = draw(Tabular(runs, DEPTH).logp(), rng.random((runs, 16, DEPTH)))
    rewards = np.take_along_axis(leaf_rewards(aim, 1, -1.0), leaves, 1)
    return aim, loss_gradient("grpo", leaves, rewards, rng)


def test_nothing_comes_from_other_nodes_where_nothing_is_shared():
    aim, dlogp = a_step()
    model = Tabular(3, DEPTH, np.random.default_rng(1).standard_normal((3, n_moves(DEPTH))))
    model.logp()
    own, other = pushes(model, dlogp, moves_to(aim)[:, :1], -1.0)
    assert (other == 0).all()
    g = -model.gradients(dlogp).reshape(3, -1)
    moves = moves_to(aim)[:, 0]
    np.testing.assert_allclose(
        own, g[range(3), moves] - g[range(3), moves ^ 1], rtol=1e-12
    )  # of log-odds, by definition


@pytest.mark.parametrize(("first", "against"), [(True, -1.0), (False, 0.0)])
def test_pushes_are_what_a_small_step_changes(first, against):
    aim, dlogp = a_step(seed=4)
    moves = moves_to(aim)[:, :1] if first else moves_to(aim)[:, 1:]
    model = Transformers(SMALL, [0, 1, 2], DEPTH, dtype="float64")

    def x():
        logp = model.logp()
        return (
            np.take_along_axis(logp, moves, 1) + against * np.take_along_axis(logp, moves ^ 1, 1)
        ).sum(1)

    x()
    own, other = pushes(model, dlogp, moves, against)
    assert (np.abs(other) > 1e-3).all()  # parameters are shared
    gradient = model.gradients(dlogp).copy()
    values = []
    for step in (1e-6, -2e-6):
        model.flat -= step * gradient
        values.append(x())
    np.testing.assert_allclose(own + other, (values[0] - values[1]) / 2e-6, rtol=1e-4)


@pytest.mark.parametrize("r_neg", [-0.5, -1.0, -1.5])
def test_from_where_the_bad_beginning_pays(r_neg):
    p = needed(r_neg)
    assert p * 1 + (1 - p) * r_neg == pytest.approx(R_OTHER)


def test_a_cell_counts_what_it_says():
    lost = cell("tabular", "grpo", 1, -1.0, 30.0, 0.01, 32)
    assert len(lost["final"]) == len(lost["lost"]) == 32
    assert np.mean(lost["lost"]) > 0.5
    assert all(
        final < 400 for final, is_lost in zip(lost["final"], lost["lost"], strict=True) if is_lost
    )
    easy = cell("tabular", "grpo", 1, -1.0, 3.0, 0.6, 32)
    assert not any(easy["lost"]) and min(easy["final"]) > 600


def test_tables_and_figures_of_made_up_runs():
    bad, good = (
        {"final": [0] * 28 + [800] * 4, "lost": [True] * 32},
        {"final": [800] * 32, "lost": [False] * 32},
    )
    rows = map_table(
        {
            (arm, 1, -1.0, 1.0, start): found
            for start in (UNIFORM, 0.25)
            for arm, found in (("grpo", bad), ("lambda_grpo", good))
        }
    )
    row = rows[0]
    assert (
        row["grpo_target_frequency"],
        row["lambda_grpo_target_frequency"],
        row["difference"],
    ) == (0.125, 1.0, 0.875)
    assert (row["grpo_lost"], row["lambda_grpo_lost"], row["grpo_found"]) == (1.0, 0.0, 0.125)
    assert row["p"] == pytest.approx(2 * 0.5**28, rel=1e-3)
    assert (
        row["paper_p_grpo"] == pytest.approx(0.875**5, rel=1e-3) and "paper_p_grpo" not in rows[1]
    )
    (panel,) = map_figure(rows).axes
    assert [t.get_text() for t in panel.texts] == ["▲\n0.12 → 1.00"] * 2
    found = {"final": [800 if seed % 16 in (0, 15) else 0 for seed in range(32)]}
    found |= {part: [float(seed) for seed in range(32)] for part in when.PUSHES}
    rows = targets_table({("grpo", 1): found, ("lambda_grpo", 1): found})
    assert [row["pattern"] for row in rows[:8]] == PATTERNS
    assert [row["target_frequency"] for row in rows[:8]] == [1.0] + [0.0] * 7
    assert rows[1]["tail"] == np.median([1, 14, 17, 30])  # the seeds of LLLR and RRRL
    assert len(targets_figure(rows, needed(-1.0)).axes) == 3
    family = [
        {"policy": "tabular", "alpha": alpha, "n": 1, "learning_rate": 1.0}
        | {"target_frequency": alpha / 2, "low": 0, "high": 1}
        for alpha in (0.0, 1.0)
    ]
    (panel,) = family_figure(family).axes
    np.testing.assert_allclose(panel.lines[0].get_ydata(), [0.0, 0.5])


def test_a_start_is_the_targets_probability():
    first = {}

    def observe(model, logp, leaves, rewards, aim):
        first.setdefault("p", np.exp(path_logp(logp))[range(len(aim)), aim])

    when.run_walks(
        "grpo",
        1,
        -1.0,
        "sgd",
        1.0,
        policy="tabular",
        start=0.004,
        runs=4,
        steps=10,
        observe=observe,
    )
    np.testing.assert_allclose(first["p"], 0.004)


def test_committed_cells_can_be_regenerated(request):
    """One cell of the map; pytest --long tests/test_experiment_when.py tries another one, too."""
    rows = json.loads(COMMITTED.read_text())["map"]
    cells = [(2, 10.0, 0.01562), (1, 3.0, 0.0625)]
    for n, rate, start in cells[: 2 if request.config.getoption("--long") else 1]:
        (row,) = (
            r
            for r in rows
            if (r["n"], r["r_neg"], r["learning_rate"], r["start"]) == (n, -1.0, rate, start)
        )
        exact = next(s for s in when.STARTS if when.rounded(s) == start)
        for arm in ("grpo", "lambda_grpo"):
            again = cell("tabular", arm, n, -1.0, rate, exact, row["runs"])
            assert np.mean(again["final"]) / 800 == pytest.approx(
                row[f"{arm}_target_frequency"], abs=0.01
            )


def test_the_tabular_policy_agrees_with_the_transformer_in_the_signs_that_are_claimed():
    """At a common rate the map contradicts table 1 in three cells alone, of SGD's smallest rate."""
    stored = json.loads(COMMITTED.read_text())
    table1 = json.loads((COMMITTED.parent / "table1.json").read_text())["comparison"]
    rates = {
        (row["optimizer"], row["learning_rate"]): row["tabular_rate"] for row in stored["moved"]
    }
    claimed, against = 0, []
    for row in table1:
        if (
            row["rates"] == "same"
            and row["targets"] == "drawn"
            and row["n"] < 3
            and (row["low"] > 0 or row["high"] < 0)
        ):
            rate = rates[row["optimizer"], row["grpo_rate"]]
            near = min(when.TABULAR_RATES, key=lambda r: abs(np.log(r / rate)))
            (on_map,) = (
                r
                for r in stored["map"]
                if (r["n"], r["r_neg"], r["learning_rate"], r["start"])
                == (row["n"], row["r_neg"], near, 0.0625)
            )
            if on_map["high"] < 0 < row["low"] or row["high"] < 0 < on_map["low"]:
                against.append((row["n"], row["r_neg"], row["optimizer"], row["grpo_rate"]))
            claimed += row["low"] > 0
    assert claimed > 10
    assert sorted(against) == [
        (1, -1.0, "sgd", 0.003),
        (1, -0.5, "sgd", 0.003),
        (2, -0.5, "sgd", 0.003),
    ]  # results/README.md says so
