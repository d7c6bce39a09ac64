"""Answers to the exercises of chapter 2."""

import numpy as np


def softmax_backward(dp, p):
    """dx_v = Σ_w dp_w p_w (1[v=w] - p_v) = p_v (dp_v - Σ_w p_w dp_w)."""
    return p * (dp - (p * dp).sum(-1, keepdims=True))


def log_softmax_backward(dlogp, logp):
    """∂logp_w/∂x_v = 1[v=w] - p_v, so dx_v = dlogp_v - p_v Σ_w dlogp_w."""
    return dlogp - np.exp(logp) * dlogp.sum(-1, keepdims=True)


def rmsnorm_backward(dy, x, weight, eps):
    """Scaling x does not change unit (but for eps), so the part of dunit along unit drops out."""
    inv_rms = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)  # (N,1)
    unit = x * inv_rms  # (N,D)
    dweight = (dy * unit).sum(0)  # (D,)
    dunit = dy * weight  # (N,D)
    dx = inv_rms * (dunit - unit * (dunit * unit).mean(-1, keepdims=True))
    return dx, dweight


def rope_backward(dy, position, base):
    """A rotation's transpose turns back: the same map with the opposite angle."""
    angle = position[:, None] * base ** (-np.arange(0, dy.shape[1], 2) / dy.shape[1])  # (N,E/2)
    even, odd = dy[:, 0::2], dy[:, 1::2]
    dx = np.empty_like(dy)
    dx[:, 0::2] = even * np.cos(angle) + odd * np.sin(angle)
    dx[:, 1::2] = odd * np.cos(angle) - even * np.sin(angle)
    return dx


def attention_backward(do, q, k, v):
    """o = p v;  p = softmax(s);  s = q kᵀ / √E, in reverse.  Where the mask makes p 0, ds is 0."""
    time, width = q.shape
    s = q @ k.T / np.sqrt(width)
    s[np.triu(np.ones((time, time), dtype=bool), 1)] = -np.inf
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)  # (T,T)
    dv = p.T @ do
    dp = do @ v.T
    ds = softmax_backward(dp, p)
    dq = ds @ k / np.sqrt(width)
    dk = ds.T @ q / np.sqrt(width)
    return dq, dk, dv
