"""Optimisers against their formulas written out; clipping and schedules at their ends and in
between.
"""

import math
import tracemalloc

import numpy as np
import pytest

from minigrpo.engine import optim
from minigrpo.engine.optim import BLOCK, SGD, AdamW, clip_gradient, global_norm, learning_rate_at
from minigrpo.engine.parameters import Parameters

SHAPES = {"a.weight": (5, 3), "norm.weight": (4,)}


def vector(values, dtype="float64"):
    """Parameters of 19 elements that hold these values."""
    parameters = Parameters(SHAPES, np, np.dtype(dtype))
    parameters.flat[:] = values
    return parameters


def random_gradients(steps=12, seed=0):
    """Gradients of very different sizes, some exactly 0."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-6, 3, size=19)
    return [rng.standard_normal(19) * scale * (rng.random(19) < 0.9) for _ in range(steps)]


def adamw_by_hand(theta, gradients, rates, b1, b2, eps, decay):
    """Loshchilov and Hutter's algorithm 2, one element at a time."""
    theta, m, v = list(theta), [0.0] * len(theta), [0.0] * len(theta)
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        for i in range(len(theta)):
            m[i] = b1 * m[i] + (1 - b1) * g[i]
            v[i] = b2 * v[i] + (1 - b2) * g[i] ** 2
            m_hat, v_hat = m[i] / (1 - b1**t), v[i] / (1 - b2**t)
            theta[i] -= rate * (m_hat / (math.sqrt(v_hat) + eps) + decay * theta[i])
    return np.array(theta)


@pytest.mark.parametrize("block", [1 << 16, 19, 7, 1])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_its_formula(monkeypatch, decay, block):
    monkeypatch.setattr(optim, "BLOCK", block)
    theta = np.random.default_rng(1).standard_normal(19)
    gradients, rates = random_gradients(), np.linspace(0.3, 0.01, 12)
    for betas, eps in (((0.9, 0.999), 1e-8), ((0.5, 0.9), 1e-3)):
        parameters = vector(theta)
        optimizer = AdamW(parameters, betas=betas, eps=eps, weight_decay=decay)
        for g, rate in zip(gradients, rates, strict=True):
            optimizer.step(parameters, vector(g), rate)
        expected = adamw_by_hand(theta, gradients, rates, *betas, eps, decay)
        np.testing.assert_allclose(parameters.flat, expected, rtol=1e-12, atol=1e-14)
        assert optimizer.step_count == 12


def test_adamw_in_blocks_gives_the_same_bits(monkeypatch):
    results = []
    for block in (1 << 16, 4):
        monkeypatch.setattr(optim, "BLOCK", block)
        parameters = vector(1.0, "float32")
        optimizer = AdamW(parameters, weight_decay=0.01)
        for g in random_gradients():
            optimizer.step(parameters, vector(g, "float32"), 0.1)
        results.append((parameters.flat.tobytes(), optimizer.m.tobytes(), optimizer.v.tobytes()))
        assert parameters.flat.dtype == optimizer.m.dtype == np.float32
    assert results[0] == results[1]


def test_the_first_adamw_step_has_the_size_of_the_rate_whatever_the_gradient():
    parameters = vector(0.0)
    AdamW(parameters, eps=0.0).step(
        parameters, vector(np.where(np.arange(19) % 2, 1e-30, -1e30)), 0.25
    )
    np.testing.assert_allclose(
        parameters.flat, np.where(np.arange(19) % 2, -0.25, 0.25), rtol=1e-12
    )


def test_sgd():
    parameters, g = vector(np.arange(19.0)), random_gradients()[0]
    optimizer = SGD(parameters)
    for rate in (0.5, 0.25):
        optimizer.step(parameters, vector(g), rate)
    np.testing.assert_allclose(parameters.flat, np.arange(19.0) - 0.75 * g, rtol=1e-13)
    assert optimizer.arrays() == {} and optimizer.step_count == 2


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_copied_arrays_and_step_count_go_on_in_the_same_bits(make):
    gradients = random_gradients()
    whole = vector(1.0)
    optimizer = make(whole)
    for g in gradients:
        optimizer.step(whole, vector(g), 0.1)
    parameters = vector(1.0)
    first = make(parameters)
    for g in gradients[:5]:
        first.step(parameters, vector(g), 0.1)
    second = make(parameters)
    for name, array in first.arrays().items():
        second.arrays()[name][:] = array
    second.step_count = first.step_count
    for g in gradients[5:]:
        second.step(parameters, vector(g), 0.1)
    np.testing.assert_array_equal(parameters.flat, whole.flat)
    assert second.step_count == optimizer.step_count == 12


def test_a_restored_optimizer_differs_from_a_new_one():
    """Otherwise the test above would show nothing."""
    parameters = vector(1.0)
    used, new = AdamW(parameters), AdamW(parameters)
    for g in random_gradients(4):
        used.step(parameters, vector(g), 0.1)
    a, b = vector(0.0), vector(0.0)
    used.step(a, vector(1.0), 0.1)
    new.step(b, vector(1.0), 0.1)
    assert np.abs(a.flat - b.flat).max() > 1e-3


def test_clipping_scales_the_whole_gradient():
    g = random_gradients()[0]
    norm = math.sqrt(sum(x * x for x in g))
    assert global_norm(vector(g)) == pytest.approx(norm, rel=1e-14)
    for limit in (norm / 7, norm * 0.999):
        gradients = vector(g)
        assert clip_gradient(gradients, limit) == pytest.approx(norm, rel=1e-14)  # the norm before
        assert global_norm(gradients) == pytest.approx(limit, rel=1e-14)
        np.testing.assert_allclose(
            gradients.flat * norm, g * limit, rtol=1e-12
        )  # the same direction
    for limit in (norm * 1.001, 1e300, None):
        gradients = vector(g)
        assert clip_gradient(gradients, limit) == pytest.approx(norm, rel=1e-14)
        np.testing.assert_array_equal(gradients.flat, g)
    zero = vector(0.0)
    assert clip_gradient(zero, 1.0) == 0
    assert not zero.flat.any()


def test_the_norm_is_exact_and_shows_what_is_not_finite():
    """Over more than one block; a float32 sum without an end would lose what is small."""
    x = np.random.default_rng(0).standard_normal(3 * BLOCK + 7) ** 3
    exact = math.sqrt(math.fsum((x * x).tolist()))
    gradients = Parameters({"w": x.shape}, np, np.dtype("float64"))
    gradients.flat[:] = x
    assert global_norm(gradients) == pytest.approx(exact, rel=1e-14)
    gradients = Parameters({"w": x.shape}, np, np.dtype("float32"))
    for value, finite in (
        (0.0, True),
        (np.nan, False),
        (np.inf, False),
        (-np.inf, False),
        (1e30, False),
    ):
        gradients.flat[:] = x
        gradients.flat[2 * BLOCK] = value  # the square of the last one is no float32
        assert np.isfinite(global_norm(gradients)) == finite
    gradients.flat[:] = x
    assert global_norm(gradients) == pytest.approx(exact, rel=2e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_schedules(schedule, warmup):
    steps, peak = 50, 3e-3
    rates = [learning_rate_at(step, steps, peak, warmup, schedule) for step in range(steps)]
    assert rates[warmup] == peak == max(rates)
    np.testing.assert_allclose(
        rates[:warmup], [peak * (i + 1) / (warmup + 1) for i in range(warmup)], rtol=1e-14
    )  # above 0
    after = np.array(rates[warmup:])
    if schedule == "constant":
        assert (after == peak).all()
    else:
        assert (np.diff(after) < 0).all()
        assert 0 < after[-1] < 0.01 * peak
        assert learning_rate_at(steps, steps, peak, warmup, schedule) == pytest.approx(0, abs=1e-18)
        middle = (steps + warmup) / 2
        if middle == int(middle):
            assert learning_rate_at(int(middle), steps, peak, warmup, schedule) == pytest.approx(
                peak / 2, rel=1e-12
            )


def test_the_defaults_of_adamw_are_those_of_its_paper_without_decay():
    optimizer = AdamW(vector(0.0))
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ((0.9, 0.999), 1e-8, 0.0)


def test_a_schedule_that_is_all_warm_up_ends_at_the_peak():
    assert [learning_rate_at(step, 3, 1.0, 3, "cosine") for step in range(4)] == [
        0.25,
        0.5,
        0.75,
        1.0,
    ]


def test_a_schedule_that_is_shorter_than_its_warm_up_stays_below_the_peak():
    assert [learning_rate_at(step, 3, 1.0, 9, "cosine") for step in range(3)] == pytest.approx(
        [0.1, 0.2, 0.3]
    )


def test_unknown_schedule():
    with pytest.raises(ValueError, match="unknown schedule 'linear': choose constant or cosine"):
        learning_rate_at(0, 1, 1.0, schedule="linear")


def test_sgd_takes_no_memory_for_the_size_of_the_model():
    parameters, gradients = (Parameters({"a": (4_000_000,)}, np, "float32") for _ in range(2))
    gradients.flat[:] = 1
    optimizer = SGD(parameters)
    tracemalloc.start()
    optimizer.step(parameters, gradients, 0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (parameters.flat == -0.5).all() and peak < parameters.flat.nbytes / 8
