"""Checks of chapter 8: tables worked out by hand, and the package's own models and log-softmax."""

import numpy as np

from minigrpo.course.grading import Answer, close, shape_of, task, text, wrong
from minigrpo.engine.optim import AdamW
from minigrpo.engine.parameters import TransformerConfig, rotate_halves, rotate_neighbours
from minigrpo.transformer import Transformer


@task(
    "rotary layouts",
    axes=("row", "column"),
    other_way="this goes the other way, from neighbours to halves.",
    one_head="the rows move within each head; here all heads were treated as one.",
    nothing="nothing has moved.",
)
def _check_to_neighbouring_pairs(answer: Answer) -> None:
    for heads, width in ((1, 4), (2, 6), (3, 2), (1, 8)):
        weight = 10.0 * np.arange(heads * width)[:, None] + np.arange(3)
        right = rotate_neighbours(weight, heads)
        given = f"a weight of {heads} head{'s' * (heads > 1)} of width {width}, whose row i is "
        mistakes = dict(other_way=rotate_halves(weight, heads), nothing=weight)
        mistakes |= dict(one_head=rotate_neighbours(weight, 1))
        answer.check(given + "[10i, 10i + 1, 10i + 2]", (weight, heads), right, **mistakes)


# The pieces of text that tokens 0, 1, … stand for.
PIECES = (b"Hello", b" wor", b"ld", b"\n", b"\n\n", b"#", b"##", b"\xc3", b"\xa9", b"caf", b"!")
PIECES += (b"User", b":")
TWO_TOKENS = "the stop string is made of two tokens: compare the joined text, not each token."
# (tokens, stop, how many to keep, what the case is about)
STOPS = (
    ([0, 6, 2, 10], "##", 2, "the token '##' is the stop string itself; it is kept."),
    ([0, 1, 2, 10], "or", 2, "the stop string is inside of the token ' wor'."),
    ([0, 1, 2, 10], "wo", 2, "the stop string is inside of the token ' wor', not at its end."),
    ([0, 5, 5, 10], "##", 3, TWO_TOKENS),
    ([0, 3, 11, 12, 10], "User:", 4, TWO_TOKENS),
    ([0, 6, 3, 10], "#\n", 3, "the stop string begins in one token and ends in another."),
    ([5, 3, 5, 10], "#\n#", 3, "the stop string is made of three tokens."),
    ([5, 7, 5, 10], "##", 4, "a broken character stands between: do not decode with 'ignore'."),
    ([7, 5, 5, 10], "##", 3, "half a character may stand before it: search bytes."),
    ([0, 1, 2], "##", 3, "it never comes: keep all tokens."),
    ([5, 3, 5], "##", 3, "the two # do not stand next to each other: it never comes."),
    ([9, 7, 8, 10], "é", 3, "é is two bytes, and each is a token: join bytes before you decode."),
    ([9, 7, 8, 10], "Ã", 4, "the bytes C3 A9 are é in UTF-8; only in Latin-1 is C3 an Ã."),
    ([7, 10, 0], "\ufffd", 3, "half a character stays bytes: do not decode with errors='replace'."),
    ([0, 4, 3, 2], "\n\n", 2, "the first time counts."),
    ([], "##", 0, "no tokens, nothing to keep."),
)


@task("stop strings")
def _check_tokens_until_stop(answer: Answer) -> None:
    for tokens, stop, right, why in STOPS:
        pieces = [PIECES[t] for t in tokens]
        given = f"tokens that stand for {text(pieces)}, and the stop string {stop!r}"
        why += " Return how many tokens to keep, not an index." * (right < len(tokens))
        answer.check_number(given, (list(tokens), list(PIECES), stop), right, why)


@task(
    "number of parameters",
    full_attention="K and V have one width E for each key/value head, not for each head.",
    no_norms="the RMSNorms are missing: two in each layer and one at the end.",
    final_norm="the RMSNorm at the end is missing.",
    one_norm="a layer has two RMSNorms, before attention and before the MLP.",
    two_matrices="SwiGLU has three matrices: gate, up and down.",
    no_output="attention has four matrices: the one of the output is missing.",
    tied="a tied head is the embedding: it counts once.",
    not_tied="one (V, D) is missing: a head that is not tied counts beside the embedding.",
)
def _check_n_parameters(answer: Answer) -> None:
    for vocab, dim, layers, heads, kv, ffn, tied in (
        (50, 16, 2, 4, 2, 40, False),
        (50, 16, 3, 4, 4, 24, True),
        (7, 8, 1, 4, 1, 8, True),
    ):
        config = TransformerConfig(vocab, dim, layers, heads, kv, ffn, tie_embeddings=tied)
        right, head = sum(int(np.prod(shape)) for shape in config.shapes().values()), vocab * dim
        given = f"V {vocab}, D {dim}, {layers} layers, {heads} heads, {kv} key/value heads, "
        mistakes = dict(full_attention=right + 2 * layers * (heads - kv) * (dim // heads) * dim)
        mistakes |= dict(no_norms=right - (2 * layers + 1) * dim)
        mistakes |= dict(final_norm=right - dim, one_norm=right - layers * dim)
        mistakes |= dict(two_matrices=right - layers * ffn * dim)
        mistakes |= dict(no_output=right - layers * dim * dim)
        mistakes |= dict(tied=right + head) if tied else dict(not_tied=right - head)
        given += f"F {ffn}, {'tied' if tied else 'not tied'}"
        answer.check(given, (vocab, dim, layers, heads, kv, ffn, tied), right, **mistakes)


@task(
    "memory of a training step",
    no_reference="the frozen reference policy has parameters, too.",
    numbers="these are numbers, not bytes: multiply by the bytes of one number.",
    no_gradient="of every parameter there are four numbers: itself, its gradient, two moments.",
    one_moment="AdamW keeps two moments of every parameter, of the gradient and of its square.",
    no_logits="the logits are missing: V numbers for every inner node.",
    reference_trained="a frozen policy has no gradients and no moments.",
)
def _check_step_memory(answer: Answer) -> None:
    cases = ((12, "float32", False), (0, "float64", False), (7, "float64", True))
    for inner, dtype, reference in cases:
        model = Transformer(TransformerConfig(11, 8, 1, 2), dtype=dtype)
        adam = AdamW(model.parameters)
        vectors = [model.parameters.flat, model.gradients.flat, adam.m, adam.v]
        vectors += [model.parameters.flat] * reference
        n, one, size = vectors[0].size, vectors[0].nbytes, np.dtype(dtype).itemsize
        logits = inner * 11 * size
        right = sum(vector.nbytes for vector in vectors) + logits
        given = f"{n} parameters, {inner} inner nodes, V 11, {size} bytes per number, "
        mistakes = dict(no_reference=right - one) if reference else {}
        mistakes |= dict(reference_trained=right + 3 * one) if reference else {}
        mistakes |= dict(no_gradient=right - 2 * one)
        mistakes |= dict(numbers=right / size, one_moment=right - one, no_logits=right - logits)
        given += f"{'with' if reference else 'no'} reference policy"
        answer.check(given, (n, inner, 11, size, reference), right, **mistakes)


def _logp(hidden: np.ndarray, head: np.ndarray, token: np.ndarray, columns: int) -> np.ndarray:
    """The chosen logit less log Σ exp over the first so many tokens."""
    z, chosen = hidden @ head[:columns].T, (hidden * head[token]).sum(-1)
    top = z.max(-1)
    return chosen - top - np.log(np.exp(z - top[:, None]).sum(-1))


@task(
    "log-softmax by blocks",
    axes=("row",),
    logit="this is the logit alone: log Σ exp over the vocabulary is missing.",
    negative="the signs are flipped: the chosen logit less log Σ exp is at most 0.",
    no_logit="this is -log Σ exp alone: the chosen logit is missing.",
    last_block="the last block, which is smaller, was left out.",
    rescale="with a single block it is right: is the sum rescaled when the largest grows, and the "
    "chosen logit taken from its own block?",
    from_zero="the largest logit so far may be far below 0: begin with -inf, not with 0.",
)
def _check_blockwise_logp(answer: Answer) -> None:
    rng = np.random.default_rng(13)
    for n, dim, vocab, block, scale in (
        (3, 4, 12, 4, 1.0),
        (4, 3, 10, 4, 1.0),
        (2, 3, 5, 100, 1.0),
        (3, 4, 9, 1, 1.0),
        (5, 4, 23, 5, 300.0),
        (3, 4, 9, 4, -300.0),
    ):
        hidden, head = scale * rng.standard_normal((n, dim)), rng.standard_normal((vocab, dim))
        token = rng.integers(vocab, size=n)
        given = f"random hidden ({n}, {dim}) and head ({vocab}, {dim}), block {block}"
        given += ", logits in the hundreds" * (scale > 1)
        if scale < 0:
            hidden, head = scale * (1 + np.abs(hidden / scale)), np.abs(head) + 1
            given += ", logits far below 0"
        right = _logp(hidden, head, token, vocab)
        got = answer.ask(given, hidden, head, token, block)
        in_one = answer.ask(given, hidden, head, token, vocab)
        chosen = (hidden * head[token]).sum(-1)
        mistakes = dict(logit=chosen, no_log=np.exp(right), no_logit=right - chosen)
        mistakes |= dict(negative=-right)
        if vocab % block and vocab > block:
            mistakes |= dict(last_block=_logp(hidden, head, token, vocab - vocab % block))
        if shape_of(got) == right.shape and close(in_one, right):
            mistakes |= dict(rescale=got)
        if scale < 0 and not np.isfinite(np.asarray(got, dtype=np.float64)).all():
            problem = f"expected finite numbers, got {text(got)}."
            raise wrong(given, problem, answer.hints["from_zero"])
        answer.compare(given, got, right, **mistakes)
    n, vocab, block = 64, 4096, 32
    hidden, head = rng.standard_normal((n, 4)), rng.standard_normal((vocab, 4))
    given = f"{n} rows, a vocabulary of {vocab} and blocks of {block}"
    token, whole = rng.integers(vocab, size=n), 8 * n * vocab
    got, peak = answer.peak(given, hidden, head, token, block)
    answer.compare(given, got, _logp(hidden, head, token, vocab))
    if not 4 * n <= peak <= whole / 2:
        problem = f"expected memory for {block} columns of logits at a time, got a peak of "
        problem += f"{peak / 2**20:.1f} MiB (all logits together: {whole / 2**20:.1f} MiB)."
        raise wrong(given, problem, "do not make or keep the logits of all blocks.")
