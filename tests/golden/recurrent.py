"""Oracles of the recurrent cells: lstm, gru.

E hidden.
"""

from __future__ import annotations

import numpy as np

from tests.golden.base import TIME, D, Golden, sigmoid

E = 6


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


def _cell(memory: str, oracle, gates: int) -> dict[str, Golden]:
    shapes = {"x.x": (TIME, D), "param.x.w": (D, gates * E), "param.h": (E, gates * E), "param.b": (gates * E,)}
    return {memory: Golden(memory, oracle, shapes | {"param.out.w": (E, D)}, {"hidden": E})}


GOLDENS = {**_cell("lstm", lstm, 4), **_cell("gru", gru, 3)}
