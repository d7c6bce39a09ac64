"""Checks of chapter 8, a real language model: tables worked out by hand, and the package's own models and log-softmax."""

from __future__ import annotations

import tracemalloc

import numpy as np

from minigrpo import ops
from minigrpo.course.grading import Answer, Task, ask, compare, shape_of, text, wrong
from minigrpo.engine.optim import AdamW
from minigrpo.engine.parameters import TransformerConfig, rotate_halves, rotate_neighbours
from minigrpo.transformer import Transformer


def _to_neighbouring_pairs(f: Answer) -> None:
    for heads, width in ((1, 4), (2, 6), (3, 2), (1, 8)):
        weight = 10.0 * np.arange(heads * width)[:, None] + np.arange(3)
        right = rotate_neighbours(weight, heads)
        given = f"a weight of {heads} {'head' if heads == 1 else 'heads'} of width {width}, whose row i is [10i, 10i + 1, 10i + 2]"
        hints = {
            "this goes the other way, from neighbours to halves.": rotate_halves(weight, heads),
            "the rows move within each head; here all heads were treated as one.": rotate_neighbours(
                weight, 1
            ),
            "nothing has moved.": weight,
            "within a head the halves have changed places: row 0 stays, and row 1 is the old row E/2.": right.reshape(
                -1, 2, 3
            )[:, ::-1].reshape(weight.shape),
        }
        compare(
            ask(f, weight, heads, given=given), right, given, axes=("row", "column"), hints=hints
        )


# 0       1        2      3      4        5     6      7        8        9       10    11       12
PIECES = (
    b"Hello",
    b" wor",
    b"ld",
    b"\n",
    b"\n\n",
    b"#",
    b"##",
    b"\xc3",
    b"\xa9",
    b"caf",
    b"!",
    b"User",
    b":",
)

# (tokens, stop, how many to keep, what the case is about)
STOPS = (
    ([0, 6, 2, 10], "##", 2, "the token '##' is the stop string itself; it is kept."),
    ([0, 1, 2, 10], "or", 2, "the stop string is inside of the token ' wor'."),
    (
        [0, 5, 5, 10],
        "##",
        3,
        "the stop string is made of two tokens: compare the joined text, not each token.",
    ),
    (
        [0, 3, 11, 12, 10],
        "User:",
        4,
        "the stop string is made of two tokens: compare the joined text, not each token.",
    ),
    (
        [0, 6, 3, 10],
        "#\n",
        3,
        "the stop string begins in the middle of a token and ends in another.",
    ),
    ([0, 1, 2], "##", 3, "it never comes: keep all tokens."),
    ([5, 3, 5], "##", 3, "the two # do not stand next to each other: it never comes."),
    (
        [9, 7, 8, 10],
        "é",
        3,
        "é is two bytes, and each is a token: join bytes, and decode nothing before that.",
    ),
    (
        [9, 7, 8, 10],
        "Ã",
        4,
        "the bytes C3 A9 are é in UTF-8; read as Latin-1, each byte is a character, and C3 is Ã.",
    ),
    (
        [7, 10, 0],
        "\ufffd",
        3,
        "half a character is no replacement character: compare bytes, do not decode with errors='replace'.",
    ),
    ([0, 4, 3, 2], "\n\n", 2, "the first time counts."),
    ([], "##", 0, "no tokens, nothing to keep."),
)


def _tokens_until_stop(f: Answer) -> None:
    for tokens, stop, expected, why in STOPS:
        given = f"tokens that stand for {text([PIECES[t] for t in tokens])}, and the stop string {stop!r}"
        got = ask(f, list(tokens), list(PIECES), stop, given=given)
        if shape_of(got) or not isinstance(got, int | float | np.generic):
            raise wrong(
                given,
                f"expected {expected}, got {type(got).__name__} {got!r}.",
                "how many tokens to keep, a number.",
            )
        if got == expected - 1 and expected < len(tokens):
            why += " The token that completes it is kept as well: return how many, not an index."
        if got != expected:
            raise wrong(given, f"expected {expected} tokens, got {got}.", why)


def _n_parameters(f: Answer) -> None:
    for vocab, dim, layers, heads, kv, ffn, tied in (
        (50, 16, 2, 4, 2, 40, False),
        (50, 16, 3, 4, 4, 24, True),
        (7, 8, 1, 4, 1, 8, True),
    ):
        config = TransformerConfig(vocab, dim, layers, heads, kv, ffn, tie_embeddings=tied)
        right = sum(int(np.prod(shape)) for shape in config.shapes().values())
        given = f"V {vocab}, D {dim}, {layers} layers, {heads} heads, {kv} key/value heads, F {ffn}, {'tied' if tied else 'not tied'}"
        full = (heads - kv) * (dim // heads) * dim
        hints = {
            "K and V have one width E for each key/value head, not for each head.": right
            + 2 * layers * full,
            "the RMSNorms are missing: two in each layer and one at the end.": right
            - (2 * layers + 1) * dim,
            "the last RMSNorm is missing.": right - dim,
            "a tied head is the embedding: it counts once."
            if tied
            else "a head that is not tied counts, too.": right
            + (vocab * dim if tied else -vocab * dim),
            "SwiGLU has three matrices: gate, up and down.": right - layers * ffn * dim,
            "O is missing: attention has four matrices.": right - layers * dim * dim,
            "only one layer is counted.": right
            - (layers - 1)
            * sum(int(np.prod(s)) for name, s in config.shapes().items() if ".layers.0." in name),
        }
        compare(
            ask(f, vocab, dim, layers, heads, kv, ffn, tied, given=given), right, given, hints=hints
        )


def _step_memory(f: Answer) -> None:
    for inner, dtype, reference in (
        (12, "float32", False),
        (0, "float64", False),
        (7, "float64", True),
    ):
        model = Transformer(TransformerConfig(11, 8, 1, 2), dtype=dtype)
        adam = AdamW(model.parameters)
        vectors = [model.parameters.flat, model.gradients.flat, adam.m, adam.v] + [
            model.parameters.flat
        ] * reference
        logits = np.zeros((inner, 11), dtype=dtype)
        n, size = model.parameters.flat.size, np.dtype(dtype).itemsize
        one = model.parameters.flat.nbytes
        right = sum(vector.nbytes for vector in vectors) + logits.nbytes
        given = f"{n} parameters, {inner} inner nodes, V 11, {size} bytes a number, {'with' if reference else 'no'} reference policy"
        hints = {
            "these are numbers, not bytes: multiply by the bytes of one number.": right / size,
            "AdamW keeps two moments of every parameter, the mean of the gradient and that of its square.": right
            - one,
            "the moments are missing: AdamW keeps two numbers for every parameter.": right
            - 2 * one,
            "the gradients are missing.": right - one,
            "the logits are missing: V numbers for every inner node.": right - logits.nbytes,
        }
        if reference:
            hints = {"the frozen reference policy has parameters, too.": right - one} | hints
            hints["a frozen policy has no gradients and no moments."] = right + 3 * one
        compare(
            ask(f, n, inner, 11, size, reference, given=given),
            right,
            given,
            hints=hints,
            rtol=1e-12,
        )


def _blockwise_logp(f: Answer) -> None:
    rng = np.random.default_rng(13)
    cases = [
        (3, 4, 12, 4, 1.0),
        (4, 3, 10, 4, 1.0),
        (2, 3, 5, 100, 1.0),
        (3, 4, 9, 1, 1.0),
        (5, 4, 23, 5, 300.0),
    ]
    for n, dim, vocab, block, scale in cases:
        hidden, head = scale * rng.standard_normal((n, dim)), rng.standard_normal((vocab, dim))
        token = rng.integers(vocab, size=n)
        given = f"random hidden ({n}, {dim}) and head ({vocab}, {dim}), block {block}" + (
            ", logits in the hundreds" if scale > 1 else ""
        )

        def scored(
            columns: int,
            hidden: np.ndarray = hidden,
            head: np.ndarray = head,
            token: np.ndarray = token,
        ) -> np.ndarray:
            """log softmax over the first so many tokens, as a normaliser for the chosen logit."""
            z = np.concatenate(
                [hidden @ head[:columns].T, (hidden * head[token]).sum(-1, keepdims=True)], 1
            )
            first = (
                z[:, :1]
                - ops.log_softmax_gather(
                    z[:, :-1].copy(), np.arange(len(z)), np.zeros(len(z), dtype=int)
                )[0][:, None]
            )
            return z[:, -1] - first[:, 0]  # chosen logit - log Σ exp

        right = scored(vocab)
        hints = {
            "this is the logit alone: log Σ exp over the vocabulary is missing.": (
                hidden * head[token]
            ).sum(-1),
            "this is the softmax over one block only; the blocks belong to one sum.": scored(
                min(block, vocab)
            ),
            "these are probabilities: take their log.": np.exp(right),
        }
        if vocab % block and vocab > block:
            hints["the last block, which is smaller, was left out."] = scored(vocab - vocab % block)
        got = ask(f, hidden, head, token, block, given=given)
        if shape_of(got) == right.shape and np.allclose(
            ask(f, hidden, head, token, vocab, given=given), right, rtol=1e-8
        ):
            hints[
                "with a single block your answer is right, with several it is not: is the sum rescaled when the largest grows?"
            ] = got
        compare(got, right, given, axes=("row",), hints=hints)
    n, vocab, block = 64, 4096, 32
    hidden, head, token = (
        rng.standard_normal((n, 4)),
        rng.standard_normal((vocab, 4)),
        rng.integers(vocab, size=n),
    )
    given = f"{n} rows, a vocabulary of {vocab} and blocks of {block}"
    was_tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        ask(f, hidden, head, token, block, given=given)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        if not was_tracing:
            tracemalloc.stop()
    if peak > 8 * n * vocab / 2:
        problem = f"expected memory for {block} columns of logits at a time, got a peak of {peak / 2**20:.1f} MiB"
        raise wrong(
            given,
            f"{problem} (all logits together: {8 * n * vocab / 2**20:.1f} MiB).",
            "do not make or keep the logits of all blocks.",
        )


TASKS = (
    Task("rotary layouts", "to_neighbouring_pairs", _to_neighbouring_pairs),
    Task("stop strings", "tokens_until_stop", _tokens_until_stop),
    Task("number of parameters", "n_parameters", _n_parameters),
    Task("memory of a training step", "step_memory", _step_memory),
    Task("log-softmax by blocks", "blockwise_logp", _blockwise_logp),
)
