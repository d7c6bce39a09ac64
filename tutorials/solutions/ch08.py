"""Answers to the exercises of chapter 8."""

import numpy as np


def to_neighbouring_pairs(weight, n_heads):
    """(heads, half, j) becomes (heads, j, half)."""
    rows, dim = weight.shape
    return weight.reshape(n_heads, 2, rows // n_heads // 2, dim).swapaxes(1, 2).reshape(rows, dim)


def tokens_until_stop(tokens, pieces, stop):
    """Bytes are compared, so it does not matter where tokens cut characters."""
    text, wanted = b"", stop.encode()
    for n, token in enumerate(tokens, 1):
        text += pieces[token]
        if wanted in text:
            return n
    return len(tokens)


def n_parameters(vocab_size, dim, n_layers, n_heads, n_kv_heads, ffn_dim, tied):
    """Grouped-query attention makes K and V smaller."""
    kv = n_kv_heads * (dim // n_heads)
    layer = 2 * dim * dim + 2 * kv * dim + 3 * ffn_dim * dim + 2 * dim
    return (1 if tied else 2) * vocab_size * dim + n_layers * layer + dim


def step_memory(n_parameters, n_inner, vocab_size, bytes_per_number, reference):
    """Four vectors of the size of the model, or five, and the logits."""
    vectors = 5 if reference else 4
    return bytes_per_number * (vectors * n_parameters + n_inner * vocab_size)


def blockwise_logp(hidden, head, token, block):
    """log Σ exp, kept as a largest logit and a sum relative to it."""
    largest, total = np.full(len(hidden), -np.inf), np.zeros(len(hidden))
    for start in range(0, len(head), block):
        logits = hidden @ head[start : start + block].T  # (N,block)
        new = np.maximum(largest, logits.max(-1))
        total = total * np.exp(largest - new) + np.exp(logits - new[:, None]).sum(-1)
        largest = new
    chosen = (hidden * head[token]).sum(-1)
    return chosen - largest - np.log(total)
