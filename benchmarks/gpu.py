"""python -m benchmarks.gpu: a full GRPO step on a GPU against PyTorch, eager and compiled, next to
what the GPU allows.

W1, W3 (see `minigrpo bench`) and a model of SmolLM2-135M's shape with random weights, whose prompts
share a preamble as in the task `sums`.  All sides work in this one process on the same GPU, start
from the same weights, and make the same amount of work: completions of full length, the same
reward, AdamW.  Each takes the micro-batch that is fastest for it, PyTorch its attention kernel too.
After a warm-up, rounds of one step each are interleaved and timed with CUDA events, from an idle
stream to the last kernel, so waiting for the host counts.  The floor is explained in
`gpu_floor.py`.

`--device cpu` runs it all at toy size with NumPy and PyTorch on the CPU: a rehearsal, which tells
nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_floor import (
    CASES,
    PEERS,
    Case,
    device_rates,
    floor,
    our_side,
    seconds_of,
    table,
    toy,
)
from benchmarks.peer_pytorch import PyTorchGRPO
from minigrpo.engine.backend import Backend, get_backend, ran_out_of_memory
from minigrpo.engine.profiling import Stopwatch
from minigrpo.objectives import Objective
from minigrpo.runs.bench import Bench
from minigrpo.trainer import compute_gradients

WARM_UP = 3
NODES, COMPLETIONS = (2048, 8192, 1 << 20), (None, 64, 16)  # micro-batches to try
MODES = {"torch": False, "torch compiled": True, "torch graphs": "reduce-overhead"}


# -- the sides -------------------------------------------------------------------------------------


def peer(ours: Bench, device: str, **options: Any) -> PyTorchGRPO:
    """PyTorch with the same weights."""
    weights = {
        name: ours.model.backend.to_host(view) for name, view in ours.model.parameters.items()
    }
    return PyTorchGRPO(
        ours.workload.config, weights, learning_rate=ours.learning_rate, device=device, **options
    )


def peer_step(ours: Bench, side: PyTorchGRPO) -> None:
    """Sample, score, update."""
    w = ours.workload
    tokens = side.sample(np.array(ours.prompts), w.group_size, w.new_tokens)
    rewards = (
        (tokens[:, w.prompt_length :] % 2 == 0)
        .to(torch.float32)
        .mean(1)
        .view(w.n_prompts, w.group_size)
    )
    side.update(tokens, rewards, w.prompt_length)


def differences(ours: Bench, side: PyTorchGRPO) -> dict[str, float]:
    """On the same rollouts: the largest difference of log p, and ‖g - g'‖/‖g'‖ of a parameter."""
    w, rollouts = ours.workload, ours.sample()
    rewards = np.random.default_rng(0).random((w.n_prompts, w.group_size))
    objective = Objective.preset("grpo", clip_low=None, clip_high=None)
    coefficients = objective.coefficients(rollouts, rewards.ravel())
    tree, parts = rollouts.tree, [(rollouts.tree, np.arange(rollouts.tree.n_nodes))]
    compute_gradients(ours.model, parts, objective, coefficients, 1.0, rollouts.logp)
    prompts = np.repeat(np.array(ours.prompts), w.group_size, 0)
    tokens = torch.from_numpy(np.concatenate([prompts, tree.token[tree.paths]], 1)).to(side.device)
    side.backward(tokens, torch.from_numpy(rewards).float().to(side.device), w.prompt_length)
    with torch.no_grad():
        logp = side.log_probabilities(tokens, w.prompt_length).cpu().numpy()
    worst = 0.0
    for name, theirs in side.gradients().items():
        found = ours.model.backend.to_host(ours.model.gradients[name])
        worst = max(
            worst, float(np.linalg.norm(found - theirs) / max(np.linalg.norm(theirs), 1e-30))
        )
    return {"log p": float(np.abs(logp - tree.on_tokens(rollouts.logp)).max()), "gradients": worst}


# -- measuring -------------------------------------------------------------------------------------


def peak_bytes(backend: Backend | None, step: Callable[[], Any]) -> int | None:
    """The most device memory that a side's pool holds during a step; None on the CPU."""
    if backend is not None and backend.name == "cupy":
        pool = backend.xp.get_default_memory_pool()
        pool.free_all_blocks()
        step()
        return int(pool.total_bytes())  # the pool never shrinks by itself
    if backend is None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step()
        return int(torch.cuda.max_memory_reserved())
    return None


def release(backend: Backend | None) -> None:
    """Give back what the pools hold unused."""
    if backend is not None and backend.name == "cupy":
        backend.xp.get_default_memory_pool().free_all_blocks()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def choose(
    side: Any, settings: list[dict[str, Any]], step: Callable[[], Any], backend: Backend | None
) -> dict[str, Any]:
    """Give a side the attributes with which a step is fastest, of two tries after a first; what
    needs too much memory is out.

    -> these values
    """
    seconds = []
    for setting in settings:
        vars(side).update(setting)
        try:
            step()
            seconds.append(min(seconds_of(step, backend) for _ in range(2)))
        except (MemoryError, RuntimeError) as error:
            if not (ran_out_of_memory(error) or isinstance(error, torch.OutOfMemoryError)):
                raise
            seconds.append(np.inf)
            release(backend)
    if min(seconds) == np.inf:
        raise MemoryError("out of memory with every micro-batch")
    vars(side).update(settings[int(np.argmin(seconds))])
    return settings[int(np.argmin(seconds))]


def measure(
    case: Case, backend: Backend, device: str, rounds: int, rates: dict[str, float], compile: bool
) -> dict[str, Any]:
    """One workload, all sides.   -> medians, quartiles, ratios, floor, memory"""
    ours, found = our_side(case, backend), {}
    watches: list[Stopwatch] = []

    def our_step() -> None:
        watches.append(Stopwatch())
        tree = ours.step(watches[-1]).tree
        whole = len(tree.paths) * (ours.workload.prompt_length + ours.workload.new_tokens)
        found["distinct share"] = tree.n_nodes / whole  # prompts included

    chosen = {
        "minigrpo": choose(ours, [{"micro_batch_tokens": n} for n in NODES], our_step, backend)
    }
    memory = {"minigrpo": peak_bytes(backend, our_step)}
    sides: dict[str, tuple[Callable[[], Any], Backend | None]] = {"minigrpo": (our_step, backend)}
    settings = [
        {"attention": kind, "micro_batch": n} for kind in ("fused", "plain") for n in COMPLETIONS
    ]
    for name in PEERS if compile else ("torch",):
        try:
            side = peer(ours, device, compile=MODES[name])
            if name == "torch":
                found["difference"] = differences(ours, side)
            step = partial(peer_step, ours, side)
            chosen[name] = choose(
                side, settings if name == "torch" else [chosen["torch"]], step, None
            )  # each compiles anew
            memory[name] = peak_bytes(None, step)
            sides[name] = step, None
        except (
            Exception
        ) as error:  # a compiler may be missing, and fails in many ways; eager PyTorch must work
            if name == "torch":
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            found["not measured"] = found.get("not measured", {}) | {name: reason}
    found |= {"chosen": chosen, "memory": memory}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(WARM_UP + rounds):
        if i == WARM_UP:
            watches.clear()
        for name, (step, where) in sides.items():
            spent = seconds_of(step, where)
            if i >= WARM_UP:
                seconds[name].append(spent)
    median = {name: float(np.median(s)) for name, s in seconds.items()}
    flops = {
        p: float(np.median([w.flops[p] for w in watches]))
        for p in ("sample", "forward", "backward")
    }
    lowest = floor(ours.workload.config, ours.workload.new_tokens, flops, rates)
    found |= {
        "seconds": median,
        "quartiles": {name: list(np.quantile(s, (0.25, 0.75))) for name, s in seconds.items()},
    }
    found |= {
        "ratio": {n: median[n] / median["minigrpo"] for n in median if n != "minigrpo"},
        "GFLOP": sum(flops.values()) / 1e9,
    }
    found |= {
        "phases": {
            p: float(np.median([w.phases()[p] for w in watches])) for p in watches[0].phases()
        }
    }
    return found | {
        "floor": lowest,
        "step / floor": median["minigrpo"] / sum(lowest.values()),
        "rounds": rounds,
    }


# -- telling ---------------------------------------------------------------------------------------


def describe(backend: Backend, device: str) -> dict[str, Any]:
    """The device by name, and the versions of what ran on it."""
    names = {"minigrpo on": backend.name, "numpy": np.__version__, "torch": torch.__version__}
    if device == "cpu":
        return {"device": "CPU (a rehearsal: no time here means anything)"} | names
    runtime = backend.xp.cuda.runtime
    names |= {
        "cupy": backend.xp.__version__,
        "driver's CUDA": runtime.driverGetVersion(),
        "torch's CUDA": torch.version.cuda,
    }
    return {
        "device": torch.cuda.get_device_name(0),
        "GB": round(runtime.memGetInfo()[1] / 1e9, 1),
    } | names


def profile(case: Case, backend: Backend) -> str:
    """Where the time of one step goes: its phases, then its kernels (PyTorch's profiler sees those
    of the whole process).
    """
    ours, watch = our_side(case, backend), Stopwatch()
    for _ in range(WARM_UP):
        ours.step(Stopwatch())
    kinds = [torch.profiler.ProfilerActivity.CPU] + [
        torch.profiler.ProfilerActivity.CUDA
    ] * torch.cuda.is_available()
    with torch.profiler.profile(activities=kinds) as seen:
        ours.step(watch)
    order = "cuda_time_total" if torch.cuda.is_available() else "cpu_time_total"
    kernels = seen.key_averages().table(sort_by=order, row_limit=25)
    return "\n".join(
        [*(f"{phase:10} {1e3 * spent:9.2f} ms" for phase, spent in watch.phases().items()), kernels]
    )


def main(argv: list[str] | None = None) -> None:
    """Measure, print a table, write gpu-results.json."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--workloads", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument(
        "--rounds", type=int, default=30, help="timed steps of each side (default: 30)"
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal at toy size"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument(
        "--tf32", action="store_true", help="products in TF32 on both sides (default: float32)"
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="instead: where the time of one step of each workload goes",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="a JSON file (default: benchmarks/gpu-results.json; with --device cpu none)",
    )
    a = parser.parse_args(argv)
    if a.rounds < 1:
        parser.error("--rounds must be at least 1")
    if a.tf32:
        os.environ["CUPY_TF32"] = "1"
        torch.set_float32_matmul_precision("high")
    if a.device == "cuda" and not torch.cuda.is_available():
        way_out = "install its CUDA build, or rehearse with --device cpu"
        sys.exit(f"python -m benchmarks.gpu: PyTorch sees no GPU: {way_out}")
    try:
        backend = get_backend("numpy" if a.device == "cpu" else "cupy")
    except ValueError as error:
        sys.exit(f"python -m benchmarks.gpu: {error}")
    cases = {name: toy(CASES[name]) if a.device == "cpu" else CASES[name] for name in a.workloads}
    if a.profile:
        for name, case in cases.items():
            print(f"== {name}\n{profile(case, backend)}")
        return
    rates = device_rates(backend, 64 if a.device == "cpu" else 4096)
    results: dict[str, Any] = {
        "machine": describe(backend, a.device) | {"TF32": a.tf32},
        "rates": rates,
        "workloads": {},
    }
    out = a.out or (Path(__file__).parent / "gpu-results.json" if a.device == "cuda" else None)
    for name, case in cases.items():
        results["workloads"][name] = measure(
            case, backend, a.device, a.rounds, rates, not a.no_compile
        )
        if out:  # after each, so that what is cut off is not lost
            out.write_text(json.dumps(results, indent=1) + "\n")
        release(backend)
    print(*table(results), sep="\n")


if __name__ == "__main__":
    main()
