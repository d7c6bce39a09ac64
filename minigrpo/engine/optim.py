"""Optimisers, gradient clipping and learning-rate schedules, on flat vectors."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from minigrpo.engine.backend import Array, array_module
from minigrpo.engine.divergence import check_finite
from minigrpo.engine.lanes import LANES, run_lanes
from minigrpo.engine.parameters import Parameters
from minigrpo.engine.profiling import timed

BLOCK = 1 << 17  # elements updated at a time on the host, so that temporaries stay in cache
DEVICE_BLOCK = 1 << 24  # on a device, so that they stay small next to the parameters
LANE_BLOCKS = 8  # blocks that make a lane worth its overhead


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101).

    m ← β₁m + (1-β₁)g,  v ← β₂v + (1-β₂)g²,  m̂ = m/(1-β₁ᵗ),  v̂ = v/(1-β₂ᵗ),
    θ ← θ - lr·( m̂/(√v̂ + eps) + decay·θ ).   m, v: flat vectors like θ; t is `step_count`
    The decay applies to all parameters; 0, the default here, is usual in RL.
    >>> model = mg.Transformer(mg.TransformerConfig(vocab_size=10))
    >>> mg.AdamW(model.parameters).step(model.parameters, model.gradients, learning_rate=1e-3)
    """

    def __init__(
        self,
        parameters: Parameters,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        xp = array_module(parameters.flat)
        self.m, self.v = xp.zeros_like(parameters.flat), xp.zeros_like(parameters.flat)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.step_count = 0

    @timed("optimizer")
    def step(self, parameters: Parameters, gradients: Parameters, learning_rate: float) -> None:
        """Update the parameters in place."""
        self.step_count += 1
        theta, xp = parameters.flat, array_module(parameters.flat)
        size, block, lane = theta.size, DEVICE_BLOCK, theta.size
        if xp is np:
            block = BLOCK
            if size > LANES * LANE_BLOCKS * block:
                lane = -(-size // (LANES * block)) * block

        def update(first: int) -> None:
            spare = xp.empty((2, min(block, size)), dtype=theta.dtype)
            for start in range(first, min(first + lane, size), block):
                part = slice(start, start + block)
                self._update(part, theta[part], gradients.flat[part], learning_rate, spare)

        run_lanes([partial(update, first) for first in range(0, size, lane)])

    def _update(
        self, part: slice, theta: Array, g: Array, learning_rate: float, spare: Array
    ) -> None:
        """One block.   spare (2, ≥ block): for temporaries, whose allocation would cost most"""
        xp, (b1, b2) = array_module(theta), self.betas
        m, v = self.m[part], self.v[part]
        change, denominator = spare[0, : len(theta)], spare[1, : len(theta)]
        xp.subtract(g, m, out=change)
        change *= 1 - b1
        m += change
        xp.multiply(g, g, out=change)
        change -= v
        change *= 1 - b2
        v += change
        xp.sqrt(v, out=denominator)
        denominator *= 1 / math.sqrt(1 - b2**self.step_count)
        denominator += self.eps
        if self.weight_decay:
            theta *= 1 - learning_rate * self.weight_decay
        xp.multiply(m, learning_rate / (1 - b1**self.step_count), out=change)
        change /= denominator
        theta -= change

    def arrays(self) -> dict[str, Array]:
        """What a checkpoint must hold besides the step count, by name."""
        return {"m": self.m, "v": self.v}


class SGD:
    """θ ← θ - lr·g.   No momentum, no state: for experiments where Adam would hide a scale.

    >>> model = mg.Transformer(mg.TransformerConfig(vocab_size=10))
    >>> mg.SGD(model.parameters).step(model.parameters, model.gradients, learning_rate=0.1)
    """

    def __init__(self, parameters: Parameters) -> None:
        self.step_count = 0

    @timed("optimizer")
    def step(self, parameters: Parameters, gradients: Parameters, learning_rate: float) -> None:
        """Update the parameters in place."""
        self.step_count += 1
        theta, xp = parameters.flat, array_module(parameters.flat)
        block = BLOCK if xp is np else DEVICE_BLOCK  # no temporary as large as the model
        for start in range(0, theta.size, block):
            theta[start : start + block] -= learning_rate * gradients.flat[start : start + block]

    def arrays(self) -> dict[str, Array]:
        """Nothing."""
        return {}


def global_norm(gradients: Parameters) -> float:
    """‖g‖₂ over all parameters; not finite if one of them is not, or if a square overflows.

    It is summed by blocks in a fixed order, without BLAS, whose sum depends on its threads (and, in
    float32, was off by 4e-5 for six million parameters).
    """
    flat, xp = gradients.flat, array_module(gradients.flat)
    block = BLOCK if xp is np else flat.size
    parts = (flat[start : start + block] for start in range(0, flat.size, block))
    return math.sqrt(sum(float(xp.einsum("i,i->", part, part)) for part in parts))


@timed("optimizer")
def clip_gradient(gradients: Parameters, max_norm: float | None) -> float:
    """Scale the gradients in place to a norm of at most max_norm, if given.   -> the norm before

    Raises DivergenceError if the norm is not finite.
    """
    norm = global_norm(gradients)
    check_finite(norm, "norm of its gradient")
    if max_norm is not None and norm > max_norm:
        gradients.flat *= max_norm / norm
    return norm


def learning_rate_at(
    step: int, steps: int, peak: float, warmup: int = 0, schedule: str = "constant"
) -> float:
    """The rate for step 0 … steps-1: peak·(step+1)/(warmup+1) over the warmup, then the schedule.

    "constant" stays at the peak, "cosine" goes down to 0 in half a cosine.  Raises ValueError for
    another schedule.
    """
    if schedule not in ("constant", "cosine"):
        raise ValueError(f"unknown schedule {schedule!r}: choose constant or cosine")
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
