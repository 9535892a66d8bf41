"""Goldens: what each mechanism must give, from oracles that share nothing with memtx (base.py; one module per family).

    python -m tests.golden.make [NAME ...]       writes tests/golden/*.npz, all of them or those whose names begin so

Gradients are by complex step: for an analytic f, Im f(x + i h v) / h with h = 1e-30 is the derivative along v to the last
bits of float64, since nothing is subtracted; one evaluation per coordinate gives the whole gradient.

An npz holds: settings (json), x.* and param.* and shared.* (float32 inputs), weight (the loss is sum(y * weight)), y, and
grad.* of every input.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from tests.golden import cached, encoders, fast_weights, linear, recurrent, retrieval, tables, tokens, ttt
from tests.golden.base import ROWS, Golden

FOLDER = Path(__file__).parent
STEP = 1e-30

FAMILIES = (cached, recurrent, tokens, retrieval, linear, ttt, fast_weights, tables, encoders)
GOLDENS: dict[str, Golden] = {name: golden for family in FAMILIES for name, golden in family.GOLDENS.items()}


def inputs(name: str) -> dict[str, np.ndarray]:
    """Random inputs of a golden, rounded to float32 so that both sides see the same numbers."""
    rng = np.random.default_rng(list(name.encode()))
    golden, found = GOLDENS[name], {}
    for key, shape in golden.shapes.items():
        value = rng.normal(size=(ROWS, *shape) if key.startswith("x.") else shape)
        found[key] = (value * golden.scale if key.startswith("param.") else value).astype(np.float32)
    return found


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
        if len(sys.argv) == 1 or name.startswith(tuple(sys.argv[1:])):
            np.savez_compressed(FOLDER / f"{name}.npz", **make(name))
            print(name)
