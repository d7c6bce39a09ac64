"""Rollouts: k completions of every prompt, sampled together as a growing tree of prefixes.

A completion is drawn token by token from softmax(logits / temperature).  Completions of a group that agree so far stand on the
same node, which is computed once; they part when they draw different tokens.  The keys and values of every node are computed
once and kept in a cache, so a step runs the model on the newest nodes only.

Uniform random numbers are drawn on the host, one for every completion and position before sampling starts; what a completion
draws does not depend on who else is in the batch or on when the others stop.  Top-k and top-p are left out on purpose: they
change the distribution, so the recorded probabilities would not be those of the policy that is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from minigrpo.engine.backend import array_module
from minigrpo.engine.divergence import OVERFLOW, DivergenceError
from minigrpo.engine.kv_cache import KVCache
from minigrpo.engine.lanes import limited, run_lanes
from minigrpo.engine.profiling import count_passes, timed
from minigrpo.ops import Array
from minigrpo.transformer import Transformer
from minigrpo.tree import PrefixTree, Tokens, token_arrays

LANE_WORK = 14_000  # distinct prefixes × width that make a lane of sampling worth its overhead
TEMPERATURES = 1e-6, 1e6  # the lowest and the highest one
STRETCH = 512  # a token is drawn in two stages: first a block of 512 tokens, then a token in it
Stop = Callable[
    [np.ndarray], np.ndarray
]  # tokens of n completions so far, (n,t), to which of them end with the newest one, (n,)


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
@timed("sample")
@np.errstate(over="ignore", invalid="ignore", divide="ignore")
@limited
def sample(
    model: Transformer,
    prompts: Sequence[Tokens],
    group_size: int,
    rng: np.random.Generator,
    *,
    max_new_tokens: int,
    eos: int | None = None,
    stop: Stop | None = None,
    temperature: float = 1.0,
    check: bool = True,
) -> Rollouts:
    """Draw group_size completions of every prompt.   Temperature 0 takes the likeliest token (recorded at temperature 1).

    A completion ends with `eos`, or where `stop` says so (see `TextTokenizer.stops_at`), or else after max_new_tokens tokens: then
    it is `truncated`.  With neither eos nor stop every completion has max_new_tokens tokens and none counts as truncated.
    check=False leaves out the look at all weights, for a caller that has just taken it.
    Raises ValueError for empty prompts, tokens outside the vocabulary, sequences longer than the model's context, and
    settings out of range; DivergenceError for weights or logits that are not finite or overflow.
    """
    if group_size < 1 or max_new_tokens < 1:
        both = f"group_size ({group_size}) and max_new_tokens ({max_new_tokens})"
        raise ValueError(f"{both} must be at least 1")
    if temperature != 0:
        check_temperature(temperature)
    if eos is not None and not 0 <= eos < model.config.vocab_size:
        raise ValueError(
            f"eos {eos} is outside the model's vocabulary of {model.config.vocab_size}"
        )
    if eos is not None and eos >= model.config.n_logits:
        raise ValueError(
            f"eos {eos} cannot be drawn: the model draws tokens below {model.config.n_logits}"
        )
    arrays = token_arrays(prompts, lambda i: f"prompt {i}")
    prompts = [
        (p if hasattr(p, "text") else ids).copy() for p, ids in zip(prompts, arrays, strict=True)
    ]  # the rollouts keep them
    if not prompts or any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("every prompt needs at least one token (and sampling at least one prompt)")
    longest = max(len(prompt) for prompt in prompts)
    for prompt in prompts:
        model.check(prompt, longest + max_new_tokens)

    if check:
        model.check_weights()
    batch = len(prompts) * group_size
    uniform = (
        rng.random((batch, max_new_tokens))
        if temperature > 0
        else np.zeros((batch, max_new_tokens))
    )
    tokens = np.full((batch, max_new_tokens), -1, dtype=np.int64)  # -1 past the end
    logp = np.zeros((batch, max_new_tokens))
    entropy = np.zeros((batch, max_new_tokens))
    ended = np.full(batch, eos is None and stop is None)

    cache = KVCache(model.config, prompts, batch, max_new_tokens, model.backend, model.dtype)
    logits = model.extend(
        cache.attend_in_prompts, cache.prompts.token, cache.prompts.position, cache.prompts.ends
    )  # (G,V)

    def complete(some: slice) -> None:
        rows = slice(some.start * group_size, some.stop * group_size)
        part, out = (
            cache.part(some, rows.stop - rows.start),
            (tokens[rows], logp[rows], entropy[rows], ended[rows]),
        )
        _complete(model, part, logits[some], uniform[rows], eos, stop, temperature, *out)

    run_lanes(
        [partial(complete, some) for some in _divide(model, logits, uniform[:, 0], temperature)]
    )
    if not np.isfinite(entropy).all():  # one logit that is not finite, and its row's entropy is not
        raise DivergenceError(OVERFLOW)
    length = (tokens >= 0).sum(1)
    parts = [tokens[i, :n] for i, n in enumerate(length.tolist())]
    completions = [parts[g * group_size : (g + 1) * group_size] for g in range(len(prompts))]
    tree = PrefixTree.from_groups(prompts, completions)
    count_passes(model.config, [(tree, np.arange(tree.n_nodes))], sample=1)
    present = tree.paths >= 0
    columns = present.shape[1]
    return Rollouts(
        prompts=prompts,
        completions=completions,
        tree=tree,
        logp=_on_nodes(tree, logp[:, :columns][present]).astype(model.dtype),
        entropy=_on_nodes(tree, entropy[:, :columns][present]),
        truncated=~ended,
        temperature=temperature if temperature > 0 else 1.0,
        max_new_tokens=max_new_tokens,
    )


def check_temperature(temperature: float) -> None:
    """Raise ValueError for one that cannot be meant: logits over it would overflow, or all be equal."""
    low, high = TEMPERATURES
    if not low <= temperature <= high:
        allowed = (
            f"from {low:g} to {high:g} (or 0 for the likeliest token, where nothing is trained)"
        )
        raise ValueError(f"temperature is {temperature}: it must be {allowed}")


def _divide(
    model: Transformer, logits: Array, uniform: np.ndarray, temperature: float
) -> list[slice]:
    """Prompts that are sampled side by side, if there is enough to do: the first tokens tell how much completions agree."""
    n_prompts, vocab_size = logits.shape
    if min(model.lanes, n_prompts) == 1:
        return [slice(0, n_prompts)]
    group = np.repeat(np.arange(n_prompts), len(uniform) // n_prompts)
    first, _, _ = _draw(model, logits.copy(), group, uniform, temperature)
    n_rows = len(_distinct(group * vocab_size + first, n_prompts * vocab_size))
    n = min(model.lanes, n_prompts, max(n_rows * model.config.dim // LANE_WORK, 1))
    return [slice(n_prompts * i // n, n_prompts * (i + 1) // n) for i in range(n)]


def _complete(
    model: Transformer,
    cache: KVCache,
    logits: Array,
    uniform: np.ndarray,
    eos: int | None,
    stop: Stop | None,
    temperature: float,
    tokens: np.ndarray,
    logp: np.ndarray,
    entropy: np.ndarray,
    ended: np.ndarray,
) -> None:
    """Write the tokens of all completions, their log-probabilities and entropies (B,T), and which ended of themselves (B,).

    logits (G,V): after each prompt of the cache.
    """
    batch, limit = tokens.shape
    vocab_size = model.config.vocab_size
    # A live row is a distinct prefix that somebody still continues.  At first: one a prompt, however many share it.
    row = np.repeat(
        np.arange(len(logits)), batch // len(logits)
    )  # (B,) the row each completion stands on
    live = np.arange(batch)  # completions that have not ended
    for step in range(limit):
        drawn, drawn_logp, drawn_entropy = _draw(
            model, logits, row[live], uniform[live, step], temperature
        )
        tokens[live, step], logp[live, step], entropy[live, step] = drawn, drawn_logp, drawn_entropy
        if eos is not None:
            ended[live] |= drawn == eos
        if stop is not None:
            ended[live] |= stop(tokens[live, : step + 1])
        if eos is not None or stop is not None:
            live, drawn = live[~ended[live]], drawn[~ended[live]]
        if not len(live) or step == limit - 1:
            break
        # A distinct (row, token) becomes a row.  Rows never mix groups, so there is no need to tell these apart.
        key = row[live] * vocab_size + drawn
        fork = _distinct(key, len(logits) * vocab_size)
        place, position = cache.fork(fork // vocab_size)
        row[live] = place[np.searchsorted(fork, key)]
        newest = np.empty(len(fork), dtype=np.int64)
        newest[place] = fork % vocab_size
        logits = model.extend(cache.attend, newest, position)  # (R,V)


def _distinct(key: np.ndarray, n: int) -> np.ndarray:
    """The distinct ones of keys below n, ascending; faster than sorting them."""
    present = np.zeros(n, dtype=bool)
    present[key] = True
    return np.flatnonzero(present)


def _draw(
    model: Transformer, logits: Array, row: np.ndarray, uniform: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One token for each completion, from its row's distribution by inversion: the first token whose cumulative probability
    exceeds its uniform number.   logits (R,V), row and uniform (n,) -> token, log-probability, entropy (n,) on the host
    """
    xp, host = model.backend.xp, model.backend.to_host
    n_rows, vocab_size = logits.shape
    where = model.backend.to_device(row)
    if temperature not in (0, 1):
        logits /= temperature
    logits -= logits.max(-1, keepdims=True)
    stretch = min(vocab_size, STRETCH)
    p = xp.zeros(
        (n_rows, -(-vocab_size // stretch), stretch), dtype=logits.dtype
    )  # exp(logits), padded with 0
    flat = p.reshape(n_rows, -1)[:, :vocab_size]
    xp.exp(logits, out=flat)
    mass = p.sum(-1, dtype=np.float64)  # (R, stretches)
    log_total = xp.log(mass.sum(-1, keepdims=True)).astype(logits.dtype)  # (R,1)
    entropy = log_total[:, 0] - xp.einsum("rv,rv->r", flat, logits) / mass.sum(-1)  # (R,)
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
    """The first place where a row of cumulative sums exceeds its threshold; if rounding leaves none, the last that adds something.

    cumulative (n,m), threshold (n,1) -> (n,)
    """
    xp = array_module(cumulative)
    return xp.minimum((cumulative <= threshold).sum(-1), (cumulative < cumulative[:, -1:]).sum(-1))


def _on_nodes(tree: PrefixTree, values: np.ndarray) -> np.ndarray:
    """Per-token values, equal for all members of a node, as one value a node.   (Σ|yᵢ|,) -> (N,)"""
    out = np.zeros(tree.n_nodes)
    out[tree.paths[tree.paths >= 0]] = values
    return out
