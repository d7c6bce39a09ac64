"""Rollouts: k completions of every prompt, sampled together as a growing tree of prefixes.

A completion is drawn token by token from softmax(logits / temperature).  Completions of a group that agree so far
stand on the same node, which is computed once; they part when they draw different tokens.  The keys and values of
every node are computed once and kept in a cache, so a step runs the model on the newest nodes only.

Uniform random numbers are drawn on the host, one per completion and position, before sampling starts: what a
completion draws depends neither on who else is in the batch nor on when the others stop.  Top-k and top-p are
left out on purpose: they change the distribution, so the recorded probabilities would not be those of the policy
that is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from minigrpo.engine.backend import Array, array_module
from minigrpo.engine.divergence import OVERFLOW, DivergenceError
from minigrpo.engine.kv_cache import KVCache
from minigrpo.engine.lanes import limited, run_lanes
from minigrpo.transformer import Transformer
from minigrpo.tree import PrefixTree, Tokens, token_arrays

LANE_WORK = 14_000  # distinct prefixes × width that make a lane of sampling worth its overhead
TEMPERATURES = 1e-6, 1e6  # the lowest and the highest one
STRETCH = 512  # a token is drawn in two stages: first a block of 512 tokens, then a token in it
# A rule that ends completions: their tokens so far (n,t) -> which of them end with the newest (n,).
Stop = Callable[[np.ndarray], np.ndarray]
End = int | Stop | None  # what ends a completion: a token, a rule, or nothing but its length


@dataclass(frozen=True, eq=False)
class Rollouts:
    """G prompts with k completions each, as a tree, and what the sampling policy thought of them."""

    prompts: list[np.ndarray]  # G arrays of token ids
    completions: list[
        list[np.ndarray]
    ]  # G lists of k arrays; an EOS that was drawn is the last token
    tree: PrefixTree  # over prompts and completions; completions are numbered through, group after group
    logp: (
        np.ndarray
    )  # (N,) log-probability of each scored node under the sampling policy, 0 elsewhere
    entropy: (
        np.ndarray
    )  # (N,) entropy in nats of the distribution that the node's token was drawn from, 0 elsewhere
    truncated: np.ndarray  # (B,) bool: stopped by the length limit, not by EOS
    temperature: float
    max_new_tokens: int


# What overflows is refused in one sentence, without warnings before it.
@np.errstate(over="ignore", invalid="ignore", divide="ignore")
@limited
def sample(
    model: Transformer,
    prompts: Sequence[Tokens],
    group_size: int,
    rng: np.random.Generator,
    *,
    max_new_tokens: int,
    eos: End | tuple[End, ...] = None,
    temperature: float = 1.0,
) -> Rollouts:
    """Draw group_size completions of every prompt.

    A completion ends with the token `eos`, or after max_new_tokens tokens: then it is `truncated`.  `eos` may also be a
    rule, such as `TextTokenizer.stops_at` makes, or a tuple of tokens and rules.  Without eos every completion has
    max_new_tokens tokens and none counts as truncated.  Temperature 0 takes the likeliest token, and records
    probabilities at temperature 1.
    Raises ValueError for empty prompts, tokens outside the vocabulary, sequences longer than the model's context,
    and settings out of range; DivergenceError for weights or logits that are not finite or overflow.
    """
    ends = [end for end in (eos if isinstance(eos, tuple) else (eos,)) if end is not None]
    _check(model, group_size, max_new_tokens, ends, temperature)
    prompts = _own_prompts(model, prompts, max_new_tokens)
    shape = len(prompts) * group_size, max_new_tokens  # (B,T)
    uniform = rng.random(shape) if temperature > 0 else np.zeros(shape)
    nothing = np.full(shape, -1, dtype=np.int64), np.zeros(shape), np.zeros(shape)
    drawn = _Drawn(uniform, *nothing, ended=np.zeros(shape[0], dtype=bool))

    cache = KVCache(model.config, prompts, *shape, model.backend, model.dtype)
    p = cache.prompts
    logits = model.extend(cache.attend_in_prompts, p.token, p.position, p.ends)  # (G,V)

    def grow(some: slice) -> None:
        rows = slice(some.start * group_size, some.stop * group_size)
        part = cache.part(some, rows.stop - rows.start)
        _grow(model, part, logits[some], _Drawn(*(x[rows] for x in drawn)), ends, temperature)

    run_lanes([partial(grow, some) for some in _divide(model, logits, uniform, temperature)])
    if not np.isfinite(drawn.entropy).all():  # as it is where one logit is not finite
        raise DivergenceError(OVERFLOW)

    present = drawn.token >= 0  # (B,T)
    parts = [tokens[:n] for tokens, n in zip(drawn.token, present.sum(1).tolist(), strict=True)]
    completions = [parts[i : i + group_size] for i in range(0, len(parts), group_size)]
    tree = PrefixTree.from_groups(prompts, completions)
    logp, entropy = np.zeros(tree.n_nodes, model.dtype), np.zeros(tree.n_nodes)
    node = tree.paths[tree.paths >= 0]  # of each token, completion after completion
    logp[node], entropy[node] = drawn.logp[present], drawn.entropy[present]
    return Rollouts(
        prompts=prompts,
        completions=completions,
        tree=tree,
        logp=logp,
        entropy=entropy,
        truncated=~drawn.ended & bool(ends),
        temperature=temperature if temperature > 0 else 1.0,
        max_new_tokens=max_new_tokens,
    )


class _Drawn(NamedTuple):
    """What B completions draw; token is -1 past the end."""

    uniform: np.ndarray  # (B,T) random numbers
    token: np.ndarray  # (B,T)
    logp: np.ndarray  # (B,T)
    entropy: np.ndarray  # (B,T) of the distribution that the token was drawn from
    ended: np.ndarray  # (B,) bool: by its last token, not by the length limit


def _grow(
    model: Transformer,
    cache: KVCache,
    logits: Array,
    drawn: _Drawn,
    ends: Sequence[int | Stop],
    temperature: float,
) -> None:
    """Grow the tree of some groups token by token, and write down what is drawn.

    logits (G,V): after each prompt of the cache.
    """
    n_groups, (batch, limit) = len(logits), drawn.token.shape
    # A live row is a distinct prefix that somebody still continues.  At first it is a prompt.
    row = np.repeat(np.arange(n_groups), batch // n_groups)  # (B,) on which each completion stands
    live = np.arange(batch)  # completions that have not ended
    for t in range(limit):
        uniform = drawn.uniform[live, t]
        token, logp, entropy = _draw(model, logits, row[live], uniform, temperature)
        drawn.token[live, t], drawn.logp[live, t], drawn.entropy[live, t] = token, logp, entropy
        for end in ends:
            ended = end(drawn.token[live, : t + 1]) if callable(end) else token == end
            drawn.ended[live] |= ended
        going = ~drawn.ended[live]
        live, token = live[going], token[going]
        if not len(live) or t == limit - 1:
            break
        row[live], newest, position = cache.fork(row[live], token)
        logits = model.extend(cache.attend, newest, position)  # (rows,V)


def _draw(
    model: Transformer, logits: Array, row: np.ndarray, uniform: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A token per completion, the first whose cumulative probability exceeds its uniform number.

    logits (rows,V), row and uniform (n,) -> token, log-probability, entropy (n,) on the host
    """
    xp, host = model.backend.xp, model.backend.to_host
    n_rows, vocab_size = logits.shape
    where = model.backend.to_device(row)
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
        threshold = model.backend.to_device(uniform)[:, None] * cumulative[:, -1:]
        chosen = 0 if vocab_size == stretch else first_above(cumulative, threshold)  # (n,)
        if vocab_size > stretch:
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


def _divide(
    model: Transformer, logits: Array, uniform: np.ndarray, temperature: float
) -> list[slice]:
    """The prompts of each lane: as many lanes as the first tokens, which may agree, are worth."""
    n_prompts, vocab_size = logits.shape
    n = min(model.lanes, n_prompts)
    if n > 1:
        group = np.repeat(np.arange(n_prompts), len(uniform) // n_prompts)
        first, _, _ = _draw(model, logits.copy(), group, uniform[:, 0], temperature)
        n_rows = len(np.unique(group * vocab_size + first))
        n = min(n, max(n_rows * model.config.dim // LANE_WORK, 1))
    return [slice(n_prompts * i // n, n_prompts * (i + 1) // n) for i in range(n)]


def _check(
    model: Transformer, group_size: int, max_new_tokens: int, ends: Sequence, temperature: float
) -> None:
    if group_size < 1 or max_new_tokens < 1:
        both = f"group_size ({group_size}) and max_new_tokens ({max_new_tokens})"
        raise ValueError(f"{both} must be at least 1")
    if temperature != 0:
        check_temperature(temperature)
    vocab_size, drawable = model.config.vocab_size, model.config.n_logits
    for end in ends:
        if not callable(end) and not 0 <= end < vocab_size:
            raise ValueError(f"eos {end} is outside the model's vocabulary of {vocab_size}")
        if not callable(end) and end >= drawable:
            raise ValueError(f"eos {end} cannot be drawn: the model draws tokens below {drawable}")
    model.check_weights()


def check_temperature(temperature: float) -> None:
    """Raise ValueError for a temperature at which logits would overflow, or all be equal."""
    low, high = TEMPERATURES
    if not low <= temperature <= high:
        allowed = f"from {low:g} to {high:g} (or 0 for the likeliest token, without training)"
        raise ValueError(f"temperature is {temperature}: it must be {allowed}")


def _own_prompts(
    model: Transformer, prompts: Sequence[Tokens], max_new_tokens: int
) -> list[np.ndarray]:
    """Copies of the prompts, since the rollouts keep them; a text stays with its tokens."""
    arrays = token_arrays(prompts, lambda i: f"prompt {i}")
    if not arrays or not all(map(len, arrays)):
        raise ValueError("every prompt needs at least one token (and sampling at least one prompt)")
    for ids in arrays:
        model.check(ids, max(map(len, arrays)) + max_new_tokens)
    pairs = zip(prompts, arrays, strict=True)
    return [(prompt if hasattr(prompt, "text") else ids).copy() for prompt, ids in pairs]
