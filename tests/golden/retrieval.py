"""Oracles of the memories that retrieve entries: memorizing, landmark, knn_lm."""

from __future__ import annotations

import numpy as np

from tests.golden.base import TIME, Golden, H, K, N, rotate, sigmoid, softmax


def best(score: np.ndarray, count: int) -> np.ndarray:
    """Which of the scores are among the `count` largest."""
    chosen = np.zeros(len(score), bool)
    chosen[np.argsort(-score.real)[:count]] = True
    return chosen


def memorizing(a, position: str, window: int, segment: int, memory: int, neighbours: int, normalise: bool = True):
    """y = g softmax(q SG(k_top)) SG(v_top) + (1 - g) softmax(q k_near) v_near; before a first segment, the window alone."""
    q, k, v = a["x.q"], np.repeat(a["x.k"], N // K, 1), np.repeat(a["x.v"], N // K, 1)
    scale = np.full(N, H**-0.5)
    if normalise:
        q, k = (x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6) for x in (q, k))
        scale = a["param.scale"] * np.sign(a["param.scale"].real)
    y = np.zeros_like(q)
    for t, n in np.ndindex(TIME, N):
        near = np.arange(max(0, t - window + 1), t + 1)
        turned = rotate(np.repeat(q[t : t + 1], len(near), 0), t - near)[:, n]
        score = (turned * k[near, n]).sum(-1) * scale[n]
        y[t, n] = softmax(score, np.full(len(near), True)) @ v[near, n]
        begin = t // segment * segment
        far = np.arange(max(0, begin - memory), begin)
        if len(far):
            score = k[far, n].real @ q[t, n] * scale[n]
            read = softmax(score, best(score, neighbours)) @ v[far, n].real
            gate = sigmoid(a["param.gate"][n])
            y[t, n] = gate * read + (1 - gate) * y[t, n]
    return y


_HEADS = {"x.q": (TIME, N, H), "x.k": (TIME, K, H), "x.v": (TIME, K, H)}
_MEMORIZING = {"window": 3, "segment": 4, "memory": 5, "neighbours": 3}

GOLDENS: dict[str, Golden] = {
    "memorizing": Golden("memorizing", memorizing, _HEADS | {"param.gate": (N,), "param.scale": (N,)}, _MEMORIZING),
    "memorizing-plain": Golden("memorizing", memorizing, _HEADS | {"param.gate": (N,)}, _MEMORIZING | {"normalise": False}),
}
