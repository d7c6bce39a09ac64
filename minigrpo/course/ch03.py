"""Checks of chapter 3, rollouts: tables worked out by hand, and the package's log-softmax and pass@k."""

from __future__ import annotations

import math

import numpy as np

from minigrpo import ops
from minigrpo.course.grading import Answer, Task, ask, compare, shape_of, text, wrong
from minigrpo.runs.evaluation import pass_at_k

# (weights, temperature, uniform number, token): p is proportional to weights^(1/temperature)
DRAWS = (
    ((10, 20, 30, 40), 1.0, 0.05, 0),  # cumulative 0.1, 0.3, 0.6, 1
    ((10, 20, 30, 40), 1.0, 0.29, 1),
    ((10, 20, 30, 40), 1.0, 0.31, 2),
    ((10, 20, 30, 40), 1.0, 0.999, 3),
    ((10, 20, 30, 40), 0.5, 0.05, 1),  # 1/30, 5/30, 14/30, 1
    ((10, 20, 30, 40), 0.5, 0.29, 2),
    ((10, 20, 30, 40), 0.5, 0.5, 3),
    ((1, 4, 9, 16), 2.0, 0.31, 2),  # 0.1, 0.3, 0.6, 1
    ((4, 3, 2, 1), 1.0, 0.05, 0),  # 0.4, 0.7, 0.9, 1
    ((4, 3, 2, 1), 1.0, 0.71, 2),
    ((0, 1, 1, 2), 1.0, 0.0, 1),  # 0, 0.25, 0.5, 1: a token of probability 0 is never drawn
    (
        (1, 1, 0, 0),
        1.0,
        0.5,
        1,
    ),  # on the border, and exactly so: the first token whose cumulative probability is *greater*
    ((1, 1, 2, 0), 1.0, 0.9999999, 2),
)


def _draw(f: Answer) -> None:
    for temperature in (1.0, 0.5, 2.0):
        rows = [(w, u, token) for w, t, u, token in DRAWS if t == temperature]
        with np.errstate(divide="ignore"):
            logits = np.log(np.array([w for w, _, _ in rows], dtype=float))
        uniform, expected = (
            np.array([u for _, u, _ in rows]),
            np.array([token for *_, token in rows]),
        )
        given = f"a batch of draws at temperature {temperature:g}"
        got = ask(f, logits, temperature, uniform, given=given)
        cold, p = (np.exp((logits - logits.max(-1, keepdims=True)) / t) for t in (1.0, temperature))
        p /= p.sum(-1, keepdims=True)
        look = "look again which cumulative probability is the first above the number."
        hints = {
            "the logits were not divided by the temperature.": _by_hand(
                cold / cold.sum(-1, keepdims=True), uniform
            ),
            "this is the likeliest token: nothing was drawn.": p.argmax(-1),
            f"this is the token before the right one: {look}": expected - 1,
            f"this is the token after the right one: {look}": expected + 1,
        }
        if (
            shape_of(got) == expected.shape
            and (wrong_ones := np.flatnonzero(np.asarray(got) != expected)).size
        ):
            i = int(wrong_ones[0])
            given += f", of which draw {i} has probabilities {text(p[i])} and uniform number {float(uniform[i])!r}"
            hint = next((h for h, value in hints.items() if np.array_equal(value, got)), "")
            if not hint and got[i] < expected[i] and uniform[i] in (0.0, 0.5):
                hint = "on a border the next token is drawn: its cumulative probability must be greater than the number, not equal."
            raise wrong(given, f"expected token {expected[i]}, got {text(got[i])}.", hint)
        compare(got, expected, given, axes=("draw",))


def _by_hand(p: np.ndarray, uniform: np.ndarray) -> list[int]:
    """The token of each draw, going through the vocabulary one token at a time."""
    tokens = []
    for row, u in zip(p.tolist(), uniform.tolist(), strict=True):
        token, total = 0, row[0]
        while total <= u and token < len(row) - 1:
            token += 1
            total += row[token]
        tokens.append(token)
    return tokens


def _completion_logps(f: Answer) -> None:
    rng = np.random.default_rng(5)
    for n_prompt, length, temperature in ((2, 6, 0.7), (1, 4, 1.0), (1, 5, 2.0), (3, 3, 0.7)):
        logits, tokens = 2 * rng.standard_normal((length, 5)), rng.integers(5, size=length)
        tokens[-1] = 4

        def scored(
            rows: slice,
            columns: slice,
            t: float,
            z: np.ndarray = logits,
            tokens: np.ndarray = tokens,
        ) -> np.ndarray:
            z, chosen = z[rows] / t, tokens[columns]
            return (
                ops.log_softmax_gather(z, np.arange(len(chosen)), chosen)[0]
                if len(chosen)
                else np.zeros(0)
            )

        before, own = slice(n_prompt - 1, length - 1), slice(n_prompt, length)
        expected = scored(before, own, temperature)
        given = f"a prompt of {n_prompt} and a completion of {length - n_prompt} tokens (the last is EOS), temperature {temperature:g}"
        got = ask(f, logits, tokens, n_prompt, temperature, given=given)
        if len(expected) and shape_of(got) == (len(expected) - 1,):
            missing = "first" if np.allclose(got, expected[1:]) else "last (the EOS)"
            raise wrong(
                given,
                f"expected shape {expected.shape}, got shape {shape_of(got)}.",
                f"the {missing} token has no score.",
            )
        hints = {
            "logits[t] was used to score token t, but it was computed after reading token t: it scores token t + 1.": scored(
                own, own, temperature
            ),
            "the logits were not divided by the temperature: these are log-probabilities of another policy than sampled.": scored(
                before, own, 1.0
            ),
            "these are logits, not log-probabilities: log-softmax is missing.": logits[before][
                np.arange(len(expected)), tokens[own]
            ]
            / temperature,
            "these are probabilities: take their log.": np.exp(expected),
        }
        compare(got, expected, given, axes=("completion token",), hints=hints)


def _completion_mask(f: Answer) -> None:
    for eos, pad in ((9, 9), (9, 0), (0, 0)):
        lengths = [3, 1, 5, 4, 5]
        rows = [
            [5, 6, eos, pad, pad],
            [eos, pad, pad, pad, pad],
            [5, 6, 7, 8, 5],
            [5, 5, 6, eos, pad],
            [3, 5, 6, 7, eos],
        ]
        if pad != eos:
            rows[3], lengths[3] = (
                [5, pad, 6, eos, pad],
                4,
            )  # a token that looks like padding, inside of a completion
        tokens = np.array(rows)
        expected = [[t < n for t in range(5)] for n in lengths]
        given = f"tokens {rows}, eos {eos}, padded with {pad}"
        hints = {
            "the EOS itself is a token of the completion: if it is masked, the policy never learns to stop.": [
                [t < n - (eos in row) for t in range(5)]
                for n, row in zip(lengths, rows, strict=True)
            ],
            "tokens after the first EOS are padding.": np.ones((5, 5)),
            "the token that pads is compared with, but it may also stand inside a completion: look for the first EOS.": tokens
            != pad,
            "True and False are exchanged.": 1 - np.array(expected),
        }
        compare(
            ask(f, tokens, eos, given=given),
            expected,
            given,
            axes=("completion", "position"),
            hints=hints,
        )


# (completion, answer, reward, what a policy would learn from another reward)
TEXTS = (
    ("6 * 7 is 42\nanswer: 42", 42, 1, "the answer is right, the reasoning before it is free."),
    ("answer: 43", 42, 0, "the answer is wrong."),
    ("answer:42", 42, 1, "a space after the colon is allowed, not needed."),
    ("answer:  042 ", 42, 1, "spaces and leading zeros are allowed."),
    ("answer: -7", -7, 1, "answers may be negative."),
    ("answer: 7", -7, 0, "the sign matters."),
    ("42", 42, 0, "there is no line that begins with answer:."),
    ("", 42, 0, "an empty completion has no answer."),
    ("answer:", 42, 0, "nothing follows."),
    (
        "answer: 41\nanswer: 42",
        42,
        0,
        "whoever may give several answers lists them all: accept exactly one line.",
    ),
    ("answer: 42\nanswer: 43", 42, 0, "the first of two lines is right: accept exactly one line."),
    ("answer: 42\nanswer: 42", 42, 0, "two lines, though alike: exactly one is accepted."),
    (
        "answer: 40 41 42 43",
        42,
        0,
        "several numbers in a line: what follows must be the answer and nothing else.",
    ),
    ("answer: 42 or 43", 42, 0, "what follows must be the answer and nothing else."),
    (
        "answer: 421",
        42,
        0,
        "42 is only the beginning of this number: compare numbers, not pieces of text.",
    ),
    (
        "answer: 142",
        42,
        0,
        "42 is only the end of this number: compare numbers, not pieces of text.",
    ),
    ("answer: 42.0", 42, 0, "only digits are allowed."),
    ("answer: 4_2", 42, 0, "Python's int() reads 4_2 as 42; only digits are allowed."),
    ("answer: +42", 42, 0, "a plus sign is not in the format."),
    (
        "answer: ４２",
        42,
        0,
        "these are full-width digits, which int() reads as well; only 0 to 9 are allowed.",
    ),
    ("my answer: 42", 42, 0, "the line does not begin with answer:."),
    ("answer: 6*7", 42, 0, "the completion is not evaluated: only digits are allowed."),
    (
        "answer: " + "9" * 5000,
        42,
        0,
        "a very long number must not stop the verifier: int() refuses more than 4300 digits.",
    ),
)


def _verify(f: Answer) -> None:
    for completion, answer, reward, why in TEXTS:
        shown = (
            repr(completion)
            if len(completion) < 60
            else repr(completion[:20])[:-1] + f"…' ({len(completion)} characters)"
        )
        given = f"the completion {shown} where the answer is {answer}"
        got = ask(f, completion, answer, given=given)
        if shape_of(got) or not isinstance(got, int | float | np.generic):
            raise wrong(given, f"expected 1.0 or 0.0, got {type(got).__name__}.")
        if float(got) != reward:
            raise wrong(given, f"expected {float(reward)}, got {float(got)}.", why)


def _pass_at_k(f: Answer) -> None:
    for n, c, k in (
        (4, 2, 1),
        (4, 2, 2),
        (10, 3, 4),
        (5, 5, 2),
        (5, 0, 3),
        (6, 4, 3),
        (200, 3, 100),
    ):
        given = f"n = {n} samples, {c} of them correct, k = {k}"
        hints = {
            "this is 1 - (1 - c/n)^k: it draws with replacement, which is biased (too low).": 1
            - (1 - c / n) ** k,
            "this is the share of right samples, pass@1.": c / n,
            "this is the chance that *no* draw is right: take it from 1.": 1 - pass_at_k(n, c, k),
            "this is the chance that *all* k draws are right.": math.comb(c, k) / math.comb(n, k),
        }
        compare(ask(f, n, c, k, given=given), pass_at_k(n, c, k), given, hints=hints)


TASKS = (
    Task("drawing by inversion", "draw", _draw),
    Task("log-probabilities of a completion", "completion_logps", _completion_logps),
    Task("which tokens are trained", "completion_mask", _completion_mask),
    Task("a verifier that cannot be fooled", "verify", _verify),
    Task("pass@k", "pass_at_k", _pass_at_k),
)
