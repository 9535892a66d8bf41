"""Goldens: every mechanism written a second time, from its paper's equations, in float64 numpy, one stream at a time.

    python -m tests.golden.make        writes tests/golden/*.npz

Nothing here is shared with memtx: attention compares every pair of tokens at its distance, caches are lists of indices.
Gradients are by complex step: for an analytic f, Im f(x + i h v) / h with h = 1e-30 is the derivative along v to the last
bits of float64, since nothing is subtracted; one evaluation per coordinate gives the whole gradient. Under it a stop-gradient
is "take the real part".

An npz holds: settings (json), x.* and param.* and shared.* (float32 inputs), weight (the loss is sum(y * weight)), y, and
grad.* of every input.

T query time, S source time, N query heads, K kv heads, H head dim, D model, E hidden, C segment, M memory slots.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
ROWS, TIME = 4, 16
N, K, H, D, E = 4, 2, 4, 8, 6
STEP = 1e-30


@dataclass(frozen=True)
class Golden:
    """oracle(inputs of one stream, **settings) -> y_T...; shapes: of the inputs, those of x without the leading ROWS."""

    memory: str
    oracle: Callable
    shapes: dict[str, tuple[int, ...]]
    config: dict = field(default_factory=dict)
    position: str = "rope"


# --- the oracles ----------------------------------------------------------------------------------------------------------


def softmax(score: np.ndarray, seen: np.ndarray) -> np.ndarray:
    shift = np.where(seen, score.real, -np.inf).max(-1, keepdims=True)
    weight = np.exp(np.where(seen, score - shift, 0)) * seen
    return weight / weight.sum(-1, keepdims=True)


def rotate(x: np.ndarray, by: np.ndarray) -> np.ndarray:
    """RoPE: the pair (x_i, x_{i+H/2}) as a complex number times exp(i by 10000^(-2i/H)), in real arithmetic."""
    angle = by[..., None, None] * 10_000.0 ** (-2 * np.arange(H // 2) / H)
    a, b = x[..., : H // 2], x[..., H // 2 :]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1)


def t5_bucket(distance: np.ndarray) -> np.ndarray:
    """T5's one-directional buckets (32 of them, 128 the farthest)."""
    far = 16 + np.floor(np.log(np.maximum(distance, 1) / 16) / np.log(128 / 16) * 16)
    return np.where(distance < 16, np.maximum(distance, 0), np.minimum(far, 31)).astype(int)


def pairwise(q_TNH, k_SNH, v_SNH, seen_TS, distance_TS, position: str, table=None) -> np.ndarray:
    """Attention of every query to every key that it sees, at the distance stated for the pair."""
    q_TSNH = np.broadcast_to(q_TNH[:, None], (*distance_TS.shape, *q_TNH.shape[1:]))
    if position == "rope":
        q_TSNH = rotate(q_TSNH, distance_TS)
    score_NTS = np.einsum("tsnh,snh->nts", q_TSNH, k_SNH) / np.sqrt(H)
    if position == "alibi":
        score_NTS = score_NTS - 2.0 ** (-8 * np.arange(1, N + 1) / N)[:, None, None] * distance_TS
    if position == "t5":
        score_NTS = score_NTS + np.moveaxis(table[t5_bucket(distance_TS)], -1, 0)
    return np.einsum("nts,snh->tnh", softmax(score_NTS, seen_TS), v_SNH)


def cached(cache_of: Callable[[int], list[tuple[int, int]]]) -> Callable:
    """Attention over an explicit cache: cache_of(t) lists (token, distance) for the query at t."""

    def oracle(a, position: str, **config):
        seen, distance = np.zeros((TIME, TIME), bool), np.zeros((TIME, TIME))
        for t in range(TIME):
            for j, far in cache_of(t, **config):
                seen[t, j], distance[t, j] = True, far
        k, v = (np.repeat(a[name], N // K, 1) for name in ("x.k", "x.v"))  # query head n reads kv head n // (N / K)
        return pairwise(a["x.q"], k, v, seen, distance, position, a.get("shared.relative_bias"))

    return oracle


def recent(t: int, size: int) -> list[tuple[int, int]]:
    return [(j, t - j) for j in range(t + 1) if j > t - size]


def streaming(t: int, window: int, sinks: int) -> list[tuple[int, int]]:
    """StreamingLLM: positions are places in the cache; the query's own entry is its last."""
    kept = [j for j in range(t + 1) if j < sinks or j > t - window]
    return [(j, len(kept) - 1 - place) for place, j in enumerate(kept)]


def transformer_xl(a, segment: int, memory: int, **config):
    """h~ = [SG(mem), h]; A_ij = ((q_i + u) k_j + (q_i + w) Wr R_{i-j}) / sqrt(H); mem <- last M of [mem, h]."""
    mem, outs = np.zeros((0, D)), []
    for start in range(0, TIME, segment):
        h = a["x.x"][start : start + segment]
        both = np.concatenate([mem.real, h])
        heads = (-1, N, H)
        q = (h @ a["param.q.w"]).reshape(heads)
        k, v = ((both @ w).reshape(heads) for w in np.split(a["param.kv.w"], 2, 1))
        distance = len(mem) + np.arange(len(h))[:, None] - np.arange(len(both))
        seen = distance >= 0
        if config["position"] == "rope":
            y = pairwise(q, k, v, seen, distance, "rope")
        else:
            angle = distance[..., None] * 10_000.0 ** (-2 * np.arange(D // 2) / D)
            r = (np.concatenate([np.sin(angle), np.cos(angle)], -1) @ a["param.r.w"]).reshape(*distance.shape, N, H)
            content = np.einsum("tnh,snh->nts", q + a["param.u"], k)
            location = np.einsum("tnh,tsnh->nts", q + a["param.w"], r)
            y = np.einsum("nts,snh->tnh", softmax((content + location) / np.sqrt(H), seen), v)
        outs.append(y.reshape(len(h), -1) @ a["param.out.w"])
        mem = both[-memory:]
    return np.concatenate(outs)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(a, position: str, hidden: int):
    h, c, outs = np.zeros(hidden), np.zeros(hidden), []
    for x in a["x.x"]:
        i, f, g, o = np.split(x @ a["param.x.w"] + h @ a["param.h"] + a["param.b"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outs.append(h @ a["param.out.w"])
    return np.stack(outs)


def gru(a, position: str, hidden: int):
    h, outs = np.zeros(hidden), []
    w, u, b = (np.split(a[f"param.{name}"], 3, -1) for name in ("x.w", "h", "b"))
    for x in a["x.x"]:
        r = sigmoid(x @ w[0] + h @ u[0] + b[0])
        z = sigmoid(x @ w[1] + h @ u[1] + b[1])
        n = np.tanh(x @ w[2] + b[2] + r * (h @ u[2]))
        h = (1 - z) * n + z * h
        outs.append(h @ a["param.out.w"])
    return np.stack(outs)


# --- the cases ------------------------------------------------------------------------------------------------------------


def _attention(memory: str, oracle, config: dict) -> dict[str, Golden]:
    shapes = {"x.q": (TIME, N, H), "x.k": (TIME, K, H), "x.v": (TIME, K, H)}
    table = {"shared.relative_bias": (32, N)}
    return {
        f"{memory}-{position}": Golden(memory, oracle, shapes | (table if position == "t5" else {}), config, position)
        for position in ("rope", "alibi", "t5", "none")
    }


def _cell(memory: str, oracle, gates: int) -> dict[str, Golden]:
    shapes = {"x.x": (TIME, D), "param.x.w": (D, gates * E), "param.h": (E, gates * E), "param.b": (gates * E,)}
    return {memory: Golden(memory, oracle, shapes | {"param.out.w": (E, D)}, {"hidden": E})}


_XL = {"x.x": (TIME, D), "param.q.w": (D, N * H), "param.kv.w": (D, 2 * N * H), "param.out.w": (N * H, D)}
_RELATIVE = {"param.r.w": (D, N * H), "param.u": (N, H), "param.w": (N, H)}
_SIZES = {"segment": 4, "memory": 6}

GOLDENS: dict[str, Golden] = {
    **_attention("full", cached(lambda t, capacity: recent(t, capacity)), {"capacity": 7}),
    **_attention("window", cached(lambda t, window: recent(t, window)), {"window": 5}),
    **_attention("sink", cached(streaming), {"window": 4, "sinks": 2}),
    "xl-relative": Golden("xl", transformer_xl, _XL | _RELATIVE, _SIZES | {"position": "relative"}),
    "xl-rope": Golden("xl", transformer_xl, _XL, _SIZES | {"position": "rope"}),
    **_cell("lstm", lstm, 4),
    **_cell("gru", gru, 3),
}


# --- values and gradients ---------------------------------------------------------------------------------------------------


def inputs(name: str) -> dict[str, np.ndarray]:
    """Random inputs of a golden, rounded to float32 so that both sides see the same numbers."""
    rng = np.random.default_rng(list(name.encode()))
    shapes = GOLDENS[name].shapes
    return {
        key: rng.normal(size=(ROWS, *shape) if key.startswith("x.") else shape).astype(np.float32)
        for key, shape in shapes.items()
    }


def outputs(name: str, a: dict[str, np.ndarray]) -> np.ndarray:
    """y of all streams, real or complex."""
    golden = GOLDENS[name]
    settings = {"position": golden.position} | golden.config
    rows = [{key: v[row] if key.startswith("x.") else v for key, v in a.items()} for row in range(ROWS)]
    return np.stack([golden.oracle(row, **settings) for row in rows])


def derivative(name: str, a: dict[str, np.ndarray], direction: dict[str, np.ndarray]) -> np.ndarray:
    """dy along a direction in the space of all inputs, by complex step."""
    return outputs(name, {key: v.astype(float) + 1j * STEP * direction.get(key, 0) for key, v in a.items()}).imag / STEP


def gradients(name: str, a: dict[str, np.ndarray], weight: np.ndarray) -> dict[str, np.ndarray]:
    """d sum(y * weight) / d input, for every input. Streams are independent, so one step moves a coordinate of all of them."""
    grads = {}
    for key, value in a.items():
        streams = key.startswith("x.")
        shape = value.shape[1:] if streams else value.shape
        grad = np.zeros((*shape, ROWS))
        for index in np.ndindex(shape):
            direction = np.zeros(value.shape)
            direction[(slice(None), *index) if streams else index] = 1
            dy = derivative(name, a, {key: direction})
            grad[index] = (dy * weight).reshape(ROWS, -1).sum(1)
        grads[key] = np.moveaxis(grad, -1, 0) if streams else grad.sum(-1)
    return grads


def make(name: str) -> dict[str, np.ndarray]:
    golden, a = GOLDENS[name], inputs(name)
    settings = {"memory": golden.memory, "config": golden.config, "position": golden.position}
    y = outputs(name, {key: v.astype(float) for key, v in a.items()})
    weight = np.random.default_rng(len(name)).normal(size=y.shape).astype(np.float32)
    grads = {f"grad.{key}": v.astype(np.float32) for key, v in gradients(name, a, weight).items()}
    return a | grads | {"settings": np.array(json.dumps(settings)), "y": y.astype(np.float32), "weight": weight}


if __name__ == "__main__":
    for name in GOLDENS:
        np.savez_compressed(FOLDER / f"{name}.npz", **make(name))
        print(name)
