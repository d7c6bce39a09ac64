"""W1, W2 and W3: a full GRPO step of minigrpo against PyTorch's, interleaved in one process; and
TRL's on W1.

The peers start from the same weights and prompts and do the same amount of work: full-length
completions, the same reward, AdamW.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from minigrpo.runs.bench import WORKLOADS, Bench, Workload, unique_share
from minigrpo.tree import PrefixTree

PAUSE = 0.5  # seconds, since the threads of a BLAS go on spinning for a while


def compare(name: str, rounds: int, progress: Any = print) -> dict[str, Any]:
    """Interleaved rounds of one step each.

    Returns medians in seconds, ratios of each round's pair, distance from the floor.
    """
    workload = WORKLOADS[name]
    ours, peer = Bench(workload), TorchStep(workload)
    peer.model_from(ours)
    peer.choose(ours)
    best = f"micro_batch={peer.peer.micro_batch}, attention={peer.attention}"
    progress(f"{name}: PyTorch is fastest with {best}")
    rows: list[dict[str, float]] = []
    for i in range(rounds + 1):
        time.sleep(PAUSE)
        rollouts, watch, peak = ours.timed_step()
        spent = watch.phases()
        started = time.perf_counter()
        PrefixTree.from_groups(rollouts.prompts, rollouts.completions)
        tree = time.perf_counter() - started  # is a part of sampling
        time.sleep(PAUSE)
        sampled, updated = peer.step(ours)
        if i == 0:
            continue  # warms up
        update = spent["score"] + spent["forward"] + spent["backward"] + spent["optimizer"]
        rows.append(
            {
                "minigrpo sample": spent["sample"],
                "minigrpo update": update,
                "minigrpo step": spent["sample"] + update,
                "torch sample": sampled,
                "torch update": updated,
                "torch step": sampled + updated,
                "torch / minigrpo": (sampled + updated) / (spent["sample"] + update),
                "peak GFLOP/s": peak / 1e9,
                "GFLOP": sum(watch.flops.values()) / 1e9,
                "step / floor": (spent["sample"] + update) * peak / sum(watch.flops.values()),
                "update / floor": update
                * peak
                / (watch.flops["forward"] + watch.flops["backward"]),
                "distinct share": unique_share(rollouts),
                "tree and weights": (tree + spent["score"]) / (spent["sample"] + update),
            }
        )
        told = [f"{who} {rows[-1][f'{who} step']:.3f} s" for who in ("minigrpo", "torch")]
        progress(f"  round {i}: {', '.join(told)}")
    found: dict[str, Any] = {key: float(np.median([row[key] for row in rows])) for key in rows[0]}
    found |= {"best peak GFLOP/s": max(row["peak GFLOP/s"] for row in rows), "rounds": rounds}
    found |= {"torch micro_batch": peer.peer.micro_batch, "torch attention": peer.attention}
    ratios = [row["torch / minigrpo"] for row in rows]
    found["ratio lowest"], found["ratio highest"] = min(ratios), max(ratios)
    return found


class TorchStep:
    """The PyTorch peer on a workload."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.attention = "fused"

    def model_from(self, ours: Bench) -> None:
        """Take over weights; again, if the attention is changed."""
        from benchmarks.peer_pytorch import PyTorchGRPO

        parameters, rate = ours.model.parameters, ours.learning_rate
        self.peer = PyTorchGRPO(
            self.workload.config, parameters, learning_rate=rate, attention=self.attention
        )

    def choose(self, ours: Bench) -> None:
        """Find the micro-batch and the attention kernel with which the peer is fastest."""
        tried = {}
        for attention in ("fused", "plain"):
            self.attention = attention
            self.model_from(ours)
            for micro_batch in (None, 64, 32):
                self.peer.micro_batch = micro_batch
                tried[attention, micro_batch] = min(sum(self.step(ours)) for _ in range(2))
        self.attention, micro_batch = min(tried, key=tried.get)
        self.model_from(ours)
        self.peer.micro_batch = micro_batch

    def step(self, ours: Bench) -> tuple[float, float]:
        """-> seconds of sampling, of scoring and updating"""
        import torch

        w = self.workload
        started = time.perf_counter()
        tokens = self.peer.sample(np.array(ours.prompts), w.group_size, w.new_tokens)
        sampled = time.perf_counter()
        rewards = (
            (tokens[:, w.prompt_length :] % 2 == 0)
            .to(torch.float32)
            .mean(1)
            .view(w.n_prompts, w.group_size)
        )
        self.peer.update(tokens, rewards, w.prompt_length)
        return sampled - started, time.perf_counter() - sampled


def text(name: str, found: dict[str, Any]) -> str:
    """A Markdown row."""
    f = found
    ours, theirs = (
        f"{f[f'{who} sample']:.3f} + {f[f'{who} update']:.3f}" for who in ("minigrpo", "torch")
    )
    ratio = f"{f['torch / minigrpo']:.2f} ({f['ratio lowest']:.2f} … {f['ratio highest']:.2f})"
    floors = f"{f['step / floor']:.2f} | {f['update / floor']:.2f}"
    return f"| {name} | {f['distinct share']:.2f} | {ours} | {theirs} | **{ratio}** | {floors} |"


HEADER = (
    "| workload | distinct / all tokens | minigrpo: sample + update, s "
    "| PyTorch: sample + update, s | PyTorch / minigrpo (range) "
    "| step / floor | update / floor |\n|---|---|---|---|---|---|---|"
)
