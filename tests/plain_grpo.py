"""GRPO and its relatives in pure Python, token by token, as somebody might write it down.

`test_vectors.py` plants mistakes in the text of this file, a line or two at a time.  A `Dual` is a
number with its derivative by the log-probability of the token at hand.
"""

import math


class Dual:
    def __init__(self, value, slope=0.0):
        self.value, self.slope = value, slope

    def __add__(self, other):
        other = number(other)
        return Dual(self.value + other.value, self.slope + other.slope)

    def __mul__(self, other):
        other = number(other)
        return Dual(self.value * other.value, self.slope * other.value + self.value * other.slope)

    def __neg__(self):
        return self * -1.0

    def __sub__(self, other):
        return self + -number(other)

    def __rsub__(self, other):
        return number(other) + -self

    def __lt__(self, other):
        return self.value < other.value


def number(x):
    return x if isinstance(x, Dual) else Dual(x)


def exp(x):
    e = math.exp(x.value)
    return Dual(e, e * x.slope)


def clip(x, low, high):
    return min(max(x, Dual(low)), Dual(high))


def loss(
    ids, mask, group, rewards, truncated, logp, old, ref, max_new_tokens, micro_batches,
    baseline, scale, ddof, std_eps, aggregation, alpha, process_reward,
    clip_low, clip_high, beta, kl, mask_truncated, pad_id, eos_id,
):  # fmt: skip
    rows, width = range(len(ids)), len(ids[0])
    kept = [not (mask_truncated and truncated[i]) for i in rows]
    length = [sum(mask[i]) for i in rows]
    counts = [[bool(mask[i][t]) and kept[i] for t in range(width)] for i in rows]

    def mates(i):
        return [j for j in rows if group[j] == group[i]]

    def members(i, t):
        begin = ids[i][: t + 1]
        return [j for j in mates(i) if t < length[j] and ids[j][: t + 1] == begin]

    def std(i):
        values = [rewards[j] for j in (mates(i) if scale == "group_std" else rows)]
        if scale == "none" or max(values) == min(values):
            return 1.0
        mean = sum(values) / len(values)
        variance = sum((r - mean) ** 2 for r in values) / (len(values) - ddof)
        return math.sqrt(variance) + std_eps

    def base(i):
        others = [j for j in mates(i) if baseline != "leave_one_out" or j != i]
        return 0.0 if baseline == "none" else sum(rewards[j] for j in others) / len(others)

    def advantage(i, t):
        if process_reward == "outcome":
            return (rewards[i] - base(i)) / std(i)
        if not mask[i][t]:
            return 0.0
        value = sum(rewards[j] for j in members(i, t)) / len(members(i, t))
        return (value - base(i)) / std(i)

    def weight(i, t):
        if not mask[i][t]:
            return 1.0
        size = sum(kept[j] for j in members(i, t))
        return 1 / max(size, 1) ** alpha

    n = [sum(counts[i]) for i in rows]

    def share(i):
        if aggregation == "group_token_mean":
            return 1 / (len(set(group)) * (sum(n[j] for j in mates(i)) or 1))
        if aggregation == "batch_token_mean":
            return 1 / (sum(n) or 1)
        if aggregation == "sequence_mean":
            return 1 / (len(ids) * (n[i] or 1))
        return 1 / (len(ids) * (max_new_tokens if aggregation == "constant" else 1))

    total, gradient = 0.0, [[0.0] * width for _ in rows]
    for i in rows:
        for t in range(width):
            if not counts[i][t]:
                continue
            now, a = Dual(logp[i][t], 1.0), advantage(i, t)
            ratio = exp(now - old[i][t])
            term = ratio * a
            if clip_low is not None:
                term = min(term, clip(ratio, 1 - clip_low, 1 + clip_high) * a)
            x = ref[i][t] - now
            if kl == "k1":
                divergence = now - ref[i][t]
            elif kl == "k2":
                divergence = x * x * 0.5
            else:
                divergence = exp(x) - x - 1
            term = term - divergence * beta
            term = -term * share(i) * weight(i, t)
            total, gradient[i][t] = total + term.value, term.slope
    return total, gradient


def scores(logits, ids, mask, prompt_width, temperature):
    """log p of every token of the completions."""
    out = []
    for i, row in enumerate(ids):
        out.append([])
        for t, token in enumerate(row):
            z = [v / temperature for v in logits[i][prompt_width + t - 1]]
            out[-1].append(z[token] - math.log(sum(math.exp(v) for v in z)))
    return out


def lambda_weights(completions, group, truncated, mask_truncated):
    out = []
    for i, y in enumerate(completions):
        others = [
            completions[j] for j in range(len(completions))
            if group[j] == group[i] and not (mask_truncated and truncated[j])
        ]  # fmt: skip
        shared = [sum(x[: t + 1] == y[: t + 1] for x in others) for t in range(len(y))]
        out.append([1 / max(n, 1) for n in shared])
    return out
