"""Exercises of chapter 8, a real language model.

Fill in the functions, then run: minigrpo check ch08

Shapes: V vocabulary, D model width, H heads, K key/value heads, E = D/H head width, F ffn width, N
rows.
"""

import numpy as np  # noqa: F401 (you will need it)


def to_neighbouring_pairs(weight, n_heads):
    """ch08 task 1: rotary layouts.   weight (n_heads·E, D), n_heads an int -> (n_heads·E, D)

    A Hugging Face checkpoint rotates element j of a head together with element j + E/2 (j < E/2);
    we rotate neighbours, 2j with 2j + 1.  Permute the rows of Q or K so that row 2j of every head
    is its old row j, and row 2j + 1 its old row j + E/2.

    >>> to_neighbouring_pairs(np.arange(8)[:, None], 2)[:, 0].tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    raise NotImplementedError("ch08 task 1: rotary layouts")


def tokens_until_stop(tokens, pieces, stop):
    """ch08 task 2: stop strings.   tokens a list of ints, pieces a list of bytes, stop a str -> int

    pieces[v] are the bytes of token v, which may be a part of a character.  Return how many tokens
    to keep: the smallest n for which the text of the first n tokens contains stop (as UTF-8 bytes);
    all of them if it never does.

    >>> tokens_until_stop([0, 1, 2, 0], [b"a", b"a#", b"#b"], "##")
    3
    """
    raise NotImplementedError("ch08 task 2: stop strings")


def n_parameters(vocab_size, dim, n_layers, n_heads, n_kv_heads, ffn_dim, tied):
    """ch08 task 3: number of parameters.   ints, tied a bool -> int

    Embedding (V,D).  Each layer: RMSNorm (D), Q (D,D), K and V (K·E,D) each, O (D,D); RMSNorm (D),
    gate and up (F,D) each, down (D,F).  At the end RMSNorm (D) and the head (V,D), which is the
    embedding itself if they are tied.  No biases.

    >>> n_parameters(10, 4, 1, 2, 1, 8, True)
    196
    """
    raise NotImplementedError("ch08 task 3: number of parameters")


def step_memory(n_parameters, n_inner, vocab_size, bytes_per_number, reference):
    """ch08 task 4: memory of a training step.   ints, reference a bool -> int, in bytes

    Count the parameters, their gradients, the two moments of AdamW, and the logits of the n_inner
    inner nodes (V numbers each). A frozen reference policy for the KL term, if there is one, has
    parameters and nothing else.  (The rest of the activations is left out.)

    >>> step_memory(1000, 10, 50, 4, False)
    18000
    """
    raise NotImplementedError("ch08 task 4: memory of a training step")


def blockwise_logp(hidden, head, token, block):
    """ch08 task 5: log-softmax by blocks.   hidden (N,D), head (V,D), token (N,) int, block an int
    -> (N,)

    logp[n] = log softmax(hidden[n] @ headᵀ)[token[n]].  With a vocabulary of 150,000 the logits
    (N,V) fill the memory, so never hold more than `block` columns of them: go through the rows of
    head block by block (the last one may be smaller) and keep, for every n, the largest logit so
    far and the sum of exp(logit - largest).  When the largest grows, the sum must be rescaled.
    Logits may be in the thousands, and all of a row far below 0.

    >>> head = np.log(np.array([[1.0], [2.0], [1.0]]))
    >>> blockwise_logp(np.ones((1, 1)), head, np.array([1]), 2).round(6).tolist()
    [-0.693147]
    """
    raise NotImplementedError("ch08 task 5: log-softmax by blocks")
