"""The prefix tree of a batch of rollouts: the one data structure of this package.

A *node* is a distinct (prefix, token).  Two completions of a group that agree up to and including position t pass through the
same node at t, so the members of a node are exactly the paper's *process set* λ(i, t), and `count` is |λ(i, t)|.  Everything
that the paper defines is a quantity on these nodes: process rewards are means over members, λ-GRPO divides by the count.

Prompts are in the tree too (its *trunk*), shared by all groups of the batch.  Below the end of a prompt nodes belong to one
group each: two groups never mix there, even if they have the same prompt.

Nodes are numbered depth first, rows (completions) in lexicographic order.  Row r shares its first `row_start[r]` nodes with
rows before it and adds the rest, which are then numbered one after the other.  All is built by one sort and array operations.

Source: Sullivan & Koller, "GRPO is Secretly a Process Reward Model", arXiv:2509.21154, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

MAX_TOKEN = 2**31 - 1
LONG = 1024  # tokens of a sequence that is checked by itself, since copying it would cost more
Tokens = Sequence[int] | np.ndarray  # token ids of one text


@dataclass(frozen=True)
class ProcessStep:
    """A process set λ and its step: the tokens start ≤ t < end that exactly these members share, after those of the parent."""

    members: tuple[int, ...]  # completions, ascending
    start: int  # s(λ), position in the completion
    end: int  # e(λ)
    parent: int | None  # index of the parent step in the list; None for the root
    nodes: tuple[int, ...]  # the node of every token of the step


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """A batch of B completions in G groups as N nodes.  Build it with `from_sequences` or `from_groups`.

    token, parent, depth   (N,) token id; parent node or -1; position in prompt + completion, counted from 0
    count                  (N,) |λ|: how many completions pass through the node
    group                  (N,) the group that owns the node, -1 in the trunk (prompts)
    scored                 (N,) bool: the node is a token of a completion (and, in a part made by `plan.split_tree`, is not context)
    paths                  (B,T) node of completion i at its position t, -1 past its end
    completion_group       (B,) group of each completion
    rows                   (B,L) node of row r at position t of prompt + completion, -1 past its end; rows are sorted
    row_start, row_end     (B,) row r adds the nodes at positions row_start ≤ t < row_end; the earlier ones it shares
    """

    token: np.ndarray
    parent: np.ndarray
    depth: np.ndarray
    count: np.ndarray
    group: np.ndarray
    scored: np.ndarray
    paths: np.ndarray
    completion_group: np.ndarray
    rows: np.ndarray
    row_start: np.ndarray
    row_end: np.ndarray

    # -- building ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_sequences(cls, sequences: Sequence[Tokens]) -> PrefixTree:
        """The tree of one group, completions only.   sequences: k one-dimensional int sequences, possibly empty or equal.

        Raises ValueError for an empty group, and for token ids that are not integers in [0, 2**31).
        """
        return cls.from_groups([()], [sequences])

    @classmethod
    def from_groups(
        cls,
        prompts: Sequence[Tokens],
        completions: Sequence[Sequence[Tokens]],
        *,
        merge: bool = True,
    ) -> PrefixTree:
        """The tree of a batch.   prompts: G sequences; completions: G lists of sequences (groups may differ in size).

        Completions are numbered through, group after group.  With merge=False nothing is shared: every completion has its own
        copy of its prompt and tokens (the usual "flat" batch, as a degenerate tree).
        """
        if len(prompts) != len(completions):
            raise ValueError(
                f"{len(prompts)} prompts but {len(completions)} groups of completions: give one group a prompt"
            )
        sizes = np.array([len(group) for group in completions], dtype=np.int64)
        if not len(sizes) or not sizes.all():
            empty = f"group {int(np.argmin(sizes))}" if len(sizes) else "the batch"
            raise ValueError(f"{empty} has no completions: a tree needs at least one")
        group = np.repeat(np.arange(len(prompts)), sizes)  # (B,)
        prompt_arrays = token_arrays(prompts, lambda i: f"prompt {i}")
        within = np.arange(len(group)) - (np.cumsum(sizes) - sizes)[group]
        parts = token_arrays(
            list(chain(*completions)), lambda i: f"completion {within[i]} of group {group[i]}"
        )
        prompt_length = np.array([len(p) for p in prompt_arrays], dtype=np.int64)[group]  # (B,)
        length = prompt_length + [len(p) for p in parts]  # (B,)

        # One row a completion: prompt, a marker of its own for every group, completion.  0 pads, so tokens are shifted by one.
        width = int(length.max()) + 1
        column = np.arange(width)
        symbols = np.zeros((len(group), width), dtype=np.uint32)  # (B,L+1)
        markers = (MAX_TOKEN + 1 + np.arange(len(prompts), dtype=np.int64))[:, None]
        filled = [
            piece
            for g, p in zip(group.tolist(), parts, strict=True)
            for piece in (prompt_arrays[g], markers[g], p)
        ]
        symbols[column <= length[:, None]] = np.concatenate(filled) + 1
        order, same = _sort_rows(symbols, length + 1)
        symbols, prompt_length, length, row_group = (
            symbols[order],
            prompt_length[order],
            length[order],
            group[order],
        )

        # How much of each row is shared with the row before it.  The marker is no token: it only keeps groups apart.
        start = np.zeros(len(group), dtype=np.int64)
        if merge:
            start[1:] = same - (same > prompt_length[1:])
        column = column[:-1]
        without_marker = column + (column >= prompt_length[:, None])  # (B,L)
        tokens = symbols[np.arange(len(symbols))[:, None], without_marker].astype(np.int64) - 1

        # Row r numbers its new nodes from first[r]; at position t it passes through the node of the last row that was new there.
        added = length - start
        first = np.cumsum(added) - added
        base = np.where(start[:, None] <= column, (first - start)[:, None], -1)
        rows = (
            np.maximum.accumulate(base, axis=0) + column
        )  # (B,L): first - start never decreases down the rows
        inside = column < length[:, None]
        rows[~inside] = -1

        new = inside & (column >= start[:, None])
        n_nodes = int(added.sum())
        parent = np.arange(n_nodes) - 1
        has_new = added > 0
        heads = np.flatnonzero(has_new)
        parent[first[heads]] = np.where(start[heads] > 0, rows[heads, start[heads] - 1], -1)
        owner = np.repeat(np.arange(len(rows)), added)  # (N,) the row that added the node
        depth = np.nonzero(new)[1]
        scored = depth >= prompt_length[owner]

        n_positions = int((length - prompt_length).max())
        position = np.arange(n_positions) + prompt_length[:, None]
        paths = np.full((len(rows), n_positions), -1, dtype=np.int64)
        present = position < length[:, None]
        paths[present] = rows[np.nonzero(present)[0], position[present]]
        unsorted = np.empty_like(paths)
        unsorted[order] = paths
        return cls(
            token=tokens[new],
            parent=parent,
            depth=depth,
            count=np.bincount(rows[inside], minlength=n_nodes),
            group=np.where(scored, row_group[owner], -1),
            scored=scored,
            paths=unsorted,
            completion_group=group,
            rows=rows,
            row_start=start,
            row_end=length,
        )

    # -- sizes -------------------------------------------------------------------------------------------------------

    @property
    def n_nodes(self) -> int:
        """N, the number of distinct (prefix, token), prompts included."""
        return len(self.token)

    @property
    def n_groups(self) -> int:
        """G, the number of groups."""
        return int(self.completion_group[-1]) + 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """(B,) tokens of each completion."""
        return (self.paths >= 0).sum(1)

    @cached_property
    def group_sizes(self) -> np.ndarray:
        """(G,) completions of each group: k."""
        return np.bincount(self.completion_group)

    # -- sums over members -------------------------------------------------------------------------------------------

    @cached_property
    def _nodes_of_tokens(self) -> np.ndarray:
        return self.paths[self.paths >= 0]  # (Σ|yᵢ|,) completion after completion

    def sum_over_members(self, values: np.ndarray) -> np.ndarray:
        """Σ_{i ∈ λ(node)} values[i]: the one operation by which a number of a completion reaches nodes.   (B,) -> (N,) float64"""
        return np.bincount(
            self._nodes_of_tokens, np.repeat(values, self.lengths), minlength=self.n_nodes
        )

    def on_tokens(self, values: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """Read a quantity on nodes along every completion.   (N,) -> (B,T), `fill` past the end"""
        out = np.full(self.paths.shape, fill, dtype=values.dtype)
        out[self.paths >= 0] = values[self._nodes_of_tokens]
        return out

    def members(self, node: int) -> np.ndarray:
        """The process set of a node: the completions that pass through it, ascending."""
        return np.flatnonzero((self.paths == node).any(1))

    # -- process steps -----------------------------------------------------------------------------------------------

    @cached_property
    def is_step_head(self) -> np.ndarray:
        """(N,) bool: the first token of a process step, where the process set is smaller than the parent's."""
        parent = np.maximum(self.parent, 0)
        inherits = (
            (self.parent >= 0)
            & (self.group[parent] == self.group)
            & (self.count[parent] == self.count)
        )
        return (self.group >= 0) & ~inherits

    @cached_property
    def is_leaf_step(self) -> np.ndarray:
        """(N,) bool: the node's process step is a leaf, so nothing in the batch continues after that step."""
        step = (
            np.cumsum(self.is_step_head) - 1
        )  # the nodes of a step are numbered one after the other
        inner = np.zeros(self.n_nodes, dtype=bool)
        inner[self.parent[self.parent >= 0]] = True
        is_open = np.zeros(self.n_nodes + 1, dtype=bool)
        steps = self.group >= 0
        is_open[step[steps & ~inner]] = True  # only the last node of a step can be without children
        return steps & is_open[step]

    def steps(self, group: int = 0) -> list[ProcessStep]:
        """B(G), path-compressed: the process sets of a group with their steps, parents before children; the root comes first.

        The root is the whole group; its step is empty when the completions differ from the first token on.  (Paper, section 3.)
        Raises ValueError for a group that does not exist.
        """
        everyone = tuple(np.flatnonzero(self.completion_group == group).tolist())
        if not everyone:
            raise ValueError(
                f"there is no group {group}: the tree has {self.n_groups}, counted from 0"
            )
        nodes = np.flatnonzero(self.group == group)
        if not len(nodes):
            return [ProcessStep(everyone, 0, 0, None, ())]
        origin = int(
            self.depth[nodes[0]]
        )  # prompt length: the first node of a group is the first token of its first row
        heads = nodes[self.is_step_head[nodes]]
        bounds = np.append(np.searchsorted(nodes, heads), len(nodes))
        steps: list[ProcessStep] = []
        if self.count[heads[0]] < len(everyone):
            steps.append(ProcessStep(everyone, 0, 0, None, ()))
        index_of: dict[int, int] = {}
        for head, lo, hi in zip(
            heads.tolist(), bounds[:-1].tolist(), bounds[1:].tolist(), strict=True
        ):
            chain = tuple(nodes[lo:hi].tolist())
            start = int(self.depth[head]) - origin
            parent = index_of.get(int(self.parent[head]), 0 if steps else None)
            index_of.update(dict.fromkeys(chain, len(steps)))
            steps.append(
                ProcessStep(
                    tuple(self.members(head).tolist()), start, start + len(chain), parent, chain
                )
            )
        return steps

    # -- the statistics of section 3.2 -------------------------------------------------------------------------------

    @cached_property
    def path_depth(self) -> np.ndarray:
        """(B,) number of intermediate process sets between the root and each completion's leaf."""
        root = (
            self.count == self.group_sizes[self.group]
        )  # nodes of the whole group; leaves and roots are not in between
        between = self.is_step_head & ~root & ~self.is_leaf_step
        return self.on_tokens(between.astype(np.int64)).sum(1)

    @cached_property
    def intermediate_proportion(self) -> np.ndarray:
        """(B,) share of each completion's tokens that lie in non-leaf process steps; 0 for an empty completion."""
        inner = self.on_tokens((~self.is_leaf_step).astype(np.int64)).sum(1)
        return inner / np.maximum(self.lengths, 1)

    @cached_property
    def is_flat(self) -> np.ndarray:
        """(G,) bool: no two completions of the group share a first token, so the group has no structure."""
        largest = np.zeros(self.n_groups, dtype=np.int64)
        np.maximum.at(largest, self.group[self.scored], self.count[self.scored])
        return largest <= 1


def lambda_weights(sequences: Sequence[Tokens]) -> list[np.ndarray]:
    """The weights of λ-GRPO for one group: 1/|λ(i,t)| for every token.   k int sequences -> k float64 arrays of their lengths

    |λ(i,t)| is the number of completions that share completion i up to and including token t, that is, of those whose common
    prefix with i is longer than t.  Leave out completions that the loss masks: |λ| counts members that count.  (Paper, section 4.)
    Raises ValueError as `PrefixTree.from_sequences` does.
    """
    rows = token_arrays(sequences, lambda i: f"completion {i} of group 0")
    k, length = len(rows), np.array([len(row) for row in rows], dtype=np.int64)
    if not k:
        raise ValueError("group 0 has no completions: a tree needs at least one")
    symbols = np.full(
        (k, int(length.max()) + 1), MAX_TOKEN + 1, dtype=np.uint32
    )  # what pads is no token
    for symbol, row in zip(symbols, rows, strict=True):
        symbol[: len(row)] = row
    order, same = _sort_rows(symbols, length)
    weights = np.ones(
        symbols.shape
    )  # of the rows in order, in which a process set is a run of rows
    growing = [
        (0, 0)
    ]  # sets that the next row may join: (end of the step, first row), shorter steps first
    for row, common in enumerate([*same.tolist(), 0], start=1):
        first = row - 1
        while growing[-1][0] > common:
            end, first = growing.pop()
            weights[first:row, max(growing[-1][0], common) : end] = 1 / (row - first)
        if growing[-1][0] < common:
            growing.append((common, first))
    return [
        weights[row, :n] for row, n in zip(np.argsort(order).tolist(), length.tolist(), strict=True)
    ]


def _sort_rows(symbols: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lexicographic order of padded rows of symbols, and what each shares with the one before.   (B,L) -> (B,), (B-1,)"""
    big_endian = symbols.astype(">u4")  # comparing bytes then compares symbols
    order = np.argsort(big_endian.view(f"V{4 * symbols.shape[1]}").ravel(), kind="stable")
    in_order = symbols[order]
    differs = in_order[1:] != in_order[:-1]
    first = differs.argmax(1)
    return order, np.where(differs[np.arange(len(first)), first], first, length[order[1:]])


def token_arrays(sequences: Sequence[Tokens], name: Callable[[int], str]) -> list[np.ndarray]:
    """Token ids as int64.   Raises ValueError, calling a sequence by its name(i), unless they are integers in [0, 2**31)."""
    arrays = [np.asarray(sequence) for sequence in sequences]
    for i, array in enumerate(arrays):
        if array.size and (array.ndim != 1 or array.dtype.kind not in "iu"):
            raise ValueError(
                f"{name(i)} must be a one-dimensional sequence of token ids (integers), "
                f"not {array.dtype} of {array.ndim} dimensions"
            )
    short = [array for array in arrays if 0 < array.size < LONG]
    pieces = [array for array in arrays if array.size >= LONG] + (
        [np.concatenate(short)] if short else []
    )
    if any(
        piece.astype(np.int64, copy=False).view(np.uint64).max() > MAX_TOKEN for piece in pieces
    ):  # -1 reads as 2**64 - 1
        i = next(
            i
            for i, array in enumerate(arrays)
            if array.size and (array.min() < 0 or array.max() > MAX_TOKEN)
        )
        raise ValueError(
            f"{name(i)} holds a token id outside [0, 2**31): {int(arrays[i].min())} … {int(arrays[i].max())}"
        )
    return [array.astype(np.int64, copy=False).ravel() for array in arrays]
