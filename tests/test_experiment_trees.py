"""The measurements of section 3.2: by their definitions, reproducible, from one policy."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_model

from minigrpo.engine.tree_statistics import path_depth
from minigrpo.experiments import trees_in_training as trees
from minigrpo.experiments.trees_in_training import (
    settings_of,
    tables,
    text,
    train_and_measure,
    tree_at,
)
from minigrpo.experiments.warm_start import warm_policy
from minigrpo.show.plots import save
from minigrpo.tasks import load_task

COMMITTED = json.loads((Path(__file__).parents[1] / "results" / "trees.json").read_text())
SMALL = {"dim": 16, "n_heads": 2, "warm_start_steps": 2}


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    return warm_policy(
        settings_of("countdown", **SMALL), tmp_path_factory.mktemp("warm") / "policy"
    )


def small_run(warm, seed=0, **changes):
    settings = {"task": "countdown", "init": warm, "group_size": 3}
    settings |= SMALL | {"prompts_per_step": 2, "steps": 3}
    return train_and_measure(settings | changes, n_groups=4, seed=seed)


def test_tree_at_by_definition(monkeypatch):
    """|λ(i,t)|, its histogram, distinct tokens, groups of one text, from the completions alone."""
    task = load_task("countdown")
    model = tiny_model(vocab_size=task.tokenizer.vocab_size, seed=1)
    seen = []
    real = trees.sample
    monkeypatch.setattr(trees, "sample", lambda *a, **o: seen.append(real(*a, **o)) or seen[-1])
    k = 5
    found = tree_at(model, task, k, 0.3, 30, np.random.default_rng(0))
    shared, distinct, one = [], 0, 0
    for group in seen[0].completions:
        texts = [tuple(c.tolist()) for c in group]
        shared += [
            sum(other[: t + 1] == c[: t + 1] for other in texts)
            for c in texts
            for t in range(len(c))
        ]
        distinct += len({c[: t + 1] for c in texts for t in range(len(c))})
        one += len(set(texts)) == 1
    counts = Counter(shared)
    assert found["counts"] == pytest.approx(
        [counts[n] / len(shared) for n in range(1, k + 1)], abs=1e-6
    )
    assert found["distinct_share"] == pytest.approx(distinct / len(shared))
    assert found["one_text"] == one / 30
    assert 0 < found["distinct_share"] < 1 and found["counts"][0] > 0
    assert found["path_depth"] == pytest.approx(path_depth(seen[0].tree).mean())


def test_colder_is_less_of_a_tree():
    """Towards temperature 0 all members write one text: no depth, and distinct tokens are 1/k."""
    task = load_task("countdown")
    model = tiny_model(vocab_size=task.tokenizer.vocab_size, seed=1)
    cold, hot = (tree_at(model, task, 4, t, 10, np.random.default_rng(0)) for t in (0.001, 1.0))
    assert cold["one_text"] == 1 and cold["path_depth"] == cold["intermediate_proportion"] == 0
    assert cold["distinct_share"] == pytest.approx(1 / 4) and cold["counts"] == [0, 0, 0, 1]
    assert hot["one_text"] == 0 and hot["distinct_share"] > 0.5


def test_the_policy_is_made_once_and_other_settings_are_refused(tmp_path, capsys):
    settings, folder = settings_of("countdown", **SMALL), tmp_path / "policy"
    warm_policy(settings, folder)
    made = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert warm_policy(settings, folder) == str(folder)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == made
    assert not capsys.readouterr().err
    (folder / "code.txt").write_text("that of yesterday")  # then it is made again
    warm_policy(settings, folder)
    assert (folder / "checkpoint-000000.mgc").stat().st_mtime_ns != made["checkpoint-000000.mgc"]
    assert (folder / "code.txt").read_text() != "that of yesterday"
    with pytest.raises(ValueError, match="other settings"):
        warm_policy(replace(settings, warm_start_steps=3), folder)


def test_a_run_is_a_function_of_its_settings(warm):
    run = small_run(warm)
    assert run == small_run(warm) != small_run(warm, seed=1)
    assert all(len(series) == 3 for series in run["training"].values())
    assert [(row["policy"], row["temperature"]) for row in run["temperature"]] == [
        (policy, t) for policy in ("start", "end") for t in trees.TEMPERATURES
    ]
    still = small_run(warm, learning_rate=1e-30)[
        "temperature"
    ]  # a policy that does not move: start and end are the same
    half = len(still) // 2
    assert [r | {"policy": ""} for r in still[:half]] == [r | {"policy": ""} for r in still[half:]]


def test_tables_and_figures(warm, tmp_path):
    runs = {
        (task, k): [small_run(warm, seed=seed, group_size=k) for seed in (0, 1)]
        for task in ("countdown",)
        for k in trees.SIZES
    }
    table = tables(runs)
    assert [(r["from_step"], r["to_step"]) for r in table["training"]] == [
        (1, 1),
        (2, 2),
        (3, 3),
    ] * 2
    rewards = [run["training"]["path_depth"][1] for run in runs["countdown", 6]]
    assert table["training"][1]["path_depth"] == pytest.approx(np.mean(rewards), rel=1e-5)
    row = table["temperature"][-1]
    assert (
        row["policy"] == "end"
        and len(row["counts"]) == 36
        and sum(row["counts"]) == pytest.approx(1, abs=1e-3)
    )
    assert ["countdown", "36", "1", "1"] in [x.split()[:4] for x in text(table).splitlines()]
    for name, figure in trees.figures(table).items():
        assert save(figure, tmp_path / f"{name}.png").stat().st_size > 10_000


def test_blocks_cover_every_step_once():
    run = {"training": {"reward": [float(i) for i in range(23)]}, "temperature": []}
    rows = tables({("countdown", 6): [run]})["training"]
    covered = [step for r in rows for step in range(r["from_step"], r["to_step"] + 1)]
    assert covered == list(range(1, 24)) and len(rows) == trees.BLOCKS
    assert all(r["reward"] == pytest.approx((r["from_step"] + r["to_step"]) / 2 - 1) for r in rows)


# -- the committed table ---------------------------------------------------------------------------


def test_committed_table_fits_the_code_and_itself():
    """Cells and blocks are the code's; a token that n members share is one of n: Σ counts / n."""
    cells = [(task, k) for task in trees.SETTINGS for k in trees.SIZES]
    blocks = {
        task: [
            (int(b[0]) + 1, int(b[-1]) + 1)
            for b in np.array_split(np.arange(s["steps"]), trees.BLOCKS)
        ]
        for task, s in trees.SETTINGS.items()
    }
    training = [(r["task"], r["k"], (r["from_step"], r["to_step"])) for r in COMMITTED["training"]]
    assert training == [(task, k, block) for task, k in cells for block in blocks[task]]
    rows = COMMITTED["temperature"]
    policies = [
        (policy, temperature) for policy in ("start", "end") for temperature in trees.TEMPERATURES
    ]
    assert [(r["task"], r["k"], (r["policy"], r["temperature"])) for r in rows] == [
        (*cell, p) for cell in cells for p in policies
    ]
    for r in rows:
        counts = np.array(r["counts"])
        assert len(counts) == r["k"] and counts.sum() == pytest.approx(1, abs=1e-4)
        assert (counts / np.arange(1, r["k"] + 1)).sum() == pytest.approx(
            r["distinct_share"], abs=3e-5
        )
