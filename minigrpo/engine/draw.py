"""Drawing tokens for many completions, several of which may share a row of logits, by inversion.

A token is drawn in two stages, first a block of tokens and then a token in it: that is faster than
one long cumulative sum per completion.  Sums of probabilities are float64, so that many rare tokens
beside a likely one keep their share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minigrpo.engine.backend import Array, Backend, array_module

STRETCH = 512  # tokens of a block
LANE_WORK = 14_000  # distinct prefixes × width that make a lane of sampling worth its overhead
LANE_ROWS = 128  # with fewer completions, the matrix products of a lane are slow
TEMPERATURES = 1e-6, 1e6  # the lowest and the highest one


def draw_tokens(
    backend: Backend, logits: Array, row: np.ndarray, uniform: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A token per completion, the first whose cumulative probability exceeds its uniform number.

    Temperature 0 takes the likeliest token.  logits (rows,V) are overwritten; row and uniform (n,)
    -> token, its log-probability, and the entropy of its distribution, (n,) each on the host
    """
    xp, host, device = backend.xp, backend.to_host, backend.to_device
    n_rows, vocab_size = logits.shape
    where = device(row)
    if temperature not in (0, 1):
        logits /= temperature
    logits -= logits.max(-1, keepdims=True)
    stretch = min(vocab_size, STRETCH)
    p = xp.zeros((n_rows, -(-vocab_size // stretch), stretch), dtype=logits.dtype)
    flat = p.reshape(n_rows, -1)[:, :vocab_size]  # the rest is padding
    xp.exp(logits, out=flat)
    mass = p.sum(-1, dtype=np.float64)  # (rows, stretches)
    log_total = xp.log(mass.sum(-1, keepdims=True)).astype(logits.dtype)  # (rows,1)
    entropy = log_total[:, 0] - xp.einsum("rv,rv->r", flat, logits) / mass.sum(-1)  # (rows,)
    if temperature > 0:
        cumulative = xp.cumsum(mass, axis=-1)[where]  # (n, stretches)
        threshold = device(uniform)[:, None] * cumulative[:, -1:]
        chosen: Any = 0  # the stretch; of several (n,)
        if vocab_size > stretch:
            chosen = first_above(cumulative, threshold)
            threshold -= xp.take_along_axis(cumulative - mass[where], chosen[:, None], 1)
        within = first_above(xp.cumsum(p[where, chosen], axis=-1, dtype=np.float64), threshold)
        token = chosen * stretch + within
    else:
        token = logits.argmax(-1)[where]
    return host(token), host(logits[where, token] - log_total[where, 0]), host(entropy[where])


def first_above(cumulative: Array, threshold: Array) -> Array:
    """The first place where a row of cumulative sums exceeds its threshold.

    If rounding leaves none, it is the last place that adds something.   (n,m), (n,1) -> (n,)
    """
    xp = array_module(cumulative)
    return xp.minimum((cumulative <= threshold).sum(-1), (cumulative < cumulative[:, -1:]).sum(-1))


def has_ended(end: int | Callable[[np.ndarray], np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Which completions end with their newest token, by a token or a rule.   (n,t) -> (n,) bool

    Raises ValueError for a rule that does not give one truth value per completion.
    """
    if not callable(end):
        return tokens[:, -1] == end
    found = np.asarray(end(tokens))
    if found.shape != (len(tokens),) or found.dtype != bool:
        gave = f"{found.dtype} of shape {found.shape}"
        raise ValueError(f"a rule of eos gave {gave}: {len(tokens)} completions need a bool each")
    return found


def divide(model: Any, logits: Array, uniform: np.ndarray, temperature: float) -> list[slice]:
    """The prompts of each lane: as many lanes as the first tokens, which may agree, are worth."""
    n_prompts, vocab_size = logits.shape
    n = min(model.lanes, n_prompts, len(uniform) // LANE_ROWS)
    if n > 1:
        group = np.repeat(np.arange(n_prompts), len(uniform) // n_prompts)
        first = draw_tokens(model.backend, logits.copy(), group, uniform[:, 0], temperature)[0]
        n_rows = len(np.unique(group * vocab_size + first))
        n = min(n, n_rows * model.config.dim // LANE_WORK)
    n = max(n, 1)
    return [slice(n_prompts * i // n, n_prompts * (i + 1) // n) for i in range(n)]


def check_temperature(temperature: float) -> None:
    """Raise ValueError for a temperature at which logits would overflow, or all be equal."""
    low, high = TEMPERATURES
    if not low <= temperature <= high:
        allowed = f"from {low:g} to {high:g}, or 0 for the likeliest token, which trains nothing"
        raise ValueError(f"temperature is {temperature}: it must be {allowed}")
