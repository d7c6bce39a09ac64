"""Checks of chapter 2, a transformer by hand: against central differences of the forward, and the package's own backward."""

from __future__ import annotations

import numpy as np

from minigrpo import ops
from minigrpo.course.grading import Answer, Task, ask, compare, parts, slope

ROWS = ("row", "column")


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _softmax_backward(f: Answer) -> None:
    rng = np.random.default_rng(0)
    for shape in ((3, 4), (1, 2), (2, 1), (4, 4)):
        x, dp = rng.standard_normal(shape), rng.standard_normal(shape)
        given = f"random dp and p of shape {shape}"
        p = _softmax(x)
        expected = slope(lambda x, dp=dp: float((_softmax(x) * dp).sum()), x)
        alone = p * dp
        hints = {
            "raising x_v lowers all other p_w too: the sum Σ_w p_w dp_w is missing.": alone,
            "this is p (1 - p) dp, the diagonal of ∂p/∂x alone: what of the other entries of the row?": p
            * (1 - p)
            * dp,
            "the sum runs over the wrong axis: every row is a distribution of its own.": alone
            - p * alone.sum(0),
            "it is a sum over the row, not a mean: p already is the weighting.": alone
            + (expected - alone) / shape[1],
        }
        compare(ask(f, dp, p, given=given), expected, given, axes=ROWS, hints=hints, rtol=1e-6)


def _log_softmax_backward(f: Answer) -> None:
    rng = np.random.default_rng(1)
    for shape in ((3, 4), (1, 2), (2, 1)):
        x, dlogp = rng.standard_normal(shape), rng.standard_normal(shape)
        given = f"random dlogp and logp of shape {shape}"
        p = _softmax(x)
        expected = slope(lambda x, d=dlogp: float((np.log(_softmax(x)) * d).sum()), x)
        total = dlogp.sum(-1, keepdims=True)
        hints = {
            "this is right only where dlogp is a one-hot: the softmax must be multiplied by the row's Σ dlogp.": dlogp
            - p,
            "logp is in the place of p: exp is missing.": dlogp - np.log(p) * total,
            "the sum runs over the wrong axis: every row is a distribution of its own.": dlogp
            - p * dlogp.sum(0),
            "this is the backward of softmax, not of log-softmax.": p
            * (dlogp - (p * dlogp).sum(-1, keepdims=True)),
        }
        compare(
            ask(f, dlogp, np.log(p), given=given),
            expected,
            given,
            axes=ROWS,
            hints=hints,
            rtol=1e-6,
        )


def _rmsnorm_backward(f: Answer) -> None:
    rng = np.random.default_rng(2)
    for shape, eps in (((3, 4), 1e-5), ((1, 5), 0.5), ((4, 4), 1e-5)):
        x, dy, weight = (
            rng.standard_normal(shape),
            rng.standard_normal(shape),
            rng.standard_normal(shape[1]),
        )
        given = f"random dy and x of shape {shape}, a random weight, eps {eps}"
        _, cache = ops.rmsnorm(x, weight, eps)
        unit, inv_rms, _ = cache
        dweight = np.zeros(shape[1])
        dx = ops.rmsnorm_backward(dy, cache, dweight)
        got = parts(ask(f, dy, x, weight, eps, given=given), ("dx", "dweight"), given)
        along = dx - inv_rms * dy * weight  # what the direction of x takes away
        compare(
            got[0],
            dx,
            given,
            name="dx",
            axes=ROWS,
            hints={
                "rms(x) depends on x too: the part of the gradient along x is not taken out.": dx
                - along,
                "the part along x must be a mean over the row, as in rms, not a sum.": dx
                + (shape[1] - 1) * along,
                "the weight is missing: y = unit · weight, so the gradient of unit is dy · weight.": ops.rmsnorm_backward(
                    dy, (unit, inv_rms, np.ones(shape[1])), np.zeros(shape[1])
                ),
                "the factor 1/rms(x) is missing.": dx / inv_rms,
            },
        )
        compare(
            got[1],
            dweight,
            given,
            name="dweight",
            axes=("column",),
            hints={
                "the weight scales x / rms(x), not x: dweight needs the normalised x.": (
                    dy * x
                ).sum(0),
                "the weight is shared by all rows, so its gradient is their sum, not their mean.": dweight
                / len(x),
            },
        )


def _rope_backward(f: Answer) -> None:
    rng = np.random.default_rng(3)
    for position, width, base in (([0, 1, 5], 4, 100.0), ([2], 6, 10_000.0), ([7, 3], 2, 10.0)):
        t, dy = np.array(position), rng.standard_normal((len(position), width))
        given = f"random dy of shape {dy.shape}, positions {position}, base {base:g}"

        def turned(
            t: np.ndarray, back: bool, dy: np.ndarray = dy, width: int = width, base: float = base
        ) -> np.ndarray:
            turn = ops.rotation(t, width, base)
            return (ops.rope_backward if back else ops.rope)(dy[:, None].copy(), turn)[:, 0]

        half = np.concatenate([np.arange(0, width, 2), np.arange(1, width, 2)])
        apart = np.empty_like(dy)  # pairs (j, j + E/2) in place of neighbours
        apart[:, half.argsort()] = ops.rope_backward(
            dy[:, half.argsort()].copy()[:, None], ops.rotation(t, width, base)
        )[:, 0]
        hints = {
            "this turns forwards: the transpose of a rotation turns back, by the opposite angle.": turned(
                t, False
            ),
            "element j is paired with element j + E/2; here neighbours 2j and 2j + 1 are a pair.": apart,
            "positions count from 0: the angle at position 0 is 0.": turned(t + 1, True),
            "nothing is turned.": dy,
        }
        compare(
            ask(f, dy, t, base, given=given),
            turned(t, True),
            given,
            axes=("row", "element"),
            hints=hints,
        )


def _attention_backward(f: Answer) -> None:
    rng = np.random.default_rng(4)
    for time, width in ((4, 3), (1, 2), (5, 2)):
        q, k, v, do = rng.standard_normal((4, time, width))
        given = f"random do, q, k, v of shape ({time}, {width})"
        mask = np.where(np.tri(time, dtype=bool), 0.0, -np.inf)

        def loss(
            q: np.ndarray,
            k: np.ndarray,
            v: np.ndarray,
            do: np.ndarray = do,
            mask: np.ndarray = mask,
        ) -> float:
            return float(((_softmax(q @ k.T / np.sqrt(q.shape[1]) + mask) @ v) * do).sum())

        right = {
            "dv": slope(lambda x, q=q, k=k, f=loss: f(q, k, x), v),
            "dq": slope(lambda x, k=k, v=v, f=loss: f(x, k, v), q),
            "dk": slope(lambda x, q=q, v=v, f=loss: f(q, x, v), k),
        }
        names = ("dq", "dk", "dv")
        got = dict(zip(names, parts(ask(f, do, q, k, v, given=given), names, given), strict=True))
        p, seen, dp = (
            _softmax(q @ k.T / np.sqrt(width) + mask),
            _softmax(q @ k.T / np.sqrt(width)),
            do @ v.T,
        )
        scale = "the factor 1/√E is missing: s = q kᵀ / √E."
        no_sum = (
            "the backward of softmax needs its sum over the keys: Σ_u p[t,u] dp[t,u] is missing."
        )
        swapped = "queries and keys have changed places: a key gathers over the queries, so ds must be transposed."
        hints = {
            "dv": {
                "a value gets its gradient from the queries that look at it: p must be transposed.": p
                @ do,
                "some queries look at later keys: the causal mask is missing when p is computed again.": seen.T
                @ do,
            },
            "dq": {scale: right["dq"] * np.sqrt(width), no_sum: (dp * p) @ k / np.sqrt(width)},
            "dk": {scale: right["dk"] * np.sqrt(width), swapped: _swapped(dp, p, q)},
        }
        for name, expected in right.items():
            compare(
                got[name],
                expected,
                given,
                name=name,
                axes=("position", "element"),
                hints=hints[name],
                rtol=1e-6,
            )


def _swapped(dp: np.ndarray, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """dk by someone who forgot to transpose ds."""
    ds = slope(lambda x: float((_softmax(x) * dp).sum()), np.log(np.maximum(p, 1e-300)))
    return ds @ q / np.sqrt(q.shape[1])


TASKS = (
    Task("backward of softmax", "softmax_backward", _softmax_backward),
    Task("backward of log-softmax", "log_softmax_backward", _log_softmax_backward),
    Task("backward of RMSNorm", "rmsnorm_backward", _rmsnorm_backward),
    Task("backward of rotary positions", "rope_backward", _rope_backward),
    Task("backward of attention", "attention_backward", _attention_backward),
)
