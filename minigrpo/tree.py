"""The prefix tree of a batch of rollouts: the one data structure of this package.

A *node* is a distinct (prefix, token).  Three completions, with the tokens a b c d e = 1 2 3 4 5:

    completion 0:  a b c          a ─┬─ b ─┬─ c
    completion 1:  a b d             │     └─ d
    completion 2:  a e               └─ e

Completions of a group that agree up to and including position t pass through the same node at t.
The members of a node are therefore the paper's *process set* λ(i,t), and everything that the paper
defines is a quantity on nodes: process rewards are means over members, λ-GRPO divides by the count.

Prompts are in the tree too, as its *trunk*, in which groups share what their prompts share.  Below
the end of its prompt every node belongs to one group, even if two groups have equal prompts.

Nodes are numbered depth first.  A *row* is a prompt and a completion; `tree.rows` are the nodes of
all rows in lexicographic order.  Row r shares its first `row_start[r]` nodes with the row before it
and adds the others, which are numbered one after the other.  (In the example, rows equals paths.)

Source: Sullivan & Koller, "GRPO is Secretly a Process Reward Model", arXiv:2509.21154, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

Array = np.ndarray
MAX_TOKEN = 2**31 - 1
Tokens = Sequence[int] | Array  # token ids of one text


@dataclass(frozen=True)
class ProcessStep:
    """A process set λ and its step, the tokens start ≤ t < end that these members alone share.

    >>> mg.PrefixTree.from_sequences([[1, 2, 3], [1, 2, 4], [1, 5]]).steps()[1]
    ProcessStep(members=(0, 1), start=1, end=2, parent=0, nodes=(1,))
    """

    members: tuple[int, ...]  # completions, ascending
    start: int  # s(λ), position in the completion
    end: int  # e(λ)
    parent: int | None  # index of the parent step in the list; None for the root
    nodes: tuple[int, ...]  # the node of every token of the step


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """B completions in G groups as N nodes.   Build it with `from_sequences` or `from_groups`.

    Nodes have token, parent, depth, count |λ|, group (-1 in prompts) and scored, (N,) each; `paths`
    (B,T) are the nodes of each completion.   All are integers, but for `scored`.
    >>> tree = mg.PrefixTree.from_sequences([[1, 2, 3], [1, 2, 4], [1, 5]])
    >>> tree.token          # one entry per node: a, ab, abc, abd, ae
    array([1, 2, 3, 4, 5])
    >>> tree.parent         # ab and ae follow a, which follows nothing; abc and abd follow ab
    array([-1,  0,  1,  1,  0])
    >>> tree.depth
    array([0, 1, 2, 2, 1])
    >>> tree.count          # |λ|: three completions begin with a, two with ab
    array([3, 2, 1, 1, 1])
    >>> tree.paths          # completion 1 passes through the nodes 0, 1 and 3
    array([[ 0,  1,  2],
           [ 0,  1,  3],
           [ 0,  4, -1]])
    >>> tree.row_start      # how many of its nodes a row shares with the row before it
    array([0, 2, 1])
    """

    token: Array  # (N,) token id
    parent: Array  # (N,) the node before it, or -1
    depth: Array  # (N,) position in prompt + completion, counted from 0
    count: Array  # (N,) |λ|: how many completions pass through the node
    group: Array  # (N,) the group that owns the node, -1 in the trunk
    scored: Array  # (N,) bool: a completion's token; not context of a part (`plan.split_tree`)
    paths: Array  # (B,T) node of completion i at its position t, -1 past its end
    completion_group: Array  # (B,) group of each completion, ascending
    rows: Array  # (B,W) node of row r at position t of prompt + completion, -1 past its end
    row_start: Array  # (B,) row r adds the nodes at positions row_start ≤ t < row_end
    row_end: Array  # (B,) length of row r

    # -- building ----------------------------------------------------------------------------------

    @classmethod
    def from_sequences(cls, sequences: Sequence[Tokens]) -> PrefixTree:
        """The tree of one group without a prompt.   sequences: k int sequences, possibly empty

        Raises ValueError for an empty group and for token ids that are not integers in [0, 2**31).
        >>> mg.PrefixTree.from_sequences([[1, 2], [1, 3], []]).lengths
        array([2, 2, 0])
        """
        return cls.from_groups([()], [sequences])

    @classmethod
    def from_groups(
        cls, prompts: Sequence[Tokens], completions: Sequence[Sequence[Tokens]], merge: bool = True
    ) -> PrefixTree:
        """The tree of a batch.   prompts: G sequences; completions: G lists of any length

        Completions are numbered through, group after group.  With merge=False nothing is shared:
        every completion has its own copy of its prompt and tokens, as in the usual padded batch.
        Raises ValueError as `from_sequences` does.
        >>> tree = mg.PrefixTree.from_groups([[7, 8], [7]], [[[1, 2], [1, 3]], [[1, 2]]])
        >>> tree.token[tree.group == 0]  # of the first group, whose tree is below its prompt
        array([1, 2, 3])
        """
        symbols, prompt_length, length, group = _rows_with_markers(prompts, completions)
        order, shared = sort_rows(symbols, length + 1)
        symbols, prompt_length, length = symbols[order], prompt_length[order], length[order]
        # The markers have kept groups apart.  Now they go, also from the number of shared symbols.
        is_marker = np.arange(symbols.shape[1]) == prompt_length[:, None]
        tokens = symbols[~is_marker].reshape(len(order), -1) - 1  # (B,W)
        start = np.append(0, shared - (shared > prompt_length[1:])) if merge else 0 * length
        rows, is_new = _number_nodes(start, length)  # (B,W)
        row, depth = np.nonzero(is_new)  # (N,) the row that adds each node, and at which position
        scored = depth >= prompt_length[row]
        # A path is the part of a row behind the prompt.
        position = prompt_length[:, None] + np.arange((length - prompt_length).max())  # (B,T)
        paths = rows[np.arange(len(rows))[:, None], np.minimum(position, rows.shape[1] - 1)]
        paths[position >= length[:, None]] = -1
        return cls(
            token=tokens[is_new].astype(np.int64),
            parent=np.where(depth > 0, rows[row, depth - 1], -1),
            depth=depth,
            count=np.bincount(rows[rows >= 0]),
            group=np.where(scored, group[order][row], -1),
            scored=scored,
            paths=paths[np.argsort(order)],
            completion_group=group,
            rows=rows,
            row_start=start,
            row_end=length,
        )

    # -- sizes -------------------------------------------------------------------------------------

    @property
    def n_nodes(self) -> int:
        """N, the number of distinct (prefix, token), prompts included."""
        return len(self.token)

    @property
    def n_groups(self) -> int:
        """G, the number of groups."""
        return int(self.completion_group[-1]) + 1

    @cached_property
    def lengths(self) -> Array:
        """(B,) tokens of each completion."""
        return (self.paths >= 0).sum(1)

    @cached_property
    def group_sizes(self) -> Array:
        """(G,) completions of each group: k."""
        return np.bincount(self.completion_group)

    # -- sums over members -------------------------------------------------------------------------

    @cached_property
    def _nodes_of_tokens(self) -> Array:
        return self.paths[self.paths >= 0]  # (Σ|yᵢ|,) completion after completion

    def sum_over_members(self, values: Array) -> Array:
        """Σ_{i ∈ λ(node)} values[i]: what completions bring.   (B,) or (B,T) -> (N,) float64"""
        of_each = np.ndim(values) > 1
        on_tokens = values[self.paths >= 0] if of_each else np.repeat(values, self.lengths)
        return np.bincount(self._nodes_of_tokens, on_tokens, minlength=self.n_nodes)

    def on_tokens(self, values: Array, fill: float = 0.0) -> Array:
        """A quantity on nodes, read along every completion.   (N,) -> (B,T), `fill` past the end"""
        out = np.full(self.paths.shape, fill, dtype=values.dtype)
        out[self.paths >= 0] = values[self._nodes_of_tokens]
        return out

    def members(self, node: int) -> Array:
        """The process set of a node: the completions that pass through it, ascending."""
        return np.flatnonzero((self.paths == node).any(1))

    # -- process steps -----------------------------------------------------------------------------

    @cached_property
    def is_step_head(self) -> Array:
        """(N,) bool: the first token of a step, where the process set is not that of the parent."""
        parent, owned = self.parent, self.group >= 0
        as_parent = (self.group[parent] == self.group) & (self.count[parent] == self.count)
        return owned & ~(as_parent & (parent >= 0))

    def steps(self, group: int = 0) -> list[ProcessStep]:
        """B(G): the process sets of a group and their steps, parents before children.

        The first one is the root: the whole group.  Its step is empty if the completions differ
        from the first token on.  Raises ValueError for an unknown group.  (Paper, section 3.)
        """
        everyone = tuple(np.flatnonzero(self.completion_group == group).tolist())
        if not everyone:
            found = f"the tree has {self.n_groups}, counted from 0"
            raise ValueError(f"there is no group {group}: {found}")
        nodes = np.flatnonzero(self.group == group)
        first = np.flatnonzero(self.is_step_head[nodes])
        heads = nodes[first]
        share_first_token = len(nodes) and self.count[nodes[0]] == len(everyone)
        steps = [] if share_first_token else [ProcessStep(everyone, 0, 0, None, ())]
        parents = np.searchsorted(heads, self.parent[heads], side="right") - 1 + len(steps)
        for parent, own in zip(parents.tolist(), np.split(nodes, first)[1:], strict=True):
            start = int(self.depth[own[0]] - self.depth[nodes[0]])
            members = tuple(self.members(own[0]).tolist())
            before = parent if parent >= 0 else None
            steps.append(ProcessStep(members, start, start + len(own), before, tuple(own.tolist())))
        return steps

    @cached_property
    def is_flat(self) -> Array:
        """(G,) bool: no two completions of the group share a first token, so it does not branch."""
        shared = self.group[self.scored & (self.count > 1)]
        return np.bincount(shared, minlength=self.n_groups) == 0


@dataclass(frozen=True, eq=False)
class Rollouts:
    """G prompts with k completions each, as a tree, and how likely they were when sampled.

    logp and entropy (N,) are of the scored nodes, truncated (B,) of the completions.
    >>> model, rng = mg.Transformer(mg.TransformerConfig(vocab_size=10)), np.random.default_rng(0)
    >>> rollouts = mg.sample(model, [[1, 2], [3]], 4, rng, max_new_tokens=6)  # a Rollouts
    >>> logp = rollouts.tree.on_tokens(rollouts.logp)  # of each completion's tokens (B,T)
    """

    prompts: list[Array]  # G arrays of token ids
    completions: list[list[Array]]  # G lists of k arrays; an EOS that was drawn is the last
    tree: PrefixTree  # over prompts and completions
    logp: Array  # (N,) log-probability of each scored node when it was drawn, 0 elsewhere
    entropy: Array  # (N,) of the distribution that it was drawn from, in nats, 0 elsewhere
    truncated: Array  # (B,) bool: stopped by the length limit, not by EOS
    temperature: float
    max_new_tokens: int


# -- how a tree is built ---------------------------------------------------------------------------


def token_arrays(sequences: Sequence[Tokens], name: Callable[[int], str]) -> list[Array]:
    """Token ids as int64.   Raises ValueError, naming name(i), unless they are in [0, 2**31)."""
    arrays = [np.asarray(sequence) for sequence in sequences]
    for i, array in enumerate(arrays):
        if array.size and (array.ndim != 1 or array.dtype.kind not in "iu"):
            found = f"{array.dtype} of {array.ndim} dimensions"
            raise ValueError(f"{name(i)} must be a one-dimensional list of integers, not {found}")
        if array.size and np.bitwise_or.reduce(array) >> 31:  # negative, or above MAX_TOKEN
            found = f"{array.min()} … {array.max()}"
            raise ValueError(f"{name(i)} holds a token id outside [0, 2**31): {found}")
    return [array.astype(np.int64, copy=False).ravel() for array in arrays]


def _rows_with_markers(
    prompts: Sequence[Tokens], completions: Sequence[Sequence[Tokens]]
) -> tuple[Array, Array, Array, Array]:
    """-> symbols (B,W+1), and of every row the length of its prompt, its own, and its group (B,)

    A symbol is a token plus one, or 0 behind the end.  A marker of the group stands between prompt
    and completion, so that groups with the same prompt stay apart.
    """
    if len(prompts) != len(completions):
        found = f"{len(prompts)} prompts but {len(completions)} groups of completions"
        raise ValueError(f"{found}: give one group a prompt")
    sizes = [len(group) for group in completions]
    if not all(sizes) or not sizes:
        empty = f"group {sizes.index(0)}" if sizes else "the batch"
        raise ValueError(f"{empty} has no completions: a tree needs at least one")
    group = np.repeat(np.arange(len(sizes)), sizes)
    first = np.cumsum(sizes) - sizes
    before = token_arrays(prompts, "prompt {}".format)
    after = token_arrays(
        list(chain(*completions)), lambda i: f"completion {i - first[group[i]]} of group {group[i]}"
    )
    marker = MAX_TOKEN + 1 + np.arange(len(sizes))[:, None]
    prompt_length = np.array([len(tokens) for tokens in before])[group]
    length = prompt_length + [len(tokens) for tokens in after]
    symbols = np.zeros((len(group), length.max() + 1), dtype=np.uint32)
    pieces = chain(*((before[g], marker[g], y) for g, y in zip(group.tolist(), after, strict=True)))
    symbols[np.arange(symbols.shape[1]) <= length[:, None]] = np.concatenate(list(pieces)) + 1
    return symbols, prompt_length, length, group


def sort_rows(symbols: Array, length: Array) -> tuple[Array, Array]:
    """-> lexicographic order (B,), and what each row shares with the one before it (B-1,)"""
    big_endian = symbols.astype(">u4")  # comparing bytes then compares symbols
    order = np.argsort(big_endian.view(f"V{4 * symbols.shape[1]}").ravel(), kind="stable")
    symbols = symbols[order]
    differs = symbols[1:] != symbols[:-1]
    return order, np.where(differs.any(1), differs.argmax(1), length[order[1:]])


def _number_nodes(start: Array, end: Array) -> tuple[Array, Array]:
    """-> the node of every row at every position, -1 past its end (B,W); whether it is new (B,W)

    Where it is not new, it is the newest one of the column, which is the node of the row before.
    """
    column = np.arange(end.max())
    is_inside = column < end[:, None]
    is_new = is_inside & (column >= start[:, None])
    rows = np.full(is_new.shape, -1)
    rows[is_new] = np.arange(is_new.sum())
    return np.where(is_inside, np.maximum.accumulate(rows), -1), is_new
