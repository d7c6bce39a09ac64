"""`minigrpo bench`: the time of a full GRPO step (sample, score, update) on fixed workloads, next to its floor.

    W1   4 layers, width 128, vocabulary 64 (0.8 million parameters); 16 prompts of 16 tokens, k = 16, 32 new tokens
    W2   the same, with a policy so sure of itself that completions agree: distinct / all tokens about 0.2
    W3   8 layers, width 256, vocabulary 512; 64 new tokens

Completions have full length, the weights are random.  Comparisons with PyTorch and TRL, memory, and cost curves are in the folder
`benchmarks/` of the repository.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minigrpo.engine.optim import AdamW, clip_gradient
from minigrpo.engine.parameters import TransformerConfig
from minigrpo.engine.plan import split_tree
from minigrpo.engine.profiling import PHASES, Stopwatch, forward_flops, peak_rate
from minigrpo.gradients import compute_gradients
from minigrpo.objectives import Objective
from minigrpo.runs.settings import TrainSettings
from minigrpo.sampler import sample
from minigrpo.transformer import Transformer
from minigrpo.tree import Rollouts


@dataclass(frozen=True)
class Workload:
    """What a step works on."""

    config: TransformerConfig
    n_prompts: int = 16
    prompt_length: int = 16
    group_size: int = 16
    new_tokens: int = 32
    agreeing: float | None = None  # make distinct / all completion tokens about this


_SMALL = TransformerConfig(64, 128, 4, 4, ffn_dim=344, max_seq_len=48)
WORKLOADS = {
    "W1": Workload(_SMALL),
    "W2": Workload(_SMALL, agreeing=0.2),
    "W3": Workload(TransformerConfig(512, 256, 8, 8, ffn_dim=688, max_seq_len=80), new_tokens=64),
}


class Bench:
    """A policy, prompts and an optimiser for a workload; `step` is one GRPO step."""

    def __init__(
        self,
        workload: Workload,
        backend: str = "numpy",
        dtype: str = "float32",
        learning_rate: float = 1e-6,
    ) -> None:
        self.workload, self.learning_rate = workload, learning_rate
        self.model = Transformer(workload.config, backend=backend, dtype=dtype)
        self.micro_batch_tokens = TrainSettings.micro_batch_tokens
        self.rng = np.random.default_rng(0)
        shape = (workload.n_prompts, workload.prompt_length)
        self.prompts = list(self.rng.integers(workload.config.vocab_size, size=shape))
        self.optimizer, self.objective = (
            AdamW(self.model.parameters),
            Objective.preset("lambda_grpo"),
        )
        if workload.agreeing is not None:
            self._sharpen(workload.agreeing)

    def sample(self) -> Rollouts:
        """One batch of rollouts."""
        return sample(
            self.model,
            self.prompts,
            self.workload.group_size,
            self.rng,
            max_new_tokens=self.workload.new_tokens,
        )

    def step(self, watch: Stopwatch) -> Rollouts:
        """Sample, score (the share of even tokens), update; the time of each goes to `watch`."""
        with watch("sample"):
            rollouts = self.sample()
        return self.update(rollouts, watch)

    def timed_step(self) -> tuple[Rollouts, Stopwatch, float]:
        """A step, its time, and the peak rate right before or after it, whichever is better."""
        backend, dtype, watch = self.model.backend, str(self.model.dtype), Stopwatch()
        before = peak_rate(backend, dtype)
        rollouts = self.step(watch)
        return rollouts, watch, max(before, peak_rate(backend, dtype))

    def update(self, rollouts: Rollouts, watch: Stopwatch) -> Rollouts:
        """Score and update from given rollouts."""
        model = self.model
        with watch("score"):
            rewards = np.array(
                [
                    (completion % 2 == 0).mean()
                    for group in rollouts.completions
                    for completion in group
                ]
            )
            coefficients = self.objective.coefficients(rollouts, rewards)
            parts = split_tree(rollouts.tree, self.micro_batch_tokens, model.lanes)
        with watch("update"):
            compute_gradients(
                model, parts, self.objective, coefficients, 1.0, rollouts.logp, watch=watch
            )
        with watch("optimizer"):
            clip_gradient(model.gradients, 1.0)
            self.optimizer.step(model.parameters, model.gradients, self.learning_rate)
        watch.add_flops(
            {"sample": 1, "forward": 1, "backward": 2}, forward_flops(model.config, rollouts.tree)
        )
        return rollouts

    def _sharpen(self, wanted: float) -> None:
        """Scale the last norm, and with it all logits, until distinct / all tokens of completions is about `wanted`."""
        norm, low, high = self.model.parameters["model.norm.weight"], 1.0, 4096.0
        while high / low > 1.02:
            norm[...] = np.sqrt(low * high)
            low, high = (
                (np.sqrt(low * high), high)
                if unique_share(self.sample()) > wanted
                else (low, np.sqrt(low * high))
            )


def unique_share(rollouts: Rollouts) -> float:
    """Distinct / all tokens of completions."""
    return float(rollouts.tree.scored.sum() / rollouts.tree.lengths.sum())


def measure(name: str, steps: int, backend: str = "numpy", dtype: str = "float32") -> str:
    """Medians of `steps` steps of a workload after a first, as lines for a terminal.   Raises ValueError for an unknown name.

    The floor of a step is by the peak rate measured beside it.
    """
    if name not in WORKLOADS:
        raise ValueError(f"there is no workload {name!r}: choose from {', '.join(WORKLOADS)}")
    if steps < 1:
        raise ValueError(f"{steps} steps give no time: take at least 1")
    bench = Bench(WORKLOADS[name], backend, dtype)
    rows = []
    for _ in range(steps + 1):
        rollouts, watch, peak = bench.timed_step()
        seconds, of_update = watch.phases(), watch.flops["forward"] + watch.flops["backward"]
        step = sum(seconds.values())
        ratios = {"step / floor": step * peak / sum(watch.flops.values())}
        ratios["update / floor"] = (step - seconds["sample"]) * peak / of_update
        rows.append(
            seconds | ratios | {"step": step, "peak": peak, "shared": unique_share(rollouts)}
        )
    median = {key: float(np.median([row[key] for row in rows[1:]])) for key in rows[0]}
    parts = "   ".join(f"{phase} {1e3 * median[phase]:.0f}" for phase in PHASES)
    return (
        f"{name}: a step {1e3 * median['step']:.0f} ms = {median['step / floor']:.2f} × its floor; update "
        f"{median['update / floor']:.2f} × its floor (peak {median['peak'] / 1e9:.0f} GFLOP/s; distinct tokens "
        f"{median['shared']:.2f} of all)\n    ms: {parts}"
    )
