"""How much memory training takes, model by model: the table of minigrpo/models/README.md.

python -m benchmarks.model_memory                        the table, by the package's own estimate
python -m benchmarks.model_memory Qwen2.5-0.5B sgd       two steps with random weights, measured
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np

from benchmarks.memory import peak_mib
from minigrpo import Rollouts, Transformer, TransformerConfig
from minigrpo.engine.parameters import LLAMA3
from minigrpo.runs.memory import fixed_bytes, node_bytes, parameters_of
from minigrpo.runs.policy import make_state
from minigrpo.runs.settings import TrainSettings
from minigrpo.trainer import grpo_step

SCALING = dict(zip(LLAMA3, (32.0, 1.0, 4.0, 8192), strict=True)) | {"rope_type": "llama3"}
CONTEXT = 2048
MODELS = {  # as their config.json has them
    "SmolLM2-135M": TransformerConfig(49_152, 576, 30, 9, 3, 1536, CONTEXT, 1e5),
    "SmolLM2-360M": TransformerConfig(49_152, 960, 32, 15, 5, 2560, CONTEXT, 1e5),
    "Qwen2.5-0.5B": TransformerConfig(
        151_936, 896, 24, 14, 2, 4864, CONTEXT, 1e6, 1e-6, model_type="qwen2"
    ),
    "Qwen3-0.6B": TransformerConfig(
        151_936, 1024, 28, 16, 8, 3072, CONTEXT, 1e6, 1e-6, head_dim=128, model_type="qwen3"
    ),
    "Llama-3.2-1B": TransformerConfig(
        128_256, 2048, 16, 32, 8, 8192, CONTEXT, 5e5, 1e-5, rope_scaling=SCALING
    ),
    "DeepSeek-R1-Distill-Qwen-1.5B": TransformerConfig(
        151_936, 1536, 28, 12, 2, 8960, CONTEXT, 1e4, 1e-6, False, model_type="qwen2"
    ),
}
SETTINGS = TrainSettings(
    task="sums", objective="grpo", micro_batch_tokens=256, group_size=8, prompts_per_step=2
)
OPTIMISERS = {"AdamW": "adamw", "SGD": "sgd"}
# GB of each machine, and how much of it a program can have
MACHINES = {"laptop, 8 GB": 6.0, "laptop, 16 GB": 12.0}
MACHINES |= {f"GPU, {size} GB": 0.9 * size for size in (6, 8, 12, 24)}


def gigabytes(name: str, optimizer: str) -> float:
    """What `runs/memory.py` expects: parameters, gradients, moments, and a micro-batch's values."""
    config, settings = MODELS[name], replace(SETTINGS, optimizer=optimizer)
    nodes = settings.micro_batch_tokens * node_bytes(config, settings.dtype)
    return (fixed_bytes(settings, config) + nodes) / 1e9


def table() -> str:
    """In Markdown."""
    head = ["model", "parameters", "optimiser", "GB", *MACHINES]
    lines = [head, ["---", *["---:"] * 3, *[":-:"] * len(MACHINES)]]
    lines[1][2] = "---"
    for name, config in MODELS.items():
        for title, optimizer in OPTIMISERS.items():
            needed = gigabytes(name, optimizer)
            fits = ["yes" if needed <= room else "" for room in MACHINES.values()]
            size = f"{parameters_of(config) / 1e6:,.0f} M"
            lines.append([name, size, title, f"{needed:.1f}", *fits])
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def measure(name: str, optimizer: str) -> str:
    """Two steps on 120 tokens of prompts with 5 new ones, with random weights, in this process."""
    config, settings = MODELS[name], replace(SETTINGS, optimizer=optimizer)
    model, rng = Transformer(config, seed=None), np.random.default_rng(0)
    for view in model.parameters.values():
        flat = view.reshape(-1)
        for start in range(0, flat.size, 1 << 20):
            part = flat[start : start + (1 << 20)]
            part[...] = 1 if view.ndim == 1 else 0.02 * rng.standard_normal(part.size)
    state, seconds = make_state(settings, model), []

    def score(rollouts: Rollouts) -> np.ndarray:
        return rng.standard_normal(len(rollouts.tree.paths))

    common = rng.integers(1000, size=100)
    for _ in range(2):
        prompts = [np.append(common, rng.integers(1000, size=20)) for _ in range(2)]
        started = time.perf_counter()
        grpo_step(state, prompts, score, 1e-5, {"max_new_tokens": 5})
        seconds.append(time.perf_counter() - started)
    told = f"{name}, {optimizer}: peak {peak_mib() * 2**20 / 1e9:.2f} GB"
    return f"{told}, expected {gigabytes(name, optimizer):.2f} GB; {min(seconds):.0f} s a step"


if __name__ == "__main__":
    print(measure(*sys.argv[1:]) if sys.argv[1:] else table())
