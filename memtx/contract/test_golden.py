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
from memtx.memory.registry import registered_name


def test_c1_outputs_and_gradients_match_the_golden(golden, request):
    saved = golden.load()
    case, errors, wiped = compare(saved, request.config.getoption("memory"))
    too_large = {name: f"{error:.1e}" for name, error in errors.items() if error > (1e-5 if name == "y" else 1e-4)}
    assert not too_large, "relative errors against the golden, at most 1e-5 for y and 1e-4 for gradients"
    if case.remembers:
        assert wiped > MOVED  # control: state wiped between calls


def compare(saved, given: str = "") -> tuple[Case, dict[str, float], float]:
    """Return the case of a golden, the errors of the outputs "y" and of each gradient, and the error of "y" without a state.

    given: the mechanism outside memtx, as `--memory` names it. Errors of gradients are relative to the largest entry.
    """
    settings = json.loads(str(saved["settings"]))
    assert not given or settings["memory"] == registered_name(given), "the golden is of another mechanism"
    cls = load(given) if given else MEMORIES[settings["memory"]]
    dims = dataclasses.replace(DIMS, position=settings["position"])
    case = Case(settings["memory"], cls, cls.Config(**settings["config"]), dims)
    inputs = {
        kind: {key.removeprefix(kind): saved[key] for key in saved if key.startswith(kind)}
        for kind in ("x.", "param.", "shared.")
    }
    abstract = nnx.to_pure_dict(nnx.state(case.layer))
    shapes = {key: value.shape for key, value in flat(abstract.get("memory", {})).items()}
    given_shapes = {key: value.shape for key, value in inputs["param."].items()}
    assert given_shapes == shapes, "the parameters of the golden (left) and of the mechanism (right)"
    unread = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)  # `seg.shared` has those that layers share

    def loss(inputs, weight, wipe):
        parts, params = inputs["x."], {**unread, "memory": nest(inputs["param."])}
        fresh = case.layer.init_state(BATCH)
        x = parts["x"] if "x" in parts else tuple(parts[name] for name in ("q", "k", "v", "h", "logits") if name in parts)

        def step(state, call):
            x, p = call
            seg = segment(jnp.broadcast_to(4 * p + jnp.arange(4), (BATCH, 4))).replace(shared=inputs["shared."])
            y, state = case.apply(params, x, jax.tree.map(partial(jnp.where, wipe), fresh, state), seg)
            return state, y

        y = joined(jax.lax.scan(step, fresh, (calls_of(4, x), jnp.arange(4)))[1])
        return (y * weight).sum(), y

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    inputs = shard(inputs, {kind: dict.fromkeys(keys, 0 if kind == "x." else -1) for kind, keys in inputs.items()})
    (_, y), grads = jax.device_get(gradient(inputs, shard(saved["weight"]), False))
    errors = {"y": distance(y, saved["y"])}
    for kind, parts in grads.items():
        for key, value in parts.items():
            expected = saved[f"grad.{kind}{key}"]
            errors[f"gradient of {kind}{key}"] = float(np.abs(value - expected).max() / max(np.abs(expected).max(), 1e-30))
    wiped = distance(gradient(inputs, shard(saved["weight"]), True)[0][1], saved["y"]) if case.remembers else 0.0
    return case, errors, wiped


def flat(params) -> dict:
    """Flatten a tree of parameters to names such as "a.0.w"."""
    return {".".join(map(str, path)): value for path, value in nnx.traversals.flatten_mapping(params).items()}


def nest(params):
    """Undo `flat`."""
    path = lambda key: tuple(int(part) if part.isdigit() else part for part in key.split("."))  # noqa: E731
    return nnx.traversals.unflatten_mapping({path(key): value for key, value in params.items()})
