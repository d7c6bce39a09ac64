"""Against PyTorch: files that tests/oracles/*.py wrote with autograd; PyTorch is not needed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import rollouts_of

from minigrpo import Objective, PrefixTree, Transformer, TransformerConfig, ops
from minigrpo.engine.backend import Backend
from minigrpo.engine.blocks import block_attention, block_attention_backward
from minigrpo.engine.parameters import rotate_halves, rotate_neighbours
from minigrpo.engine.plan import plan_tree
from minigrpo.verify.padded import padded_loss

ORACLES = Path(__file__).parent / "oracles"
LLAMAS = ("mha_tied", "gqa_untied", "mqa_tied", "qwen2_llama3", "qwen3_linear")
VARIANTS = (
    "plain",
    "grpo",
    "lambda_grpo",
    "lambda_grpo_unclipped",
    "between",
    "dapo",
    "grpo_original",
    "dr_grpo",
    "rloo",
)


def close(got: np.ndarray, expected: np.ndarray, tolerance: float = 1e-10) -> None:
    assert got.shape == expected.shape
    assert np.linalg.norm(got - expected) <= tolerance * max(np.linalg.norm(expected), 1e-300)


# -- the transformer -------------------------------------------------------------------------------


def heads_of(config: TransformerConfig, name: str) -> int | None:
    """How many heads a parameter is rotated in; None for the others."""
    heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads, "q_norm": 1, "k_norm": 1}
    return heads.get(name.split(".")[-2])


def load(name: str, backend: Backend) -> tuple[Transformer, dict[str, np.ndarray], list]:
    with np.load(ORACLES / f"llama_{name}.npz") as file:
        oracle = {key: file[key] for key in file.files}
    config = TransformerConfig(**json.loads(str(oracle["config"])))
    model = Transformer(config, backend=backend, dtype="float64")
    assert {f"weight.{parameter}" for parameter in model.parameters} == {
        key for key in oracle if key.startswith("weight.")
    }
    for parameter, view in model.parameters.items():
        weight, heads = (
            oracle[f"weight.{parameter}"].astype(np.float64),
            heads_of(config, parameter),
        )
        view[...] = backend.to_device(weight if heads is None else rotate_neighbours(weight, heads))
    return model, oracle, json.loads(str(oracle["groups"]))


@pytest.mark.parametrize("name", LLAMAS)
def test_logits_of_every_position(name: str, backend: Backend) -> None:
    model, oracle, groups = load(name, backend)
    for g, (prompt, completions) in enumerate(groups):
        for i, completion in enumerate(completions):
            close(model.logits(np.array(prompt + completion)), oracle[f"logits.{g}.{i}"])


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("name", LLAMAS)
def test_log_probabilities_and_all_gradients(name: str, merge: bool, backend: Backend) -> None:
    model, oracle, groups = load(name, backend)
    tree = PrefixTree.from_groups([p for p, _ in groups], [cs for _, cs in groups], merge=merge)
    logp = model.forward(tree, temperature=float(oracle["temperature"]))
    tokens = tree.paths >= 0
    close(tree.on_tokens(logp)[tokens], oracle["logp"])
    cotangent = np.bincount(tree.paths[tokens], oracle["cotangent"], minlength=tree.n_nodes)
    gradients = model.backward(cotangent)
    for parameter, gradient in gradients.items():
        got, heads = backend.to_host(gradient), heads_of(model.config, parameter)
        close(got if heads is None else rotate_halves(got, heads), oracle[f"gradient.{parameter}"])


@pytest.mark.parametrize(("heads", "width"), [(1, 2), (3, 2), (2, 6), (4, 8)])
def test_the_two_orders_of_rows_undo_each_other(heads: int, width: int) -> None:
    weight = np.random.default_rng(0).standard_normal((heads * width, 5))
    mine = rotate_neighbours(weight, heads)
    np.testing.assert_array_equal(rotate_halves(mine, heads), weight)
    np.testing.assert_array_equal(rotate_neighbours(rotate_halves(weight, heads), heads), weight)
    for head in range(heads):
        for j in range(width // 2):
            np.testing.assert_array_equal(mine[head * width + 2 * j], weight[head * width + j])
            np.testing.assert_array_equal(
                mine[head * width + 2 * j + 1], weight[head * width + j + width // 2]
            )


# -- single operations -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def op() -> dict[str, np.ndarray]:
    with np.load(ORACLES / "ops.npz") as file:
        return {key: file[key] for key in file.files}


def test_rmsnorm(op: dict) -> None:
    y, cache = ops.rmsnorm(op["rmsnorm.x"], op["rmsnorm.weight"], 1e-3)
    dweight = np.zeros_like(op["rmsnorm.weight"])
    dx = ops.rmsnorm_backward(op["rmsnorm.dy"], cache, dweight)
    for got, name in ((y, "y"), (dx, "dx"), (dweight, "dweight")):
        close(got, op[f"rmsnorm.{name}"])


def test_swiglu(op: dict) -> None:
    y, cache = ops.swiglu(op["swiglu.gate"], op["swiglu.up"])
    dgate, dup = np.empty_like(y), np.empty_like(y)
    ops.swiglu_backward(op["swiglu.dy"], cache, dgate, dup)
    for got, name in ((y, "y"), (dgate, "dgate"), (dup, "dup")):
        close(got, op[f"swiglu.{name}"])


def neighbours(x: np.ndarray) -> np.ndarray:
    """(heads, T, E) half-split -> (T, heads, E), pairs side by side."""
    heads, n, width = x.shape
    return np.ascontiguousarray(x.reshape(heads, n, 2, width // 2).transpose(1, 0, 3, 2)).reshape(
        n, heads, width
    )


def test_rope(op: dict) -> None:
    turn = ops.rotation(np.arange(8), 6, 1000.0)
    close(ops.rope(neighbours(op["rope.x"]), turn), neighbours(op["rope.y"]))
    close(ops.rope_backward(neighbours(op["rope.dy"]), turn), neighbours(op["rope.dx"]))


def test_attention(op: dict) -> None:
    q, k, v, dy = (
        np.ascontiguousarray(op[f"attention.{name}"].swapaxes(0, 1))
        for name in ("q", "k", "v", "dy")
    )
    tree = PrefixTree.from_groups([range(7)], [[[0]]])
    (block,) = plan_tree(tree, Backend("numpy", np), np.dtype(np.float64)).blocks
    y = np.empty_like(q)
    cache = block_attention(q, k, v, block, y)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    block_attention_backward(dy, cache, block, dq, dk, dv)
    for got, name in ((y, "y"), (dq, "dq"), (dk, "dk"), (dv, "dv")):
        close(got, op[f"attention.{name}"].swapaxes(0, 1))


def test_log_softmax(op: dict) -> None:
    logits, dy = op["log_softmax.logits"], op["log_softmax.dy"]
    row, token = (place.ravel() for place in np.indices(logits.shape))
    logp, cache = ops.log_softmax_gather(logits.copy(), row, token)
    close(logp.reshape(logits.shape), op["log_softmax.y"])
    close(
        ops.log_softmax_gather_backward(dy.sum(1), row, token, dy.ravel(), cache),
        op["log_softmax.dlogits"],
    )


# -- objectives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_objectives(name: str) -> None:
    with np.load(ORACLES / "objective.npz") as file:
        batch = json.loads(str(file["batch"]))
        logp, old, ref = file["logp"], file["old"], file["ref"]
        loss, dlogp = float(file[f"{name}.loss"]), file[f"{name}.dlogp"]
    assert set(batch["variants"]) == set(VARIANTS)
    objective = Objective(name=name, **batch["variants"][name])
    truncated, rewards = np.array(batch["truncated"]), np.array(batch["rewards"])

    got, dgot = padded_loss(
        objective,
        batch["groups"],
        rewards,
        logp,
        old,
        ref,
        truncated=truncated,
        max_new_tokens=batch["max_new_tokens"],
    )
    np.testing.assert_allclose(got, loss, rtol=1e-12)
    close(dgot, dlogp, 1e-12)

    rollouts = rollouts_of(
        [[0]] * len(batch["groups"]), batch["groups"], truncated, batch["max_new_tokens"]
    )
    tree = rollouts.tree
    tokens = tree.paths >= 0

    def on_nodes(values: np.ndarray) -> np.ndarray:
        out = np.zeros(tree.n_nodes)
        out[tree.paths[tokens]] = values[tokens]
        return out

    got, dgot = objective(rollouts, rewards, on_nodes(logp), on_nodes(old), on_nodes(ref))
    np.testing.assert_allclose(got, loss, rtol=1e-12)
    close(dgot, np.bincount(tree.paths[tokens], dlogp[tokens], minlength=tree.n_nodes), 1e-12)
