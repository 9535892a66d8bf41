"""Oracles of the memories that keep keys and values, or hidden states: full, window, sink, xl."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.golden.base import TIME, D, Golden, H, K, N, pairwise, softmax


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


def relative_attention(a, past, h, position: str):
    """h~ = [past, h]; A_ij = ((q_i + u) k_j + (q_i + w) Wr R_{i-j}) / sqrt(H), or rotary positions."""
    both, heads = np.concatenate([past, h]), (-1, N, H)
    q = (h @ a["param.q.w"]).reshape(heads)
    k, v = ((both @ a[f"param.{x}.w"]).reshape(heads) for x in "kv")
    distance = len(past) + np.arange(len(h))[:, None] - np.arange(len(both))
    seen = distance >= 0
    if position == "rope":
        y = pairwise(q, k, v, seen, distance, "rope")
    else:
        angle = distance[..., None] * 10_000.0 ** (-2 * np.arange(D // 2) / D)
        r = (np.concatenate([np.sin(angle), np.cos(angle)], -1) @ a["param.r.w"]).reshape(*distance.shape, N, H)
        content = np.einsum("tnh,snh->nts", q + a["param.u"], k)
        location = np.einsum("tnh,tsnh->nts", q + a["param.w"], r)
        y = np.einsum("nts,snh->tnh", softmax((content + location) / np.sqrt(H), seen), v)
    return y.reshape(len(h), -1) @ a["param.out.w"]


def transformer_xl(a, segment: int, memory: int, position: str):
    """mem <- last M of [mem, h]."""
    mem, outs = np.zeros((0, D)), []
    for start in range(0, TIME, segment):
        h = a["x.x"][start : start + segment]
        outs.append(relative_attention(a, mem.real, h, position))
        mem = np.concatenate([mem.real, h])[-memory:]
    return np.concatenate(outs)


def _attention(memory: str, oracle, config: dict) -> dict[str, Golden]:
    shapes = {"x.q": (TIME, N, H), "x.k": (TIME, K, H), "x.v": (TIME, K, H)}
    table = {"shared.relative_bias": (32, N)}
    return {
        f"{memory}-{position}": Golden(memory, oracle, shapes | (table if position == "t5" else {}), config, position)
        for position in ("rope", "alibi", "t5", "none")
    }


XL = {"x.x": (TIME, D)} | {f"param.{x}.w": (D, N * H) for x in "qkv"} | {"param.out.w": (N * H, D)}
RELATIVE = {"param.r.w": (D, N * H), "param.u": (N, H), "param.w": (N, H)}
_SIZES = {"segment": 4, "memory": 6}

GOLDENS = {
    **_attention("full", cached(lambda t, capacity: recent(t, capacity)), {"capacity": 7}),
    **_attention("window", cached(lambda t, window: recent(t, window)), {"window": 5}),
    **_attention("sink", cached(streaming), {"window": 4, "sinks": 2}),
    "xl-relative": Golden("xl", transformer_xl, XL | RELATIVE, _SIZES | {"position": "relative"}),
    "xl-rope": Golden("xl", transformer_xl, XL, _SIZES | {"position": "rope"}),
}
