"""Exercises of chapter 3, rollouts.

Fill in the functions, then run: minigrpo check ch03

Shapes: n draws, V vocabulary, L tokens of prompt and completion together, B completions, T time.
"""

import numpy as np  # noqa: F401 (you will need it)


def draw(logits, temperature, uniform):
    """ch03 task 1: drawing by inversion.   logits (n,V), temperature > 0, uniform (n,) in [0, 1)
    -> (n,) int

    Draw i takes a token from softmax(logits[i] / temperature): the first token v whose cumulative
    probability p_0 + … + p_v is greater than uniform[i].

    >>> logits = np.log(np.array([[1.0, 1.0, 2.0], [1.0, 1.0, 2.0]]))  # probabilities 1/4, 1/4, 1/2
    >>> draw(logits, 1.0, np.array([0.3, 0.6])).tolist()
    [1, 2]
    """
    raise NotImplementedError("ch03 task 1: drawing by inversion")


def completion_logps(logits, tokens, n_prompt, temperature):
    """ch03 task 2: log-probabilities of a completion.   logits (L,V), tokens (L,) int
    -> (L - n_prompt,)

    tokens is a prompt of n_prompt ≥ 1 tokens and a completion, which ends with its EOS.  logits[t]
    is the model's output after it has read tokens[0] … tokens[t].  The completion was sampled at
    this temperature.  Return log π of each of its tokens.

    >>> logits = np.log(np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]))
    >>> np.exp(completion_logps(logits, np.array([0, 1, 0]), 1, 1.0)).round(6).tolist()
    [0.5, 0.9]
    """
    raise NotImplementedError("ch03 task 2: log-probabilities of a completion")


def completion_mask(tokens, eos):
    """ch03 task 3: which tokens are trained.   tokens (B,T) int, eos a token -> (B,T) bool

    A row is a completion that ends with its first eos, and is padded after it; a row without eos
    was stopped by the length limit and is T long.  Return True for every token of the completion,
    its eos included (it must be learnt, too), and False for padding.  The token that pads may be
    any token, even eos.

    >>> completion_mask(np.array([[5, 9, 9], [5, 6, 7]]), 9).tolist()
    [[True, True, False], [True, True, True]]
    """
    raise NotImplementedError("ch03 task 3: which tokens are trained")


def verify(text, answer):
    """ch03 task 4: a verifier that cannot be fooled.   text a completion, answer an int
    -> 1.0 or 0.0

    A completion may contain any lines of reasoning, before and after, and gives its answer in a
    line whose first characters are "answer:", in small letters.  Return 1.0 if there is exactly one
    such line and what follows in it is exactly the answer: an optional minus sign and the digits 0
    to 9, with spaces around it allowed ("answer: 42", "answer:  042 ").  Otherwise return 0.0,
    whatever the text is, and never raise.

    >>> verify("6 * 7 is 42\\nanswer: 42", 42), verify("answer: 41\\nanswer: 42", 42)
    (1.0, 0.0)
    """
    raise NotImplementedError("ch03 task 4: a verifier that cannot be fooled")


def pass_at_k(n, correct, k):
    """ch03 task 5: pass@k.   ints with 1 ≤ k ≤ n, 0 ≤ correct ≤ n -> a number

    Of n samples to one problem, `correct` were right.  Draw k of the n without replacement: what is
    the chance that at least one is right?  This is the unbiased estimate of pass@k.

    >>> pass_at_k(4, 2, 1), round(pass_at_k(4, 2, 2), 6)
    (0.5, 0.833333)
    """
    raise NotImplementedError("ch03 task 5: pass@k")
