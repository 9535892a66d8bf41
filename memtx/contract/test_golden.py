"""C1: outputs and gradients match independent float64 NumPy code, over four calls."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from memtx.contract.case import BATCH, DIMS, MOVED, Case, calls_of, distance, joined, load, shard
from memtx.core import segment
from memtx.memory import MEMORIES


def test_c1_outputs_and_gradients_match_the_golden(golden, request):
    saved = golden.load()
    settings = json.loads(str(saved["settings"]))
    given = request.config.getoption("memory")
    cls = load(given) if given else MEMORIES[settings["memory"]]
    dims = dataclasses.replace(DIMS, position=settings["position"])
    case = Case(settings["memory"], cls, cls.Config(**settings["config"]), dims)
    given = {
        kind: {key.removeprefix(kind): saved[key] for key in saved if key.startswith(kind)}
        for kind in ("x.", "param.", "shared.")
    }
    abstract = nnx.to_pure_dict(nnx.state(case.layer))
    shapes = {key: value.shape for key, value in flat(abstract.get("memory", {})).items()}
    assert {key: value.shape for key, value in given["param."].items()} == shapes
    unread = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)  # `seg.shared` has those that layers share

    def loss(given, weight, wipe):
        parts, params = given["x."], {**unread, "memory": nest(given["param."])}
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
    given = shard(given, {kind: dict.fromkeys(keys, 0 if kind == "x." else -1) for kind, keys in given.items()})
    (_, y), grads = gradient(given, shard(saved["weight"]), False)
    assert distance(y, saved["y"]) <= 1e-5, "outputs y"
    for kind, parts in grads.items():
        for key, value in parts.items():
            expected = saved[f"grad.{kind}{key}"]
            assert np.abs(value - expected).max() <= 1e-4 * np.abs(expected).max(), f"gradient of {kind}{key}"
    if case.remembers:
        (_, y), _ = gradient(given, shard(saved["weight"]), True)
        assert distance(y, saved["y"]) > MOVED  # control: state wiped between calls


def flat(params) -> dict:
    """Flatten a tree of parameters to names such as "a.0.w"."""
    return {".".join(map(str, path)): value for path, value in nnx.traversals.flatten_mapping(params).items()}


def nest(params):
    """Undo `flat`."""
    path = lambda key: tuple(int(part) if part.isdigit() else part for part in key.split("."))  # noqa: E731
    return nnx.traversals.unflatten_mapping({path(key): value for key, value in params.items()})
