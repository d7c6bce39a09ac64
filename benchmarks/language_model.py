"""python -m benchmarks.language_model: a GRPO step of SmolLM2-135M against the same step with
`transformers` and PyTorch.

The step of `minigrpo train --model smollm2 --task sums`: 8 prompts that share six examples, 8
completions each of at most 5 tokens. The peer is what a user would write: `generate` on the padded
batch with its KV cache, then one padded forward and backward pass in micro-batches with logits for
the completions only, and fused AdamW.  Both train the same weights on rollouts of their own;
gradients are compared on the same rollouts first.  Needs torch, transformers and `minigrpo pull
smollm2`.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.machine import describe
from benchmarks.memory import peak_mib
from minigrpo.engine.optim import AdamW, clip_gradient
from minigrpo.engine.parameters import rotate_halves
from minigrpo.models import load_model, save_hugging_face
from minigrpo.objectives import Coefficients, Objective
from minigrpo.sampler import sample
from minigrpo.tasks import Tokenised, load_task, sampling_limits
from minigrpo.trainer import compute_gradients, parts_to_learn_from
from minigrpo.transformer import Transformer
from minigrpo.tree import Rollouts

PROMPTS, GROUP_SIZE, ROUNDS = 8, 8, 3
PAUSE = 2.0  # seconds between the two: the threads of a BLAS go on spinning for a while
RATE = 0.0  # so that completions agree as much in every round; the whole update is computed
OBJECTIVE = Objective.preset("lambda_grpo")


class Peer:
    """transformers and PyTorch; the micro-batch that is fastest here is found first."""

    def __init__(self, folder: Path, pad: int) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=RATE, weight_decay=0.0, fused=True
        )
        self.pad, self.micro_batch = pad, 16

    def generate(
        self, prompts: list[np.ndarray], max_new_tokens: int, stop: int, eos: int
    ) -> list[list[np.ndarray]]:
        """GROUP_SIZE completions of every prompt, padded on the left.

        stop: the token of the line's end.
        """
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.pad)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :], mask[i, width - len(prompt) :] = torch.tensor(prompt), 1
        ids, mask = (x.repeat_interleave(GROUP_SIZE, 0) for x in (ids, mask))
        limits = {
            "max_new_tokens": max_new_tokens,
            "eos_token_id": [stop, eos],
            "pad_token_id": self.pad,
            "top_k": 0,
        }
        with torch.no_grad():
            out = self.model.generate(
                ids, attention_mask=mask, do_sample=True, temperature=1.0, top_p=1.0, **limits
            )
        found = []
        for row in out[:, width:].numpy():
            ends = np.flatnonzero((row == stop) | (row == eos))
            found.append(row[: ends[0] + 1] if len(ends) else row)
        return [found[g * GROUP_SIZE : (g + 1) * GROUP_SIZE] for g in range(len(prompts))]

    def gradients(
        self,
        prompts: list[np.ndarray],
        completions: list[list[np.ndarray]],
        weight: list[np.ndarray],
    ) -> None:
        """Backward of Σ weight·log p over all completion tokens, one row a completion.

        weight: one array a completion
        """
        self.optimizer.zero_grad()
        rows = [(p, c) for p, group in zip(prompts, completions, strict=True) for c in group]
        order = np.argsort([len(p) + len(c) for p, c in rows])
        for start in range(0, len(rows), self.micro_batch):
            chosen = order[start : start + self.micro_batch]
            width = max(len(rows[i][0]) + len(rows[i][1]) for i in chosen)
            ids = torch.full((len(chosen), width), self.pad)
            for r, i in enumerate(chosen):
                ids[r, : len(rows[i][0]) + len(rows[i][1])] = torch.tensor(np.concatenate(rows[i]))
            hidden = self.model.model(
                ids
            ).last_hidden_state  # padding is on the right: causal attention needs no mask
            tokens = [(r, i, t) for r, i in enumerate(chosen) for t in range(len(rows[i][1]))]
            at = [(r, len(rows[i][0]) - 1 + t, rows[i][1][t], weight[i][t]) for r, i, t in tokens]
            row, place, token, w = (torch.tensor(np.array(x)) for x in zip(*at, strict=True))
            logp = self.model.lm_head(hidden[row, place]).log_softmax(-1)
            (logp[torch.arange(len(token)), token] * w.float()).sum().backward()

    def step(self, task: Tokenised, rng: np.random.Generator, stop: int) -> float:
        """Sample, score, update.   -> seconds"""
        started = time.perf_counter()
        prompts = task.prompts(rng, PROMPTS)
        completions = self.generate(prompts, task.max_new_tokens, stop, task.tokenizer.eos)
        rollouts = as_rollouts(prompts, completions, task.max_new_tokens)
        self.gradients(prompts, completions, token_weights(rollouts, task.score(rollouts)))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return time.perf_counter() - started


def as_rollouts(
    prompts: list[np.ndarray], completions: list[list[np.ndarray]], limit: int
) -> Rollouts:
    """Completions that something else sampled; probabilities are not recorded (at μ = 1 the
    gradient needs none).
    """
    from minigrpo.tree import PrefixTree

    tree = PrefixTree.from_groups(prompts, completions)
    nothing = np.zeros(tree.n_nodes)
    return Rollouts(
        prompts, completions, tree, nothing, nothing, np.zeros(len(tree.paths), bool), 1.0, limit
    )


def token_weights(rollouts: Rollouts, rewards: np.ndarray) -> list[np.ndarray]:
    """-a_i / (|λ(i,t)|·Σ|y|) for every token of every completion: λ-GRPO with μ = 1, written out
    flat.
    """
    tree = rollouts.tree
    groups = rewards.reshape(-1, GROUP_SIZE)
    a = (groups - groups.mean(1, keepdims=True)) / (
        groups.std(1, ddof=1, keepdims=True) + OBJECTIVE.std_eps
    )
    lengths = tree.lengths.reshape(-1, GROUP_SIZE)
    share = np.repeat(1 / (len(groups) * lengths.sum(1)), GROUP_SIZE)
    return [
        -a.ravel()[i] * share[i] / tree.count[path[path >= 0]] for i, path in enumerate(tree.paths)
    ]


def our_step(
    model: Transformer, optimizer: AdamW, task: Tokenised, rng: np.random.Generator
) -> float:
    """Sample, score, update.   -> seconds"""
    started = time.perf_counter()
    rollouts = sample(model, task.prompts(rng, PROMPTS), GROUP_SIZE, rng, **sampling_limits(task))
    our_gradients(model, rollouts, OBJECTIVE.coefficients(rollouts, task.score(rollouts)))
    clip_gradient(model.gradients, 1.0)
    optimizer.step(model.parameters, model.gradients, RATE)
    return time.perf_counter() - started


def our_gradients(model: Transformer, rollouts: Rollouts, coefficients: Coefficients) -> None:
    """Leave the gradient in model.gradients."""
    parts = parts_to_learn_from(model, rollouts.tree, coefficients.push, 1024)
    compute_gradients(model, parts, OBJECTIVE, coefficients, 1.0, rollouts.logp)


def gradient_difference(
    model: Transformer, peer: Peer, task: Tokenised, rng: np.random.Generator
) -> dict[str, float]:
    """‖g - g'‖/‖g'‖ of tree against flat on the same rollouts: over all parameters, and for the
    worst parameter alone.
    """
    rollouts = sample(model, task.prompts(rng, PROMPTS), GROUP_SIZE, rng, **sampling_limits(task))
    rewards = rng.integers(2, size=len(rollouts.tree.paths)).astype(float)
    our_gradients(model, rollouts, OBJECTIVE.coefficients(rollouts, rewards))
    peer.gradients(rollouts.prompts, rollouts.completions, token_weights(rollouts, rewards))
    heads, squares = {"q_proj": model.config.n_heads, "k_proj": model.config.n_kv_heads}, []
    for name, parameter in peer.model.named_parameters():
        n = heads.get(name.split(".")[-2])
        ours = model.gradients[name] if n is None else rotate_halves(model.gradients[name], n)
        theirs = parameter.grad.numpy()
        squares.append(
            (
                float(np.sum((ours - theirs) ** 2, dtype=np.float64)),
                float(np.sum(theirs**2, dtype=np.float64)),
            )
        )
    apart, size = np.sqrt(np.array(squares)).T
    return {
        "all": float(np.linalg.norm(apart) / np.linalg.norm(size)),
        "worst parameter": float((apart / size).max()),
    }


def main() -> None:
    """Measure, print, and add the part "language model" to benchmarks/results.json."""
    model, tokenizer = load_model("smollm2")
    task, optimizer = load_task("sums", tokenizer), AdamW(model.parameters)
    stop = int(tokenizer.encode(task.task.stop)[0])
    seconds: dict[str, list[float]] = {"minigrpo": [], "transformers": []}
    our_step(model, optimizer, task, np.random.default_rng(0))  # warms up
    memory = {"minigrpo": peak_mib()}  # before the peer is there
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(save_hugging_face(model, tokenizer, Path(folder) / "model"), pad=0)
    difference = gradient_difference(model, peer, task, np.random.default_rng(1))
    tried = {}
    for peer.micro_batch in (8, 16):
        tried[peer.micro_batch] = peer.step(task, np.random.default_rng(2), stop)
    peer.micro_batch = min(tried, key=tried.get)
    for i in range(ROUNDS):
        time.sleep(PAUSE)
        seconds["minigrpo"] += [
            our_step(model, optimizer, task, np.random.default_rng(i)) for _ in range(3)
        ]
        time.sleep(PAUSE)
        seconds["transformers"].append(peer.step(task, np.random.default_rng(i), stop))
    row: dict[str, Any] = {
        name: round(float(np.median(found)), 3) for name, found in seconds.items()
    }
    row |= {
        "ratio": round(row["transformers"] / row["minigrpo"], 2),
        "peer's micro_batch": peer.micro_batch,
    }
    row |= {
        "gradient difference": {k: float(f"{v:.2g}") for k, v in difference.items()},
        "peak MiB": {k: round(v) for k, v in memory.items()},
    }
    row |= {
        "rounds": {k: [round(x, 2) for x in v] for k, v in seconds.items()},
        "machine": describe(),
    }
    print(json.dumps(row, indent=1))
    file = Path(__file__).parent / "results.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"language model": row}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
