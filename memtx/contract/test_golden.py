"""C1: outputs and gradients are those of independent float64 numpy, three segments deep."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from memtx.contract.case import BATCH, DIMS, MOVED, Case, calls_of, distance, joined, place
from memtx.core import segment
from memtx.memory import MEMORIES
from tests.golden import make


def test_every_memory_has_goldens():
    assert {golden.memory for golden in make.GOLDENS.values()} == set(MEMORIES)
    assert {path.stem for path in make.FOLDER.glob("*.npz")} == set(make.GOLDENS)


def test_the_script_reproduces_the_golden(golden):
    saved = np.load(make.FOLDER / f"{golden}.npz")
    inputs = make.inputs(golden)
    for key, value in inputs.items():
        np.testing.assert_array_equal(saved[key], value)
    y = make.outputs(golden, {key: v.astype(float) for key, v in inputs.items()})
    np.testing.assert_array_equal(saved["y"], y.astype(np.float32))
    rng = np.random.default_rng(0)
    for key, value in inputs.items():  # a random direction in each input finds an error in any coordinate of its gradient
        direction = rng.normal(size=value.shape)
        slope = (make.derivative(golden, inputs, {key: direction}) * saved["weight"]).sum()
        size = np.abs(saved[f"grad.{key}"] * direction).sum()
        assert abs(slope - (saved[f"grad.{key}"] * direction).sum()) <= 1e-6 * size


def test_c1_outputs_and_gradients_match_the_golden(golden):
    saved = np.load(make.FOLDER / f"{golden}.npz")
    settings = json.loads(str(saved["settings"]))
    cls = MEMORIES[settings["memory"]]
    dims = dataclasses.replace(DIMS, position=settings["position"])
    case = Case(settings["memory"], cls, cls.Config(**settings["config"]), dims)
    given = {
        kind: {key.removeprefix(kind): saved[key] for key in saved.files if key.startswith(kind)}
        for kind in ("x.", "param.", "shared.")
    }
    shapes = {key: value.shape for key, value in flat(case.params.get("memory", {})).items()}
    assert {key: value.shape for key, value in given["param."].items()} == shapes

    def loss(given, weight, wipe):
        parts, params = given["x."], {**case.params, "memory": nest(given["param."])}
        fresh = case.layer.init_state(BATCH)
        x = parts["x"] if "x" in parts else tuple(parts[name] for name in ("q", "k", "v", "h", "logits") if name in parts)

        def step(state, inputs):
            x, p = inputs
            seg = segment(jnp.broadcast_to(4 * p + jnp.arange(4), (BATCH, 4))).replace(shared=given["shared."])
            y, state = case.apply(params, x, jax.tree.map(partial(jnp.where, wipe), fresh, state), seg)
            return state, y

        y = joined(jax.lax.scan(step, fresh, (calls_of(4, x), jnp.arange(4)))[1])
        return (y * weight).sum(), y

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    given = place(given, {kind: dict.fromkeys(keys, 0 if kind == "x." else -1) for kind, keys in given.items()})
    (_, y), grads = gradient(given, place(saved["weight"]), False)
    assert distance(y, saved["y"]) <= 1e-5
    for kind, parts in grads.items():
        for key, value in parts.items():
            expected = saved[f"grad.{kind}{key}"]
            assert np.abs(value - expected).max() <= 1e-4 * np.abs(expected).max(), kind + key
    if case.remembers:
        (_, y), _ = gradient(given, place(saved["weight"]), True)
        assert distance(y, saved["y"]) > MOVED  # control: memory wiped between calls


def flat(params) -> dict:
    return {".".join(map(str, path)): value for path, value in nnx.traversals.flatten_mapping(params).items()}


def nest(params):
    path = lambda key: tuple(int(part) if part.isdigit() else part for part in key.split("."))  # noqa: E731
    return nnx.traversals.unflatten_mapping({path(key): value for key, value in params.items()})
