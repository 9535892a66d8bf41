"""C7 and C8: a state can be saved, restored and continued, and its types never change, including in bfloat16."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from memtx.contract.case import BATCH, at, calls_of, distance, mesh, rows_differ, shard
from memtx.core import segment


def test_c7_save_restore_and_go_on(case, tmp_path):
    state, x, seg = case.warm(), case.x(5, 7), at([7, 4, 6, 5], 7)

    def restored(placed):
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), placed)
        return manager.restore(0, args=ocp.args.StandardRestore({"state": abstract}))["state"]

    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(0, args=ocp.args.StandardSave({"state": state}))
        manager.wait_until_finished()
        expected = case.call(x, state, seg)
        same = case.call(x, restored(state), seg)
        other = None
        if mesh():
            on = mesh(2)  # ('data', 'model') = (2, N / 2): sharded differently than when saved
            moved = restored(shard(state, case.axes, on))
            other = case.jitted(shard(case.params, -1, on), shard(x, 0, on), moved, shard(seg, 0, on))
    assert jax.tree.structure(same) == jax.tree.structure(expected)
    assert not rows_differ(same[0], expected[0]).any()
    assert not rows_differ(same[1], expected[1], case.axes).any()
    if other:
        assert distance(other, expected) <= 1e-6
    if case.remembers:
        assert rows_differ(case.call(x, case.init_state(), seg)[0], expected[0]).all()  # control: the state matters


@pytest.mark.parametrize("time", [1, 4, 7])  # in float32 other checks trace the same programs
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_c8_types_never_change(case, time, dtype):
    state, x = case.init_state(), case.x(0, time, dtype)
    y, after = jax.eval_shape(case.jitted, case.params, x, state, at(0, time))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(after)] == [(a.shape, a.dtype) for a in jax.tree.leaves(state)]
    assert y.dtype == jax.tree.leaves(x)[-1].dtype
    assert all(leaf.size for leaf in jax.tree.leaves(state)), "a leaf of size zero cannot be saved; use ()"


@pytest.mark.thorough
def test_c8_two_hundred_calls_in_bfloat16(case):
    @jax.jit
    def many(state, x_P):
        def step(state, inputs):
            p, x = inputs
            y, state = case.apply(case.params, x, state, segment(jnp.broadcast_to(3 * p + jnp.arange(3), (BATCH, 3))))
            return state, jnp.abs(y.astype(jnp.float32)).max()

        return jax.lax.scan(step, state, (jnp.arange(200), x_P))

    state, y_P = many(case.init_state(), shard(calls_of(3, case.x(0, 600, jnp.bfloat16)), 1))
    assert (np.asarray(y_P) < 100).all()  # a NaN fails too
    for leaf in jax.tree.leaves(state):
        assert (np.abs(np.asarray(leaf, np.float64)) <= 1000).all()  # counters are at 600
    assert y_P[-1] > 0
