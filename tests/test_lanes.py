"""Parts of a batch side by side: the same numbers as one after the other, and the same bits on any
number of cores.
"""

import threading
from dataclasses import dataclass

import numpy as np
import pytest
from helpers import relative, tiny_model

from minigrpo import Objective, Transformer, sample
from minigrpo import transformer as transformer_module
from minigrpo.engine import draw, lanes, plan
from minigrpo.engine.backend import Backend
from minigrpo.engine.lanes import one_blas_thread, run_lanes
from minigrpo.engine.parts import log_probabilities
from minigrpo.engine.plan import split_tree
from minigrpo.trainer import compute_gradients

PROMPTS = [[1], [2, 3, 1], [2, 3], [4, 4, 4, 4]]


class Library:
    """A stand-in for a BLAS that threadpoolctl knows: so many threads, a record of changes, and who
    is heeded as of version 3.8.
    """

    owner = None

    def __init__(self, n_threads, of_each_thread=False):
        self.default, self.of_each_thread = n_threads, of_each_thread
        self.here, self.changes = threading.local(), []

    @property
    def num_threads(self):
        return getattr(self.here, "n", self.default) if self.of_each_thread else self.default

    def set_num_threads(self, n):
        if Library.owner not in (None, threading.current_thread()):
            return
        if n != self.num_threads:
            self.changes.append(n)
        if self.of_each_thread:
            self.here.n = n
        else:
            Library.owner, self.default = threading.current_thread(), n

    @staticmethod
    def clear_controlling_thread(force=False):
        if force:
            Library.owner = None


class Blas:
    """What threadpoolctl finds."""

    def __init__(self, *libraries):
        self.lib_controllers = libraries
        self.changes = libraries[0].changes if libraries else []


@dataclass
class Trainee:
    """What has a model, as `TrainState`."""

    model: Transformer


def limited(n_threads):
    """What has changed after one limit, which is lifted again."""
    return [1, n_threads] if n_threads > 1 else []


@pytest.fixture(params=[1, 2, 4])
def n_threads(request, monkeypatch):
    """Lanes in so many threads."""
    blas = Blas(Library(request.param))
    monkeypatch.setattr(lanes, "_blas", lambda: blas)
    return request.param


@pytest.fixture
def eager(monkeypatch):
    """Divide the smallest work."""
    monkeypatch.setattr(plan, "LANE_NODES", 8)
    monkeypatch.setattr(draw, "LANE_WORK", 32)
    monkeypatch.setattr(draw, "LANE_ROWS", 1)


def test_results_come_in_order_from_as_many_threads_as_blas_has(n_threads):
    used, barrier = set(), threading.Barrier(n_threads, timeout=120)

    def job(i):
        if n_threads > 1:
            barrier.wait()  # passes only if so many jobs run at the same time
        used.add(threading.get_ident())
        return i

    jobs = [lambda i=i: job(i) for i in range(4)]
    assert run_lanes(jobs) == [0, 1, 2, 3]
    assert len(used) <= n_threads
    assert lanes._blas().changes == limited(
        n_threads
    )  # one BLAS thread in each, and then as many as before


def test_one_job_leaves_blas_alone(monkeypatch):
    monkeypatch.setattr(lanes, "_blas", lambda: None)
    assert run_lanes([lambda: 7]) == [7]


def test_an_exception_is_raised_here_and_lifts_the_limit(n_threads):
    def fail():
        raise FloatingPointError("too far")

    with pytest.raises(FloatingPointError, match="too far"):
        run_lanes([lambda: 0, fail])
    with pytest.raises(FloatingPointError, match="too far"), one_blas_thread():
        fail()
    assert lanes._blas().changes == limited(n_threads) * 2


def test_lanes_inside_a_limit_have_the_threads_from_before_it(monkeypatch):
    blas, barrier = Blas(Library(2)), threading.Barrier(2, timeout=120)
    monkeypatch.setattr(lanes, "_blas", lambda: blas)
    with one_blas_thread(), one_blas_thread():
        run_lanes([barrier.wait] * 2)  # passes only if both run at the same time
        assert blas.changes == [1]
    assert blas.changes == [1, 2]


def test_every_thread_of_a_lane_limits_a_library_that_counts_by_thread(monkeypatch):
    """As OpenBLAS built with OpenMP does."""
    library = Library(2, of_each_thread=True)
    monkeypatch.setattr(lanes, "_blas", lambda: Blas(library))
    barrier = threading.Barrier(2, timeout=120)

    def job():
        barrier.wait()
        return library.num_threads

    assert run_lanes([job, job]) == [1, 1]
    assert library.num_threads == 2


def test_the_limit_holds_until_the_last_thread_has_left(monkeypatch):
    """Two trainings in one process: the one that ends first does not take the limit from the other,
    whoever set it.
    """
    blas = Blas(Library(2))
    monkeypatch.setattr(lanes, "_blas", lambda: blas)
    entered, leave = threading.Event(), threading.Event()

    def other():
        with one_blas_thread():
            entered.set()
            assert leave.wait(120)

    thread = threading.Thread(target=other)
    with one_blas_thread():
        thread.start()
        assert entered.wait(120)
    assert blas.changes == [1]
    leave.set()
    thread.join()
    assert blas.changes == [1, 2]
    assert Library.owner is None  # whoever limits BLAS next is heeded
    with one_blas_thread():  # also from a thread that another one shuts out
        Library.owner = thread
    assert blas.changes == [1, 2, 1, 2]


@pytest.mark.parametrize(
    "call",
    [
        lambda f, model: f(model),
        lambda f, model: f(model=model),
        lambda f, model: f(Trainee(model)),
    ],
)
def test_a_limited_function_asks_its_model(call, monkeypatch):
    blas = Blas(Library(2))
    monkeypatch.setattr(lanes, "_blas", lambda: blas)
    threads = lanes.limited(lambda model: blas.lib_controllers[0].num_threads)
    small, large = tiny_model(), tiny_model()
    large.backend = Backend("cupy", np)
    assert [call(threads, small), call(threads, large)] == [1, 2]
    with pytest.raises(TypeError):
        threads()


def test_a_library_without_a_number_of_threads(monkeypatch):
    """As a BLIS is that was built without threads."""
    blas = Blas(Library(None), Library(3))
    monkeypatch.setattr(lanes, "_blas", lambda: blas)
    with one_blas_thread():
        pass
    assert [library.num_threads for library in blas.lib_controllers] == [None, 3]


def test_what_numpy_shall_ignore_is_ignored_in_lanes_too(n_threads):
    with np.errstate(over="ignore"):
        assert all(
            np.isinf(x) for x in run_lanes([lambda: np.exp(np.float64(1000))] * 2)
        )  # a warning would fail the test


def gradients(model, rollouts, rewards, lanes_of_model):
    objective = Objective.preset("lambda_grpo", beta=0.1)
    parts = split_tree(rollouts.tree, 4096, lanes_of_model)
    ref = log_probabilities(model, parts, 1.0, rollouts.tree.n_nodes) - 0.1
    found = objective.coefficients(rollouts, rewards)
    loss, logp = compute_gradients(model, parts, objective, found, 1.0, rollouts.logp, ref)
    return len(parts), loss, logp, model.gradients.flat.copy()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_gradients_of_lanes_are_those_of_the_whole(kind, eager, n_threads):
    model = tiny_model(model_type=kind)
    rollouts = sample(model, PROMPTS, 8, np.random.default_rng(1), max_new_tokens=9, eos=0)
    rewards = np.random.default_rng(2).standard_normal(len(rollouts.tree.paths))
    one, *whole = gradients(model, rollouts, rewards, 1)
    many, *divided = gradients(model, rollouts, rewards, 4)
    again = gradients(model, rollouts, rewards, 4)[1:]
    assert (one, many) == (1, 4)
    for got, expected, repeated in zip(divided, whole, again, strict=True):
        assert relative(got, expected) < 1e-12
        np.testing.assert_array_equal(got, repeated)
    assert len(model.replicas(4)) == 4
    assert all(replica.parameters is model.parameters for replica in model.replicas(4))


def test_the_number_of_threads_changes_no_bit(eager, monkeypatch):
    found = []
    for n in (1, 2, 4):
        blas = Blas(Library(n))
        monkeypatch.setattr(lanes, "_blas", lambda blas=blas: blas)
        model = tiny_model(dtype="float32")
        rollouts = sample(model, PROMPTS, 8, np.random.default_rng(1), max_new_tokens=9, eos=0)
        rewards = np.random.default_rng(2).standard_normal(len(rollouts.tree.paths))
        found.append((rollouts.tree.token, rollouts.logp, *gradients(model, rollouts, rewards, 4)))
        assert blas.changes == limited(n) * 3  # sampling, the reference, the gradient
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.3])
@pytest.mark.parametrize("eos", [None, 0])
def test_sampling_in_lanes_draws_the_same(eager, n_threads, temperature, eos, monkeypatch):
    def drawn():
        limits = {"max_new_tokens": 9, "eos": eos, "temperature": temperature}
        return sample(tiny_model(), PROMPTS, 8, np.random.default_rng(1), **limits)

    divided = drawn()
    assert lanes._blas().changes == limited(n_threads)
    monkeypatch.setattr(draw, "LANE_WORK", 10**9)
    whole = drawn()
    np.testing.assert_array_equal(divided.tree.paths, whole.tree.paths)
    np.testing.assert_array_equal(divided.tree.token, whole.tree.token)
    np.testing.assert_allclose(divided.logp, whole.logp, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(divided.truncated, whole.truncated)


def test_large_models_and_gpus_are_not_divided(monkeypatch):
    model = tiny_model()
    assert model.lanes == lanes.LANES
    model.backend = Backend("cupy", np)
    assert model.lanes == 1
    model.backend = Backend("numpy", np)
    monkeypatch.setattr(transformer_module, "MAX_LANE_PARAMETERS", model.parameters.flat.size - 1)
    assert model.lanes == 1
    rollouts = sample(model, PROMPTS, 8, np.random.default_rng(1), max_new_tokens=9)
    assert len(split_tree(rollouts.tree, 4096, model.lanes)) == 1
