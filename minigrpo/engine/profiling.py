"""Where the time of a step goes, and how far that is from what the machine's matrix products allow.

The *floor* of a piece of work is its floating-point operations divided by the measured peak rate of matrix products: what it would
take if nothing but the products cost time and each ran at full speed.  Operations are counted for the nodes that are computed
(distinct prefixes that something is predicted from), so the floor of a tree is lower than that of its completions one by one.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import numpy as np

from minigrpo.engine.backend import Backend
from minigrpo.engine.parameters import TransformerConfig
from minigrpo.tree import PrefixTree

PHASES = ("sample", "score", "forward", "backward", "optimizer")


class Stopwatch:
    """Seconds spent in named phases.   `with watch("sample"): …`; lanes that run side by side add up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.flops: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        with self._lock:
            self.seconds[phase] += time.perf_counter() - started

    def add_flops(self, passes: Mapping[str, float], flops: float) -> None:
        """Note that each phase made so many passes of this many floating-point operations."""
        for phase, n in passes.items():
            self.flops[phase] += n * flops

    def phases(self) -> dict[str, float]:
        """Seconds of each phase on the clock: "update", which is the time of all lanes together, is shared out by their own."""
        lanes = self.seconds["forward"] + self.seconds["backward"]
        share = self.seconds["update"] / lanes if lanes else 0.0
        return {
            phase: self.seconds[phase] * (share if phase in ("forward", "backward") else 1)
            for phase in PHASES
        }

    def table(self, peak: float) -> str:
        """The phases for a terminal, with the rate of each next to the peak (floating-point operations a second)."""
        seconds = self.phases()
        total = max(sum(seconds.values()), 1e-12)
        lines = [
            f"{'phase':10}{'seconds':>10}{'share':>8}{'GFLOP/s':>10}{'of peak':>9}   peak {peak / 1e9:.0f} GFLOP/s"
        ]
        for phase, spent in (seconds | {"in all": total}).items():
            flops = self.flops.get(phase, sum(self.flops.values()) if phase == "in all" else 0.0)
            rate = (
                f"{flops / spent / 1e9:10.1f}{flops / spent / peak:9.0%}" if flops and spent else ""
            )
            lines.append(f"{phase:10}{spent:10.2f}{spent / total:8.0%}{rate}")
        return "\n".join(lines)


def forward_flops(config: TransformerConfig, tree: PrefixTree) -> float:
    """Floating-point operations of the matrix products of one forward pass over a tree; a backward pass has twice as many.

    2 · (matrix elements) for a computed node and its logits, 4·H·E for a key that a query sees in a layer.
    """
    inner = np.zeros(tree.n_nodes, dtype=bool)
    inner[tree.parent[tree.parent >= 0]] = True
    predicts = np.zeros(tree.n_nodes, dtype=bool)
    predicts[tree.parent[tree.scored & (tree.parent >= 0)]] = True
    keys = float((tree.depth[inner] + 1).sum())
    layers = (
        2.0 * _in_layers(config) * inner.sum()
        + 4.0 * config.n_heads * config.head_dim * config.n_layers * keys
    )
    return layers + 2.0 * config.vocab_size * config.dim * predicts.sum()


@cache
def _in_layers(config: TransformerConfig) -> int:
    """The elements of all matrices in the layers."""
    return sum(
        math.prod(shape)
        for name, shape in config.shapes().items()
        if len(shape) == 2 and ".layers." in name
    )


def peak_rate(
    backend: Backend, dtype: str = "float32", size: int = 1024, repeats: int = 10
) -> float:
    """The best rate of a product of two size × size matrices in `repeats` tries, in floating-point operations a second."""
    rng = np.random.default_rng(0)
    a, b = (backend.to_device(rng.standard_normal((size, size)), dtype=dtype) for _ in range(2))
    out = backend.xp.empty((size, size), dtype=a.dtype)
    best = np.inf
    for _ in range(repeats + 1):  # the first warms up
        started = time.perf_counter()
        backend.xp.matmul(a, b, out=out)
        backend.to_host(out[:1, :1])  # waits for a GPU
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best
