"""The whole model: gradients by central differences, and a tree against its completions one by one.

The flat side of every comparison computes each completion alone and takes its loss from
`padded.py`, which knows no trees.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import relative, rollouts_of

from minigrpo import Objective, PrefixTree, Transformer, TransformerConfig, transformer
from minigrpo.engine import plan
from minigrpo.engine.backend import Backend
from minigrpo.engine.plan import split_tree
from minigrpo.objectives import PRESETS
from minigrpo.sampler import sample
from minigrpo.verify.padded import padded_loss

SHAPES = {
    "gqa_untied": {
        "dim": 16,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "ffn_dim": 24,
        "tie_embeddings": False,
    },
    "mha_tied": {"dim": 12, "n_layers": 3, "n_heads": 2, "ffn_dim": 16, "norm_eps": 1e-2},
    "mqa_tied": {"dim": 12, "n_layers": 1, "n_heads": 6, "n_kv_heads": 1, "rope_base": 500_000.0},
    "biases, llama3": {
        "dim": 12,
        "n_layers": 2,
        "n_heads": 2,
        "n_kv_heads": 1,
        "ffn_dim": 16,
        "model_type": "qwen2",
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 0.2,
            "high_freq_factor": 1.1,
            "original_max_position_embeddings": 9,
        },
    },
    "norms of heads, linear": {
        "dim": 12,
        "n_layers": 2,
        "n_heads": 3,
        "n_kv_heads": 1,
        "ffn_dim": 16,
        "head_dim": 6,
        "model_type": "qwen3",
        "rope_scaling": {"rope_type": "linear", "factor": 2.5},
    },
}
# Forks at every depth, duplicates, beginnings of other completions, empty ones; a prompt that
# begins another, a prompt twice, a prompt of one token.
PROMPTS = [[1, 2, 3], [1, 2], [1, 2, 3], [4]]
COMPLETIONS = [
    [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 2],
        [1, 1, 1, 2],
        [1, 1, 2, 0, 0, 3],
        [1, 2],
        [2, 5],
        [1, 1, 1, 1, 1],
        [1, 1],
    ],
    [[3, 1, 1, 1], [3, 1, 1, 1, 1], [], [0, 0, 0]],
    [[1, 1, 1, 1, 1], [5, 5, 5], [5, 5, 4]],
    [[4, 4], [4, 4, 4], []],
]
REWARDS = np.array(
    [1.0, 0.0, -0.5, 1.0, 0.3, 0.0, 0.9, 0.1, 1.0, 0.0, 0.5, 0.2, 0.0, 1.0, 0.4, 1.0, 0.0, 0.6]
)
TRUNCATED = np.arange(18) % 5 == 2
TEMPERATURE = 0.7
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}


def make_model(
    backend: Backend, dtype: str = "float64", shape: str = "gqa_untied", seed: int = 0, **changes
) -> Transformer:
    """Random weights, large enough for attention and predictions to be far from uniform."""
    config = TransformerConfig(**({"vocab_size": 6, "max_seq_len": 128} | SHAPES[shape] | changes))
    model = Transformer(config, seed, backend, dtype)
    rng = np.random.default_rng(seed)
    for view in model.parameters.values():
        values = 0.3 * rng.standard_normal(view.shape) + (view.ndim == 1)
        view[...] = backend.to_device(values, dtype=model.dtype)
    return model


def make_tree(merge: bool = True) -> PrefixTree:
    return PrefixTree.from_groups(PROMPTS, COMPLETIONS, merge=merge)


def gradient_of(model: Transformer, tree: PrefixTree, dlogp: np.ndarray) -> np.ndarray:
    model.gradients.flat[:] = 0
    model.forward(tree, TEMPERATURE)
    return model.backend.to_host(model.backward(dlogp).flat).copy()


def cotangent(tree: PrefixTree) -> np.ndarray:
    """Random, and wild on the nodes that are not scored, where it must not matter."""
    return np.where(tree.scored, np.random.default_rng(5).standard_normal(tree.n_nodes), 1e9)


# -- gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_block", [0, plan.ONE_BLOCK])
@pytest.mark.parametrize("shape", SHAPES)
def test_central_differences_of_every_parameter(
    shape: str, one_block: int, backend: Backend, monkeypatch
) -> None:
    monkeypatch.setattr(plan, "ONE_BLOCK", one_block)
    model, tree = make_model(backend, shape=shape), make_tree()
    assert (len(plan.plan_tree(tree, backend, model.dtype).blocks) > 1) == (one_block == 0)
    dlogp = cotangent(tree)
    gradient_of(model, tree, dlogp)
    rng, step = np.random.default_rng(1), 2e-6
    for name, view in model.parameters.items():
        gradient, kept = backend.to_host(model.gradients[name]), view.copy()
        along = rng.standard_normal(
            gradient.shape
        )  # on average, gradient·along is as large as ‖gradient‖

        def loss(distance: float, view=view, kept=kept, along=along) -> float:
            view[...] = kept + backend.to_device(distance * along)
            return float((model.forward(tree, TEMPERATURE, keep=False) * dlogp)[tree.scored].sum())

        expected = (loss(step) - loss(-step)) / (2 * step)
        view[...] = kept
        assert np.linalg.norm(gradient) > 1e-3, name
        assert abs((gradient * along).sum() - expected) <= 1e-7 * np.linalg.norm(gradient), name


def test_central_differences_of_an_objective_between_grpo_and_lambda_grpo(backend: Backend) -> None:
    """d loss / d parameters along random directions for weights |λ|^-½, with clipping, the KL term
    and masked completions.
    """
    model, rollouts = make_model(backend), rollouts_of(PROMPTS, COMPLETIONS, TRUNCATED)
    tree, rng, step = rollouts.tree, np.random.default_rng(1), 2e-6
    objective = Objective.preset("grpo", alpha=0.5, beta=0.3, mask_truncated=True)
    coefficients = objective.coefficients(rollouts, REWARDS)
    logp = model.forward(tree, TEMPERATURE).astype(np.float64)
    old, ref = (logp + rng.uniform(-0.5, 0.5, tree.n_nodes) for _ in range(2))
    metrics = objective.metrics(coefficients, logp, old)
    assert metrics["clip_ratio/low_mean"] > 0 and metrics["clip_ratio/high_mean"] > 0
    gradient = gradient_of(model, tree, objective.evaluate(coefficients, logp, old, ref)[1])
    start = backend.to_host(model.parameters.flat).copy()

    def loss(shift: np.ndarray) -> float:
        model.parameters.flat[:] = backend.to_device(start + shift)
        return objective.evaluate(
            coefficients, model.forward(tree, TEMPERATURE, keep=False), old, ref
        )[0]

    for _ in range(5):
        along = rng.standard_normal(len(start))
        numeric = (loss(step * along) - loss(-step * along)) / (2 * step)
        assert abs(gradient @ along - numeric) <= 1e-6 * np.linalg.norm(gradient)


def test_gradients_add_up_until_they_are_set_to_0(backend: Backend) -> None:
    model, tree = make_model(backend), make_tree()
    once = gradient_of(model, tree, cotangent(tree))
    model.forward(tree, TEMPERATURE)
    model.backward(2 * cotangent(tree))
    assert relative(backend.to_host(model.gradients.flat), 3 * once) <= 1e-14


# -- a tree is its completions ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_tree_gives_what_each_completion_gives_alone(
    shape: str, dtype: str, backend: Backend
) -> None:
    model, tree = make_model(backend, dtype, shape), make_tree()
    logp = model.forward(tree, TEMPERATURE, keep=False)
    assert str(logp.dtype) == dtype
    np.testing.assert_array_equal(logp[~tree.scored], 0)
    rows = iter(tree.paths)
    for prompt, group in zip(PROMPTS, COMPLETIONS, strict=True):
        for completion in group:
            logits = (
                model.logits(np.array(prompt + completion))[
                    len(prompt) - 1 : len(prompt) + len(completion) - 1
                ]
                / TEMPERATURE
            )
            alone = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            expected = alone[np.arange(len(completion)), np.array(completion, dtype=int)]
            np.testing.assert_allclose(
                logp[next(rows)[: len(completion)]], expected, rtol=0, atol=TOLERANCE[dtype]
            )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("preset", PRESETS)
def test_four_inner_epochs_on_the_tree_and_flat(
    preset: str, beta: float, dtype: str, backend: Backend
) -> None:
    model, rollouts = make_model(backend, dtype), rollouts_of(PROMPTS, COMPLETIONS, TRUNCATED)
    objective = Objective.preset(preset, beta=beta)
    tree, flat = rollouts.tree, make_tree(merge=False)
    rng = np.random.default_rng(2)

    def forward(on: PrefixTree, keep: bool = False) -> np.ndarray:
        return model.forward(on, TEMPERATURE, keep).astype(np.float64)

    def move(direction: np.ndarray, length: float) -> None:
        direction = length * direction / np.linalg.norm(direction)
        model.parameters.flat[:] = model.parameters.flat + backend.to_device(
            direction, dtype=model.dtype
        )

    old, old_flat = forward(tree), flat.on_tokens(forward(flat))
    size = float(np.linalg.norm(backend.to_host(model.parameters.flat)))
    start = model.parameters.flat.copy()
    move(rng.standard_normal(start.shape), 0.05 * size)
    ref, ref_flat = forward(tree), flat.on_tokens(forward(flat))
    model.parameters.flat[:] = start
    coefficients = objective.coefficients(rollouts, REWARDS)
    for _ in range(4):
        model.gradients.flat[:] = 0
        logp = flat.on_tokens(forward(flat, keep=True))
        loss_flat, dlogp = padded_loss(
            objective,
            COMPLETIONS,
            REWARDS,
            logp,
            old_flat,
            ref_flat,
            truncated=TRUNCATED,
            max_new_tokens=rollouts.max_new_tokens,
        )
        on_nodes = np.zeros(flat.n_nodes)
        on_nodes[flat.paths[flat.paths >= 0]] = dlogp[flat.paths >= 0]
        expected = backend.to_host(model.backward(on_nodes).flat).copy()

        model.gradients.flat[:] = 0
        logp = forward(tree, keep=True)
        loss, dlogp = objective.evaluate(coefficients, logp, old, ref)
        gradient = backend.to_host(model.backward(dlogp).flat)
        assert relative(gradient, expected) <= TOLERANCE[dtype]
        assert abs(loss - loss_flat) <= TOLERANCE[dtype] * max(1, abs(loss_flat))
        clipped = objective.metrics(coefficients, logp, old, ref)
        move(
            -gradient.astype(np.float64), 0.03 * size
        )  # far enough to be clipped on both sides by the last epoch
    if objective.clip_low is not None:
        assert clipped["clip_ratio/low_mean"] > 0
        assert clipped["clip_ratio/high_mean"] > 0


@pytest.mark.parametrize("max_nodes", [1, 4, 11, 20, 10_000])
def test_micro_batches_add_up_to_the_whole(max_nodes: int, backend: Backend) -> None:
    model, tree = make_model(backend), make_tree()
    whole = gradient_of(model, tree, cotangent(tree))
    logp = model.forward(tree, TEMPERATURE, keep=False)
    model.gradients.flat[:] = 0
    parts = split_tree(tree, max_nodes)
    assert (len(parts) > 1) == (max_nodes < tree.n_nodes)
    for part, nodes in parts:
        np.testing.assert_allclose(
            model.forward(part, TEMPERATURE)[part.scored],
            logp[nodes[part.scored]],
            rtol=0,
            atol=1e-12,
        )
        model.backward(cotangent(tree)[nodes])
    assert relative(backend.to_host(model.gradients.flat), whole) <= 1e-12


def test_many_blocks_of_attention_are_one(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    groups = [
        [rng.integers(6, size=rng.integers(1, 70)) // 5 for _ in range(8)] for _ in range(4)
    ]  # mostly zeros: deep forks
    tree = PrefixTree.from_groups([[g] * (g + 1) for g in range(4)], groups)
    model = make_model(backend)
    assert tree.count.max() >= 4
    assert (
        len(plan.plan_tree(tree, backend, model.dtype).blocks) > 3
    )  # large enough to be cut without being asked to
    logp, gradient = (
        model.forward(tree, TEMPERATURE, keep=False),
        gradient_of(model, tree, cotangent(tree)),
    )
    monkeypatch.setattr(plan, "ONE_BLOCK", 10**12)
    model = make_model(backend)
    assert len(plan.plan_tree(tree, backend, model.dtype).blocks) == 1
    np.testing.assert_allclose(
        model.forward(tree, TEMPERATURE, keep=False), logp, rtol=0, atol=1e-12
    )
    assert relative(gradient_of(model, tree, cotangent(tree)), gradient) <= 1e-12


@pytest.mark.parametrize("groups", [[[[]]], [[[], []], [[], []]]])
def test_nothing_to_score(groups: list, backend: Backend) -> None:
    tree = PrefixTree.from_groups([[1, 2]] * len(groups), groups)
    model = make_model(backend)
    np.testing.assert_array_equal(model.forward(tree), np.zeros(2))
    np.testing.assert_array_equal(backend.to_host(model.backward(np.ones(2)).flat), 0)


# -- the rest --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_same_input_gives_the_same_bits(dtype: str, backend: Backend) -> None:
    runs = []
    for _ in range(2):
        model, tree = make_model(backend, dtype), make_tree()
        runs.append(
            (
                model.forward(tree, TEMPERATURE, keep=False),
                gradient_of(model, tree, cotangent(tree)),
            )
        )
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    np.testing.assert_array_equal(runs[0][1], runs[1][1])


def test_rotations_are_computed_as_far_as_they_are_needed(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that grows holds the bits of one that was long enough, and a long context takes no
    memory before it is used.
    """
    sequence = np.arange(40) % 5
    tree = PrefixTree.from_groups([sequence], [[sequence[:9], sequence[1:12]]])
    whole = make_model(backend, "float32", max_seq_len=64)
    monkeypatch.setattr(transformer, "FIRST_TURNS", 3)
    short = make_model(backend, "float32", max_seq_len=2**62)
    assert len(short._turns) == 3
    for model in (whole, short):
        assert (
            sample(model, [sequence], 2, np.random.default_rng(0), max_new_tokens=6).tree.n_nodes
            > 40
        )
    np.testing.assert_array_equal(short.logits(sequence), whole.logits(sequence))
    for replica in (whole, *short.replicas(2)):
        replica._turns = replica._turns[:3] if replica is not whole else replica._turns
        np.testing.assert_array_equal(
            replica.forward(tree, keep=False), whole.forward(tree, keep=False)
        )
    assert 51 <= len(short._turns) <= 104
    with pytest.raises(
        ValueError, match=r"takes 65 tokens, the model's context \(max_seq_len\) holds 64"
    ):
        whole.logits(np.zeros(65, dtype=int))


def test_weights_at_the_start(backend: Backend) -> None:
    config = TransformerConfig(vocab_size=50, dim=64, n_layers=2, tie_embeddings=False)
    models = [
        Transformer(config, seed, backend, dtype)
        for seed, dtype in ((0, "float32"), (0, "float64"), (1, "float64"))
    ]
    first, second, other = (
        {n: backend.to_host(p) for n, p in m.parameters.items()} for m in models
    )
    for name, weight in second.items():
        np.testing.assert_array_equal(
            first[name], weight.astype(np.float32)
        )  # the same seed, the same weights
        if weight.ndim == 1:
            np.testing.assert_array_equal(weight, 1)
        else:
            writes = 4 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1  # 2·layers
            variance = 0.02**2 if "embed" in name else 1 / (writes * weight.shape[1])
            assert abs(weight.var() / variance - 1) < 0.1, name
            assert (other[name] != weight).all()


def test_named_parameters_are_views_of_one_vector(backend: Backend) -> None:
    model = make_model(backend)
    model.parameters["model.layers.1.self_attn.k_proj.weight"][0, 0] = 77
    assert (backend.to_host(model.parameters.flat) == 77).sum() == 1
    model.parameters.flat[:] = 3
    assert all((backend.to_host(view) == 3).all() for view in model.parameters.values())
    assert (
        sum(view.size for view in model.parameters.values())
        == model.parameters.flat.size
        == model.gradients.flat.size
    )


def test_settings_make_the_config_again(backend: Backend) -> None:
    for shape in SHAPES:
        model = make_model(backend, shape=shape)
        assert TransformerConfig(**json.loads(json.dumps(model.settings()))) == model.config
    assert (
        TransformerConfig(vocab_size=5, dim=128).ffn_dim == 344
    )  # 8/3 of 128, rounded up to a multiple of 8
    assert TransformerConfig(vocab_size=5, dim=48).ffn_dim == 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"n_kv_heads": 0}, "n_kv_heads is 0"),
        ({"dim": 30}, "dim 30 must divide into 4 heads"),
        ({"dim": 12}, "dim 12 must divide into 4 heads of an even width"),
        ({"n_kv_heads": 3}, "4 heads cannot share 3"),
    ],
)
def test_a_config_that_does_not_fit_together(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**({"vocab_size": 5, "dim": 16, "n_heads": 4} | changes))


def test_wrong_use(backend: Backend) -> None:
    model = make_model(backend, max_seq_len=6)
    with pytest.raises(ValueError, match="float16"):
        Transformer(model.config, dtype="float16")
    with pytest.raises(ValueError, match="token id 6 is outside the model's vocabulary of 6"):
        model.forward(PrefixTree.from_groups([[1]], [[[6]]]))
    with pytest.raises(ValueError, match="takes 7 tokens"):
        model.forward(PrefixTree.from_groups([[1, 2]], [[[0] * 5]]))
    with pytest.raises(ValueError, match="at least one token"):
        model.forward(PrefixTree.from_sequences([[1, 2]]))
    with pytest.raises(ValueError, match="takes 7 tokens"):
        model.logits(np.zeros(7, dtype=int))
    assert model.logits(np.zeros(6, dtype=int)).shape == (
        6,
        6,
    )  # the context is filled, but not exceeded
    tree = PrefixTree.from_groups([[1, 2]], [[[0] * 4]])
    model.forward(tree, keep=False)
    with pytest.raises(RuntimeError, match="forward"):
        model.backward(np.zeros(tree.n_nodes))
    model.forward(tree)
    model.backward(np.zeros(tree.n_nodes))
    with pytest.raises(RuntimeError, match="one for each backward"):
        model.backward(np.zeros(tree.n_nodes))
