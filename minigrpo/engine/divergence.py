"""What ends a run that diverges: one error, its sentences, and how to go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

OVERFLOW = "the model's weights are not finite, or so large that what it computes overflows"
ADVICE = "train again with a lower learning rate (or smaller rewards or beta, if they are large)"


class DivergenceError(FloatingPointError):
    """Weights, or what is computed from them, are no longer finite, or too large for the dtype."""


def check_finite(value: float, what: str) -> None:
    """Raise DivergenceError for a metric or a norm that is not finite."""
    if not math.isfinite(value):
        raise DivergenceError(f"the {what} is {value}")


@contextmanager
def diverging(where: str, way_out: Callable[[], str]) -> Iterator[None]:
    """Training that diverges inside says where, and how to go on."""
    try:
        yield
    except DivergenceError as error:
        raise DivergenceError(f"training diverged at {where}: {error}; {way_out()}") from error


def way_out(kept: list[Path]) -> str:
    """How to go on after training has diverged.   kept: the run's checkpoints, if it has any"""
    if not kept:
        return ADVICE
    step = int(kept[-1].stem.partition("-")[2])
    weights = f", from its weights with --init {kept[-1].parent}" if step else ""
    return f"the checkpoint of step {step} is kept: {ADVICE} and another --out{weights}"
