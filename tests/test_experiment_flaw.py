"""The flaw: pushes and steps against definitions and finite differences, counts by brute force."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import rollouts_of, tiny_model

from minigrpo import PrefixTree, sample
from minigrpo.experiments import flaw
from minigrpo.experiments.flaw import CASES, OBJECTIVES, path_probability
from minigrpo.experiments.reproduce import Request, reproduce
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train

COMMITTED = json.loads((Path(__file__).parents[1] / "results" / "flaw.json").read_text())


@pytest.fixture(scope="module")
def trees():
    return flaw.by_hand()


# -- the groups by hand ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_pushes_by_their_definition(trees, case):
    rewards = np.array([reward for _, reward in CASES[case]])
    a = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
    assert len(CASES[case]) == 16 and rewards.argmax() == 0
    for row in trees:
        if row["case"] == case:
            members = [
                i
                for i, (walk, _) in enumerate(CASES[case])
                if walk[: len(row["prefix"])] == row["prefix"]
            ]
            assert row["count"] == len(members)
            assert row["mean_reward"] == pytest.approx(rewards[members].mean())
            expected = a[members].sum() if row["objective"] == "grpo" else a[members].mean()
            assert row["push"] == pytest.approx(expected, abs=1e-12)
    for objective in OBJECTIVES:
        nodes = {
            row["prefix"] for row in trees if (row["case"], row["objective"]) == (case, objective)
        }
        assert nodes == {walk[:t] for walk, _ in CASES[case] for t in range(1, 5)}


def test_a_step_is_the_gradient_of_the_objective_in_logits():
    """Against finite differences of Σ push · log p over logits, with moves that nobody took."""
    walks = [[0, 0, 1], [0, 0, 1], [0, 1, 1], [1, 0, 0]]
    tree = rollouts_of([[0]], [walks]).tree
    push = np.where(tree.scored, np.random.default_rng(0).standard_normal(tree.n_nodes), 0.0)
    parents = sorted(set(tree.parent[tree.scored].tolist()))
    node_of = {(int(tree.parent[n]), int(tree.token[n])): n for n in np.flatnonzero(tree.scored)}
    count = np.array(
        [[tree.count[node_of[q, t]] if (q, t) in node_of else 0 for t in (0, 1)] for q in parents]
    )
    logits = np.log((count + 0.5) / (count.sum(1, keepdims=True) + 1))

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    def objective(x):
        return sum(push[n] * log_softmax(x)[parents.index(q), t] for (q, t), n in node_of.items())

    gradient = np.zeros_like(logits)
    for at in np.ndindex(logits.shape):
        h = np.zeros_like(logits)
        h[at] = 1e-6
        gradient[at] = (objective(logits + h) - objective(logits - h)) / 2e-6
    stepped = np.exp(log_softmax(logits + 0.3 * gradient / np.linalg.norm(gradient)))
    before, after = flaw.one_step(tree, push, 0.3)
    for (q, t), n in node_of.items():
        assert before[n] == pytest.approx(np.exp(logits[parents.index(q), t]))
        assert after[n] == pytest.approx(stepped[parents.index(q), t], rel=1e-8)
    assert not before[~tree.scored].any()


def test_exploration_the_best_walk_falls_under_grpo_and_rises_under_lambda_grpo(trees):
    before, grpo = (
        path_probability(trees, "exploration", "grpo", column) for column in ("before", "after")
    )
    assert before == pytest.approx(1 / 16)
    assert grpo == pytest.approx(0.0554, abs=1e-4)  # as in results/README.md
    assert path_probability(trees, "exploration", "lambda_grpo", "after") == pytest.approx(
        0.0717, abs=1e-4
    )
    path = {
        row["prefix"]: row["push"] for row in trees if row["best"] and row["case"] == "exploration"
    }
    assert path["R"] < 0 < path["RRRR"]


def test_exploitation_all_steps_of_the_best_walk_are_pushed_up_and_one_loses(trees):
    at = {(row["objective"], row["prefix"]): row for row in trees if row["case"] == "exploitation"}
    lost = {}
    for objective in OBJECTIVES:
        assert all(at[objective, "LRRR"[:t]]["push"] > 0 for t in range(1, 5))
        lost[objective] = at[objective, "LR"]["before"] - at[objective, "LR"]["after"]
    assert lost["grpo"] > 2 * lost["lambda_grpo"] > 0  # mitigated, not removed
    within = {
        (o, c): path_probability(trees, "exploitation", o, c, skip=1)
        for o in OBJECTIVES
        for c in ("before", "after")
    }
    assert within["grpo", "after"] < within["grpo", "before"] < within["lambda_grpo", "after"]


# -- training --------------------------------------------------------------------------------------


def test_counts_of_a_step_by_brute_force():
    model = tiny_model(vocab_size=2, seed=3)
    target = PrefixTree.from_groups([[0]], [[[1, 1, 1, 1]]])
    before, seen = model.parameters.flat.copy(), 0
    for seed in range(12):
        model.parameters.flat[:] = before
        rollouts = sample(model, [[0]], 12, np.random.default_rng(seed), max_new_tokens=4)
        walks = [tuple(c.tolist()) for c in rollouts.completions[0]]
        rewards = np.array(
            [1.0 if w == (1, 1, 1, 1) else -1.0 if w[0] == 1 else 0.7 for w in walks]
        )
        now = before * (1 + 1e-3 * np.random.default_rng(seed).standard_normal(before.shape))
        model.parameters.flat[:] = now
        counts = flaw.step_counts(model, before, target, rollouts, rewards)
        np.testing.assert_array_equal(model.parameters.flat, now)

        a = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
        size = {w[:t]: sum(v[:t] == w[:t] for v in walks) for w in walks for t in range(1, 5)}
        pushes = {
            "grpo": {p: sum(a[i] for i, w in enumerate(walks) if w[: len(p)] == p) for p in size}
        }
        pushes["lambda_grpo"] = {p: x / size[p] for p, x in pushes["grpo"].items()}
        good = [w[:t] for w, x in zip(walks, a, strict=True) if x > 0 for t in range(1, 5)]
        assert counts["good_tokens"] == len(good)
        assert counts["good_tokens_down"] == sum(pushes["grpo"][p] < 0 for p in good)
        for name, push in pushes.items():
            assert counts[f"down_{name}"] == pytest.approx(-sum(min(push[p], 0) for p in good))
            assert counts[f"up_{name}"] == pytest.approx(sum(max(push[p], 0) for p in good))
        hits = walks.count((1, 1, 1, 1))
        assert counts["hits"] == (0 < hits < 12)
        if not counts["hits"]:
            assert not any(
                counts[x] for x in counts if x.startswith(("falls", "shared", "tail", "points"))
            )
            continue
        seen += 1
        path = [(1,) * t for t in range(1, 5)]
        moved = model.forward(target, keep=False).sum()
        model.parameters.flat[:] = before
        start = model.forward(target, keep=False).sum()
        assert counts["falls"] == (moved < start)
        for name, push in pushes.items():
            assert counts[f"shared_{name}"] == pytest.approx(
                sum(push[p] for p in path if size[p] > hits)
            )
            assert counts[f"tail_{name}"] == pytest.approx(
                sum(push[p] for p in path if size[p] == hits)
            )
            on_nodes = np.zeros(rollouts.tree.n_nodes)
            for walk, nodes in zip(walks, rollouts.tree.paths, strict=True):
                on_nodes[nodes] = [push[walk[:t]] for t in range(1, 5)]
            model.parameters.flat[:] = before
            model.gradients.flat[:] = 0
            model.forward(rollouts.tree)
            model.backward(on_nodes)
            model.parameters.flat[:] = (
                before + 1e-7 * model.gradients.flat
            )  # a step up the objective
            assert counts[f"points_down_{name}"] == (
                model.forward(target, keep=False).sum() < start
            )
    assert seen >= 4


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_run_is_the_same_as_plain_training(objective, monkeypatch):
    monkeypatch.setattr(flaw, "EARLY", 4)
    early, whole = flaw.training_run(objective, 1, seed=5, steps=12)
    options = {"objective": objective, "learning_rate": 3e-4, "steps": 12, "seed": 5}
    settings = TrainSettings.for_task("treewalk", task_options={"n": 1, "r_neg": -1.0}, **options)
    _, metrics = train(settings, progress=False)
    met = [m["frac_correct"] > 0 and m["reward_std"] > 0 for m in metrics]
    assert (early["steps"], whole["steps"]) == (4, 12)
    assert (early["hits"], whole["hits"]) == (sum(met[:4]), sum(met))
    assert all(
        early[name] <= whole[name]
        for name in early
        if name.startswith(("good", "up", "down", "hits", "falls"))
    )


def test_statistics_are_means_of_the_seeds_own_ratios():
    names = ["good_tokens_down", "good_tokens", "falls", "hits"]
    names += [
        f"{part}_{o}"
        for o in OBJECTIVES
        for part in ("down", "up", "points_down", "shared", "tail")
    ]
    runs = [
        {"n": 1, "trained_with": "grpo", "seed": s, "steps": 50} | dict.fromkeys(names, 1.0)
        for s in range(3)
    ]
    runs[0] |= {"falls": 1.0, "hits": 4.0, "shared_grpo": -3.0}
    runs[1] |= {"falls": 3.0, "hits": 4.0}
    runs[2] |= {"falls": 0.0, "hits": 0.0}  # never met the target
    (row,) = flaw.statistics(runs)
    assert row["falls"] == 0.5 and row["hits"] == pytest.approx(8 / 3)
    assert (row["falls_low"], row["falls_high"]) == (0.25, 0.75)
    assert row["shared_to_tail_grpo"] == pytest.approx(-1 / 3)
    assert row["good_tokens_down"] == row["good_tokens_down_low"] == 1


def test_differences_are_taken_seed_by_seed():
    names = ["good_tokens", "good_tokens_down", "hits", "falls"]
    names += [
        f"{part}_{o}"
        for o in OBJECTIVES
        for part in ("down", "up", "points_down", "shared", "tail")
    ]
    runs = [
        {"n": 1, "trained_with": o, "seed": s, "steps": 50} | dict.fromkeys(names, 1.0)
        for o in OBJECTIVES
        for s in (0, 1, 2)
    ]
    # falls: 0.1, 0.5 under GRPO, 0.3, 0.7 under λ-GRPO; one run of the third pair has no target
    for run in runs:
        run["falls"] = 0.1 + 0.4 * run["seed"] + 0.2 * (run["trained_with"] == "lambda_grpo")
        run["points_down_grpo"] = (
            4.0 if run["trained_with"] == "grpo" else 9.0
        )  # GRPO's batches count
    runs[-1]["hits"] = 0.0
    (row,) = flaw.differences(runs)
    assert (row["n"], row["steps"], row["seeds"]) == (1, 50, 2)
    assert [row[name] for name in ("falls", "falls_low", "falls_high")] == pytest.approx([0.2] * 3)
    assert row["points_down"] == -3.0 and row["shared_to_tail"] == row["good_tokens_down"] == 0


# -- the committed table ---------------------------------------------------------------------------


def test_committed_groups_by_hand_can_be_regenerated(trees):
    """All rows, to the six digits that are written."""
    assert len(trees) == len(COMMITTED["trees"])
    for row, committed in zip(trees, COMMITTED["trees"], strict=True):
        assert row == {
            name: pytest.approx(x, rel=1e-5) if isinstance(x, float) else x
            for name, x in committed.items()
        }


def test_committed_training_can_be_regenerated():
    """Three of the 20 seeds, the first 50 steps: their mean is within 3.5 standard errors."""
    runs = [
        row for seed in range(3) for row in flaw.training_run("grpo", 2, seed, steps=flaw.EARLY)
    ]
    (row,) = flaw.statistics(runs)
    (committed,) = (
        r
        for r in COMMITTED["training"]
        if (r["n"], r["trained_with"], r["steps"]) == (2, "grpo", flaw.EARLY)
    )
    assert row.keys() == committed.keys()
    for name in (name for name in row if f"{name}_low" in row):
        of_one_seed = (
            (committed[f"{name}_high"] - committed[f"{name}_low"])
            / (2 * 1.96)
            * np.sqrt(committed["seeds"])
        )
        assert abs(row[name] - committed[name]) < 3.5 * of_one_seed / np.sqrt(3), name


# -- run -------------------------------------------------------------------------------------------


def test_run_writes_tables_and_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(flaw, "EARLY", 2)
    short = {(o, n): flaw.training_run(o, n, 0, steps=4) for o in OBJECTIVES for n in (1, 2)}
    asked = []

    def run_jobs(request, function, jobs, title):
        asked.extend(jobs)
        return [[dict(row) for row in short[job["objective"], job["n"]]] for job in jobs]

    monkeypatch.setattr(Request, "jobs", run_jobs)
    words = [line.split() for line in reproduce("flaw", tmp_path, seeds=2).splitlines()]
    assert len(asked) == 8 and {"objective": "lambda_grpo", "n": 2, "seed": 1} in asked
    assert ["2", "lambda_grpo", "4", "2"] in [line[:4] for line in words]
    tables = json.loads((tmp_path / "flaw.json").read_text())
    assert len(tables["training"]) == 8 and len(tables["differences"]) == 4
    assert {row["case"] for row in tables["trees"]} == set(CASES)
    for name in ("flaw.png", "flaw-exploitation.png", "flaw-training.png"):
        assert (tmp_path / name).stat().st_size > 10_000
