"""Keys and values while completions are sampled: once per prompt, and one row per live prefix.

All live rows have the same number of new tokens, since all completions begin together and those
that have ended are dropped: rows need no padding.  A row that one completion continues stays where
it is; a fork copies the row.  The rows of one prompt read its keys in one product.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from minigrpo.engine.backend import Array, Backend
from minigrpo.engine.blocks import AttentionBlock, block_attention
from minigrpo.engine.parameters import TransformerConfig
from minigrpo.engine.plan import plan_attention
from minigrpo.tree import PrefixTree


@dataclass(frozen=True, eq=False)
class PromptPlan:
    """G prompts as one tree, in which what they share is computed once."""

    token: np.ndarray  # (M,) of the distinct nodes
    position: np.ndarray  # (M,)
    blocks: tuple[AttentionBlock, ...]  # attention among them
    length: np.ndarray  # (G,) tokens of each prompt
    nodes: Array  # (G,P) the nodes of each prompt, padded
    mask: np.ndarray | None  # (G,P) 0, or -inf for padding; None without padding
    ends: Array  # (G,) the last node of each prompt


@lru_cache(maxsize=16)  # many a task has few prompts
def plan_prompts(prompts: tuple[bytes, ...], backend: Backend, dtype: np.dtype) -> PromptPlan:
    """Plan the pass over the prompts, given as the bytes of int64 tokens."""
    tokens = [np.frombuffer(prompt, dtype=np.int64) for prompt in prompts]
    # With one more token after each prompt, the nodes of the prompts are the inner nodes of a tree.
    tree = PrefixTree.from_groups(tokens, [[[0]]] * len(tokens))
    inner = ~tree.scored
    number = np.cumsum(inner) - 1  # (N,) slot among the prompts' nodes
    length = np.array([len(prompt) for prompt in tokens])
    after = tree.paths[:, 0]  # (G,) the token after each prompt, the last node of the prompt's row
    row = np.searchsorted(tree.rows.max(1), after)
    padding = np.arange(length.max()) >= length[:, None]  # (G,P)
    return PromptPlan(
        token=tree.token[inner],
        position=tree.depth[inner],
        blocks=plan_attention(tree, backend, dtype),
        length=length,
        nodes=backend.to_device(np.where(padding, 0, number[tree.rows[row, : length.max()]])),
        mask=np.where(padding, -np.inf, 0.0) if padding.any() else None,
        ends=backend.to_device(number[tree.parent[after]]),
    )


class KVCache:
    """Keys and values of G prompts and of what is sampled after them: at first one row per prompt.

    prompt_keys, prompt_values   (G,K,P,E) per layer, padded to the longest prompt
    generated                    (L,2,n,K,max_new,E) keys and values of new tokens, from a fork on
    length                       T, the number of new tokens of each live row
    group                        (n,) the prompt of each of the n live rows, on the host
    """

    def __init__(
        self,
        config: TransformerConfig,
        prompts: list[np.ndarray],
        max_new: int,
        backend: Backend,
        dtype: np.dtype,
    ) -> None:
        self.backend, self.dtype = backend, dtype
        self.prompts = plan_prompts(tuple(p.tobytes() for p in prompts), backend, dtype)
        self.config, self.max_new = config, max_new
        self.prompt_keys: list[Array] = []
        self.prompt_values: list[Array] = []
        self.length = 0
        self._regroup(np.arange(len(prompts)))

    def part(self, some: slice) -> KVCache:
        """A cache for some of the prompts, with their keys and values; before the first fork."""
        if some == slice(0, len(self.group)):
            return self
        other, prompts = copy(self), self.prompts
        mask = None if prompts.mask is None else prompts.mask[some]
        other.prompts = replace(prompts, length=prompts.length[some], mask=mask)
        other.prompt_keys = [x[some] for x in self.prompt_keys]
        other.prompt_values = [x[some] for x in self.prompt_values]
        other._regroup(np.arange(len(other.prompts.length)))
        return other

    def attend_in_prompts(self, layer: int, q: Array, k: Array, v: Array, y: Array) -> None:
        """Attention among the prompts' nodes, as `block_attention`, with keys and values kept."""
        for block in self.prompts.blocks:
            block_attention(q, k, v, block, y)
        for x, kept in ((k, self.prompt_keys), (v, self.prompt_values)):
            by_prompt = x[self.prompts.nodes].transpose(0, 2, 1, 3)  # (G,K,P,E)
            kept.append(self.backend.xp.ascontiguousarray(by_prompt))

    def attend(self, layer: int, q: Array, k: Array, v: Array, y: Array) -> None:
        """y[row] = softmax(q kᵀ/√E) v over the keys of the row's prompt and its own.

        Adds the key and value of each row's newest token.   q and y (n,H,E), k and v (n,K,E)
        """
        xp, n, width = self.backend.xp, len(q), q.shape[2]
        keys, values = (self.generated[layer, i, :n, :, : self.length] for i in (0, 1))  # (n,K,T,E)
        keys[:, :, -1], values[:, :, -1] = k, v
        prompt_keys, prompt_values = self.prompt_keys[layer], self.prompt_values[layer]
        n_prompts, kv_heads, n_keys, _ = prompt_keys.shape
        q = q.reshape(n, kv_heads, -1, width) * (1 / math.sqrt(width))  # (n,K,H/K,E)
        per_kv, most = q.shape[2], self._row.shape[1]

        def by_prompt(x: Array) -> Array:
            """(n,K,H/K,…) -> (G,K,H/K·R,…)"""
            x = x[self._row].transpose(0, 2, 3, 1, 4)  # (G,K,H/K,R,…)
            return x.reshape(n_prompts, kv_heads, per_kv * most, -1)

        def by_row(x: Array) -> Array:
            """(G,K,H/K·R,…) -> (n,K,H/K,…)"""
            x = x.reshape(n_prompts, kv_heads, per_kv, most, -1).transpose(0, 3, 1, 2, 4)
            return x.reshape(n_prompts * most, kv_heads, per_kv, -1)[self._slot]

        p = xp.empty((*q.shape[:3], n_keys + self.length), dtype=q.dtype)  # (n,K,H/K,P+T)
        to_prompt, to_own = p[..., :n_keys], p[..., n_keys:]
        to_prompt[...] = by_row(by_prompt(q) @ prompt_keys.swapaxes(-1, -2))
        if self._mask is not None:
            to_prompt += self._mask
        xp.matmul(q, keys.swapaxes(-1, -2), out=to_own)
        p -= p.max(-1, keepdims=True)
        xp.exp(p, out=p)
        p /= p.sum(-1, keepdims=True)
        o = to_own @ values  # (n,K,H/K,E)
        o += by_row(by_prompt(to_prompt) @ prompt_values)
        y[...] = o.reshape(y.shape)

    def fork(self, row: np.ndarray, token: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every distinct (row, token) becomes a row with room for one more token.

        row and token of each completion that goes on -> its new row; token and position per row

        The first child of a row stays in its slot if that slot is still used; the others take the
        places that become free.  Groups share no row, so there is no need to tell them apart.
        """
        if self.length == 0:  # no later fork has more rows than completions go on now
            c = self.config
            shape = c.n_layers, 2, len(row), c.n_kv_heads, self.max_new, c.head_dim
            self.generated = self.backend.xp.empty(shape, dtype=self.dtype)
        stride = int(token.max()) + 1
        key = row * stride + token
        present = np.zeros(len(self.group) * stride, dtype=bool)
        present[key] = True
        distinct = np.flatnonzero(present)  # in order, and faster than sorting
        parent, n = distinct // stride, len(distinct)
        stays = np.append(True, parent[1:] != parent[:-1]) & (parent < n)
        slot = parent.copy()
        free = np.ones(n, dtype=bool)
        free[parent[stays]] = False
        slot[~stays] = np.flatnonzero(free)
        if not stays.all() and self.length:
            into, source = (self.backend.to_device(x[~stays]) for x in (slot, parent))
            filled = self.generated[..., : self.length, :]
            filled[:, :, into] = filled[:, :, source]
        if n != len(self.group) or not stays.all():
            group = np.empty(n, dtype=np.int64)
            group[slot] = self.group[parent]
            self._regroup(group)
        self.length += 1
        newest = np.empty(n, dtype=np.int64)
        newest[slot] = distinct % stride
        position = self.prompts.length[self.group] + (self.length - 1)
        return slot[np.searchsorted(distinct, key)], newest, position

    def _regroup(self, group: np.ndarray) -> None:
        """Note which of the n rows read which prompt, at most R rows each.   group (n,)

        _row    (G,R) the rows of each prompt; padding repeats row 0
        _slot  (n,) the slot of each row in the flattened (G·R)
        _mask   (n,1,1,P) 0 where a row's prompt has a key, -inf for padding; None without padding
        """
        self.group = group
        device, mask = self.backend.to_device, self.prompts.mask
        count = np.bincount(group, minlength=len(self.prompts.length))
        present = np.arange(count.max()) < count[:, None]  # (G,R)
        row = np.zeros(present.shape, dtype=np.int64)
        row[present] = np.argsort(group, kind="stable")
        slot = np.empty(len(group), dtype=np.int64)
        slot[row[present]] = np.flatnonzero(present)
        self._row, self._slot = device(row), device(slot)
        if mask is not None:
            mask = device(mask[group][:, None, None], dtype=self.dtype)
        self._mask = mask
