"""Checks of chapter 3: tables worked out by hand, and the package's log-softmax and pass@k."""

import numpy as np

from minigrpo.course.grading import Answer, softmax, task, text
from minigrpo.runs.evaluation import pass_at_k

# (weights, temperature, uniform number, token): p is proportional to weights^(1/temperature)
DRAWS = (
    ((10, 20, 30, 40), 1.0, 0.05, 0),  # cumulative 0.1, 0.3, 0.6, 1
    ((10, 20, 30, 40), 1.0, 0.29, 1),
    ((10, 20, 30, 40), 1.0, 0.31, 2),
    ((10, 20, 30, 40), 1.0, 0.999, 3),
    ((10, 20, 30, 40), 0.5, 0.05, 1),  # 1/30, 5/30, 14/30, 1
    ((10, 20, 30, 40), 0.5, 0.29, 2),
    ((10, 20, 30, 40), 0.5, 0.35, 2),
    ((10, 20, 30, 40), 0.5, 0.5, 3),
    ((1, 4, 9, 16), 2.0, 0.31, 2),  # 0.1, 0.3, 0.6, 1
    ((4, 3, 2, 1), 1.0, 0.05, 0),  # 0.4, 0.7, 0.9, 1
    ((4, 3, 2, 1), 1.0, 0.71, 2),
    ((0, 1, 1, 2), 1.0, 0.0, 1),  # 0, 0.25, 0.5, 1: a token of probability 0 is never drawn
    ((1, 1, 0, 0), 1.0, 0.5, 1),  # on the border: the cumulative probability must be *greater*
    ((1, 1, 2, 0), 1.0, 0.9999999, 2),
)


@task(
    "drawing by inversion",
    no_temperature="the logits were not divided by the temperature.",
    greedy="this is the likeliest token: nothing was drawn.",
    border="on a border the next token is drawn: the cumulative sum must be greater, not equal.",
    before="this is the token before the right one: take the first whose sum is above the number.",
    after="this is the token after the right one: take the first whose sum is above the number.",
    times="the logits are divided by the temperature, not multiplied by it.",
    no_sum="this compares p itself with the number: take the cumulative sum first.",
    backwards="the cumulative sum runs from the last token to the first.",
)
def _check_draw(answer: Answer) -> None:
    for temperature in (1.0, 0.5, 2.0):
        rows = [(w, u, token) for w, t, u, token in DRAWS if t == temperature]
        weights, uniform, right = (np.array(x) for x in zip(*rows, strict=True))
        with np.errstate(divide="ignore"):
            logits = np.log(weights)
        p, number = softmax(logits / temperature), uniform[:, None]
        given = f"a batch of draws at temperature {temperature:g}"
        mistakes = dict(no_temperature=(softmax(logits).cumsum(-1) <= number).sum(-1))
        mistakes |= dict(greedy=p.argmax(-1), border=(p.cumsum(-1) < number).sum(-1))
        mistakes |= dict(times=(softmax(logits * temperature).cumsum(-1) <= number).sum(-1))
        mistakes |= dict(no_sum=(p > number).argmax(-1))
        by_column = softmax((logits / temperature).T).T.cumsum(-1)
        mistakes |= dict(axis=(by_column > number).argmax(-1))
        mistakes |= dict(before=right - 1, after=right + 1)
        mistakes |= dict(backwards=(p[:, ::-1].cumsum(-1) > number)[:, ::-1].sum(-1) - 1)
        numbers = enumerate(zip(p, uniform.tolist(), strict=True))
        labels = [f"draw {i} (probabilities {text(q)}, number {u!r})" for i, (q, u) in numbers]
        answer.check(given, (logits, temperature, uniform), right, labels=labels, **mistakes)


@task(
    "log-probabilities of a completion",
    axes=("completion token",),
    shifted="logits[t] was computed after reading token t: it scores token t + 1, not token t.",
    no_temperature="the logits were not divided by the temperature: this is another policy.",
    logits="these are logits, not log-probabilities: log-softmax is missing.",
    late="the temperature divides the logits, not the log-probabilities: it comes before softmax.",
    times="the logits are divided by the temperature, not multiplied by it.",
    prompt="these are the first tokens of the sequence: the completion begins after the prompt.",
)
def _check_completion_logps(answer: Answer) -> None:
    rng = np.random.default_rng(5)
    for n_prompt, length, temperature in ((2, 6, 0.7), (1, 4, 1.0), (1, 5, 2.0), (3, 3, 0.7)):
        logits, tokens = 2 * rng.standard_normal((length, 5)), rng.integers(5, size=length)
        tokens[-1] = 4
        n, own = length - n_prompt, tokens[n_prompt:]
        at, before = np.arange(n), logits[n_prompt - 1 : -1]
        right = np.log(softmax(before / temperature))[at, own]
        given = f"a prompt of {n_prompt} and a completion of {n} tokens (the last is EOS), "
        given += f"temperature {temperature:g}"
        mistakes = dict(shifted=np.log(softmax(logits[n_prompt:] / temperature))[at, own])
        mistakes |= dict(no_temperature=np.log(softmax(before))[at, own], no_log=np.exp(right))
        mistakes |= dict(logits=before[at, own] / temperature)
        mistakes |= dict(late=np.log(softmax(before))[at, own] / temperature)
        mistakes |= dict(times=np.log(softmax(before * temperature))[at, own])
        mistakes |= dict(prompt=np.log(softmax(logits[:n] / temperature))[at, tokens[1 : n + 1]])
        answer.check(given, (logits, tokens, n_prompt, temperature), right, **mistakes)


@task(
    "which tokens are trained",
    axes=("completion", "position"),
    no_eos="the EOS itself is trained too: if it is masked, the policy never learns to stop.",
    everything="tokens after the first EOS are padding.",
    padding="the token that pads may also stand inside a completion: look for the first EOS.",
    inverse="this is True where it should be False: True stands for a token that is trained.",
    no_row="a row without EOS is all True; argmax gives 0 there, as if the EOS stood first.",
    only_eos="this is where the EOS stands; every token up to it is trained.",
)
def _check_completion_mask(answer: Answer) -> None:
    for eos, pad in ((9, 9), (9, 0), (0, 0)):
        lengths = np.array([3, 1, 5, 4, 5])
        rows = [[5, 6, eos, pad, pad], [eos, pad, pad, pad, pad], [5, 6, 7, 8, 5]]
        # A token that looks like padding may stand inside a completion.
        rows += [[5, 5 if pad == eos else pad, 6, eos, pad], [3, 5, 6, 7, eos]]
        tokens, right = np.array(rows), np.arange(5) < lengths[:, None]
        mistakes = dict(no_eos=np.arange(5) < (lengths - (tokens == eos).any(1))[:, None])
        mistakes |= dict(everything=np.ones((5, 5)), padding=tokens != pad, inverse=~right)
        ends = (tokens == eos).any(1, keepdims=True)
        first = np.arange(5) <= (tokens == eos).argmax(1)[:, None]
        mistakes |= dict(only_eos=tokens == eos, no_row=first, no_row_=right & ends)
        given = f"tokens {rows}, eos {eos}, padded with {pad}"
        answer.check(given, (tokens, eos), right, **mistakes)


ONE_LINE = "accept exactly one line that begins with answer:."
NOTHING_ELSE = "what follows answer: must be the answer and nothing else."
# (completion, answer, reward, why)
TEXTS = (
    ("6 * 7 is 42\nanswer: 42", 42, 1, "the answer is right, the reasoning before it is free."),
    ("answer: 43", 42, 0, "the answer is wrong."),
    ("answer:42", 42, 1, "a space after the colon is allowed, not needed."),
    ("answer:  042 ", 42, 1, "spaces and leading zeros are allowed."),
    ("answer: -7", -7, 1, "answers may be negative."),
    ("answer: 7", -7, 0, "the sign matters."),
    ("42", 42, 0, "there is no line that begins with answer:."),
    ("", 42, 0, "an empty completion has no answer."),
    ("answer: 42\nThat is all.", 42, 1, "any line may come after that of the answer."),
    ("answer:", 42, 0, "nothing follows."),
    ("answer:\n42", 42, 0, "the number is in another line (\\s matches a line break, too)."),
    (" answer: 42", 42, 0, "the line begins with a space, not with answer:."),
    ("Answer: 42", 42, 0, "the line begins with Answer:, and capitals matter."),
    ("answer: --42", -42, 0, "one minus sign is allowed."),
    ("answer: 41\nanswer: 42", 42, 0, f"many answers could list them all: {ONE_LINE}"),
    ("answer: 42\nanswer: 43", 42, 0, f"the first of two lines is right: {ONE_LINE}"),
    ("answer: 42\nanswer: 42", 42, 0, f"these are two lines, though alike: {ONE_LINE}"),
    ("answer: 40 41 42 43", 42, 0, f"several numbers stand in a line: {NOTHING_ELSE}"),
    ("answer: 42 or 43", 42, 0, NOTHING_ELSE),
    ("answer: 421", 42, 0, "42 is only the beginning of 421: compare numbers, not pieces of text."),
    ("answer: 142", 42, 0, "42 is only the end of 142: compare numbers, not pieces of text."),
    ("answer: 42.0", 42, 0, "only digits are allowed."),
    ("answer: 4_2", 42, 0, "Python's int() reads 4_2 as 42; only digits are allowed."),
    ("answer: +42", 42, 0, "a plus sign is not in the format."),
    ("answer: ４２", 42, 0, "int() reads full-width digits as well; only 0 to 9 are allowed."),
    ("my answer: 42", 42, 0, "the line does not begin with answer:."),
    ("answer: 6*7", 42, 0, "the completion is not evaluated: only digits are allowed."),
    ("answer: " + "9" * 5000, 42, 0, "int() refuses more than 4300 digits, and must not stop you."),
)


@task("a verifier that cannot be fooled")
def _check_verify(answer: Answer) -> None:
    for completion, number, reward, why in TEXTS:
        shown = repr(completion)
        if len(completion) > 60:
            shown = f"{shown[:20]}…' ({len(completion)} characters)"
        given = f"the completion {shown} where the answer is {number}"
        answer.check_number(given, (completion, number), reward, why)


@task(
    "pass@k",
    replaced="this is 1 - (1 - c/n)^k: it draws with replacement, which is biased (too low).",
    share="this is the share of right samples, pass@1.",
    none="this is the probability that none of the k is right: subtract it from 1.",
    all="this is the probability that all k are right; one of them is enough.",
    sure="at n - c = k all k may be wrong: that one is right is certain only if n - c < k.",
    times="this is k·c/n, the expected number of right ones, which can be above 1.",
)
def _check_pass_at_k(answer: Answer) -> None:
    few = ((4, 2, 1), (5, 2, 2), (5, 2, 3), (10, 3, 4), (5, 5, 2), (5, 0, 3), (6, 4, 3))
    for n, c, k in (*few, (200, 3, 100)):
        mistakes = dict(replaced=1 - (1 - c / n) ** k, share=c / n, times=k * c / n)
        mistakes |= dict(none=1 - pass_at_k(n, c, k), all=1 - pass_at_k(n, n - c, k))
        mistakes |= dict(sure=1.0) if n - c == k else {}
        given = f"n = {n} samples, {c} of them correct, k = {k}"
        answer.check(given, (n, c, k), pass_at_k(n, c, k), **mistakes)
