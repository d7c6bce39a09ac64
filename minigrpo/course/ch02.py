"""Checks of chapter 2: central differences of the forward, and the package's own backward."""

import numpy as np

from minigrpo import ops
from minigrpo.course.grading import Answer, slope, softmax, task

ROWS = ("row", "column")


def _through_softmax(x: np.ndarray, dp: np.ndarray) -> float:
    return (softmax(x) * dp).sum()


@task(
    "backward of softmax",
    axes=ROWS,
    no_sum="raising x_v lowers all other p_w too: the sum Σ_w p_w dp_w is missing.",
    diagonal="this is p (1 - p) dp, the diagonal of ∂p/∂x alone: its other entries are missing.",
    no_p="the factor p_v before the bracket is missing.",
    no_weights="the sum is Σ_w p_w dp_w; here it is Σ_w dp_w.",
    plus="the sum is subtracted, not added.",
    log="this is the backward of log-softmax: here dp is the gradient by p itself.",
)
def _check_softmax_backward(answer: Answer) -> None:
    rng = np.random.default_rng(0)
    for shape in ((3, 4), (1, 2), (2, 1), (4, 4)):
        x, dp = rng.standard_normal((2, *shape))
        p, right = softmax(x), slope(_through_softmax, x, dp)
        mistakes = dict(no_sum=p * dp, diagonal=p * (1 - p) * dp)
        mistakes |= dict(axis=p * dp - p * (p * dp).sum(0), overall=p * (dp - (p * dp).sum()))
        mistakes |= dict(no_p=dp - (p * dp).sum(-1, keepdims=True))
        mistakes |= dict(log=dp - p * dp.sum(-1, keepdims=True), plus=2 * p * dp - right)
        mistakes |= dict(no_weights=p * (dp - dp.sum(-1, keepdims=True)))
        answer.check(f"random dp and p of shape {shape}", (dp, p), right, **mistakes)


@task(
    "backward of log-softmax",
    axes=ROWS,
    one_hot="this is right only where dlogp is a one-hot: multiply the softmax by Σ dlogp.",
    no_exp="logp is in the place of p: exp is missing.",
    softmax="this is the backward of softmax; here dlogp is the gradient by the log.",
    diagonal="this is (1 - p) dlogp, the diagonal alone: p_v stands times Σ_w dlogp_w.",
    nothing="this is dlogp alone: log-softmax also subtracts log Σ exp x, which depends on x.",
)
def _check_log_softmax_backward(answer: Answer) -> None:
    rng = np.random.default_rng(1)
    for shape in ((3, 4), (1, 2), (2, 1)):
        x, dlogp = rng.standard_normal((2, *shape))
        p = softmax(x)
        mistakes = dict(one_hot=dlogp - p, no_exp=dlogp - np.log(p) * dlogp.sum(-1, keepdims=True))
        mistakes |= dict(axis=dlogp - p * dlogp.sum(0), overall=dlogp - p * dlogp.sum())
        mistakes |= dict(softmax=p * (dlogp - (p * dlogp).sum(-1, keepdims=True)), nothing=dlogp)
        mistakes |= dict(diagonal=(1 - p) * dlogp)
        right = slope(lambda x, d: (np.log(softmax(x)) * d).sum(), x, dlogp)
        given = f"random dlogp and logp of shape {shape}"
        answer.check(given, (dlogp, np.log(p)), right, **mistakes)


@task(
    "backward of RMSNorm",
    axes=ROWS,
    constant="rms(x) depends on x too: the part of the gradient along x is not taken out.",
    total="the part along x must be a mean over the row, as in rms, not a sum.",
    no_norm="the weight scales x / rms(x), not x: dweight needs the normalised x.",
    no_weight="the weight is missing: dunit = dy · weight.",
    late_weight="the weight belongs to dy before the mean is taken: dunit = dy · weight.",
    no_root="the factor 1 / rms is missing.",
    eps="eps is missing, or in another place: rms² is the mean of x² plus eps.",
    plus="the part along x is subtracted, not added.",
    sum_of_squares="rms² is the mean of x² (plus eps), not their sum.",
    weighted="dweight is the gradient by the weight: the weight itself is not in it.",
)
def _check_rmsnorm_backward(answer: Answer) -> None:
    rng = np.random.default_rng(2)
    for shape, eps in (((3, 4), 1e-5), ((1, 5), 0.5), ((4, 4), 1e-5)):
        x, dy = rng.standard_normal((2, *shape))
        weight, dweight = rng.standard_normal(shape[1]), np.zeros(shape[1])
        given = f"random dy and x of shape {shape}, a random weight, eps {eps}"
        _, (unit, inv_rms, _) = ops.rmsnorm(x, weight, eps)
        dx = ops.rmsnorm_backward(dy, (unit, inv_rms, weight), dweight)
        got = answer.parts(given, ("dx", "dweight"), dy, x, weight, eps)
        along = dx - inv_rms * dy * weight  # what the direction of x takes away
        mistakes = dict(constant=dx - along, total=dx + (shape[1] - 1) * along)
        ones, plain = np.ones(shape[1]), np.zeros(shape[1])
        unweighted = ops.rmsnorm_backward(dy, (unit, inv_rms, ones), plain)
        _, (unit0, inv0, _) = ops.rmsnorm(x, weight, 0.0)
        mistakes |= dict(no_weight=unweighted, late_weight=unweighted * weight)
        mistakes |= dict(no_root=dx / inv_rms)
        mistakes |= dict(eps=ops.rmsnorm_backward(dy, (unit0, inv0, weight), plain))
        outside, root = 1 / (1 / inv0 + eps), 1 / np.sqrt((x**2).sum(-1, keepdims=True) + eps)
        for name, inv, n in (("eps_", outside, shape[1]), ("sum_of_squares", root, 1)):
            u, g = x * inv, dy * weight
            mistakes[name] = inv * (g - u * (g * u).sum(-1, keepdims=True) / n)
        mistakes |= dict(plus=dx - 2 * along)
        answer.compare(given, got[0], dx, "dx", **mistakes)
        mistakes = dict(no_norm=(dy * x).sum(0), weighted=dweight * weight)
        mistakes |= dict(eps=(dy * unit0).sum(0), mean=dweight / shape[0])
        answer.compare(given, got[1], dweight, "dweight", **mistakes)


@task(
    "backward of rotary positions",
    axes=("row", "element"),
    forwards="this turns forwards: the transpose of a rotation turns back, by the opposite angle.",
    halves="element j is paired with element j + E/2; here neighbours 2j and 2j + 1 are a pair.",
    from_one="positions count from 0: the angle at position 0 is 0.",
    exponent="the exponent is -2j/E with the number j of the pair: look at it again.",
    overwritten="the second of a pair is made from the new first: keep the old one until then.",
)
def _check_rope_backward(answer: Answer) -> None:
    rng = np.random.default_rng(3)
    for position, width, base in (([0, 1, 5], 4, 100.0), ([2], 6, 10_000.0), ([7, 3], 2, 10.0)):
        t, dy = np.array(position), rng.standard_normal((len(position), width))
        turn, one_on = ops.rotation(t, width, base), ops.rotation(t + 1, width, base)
        back = np.concatenate([np.arange(0, width, 2), np.arange(1, width, 2)]).argsort()
        halves = np.empty_like(dy)
        halves[:, back] = ops.rope_backward(dy[:, None, back].copy(), turn)[:, 0]
        mistakes = dict(forwards=ops.rope(dy[:, None].copy(), turn)[:, 0], halves=halves)
        mistakes |= dict(from_one=ops.rope_backward(dy[:, None].copy(), one_on)[:, 0])
        for n, other in enumerate((base**0.5, base**2, 1 / base, 1.0)):
            turned = ops.rope_backward(dy[:, None].copy(), ops.rotation(t, width, other))
            mistakes["exponent" + "_" * n] = turned[:, 0]
        given = f"random dy of shape {dy.shape}, positions {position}, base {base:g}"
        right = ops.rope_backward(dy[:, None].copy(), turn)[:, 0]
        angle = t[:, None] * base ** (-np.arange(0, width, 2) / width)
        overwritten = right.copy()
        overwritten[:, 1::2] = np.cos(angle) * dy[:, 1::2] - np.sin(angle) * right[:, ::2]
        mistakes |= dict(overwritten=overwritten)
        answer.check(given, (dy, t, base), right, **mistakes)


def _attend(q: np.ndarray, k: np.ndarray, causal: bool = True) -> np.ndarray:
    """Attention's weights.   (T,E), (T,E) -> (T,T)"""
    s = q @ k.T / np.sqrt(q.shape[1])
    return softmax(np.where(np.tri(len(q), dtype=bool), s, -np.inf) if causal else s)


@task(
    "backward of attention",
    axes=("position", "element"),
    p="a value gets its gradient from the queries that look at it: p must be transposed.",
    no_mask="some queries look at later keys: the causal mask is missing when p is computed again.",
    no_scale="the factor 1/√E is missing: s = q kᵀ / √E.",
    zeros="a later key must have -inf in s, not 0: exp(0) is 1.",
    columns="p is the softmax over the keys, the last axis of s.",
    by_width="s is divided by √E, not by E.",
    order="the order is dq, dk, dv.",
    no_sum="the backward of softmax needs its sum over the keys: Σ_u p[t,u] dp[t,u] is missing.",
    swapped="queries and keys have changed places: a key sums over the queries, so transpose ds.",
    twice="the factor 1/√E is in it twice.",
    q="q stands in the place of k: dq = ds k / √E.",
    k="k stands in the place of q: dk = dsᵀ q / √E.",
)
def _check_attention_backward(answer: Answer) -> None:
    rng = np.random.default_rng(4)
    for time, width in ((4, 3), (1, 2), (5, 2)):
        q, k, v, do = rng.standard_normal((4, time, width))
        given = f"random do, q, k, v of shape ({time}, {width})"
        root, p, dp = np.sqrt(width), _attend(q, k), do @ v.T
        ds = slope(_through_softmax, np.log(np.maximum(p, 1e-300)), dp)
        dq = slope(lambda q, k, v, do: float((_attend(q, k) @ v * do).sum()), q, k, v, do)
        dk = slope(lambda k, q, v, do: float((_attend(q, k) @ v * do).sum()), k, q, v, do)
        dv = slope(lambda v, q, k, do: float((_attend(q, k) @ v * do).sum()), v, q, k, do)
        got = answer.parts(given, ("dq", "dk", "dv"), do, q, k, v)
        mistakes = dict(p=p @ do, no_mask=_attend(q, k, False).T @ do, order=dk, order_=dq)
        s, past = q @ k.T / root, np.tri(time)
        mistakes |= dict(zeros=softmax(s * past).T @ do, by_width=_attend(q / root, k).T @ do)
        mistakes |= dict(no_scale=_attend(q * root, k).T @ do)
        columns = softmax(np.where(past, s, -np.inf).T)
        answer.compare(given, got[2], dv, "dv", columns=columns @ do, **mistakes)
        other = p * (dp - (p * dp).sum(0)), p * (dp - (p * dp).sum())
        mistakes = dict(no_scale=dq * root, no_sum=dp * p @ k / root, twice=dq / root)
        mistakes |= dict(axis=other[0] @ k / root, overall=other[1] @ k / root, q=ds @ q / root)
        answer.compare(given, got[0], dq, "dq", **mistakes)
        mistakes = dict(no_scale=dk * root, swapped=ds @ q / root, twice=dk / root)
        mistakes |= dict(no_sum=(dp * p).T @ q / root, k=ds.T @ k / root)
        answer.compare(given, got[1], dk, "dk", **mistakes)
