"""What `benchmarks.gpu` measures, and what the device allows: workloads, a clock, floors, the
table.   Needs no PyTorch.

The *floor* of a step is, phase by phase, the larger of its floating-point operations over the rate
of a large matrix product and its bytes over the bandwidth of a large copy, both measured in the
same run.  It counts only traffic that cannot be avoided: weights once a pass, gradients written
once, and what AdamW reads and writes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minigrpo.engine.backend import Backend
from minigrpo.engine.parameters import TransformerConfig
from minigrpo.runs.bench import WORKLOADS, Bench, Workload

ADAMW = 7  # reads θ, g, m, v; writes θ, m, v
PEERS = {
    "torch": "PyTorch eager",
    "torch compiled": "compiled",
    "torch graphs": "compiled with CUDA graphs",
}


@dataclass(frozen=True)
class Case:
    """A workload whose prompts share their first tokens."""

    workload: Workload
    preamble: int = 0


SMOLLM2 = TransformerConfig(49_152, 576, 30, 9, 3, 1536, max_seq_len=128, rope_base=100_000.0)
CASES = {
    "W1": Case(WORKLOADS["W1"]),
    "W3": Case(WORKLOADS["W3"]),
    "SmolLM2": Case(
        Workload(SMOLLM2, n_prompts=8, prompt_length=74, group_size=8, new_tokens=5), preamble=66
    ),  # as in `sums`
}


def toy(case: Case) -> Case:
    """The same structure, a thousandth of the work."""
    c, w = case.workload.config, case.workload
    shared = c.n_heads // c.n_kv_heads
    sizes = {"dim": 12 * shared, "n_layers": 2, "n_heads": 2 * shared, "n_kv_heads": 2}
    config = replace(c, vocab_size=32, ffn_dim=32, head_dim=None, **sizes)
    small = replace(
        w,
        config=config,
        n_prompts=2,
        prompt_length=min(w.prompt_length, 12),
        group_size=4,
        new_tokens=3,
    )
    return Case(small, min(case.preamble, 8))


def our_side(case: Case, backend: Backend) -> Bench:
    """Policy, prompts and optimiser of this package."""
    bench = Bench(case.workload, backend)
    for prompt in bench.prompts:
        prompt[: case.preamble] = bench.prompts[0][: case.preamble]
    return bench


# -- measuring the device


def seconds_of(do: Callable[[], Any], backend: Backend | None) -> float:
    """Time of some work: between two CUDA events (CuPy's, or with None PyTorch's); with numpy on
    the clock.
    """
    if backend is not None and backend.name == "cupy":
        cuda = backend.xp.cuda
        backend.xp.cuda.runtime.deviceSynchronize()
        first, last = cuda.Event(), cuda.Event()
        first.record()
        do()
        last.record()
        last.synchronize()
        return cuda.get_elapsed_time(first, last) / 1e3
    if backend is None and (torch := sys.modules["torch"]).cuda.is_available():
        torch.cuda.synchronize()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        do()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def device_rates(backend: Backend, size: int, repeats: int = 20) -> dict[str, float]:
    """The best rates of a size × size product, per operation, and of a copy, per byte."""
    xp, rng = backend.xp, np.random.default_rng(0)
    a, b = (
        backend.to_device(rng.standard_normal((size, size)), dtype=np.float32) for _ in range(2)
    )
    out = xp.empty((size, size), dtype=np.float32)
    source = xp.zeros((4 * size, size), dtype=np.float32)
    target = xp.zeros_like(source)

    def copy() -> None:
        target[...] = source

    product = min(seconds_of(lambda: xp.matmul(a, b, out=out), backend) for _ in range(repeats + 1))
    copied = min(seconds_of(copy, backend) for _ in range(repeats + 1))
    return {"operations": 2.0 * size**3 / product, "bytes": 2.0 * source.nbytes / copied}


def floor(
    config: TransformerConfig, new_tokens: int, flops: dict[str, float], rates: dict[str, float]
) -> dict[str, float]:
    """Seconds that each phase cannot go below.   flops: of the phases sample, forward, backward"""
    weights = 4.0 * sum(np.prod(shape) for shape in config.shapes().values())  # bytes
    passes = {
        "sample": new_tokens,
        "forward": 1,
        "backward": 2,
        "optimizer": ADAMW,
    }  # backward reads weights, writes gradients
    return {
        p: max(flops.get(p, 0.0) / rates["operations"], n * weights / rates["bytes"])
        for p, n in passes.items()
    }


def table(results: dict[str, Any]) -> Iterator[str]:
    """Markdown lines."""
    rates = results["rates"]
    device = results["machine"]["device"]
    products, copies = rates["operations"] / 1e12, rates["bytes"] / 1e9
    yield f"{device}: products {products:.3g} TFLOP/s, copies {copies:.4g} GB/s"
    yield ""
    titles = [
        "workload",
        "distinct / all tokens",
        "minigrpo, ms",
        *(f"{title}, ms (×)" for title in PEERS.values()),
        "step / floor",
    ]
    yield f"| {' | '.join([*titles, 'memory, GB: minigrpo, PyTorch'])} |"
    yield "|---" * (len(titles) + 1) + "|"
    for name, row in results["workloads"].items():
        ms = {side: 1e3 * value for side, value in row["seconds"].items()}
        peers = [
            f"{ms[s]:.2f} (**{row['ratio'][s]:.2f}**)" if s in ms else "not measured" for s in PEERS
        ]
        memory = [
            f"{m / 1e9:.2f}" if (m := row["memory"].get(side)) is not None else "–"
            for side in ("minigrpo", "torch")
        ]
        share, far = f"{row['distinct share']:.2f}", f"{row['step / floor']:.1f}"
        cells = [name, share, f"{ms['minigrpo']:.2f}", *peers, far, ", ".join(memory)]
        yield f"| {' | '.join(cells)} |"
