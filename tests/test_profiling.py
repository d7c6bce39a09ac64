"""Where the time goes: operations counted by definition, phases that add up, and the commands that
print them.
"""

import time
from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny_model

from minigrpo import sample
from minigrpo.command.cli import main
from minigrpo.engine.backend import get_backend
from minigrpo.engine.parameters import TransformerConfig
from minigrpo.engine.profiling import Stopwatch, forward_flops, peak_rate, timed
from minigrpo.runs import bench
from minigrpo.runs.policy import make_policy, make_state
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train_step
from minigrpo.tree import PrefixTree


def test_operations_of_a_forward_pass_by_hand():
    """Two layers of width 4 (one head of 4, so D = E), ffn 3, vocabulary 5; three prompt nodes,
    then [1, 2], [1, 3], [4].
    """
    config = TransformerConfig(vocab_size=5, dim=4, n_layers=2, n_heads=1, ffn_dim=3)
    tree = PrefixTree.from_groups([[0, 0, 0]], [[[1, 2], [1, 3], [4]]])
    matrices = 4 * 4 * 4 + 3 * 4 * 3  # q, k, v, o; gate, up, down
    computed, keys, predictors = (
        4,
        1 + 2 + 3 + 4,
        2,
    )  # the prompt and its child 1; leaves predict nothing
    expected = 2 * 2 * matrices * computed + 2 * (2 * 2 * 4) * keys + 2 * 5 * 4 * predictors
    assert forward_flops(config, tree) == expected
    flat = PrefixTree.from_groups([[0, 0, 0]], [[[1, 2], [1, 3], [4]]], merge=False)
    assert forward_flops(config, flat) > 2 * expected


def test_operations_follow_the_products_that_the_model_makes(monkeypatch):
    """Count what goes through `linear`."""
    from minigrpo import ops

    model, counted = tiny_model(), []
    tree = sample(model, [[1, 2], [3]], 6, np.random.default_rng(0), max_new_tokens=5).tree
    linear = ops.linear

    def counting(x, weight, bias=None):
        counted.append(2 * x.shape[0] * weight.size)
        return linear(x, weight)

    monkeypatch.setattr(ops, "linear", counting)
    model.forward(tree)
    inner = np.isin(np.arange(tree.n_nodes), tree.parent)
    attention = 4 * model.config.dim * model.config.n_layers * (tree.depth[inner] + 1).sum()
    assert forward_flops(model.config, tree) == sum(counted) + attention


def test_phases_share_out_the_time_of_lanes():
    watch = Stopwatch()
    lanes = {"update": 3.0, "forward": 2.0, "backward": 4.0}  # two at once: 6 s in 3
    watch.seconds.update(lanes | {"in all": 5.0, "sample": 1.0, "optimizer": 0.5})
    of_lanes = {"forward": 1.0, "backward": 2.0}
    assert watch.phases() == {"sample": 1.0, "score": 0.5, "optimizer": 0.5} | of_lanes
    watch.flops.update({"sample": 2e9, "forward": 2e9, "backward": 4e9})
    lines = watch.table(peak=4e9).splitlines()
    assert lines[0].endswith("peak 4 GFLOP/s")
    assert lines[1].split() == ["sample", "1.00", "20%", "2.0", "50%"]
    assert lines[4].split() == ["backward", "2.00", "40%", "2.0", "50%"]
    assert lines[6].split() == ["in", "all", "5.00", "100%", "1.6", "40%"]


def test_a_stopwatch_measures_what_is_timed_while_it_runs(monkeypatch):
    clock = iter([0.0, 1.0, 3.5, 4.0, 10.0, 11.0, 11.25, 12.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    watch, work = Stopwatch(), timed("sample")(lambda x: x + 1)
    assert work(1) == 2
    for _ in range(2):
        with watch:
            assert work(2) == 3
    assert watch.seconds == {"sample": 2.75, "in all": 6.0}
    assert work(3) == 4 and watch.phases()["score"] == 3.25


@pytest.mark.parametrize("inner_epochs", [1, 2])
@pytest.mark.parametrize("max_nodes", [10**6, 40])
def test_operations_of_a_step_are_those_of_its_trees(inner_epochs, max_nodes):
    """A node counts once, in however many parts it is computed; what is pruned does not count."""
    settings = TrainSettings(
        group_size=4, prompts_per_step=8, inner_epochs=inner_epochs, micro_batch_tokens=max_nodes
    )
    (model, task), watch = make_policy(settings), Stopwatch()
    with watch:
        rollouts = train_step(make_state(settings, model), task, settings).rollouts
    whole = forward_flops(model.config, rollouts.tree)
    assert watch.flops["sample"] == whole
    assert watch.flops["backward"] == 2 * watch.flops["forward"]
    if inner_epochs == 2:
        assert watch.flops["forward"] == 2 * whole
    else:
        assert 0.1 * whole < watch.flops["forward"] < whole
    assert all(seconds > 0 for seconds in watch.phases().values())


def test_the_peak_rate_is_a_rate():
    assert 1e7 < peak_rate(get_backend("numpy"), size=64, repeats=2) < 1e15


def test_train_says_where_the_time_went(capsys):
    assert (
        main(
            [
                "train",
                "--task",
                "treewalk",
                "--steps",
                "3",
                "--objective",
                "grpo",
                "--objective-option",
                "beta=0.1",
                "--profile",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    for phase in ("sample", "score", "forward", "backward", "optimizer", "in all"):
        assert f"\n{phase} " in printed
    assert "GFLOP/s" in printed


def test_bench_prints_a_step_next_to_its_floor(capsys, monkeypatch):
    small = bench.Workload(TransformerConfig(16, 32, 1, 2, max_seq_len=16), 2, 4, 4, 6)
    monkeypatch.setattr(
        bench, "WORKLOADS", {"W1": small, "W2": replace(small, agreeing=0.5, group_size=16)}
    )
    assert main(["bench", "--workload", "W1", "W2", "--steps", "1"]) == 0
    printed = capsys.readouterr().out
    assert "W1: a step" in printed and "its floor" in printed and "sample" in printed
    agreeing = bench.Bench(bench.WORKLOADS["W2"])
    assert bench.unique_share(agreeing.sample()) == pytest.approx(0.5, abs=0.1)
    before = agreeing.model.parameters.flat.copy()
    agreeing.step(Stopwatch())
    assert not np.array_equal(agreeing.model.parameters.flat, before)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workload", "W9"], "there is no workload 'W9': choose from W1, W2, W3"),
        (["--steps", "0"], "0 steps give no time"),
    ],
)
def test_bench_refuses(flags, message, capsys):
    assert main(["bench", *flags]) == 2
    assert message in capsys.readouterr().err
