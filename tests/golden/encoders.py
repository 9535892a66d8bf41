"""Oracles of the attention of encoders and of attention to an encoder: bidirectional, cross."""

from __future__ import annotations

import numpy as np

from tests.golden.base import TIME, D, Golden, H, K, N, pairwise

CALL = 4  # tokens of a call in the contract tests
SOURCE = 3  # tokens of the source that they give


def bidirectional(a, position: str):
    """Each call on its own, every pair in it."""
    outs = []
    for start in range(0, TIME, CALL):
        now = slice(start, start + CALL)
        k, v = (np.repeat(a[name][now], N // K, 1) for name in ("x.k", "x.v"))
        distance = np.arange(CALL)[:, None] - np.arange(CALL)
        seen, table = np.ones((CALL, CALL), bool), a.get("shared.relative_bias")
        outs.append(pairwise(a["x.q"][now], k, v, seen, distance, position, table, future=True))
    return np.concatenate(outs)


def cross(a, position: str, capacity: int):
    """The contract tests give each document a source made of its first token, in its first call."""
    source = np.stack([np.roll(a["x.x"][0], s + 1) for s in range(SOURCE)])
    q = (a["x.x"] @ a["param.attention.q.w"]).reshape(-1, N, H)
    k, v = (np.repeat((source @ a[f"param.attention.{x}.w"]).reshape(SOURCE, K, H), N // K, 1) for x in "kv")
    y = pairwise(q, k, v, np.ones((TIME, SOURCE), bool), np.zeros((TIME, SOURCE)), "none")
    return y.reshape(TIME, -1) @ a["param.attention.out.w"]


HEADS = {"x.q": (TIME, N, H), "x.k": (TIME, K, H), "x.v": (TIME, K, H)}
CROSS = {
    "x.x": (TIME, D),
    "param.attention.q.w": (D, N * H),
    "param.attention.k.w": (D, K * H),
    "param.attention.v.w": (D, K * H),
    "param.attention.out.w": (N * H, D),
}

GOLDENS = {
    **{
        f"bidirectional-{position}": Golden(
            "bidirectional",
            bidirectional,
            HEADS | ({"shared.relative_bias": (32, N)} if position == "t5" else {}),
            position=position,
        )
        for position in ("rope", "alibi", "t5", "none")
    },
    "cross": Golden("cross", cross, CROSS, {"capacity": 4}),
}
