"""λ-GRPO's weights of one group without its tree, in a fraction of the time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minigrpo.tree import MAX_TOKEN, Tokens, sort_rows, token_arrays


def lambda_weights(sequences: Sequence[Tokens]) -> list[np.ndarray]:
    """1/|λ(i,t)| for every token: the weights of λ-GRPO.   k int sequences -> k float64 arrays

    |λ(i,t)| is the number of completions that share completion i up to and including token t.
    Leave out completions that the loss masks: |λ| counts members that count.  (Paper, section 4.)
    Raises ValueError as `PrefixTree.from_sequences` does.
    >>> [weights.round(2).tolist() for weights in mg.lambda_weights([[1, 2], [1, 3, 4]])]
    [[0.5, 1.0], [0.5, 1.0, 1.0]]
    """
    sequences = token_arrays(sequences, "completion {} of group 0".format)
    if not sequences:
        raise ValueError("group 0 has no completions: a tree needs at least one")
    length = np.array([len(sequence) for sequence in sequences])
    symbols = np.full((len(length), length.max() + 1), MAX_TOKEN + 1, dtype=np.uint32)
    for row, sequence in zip(symbols, sequences, strict=True):
        row[: len(sequence)] = sequence
    order, shared = sort_rows(symbols, length)
    # In order, every process set is a run of rows.  It ends before the first row that shares less.
    weights = np.ones(symbols.shape)
    begun = [(0, 0)]  # sets that the next row may belong to: (end of the step, first row)
    for row, common in enumerate([*shared.tolist(), 0], start=1):
        first = row - 1
        while begun[-1][0] > common:
            end, first = begun.pop()
            weights[first:row, max(begun[-1][0], common) : end] = 1 / (row - first)
        if begun[-1][0] < common:
            begun.append((common, first))
    place = np.argsort(order).tolist()
    return [weights[row, :n] for row, n in zip(place, length.tolist(), strict=True)]
