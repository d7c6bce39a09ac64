"""Keys and values while completions are sampled: those of a prompt once, and one row for every distinct live prefix.

All live rows have the same number of new tokens, since all completions begin together and those that have ended are dropped.  So
rows need no padding, and their keys are one slice.  A row that only one completion goes on with stays where it is; a fork copies
the row.  Queries of the rows of one prompt read the prompt's keys together, as one matrix product.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from minigrpo.engine.backend import Backend
from minigrpo.engine.parameters import TransformerConfig
from minigrpo.engine.plan import plan_attention
from minigrpo.ops import Array, AttentionBlock, CachedRows, attention, attention_to_cache
from minigrpo.tree import PrefixTree


@dataclass(frozen=True, eq=False)
class PromptPlan:
    """G prompts as one tree, in which what they share is computed once.

    token, position   (M,) of the distinct nodes (host)
    blocks            attention among them
    length            (G,) tokens of each prompt (host)
    nodes             (G,P) the nodes of each prompt, padded
    mask              (G,P) 0, -inf for padding (host); None where nothing is padded
    ends              (G,) the last node of each prompt
    """

    token: np.ndarray
    position: np.ndarray
    blocks: tuple[AttentionBlock, ...]
    length: np.ndarray
    nodes: Array
    mask: np.ndarray | None
    ends: Array


def plan_prompts(prompts: list[np.ndarray], backend: Backend, dtype: np.dtype) -> PromptPlan:
    """Plan the run over the prompts; the last few plans are remembered, since many a task has few prompts."""
    return _plan_prompts(tuple(prompt.tobytes() for prompt in prompts), backend, dtype)


@lru_cache(maxsize=16)
def _plan_prompts(prompts: tuple[bytes, ...], backend: Backend, dtype: np.dtype) -> PromptPlan:
    tokens = [np.frombuffer(prompt, dtype=np.int64) for prompt in prompts]
    tree = PrefixTree.from_groups(
        tokens, [[[0]]] * len(tokens)
    )  # a token after each prompt: its nodes are then inner nodes
    inner = ~tree.scored
    length = np.array([len(prompt) for prompt in tokens])
    after = tree.paths[:, 0]  # (G,) the token after each prompt, the last node of the prompt's row
    row = np.searchsorted(tree.rows.max(1), after)
    number = np.append(
        np.cumsum(inner) - 1, 0
    )  # place among the prompts' nodes; the last is for padding
    padding = np.arange(length.max()) >= length[:, None]  # (G,P)
    return PromptPlan(
        token=tree.token[inner],
        position=tree.depth[inner],
        blocks=plan_attention(tree, backend, dtype, differentiable=False),
        length=length,
        nodes=backend.to_device(np.where(padding, 0, number[tree.rows[row, : length.max()]])),
        mask=np.where(padding, -np.inf, 0.0) if padding.any() else None,
        ends=backend.to_device(number[tree.parent[after]]),
    )


class KVCache:
    """Keys and values of G prompts and of what is sampled after them: at first a row a prompt, then up to max_rows.

    prompt_keys, prompt_values   for each layer (G,K,P,E), padded to the longest prompt; filled by `attend_in_prompts`
    own                          (L,2,max_rows,K,max_new,E) keys and values of new tokens, made by the first fork; rows 0 … R-1 live
    group                        (R,) the prompt of each live row (host)
    """

    def __init__(
        self,
        config: TransformerConfig,
        prompts: list[np.ndarray],
        max_rows: int,
        max_new: int,
        backend: Backend,
        dtype: np.dtype,
    ) -> None:
        self.backend, self.dtype = backend, dtype
        self.prompts = plan_prompts(prompts, backend, dtype)
        self._room = config.n_layers, 2, max_rows, config.n_kv_heads, max_new, config.head_dim
        self.prompt_keys: list[Array] = []
        self.prompt_values: list[Array] = []
        self.length = 0  # new tokens of each live row
        self._regroup(np.arange(len(prompts)))

    def part(self, some: slice, max_rows: int) -> KVCache:
        """A cache for some of the prompts, with their keys and values; before the first fork."""
        if some == slice(0, len(self.group)):
            return self
        other, mask = copy(self), self.prompts.mask
        other.prompts = replace(
            self.prompts,
            length=self.prompts.length[some],
            mask=None if mask is None else mask[some],
        )
        other.prompt_keys, other.prompt_values = (
            [x[some] for x in kept] for kept in (self.prompt_keys, self.prompt_values)
        )
        other._room = (*self._room[:2], max_rows, *self._room[3:])
        other._regroup(np.arange(len(other.prompts.length)))
        return other

    def attend_in_prompts(self, layer: int, q: Array, k: Array, v: Array, y: Array) -> None:
        """Attention among the prompts' nodes, whose keys and values are kept.   q, k, v, y as in `ops.attention`"""
        for block in self.prompts.blocks:
            attention(q, k, v, block, y)
        xp = self.backend.xp
        self.prompt_keys.append(
            xp.ascontiguousarray(k[self.prompts.nodes].transpose(0, 2, 1, 3))
        )  # (G,K,P,E)
        self.prompt_values.append(xp.ascontiguousarray(v[self.prompts.nodes].transpose(0, 2, 1, 3)))

    def attend(self, layer: int, q: Array, k: Array, v: Array, y: Array) -> None:
        """Attention of the newest token of each row, whose key and value are kept.   q (R,H,E), k and v (R,K,E) -> y (R,H,E)"""
        keys, values = (
            self.own[layer, kind, : len(q), :, : self.length] for kind in (0, 1)
        )  # (R,K,S,E)
        keys[:, :, -1], values[:, :, -1] = k, v
        attention_to_cache(
            q, self.prompt_keys[layer], self.prompt_values[layer], keys, values, self.rows, y
        )

    def fork(self, parent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Make room for one more token of the rows that go on.   parent (R',): the old row of each new one, ascending

        -> (R',) the new rows' places, (R',) position of the new token by place.  The first child of a row stays in its place if
        that place is still used; the others take the places that become free.
        """
        if self.length == 0:
            self.own = self.backend.xp.empty(self._room, dtype=self.dtype)
        n = len(parent)
        stays = np.append(True, parent[1:] != parent[:-1]) & (parent < n)
        place = parent.copy()
        taken = np.zeros(n, dtype=bool)
        taken[parent[stays]] = True
        place[~stays] = np.flatnonzero(~taken)
        if not stays.all() and self.length:
            into, source = (
                self.backend.to_device(rows) for rows in (place[~stays], parent[~stays])
            )
            self.own[:, :, into, :, : self.length] = self.own[:, :, source, :, : self.length]
        if n != len(self.group) or not stays.all():
            group = np.empty(n, dtype=np.int64)
            group[place] = self.group[parent]
            self._regroup(group)
        self.length += 1
        return place, self.prompts.length[self.group] + (self.length - 1)

    def _regroup(self, group: np.ndarray) -> None:
        """Which rows read which prompt.   group (R,)"""
        self.group = group
        device = self.backend.to_device
        count = np.bincount(group, minlength=len(self.prompts.length))
        order = np.argsort(group, kind="stable")
        width = int(count.max())
        first = np.cumsum(count) - count
        index = np.arange(len(group)) - first[group[order]]  # place within the group
        place = np.empty(len(group), dtype=np.int64)
        place[order] = group[order] * width + index
        query = np.zeros(len(count) * width, dtype=np.int64)
        query[place] = np.arange(len(group))
        mask = self.prompts.mask
        mask = None if mask is None else device(mask[group][:, None, None], dtype=self.dtype)
        self.rows = CachedRows(device(query.reshape(-1, width)), device(place), mask)
