"""Wrong answers to the exercises of chapter 2: functions <function>__<mistake>.

The docstring has the texts that the message must contain, separated by |.
"""

import numpy as np


def _p(q, k, causal=True):
    s = q @ k.T / np.sqrt(q.shape[1]) + (
        np.where(np.tri(len(q), dtype=bool), 0.0, -np.inf) if causal else 0.0
    )
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def _attention(do, q, k, v, p):
    dp = do @ v.T
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / np.sqrt(q.shape[1])
    return ds @ k, ds.T @ q, p.T @ do


def softmax_backward__no_sum(dp, p):
    """the sum Σ_w p_w dp_w is missing"""
    return p * dp


def softmax_backward__diagonal(dp, p):
    """diagonal"""
    return p * (1 - p) * dp


def softmax_backward__other_axis(dp, p):
    """wrong axis"""
    return p * (dp - (p * dp).sum(0, keepdims=True))


def softmax_backward__one_sum_for_all(dp, p):
    """row 0, column 0 | expected | got"""
    return p * (dp - (p * dp).sum())


def log_softmax_backward__as_if_one_hot(dlogp, logp):
    """only where dlogp is a one-hot"""
    return dlogp - np.exp(logp)


def log_softmax_backward__no_exp(dlogp, logp):
    """exp is missing"""
    return dlogp - logp * dlogp.sum(-1, keepdims=True)


def rmsnorm_backward__rms_as_a_constant(dy, x, weight, eps):
    """In dx: | rms(x) depends on x too"""
    unit = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return dy * weight / np.sqrt((x * x).mean(-1, keepdims=True) + eps), (dy * unit).sum(0)


def rmsnorm_backward__sum_for_mean(dy, x, weight, eps):
    """In dx: | not a sum"""
    inv = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    unit, du = x * inv, dy * weight
    return inv * (du - unit * (du * unit).sum(-1, keepdims=True)), (dy * unit).sum(0)


def rmsnorm_backward__dweight_a_row(dy, x, weight, eps):
    """In dweight: | shape (4,), got shape (3, 4)"""
    inv = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    unit, du = x * inv, dy * weight
    return inv * (du - unit * (du * unit).mean(-1, keepdims=True)), dy * unit


def rmsnorm_backward__dweight_without_norm(dy, x, weight, eps):
    """In dweight: | normalised x"""
    inv = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    unit, du = x * inv, dy * weight
    return inv * (du - unit * (du * unit).mean(-1, keepdims=True)), (dy * x).sum(0)


def _turn(dy, position, base, sign):
    turn = np.exp(
        sign * 1j * position[:, None] * base ** (-np.arange(0, dy.shape[1], 2) / dy.shape[1])
    )
    return (dy.view(complex) * turn).view(float)


def rope_backward__forwards(dy, position, base):
    """turns forwards"""
    return _turn(dy, position, base, 1)


def rope_backward__off_by_one(dy, position, base):
    """the angle at position 0 is 0"""
    return _turn(dy, position + 1, base, -1)


def rope_backward__half_split(dy, position, base):
    """neighbours 2j and 2j + 1"""
    half = dy.shape[1] // 2
    angle = position[:, None] * base ** (-np.arange(half) / half)
    a, b = dy[:, :half], dy[:, half:]
    return np.concatenate(
        [a * np.cos(angle) + b * np.sin(angle), b * np.cos(angle) - a * np.sin(angle)], 1
    )


def attention_backward__no_scale(do, q, k, v):
    """In dq: | 1/√E is missing"""
    dq, dk, dv = _attention(do, q, k, v, _p(q, k))
    return dq * np.sqrt(q.shape[1]), dk * np.sqrt(q.shape[1]), dv


def attention_backward__no_mask(do, q, k, v):
    """In dv: | causal mask"""
    return _attention(do, q, k, v, _p(q, k, causal=False))


def attention_backward__p_not_transposed(do, q, k, v):
    """In dv: | p must be transposed"""
    dq, dk, _ = _attention(do, q, k, v, _p(q, k))
    return dq, dk, _p(q, k) @ do


def attention_backward__ds_not_transposed(do, q, k, v):
    """In dk: | changed places"""
    p, dp = _p(q, k), do @ v.T
    dq, _, dv = _attention(do, q, k, v, p)
    return dq, p * (dp - (p * dp).sum(-1, keepdims=True)) @ q / np.sqrt(q.shape[1]), dv


def softmax_backward__no_p(dp, p):
    """factor p_v"""
    return dp - (p * dp).sum(-1, keepdims=True)


def softmax_backward__of_the_log(dp, p):
    """backward of log-softmax"""
    return dp - p * dp.sum(-1, keepdims=True)


def softmax_backward__sum_over_everything(dp, p):
    """every row has a sum of its own"""
    return p * (dp - (p * dp).sum())


def log_softmax_backward__of_softmax(dlogp, logp):
    """backward of softmax"""
    p = np.exp(logp)
    return p * (dlogp - (p * dlogp).sum(-1, keepdims=True))


def log_softmax_backward__sum_over_everything(dlogp, logp):
    """every row has a sum of its own"""
    return dlogp - np.exp(logp) * dlogp.sum()


def log_softmax_backward__other_axis(dlogp, logp):
    """wrong axis"""
    return dlogp - np.exp(logp) * dlogp.sum(0)


def log_softmax_backward__nothing(dlogp, logp):
    """dlogp alone"""
    return dlogp


def _rmsnorm(dy, x, weight, eps):
    inv = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    unit, du = x * inv, dy * weight
    return inv, unit, inv * (du - unit * (du * unit).mean(-1, keepdims=True)), (dy * unit).sum(0)


def rmsnorm_backward__no_weight(dy, x, weight, eps):
    """In dx: | dunit = dy · weight"""
    return _rmsnorm(dy, x, np.ones_like(weight), eps)[2:]


def rmsnorm_backward__weight_afterwards(dy, x, weight, eps):
    """In dx: | before the mean is taken"""
    _, _, dx, dweight = _rmsnorm(dy, x, np.ones_like(weight), eps)
    return dx * weight, dweight


def rmsnorm_backward__no_root(dy, x, weight, eps):
    """In dx: | 1 / rms is missing"""
    inv, _, dx, dweight = _rmsnorm(dy, x, weight, eps)
    return dx / inv, dweight


def rmsnorm_backward__no_eps(dy, x, weight, eps):
    """In dx: | eps is missing"""
    return _rmsnorm(dy, x, weight, 0.0)[2:]


def rmsnorm_backward__dweight_weighted(dy, x, weight, eps):
    """In dweight: | the weight itself is not in it"""
    _, _, dx, dweight = _rmsnorm(dy, x, weight, eps)
    return dx, dweight * weight


def rmsnorm_backward__dweight_mean(dy, x, weight, eps):
    """In dweight: | a sum is asked for"""
    _, _, dx, dweight = _rmsnorm(dy, x, weight, eps)
    return dx, dweight / len(x)


def rope_backward__exponent_halved(dy, position, base):
    """exponent"""
    return _turn(dy, position, base**0.5, -1)


def attention_backward__no_sum(do, q, k, v):
    """In dq: | needs its sum over the keys"""
    p, root = _p(q, k), np.sqrt(q.shape[1])
    ds = p * (do @ v.T) / root
    return ds @ k, ds.T @ q, p.T @ do


def attention_backward__other_axis(do, q, k, v):
    """In dq: | wrong axis"""
    p, dp, root = _p(q, k), do @ v.T, np.sqrt(q.shape[1])
    ds = p * (dp - (p * dp).sum(0)) / root
    return ds @ k, ds.T @ q, p.T @ do


def attention_backward__q_and_k_swapped(do, q, k, v):
    """In dq: | dq = ds k"""
    p, dp = _p(q, k), do @ v.T
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / np.sqrt(q.shape[1])
    return ds @ q, ds.T @ k, p.T @ do


def attention_backward__scaled_twice(do, q, k, v):
    """In dq: | twice"""
    dq, dk, dv = _attention(do, q, k, v, _p(q, k))
    return dq / np.sqrt(q.shape[1]), dk / np.sqrt(q.shape[1]), dv


def attention_backward__dk_from_k(do, q, k, v):
    """In dk: | dk = dsᵀ q"""
    p, dp = _p(q, k), do @ v.T
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / np.sqrt(q.shape[1])
    return ds @ k, ds.T @ k, p.T @ do


def softmax_backward__weights_of_the_sum(dp, p):
    """here it is Σ_w dp_w"""
    return p * (dp - dp.sum(-1, keepdims=True))


def softmax_backward__plus(dp, p):
    """subtracted, not added"""
    return p * (dp + (p * dp).sum(-1, keepdims=True))


def softmax_backward__all_zero(dp, p):
    """row 0, column 0: expected -0.25497, got 0 (12 of 12"""
    return [(np.diag(row) - np.outer(row, row)).sum(0) * d for row, d in zip(p, dp, strict=True)]


def log_softmax_backward__diagonal(dlogp, logp):
    """(1 - p) dlogp, the diagonal alone"""
    return dlogp * (1 - np.exp(logp))


def rmsnorm_backward__plus(dy, x, weight, eps):
    """the part along x is subtracted"""
    r = np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    u, g = x / r, dy * weight
    return (g + u * (g * u).mean(-1, keepdims=True)) / r, (dy * u).sum(0)


def rmsnorm_backward__sum_of_squares(dy, x, weight, eps):
    """the mean of x²"""
    r = np.sqrt((x**2).sum(-1, keepdims=True) + eps)
    u, g = x / r, dy * weight
    return (g - u * (g * u).sum(-1, keepdims=True)) / r, (dy * u).sum(0)


def rmsnorm_backward__eps_outside(dy, x, weight, eps):
    """eps is missing, or in another place"""
    r = np.sqrt((x**2).mean(-1, keepdims=True)) + eps
    u, g = x / r, dy * weight
    return (g - u * (g * u).mean(-1, keepdims=True)) / r, (dy * u).sum(0)


def rope_backward__overwritten(dy, position, base):
    """keep the old one until then"""
    for j in range(dy.shape[1] // 2):
        angle = position * base ** (-2 * j / dy.shape[1])
        c, s = np.cos(angle), np.sin(angle)
        dy[:, 2 * j] = c * dy[:, 2 * j] + s * dy[:, 2 * j + 1]
        dy[:, 2 * j + 1] = c * dy[:, 2 * j + 1] - s * dy[:, 2 * j]
    return dy


def rope_backward__growing_angle(dy, position, base):
    """the exponent is -2j/E"""
    return _turn(dy, position, 1 / base, -1)


def attention_backward__zeros_for_the_future(do, q, k, v):
    """-inf in s, not 0"""
    e = np.exp(q @ k.T / np.sqrt(q.shape[1]) * np.tri(len(q)))
    return _attention(do, q, k, v, e / e.sum(-1, keepdims=True))


def attention_backward__softmax_over_queries(do, q, k, v):
    """in dv | softmax over the keys"""
    e = np.exp(q @ k.T / np.sqrt(q.shape[1])) * np.tri(len(q))
    return _attention(do, q, k, v, e / e.sum(0))


def attention_backward__divided_by_the_width(do, q, k, v):
    """by √E, not by E"""
    return _attention(do, q, k, v, _p(q / np.sqrt(q.shape[1]), k))


def attention_backward__not_scaled(do, q, k, v):
    """in dv | the factor 1/√E is missing"""
    return _attention(do, q, k, v, _p(q * np.sqrt(q.shape[1]), k))


def attention_backward__order(do, q, k, v):
    """the order is dq, dk, dv"""
    return _attention(do, q, k, v, _p(q, k))[::-1]
