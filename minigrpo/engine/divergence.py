"""What ends training that diverges: one error, and where it happened."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OVERFLOW = "the model's weights are not finite, or so large that what it computes overflows"


class DivergenceError(FloatingPointError):
    """Weights, or what is computed from them, are no longer finite, or too large for the dtype."""


def check_finite(value: float, what: str) -> None:
    """Raise DivergenceError for a metric or a norm that is not finite."""
    if not math.isfinite(value):
        raise DivergenceError(f"the {what} is {value}")


@contextmanager
def diverging(where: str, advice: Callable[[], str]) -> Iterator[None]:
    """A DivergenceError inside says where it was, and gives advice on how to go on."""
    try:
        yield
    except DivergenceError as error:
        raise DivergenceError(f"training diverged at {where}: {error}; {advice()}") from error
