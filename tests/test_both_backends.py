"""A run is the same on both backends: first rollouts, losses up to rounding, a checkpoint of each.

The second backend is the strict stand-in for CuPy, whose products round otherwise than NumPy's;
with `pytest --backend cupy` a GPU.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import strict_cupy

from minigrpo import Rollouts, Transformer, TransformerConfig
from minigrpo.command.cli import main
from minigrpo.engine import optim
from minigrpo.engine.backend import Backend
from minigrpo.engine.optim import AdamW
from minigrpo.runs.checkpoint import checkpoints, load_checkpoint
from minigrpo.runs.folder import read_metrics
from minigrpo.runs.policy import load_run, make_policy, make_state
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train_step
from minigrpo.sampler import sample

BACKENDS = ("numpy", "cupy")
SMALL = "--task treewalk --dim 16 --n-layers 2 --n-heads 2 --n-kv-heads 1 "
SMALL += "--group-size 8 --prompts-per-step 2 --dtype float64"


@pytest.fixture
def cupy(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """CuPy, if the command line asked for it; else the stand-in."""
    return (
        backend.xp if backend.name == "cupy" else strict_cupy.install(monkeypatch, other_order=True)
    )


def ten_steps(backend: str, **changes) -> tuple[Rollouts, list[float], np.ndarray]:
    """-> rollouts of the first step, losses, parameters at the end"""
    shape = {"dim": 16, "n_heads": 2, "n_kv_heads": 1, "dtype": "float64", "backend": backend}
    learning = {"steps": 10, "learning_rate": 3e-3, "objective_options": {"beta": 0.04}}
    settings = TrainSettings(task="treewalk", prompts_per_step=2, **shape, **learning, **changes)
    model, task = make_policy(settings)
    state = make_state(settings, model)
    state.reference = model.parameters.flat.copy()
    steps = [train_step(state, task, settings) for _ in range(settings.steps)]
    return (
        steps[0][1],
        [metrics["loss"] for metrics, _, _ in steps],
        model.backend.to_host(model.parameters.flat),
    )


@pytest.mark.parametrize(
    "changes", [{}, {"inner_epochs": 2, "objective": "grpo_original", "temperature": 0.7}], ids=str
)
def test_the_same_rollouts_and_ten_losses(changes: dict, cupy: ModuleType) -> None:
    (rollouts, losses, end), (ours, on_device, device_end) = (
        ten_steps(name, **changes) for name in BACKENDS
    )
    np.testing.assert_array_equal(ours.tree.token, rollouts.tree.token)
    np.testing.assert_array_equal(ours.tree.paths, rollouts.tree.paths)
    np.testing.assert_allclose(ours.logp, rollouts.logp, rtol=0, atol=1e-12)
    np.testing.assert_allclose(on_device, losses, rtol=0, atol=1e-10)
    assert np.abs(losses).max() > 1e-3  # there is something to agree on
    np.testing.assert_allclose(device_end, end, rtol=0, atol=1e-8)
    if isinstance(cupy, strict_cupy.StrictCupy):
        assert (device_end != end).any()  # the stand-in did round otherwise


@pytest.mark.parametrize("first", BACKENDS)
def test_a_run_that_is_begun_on_one_backend_and_resumed_on_the_other(
    first: str, cupy: ModuleType, tmp_path: Path
) -> None:
    second = BACKENDS[1 - BACKENDS.index(first)]
    flags = [
        "train",
        *SMALL.split(),
        "--objective-option",
        "beta=0.04",
        "--steps",
        "4",
        "--checkpoint-every",
        "2",
    ]
    for name in ("whole", "moved"):
        assert main([*flags, "--backend", first, "--out", str(tmp_path / name)]) == 0
    checkpoints(tmp_path / "moved")[-1].unlink()  # as if killed after step 2
    assert main(["train", "--resume", str(tmp_path / "moved"), "--backend", second]) == 0
    (whole, state), (moved, moved_state) = (
        load_checkpoint(checkpoints(tmp_path / n)[-1]) for n in ("whole", "moved")
    )
    for each in (state, moved_state):
        each["records"].pop("metrics.jsonl")  # of which the times are a part
    assert state == moved_state and set(whole) == set(moved) == {
        "parameters",
        "m",
        "v",
        "reference",
    }
    for name in whole:
        np.testing.assert_allclose(moved[name], whole[name], rtol=0, atol=1e-10)
    losses = [[m["loss"] for m in read_metrics(tmp_path / n)] for n in ("whole", "moved")]
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-10)
    model, _, _ = load_run(tmp_path / "moved", backend=second)
    np.testing.assert_array_equal(model.backend.to_host(model.parameters.flat), moved["parameters"])


# -- a pretrained language model -------------------------------------------------------------------

TASK = Path(__file__).parent / "text_task.py"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of a few thousand weights, as a Hugging Face folder."""
    for name in ("safetensors", "tokenizers", "gguf"):
        pytest.importorskip(name, reason="language models need the extra lm")
    from tiny_language_model import make

    from minigrpo.models import save_hugging_face

    return save_hugging_face(
        *make("gqa_untied", max_seq_len=400), tmp_path_factory.mktemp("model") / "m"
    )


def test_a_language_model_loads_one_tensor_at_a_time_and_samples(
    model_folder: Path, cupy: ModuleType, monkeypatch
) -> None:
    from minigrpo.models import load_model

    carried, to_device = [], Backend.to_device
    monkeypatch.setattr(
        Backend,
        "to_device",
        lambda self, a, dtype=None: carried.append(a.size) or to_device(self, a, dtype),
    )
    device, tokenizer = load_model(model_folder, backend="cupy")
    assert (
        max(carried)
        == max(view.size for view in device.parameters.values())
        < device.parameters.flat.size / 2
    )
    host, _ = load_model(model_folder)
    np.testing.assert_array_equal(
        device.backend.to_host(device.parameters.flat), host.parameters.flat
    )
    (host, _), (device, _) = (
        load_model(model_folder, backend=name, dtype="float64") for name in BACKENDS
    )
    limits = {"max_new_tokens": 16, "eos": (tokenizer.eos, tokenizer.stops_at("+"))}
    prompts = [tokenizer.encode(text) for text in ("ab + ab", "abc", "ab + a")]
    for temperature in (0.0, 0.8, 1.0):
        ours, theirs = (
            sample(model, prompts, 40, np.random.default_rng(2), temperature=temperature, **limits)
            for model in (host, device)
        )
        np.testing.assert_array_equal(theirs.tree.paths, ours.tree.paths)
        np.testing.assert_array_equal(theirs.tree.token, ours.tree.token)
        np.testing.assert_array_equal(theirs.truncated, ours.truncated)
        np.testing.assert_allclose(theirs.logp, ours.logp, atol=1e-12)
        np.testing.assert_allclose(theirs.entropy, ours.entropy, atol=1e-12)
    assert 0 < ours.truncated.sum() < 120


@pytest.mark.parametrize("first", BACKENDS)
def test_a_language_model_trains_and_moves(
    first: str, model_folder: Path, cupy: ModuleType, tmp_path: Path
) -> None:
    second, out = BACKENDS[1 - BACKENDS.index(first)], str(tmp_path / "run")
    flags = [
        "train",
        "--model",
        str(model_folder),
        "--task",
        f"{TASK}:Spaces",
        "--steps",
        "2",
        "--checkpoint-every",
        "1",
    ]
    flags += [
        "--objective-option",
        "beta=0.04",
        "--learning-rate",
        "1e-3",
        "--eval-every",
        "2",
        "--eval-prompts",
        "4",
    ]
    flags += ["--dtype", "float64", "--group-size", "4", "--prompts-per-step", "2"]
    assert main([*flags, "--out", out, "--backend", first]) == 0
    arrays, _ = load_checkpoint(checkpoints(tmp_path / "run")[-1])
    expected = arrays["parameters"]
    assert np.abs(expected - arrays["reference"]).max() > 1e-4
    checkpoints(tmp_path / "run")[-1].unlink()
    assert main(["train", "--resume", out, "--backend", second]) == 0
    arrays, _ = load_checkpoint(checkpoints(tmp_path / "run")[-1])
    np.testing.assert_allclose(arrays["parameters"], expected, rtol=0, atol=1e-9)
    for command in (
        ["evaluate", out, "--prompts", "2"],
        ["sample", out, "--group-size", "2"],
        ["export", out, "--out", out + "x"],
    ):
        assert main(command) == 0


# -- what is asked of the device -------------------------------------------------------------------


def asked(do) -> tuple[int, int]:
    """-> how often arrays went to the device, and to the host (the device is waited for)"""
    strict_cupy.COUNTS.clear()
    do()
    return strict_cupy.COUNTS["to device"], strict_cupy.COUNTS["to host"]


def test_no_layer_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward pass waits once, for its result; a backward pass never; the indices of a tree are
    carried over once.
    """
    strict_cupy.install(monkeypatch)
    for n_layers in (1, 3):
        model = Transformer(TransformerConfig(7, 16, n_layers, 2, max_seq_len=32), backend="cupy")
        tree = sample(model, [[1, 2], [3]], 8, np.random.default_rng(0), max_new_tokens=6).tree
        assert asked(lambda m=model, t=tree: m.forward(t))[0] > 0
        assert asked(lambda m=model, t=tree: m.forward(t)) == (0, 1)
        assert asked(lambda m=model, n=tree.n_nodes: m.backward(np.ones(n))) == (2, 0)


def test_sampling_waits_three_times_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the tokens, their log-probabilities and entropies, however many layers there are; before,
    once for the weights.
    """
    strict_cupy.install(monkeypatch)
    for n_layers in (1, 3):
        model = Transformer(TransformerConfig(7, 16, n_layers, 2, max_seq_len=32), backend="cupy")
        draw = lambda n, m=model: sample(  # noqa: E731
            m, [[1, 2], [3]], 8, np.random.default_rng(0), max_new_tokens=n
        )
        assert [asked(lambda n=n, d=draw: d(n))[1] for n in (1, 5, 9)] == [4, 16, 28]


# -- memory ----------------------------------------------------------------------------------------


def test_an_optimiser_takes_little_memory_besides_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in's arrays are NumPy's, whose memory Python can trace."""
    strict_cupy.install(monkeypatch)
    config = TransformerConfig(4096, 256, 1, 1, ffn_dim=8, max_seq_len=8)
    peaks, ends = [], []
    for block in (1 << 14, 1 << 24):
        monkeypatch.setattr(optim, "DEVICE_BLOCK", block)
        model = Transformer(config, backend="cupy")
        model.gradients.flat[:] = model.parameters.flat
        optimizer = AdamW(model.parameters)
        tracemalloc.start()
        optimizer.step(model.parameters, model.gradients, 0.1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        ends.append(model.backend.to_host(model.parameters.flat))
    size = ends[0].nbytes
    assert peaks[0] < 0.1 * size and peaks[1] > size
    np.testing.assert_array_equal(*ends)
