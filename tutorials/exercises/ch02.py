"""Exercises of chapter 2, a transformer by hand.

Fill in the functions, then run: minigrpo check ch02

`dx` is d loss / d x.  A backward takes the gradient of the output and returns the gradient of the
input.  Shapes: N rows, V vocabulary, D model width, T time, E head width.
"""

import numpy as np  # noqa: F401 (you will need it)


def softmax_backward(dp, p):
    """ch02 task 1: backward of softmax.   dp (N,V), p (N,V) -> dx (N,V)

    p = softmax(x) along the last axis: p_v = exp(x_v) / Σ_w exp(x_w), and
    ∂p_w/∂x_v = p_w (1[v=w] - p_v).

    >>> softmax_backward(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])).tolist()
    [[0.25, -0.25]]
    """
    raise NotImplementedError("ch02 task 1: backward of softmax")


def log_softmax_backward(dlogp, logp):
    """ch02 task 2: backward of log-softmax.   dlogp (N,V), logp (N,V) -> dx (N,V)

    logp = log softmax(x) along the last axis: logp_v = x_v - log Σ_w exp(x_w).  dlogp may be
    anything, not only a one-hot.

    >>> logp = np.log(np.array([[0.5, 0.5]]))
    >>> log_softmax_backward(np.array([[1.0, 0.0]]), logp).round(12).tolist()
    [[0.5, -0.5]]
    """
    raise NotImplementedError("ch02 task 2: backward of log-softmax")


def rmsnorm_backward(dy, x, weight, eps):
    """ch02 task 3: backward of RMSNorm.   dy (N,D), x (N,D), weight (D,), eps a number
    -> (dx (N,D), dweight (D,))

    y = x / rms(x) · weight, with rms(x) = √(mean(x²) + eps) over the last axis, one per row.

    >>> dy, x, weight = np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]]), np.ones(2)
    >>> dx, dweight = rmsnorm_backward(dy, x, weight, 0.0)
    >>> dx.tolist(), dweight.tolist()
    ([[0.5, -0.5]], [1.0, 0.0])
    """
    raise NotImplementedError("ch02 task 3: backward of RMSNorm")


def rope_backward(dy, position, base):
    """ch02 task 4: backward of rotary positions.   dy (N,E), position (N,), base a number
    -> dx (N,E)

    The forward turns each pair of neighbours (x[2j], x[2j+1]), read as a vector in the plane, by
    the angle position · base^(-2j/E).  A rotation is a linear map; its backward multiplies by the
    transposed matrix.

    >>> rope_backward(np.array([[1.0, 0.0]]), np.array([np.pi / 2]), 10_000.0).round(12).tolist()
    [[0.0, -1.0]]
    """
    raise NotImplementedError("ch02 task 4: backward of rotary positions")


def attention_backward(do, q, k, v):
    """ch02 task 5: backward of attention.   do, q, k, v (T,E) -> (dq, dk, dv), (T,E) each

    One head, causal:  s = q kᵀ / √E  (T,T);  s[t,u] = -inf for u > t;  p = softmax(s) along the
    last axis;  o = p v.  You have to compute p again.  Undo the steps in reverse order.  In the
    example there is a single key, so p is 1 whatever q and k are.

    >>> one = np.ones((1, 2))
    >>> [d.tolist() for d in attention_backward(one, one, one, one)]
    [[[0.0, 0.0]], [[0.0, 0.0]], [[1.0, 1.0]]]
    """
    raise NotImplementedError("ch02 task 5: backward of attention")
