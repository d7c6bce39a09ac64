"""Right answers to some exercises by other ways than those of the solutions: <function>__<way>.

The checks must accept them all.
"""

import math
import re
from fractions import Fraction

import numpy as np


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def expected_reward_gradient__jacobian(logits, rewards):
    p = _softmax(logits)
    return (np.diag(p) - np.outer(p, p)) @ rewards


def reinforce__add_at(logits, actions, rewards):
    out = -rewards.sum() * _softmax(logits)
    np.add.at(out, actions, rewards)
    return out / len(actions)


def softmax_backward__jacobians(dp, p):
    return [(np.diag(row) - np.outer(row, row)) @ d for row, d in zip(p, dp, strict=True)]


def rmsnorm_backward__jacobians(dy, x, weight, eps):
    dx = np.empty_like(x)
    for i, row in enumerate(x):
        r = math.sqrt((row @ row) / len(row) + eps)
        dx[i] = (np.eye(len(row)) / r - np.outer(row, row) / (len(row) * r**3)) @ (dy[i] * weight)
    rms = np.sqrt((x**2).mean(1, keepdims=True) + eps)
    return [dx, (dy * x / rms).sum(0)]


def rope_backward__complex(dy, position, base):
    j = np.arange(dy.shape[1] // 2)
    turn = np.exp(-1j * np.outer(position, base ** (-2 * j / dy.shape[1])))
    return (np.ascontiguousarray(dy).view(complex) * turn).view(float)


def draw__argmax(logits, temperature, uniform):
    z = logits / temperature
    logp = (
        z
        - z.max(1, keepdims=True)
        - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True))
    )
    return (np.exp(logp).cumsum(1) > uniform[:, None]).argmax(1)


def draw__searchsorted(logits, temperature, uniform):
    p = np.exp(logits / temperature)
    return [
        int(np.searchsorted(np.cumsum(row), u * row.sum(), side="right"))
        for row, u in zip(p, uniform, strict=True)
    ]


def completion_logps__loop(logits, tokens, n_prompt, temperature):
    out = []
    for t in range(n_prompt, len(tokens)):
        out.append(np.log(_softmax(logits[t - 1] / temperature)[tokens[t]]))
    return out


def completion_mask__loop(tokens, eos):
    out = np.zeros(tokens.shape, dtype=int)
    for i, row in enumerate(tokens.tolist()):
        out[i, : row.index(eos) + 1 if eos in row else len(row)] = 1
    return out


def verify__other_regex(text, answer):
    lines = [line for line in text.splitlines() if line.startswith("answer:")]
    if len(lines) != 1:
        return 0
    found = re.fullmatch(r"answer:\s*(-?[0-9]{1,400})\s*", lines[0])
    return int(bool(found) and int(found.group(1)) == answer)


def pass_at_k__product(n, correct, k):
    return 1.0 if n - correct < k else 1 - float(np.prod(1 - k / np.arange(n - correct + 1, n + 1)))


def pass_at_k__fractions(n, correct, k):
    none = Fraction(1)
    for i in range(k):
        none *= Fraction(max(n - correct - i, 0), n - i)
    return float(1 - none)


def group_advantages__loop(rewards):
    rows = []
    for r in rewards.tolist():
        mean, k = math.fsum(r) / len(r), len(r)
        std = math.sqrt(math.fsum((x - mean) ** 2 for x in r) / (k - 1))
        rows.append([0.0] * k if len(set(r)) == 1 else [(x - mean) / (std + 1e-4) for x in r])
    return rows


def clipped_loss__by_sign(logp, old, advantage, low, high):
    ratio = np.exp(logp - old)
    bounded = np.where(advantage > 0, np.minimum(ratio, 1 + high), np.maximum(ratio, 1 - low))
    return -np.mean(bounded * advantage), np.where(bounded == ratio, -ratio * advantage, 0) / len(
        ratio
    )


def process_sets_by_hand__other_order():
    sets = [((4,), 0, 2), ((1,), 2, 3), ({0, 2}, 2, 4), ([2, 1, 0], 1, 2), ([3, 2, 1, 0], 0, 1)]
    return [*sets, (np.arange(5), 0, 0)]


def process_set__loop(completions, i, t):
    found = np.array(
        [len(c) > t and all(c[s] == completions[i][s] for s in range(t + 1)) for c in completions]
    )
    return np.flatnonzero(found)


def counts__dictionary(completions):
    seen = {}
    for c in completions:
        for t in range(len(c)):
            seen[tuple(c[: t + 1])] = seen.get(tuple(c[: t + 1]), 0) + 1
    return [[seen[tuple(c[: t + 1])] for t in range(len(c))] for c in completions]


def flawed_group__longer():
    group = [[1, 2, 3]] + [[1, 4 + i] for i in range(3)] + [[9, i] for i in range(4)]
    return group, [2.0, -1.0, -1.0, -1.0, 1.5, 1.5, 1.5, 1.5]


def placebo_weights__shuffle(completions, rng):
    weights = [
        [1 / sum(o[: t + 1] == c[: t + 1] for o in completions) for t in range(len(c))]
        for c in completions
    ]
    pool = [w for row in weights for w in row]
    rng.shuffle(pool)
    return [[pool.pop() for _ in row] for row in weights]


def pushed_down__by_sums(completions, rewards):
    a = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
    out, down = ([], [], [], []), set()
    for i, own in enumerate(completions):
        sets = [
            [j for j, o in enumerate(completions) if o[: t + 1] == own[: t + 1]]
            for t in range(len(own))
        ]
        sums = [sum(a[j] for j in members) for members in sets]
        means = [s / len(members) for s, members in zip(sums, sets, strict=True)]
        values = [sum(rewards[j] for j in members) / len(members) for members in sets]
        for rows, row in zip(out, (values, means, sums, means), strict=True):
            rows.append(row)
        down |= {i for members, s in zip(sets, sums, strict=True) if s < 0 and len(members) > 1}
    return *out, np.array(sorted(down, reverse=True))


def clipped_tree_loss__by_rows(paths, advantages, logp, old, low, high):
    ratio, n = np.exp(logp - old), (paths >= 0).sum()
    loss, dlogp = 0.0, np.zeros(len(logp))
    for row, a in zip(paths.tolist(), advantages.tolist(), strict=True):
        for node in row:
            if node >= 0:
                plain, clipped = ratio[node] * a, min(max(ratio[node], 1 - low), 1 + high) * a
                loss -= min(plain, clipped) / n
                dlogp[node] -= plain / n if plain <= clipped else 0.0
    return loss, dlogp


def logits_gradient__by_child(dlogp, token, parent, logits):
    out, p = np.zeros_like(logits), _softmax(logits)
    for n, up in enumerate(parent.tolist()):
        if up >= 0:
            out[up] -= dlogp[n] * p[up]
            out[up, token[n]] += dlogp[n]
    return out


def to_neighbouring_pairs__loop(weight, n_heads):
    width = len(weight) // n_heads
    rows = [
        weight[h * width + j + half]
        for h in range(n_heads)
        for j in range(width // 2)
        for half in (0, width // 2)
    ]
    return np.stack(rows)


def blockwise_logp__two_passes(hidden, head, token, block):
    starts = range(0, len(head), block)
    largest = np.max([(hidden @ head[i : i + block].T).max(1) for i in starts], axis=0)
    total = sum(np.exp(hidden @ head[i : i + block].T - largest[:, None]).sum(1) for i in starts)
    return np.einsum("nd,nd->n", hidden, head[token]) - largest - np.log(total)


def leave_one_out_gradient__only_onehot(logits, actions, rewards):
    """The advantages sum to 0, so the part with the softmax drops out."""
    r = rewards - (rewards.sum() - rewards) / (len(rewards) - 1)
    return np.bincount(actions, r, len(logits)) / len(r)


def expected_reward_gradient__objects(logits, rewards):
    e = [math.exp(z - max(logits)) for z in logits]
    p = [x / sum(e) for x in e]
    j = sum(x * r for x, r in zip(p, rewards, strict=True))
    return np.array([x * (r - j) for x, r in zip(p, rewards, strict=True)], dtype=object)


def best_baseline__zero_dimensional(logits, rewards):
    p = _softmax(logits)
    weight = p * (1 - 2 * p + p @ p)
    return np.array(weight @ rewards / weight.sum())


def leave_one_out_gradient__one_hots_alone(logits, actions, rewards):
    n = len(rewards)  # the weights of the draws add up to 0, so that π drops out
    return np.bincount(actions, (rewards - rewards.mean()) / (n - 1), minlength=len(logits))


def softmax_backward__in_place(dp, p):
    dp -= (dp * p).sum(-1, keepdims=True)
    dp *= p
    return dp


def attention_backward__stacked(do, q, k, v):
    time, width = q.shape
    out = np.zeros((3, time, width))
    for t in range(time):
        p = _softmax(k[: t + 1] @ q[t] / width**0.5)
        dp = v[: t + 1] @ do[t]
        ds = p * (dp - p @ dp) / width**0.5
        out[0, t] = ds @ k[: t + 1]
        out[1, : t + 1] += np.outer(ds, q[t])
        out[2, : t + 1] += np.outer(p, do[t])
    return out


def draw__as_floats(logits, temperature, uniform):
    return (_softmax(logits / temperature).cumsum(1) <= uniform[:, None]).sum(1).astype(float)


def pass_at_k__product_of_misses(n, correct, k):
    if n - correct < k:
        return 1.0
    return 1.0 - np.prod(1.0 - k / np.arange(n - correct + 1, n + 1))


def clipped_loss__larger_loss(logp, old, advantage, low, high):
    ratio = np.exp(logp - old)
    one, two = -advantage * ratio, -advantage * np.clip(ratio, 1 - low, 1 + high)
    return np.maximum(one, two).mean(), np.where(one >= two, one, 0) / len(logp)


def kl_estimates__expm1(logp, ref):
    x = ref - logp
    return list(-x), tuple(x * x / 2), np.expm1(x) - x


def process_set__recursive(completions, i, t):
    alike = process_set__recursive(completions, i, t - 1) if t else range(len(completions))
    return [j for j in alike if completions[j][t : t + 1] == completions[i][t : t + 1]]


def counts__object_array(completions):
    out = np.empty(len(completions), dtype=object)
    for i, c in enumerate(completions):
        out[i] = [sum(d[: t + 1] == c[: t + 1] for d in completions) for t in range(len(c))]
    return out


def two_sums__stacked(paths, advantages, n_nodes):
    there = (paths[:, :, None] == np.arange(n_nodes)).any(1)
    return np.stack([np.maximum(advantages, 0) @ there, np.minimum(advantages, 0) @ there])


def to_neighbouring_pairs__matrix(weight, n_heads):
    width = len(weight) // n_heads
    order = np.arange(width).reshape(2, -1).T.ravel()
    return np.kron(np.eye(n_heads), np.eye(width)[order]) @ weight


def n_parameters__float(vocab_size, dim, n_layers, n_heads, n_kv_heads, ffn_dim, tied):
    layer = 2 * dim + 2 * dim**2 + 2 * n_kv_heads * (dim / n_heads) * dim + 3 * dim * ffn_dim
    return vocab_size * dim * (2 - tied) + n_layers * layer + dim


def blockwise_logp__logaddexp(hidden, head, token, block):
    total = np.full(len(hidden), -np.inf)
    for start in range(0, len(head), block):
        logits = hidden @ head[start : start + block].T
        total = np.logaddexp(total, np.logaddexp.reduce(logits, axis=1))
    return (hidden * head[token]).sum(1) - total
