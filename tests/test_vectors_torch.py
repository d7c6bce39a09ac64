"""The conformance vectors against an independent program in PyTorch, in float64 and float32."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "vectors"), str(ROOT / "tests/oracles")]

from check import check  # noqa: E402
from make_vectors_oracle import FUNCTIONS  # noqa: E402


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_independent(kind, dtype):
    results, _ = check(FUNCTIONS[kind], kind, arrays="torch", dtype=dtype)
    print(kind, dtype, len(results), max(r[2] for r in results))
    assert [(r[0]["name"], r[2:]) for r in results if not r[1]] == []
