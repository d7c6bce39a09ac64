"""Wrong answers to the exercises of chapter 8: functions <function>__<mistake>.

The docstring has the texts that the message must contain, separated by |.
"""

import numpy as np


def to_neighbouring_pairs__other_way(weight, n_heads):
    """from neighbours to halves"""
    rows, dim = weight.shape
    return weight.reshape(n_heads, rows // n_heads // 2, 2, dim).swapaxes(1, 2).reshape(rows, dim)


def to_neighbouring_pairs__one_head(weight, n_heads):
    """all heads were treated as one"""
    return weight.reshape(2, len(weight) // 2, -1).swapaxes(0, 1).reshape(weight.shape)


def to_neighbouring_pairs__nothing(weight, n_heads):
    """nothing has moved"""
    return weight


def to_neighbouring_pairs__columns(weight, n_heads):
    """shape (4, 3), got shape (3, 4) | transposed"""
    return weight.T


def tokens_until_stop__token_by_token(tokens, pieces, stop):
    """compare the joined text"""
    return next((n for n, t in enumerate(tokens, 1) if stop.encode() in pieces[t]), len(tokens))


def tokens_until_stop__decodes_each(tokens, pieces, stop):
    """é is two bytes"""
    text = ""
    for n, t in enumerate(tokens, 1):
        text += pieces[t].decode(errors="replace")
        if stop in text:
            return n
    return len(tokens)


def tokens_until_stop__index(tokens, pieces, stop):
    """expected 2, got 1 | return how many tokens to keep, not an index"""
    text = b""
    for n, t in enumerate(tokens):
        text += pieces[t]
        if stop.encode() in text:
            return n
    return len(tokens)


def tokens_until_stop__replaces(tokens, pieces, stop):
    """errors='replace'"""
    return next(
        (
            n
            for n in range(len(tokens))
            if stop in b"".join(pieces[t] for t in tokens[:n]).decode(errors="replace")
        ),
        len(tokens),
    )


def _n(vocab_size, dim, n_layers, kv, ffn_dim, matrices=1, norms=True):
    layer = 2 * dim * dim + 2 * kv * dim + 3 * ffn_dim * dim
    return matrices * vocab_size * dim + n_layers * layer + norms * (2 * n_layers + 1) * dim


def n_parameters__full_attention(vocab_size, dim, n_layers, n_heads, n_kv_heads, ffn_dim, tied):
    """for each key/value head, not for each head"""
    return _n(vocab_size, dim, n_layers, dim, ffn_dim, 2 - tied)


def n_parameters__no_norms(vocab_size, dim, n_layers, n_heads, n_kv_heads, ffn_dim, tied):
    """two in each layer and one at the end"""
    return _n(
        vocab_size, dim, n_layers, n_kv_heads * dim // n_heads, ffn_dim, 2 - tied, norms=False
    )


def n_parameters__head_twice(vocab_size, dim, n_layers, n_heads, n_kv_heads, ffn_dim, tied):
    """a tied head is the embedding"""
    return _n(vocab_size, dim, n_layers, n_kv_heads * dim // n_heads, ffn_dim, 2)


def step_memory__one_moment(n_parameters, n_inner, vocab_size, bytes_per_number, reference):
    """two moments"""
    return bytes_per_number * ((4 if reference else 3) * n_parameters + n_inner * vocab_size)


def step_memory__numbers(n_parameters, n_inner, vocab_size, bytes_per_number, reference):
    """not bytes"""
    return (5 if reference else 4) * n_parameters + n_inner * vocab_size


def step_memory__reference_is_trained(
    n_parameters, n_inner, vocab_size, bytes_per_number, reference
):
    """no gradients and no moments"""
    return bytes_per_number * ((8 if reference else 4) * n_parameters + n_inner * vocab_size)


def blockwise_logp__all_at_once(hidden, head, token, block):
    """peak | do not make or keep the logits of all blocks"""
    z = hidden @ head.T
    z = z - z.max(-1, keepdims=True)
    return z[np.arange(len(z)), token] - np.log(np.exp(z).sum(-1))


def blockwise_logp__overflows(hidden, head, token, block):
    """logits in the hundreds | Subtract the maximum"""
    total = sum(np.exp(hidden @ head[i : i + block].T).sum(-1) for i in range(0, len(head), block))
    return (hidden * head[token]).sum(-1) - np.log(total)


def blockwise_logp__last_block_lost(hidden, head, token, block):
    """the last block, which is smaller, was left out"""
    total = sum(
        np.exp(hidden @ head[i * block : (i + 1) * block].T).sum(-1)
        for i in range(len(head) // block)
    )
    return (hidden * head[token]).sum(-1) - np.log(total)


def blockwise_logp__sum_not_rescaled(hidden, head, token, block):
    """with a single block | rescaled"""
    largest, total = np.full(len(hidden), -np.inf), np.zeros(len(hidden))
    for i in range(0, len(head), block):
        z = hidden @ head[i : i + block].T
        largest = np.maximum(largest, z.max(-1))
        total += np.exp(z - largest[:, None]).sum(-1)
    return (hidden * head[token]).sum(-1) - largest - np.log(total)


def n_parameters__two_matrices(vocab_size, dim, n_layers, n_heads, n_kv_heads, ffn_dim, tied):
    """gate, up and down"""
    right = _n(vocab_size, dim, n_layers, n_kv_heads * dim // n_heads, ffn_dim, 2 - tied)
    return right - n_layers * ffn_dim * dim


def n_parameters__one_norm(vocab_size, dim, n_layers, n_heads, n_kv_heads, ffn_dim, tied):
    """two RMSNorms"""
    right = _n(vocab_size, dim, n_layers, n_kv_heads * dim // n_heads, ffn_dim, 2 - tied)
    return right - n_layers * dim


def n_parameters__no_last_norm(vocab_size, dim, n_layers, n_heads, n_kv_heads, ffn_dim, tied):
    """at the end is missing"""
    return _n(vocab_size, dim, n_layers, n_kv_heads * dim // n_heads, ffn_dim, 2 - tied) - dim


def n_parameters__no_output(vocab_size, dim, n_layers, n_heads, n_kv_heads, ffn_dim, tied):
    """one of the output is missing"""
    right = _n(vocab_size, dim, n_layers, n_kv_heads * dim // n_heads, ffn_dim, 2 - tied)
    return right - n_layers * dim * dim


def n_parameters__head_never(vocab_size, dim, n_layers, n_heads, n_kv_heads, ffn_dim, tied):
    """a head that is not tied counts"""
    return _n(vocab_size, dim, n_layers, n_kv_heads * dim // n_heads, ffn_dim)


def step_memory__no_logits(n_parameters, n_inner, vocab_size, bytes_per_number, reference):
    """the logits are missing"""
    return bytes_per_number * (5 if reference else 4) * n_parameters


def step_memory__no_reference(n_parameters, n_inner, vocab_size, bytes_per_number, reference):
    """reference policy has parameters"""
    return bytes_per_number * (4 * n_parameters + n_inner * vocab_size)


def step_memory__two_vectors(n_parameters, n_inner, vocab_size, bytes_per_number, reference):
    """four numbers"""
    return bytes_per_number * ((3 if reference else 2) * n_parameters + n_inner * vocab_size)


def blockwise_logp__logits(hidden, head, token, block):
    """logit alone"""
    return (hidden * head[token]).sum(-1)


def _blockwise(hidden, head, token):
    z = hidden @ head.T
    top = z.max(-1)
    return (hidden * head[token]).sum(-1), top + np.log(np.exp(z - top[:, None]).sum(-1))


def blockwise_logp__probabilities(hidden, head, token, block):
    """take their log"""
    chosen, total = _blockwise(hidden, head, token)
    return np.exp(chosen - total)


def blockwise_logp__surprise(hidden, head, token, block):
    """signs are flipped"""
    chosen, total = _blockwise(hidden, head, token)
    return total - chosen


def blockwise_logp__no_logit(hidden, head, token, block):
    """the chosen logit is missing"""
    return -_blockwise(hidden, head, token)[1]


def _until(tokens, pieces, is_there):
    found = (n for n in range(1, len(tokens) + 1) if is_there([pieces[t] for t in tokens[:n]]))
    return next(found, len(tokens))


def tokens_until_stop__at_the_end(tokens, pieces, stop):
    """not at its end"""
    return _until(tokens, pieces, lambda known: b"".join(known).endswith(stop.encode()))


def tokens_until_stop__last_two_tokens(tokens, pieces, stop):
    """made of three tokens"""
    return _until(tokens, pieces, lambda known: stop.encode() in b"".join(known[-2:]))


def tokens_until_stop__ignores_errors(tokens, pieces, stop):
    """do not decode with 'ignore'"""
    return _until(tokens, pieces, lambda known: stop in b"".join(known).decode(errors="ignore"))


def tokens_until_stop__whole_characters_only(tokens, pieces, stop):
    """search bytes"""

    def is_there(known):
        try:
            return stop in b"".join(known).decode()
        except UnicodeDecodeError:
            return False

    return _until(tokens, pieces, is_there)


def blockwise_logp__largest_from_zero(hidden, head, token, block):
    """begin with -inf"""
    largest, total = np.zeros(len(hidden)), np.zeros(len(hidden))
    for start in range(0, len(head), block):
        z = hidden @ head[start : start + block].T
        new = np.maximum(largest, z.max(1))
        total = total * np.exp(largest - new) + np.exp(z - new[:, None]).sum(1)
        largest = new
    return (hidden * head[token]).sum(1) - largest - np.log(total)


def blockwise_logp__chosen_of_the_last_block(hidden, head, token, block):
    """taken from its own block"""
    logits = hidden @ head.T
    last = (len(head) - 1) // block * block
    chosen = logits[np.arange(len(token)), last + token % (len(head) - last)]
    top = logits.max(1, keepdims=True)
    return chosen - top[:, 0] - np.log(np.exp(logits - top).sum(1))
