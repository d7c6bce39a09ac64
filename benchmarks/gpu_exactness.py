"""python -m benchmarks.gpu_exactness: how far the GPU's numbers are from NumPy's, and from what
they should be, as a short table.

The same checks as in the tests, with their numbers; exit code 1 if one is beyond its limit.  Models
are small, so it takes seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigrpo.engine.backend import describe_backend, get_backend
from minigrpo.engine.parameters import TransformerConfig
from minigrpo.runs.checkpoint import checkpoints, load_checkpoint
from minigrpo.runs.policy import make_policy, make_state
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train, train_step
from minigrpo.sampler import sample
from minigrpo.transformer import Transformer
from minigrpo.tree import Rollouts
from minigrpo.verify.equivalence import check_equivalence

CONFIG = TransformerConfig(7, 32, 3, 4, 2, 48, max_seq_len=64, tie_embeddings=False)
TEN = TrainSettings(
    task="treewalk",
    steps=10,
    dim=16,
    n_heads=2,
    n_kv_heads=1,
    prompts_per_step=2,
    dtype="float64",
    learning_rate=3e-3,
    objective_options={"beta": 0.04},
    checkpoint_every=5,
)
PROMPTS = [[1, 2, 3], [1, 2], [4]]
DRAWS = 20_000


class Row(NamedTuple):
    """A check: what is compared, how far apart it is, how far it may be."""

    what: str
    dtype: str
    value: float
    limit: float


def exactness(backend: str = "cupy") -> Iterator[Row]:
    """All checks of a backend against NumPy."""
    for dtype, close in (("float64", 1e-11), ("float32", 1e-4)):
        host, device = (opinionated(name, dtype) for name in ("numpy", backend))
        tree = roll(host).tree
        dlogp = np.random.default_rng(1).standard_normal(tree.n_nodes)
        logp = [model.forward(tree, 0.7) for model in (host, device)]
        yield Row(
            "log p on a branching tree against NumPy's, largest difference",
            dtype,
            float(np.abs(logp[1] - logp[0]).max()),
            close,
        )
        expected, found = (
            model.backend.to_host(model.backward(dlogp).flat).copy() for model in (host, device)
        )
        yield Row(
            "its gradient against NumPy's, ‖difference‖ / ‖gradient‖",
            dtype,
            relative(found, expected),
            close,
        )
        device.gradients.flat[:] = 0
        device.forward(tree, 0.7)
        again = device.backend.to_host(device.backward(dlogp).flat)
        yield Row(
            "the same once more, numbers with other bits", dtype, float((again != found).sum()), 0
        )
        yield Row(
            "frequencies of drawn tokens against softmax, largest z", dtype, largest_z(device), 4.5
        )
        rollouts, rng = roll(device), np.random.default_rng(2)
        theorem = check_equivalence(
            device, rollouts, rng.standard_normal(len(rollouts.tree.paths)), rng
        )
        yield Row(
            "Theorem 1, tree against padded rows, worst relative difference",
            dtype,
            theorem.worst,
            close,
        )
    ours, theirs = roll(opinionated("numpy", "float64")), roll(opinionated(backend, "float64"))
    yield Row(
        "sampled with the same seed, completions other than NumPy's",
        "float64",
        that_differ(ours, theirs),
        0,
    )
    (first, losses), (device_first, device_losses) = (
        ten_steps(replace(TEN, backend=name)) for name in ("numpy", backend)
    )
    yield Row(
        "first rollouts of a run, completions other than NumPy's",
        "float64",
        that_differ(first, device_first),
        0,
    )
    apart = float(np.abs(np.subtract(device_losses, losses)).max())
    yield Row(
        f"losses of ten steps (up to {np.abs(losses).max():.2g}), largest difference",
        "float64",
        apart,
        1e-10,
    )
    for one, other in (("numpy", backend), (backend, "numpy")):
        yield Row(
            f"begun on {one}, resumed on {other}: largest difference of a parameter",
            "float64",
            moved(one, other),
            1e-8,
        )


def opinionated(backend: str, dtype: str) -> Transformer:
    """A random model whose distributions are far from uniform."""
    model, rng = Transformer(CONFIG, backend=backend, dtype=dtype), np.random.default_rng(0)
    for view in model.parameters.values():
        view[...] = model.backend.to_device(
            0.35 * rng.standard_normal(view.shape) + (view.ndim == 1), dtype=model.dtype
        )
    return model


def roll(model: Transformer) -> Rollouts:
    """Rollouts that branch."""
    return sample(model, PROMPTS, 24, np.random.default_rng(3), max_new_tokens=9, eos=0)


def largest_z(model: Transformer) -> float:
    """Of the frequencies of first tokens, in standard errors."""
    drawn = sample(
        model, [[1, 2, 3]], DRAWS, np.random.default_rng(5), max_new_tokens=1
    ).completions[0]
    logits = model.logits(np.array([1, 2, 3]))[-1].astype(np.float64)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    frequency = np.bincount(np.concatenate(drawn), minlength=len(p)) / DRAWS
    return float((np.abs(frequency - p) / np.sqrt(p * (1 - p) / DRAWS)).max())


def ten_steps(settings: TrainSettings) -> tuple[Rollouts, list[float]]:
    """Rollouts of the first step, and all losses."""
    model, task = make_policy(settings)
    state = make_state(settings, model)
    state.reference = model.parameters.flat.copy()
    steps = [train_step(state, task, settings) for _ in range(settings.steps)]
    return steps[0][1], [metrics["loss"] for metrics, _, _ in steps]


def moved(one: str, other: str) -> float:
    """A run that changes its backend half-way, against one that stays: the largest difference of a
    parameter at the end.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole, _ = train(replace(TEN, backend=one), Path(folder) / "run", progress=False)
        checkpoints(Path(folder) / "run")[-1].unlink()
        train(replace(TEN, backend=other), Path(folder) / "run", resume=True, progress=False)
        arrays, _ = load_checkpoint(checkpoints(Path(folder) / "run")[-1])
        return float(
            np.abs(arrays["parameters"] - whole.backend.to_host(whole.parameters.flat)).max()
        )


def that_differ(a: Rollouts, b: Rollouts) -> float:
    """How many completions are not the same."""
    pairs = zip(chain(*a.completions), chain(*b.completions), strict=True)
    return float(sum(not np.array_equal(x, y) for x, y in pairs))


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """‖a - b‖ / ‖b‖."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def main(argv: list[str] | None = None) -> int:
    """Print a Markdown table; with --out write it as JSON too.   -> exit code"""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_exactness", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument(
        "--backend",
        choices=("cupy", "numpy"),
        default="cupy",
        help="numpy: a rehearsal, all differences are 0",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the numbers here too (JSON)"
    )
    a = parser.parse_args(argv)
    try:
        get_backend(a.backend)
    except ValueError as error:
        print(f"python -m benchmarks.gpu_exactness: {error}", file=sys.stderr)
        return 2
    where, rows = describe_backend(a.backend), []
    print(f"{where}\n\n| check | dtype | found | limit | |\n|---|---|---|---|---|")
    for row in exactness(a.backend):
        rows.append(row)
        verdict = "ok" if row.value <= row.limit else "**too far**"
        print(
            f"| {row.what} | {row.dtype} | {row.value:.2g} | {row.limit:g} | {verdict} |",
            flush=True,
        )
    if a.out:
        a.out.write_text(
            json.dumps({"where": where, "checks": [row._asdict() for row in rows]}, indent=1) + "\n"
        )
    return int(any(not row.value <= row.limit for row in rows))


if __name__ == "__main__":
    sys.exit(main())
