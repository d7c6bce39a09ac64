"""Rollouts: k completions of every prompt, sampled together as a growing tree of prefixes.

A completion is drawn token by token from softmax(logits / temperature).  Completions of a group
that agree so far stand on the same node, which is computed once; they part when they draw different
tokens.  The keys and values of every node are computed once and kept in a cache, so a step runs the
model on the newest nodes only.

Uniform random numbers are drawn on the host, one per completion and position, before sampling
starts: what a completion draws depends neither on who else is in the batch nor on when the others
stop.  Top-k and top-p are left out on purpose: they change the distribution, so the recorded
probabilities would not be those of the policy that is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from minigrpo.engine.divergence import OVERFLOW, DivergenceError
from minigrpo.engine.draw import check_temperature, divide, draw_tokens, has_ended
from minigrpo.engine.kv_cache import KVCache
from minigrpo.engine.lanes import limited, run_lanes
from minigrpo.engine.profiling import count_passes, timed
from minigrpo.transformer import Transformer
from minigrpo.tree import PrefixTree, Rollouts, Tokens, token_arrays

Stop = Callable[[np.ndarray], np.ndarray]  # tokens so far (n,t) -> which completions end (n,)
End = int | Stop  # what ends a completion before its length does: a token, or a rule


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
    eos: End | tuple[End | None, ...] | None = None,
    temperature: float = 1.0,
) -> Rollouts:
    """Draw group_size completions of every prompt.   prompts: G int sequences

    A completion ends with the token `eos`, or after max_new_tokens tokens: then it is `truncated`.
    eos may also be a rule, a function of the tokens so far (n,t) that says which of n completions
    end (n,), as `TextTokenizer.stops_at` makes, or a tuple of tokens and rules.  Without eos all
    have max_new_tokens tokens and none counts as truncated.  Temperature 0 takes the likeliest
    token, and records probabilities at temperature 1.
    Raises ValueError for empty prompts, tokens outside the vocabulary, sequences longer than the
    model's context, and settings out of range; DivergenceError for weights or logits that are not
    finite or overflow.
    >>> model, rng = mg.Transformer(mg.TransformerConfig(vocab_size=10)), np.random.default_rng(0)
    >>> rollouts = mg.sample(model, [[1, 2], [3]], 4, rng, max_new_tokens=6, eos=9)
    >>> [len(group) for group in rollouts.completions]  # two prompts with four completions each
    [4, 4]
    """
    ends = [end for end in (eos if isinstance(eos, tuple | list) else (eos,)) if end is not None]
    if min(group_size, max_new_tokens) < 1:
        both = f"group_size ({group_size}) and max_new_tokens ({max_new_tokens})"
        raise ValueError(f"{both} must be at least 1")
    check_temperature(temperature or 1.0)
    prompts = _checked(model, prompts, max_new_tokens, ends)
    shape = len(prompts) * group_size, max_new_tokens  # (B,T)
    uniform = rng.random(shape) if temperature > 0 else np.zeros(shape)
    tokens, logp, entropy = np.full(shape, -1), np.zeros(shape), np.zeros(shape)
    ended = np.zeros(shape[0], dtype=bool)

    cache = KVCache(model.config, prompts, max_new_tokens, model.backend, model.dtype)
    plan = cache.prompts
    logits = model.extend(cache.attend_in_prompts, plan.token, plan.position, plan.ends)  # (G,V)

    def grow(some: slice) -> None:
        """Grow the tree after some of the prompts, token by token."""
        live = np.arange(some.start * group_size, some.stop * group_size)  # who has not ended
        row = live // group_size - some.start  # the prefix that each stands on, at first its prompt
        lane, after_rows = cache.part(some), logits[some]
        for t in range(max_new_tokens):
            drawn = draw_tokens(model.backend, after_rows, row, uniform[live, t], temperature)
            tokens[live, t], logp[live, t], entropy[live, t] = drawn
            for end in ends:
                ended[live] |= has_ended(end, tokens[live, : t + 1])
            going = ~ended[live]
            row, live = row[going], live[going]
            if not len(live) or t + 1 == max_new_tokens:
                break
            row, newest, position = lane.fork(row, tokens[live, t])
            after_rows = model.extend(lane.attend, newest, position)  # (rows,V)

    run_lanes([partial(grow, some) for some in divide(model, logits, uniform, temperature)])
    if not np.isfinite(entropy).all():  # as it is where one logit is not finite
        raise DivergenceError(OVERFLOW)

    present = tokens >= 0  # (B,T)
    parts = [row[:n] for row, n in zip(tokens, present.sum(1).tolist(), strict=True)]
    completions = [parts[i : i + group_size] for i in range(0, len(parts), group_size)]
    tree = PrefixTree.from_groups(prompts, completions)
    count_passes(model.config, [(tree, np.arange(tree.n_nodes))], sample=1)
    on_nodes = np.zeros((2, tree.n_nodes))
    on_nodes[:, tree.paths[tree.paths >= 0]] = logp[present], entropy[present]
    return Rollouts(
        prompts=prompts,
        completions=completions,
        tree=tree,
        logp=on_nodes[0].astype(model.dtype),
        entropy=on_nodes[1],
        truncated=~ended & bool(ends),
        temperature=temperature if temperature > 0 else 1.0,
        max_new_tokens=max_new_tokens,
    )


def _checked(
    model: Transformer, prompts: Sequence[Tokens], max_new_tokens: int, ends: Sequence[End]
) -> list[np.ndarray]:
    """Check what `sample` is given, and copy the prompts, which the rollouts keep."""
    size, drawable = model.config.vocab_size, model.config.n_logits
    for end in ends:
        if not callable(end) and not 0 <= end < drawable:
            outside = f"is outside the model's vocabulary of {size}"
            masked = f"cannot be drawn: the model draws tokens below {drawable}"
            raise ValueError(f"eos {end} {masked if drawable <= end < size else outside}")
    arrays = token_arrays(prompts, lambda i: f"prompt {i}")
    if not arrays or not all(map(len, arrays)):
        raise ValueError("every prompt needs at least one token (and sampling at least one prompt)")
    model.check(np.concatenate(arrays), max(map(len, arrays)) + max_new_tokens)
    model.check_weights()
    pairs: Any = zip(prompts, arrays, strict=True)  # a prompt made from a text remembers it
    return [(prompt if hasattr(prompt, "text") else ids).copy() for prompt, ids in pairs]
