"""What ends training that diverges: one error, and where it happened."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

HARMLESS = 1e6  # a norm of all parameters; below it nothing that they compute overflows
OVERFLOW = "the model's weights are not finite, or so large that what it computes overflows"


class DivergenceError(FloatingPointError):
    """Weights, or what is computed from them, are no longer finite, or too large for the dtype."""


def check_finite(value: float, what: str) -> None:
    """Raise DivergenceError for a metric or a norm that is not finite."""
    if not math.isfinite(value):
        raise DivergenceError(f"the {what} is {value}")


def try_weights(model: Any) -> None:
    """Raise DivergenceError if parameters are not finite, or so large that a trial overflows.

    The trial, of a few tokens, looks at the residual stream too: a norm makes 0 of what overflows,
    and no logit would show it.
    """
    with np.errstate(all="ignore"):
        size = float(model.parameters.flat @ model.parameters.flat)
        n = min(8, model.config.max_seq_len - 1)
        if HARMLESS**2 <= size < math.inf and n:
            tokens = np.linspace(0, model.config.vocab_size - 1, n).astype(np.int64)
            x, logits = model.residual(tokens), model.logits(tokens)
            x = model.backend.to_host(x).astype(np.float64)
            size = (x * x).sum() if np.isfinite(logits).all() else math.inf
    if not size < np.finfo(model.dtype).max:
        raise DivergenceError(OVERFLOW)


@contextmanager
def diverging(where: str, advice: Callable[[], str]) -> Iterator[None]:
    """A DivergenceError inside says where it was, and gives advice on how to go on."""
    try:
        yield
    except DivergenceError as error:
        raise DivergenceError(f"training diverged at {where}: {error}; {advice()}") from error
