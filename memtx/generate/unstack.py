"""A large model with one stack per layer, which writes tokens faster.

In a scan over layers, XLA copies the parameters and the state of each layer out of the stacked arrays, and the state back. For
a single token these copies cost as much as the computation. Programs without stacks take longer to compile.
"""

from __future__ import annotations

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp

from memtx.models.lm import LM, LMState, Params

LARGE = 2**24  # unstacking pays from this number of parameters


@cache
def unstacked(lm: LM) -> LM:
    """Return the same model with one stack per layer, or `lm` itself if it is small or already has one layer per stack."""
    model = lm.model
    if model.body or lm.num_params() < LARGE or all(groups == 1 for _, groups in model.stacks):
        return lm
    return LM(dataclasses.replace(model, stacks=tuple((pattern, 1) for pattern, groups in model.stacks for _ in range(groups))))


@partial(jax.jit, static_argnames="lm")
def unstack_params(lm: LM, params: Params) -> Params:
    """Convert the parameters of `lm` to parameters of `unstacked(lm)`."""
    bodies = dict(params["body"]["bodies"])
    apart = [part for s, (_, groups) in enumerate(lm.model.stacks) for part in _apart(bodies[s], groups)]
    return {**params, "body": {**params["body"], "bodies": dict(enumerate(apart))}}


@partial(jax.jit, static_argnames="lm")
def unstack_state(lm: LM, state: LMState) -> LMState:
    """Convert the state of `lm` to a state of `unstacked(lm)`."""
    apart = (part for body, (_, groups) in zip(state.body, lm.model.stacks, strict=True) for part in _apart(body, groups))
    return dataclasses.replace(state, body=tuple(apart))


@partial(jax.jit, static_argnames="lm")
def stack_state(lm: LM, state: LMState) -> LMState:
    """Undo `unstack_state`."""
    layers = iter(state.body)
    bodies = [[next(layers) for _ in range(groups)] for _, groups in lm.model.stacks]
    body = tuple(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *body) for body in bodies)
    return dataclasses.replace(state, body=body)


def _apart(tree, groups: int) -> list:
    return [jax.tree.map(lambda leaf, g=g: leaf[g : g + 1], tree) for g in range(groups)]
