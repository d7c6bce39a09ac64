"""The border between host and device, with a stand-in for CuPy; and how a backend is chosen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import strict_cupy
from helpers import tiny_model
from strict_cupy import DeviceArray, StrictCupy

from minigrpo import Rollouts, Transformer, get_backend, ops, sample
from minigrpo.engine import plan
from minigrpo.engine.optim import SGD, AdamW, clip_gradient, global_norm
from minigrpo.engine.plan import split_tree
from minigrpo.runs.checkpoint import checkpoints
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train
from minigrpo.verify.equivalence import check_equivalence

PROMPTS = [[1, 2, 3], [1, 2], [4]]


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> StrictCupy:
    """The stand-in, installed."""
    return strict_cupy.install(monkeypatch)


def pair(dtype: str) -> tuple[Transformer, Transformer]:
    """The same model on both backends."""
    host = tiny_model(dtype=dtype)
    device = Transformer(host.config, backend="cupy", dtype=dtype)
    device.parameters.flat[:] = device.backend.to_device(host.parameters.flat)
    return host, device


def roll(model: Transformer, temperature: float = 1.0) -> Rollouts:
    return sample(
        model,
        PROMPTS,
        6,
        np.random.default_rng(3),
        max_new_tokens=9,
        eos=0,
        temperature=temperature,
    )


# -- the same numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("one_block", [0, plan.ONE_BLOCK])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_forward_and_backward(
    dtype: str, one_block: int, cupy: StrictCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "ONE_BLOCK", one_block)
    host, device = pair(dtype)
    tree = roll(host).tree
    dlogp = np.random.default_rng(1).standard_normal(tree.n_nodes)
    expected, got = host.forward(tree, 0.7), device.forward(tree, 0.7)
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(
        cupy.asnumpy(device.backward(dlogp).flat), host.backward(dlogp).flat
    )
    for part, nodes in split_tree(tree, 8):
        device.forward(part)
        device.backward(dlogp[nodes])


def test_attention_of_one_sequence(cupy: StrictCupy) -> None:
    q, dy, k, v = np.random.default_rng(0).standard_normal((4, 5, 2, 4))
    k, v = k[:, :1], v[:, :1]
    host, device = (
        [y, *ops.attention_backward(carry(dy), cache)]
        for carry in (np.asarray, cupy.asarray)
        for y, cache in [ops.attention(carry(q), carry(k), carry(v))]
    )
    for a, b in zip(host, device, strict=True):
        np.testing.assert_array_equal(cupy.asnumpy(b), a)


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_sampling(temperature: float, cupy: StrictCupy) -> None:
    host, device = pair("float32")
    expected, got = roll(host, temperature), roll(device, temperature)
    np.testing.assert_array_equal(got.tree.token, expected.tree.token)
    np.testing.assert_array_equal(got.tree.paths, expected.tree.paths)
    np.testing.assert_array_equal(got.logp, expected.logp)
    np.testing.assert_array_equal(got.entropy, expected.entropy)
    np.testing.assert_array_equal(got.truncated, expected.truncated)


def test_logits_and_initial_weights(cupy: StrictCupy) -> None:
    host, device = pair("float64")
    np.testing.assert_array_equal(
        device.logits(np.array([1, 2, 3])), host.logits(np.array([1, 2, 3]))
    )
    fresh = [Transformer(host.config, seed=4, backend=name) for name in ("numpy", "cupy")]
    np.testing.assert_array_equal(cupy.asnumpy(fresh[1].parameters.flat), fresh[0].parameters.flat)


@pytest.mark.parametrize("make", [lambda p: AdamW(p, weight_decay=0.1), SGD])
def test_optimisers(make, cupy: StrictCupy) -> None:
    host, device = pair("float64")
    gradient = np.random.default_rng(0).standard_normal(host.gradients.flat.shape)
    for model in (host, device):
        optimizer = make(model.parameters)
        for _ in range(3):
            model.gradients.flat[:] = model.backend.to_device(gradient)
            assert clip_gradient(model.gradients, 2.0) == pytest.approx(np.linalg.norm(gradient))
            assert global_norm(model.gradients) == pytest.approx(2.0)
            optimizer.step(model.parameters, model.gradients, 0.01)
        assert all(type(a) is type(model.parameters.flat) for a in optimizer.arrays().values())
    np.testing.assert_allclose(
        cupy.asnumpy(device.parameters.flat), host.parameters.flat, rtol=1e-13
    )


def test_equivalence(cupy: StrictCupy) -> None:
    _, device = pair("float64")
    rollouts = roll(device)
    rewards = np.random.default_rng(2).standard_normal(len(rollouts.tree.paths))
    assert check_equivalence(device, rollouts, rewards, np.random.default_rng(4)).worst < 1e-12


def test_training_with_a_reference_policy_and_resuming(cupy: StrictCupy, tmp_path) -> None:
    def run(backend: str, steps: int, out: str, resume: bool = False) -> np.ndarray:
        small = {"dim": 8, "n_layers": 1, "n_heads": 2, "group_size": 4, "inner_epochs": 2}
        small |= {"seed": 1, "checkpoint_every": 1, "objective": "grpo_original"}
        settings = TrainSettings(task="treewalk", steps=steps, backend=backend, **small)
        model, _ = train(settings, tmp_path / out, resume=resume, progress=False)
        return model.backend.to_host(model.parameters.flat)

    expected = run("numpy", 3, "host")
    np.testing.assert_allclose(run("cupy", 3, "device"), expected, rtol=1e-5, atol=1e-6)
    run("cupy", 3, "resumed")
    checkpoints(tmp_path / "resumed")[-1].unlink()  # as if killed after step 2
    np.testing.assert_array_equal(run("cupy", 3, "resumed", resume=True), run("cupy", 3, "again"))


# -- the stand-in is as strict as it says ----------------------------------------------------------

REFUSED = {
    "becoming a host array": (TypeError, lambda cp, d, h: np.asarray(d)),
    "becoming one in a host assignment": (
        TypeError,
        lambda cp, d, h: h.__setitem__(slice(None), d),
    ),
    "indexing a host array": ((TypeError, IndexError), lambda cp, d, h: h[cp.asarray([0])]),
    "device + host": (TypeError, lambda cp, d, h: d + h),
    "host + device": (TypeError, lambda cp, d, h: h + d),
    "device @ host": (TypeError, lambda cp, d, h: d @ h),
    "device += host": (TypeError, lambda cp, d, h: d.__iadd__(h)),
    "host += device": (TypeError, lambda cp, d, h: h.__iadd__(d)),
    "device < host": (TypeError, lambda cp, d, h: d < h),
    "device * list": (TypeError, lambda cp, d, h: d * [1.0, 2.0, 3.0]),
    "a function of a host array": (TypeError, lambda cp, d, h: cp.exp(h)),
    "a function of both": (TypeError, lambda cp, d, h: cp.maximum(d, h)),
    "a list of host arrays": (TypeError, lambda cp, d, h: cp.concatenate([d, h])),
    "out on the host": (TypeError, lambda cp, d, h: cp.exp(d, out=h)),
    "a method of a host array": (TypeError, lambda cp, d, h: d.dot(h)),
    "a NumPy function of a device array": (TypeError, lambda cp, d, h: np.exp(d)),
    "another NumPy function of a device array": (
        TypeError,
        lambda cp, d, h: np.concatenate([d, d]),
    ),
    "assigning a host array": (TypeError, lambda cp, d, h: d.__setitem__(slice(None), h)),
    "a host array as index": (TypeError, lambda cp, d, h: d[np.array([0, 1])]),
    "a host mask as index": (TypeError, lambda cp, d, h: d[h > 0]),
    "a list as index": (TypeError, lambda cp, d, h: d[[0, 1]]),
    "a device number as bound of a slice": (TypeError, lambda cp, d, h: d[: cp.asarray(2)]),
    "an index of floats": (IndexError, lambda cp, d, h: d[d]),
    "an index out of bounds": (
        IndexError,
        lambda cp, d, h: d[cp.asarray([3])],
    ),  # CuPy wraps around in silence
    "assigning to a place twice": (
        ValueError,
        lambda cp, d, h: d.__setitem__(cp.asarray([1, 1]), d[:2]),
    ),
    "a truth value": (TypeError, lambda cp, d, h: bool(d[0] > 0)),
    "an int": (TypeError, lambda cp, d, h: int(d[0])),
    "a range": (TypeError, lambda cp, d, h: range(cp.asarray(3))),
    "iteration": (TypeError, lambda cp, d, h: list(d)),
    "in": (TypeError, lambda cp, d, h: 1.0 in d),
    "float of several": (TypeError, lambda cp, d, h: float(d)),
    "asnumpy of a host array": (TypeError, lambda cp, d, h: cp.asnumpy(h)),
    "item": (AttributeError, lambda cp, d, h: d[0].item()),
    "a function that CuPy lacks": (AttributeError, lambda cp, d, h: cp.nanmean_of_nothing),
    "a function that NumPy has and CuPy lacks": (AttributeError, lambda cp, d, h: cp.busday_count),
    "a method that CuPy lacks": (AttributeError, lambda cp, d, h: d.setflags),
    "a parameter that CuPy lacks": (TypeError, lambda cp, d, h: d.sum(where=d > 0)),
    "another": (TypeError, lambda cp, d, h: d.max(initial=0.0)),
    "a ufunc's parameter that CuPy lacks": (TypeError, lambda cp, d, h: cp.exp(d, where=d > 0)),
    "atomic additions": (AttributeError, lambda cp, d, h: cp.add.at(d, cp.asarray([0, 0]), 1.0)),
    "strings": (ValueError, lambda cp, d, h: cp.asarray(np.array(["a"]))),
    "objects": (ValueError, lambda cp, d, h: cp.asarray(np.array([None]))),
    "another width on a strided last axis": (
        ValueError,
        lambda cp, d, h: cp.zeros((4, 4))[:, ::2].view("complex128"),
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_stand_in_refuses(what: str, cupy: StrictCupy) -> None:
    error, do = REFUSED[what]
    host = np.array([1.0, 2.0, 3.0])
    with pytest.raises(error):
        do(cupy, cupy.asarray(host), host)


def test_the_stand_in_computes(cupy: StrictCupy) -> None:
    host = np.arange(12.0).reshape(3, 4)
    x = cupy.asarray(host)
    host[0, 0] = 77  # the device has its own copy
    assert not isinstance(x, np.ndarray)
    assert (len(x), x.shape, x.ndim, x.size, x.dtype) == (3, (3, 4), 2, 12, np.float64)
    total = x.sum()
    assert isinstance(total, DeviceArray)  # 0-d, still on the device
    assert float(total) == 66.0
    assert math.sqrt(float(x[1] @ x[1])) == math.sqrt(16 + 25 + 36 + 49)
    part = x[1]
    part += 1  # a view
    x.view("complex128")[0] *= 1j
    expected = [[-1, 0, -3, 2], [5, 6, 7, 8], [8, 9, 10, 11]]
    np.testing.assert_array_equal(cupy.asnumpy(x), expected)
    np.testing.assert_array_equal(
        cupy.asnumpy(1 - x[cupy.asarray([2, 0]), cupy.asarray([0, 1])]), [-7, 1]
    )
    assert np.isnan(cupy.asnumpy(cupy.empty(3))).all()
    assert isinstance(x[0, 0], DeviceArray)
    assert isinstance(cupy.maximum(x, np.float64(3)), DeviceArray)
    assert cupy.float32 is np.float32


# -- choosing --------------------------------------------------------------------------------------


def test_a_backend_is_found(cupy: StrictCupy) -> None:
    assert get_backend("numpy").xp is np
    for name in ("auto", "cupy"):
        assert get_backend(name).name == "cupy"
        assert get_backend(name).xp is cupy


def test_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match="unknown backend 'jax': choose auto, numpy or cupy"):
        get_backend("jax")


def test_on_the_host_the_border_costs_nothing() -> None:
    backend, x = get_backend("numpy"), np.arange(3.0)
    assert backend.to_device(x) is x
    assert backend.to_host(x) is x
    assert backend.to_device(x, dtype="float32").dtype == np.float32
