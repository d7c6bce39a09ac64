"""Wrong answers to the exercises of chapter 3: functions <function>__<mistake>.

The docstring has the texts that the message must contain, separated by |.
"""

import math
import re

import numpy as np


def _p(logits, temperature=1.0):
    e = np.exp((logits - logits.max(-1, keepdims=True)) / temperature)
    return e / e.sum(-1, keepdims=True)


def _score(logits, tokens):
    return np.log(_p(logits))[np.arange(len(tokens)), tokens]


def draw__no_temperature(logits, temperature, uniform):
    """temperature 0.5 | not divided by the temperature"""
    return (_p(logits).cumsum(-1) <= uniform[:, None]).sum(-1)


def draw__border(logits, temperature, uniform):
    """on a border"""
    return (_p(logits, temperature).cumsum(-1) < uniform[:, None]).sum(-1)


def draw__off_by_one(logits, temperature, uniform):
    """the token before the right one"""
    return (_p(logits, temperature).cumsum(-1) <= uniform[:, None]).sum(-1) - 1


def draw__greedy(logits, temperature, uniform):
    """likeliest"""
    return logits.argmax(-1)


def completion_logps__shifted(logits, tokens, n_prompt, temperature):
    """it scores token t + 1"""
    return _score(logits[n_prompt:] / temperature, tokens[n_prompt:])


def completion_logps__no_temperature(logits, tokens, n_prompt, temperature):
    """not divided by the temperature"""
    return _score(logits[n_prompt - 1 : -1], tokens[n_prompt:])


def completion_logps__no_eos(logits, tokens, n_prompt, temperature):
    """expected shape (4,), got shape (3,) | one missing"""
    return _score(logits[n_prompt - 1 : -2] / temperature, tokens[n_prompt:-1])


def completion_logps__first_token_lost(logits, tokens, n_prompt, temperature):
    """one missing"""
    return _score(logits[n_prompt:-1] / temperature, tokens[n_prompt + 1 :])


def completion_logps__logits(logits, tokens, n_prompt, temperature):
    """log-softmax is missing"""
    return (logits[n_prompt - 1 : -1] / temperature)[
        np.arange(len(tokens) - n_prompt), tokens[n_prompt:]
    ]


def completion_mask__no_eos(tokens, eos):
    """the policy never learns to stop"""
    return np.cumsum(tokens == eos, axis=1) == 0


def completion_mask__everything(tokens, eos):
    """tokens after the first EOS are padding"""
    return np.ones(tokens.shape, dtype=bool)


def completion_mask__padding_is_zero(tokens, eos):
    """completion | position | expected | got"""
    return tokens != 0


def verify__contains(text, answer):
    """expected 0, got 1 | no line that begins with answer:"""
    return float(str(answer) in text or verify__last_line(text, answer))


def verify__last_line(text, answer):
    """answer: 41\\nanswer: 42 | exactly one line"""
    found = re.findall(r"^answer: *(-?[0-9]+) *$", text, re.M)
    return float(bool(found) and len(found[-1]) < 9 and int(found[-1]) == answer)


def verify__int_reads_it(text, answer):
    """4_2"""
    lines = [line[7:] for line in text.split("\n") if line.startswith("answer:")]
    try:
        return float(len(lines) == 1 and int(lines[0]) == answer)
    except ValueError:
        return 0.0


def verify__raises(text, answer):
    """'42' where the answer is 42 | expected an answer, got IndexError | runs past the end"""
    return float(int(text.split("answer:")[1]) == answer)


def pass_at_k__with_replacement(n, correct, k):
    """with replacement"""
    return 1 - (1 - correct / n) ** k


def pass_at_k__share(n, correct, k):
    """pass@1"""
    return correct / n


def pass_at_k__range_off_by_one(n, correct, k):
    """expected | got"""
    return 1 - np.prod([1 - k / i for i in range(n - correct + 1, n)])


def draw__multiplied(logits, temperature, uniform):
    """not multiplied by it"""
    return (_p(logits, 1 / temperature).cumsum(-1) <= uniform[:, None]).sum(-1)


def draw__one_too_many(logits, temperature, uniform):
    """the token after the right one"""
    return (_p(logits, temperature).cumsum(-1) <= uniform[:, None]).sum(-1) + 1


def completion_logps__temperature_afterwards(logits, tokens, n_prompt, temperature):
    """it comes before softmax"""
    return _score(logits[n_prompt - 1 : -1], tokens[n_prompt:]) / temperature


def completion_logps__multiplied(logits, tokens, n_prompt, temperature):
    """not multiplied by it"""
    return _score(logits[n_prompt - 1 : -1] * temperature, tokens[n_prompt:])


def completion_logps__probabilities(logits, tokens, n_prompt, temperature):
    """take their log"""
    return np.exp(_score(logits[n_prompt - 1 : -1] / temperature, tokens[n_prompt:]))


def completion_logps__of_the_prompt(logits, tokens, n_prompt, temperature):
    """the completion begins after the prompt"""
    n = len(tokens) - n_prompt
    return _score(logits[:n] / temperature, tokens[1 : n + 1])


def completion_mask__one_more(tokens, eos):
    """tokens after the first EOS are padding"""
    return np.cumsum(tokens == eos, axis=1) <= 1


def completion_mask__inverse(tokens, eos):
    """True where it should be False"""
    return np.cumsum(tokens == eos, axis=1) - (tokens == eos) > 0


def completion_mask__only_eos(tokens, eos):
    """where the EOS stands"""
    return tokens == eos


def verify__first_line(text, answer):
    """the first of two lines is right"""
    found = re.findall(r"^answer: *(-?[0-9]+) *$", text, re.M)
    return float(bool(found) and len(found[0]) < 9 and int(found[0]) == answer)


def pass_at_k__none_right(n, correct, k):
    """subtract it from 1"""
    return math.comb(n - correct, k) / math.comb(n, k)


def pass_at_k__all_right(n, correct, k):
    """one of them is enough"""
    return math.comb(correct, k) / math.comb(n, k)


def pass_at_k__expected_number(n, correct, k):
    """expected number of right ones"""
    return k * correct / n


def draw__no_cumulative_sum(logits, temperature, uniform):
    """take the cumulative sum first"""
    return (_p(logits, temperature) > uniform[:, None]).argmax(-1)


def draw__softmax_over_rows(logits, temperature, uniform):
    """the wrong axis"""
    p = _p(logits.T, temperature).T
    return (p.cumsum(-1) > uniform[:, None]).argmax(-1)


def completion_mask__argmax_without_eos(tokens, eos):
    """completion 2 | argmax gives 0 there"""
    return np.arange(tokens.shape[1]) <= (tokens == eos).argmax(1)[:, None]


def completion_mask__rows_without_eos_left_out(tokens, eos):
    """a row without EOS is all True"""
    out = np.zeros(tokens.shape, dtype=bool)
    for row, mask in zip(tokens.tolist(), out, strict=True):
        if eos in row:
            mask[: row.index(eos) + 1] = True
    return out


def _verify(lines, pattern, answer):
    if len(lines) != 1:
        return 0.0
    match = re.fullmatch(pattern, lines[0])
    return float(bool(match) and len(match[1]) < 9 and int(match[1]) == answer)


def verify__over_two_lines(text, answer):
    """in another line"""
    found = re.findall(r"^answer:\s*-?[0-9]+\s*$", text, re.M)
    lines = [line for line in text.split("\n") if line.startswith("answer:")]
    return _verify(found if len(lines) == 1 else [], r"answer:\s*(-?[0-9]+)\s*", answer)


def verify__last_line_only(text, answer):
    """any line may come after"""
    lines = text.split("\n")
    if sum(line.startswith("answer:") for line in lines) != 1:
        return 0.0
    return _verify(lines[-1:], r"answer: *(-?[0-9]+) *", answer)


def verify__strips_the_line(text, answer):
    """begins with a space"""
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line.startswith("answer:")]
    return _verify(lines, r"answer: *(-?[0-9]+) *", answer)


def verify__any_case(text, answer):
    """capitals matter"""
    lines = [line for line in text.split("\n") if line.lower().startswith("answer:")]
    return _verify([line.lower() for line in lines], r"answer: *(-?[0-9]+) *", answer)


def verify__two_minus_signs(text, answer):
    """one minus sign is allowed"""
    lines = [line for line in text.split("\n") if line.startswith("answer:")]
    lines = [line.replace("--", "-") for line in lines]
    return _verify(lines, r"answer: *(-?[0-9]+) *", answer)


def pass_at_k__certain_too_early(n, correct, k):
    """certain only if n - c < k"""
    if n - correct <= k and correct:
        return 1.0
    return 1 - math.comb(n - correct, k) / math.comb(n, k)
