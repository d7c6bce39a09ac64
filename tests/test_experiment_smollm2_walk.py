"""The experiment on the language model's walk: its policy, what its table and figure say, and that unfinished is said."""

from __future__ import annotations

import json
import shutil
from itertools import product
from math import comb
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_model

from minigrpo.experiments import parallel, smollm2_walk
from minigrpo.experiments.many_walks import path_logp
from minigrpo.experiments.parallel import cache_line, read_cache
from minigrpo.experiments.smollm2_walk import (
    RATES,
    TARGETS,
    best_rate,
    cut,
    figure,
    finished,
    report,
    table,
    text,
    walk,
)
from minigrpo.experiments.table1 import sign_test
from minigrpo.experiments.walk_policies import OneModel

COMMITTED = Path(__file__).parents[1] / "results"
GRPO, FIXED = (1, -1.0, 1e-5, "grpo"), (1, -1.0, 1e-5, "lambda_grpo")


def made_up(first: int, last: int, log_start: float = -2.0) -> dict:
    """A run of 250 steps: so many hits of 16 in the first 50, none for 150, so many in the last 50."""
    return {"log_start": log_start, "hits": [first] * 50 + [0] * 150 + [last] * 50}


FOUND = {
    GRPO: {"LLLL": made_up(4, 16, -1.0), "LRLR": made_up(8, 0), "RRRR": made_up(0, 8, -3.0)},
    FIXED: {"LLLL": made_up(4, 16, -1.0), "LRLR": made_up(4, 12), "RRRL": made_up(16, 16)},
}


def tiny(**shape):
    return tiny_model(vocab_size=9, tie_embeddings=True, dtype="float32", seed=3, **shape)


# -- the policy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_a_cut_model_walks_all_16_paths_and_no_other(tied):
    whole = tiny_model(vocab_size=9, tie_embeddings=tied)
    model = cut(whole, [5, 1, 7])
    p = np.exp(path_logp(OneModel(model, np.array([2]), 4).logp()))[0]
    assert p.sum() == pytest.approx(1, abs=1e-12)
    moves = [5, 1]
    for path, found in zip(
        product((0, 1), repeat=4), p, strict=True
    ):  # from the whole model's logits, step by step
        logits = whole.logits(np.array([7, *(moves[m] for m in path[:-1])]))[:, moves]  # (4,2)
        each = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert found == pytest.approx(each[range(4), list(path)].prod(), rel=1e-10)


def test_a_walk_is_paired_and_a_function_of_its_arguments(monkeypatch):
    monkeypatch.setattr(smollm2_walk, "_pretrained", lambda: cut(tiny(), [5, 1, 7]))
    job = {"target": "RLRL", "n": 1, "r_neg": -1.0, "learning_rate": 3e-3}
    grpo = walk(objective="grpo", **job, steps=25)
    assert (
        grpo
        == walk(objective="grpo", **job, steps=25)
        == walk(objective="grpo", **job, steps=25, seed=10)
    )
    fixed = walk(objective="lambda_grpo", **job, steps=25)
    assert (fixed["log_start"], fixed["hits"][0]) == (
        grpo["log_start"],
        grpo["hits"][0],
    )  # the same first group
    assert fixed["hits"] != grpo["hits"] != walk(objective="grpo", **job, steps=25, seed=6)["hits"]
    logp = OneModel(smollm2_walk._walker(), np.array([2]), 4).logp()
    assert grpo["log_start"] == pytest.approx(path_logp(logp)[0, 0b1010], abs=1e-5)
    assert len(grpo["hits"]) == 25 and np.mean(grpo["hits"][-10:]) > 2 * np.mean(grpo["hits"][:10])


# -- the table -----------------------------------------------------------------------------------------------------------


def test_the_table_of_made_up_runs():
    result = table(FOUND)
    grpo, fixed = result["runs"]
    assert (
        grpo["n"],
        grpo["r_neg"],
        grpo["learning_rate"],
        grpo["objective"],
        grpo["targets"],
    ) == (*GRPO, 3)
    assert grpo["of_target"] == {"LLLL": 1.0, "LRLR": 0.0, "RRRR": 0.5}
    assert (grpo["target_frequency"], grpo["first"]) == (0.5, 0.25)
    assert grpo["found"] == pytest.approx(1 / 3)  # exactly one half is not found
    assert grpo["target_frequency_low"] < 0.5 < grpo["target_frequency_high"]
    assert grpo["start"] == {"LLLL": 0.3679, "LRLR": 0.1353, "RRRR": 0.04979}
    assert fixed["target_frequency"] == pytest.approx(11 / 12, abs=1e-4)
    last, first = result["paired"]  # LLLL and LRLR have both
    assert (last["steps"], last["targets"], last["above"], last["below"], last["p_sign"]) == (
        "last",
        2,
        1,
        0,
        1.0,
    )
    assert last["difference"] == 0.375
    assert (first["steps"], first["difference"], first["above"], first["below"]) == (
        "first",
        -0.125,
        0,
        1,
    )


@pytest.mark.parametrize(("above", "below"), [(0, 0), (0, 7), (7, 0), (5, 2), (3, 3), (8, 8)])
def test_sign_test_counts_outcomes(above, below):
    n = above + below
    extreme = [i for i in range(n + 1) if abs(2 * i - n) >= abs(above - below)]
    assert sign_test(above, below) == pytest.approx(sum(comb(n, i) for i in extreme) / 2**n)


def test_no_interval_and_no_pair_from_one_target():
    result = table({GRPO: {"LLLL": made_up(4, 16)}})
    assert result["runs"][0]["target_frequency_low"] is None and result["paired"] == []
    assert "[one target]" in text(result) and "1 of 16 targets" in text(result)


def test_the_best_rate_is_that_of_both_objectives_together():
    found = {}
    for rate, ends in {1e-5: (16, 2), 3e-6: (10, 10), 3e-5: (1, 16)}.items():
        for objective, end in zip(("grpo", "lambda_grpo"), ends, strict=True):
            found[1, -1.0, rate, objective] = {"LLLL": made_up(0, end), "LLLR": made_up(0, end)}
    assert best_rate(table(found)) == 3e-6


# -- what is finished ----------------------------------------------------------------------------------------------------


def test_unfinished_results_are_reported_as_such(tmp_path):
    with pytest.raises(ValueError, match="holds no finished run of this experiment"):
        report(tmp_path)
    file = tmp_path / "smollm2-walk.runs.jsonl"
    for (n, r_neg, rate, objective), runs in reversed(FOUND.items()):
        for target, result in reversed(runs.items()):
            job = {
                "n": n,
                "r_neg": r_neg,
                "learning_rate": rate,
                "objective": objective,
                "target": target,
            }
            others = [
                ("minigrpo.experiments.table1", job, []),
                (smollm2_walk.__name__, job | {"steps": 20}, {"hits": [3] * 20}),
            ]
            with open(file, "ab") as cache:
                for module, of, found in [*others, (smollm2_walk.__name__, job, result)]:
                    cache.write(
                        cache_line(
                            json.dumps([module, "walk", of], sort_keys=True), "any code", found
                        )
                    )
    with open(file, "a", encoding="utf-8") as cache:
        cache.write('{"job": "cut sho')  # by a kill
    assert finished(file) == FOUND
    assert [list(runs) for runs in finished(file).values()] == [
        list(runs) for runs in FOUND.values()
    ]
    said = report(tmp_path)
    assert said.count("3 of 16 targets") == 2 and said.count("2 of 16 targets") == 2
    assert json.loads((tmp_path / "smollm2-walk.json").read_text(encoding="utf-8")) == table(FOUND)
    assert (tmp_path / "smollm2-walk.png").stat().st_size > 10_000


def test_the_runs_of_the_repository_are_all_there_and_are_taken(tmp_path, monkeypatch, capsys):
    """Whatever the code of today is: that is said, and nothing is computed again."""
    tracked = COMMITTED / "smollm2-walk.runs.jsonl"
    found = finished(tracked)
    assert sum(map(len, found.values())) == len(read_cache(tracked)) == 64
    shutil.copy(tracked, tmp_path)
    monkeypatch.setattr(
        parallel, "ProcessPoolExecutor", None
    )  # would be needed to compute anything
    targets = {
        "RATES": RATES[:2],
        "best_rate": lambda result: RATES[0],
        "_write": lambda out, result: result,
    }
    for name, value in targets.items():
        monkeypatch.setattr(smollm2_walk, name, value)
    with pytest.raises(TypeError):  # n = 2 is not there
        smollm2_walk.run(tmp_path)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(
        "note: 32 results in " in line
        and line.endswith("of other code than this, and are taken as they are")
        for line in said
    )


def test_the_figure_shows_the_runs_that_there_are():
    (ax,) = figure(table(FOUND)).axes
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == [
        "RRRR  0.050",
        "LRLR  0.135",
        "RRRL  0.135",
        "LLLL  0.368",
    ]  # by the probability before training
    points = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    assert list(points) == ["GRPO: mean 0.50, 3 targets", "λ-GRPO: mean 0.92, 3 targets"]
    shown = {round(float(y)): x for x, y in points["GRPO: mean 0.50, 3 targets"].get_xydata()}
    assert shown == {3: 1.0, 1: 0.0, 0: 0.5}
    two = figure(
        table(FOUND | {(2, -1.0, 1e-5, "grpo"): {"LLLL": made_up(0, 3), "LLLR": made_up(0, 3)}})
    )
    assert [t.get_text() for t in two.axes[1].texts].count(
        "not run"
    ) == 4 - 1  # of the five targets two


def test_all_settings_run_in_order_and_n_2_at_the_best_rate(tmp_path, monkeypatch):
    jobs, drawn = [], []

    def fake(function, wanted, **_):
        jobs.extend(wanted)
        return [made_up(1, 8 if job["learning_rate"] == 3e-6 else 2) for job in wanted]

    monkeypatch.setattr(smollm2_walk, "run_jobs", fake)
    monkeypatch.setattr(smollm2_walk, "figure", len)
    monkeypatch.setattr(smollm2_walk, "save", lambda figure, file: drawn.append(file.name))
    said = smollm2_walk.run(tmp_path)
    assert len(jobs) == 4 * 32 and "n = 2  3e-06" in said and drawn == ["smollm2-walk.png"] * 4
    assert [(job["n"], job["learning_rate"]) for job in jobs[::32]] == [
        (1, 1e-5),
        (1, 3e-6),
        (1, 3e-5),
        (2, 3e-6),
    ]
    assert [job["target"] for job in jobs[:32:2]] == TARGETS
    assert all(set(job) == {"n", "r_neg", "learning_rate", "target", "objective"} for job in jobs)
    jobs.clear()
    smollm2_walk.run(tmp_path, quick=True)
    assert [(job["target"], job["steps"]) for job in jobs] == [("LRLL", 20)] * 2 + [
        ("RRLL", 20)
    ] * 2
