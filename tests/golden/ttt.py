"""Oracles of the memories that train at test time: ttt_linear, ttt_mlp. Gradients of the inner loss by hand.

T time, N heads, H head dim, n mini-batch.
"""

from __future__ import annotations

import numpy as np

from tests.golden.base import TIME, D, Golden, H, N, rotate, sigmoid

C = np.sqrt(2 / np.pi)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(C * (x + 0.044715 * x**3)))


def gelu_slope(x):
    t = np.tanh(C * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * C * (1 + 3 * 0.044715 * x * x)


def centred(z):
    z = z - z.mean(-1, keepdims=True)
    deviation = np.sqrt((z * z).mean(-1, keepdims=True) + 1e-6)
    return z / deviation, deviation


def layer_norm(z, scale, bias):
    return centred(z)[0] * scale + bias


def slope_at_norm(z, scale, bias, target):
    """d 1/2 |LN(z) - target|^2 / dz."""
    unit, deviation = centred(z)
    g = (scale * unit + bias - target) * scale
    return (g - g.mean(-1, keepdims=True) - unit * (g * unit).mean(-1, keepdims=True)) / deviation


def inner_gradients(weights, k, target, scale, bias):
    """Per head, of one token: [(dW, db), ...]. weights: [(W_NIO, b_N1O), ...]; k, target: [N, 1, H]."""
    if len(weights) == 1:
        ((w, b),) = weights
        u = slope_at_norm(k @ w + b, scale, bias, target)
        return [(k.swapaxes(1, 2) @ u, u)]
    (w0, b0), (w1, b1) = weights
    z = k @ w0 + b0
    x = gelu(z)
    u1 = slope_at_norm(x @ w1 + b1, scale, bias, target)
    u0 = (u1 @ w1.swapaxes(1, 2)) * gelu_slope(z)
    return [(k.swapaxes(1, 2) @ u0, u0), (x.swapaxes(1, 2) @ u1, u1)]


def trained_while_reading(a, position: str, mini_batch: int, base_lr: float = 1.0, depth: int = 1):
    q, k, v = (x.reshape(TIME, N, H) for x in np.split(a["x.x"] @ a["param.qkv.w"], 3, -1))
    place = np.arange(TIME) % mini_batch
    q, k = rotate(q, place)[:, :, None], rotate(k, place)[:, :, None]
    s = base_lr * sigmoid(a["x.x"] @ a["param.rate.w"] + a["param.rate.b"]) / H
    scale, bias = a["param.scale"], a["param.bias"]
    start, outs = [(a[f"param.w{i}"], a[f"param.b{i}"]) for i in range(depth)], []
    now, total = start, []
    for t in range(TIME):
        if t % mini_batch == 0:
            start = now
            total = [(0 * w, 0 * b) for w, b in start]
        rate = s[t][:, None, None]
        grads = inner_gradients(start, k[t], v[t][:, None] - k[t], scale, bias)
        total = [(gw + rate * w, gb + rate * b) for (gw, gb), (w, b) in zip(total, grads, strict=True)]
        row = 1 / (t % mini_batch + 1) + a["param.tau"][t % mini_batch]
        row = row if row.real > 0 else 0
        now = [(w - row * gw, b - row * gb) for (w, b), (gw, gb) in zip(start, total, strict=True)]
        y = q[t]
        for i, (w, b) in enumerate(now):
            y = (gelu(y) if i else y) @ w + b
        outs.append((q[t] + layer_norm(y, scale, bias)).reshape(-1))
    return layer_norm(np.stack(outs), a["param.norm.scale"], a["param.norm.bias"]) @ a["param.out.w"]


def _golden(memory: str, sizes: list[tuple[int, int]], mini_batch: int = 5) -> dict[str, Golden]:
    shapes = {"x.x": (TIME, D), "param.qkv.w": (D, 3 * N * H), "param.out.w": (N * H, D)}
    shapes |= {"param.rate.w": (D, N), "param.rate.b": (N,), "param.tau": (mini_batch,)}
    for i, (d_in, d_out) in enumerate(sizes):
        shapes |= {f"param.w{i}": (N, d_in, d_out), f"param.b{i}": (N, 1, d_out)}
    shapes |= {"param.scale": (N, 1, H), "param.bias": (N, 1, H), "param.norm.scale": (N * H,), "param.norm.bias": (N * H,)}

    def oracle(a, **config):
        return trained_while_reading(a, depth=len(sizes), **config)

    return {memory: Golden(memory, oracle, shapes, {"mini_batch": mini_batch, "base_lr": 1.0})}


GOLDENS = _golden("ttt_linear", [(H, H)]) | _golden("ttt_mlp", [(H, 4 * H), (4 * H, H)])
