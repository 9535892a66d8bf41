"""Oracles of the memories that retrieve entries: memorizing, landmark, knn_lm."""

from __future__ import annotations

import numpy as np

from tests.golden.base import TIME, VOCAB, D, Golden, H, K, N, rotate, sigmoid, softmax, t5_bucket, token
from tests.golden.cached import streaming


def best(score: np.ndarray, count: int) -> np.ndarray:
    """Which of the scores are among the `count` largest."""
    chosen = np.zeros(len(score), bool)
    chosen[np.argsort(-score.real)[:count]] = True
    return chosen


def memorizing(a, position: str, window: int, segment: int, memory: int, neighbours: int, normalise=True, sinks=0):
    """y = g softmax(q SG(k_top)) SG(v_top) + (1 - g) softmax(q k_near) v_near; before a first segment, the window alone."""
    q, k, v = a["x.q"], np.repeat(a["x.k"], N // K, 1), np.repeat(a["x.v"], N // K, 1)
    scale = np.full(N, H**-0.5)
    if normalise:
        q, k = (x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6) for x in (q, k))
        scale = a["param.scale"] * np.sign(a["param.scale"].real)
    y = np.zeros_like(q)
    for t, n in np.ndindex(TIME, N):
        near, distance = np.array(streaming(t, window, sinks)).T
        turned = rotate(np.repeat(q[t : t + 1], len(near), 0), distance)[:, n]
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


def landmark(a, position: str, block: int, memory: int, neighbours: int):
    """Grouped softmax over the query's block and its best blocks, whose positions come in order of time right before it."""
    q, k, v = a["x.q"], np.repeat(a["x.k"], N // K, 1), np.repeat(a["x.v"], N // K, 1)
    pool = np.repeat(a["param.pool"], N // K, 0)

    def score(t, n, keys_SH, age_S):
        """One query against keys at their ages."""
        queries = np.repeat(q[t : t + 1], len(age_S), 0)
        if position == "rope":
            queries = rotate(queries, age_S)
        dots = (queries[:, n] * keys_SH).sum(-1) / np.sqrt(H)
        if position == "alibi":
            dots = dots - 2.0 ** (-8 * (n + 1) / N) * age_S
        if position == "t5":
            dots = dots + a["shared.relative_bias"][t5_bucket(age_S), n]
        return dots

    y = np.zeros_like(q)
    for t, n in np.ndindex(TIME, N):
        slot, now = t % block, t // block
        past = [np.arange(b * block, (b + 1) * block) for b in range(max(0, now - memory), now)]
        marks = [softmax(k[b, n] @ pool[n] / np.sqrt(H), np.full(block, True)) @ k[b, n] for b in past]
        gates = score(t, n, np.array(marks).reshape(-1, H), np.full(len(past), slot + 1))
        chosen = np.flatnonzero(best(gates, neighbours))
        own = np.arange(now * block, t + 1)
        both = np.concatenate([score(t, n, k[own, n], t - own), gates[chosen]])
        p = softmax(both, np.full(len(both), True))
        y[t, n] = p[: len(own)] @ v[own, n]
        for place, b in enumerate(chosen):
            age = slot + block * (len(chosen) - place) - np.arange(block)
            inside = softmax(score(t, n, k[past[b], n], age), np.full(block, True))
            y[t, n] = y[t, n] + p[len(own) + place] * (inside @ v[past[b], n])
    return y


def knn_lm(a, position: str, memory: int, neighbours: int, temperature: float, chunk: int, lam: float = 0.25):
    """log((1 - lam) p_lm + lam p_knn) over the pairs (h_{j-1}, token j), j <= t, on the scale of the logits."""
    h, ids, outs = a["x.h"], token(a["x.h"]), []
    for t, logits in enumerate(a["x.logits"]):
        p = softmax(logits, np.full(len(logits), True))
        pairs = np.arange(max(1, t - memory + 1), t + 1)
        if len(pairs):
            score = -((h[pairs - 1] - h[t]) ** 2).sum(1) / temperature
            weight = softmax(score, best(score, neighbours))
            knn = np.zeros_like(p)
            np.add.at(knn, ids[pairs], weight)
            p = lam * knn + (1 - lam) * p
        outs.append(np.log(p * np.exp(logits).sum()))
    return np.stack(outs)


_HEADS = {"x.q": (TIME, N, H), "x.k": (TIME, K, H), "x.v": (TIME, K, H)}
_MEMORIZING = {"window": 3, "segment": 4, "memory": 5, "neighbours": 3}

GOLDENS: dict[str, Golden] = {
    "memorizing": Golden("memorizing", memorizing, _HEADS | {"param.gate": (N,), "param.scale": (N,)}, _MEMORIZING),
    "memorizing-plain": Golden("memorizing", memorizing, _HEADS | {"param.gate": (N,)}, _MEMORIZING | {"normalise": False}),
    "memorizing-sinks": Golden(
        "memorizing", memorizing, _HEADS | {"param.gate": (N,)}, _MEMORIZING | {"normalise": False, "sinks": 2}
    ),
    **{
        f"landmark-{position}": Golden(
            "landmark",
            landmark,
            _HEADS | {"param.pool": (K, H)} | ({"shared.relative_bias": (32, N)} if position == "t5" else {}),
            {"block": 3, "memory": 3, "neighbours": 2},
            position,
        )
        for position in ("rope", "alibi", "t5", "none")
    },
    "knn_lm": Golden(
        "knn_lm",
        knn_lm,
        {"x.h": (TIME, D), "x.logits": (TIME, VOCAB)},
        {"memory": 6, "neighbours": 4, "temperature": 8.0, "chunk": 4},
    ),
}
