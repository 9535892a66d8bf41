"""The tiled attention at the edges of its definition. tests/nn/test_attention.py compares both in general."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from memtx.ops.attention import View, attend, attend_tiled

AT = np.arange(8)[None]


def view(**changes) -> View:
    q, k, v = (jnp.asarray(a, jnp.float32) for a in np.random.default_rng(0).normal(size=(3, 2, 8, 2, 4)))
    return dataclasses.replace(View(q, k, v, AT, AT), **changes)


def test_later_keys_are_seen_if_future():
    seen = view(future=True)
    np.testing.assert_allclose(attend_tiled([seen]), attend([seen]), atol=1e-6)
    assert np.abs(attend([seen]) - attend([view()])).max() > 0.1  # control


def test_queries_that_see_no_key_give_finite_values():
    later = view(key_position_BS=AT + 10)
    assert np.isfinite(attend_tiled([later])).all()
    np.testing.assert_allclose(attend_tiled([later, view()]), attend([view()]), atol=1e-6)


def test_tracing_a_long_call_takes_no_work_per_pair():
    """Masks are built from the first positions. With an array of ages per tile this took 20 s."""
    shape, at = jax.ShapeDtypeStruct((1, 2**15, 1, 4), jnp.float32), np.arange(2**15)[None]
    began = time.process_time()
    jax.make_jaxpr(lambda q, k, v: attend_tiled([View(q, k, v, at, at)]))(shape, shape, shape)
    assert time.process_time() - began < 5
