"""The language model's walk: its policy, what its table and figure say, and that it goes on."""

from __future__ import annotations

import json
import shutil
from itertools import product
from math import comb
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_model

from minigrpo.experiments import committed, parallel, smollm2_walk
from minigrpo.experiments.many_policies import OneModel
from minigrpo.experiments.many_walks import path_logp
from minigrpo.experiments.parallel import read_cache
from minigrpo.experiments.reproduce import Request, publish, reproduce
from minigrpo.experiments.smollm2_walk import (
    RATES,
    TARGETS,
    best_rate,
    cut,
    figures,
    table,
    text,
    walk,
)
from minigrpo.experiments.tables import sign_test

COMMITTED = Path(__file__).parents[1] / "results"
GRPO, FIXED = (1, -1.0, 1e-5, "grpo"), (1, -1.0, 1e-5, "lambda_grpo")


def made_up(first: int, last: int, log_start: float = -2.0) -> dict:
    """A run of 250 steps: hits of 16 in each of the first 50, none for 150, hits in the last 50."""
    return {"log_start": log_start, "hits": [first] * 50 + [0] * 150 + [last] * 50}


FOUND = {
    GRPO: {"LLLL": made_up(4, 16, -1.0), "LRLR": made_up(8, 0), "RRRR": made_up(0, 8, -3.0)},
    FIXED: {"LLLL": made_up(4, 16, -1.0), "LRLR": made_up(4, 12), "RRRL": made_up(16, 16)},
}


def tiny(**shape):
    return tiny_model(vocab_size=9, tie_embeddings=True, dtype="float32", seed=3, **shape)


# -- the policy ------------------------------------------------------------------------------------


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
    logp = OneModel(smollm2_walk._pretrained(), np.array([2]), 4).logp()
    assert grpo["log_start"] == pytest.approx(path_logp(logp)[0, 0b1010], abs=1e-5)
    assert len(grpo["hits"]) == 25 and np.mean(grpo["hits"][-10:]) > 2 * np.mean(grpo["hits"][:10])


# -- the table -------------------------------------------------------------------------------------


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
    assert "1 [-, -]" in text(result)


def test_the_best_rate_is_that_of_both_objectives_together():
    found = {}
    for rate, ends in {1e-5: (16, 2), 3e-6: (10, 10), 3e-5: (1, 16)}.items():
        for objective, end in zip(("grpo", "lambda_grpo"), ends, strict=True):
            found[1, -1.0, rate, objective] = {"LLLL": made_up(0, end), "LLLR": made_up(0, end)}
    assert best_rate(table(found)) == 3e-6


# -- the whole experiment --------------------------------------------------------------------------


def test_the_runs_of_the_repository_are_all_there_and_are_taken(tmp_path, monkeypatch, capsys):
    """Whatever the code of today is: that is said, and nothing is computed again."""
    tracked = COMMITTED / "smollm2-walk.runs.jsonl"
    records = [json.loads(record["job"]) for record in read_cache(tracked)]
    assert len(records) == 64 and {name[0] for name in records} == {smollm2_walk.__name__}
    shutil.copy(tracked, tmp_path)
    # A pool of processes would be needed to compute anything.
    monkeypatch.setattr(parallel, "ProcessPoolExecutor", None)
    monkeypatch.setattr(smollm2_walk, "RATES", RATES[:2])
    monkeypatch.setattr(smollm2_walk, "best_rate", lambda result: RATES[0])
    written = []
    monkeypatch.setattr(smollm2_walk, "publish", lambda *of: written.append(of))
    with pytest.raises(TypeError):  # n = 2 is not there
        smollm2_walk.run(Request("smollm2-walk", tmp_path))
    assert written[-1] == ("smollm2-walk", committed("results/smollm2-walk.json"), tmp_path)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    for line in said:
        assert "note: 32 results in " in line
        assert line.endswith("of other code than this, and are taken as they are")


def test_the_figure_shows_the_runs_that_there_are():
    (ax,) = figures(table(FOUND))["smollm2-walk"].axes
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
    more = {(2, -1.0, 1e-5, "grpo"): {"LLLL": made_up(0, 3), "LLLR": made_up(0, 3)}}
    panel = figures(table(FOUND | more))["smollm2-walk"].axes[1]
    told = [t.get_text() for t in panel.texts]
    assert told.count("not run") == 4 - 1  # of the five targets two


def test_all_settings_run_in_order_and_n_2_at_the_best_rate(tmp_path, monkeypatch):
    jobs, written = [], []

    def fake(function, wanted, **_):
        jobs.extend(wanted)
        return [made_up(1, 8 if job["learning_rate"] == 3e-6 else 2) for job in wanted]

    monkeypatch.setattr(smollm2_walk, "run_jobs", fake)
    monkeypatch.setattr(smollm2_walk, "figures", lambda tables: {})
    monkeypatch.setattr(smollm2_walk, "publish", lambda *of: written.append(publish(*of)))
    said = reproduce("smollm2-walk", tmp_path).splitlines()
    assert len(jobs) == 4 * 32 and len(written) == 3
    assert ["2", "3e-06", "lambda_grpo"] in [line.split()[:3] for line in said]
    assert (tmp_path / "smollm2-walk.json").exists()
    assert [(job["n"], job["learning_rate"]) for job in jobs[::32]] == [
        (1, 1e-5),
        (1, 3e-6),
        (1, 3e-5),
        (2, 3e-6),
    ]
    assert [job["target"] for job in jobs[:32:2]] == TARGETS
    assert all(set(job) == {"n", "r_neg", "learning_rate", "target", "objective"} for job in jobs)
    jobs.clear()
    reproduce("smollm2-walk", tmp_path, quick=True)
    assert [(job["target"], job["steps"]) for job in jobs] == [("LRLL", 20)] * 2 + [
        ("RRLL", 20)
    ] * 2
