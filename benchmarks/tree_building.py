"""The tree and its weights 1/|λ|: how the time grows with tokens; against the definition and, if
given, the authors' code.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from minigrpo import get_backend, lambda_weights

SIZES = [
    (6, 1024),
    (36, 1024),
    (36, 4096),
    (128, 4096),
    (256, 4096),
    (1024, 4096),
]  # k completions of n tokens
BY_DEFINITION = 36 * 4096  # tokens up to which the definition is tried: it takes k² n comparisons


def group(k: int, n: int, seed: int = 0) -> list[np.ndarray]:
    """k completions of n tokens that agree for a random part of their length with one of the
    earlier ones, as rollouts do.
    """
    rng = np.random.default_rng(seed)
    rows = rng.integers(32_000, size=(k, n))
    for i in range(1, k):
        shared = int(rng.integers(n // 2))
        rows[i, :shared] = rows[rng.integers(i), :shared]
    return list(rows)


def by_definition(sequences: list[np.ndarray]) -> list[np.ndarray]:
    """1/|λ(i,t)| by comparing every completion with every other."""
    rows = np.array(sequences)
    return [1.0 / np.logical_and.accumulate(rows == row, axis=1).sum(0) for row in rows]


def measure(authors: str | None = None, repeats: int = 25) -> list[dict[str, Any]]:
    """Medians in seconds for every size.   authors: a file with their class InfPRMTree"""
    get_backend(
        "numpy"
    )  # as in any run; from then on freed memory is used again, for the others too
    theirs = load_authors(authors) if authors else None
    found = []
    for k, n in SIZES:
        sequences = group(k, n)
        row: dict[str, Any] = {
            "k": k,
            "n": n,
            "tokens": k * n,
            "minigrpo": _median(lambda s=sequences: lambda_weights(s), repeats),
        }
        if k * n <= BY_DEFINITION:
            expected = by_definition(sequences)
            assert all(
                np.array_equal(a, b)
                for a, b in zip(lambda_weights(sequences), expected, strict=True)
            )
            row["by definition"] = _median(lambda s=sequences: by_definition(s), repeats)
        if theirs and k <= 36:
            for ours, scales in zip(lambda_weights(sequences), theirs(sequences), strict=True):
                np.testing.assert_allclose(ours, scales.numpy(), rtol=1e-6)
            row["authors"] = _median(lambda s=sequences: theirs(s), repeats)
        found.append(row)
    return found


def slope(found: list[dict[str, Any]]) -> float:
    """Of log time against log tokens, least squares over all sizes."""
    return float(
        np.polyfit(
            np.log([row["tokens"] for row in found]), np.log([row["minigrpo"] for row in found]), 1
        )[0]
    )


def load_authors(file: str) -> Any:
    """Their function from sequences to weights.

    (Their module imports peft for a type alone: a stand-in will do.)
    """
    import torch

    sys.modules.setdefault("peft", SimpleNamespace(PeftModel=object))
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda sequences: module.InfPRMTree(
        [torch.from_numpy(sequence) for sequence in sequences]
    ).loss_scales()


def _median(do: Any, repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:]))
