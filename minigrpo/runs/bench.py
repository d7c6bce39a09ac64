"""`minigrpo bench`: the time of a GRPO step on fixed workloads, next to its floor.

    W1   4 layers, width 128, vocabulary 64 (0.8 million parameters);
         16 prompts of 16 tokens, k = 16, 32 new tokens
    W2   the same with a surer policy, so that completions agree: distinct / all tokens about 0.2
    W3   8 layers, width 256, vocabulary 512; 64 new tokens

Completions have full length, the weights are random.  Comparisons with PyTorch and TRL, memory, and
cost curves are in the folder `benchmarks/` of the repository.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minigrpo.engine.optim import AdamW, clip_gradient
from minigrpo.engine.parameters import TransformerConfig
from minigrpo.engine.plan import split_tree
from minigrpo.engine.profiling import PHASES, Stopwatch, forward_flops, peak_rate
from minigrpo.objectives import Objective
from minigrpo.runs.settings import TrainSettings
from minigrpo.sampler import sample
from minigrpo.trainer import compute_gradients
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
_LARGER = TransformerConfig(512, 256, 8, 8, ffn_dim=688, max_seq_len=80)
WORKLOADS = {
    "W1": Workload(_SMALL),
    "W2": Workload(_SMALL, agreeing=0.2),
    "W3": Workload(_LARGER, new_tokens=64),
}


class Bench:
    """A policy, prompts and an optimiser for a workload; `step` is one GRPO step."""

    def __init__(self, workload: Workload, backend: str = "numpy", dtype: str = "float32") -> None:
        self.workload = workload
        self.model = Transformer(workload.config, backend=backend, dtype=dtype)
        self.micro_batch_tokens = TrainSettings.micro_batch_tokens
        self.rng = np.random.default_rng(0)
        shape = (workload.n_prompts, workload.prompt_length)
        self.prompts = list(self.rng.integers(workload.config.vocab_size, size=shape))
        self.optimizer = AdamW(self.model.parameters)
        self.objective = Objective.preset("lambda_grpo")
        if workload.agreeing is not None:
            self._sharpen(workload.agreeing)

    def sample(self) -> Rollouts:
        """One batch of rollouts."""
        n, k = self.workload.new_tokens, self.workload.group_size
        return sample(self.model, self.prompts, k, self.rng, max_new_tokens=n)

    def step(self, watch: Stopwatch) -> Rollouts:
        """Sample, score (the share of even tokens), update; `watch` measures each."""
        with watch:
            return self.update(self.sample())

    def timed_step(self) -> tuple[Rollouts, Stopwatch, float]:
        """A step, its time, and the peak rate right before or after it, whichever is better."""
        backend, dtype, watch = self.model.backend, str(self.model.dtype), Stopwatch()
        before = peak_rate(backend, dtype)
        rollouts = self.step(watch)
        return rollouts, watch, max(before, peak_rate(backend, dtype))

    def update(self, rollouts: Rollouts) -> Rollouts:
        """Score and update from given rollouts."""
        model, objective = self.model, self.objective
        every = [completion for group in rollouts.completions for completion in group]
        rewards = np.array([(completion % 2 == 0).mean() for completion in every])
        coefficients = objective.coefficients(rollouts, rewards)
        parts = split_tree(rollouts.tree, self.micro_batch_tokens, model.lanes)
        compute_gradients(model, parts, objective, coefficients, 1.0, rollouts.logp)
        clip_gradient(model.gradients, 1.0)
        self.optimizer.step(model.parameters, model.gradients, 1e-6)
        return rollouts

    def _sharpen(self, wanted: float) -> None:
        """Scale the last norm, and with it all logits, until unique_share is about `wanted`."""
        norm, low, high = self.model.parameters["model.norm.weight"], 1.0, 4096.0
        while high / low > 1.02:
            middle = np.sqrt(low * high)
            norm[...] = middle
            low, high = (middle, high) if unique_share(self.sample()) > wanted else (low, middle)


def unique_share(rollouts: Rollouts) -> float:
    """Distinct / all tokens of completions."""
    return float(rollouts.tree.scored.sum() / rollouts.tree.lengths.sum())


def measure(name: str, steps: int, backend: str = "numpy", dtype: str = "float32") -> str:
    """Medians of `steps` steps of a workload after a first one, as lines for a terminal.

    The floor of a step is by the peak rate that is measured beside it, for the tree as a whole.
    Raises ValueError for an unknown name.
    """
    if name not in WORKLOADS:
        raise ValueError(f"there is no workload {name!r}: choose from {', '.join(WORKLOADS)}")
    if steps < 1:
        raise ValueError(f"{steps} steps give no time: take at least 1")
    bench = Bench(WORKLOADS[name], backend, dtype)
    rows = []
    for _ in range(steps + 1):
        rollouts, watch, peak = bench.timed_step()
        seconds, floor = watch.phases(), forward_flops(bench.model.config, rollouts.tree) / peak
        step = sum(seconds.values())
        row = {"step": step, "step / floor": step / (4 * floor)}  # sample, forward, twice backward
        row |= {"update / floor": (step - seconds["sample"]) / (3 * floor)}
        rows.append(row | seconds | {"peak": peak, "shared": unique_share(rollouts)})
    median = {key: float(np.median([row[key] for row in rows[1:]])) for key in rows[0]}
    parts = "   ".join(f"{phase} {1e3 * median[phase]:.0f}" for phase in PHASES)
    return (
        f"{name}: a step {1e3 * median['step']:.0f} ms = {median['step / floor']:.2f} × its floor; "
        f"update {median['update / floor']:.2f} × its floor (peak {median['peak'] / 1e9:.0f} "
        f"GFLOP/s; distinct tokens {median['shared']:.2f} of all)\n    ms: {parts}"
    )
