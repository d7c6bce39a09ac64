"""What the benchmarks do their measuring on; no time is tested."""

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_model

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import compare, curves, model_memory, tree_building
from minigrpo import lambda_weights
from minigrpo.runs.bench import Bench, Workload
from minigrpo.runs.memory import parameters_of


@pytest.mark.parametrize(("k", "n"), [(1, 5), (6, 40), (20, 30)])
def test_weights_by_definition(k, n):
    group = tree_building.group(k, n, seed=k)
    expected = [
        [1 / sum((other[: t + 1] == row[: t + 1]).all() for other in group) for t in range(n)]
        for row in group
    ]
    for found in (tree_building.by_definition(group), lambda_weights(group)):
        np.testing.assert_array_equal(found, expected)
    if k > 1:
        assert min(map(min, expected)) < 1  # something is shared


def test_slopes():
    x = [1.0, 2.0, 4.0]
    assert curves.slope(x, [3 * value**0.9 for value in x]) == pytest.approx(0.9)
    rows = [{"tokens": value, "minigrpo": value**1.1} for value in x]
    assert tree_building.slope(rows) == pytest.approx(1.1)


def test_forced_completions_share_what_they_should():
    bench = Bench(
        Workload(
            tiny_model(vocab_size=50).config,
            n_prompts=2,
            prompt_length=3,
            group_size=4,
            new_tokens=20,
        )
    )
    for shared in (0.0, 0.5, 0.95):
        tree = curves.forced(bench, shared).tree
        count = tree.on_tokens(tree.count)
        assert (count[:, : round(20 * shared)] == 4).all()
        assert tree.scored.sum() <= 2 * (20 * shared + 4 * 20 * (1 - shared)) + 1e-9
        assert tree.scored.sum() > 1.8 * (20 * shared + 4 * 20 * (1 - shared))


def test_the_figure_of_the_curves(tmp_path):
    grown = {
        name: [{"value": x, "seconds": 0.1 * x, "nodes": 1} for x in (1, 2)]
        for name in curves.workloads()
    }
    shared = [{"shared": s, "nodes": 100 * (1 - s), "seconds": 1 - s} for s in (0.0, 0.5)]
    trees = [{"tokens": t, "minigrpo": 1e-6 * t, "by definition": 1e-5 * t} for t in (10, 100)]
    curves.figure(grown, shared, trees, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkout_is_compared_with_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "PAUSE", 0.0)
    here = Path(compare.__file__).parents[1]
    times, peak = compare.measure((here, here), "treewalk", threads=1, pairs=2, seed=0)
    assert times.shape == (2, 2, 2)
    assert (times > 0).all() and peak > 0
    with pytest.raises(SystemExit, match=f"was imported, which is not in {tmp_path}"):
        compare.measure((here, tmp_path), "treewalk", threads=1, pairs=1, seed=0)


def test_the_interval_of_ratios_is_over_the_starts():
    assert compare.interval(np.full((3, 4), 1.25)) == "1.250 (1.250 … 1.250)"
    between = np.repeat([[0.9], [1.0], [1.1]], 50, axis=1)  # starts differ, the pairs of one do not
    assert compare.interval(between) == "1.000 (0.900 … 1.100)"


def test_the_table_of_memory_is_the_one_that_is_printed():
    text = (Path(compare.__file__).parents[1] / "minigrpo/models/README.md").read_text("utf-8")
    assert model_memory.table() in text
    published = {  # parameters, as the models' pages give them
        "SmolLM2-135M": 134_515_008,
        "SmolLM2-360M": 361_821_120,
        "Qwen2.5-0.5B": 494_032_768,
        "Qwen3-0.6B": 596_049_920,
        "Llama-3.2-1B": 1_235_814_400,
        "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    }
    assert {n: parameters_of(c) for n, c in model_memory.MODELS.items()} == published
