"""Every operation: its backward against central differences in float64, and what it promises
besides.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from minigrpo import PrefixTree, TransformerConfig, ops
from minigrpo.engine import plan, segments
from minigrpo.engine.backend import Backend
from minigrpo.engine.blocks import block_attention, block_attention_backward
from minigrpo.engine.kv_cache import KVCache

NUMPY = Backend("numpy", np)
# rows of many lengths, forks at every depth, prompts that share a beginning, a duplicate
FORKED = PrefixTree.from_groups(
    [[1, 2, 3], [1, 2], [5]],
    [
        [[1, 1, 1, 1, 1], [1, 1, 2], [1, 3, 3], [4, 4], [1, 1, 1, 1, 1], [1, 1]],
        [[3, 1], [3, 2, 2, 2, 2, 2]],
        [[0, 0], [], [0, 0, 2, 2, 2, 2], [0, 0, 3, 3, 3, 3, 3]],
    ],
)


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-300))


def central_differences(loss: Callable[[], float], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """d loss / d x, element by element; `loss` reads x anew each time."""
    out = np.empty_like(x)
    for place in np.ndindex(x.shape):
        kept = x[place]
        x[place] = kept + step
        above = loss()
        x[place] = kept - step
        out[place] = (above - loss()) / (2 * step)
        x[place] = kept
    return out


def check(backend: Backend, run: Callable, **inputs: np.ndarray) -> None:
    """run(**inputs on the device) -> y, backward; backward(dy) -> {name of an input: its gradient}.

    The gradient of Σ y·dy for a random dy must be that of central differences (relative error in
    the Euclidean norm ≤ 1e-7), and float32 must give the same y and gradients to its own precision.
    """

    def forward(dtype: str = "float64") -> tuple:
        return run(**{name: backend.to_device(x.copy(), dtype=dtype) for name, x in inputs.items()})

    y, backward = forward()
    dy = np.random.default_rng(1).standard_normal(y.shape)
    gradients = {
        name: backend.to_host(g) for name, g in backward(backend.to_device(dy.copy())).items()
    }
    assert gradients.keys() == inputs.keys()
    y = backend.to_host(y).copy()
    for name, x in inputs.items():
        expected = central_differences(lambda: float((backend.to_host(forward()[0]) * dy).sum()), x)
        assert gradients[name].shape == x.shape
        assert relative(gradients[name], expected) <= 1e-7, name

    y32, backward32 = forward("float32")
    assert str(y32.dtype) == "float32"
    y32 = backend.to_host(y32).copy()
    assert relative(y32, y) <= 2e-6
    for name, gradient in backward32(backend.to_device(dy, dtype="float32")).items():
        assert str(gradient.dtype) == "float32"
        assert relative(backend.to_host(gradient), gradients[name]) <= 5e-6, name


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def added(backend: Backend, x: np.ndarray, add: Callable) -> np.ndarray:
    """What `add(total)` adds to a total that is not 0 before."""
    total = backend.xp.ones_like(x)
    add(total)
    return total - 1


# -- sums of scattered rows ------------------------------------------------------------------------


@pytest.mark.parametrize("n_targets", [0, 1, 3, 50])  # 0: every row is left out
@pytest.mark.parametrize("n_rows", [0, 1, 2, 7, 64, 300])
def test_segment_sum_is_add_at(n_rows: int, n_targets: int, backend: Backend) -> None:
    rng = np.random.default_rng(n_rows)
    target = rng.integers(-1, n_targets, n_rows)  # -1: left out
    x, out = normal(n_rows, 2, 3), normal(max(n_targets, 1), 2, 3)
    expected = out.copy()
    np.add.at(expected, target[target >= 0], x[target >= 0])
    sums = segments.segment_sum_plan(target, backend.to_device)
    got = backend.to_host(
        segments.segment_sum(backend.to_device(x), sums, backend.to_device(out.copy()))
    )
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    distinct = len(np.unique(target[target >= 0]))
    assert (
        sum(len(into) for into, _ in sums.rounds) == (target >= 0).sum() - distinct
    )  # each row is added once


def test_segment_sum_leaves_its_input_alone_and_sums_pairwise(backend: Backend) -> None:
    x = np.full((1 << 16, 1), 0.1, dtype=np.float32)
    device_x = backend.to_device(x)
    sums = segments.segment_sum_plan(np.zeros(len(x), dtype=np.int64), backend.to_device)
    total = backend.to_host(
        segments.segment_sum(device_x, sums, backend.xp.zeros((1, 1), dtype="float32"))
    )
    assert abs(total[0, 0] / (0.1 * len(x)) - 1) < 1e-6  # adding one after the other is off by 1e-4
    np.testing.assert_array_equal(backend.to_host(device_x), np.full_like(x, 0.1))


# -- gradients -------------------------------------------------------------------------------------


def test_embedding(backend: Backend) -> None:
    token = np.array([2, 0, 2, 2, 4])

    def run(weight):
        sums = segments.segment_sum_plan(token, backend.to_device)
        y = ops.embedding(backend.to_device(token), weight)
        return y, lambda dy: {
            "weight": added(backend, weight, lambda dw: ops.embedding_backward(dy, sums, dw))
        }

    check(backend, run, weight=normal(6, 3))


def test_linear(backend: Backend) -> None:
    def run(x, weight):
        y, cache = ops.linear(x, weight)

        def backward(dy):
            gradients = {}
            gradients["weight"] = added(
                backend, weight, lambda dw: gradients.update(x=ops.linear_backward(dy, cache, dw))
            )
            return gradients

        return y, backward

    check(backend, run, x=normal(5, 4), weight=normal(3, 4))


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rmsnorm(eps: float, backend: Backend) -> None:
    def run(x, weight):
        y, cache = ops.rmsnorm(x, weight, eps)

        def backward(dy):
            gradients = {}
            gradients["weight"] = added(
                backend, weight, lambda dw: gradients.update(x=ops.rmsnorm_backward(dy, cache, dw))
            )
            return gradients

        return y, backward

    check(backend, run, x=normal(5, 6), weight=normal(6))


@pytest.mark.parametrize("width", [2, 6, 8])
def test_rope(width: int, backend: Backend) -> None:
    turn = ops.rotation(np.array([0, 1, 5, 300]), width, 100.0)

    def run(x):
        turns = backend.to_device(
            turn, dtype="complex128" if str(x.dtype) == "float64" else "complex64"
        )
        return ops.rope(x, turns), lambda dy: {"x": ops.rope_backward(dy, turns)}

    check(backend, run, x=normal(4, 3, width))


def test_swiglu(backend: Backend) -> None:
    def run(gate, up):
        y, cache = ops.swiglu(gate, up)

        def backward(dy):
            dgate, dup = backend.xp.empty_like(gate), backend.xp.empty_like(up)
            ops.swiglu_backward(dy, cache, dgate, dup)
            return {"gate": dgate, "up": dup}

        return y, backward

    check(backend, run, gate=3 * normal(4, 5), up=normal(4, 5, seed=1))


def test_log_softmax_gather(backend: Backend) -> None:
    row, token = (
        np.array([0, 0, 1, 3, 3, 3, 2]),
        np.array([1, 4, 0, 2, 2, 3, 2]),
    )  # (3, 2) twice: two groups on one prompt
    pair, pair_of_child = np.unique(row * 5 + token, return_inverse=True)
    device = backend.to_device

    def run(logits):
        dtype = logits.dtype
        logp, cache = ops.log_softmax_gather(logits, device(row), device(token))

        def backward(dy):
            dy = backend.to_host(dy)
            row_sum, pair_sum = np.bincount(row, dy), np.bincount(pair_of_child, dy)
            dlogits = ops.log_softmax_gather_backward(
                device(row_sum, dtype=dtype),
                device(pair // 5),
                device(pair % 5),
                device(pair_sum, dtype=dtype),
                cache,
            )
            np.testing.assert_allclose(
                backend.to_host(dlogits).sum(-1), 0, atol=1e-6
            )  # a shift of all logits changes nothing
            return {"logits": dlogits}

        return logp, backward

    check(backend, run, logits=3 * normal(4, 5))


@pytest.mark.parametrize("one_block", [0, plan.ONE_BLOCK])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
def test_attention(
    heads: int, kv_heads: int, one_block: int, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "ONE_BLOCK", one_block)
    blocks = {
        dtype: plan.plan_tree(FORKED, backend, np.dtype(dtype)).blocks
        for dtype in ("float64", "float32")
    }
    assert (len(blocks["float64"]) > 2) == (one_block == 0)
    assert any(block.valid is not None for block in blocks["float64"])  # some rows are padded

    def run(q, k, v):
        y = backend.xp.full_like(q, np.nan)
        mine = blocks[str(q.dtype)]
        caches = [block_attention(q, k, v, block, y) for block in mine]

        def backward(dy):
            gradients = {
                name: backend.xp.ones_like(x) for name, x in (("q", q), ("k", k), ("v", v))
            }
            for block, cache in zip(mine, caches, strict=True):
                block_attention_backward(dy, cache, block, *gradients.values())
            return {name: gradient - 1 for name, gradient in gradients.items()}

        return y, backward

    n = int(np.isin(np.arange(FORKED.n_nodes), FORKED.parent).sum())
    check(
        backend,
        run,
        q=2 * normal(n, heads, 4),
        k=2 * normal(n, kv_heads, 4, seed=1),
        v=normal(n, kv_heads, 4, seed=2),
    )


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
def test_attention_of_one_sequence(heads: int, kv_heads: int, backend: Backend) -> None:
    def run(q, k, v):
        y, cache = ops.attention(q, k, v)
        return y, lambda dy: dict(zip("qkv", ops.attention_backward(dy, cache), strict=True))

    q, k, v = (
        normal(7, heads_of, 4, seed=seed)
        for seed, heads_of in enumerate((heads, kv_heads, kv_heads))
    )
    check(backend, run, q=2 * q, k=2 * k, v=v)


# -- what the operations mean ----------------------------------------------------------------------


def attend_alone(q: np.ndarray, k: np.ndarray, v: np.ndarray, path: np.ndarray) -> np.ndarray:
    """One node's attention, by the definition.   q (H,E), k and v (N,K,E), path (T,) -> (H,E)"""
    each = len(q) // k.shape[1]
    out = np.empty_like(q)
    for head in range(len(q)):
        weight = np.exp(k[path, head // each] @ q[head] / np.sqrt(q.shape[1]))
        out[head] = (weight / weight.sum()) @ v[path, head // each]
    return out


@pytest.mark.parametrize("one_block", [0, plan.ONE_BLOCK])
def test_blocks_give_what_every_path_gives_alone(
    one_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients of a tree against `ops.attention` on each path, added up per node."""
    monkeypatch.setattr(plan, "ONE_BLOCK", one_block)
    blocks = plan.plan_tree(FORKED, NUMPY, np.dtype(np.float64)).blocks
    inner = np.isin(np.arange(FORKED.n_nodes), FORKED.parent)
    number = np.cumsum(inner) - 1
    q, dy = normal(inner.sum(), 4, 2), normal(inner.sum(), 4, 2, seed=4)
    k, v = normal(inner.sum(), 2, 2), normal(inner.sum(), 2, 2, seed=1)
    y, found = np.full_like(q, np.nan), [np.zeros_like(x) for x in (q, k, v)]
    caches = [block_attention(q, k, v, block, y) for block in blocks]
    for block, cache in zip(blocks, caches, strict=True):
        block_attention_backward(dy, cache, block, *found)
    expected, seen = [np.zeros_like(x) for x in found], np.zeros(len(q), dtype=bool)
    for row in FORKED.rows:
        path = number[row[(row >= 0) & inner[row]]]
        one, cache = ops.attention(q[path], k[path], v[path])
        np.testing.assert_allclose(y[path], one, rtol=1e-12)
        last = attend_alone(q[path[-1]], k, v, path)
        np.testing.assert_allclose(one[-1], last, rtol=1e-12)
        new = ~seen[path]  # the loss of a node that rows share counts once
        seen[path] = True
        gradients = ops.attention_backward(dy[path] * new[:, None, None], cache)
        for total, gradient in zip(expected, gradients, strict=True):
            total[path] += gradient
    for gradient, total in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, total, rtol=0, atol=1e-13)


@pytest.mark.parametrize("group", [[0, 1, 1, 1], [1, 0, 1], [0], [1, 1]])
def test_cached_attention_reads_the_prompt_and_the_row_s_own_tokens(group: list[int]) -> None:
    """Against the definition: rows of two prompts, of 3 and 2 tokens (padded), each with 2 tokens
    of its own.
    """
    prompts, n, keys = [np.array([1, 2, 3]), np.array([4, 5])], len(group), 3 + 2
    shape = TransformerConfig(vocab_size=6, dim=8, n_layers=1, n_heads=4, n_kv_heads=2)
    cache = KVCache(shape, prompts, 2, NUMPY, np.dtype(np.float64))
    k, v = normal(keys, 2, 2), normal(keys, 2, 2, seed=1)
    cache.attend_in_prompts(0, normal(keys, 4, 2, seed=2), k, v, np.empty((keys, 4, 2)))
    seen = [[list(range(3)), list(range(3, 5))][g] for g in group]  # nodes that each row sees
    cache._regroup(np.array(group))
    for t in range(2):
        cache.fork(np.arange(n), np.zeros(n, dtype=int))
        q, new_k, new_v = (
            normal(n, 4, 2, seed=3 + t),
            normal(n, 2, 2, seed=5 + t),
            normal(n, 2, 2, seed=7 + t),
        )
        y = np.full_like(q, np.nan)
        cache.attend(0, q, new_k, new_v, y)
        k, v = np.concatenate([k, new_k]), np.concatenate([v, new_v])
        seen = [[*nodes, len(k) - n + row] for row, nodes in enumerate(seen)]
        for row in range(n):
            np.testing.assert_allclose(
                y[row], attend_alone(q[row], k, v, np.array(seen[row])), rtol=1e-12
            )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [30.0, -30.0, 60.0])
def test_cached_attention_of_large_scores_does_not_overflow(size: float, dtype: str) -> None:
    """Scores of ±1,300 and 5,000, whose exponentials overflow or are all 0; padding stays without
    weight.
    """
    prompts, keys = [np.array([1, 2, 3]), np.array([4, 5])], 3 + 2
    shape = TransformerConfig(vocab_size=6, dim=4, n_layers=1, n_heads=2, n_kv_heads=1)
    cache = KVCache(shape, prompts, 1, NUMPY, np.dtype(dtype))
    k, v = (normal(keys, 1, 2, seed=seed).astype(dtype) for seed in (0, 1))
    k = size + k / 30
    cache.attend_in_prompts(
        0, normal(keys, 2, 2, seed=2).astype(dtype), k, v, np.empty((keys, 2, 2), dtype)
    )
    cache.fork(np.arange(2), np.zeros(2, dtype=int))
    q, new_k, new_v = (
        np.full((2, 2, 2), abs(size), dtype),
        np.full((2, 1, 2), size, dtype),
        normal(2, 1, 2, seed=7).astype(dtype),
    )
    y = np.full_like(q, np.nan)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        cache.attend(0, q, new_k, new_v, y)
    k, v = (
        np.concatenate([k, new_k]).astype(np.float64),
        np.concatenate([v, new_v]).astype(np.float64),
    )
    for row, nodes in enumerate(([0, 1, 2, 5], [3, 4, 6])):
        scores = (
            (k[nodes, 0] - size) @ q[row, 0].astype(np.float64) / np.sqrt(2)
        )  # less one number: the same softmax
        weight = np.exp(scores)
        expected = np.tile(weight @ v[nodes, 0] / weight.sum(), (2, 1))
        np.testing.assert_allclose(
            y[row], expected, rtol=0, atol=2e-3 if dtype == "float32" else 1e-10
        )


def test_rope_keeps_lengths_and_sees_distances_only() -> None:
    q, k = normal(1, 1, 8), normal(1, 1, 8, seed=1)

    def at(x: np.ndarray, position: int) -> np.ndarray:
        return ops.rope(x.copy(), ops.rotation(np.array([position]), 8, 10_000.0))[0, 0]

    np.testing.assert_array_equal(at(q, 0), q[0, 0])
    np.testing.assert_allclose(np.linalg.norm(at(q, 977)), np.linalg.norm(q), rtol=1e-14)
    products = [at(q, 7 + shift) @ at(k, 3 + shift) for shift in (0, 1, 50, 1000)]
    np.testing.assert_allclose(products, products[0], rtol=1e-11)
    assert abs(at(q, 8) @ at(k, 3) - products[0]) > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_swiglu_of_large_numbers_does_not_overflow(dtype: str) -> None:
    gate, up, dy = (
        np.array([[1000.0, -1000.0, 0.0]], dtype),
        np.array([[2.0, 3.0, 4.0]], dtype),
        np.ones((1, 3), dtype),
    )
    dgate, dup = np.empty_like(gate), np.empty_like(up)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y, cache = ops.swiglu(gate, up)
        ops.swiglu_backward(dy, cache, dgate, dup)
    np.testing.assert_array_equal(y, [[2000, 0, 0]])
    np.testing.assert_array_equal(dgate, [[2, 0, 2]])
    np.testing.assert_array_equal(dup, [[1000, 0, 0]])


def test_softmax_of_large_numbers_does_not_overflow() -> None:
    (block,) = plan.plan_tree(
        PrefixTree.from_groups([[0, 0]], [[[0]]]), NUMPY, np.dtype(np.float64)
    ).blocks
    q, k, v, y = (
        np.full((2, 1, 2), 1e3),
        np.array([[[1.0, 1.0]], [[-1.0, 1.0]]]),
        normal(2, 1, 2),
        np.empty((2, 1, 2)),
    )
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        logp, _ = ops.log_softmax_gather(
            np.array([[1e4, 0.0, -1e4]]), np.zeros(3, int), np.arange(3)
        )
        block_attention(q, k, v, block, y)
    np.testing.assert_allclose(logp, [0, -1e4, -2e4])
    np.testing.assert_array_equal(y, v[[0, 0]])
