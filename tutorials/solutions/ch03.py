"""Answers to the exercises of chapter 3."""

import math
import re

import numpy as np


def draw(logits, temperature, uniform):
    """The token is the number of cumulative probabilities that are at most the uniform number."""
    z = logits / temperature
    p = np.exp(z - z.max(-1, keepdims=True))
    cumulative = np.cumsum(p / p.sum(-1, keepdims=True), axis=-1)  # (n,V)
    token = (cumulative <= uniform[:, None]).sum(-1)
    # The last cumulative probability may be rounded below 1.
    return np.minimum(token, logits.shape[1] - 1)


def completion_logps(logits, tokens, n_prompt, temperature):
    """The logits at position t - 1 score the token at t; the last logits score nothing."""
    z = logits[n_prompt - 1 : -1] / temperature
    z = z - z.max(-1, keepdims=True)
    logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
    chosen = tokens[n_prompt:]
    return logp[np.arange(len(chosen)), chosen]


def completion_mask(tokens, eos):
    """A token counts if there is no eos before it."""
    is_eos = tokens == eos
    eos_before = np.cumsum(is_eos, axis=1) - is_eos
    return eos_before == 0


def verify(text, answer):
    """One line with nothing but the number.   [0-9], as \\d matches digits of other scripts."""
    claims = [line for line in text.split("\n") if line.startswith("answer:")]
    found = re.fullmatch(r"answer: *(-?)0*([0-9]+) *", claims[0]) if len(claims) == 1 else None
    # Texts are compared, because int() refuses very long ones.
    return float(found is not None and found[1] + found[2] == str(answer))


def pass_at_k(n, correct, k):
    """1 - (ways to draw k wrong ones) / (ways to draw k).   math.comb is 0 if too few are wrong."""
    return 1 - math.comb(n - correct, k) / math.comb(n, k)
