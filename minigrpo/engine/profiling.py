"""Where the time of a step goes, and how far that is from what the machine's products allow.

The *floor* of a piece of work is its floating-point operations divided by the measured peak rate of
matrix products: the time it would take if only the products cost time and each ran at full speed.
Operations are counted for the nodes that are computed (distinct prefixes that something is
predicted from), so the floor of a tree is lower than that of its completions one by one.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Self

import numpy as np

from minigrpo.engine.backend import Backend
from minigrpo.engine.parameters import TransformerConfig
from minigrpo.tree import PrefixTree

PHASES = ("sample", "score", "forward", "backward", "optimizer")
PASSES = {"sample": 1, "forward": 1, "backward": 2}  # products of a phase, in forward passes
Parts = list[tuple[PrefixTree, np.ndarray]]  # what `plan.split_tree` makes of a tree
_running: ContextVar[Stopwatch | None] = ContextVar("running", default=None)  # lanes inherit it


class Stopwatch:
    """Seconds and floating-point operations per phase.   `with watch: grpo_step(…)`, many times

    What is decorated with `timed` adds its seconds; what passes over a tree, its operations.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.flops: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._passes: list[tuple[TransformerConfig, Parts, dict[str, int]]] = []
        self._started: tuple[float, Token]

    def __enter__(self) -> Self:
        self._started = time.perf_counter(), _running.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        started, before = self._started
        self.add("in all", time.perf_counter() - started)
        _running.reset(before)
        for config, parts, n_passes in self._passes:  # counted now, when no phase is timed
            flops = _flops_of_parts(config, parts)
            for phase, n in n_passes.items():
                self.flops[phase] += n * PASSES[phase] * flops
        self._passes.clear()

    def add(self, phase: str, seconds: float) -> None:
        """Note seconds of a phase; those of lanes that run side by side add up."""
        with self._lock:
            self.seconds[phase] += seconds

    def phases(self) -> dict[str, float]:
        """Seconds of each phase on the clock.

        "update", the time of all lanes together, is shared out by the lanes' own "forward" and
        "backward".  "score" is whatever no other phase claims, above all the rewards.
        """
        s = self.seconds
        lanes = s["forward"] + s["backward"]
        share = s["update"] / lanes if lanes else 0.0
        score = max(s["in all"] - s["sample"] - s["update"] - s["optimizer"], 0.0)
        found = {name: s[name] * share for name in ("forward", "backward")}
        return {name: s[name] for name in PHASES} | {"score": score} | found

    def table(self, peak: float) -> str:
        """The phases for a terminal, with the rate of each next to the peak (operations/s)."""
        seconds = self.phases()
        total = max(sum(seconds.values()), 1e-12)
        flops = self.flops | {"in all": sum(self.flops.values())}
        head = f"{'phase':10}{'seconds':>10}{'share':>8}{'GFLOP/s':>10}{'of peak':>9}"
        lines = [f"{head}   peak {peak / 1e9:.0f} GFLOP/s"]
        for phase, spent in (seconds | {"in all": total}).items():
            rate = flops.get(phase, 0) / max(spent, 1e-12)
            rates = f"{rate / 1e9:10.1f}{rate / peak:9.0%}" if rate and spent else ""
            lines.append(f"{phase:10}{spent:10.2f}{spent / total:8.0%}{rates}")
        return "\n".join(lines)


@contextmanager
def timed(phase: str) -> Iterator[None]:
    """Decorate a function: a Stopwatch that runs around a call adds its seconds to the phase."""
    watch = _running.get()
    started = time.perf_counter() if watch else 0.0
    yield
    if watch is not None:
        watch.add(phase, time.perf_counter() - started)


def count_passes(config: TransformerConfig, parts: Parts, **n_passes: int) -> None:
    """Tell a running Stopwatch how many passes over a tree a phase made, as in forward=1."""
    if (watch := _running.get()) is not None:
        watch._passes.append((config, parts, n_passes))


def forward_flops(config: TransformerConfig, tree: PrefixTree) -> float:
    """Floating-point operations of the matrix products of one forward pass over a tree.

    2 · (matrix elements) per computed node and per node whose logits are needed, and 4·H·E per key
    that a query sees in a layer.  A backward pass has twice as many.
    """
    return _flops_of_parts(config, [(tree, np.arange(tree.n_nodes))])


def _flops_of_parts(config: TransformerConfig, parts: Parts) -> float:
    """Those of the tree that was split into parts: what several parts compute counts once."""
    n_nodes = 1 + max((nodes.max() for _, nodes in parts), default=-1)
    n_keys, predicts = np.zeros(n_nodes), np.zeros(n_nodes, dtype=bool)
    for part, nodes in parts:
        has_parent = part.parent >= 0
        inner = part.parent[has_parent]
        n_keys[nodes[inner]] = part.depth[inner] + 1
        predicts[nodes[part.parent[part.scored & has_parent]]] = True
    shapes = config.shapes().items()
    matrices = [shape for name, shape in shapes if len(shape) == 2 and ".layers." in name]
    linear = 2.0 * sum(map(math.prod, matrices)) * (n_keys > 0).sum()
    attention = 4.0 * config.n_heads * config.head_dim * config.n_layers * n_keys.sum()
    logits = 2.0 * config.vocab_size * config.dim * predicts.sum()
    return float(linear + attention + logits)


def peak_rate(
    backend: Backend, dtype: str = "float32", size: int = 1024, repeats: int = 10
) -> float:
    """The best rate of `repeats` products of two size × size matrices, in operations per second."""
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
