"""Logits in blocks, and how much memory training takes."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from helpers import relative, tiny_model

from minigrpo import PrefixTree, transformer
from minigrpo.runs.memory import fixed_bytes, micro_batch_within, node_bytes, parameters_of
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train

GROUPS = ([[1, 2, 3], [1, 2]], [[[4, 0, 2, 2], [4, 0, 1], [3]], [[4, 4], [4, 4], [0, 1, 2, 3, 4]]])


@pytest.mark.parametrize("max_logits", [1, 5, 12, 26])
@pytest.mark.parametrize("tied", [True, False])
def test_blocks_of_logits_change_nothing(
    max_logits: int, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = PrefixTree.from_groups(*GROUPS)
    found = []
    for limit in (1 << 24, max_logits):
        monkeypatch.setattr(transformer, "MAX_LOGITS", limit)
        model = tiny_model(tie_embeddings=tied)
        logp = model.forward(tree, temperature=0.7)
        model.backward(np.random.default_rng(0).standard_normal(tree.n_nodes))
        found.append((logp, model.gradients.flat.copy(), len(model._plan(tree).predictions)))
    (whole, gradient, one), (parts, gradient_in_parts, several) = found
    assert (
        one == 1 and several == -(-len(model._plan(tree).predictor) // max(max_logits // 5, 1)) > 1
    )
    np.testing.assert_allclose(parts, whole, rtol=1e-13)
    assert relative(gradient_in_parts, gradient) < 1e-14


@pytest.mark.parametrize("max_logits", [1 << 24, 5])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("weight", [1.0, 0.0])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_gradients_are_overwritten_where_they_are_not_to_be_added(
    max_logits: int, tied: bool, weight: float, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "MAX_LOGITS", max_logits)
    tree, found = PrefixTree.from_groups(*GROUPS), []
    for before, add in ((0.0, True), (np.nan, False)):
        model = tiny_model(tie_embeddings=tied, model_type=kind)
        model.gradients.flat[:] = before
        model.forward(tree)
        found.append(
            model.backward(
                weight * np.random.default_rng(0).standard_normal(tree.n_nodes), add
            ).flat
        )
    np.testing.assert_array_equal(*found)
    assert found[0].any() == bool(weight)


def test_a_block_is_never_larger_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "MAX_LOGITS", 12)
    plan = tiny_model()._plan(PrefixTree.from_groups(*GROUPS))
    covered = [np.arange(b.rows.start, b.rows.stop) for b in plan.predictions]
    np.testing.assert_array_equal(np.concatenate(covered), np.arange(len(plan.predictor)))
    assert max(map(len, covered)) == 2


@pytest.mark.parametrize(
    "shape",
    [
        {"dim": 64, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 160},
        {"dim": 48, "n_heads": 3, "n_kv_heads": 3},
        {"dim": 48, "n_heads": 6, "n_kv_heads": 3, "head_dim": 16, "model_type": "qwen3"},
    ],
)
def test_what_a_forward_pass_saves(shape: dict) -> None:
    """Against what NumPy allocates.   Attention's share is small here, since KEYS is far more than
    these rows see.
    """
    model = tiny_model(vocab_size=7, dtype="float32", max_seq_len=96, **({"n_layers": 4} | shape))
    rng = np.random.default_rng(0)
    tree = PrefixTree.from_groups(
        [rng.integers(7, size=40)] * 4,
        [[rng.integers(7, size=40) for _ in range(4)] for _ in range(4)],
    )
    model.forward(tree)
    model.backward(np.zeros(tree.n_nodes))
    tracemalloc.start()
    model.forward(tree)
    allocated, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    computed = len(model._plan(tree).token)
    config = model.config
    seen = (
        4 * config.n_layers * config.n_heads * 256 - 4 * config.n_layers * config.n_heads * 60
    )  # KEYS against about 60
    expected = computed * (node_bytes(config, "float32") - seen)
    assert 0.7 < allocated / expected < 1.15


def test_the_micro_batch_follows_the_limit() -> None:
    config = tiny_model().config
    settings = TrainSettings(task="treewalk", micro_batch_tokens=10**6)
    fixed, node = fixed_bytes(settings, config), node_bytes(config, "float32")
    for nodes in (1, 50, 777):
        limited = replace(settings, memory_limit=(fixed + (nodes + 0.5) * node) / 1e9)
        assert micro_batch_within(limited, config) == nodes
    assert micro_batch_within(replace(settings, memory_limit=1e6), config) == 10**6
    with pytest.raises(
        ValueError, match=r"training this model takes .* GB: raise memory_limit \(it is 0\.001 GB\)"
    ):
        micro_batch_within(replace(settings, memory_limit=0.001), config)


def test_vectors_that_count() -> None:
    config = replace(tiny_model().config, vocab_size=4000)
    n = 4 * parameters_of(config)
    plain = TrainSettings(task="treewalk", objective="grpo", optimizer="sgd", micro_batch_tokens=1)
    adam = replace(plain, optimizer="adamw")
    kl = replace(adam, objective_options={"beta": 0.1})
    assert fixed_bytes(adam, config) - fixed_bytes(plain, config) == pytest.approx(2 * n)
    assert fixed_bytes(kl, config) - fixed_bytes(adam, config) == pytest.approx(n)


def test_a_smaller_limit_trains_to_the_same_weights() -> None:
    changes = {
        "steps": 3,
        "group_size": 8,
        "prompts_per_step": 2,
        "dtype": "float64",
        "optimizer": "sgd",
        "learning_rate": 0.1,
    }
    settings = TrainSettings.for_task("treewalk", **changes)
    model, _ = train(settings, progress=False)
    room = fixed_bytes(settings, model.config) + 4.5 * node_bytes(model.config, "float64")
    tight, _ = train(replace(settings, memory_limit=room / 1e9), progress=False)
    assert relative(tight.parameters.flat, model.parameters.flat) < 1e-13
