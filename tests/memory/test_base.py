"""The tools of the contract: segments, operations on any state, and auxiliary outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.core import (
    batch_axes,
    collect,
    detach,
    emit,
    emit_all,
    reset,
    scan,
    segment,
    state_bytes,
    wants,
    where_rows,
)


class Counter:
    """A layer whose state has every kind of leaf: per row, behind a group axis, and shared by all rows."""

    def init_state(self, batch_size):
        return {"row": jnp.ones((batch_size, 3)), "stack": jnp.full((2, batch_size), 7, jnp.int32), "shared": jnp.zeros(5)}


USED = {"row": jnp.full((4, 3), 9.0), "stack": jnp.full((2, 4), 9, jnp.int32), "shared": jnp.full(5, 9.0)}


def test_segment_defaults_and_mask():
    seg = segment(np.arange(6).reshape(2, 3), [3, 1])
    assert (seg.position_BT.dtype, seg.length_B.dtype, seg.document_B.dtype) == (jnp.int32,) * 3
    np.testing.assert_array_equal(seg.mask_BT, [[True, True, True], [True, False, False]])
    assert not seg.reset_B.any()
    assert segment(np.zeros((2, 3))).mask_BT.all()
    changed = seg.replace(shared={"a": jnp.ones(2)})
    assert seg.shared == {}
    assert jax.jit(lambda s: s.shared["a"].sum() + s.length_B.sum())(changed) == 6


def test_batch_axes_finds_the_axis_that_grows():
    assert batch_axes(Counter().init_state) == {"row": 0, "stack": 1, "shared": -1}


def test_where_rows_picks_rows_on_each_leafs_own_axis():
    fresh, row = Counter().init_state(4), jnp.array([True, False, False, True])
    mixed = where_rows(row, fresh, USED, batch_axes(Counter().init_state))
    np.testing.assert_array_equal(mixed["row"][:, 0], [1, 9, 9, 1])
    np.testing.assert_array_equal(mixed["stack"], [[7, 9, 9, 7]] * 2)
    np.testing.assert_array_equal(mixed["shared"], 9)


def test_reset_clears_its_rows_and_nothing_else():
    reset_B = jnp.array([False, True, False, False])
    after = jax.jit(lambda s, r: reset(Counter(), s, r))(USED, reset_B)
    np.testing.assert_array_equal(after["row"][:, 0], [9, 1, 9, 9])
    np.testing.assert_array_equal(after["stack"][0], [9, 7, 9, 9])
    np.testing.assert_array_equal(after["shared"], 9)
    untouched = reset(Counter(), USED, jnp.zeros(4, bool))
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(untouched), jax.tree.leaves(USED), strict=True))


def test_state_bytes_counts_what_streams_keep():
    assert state_bytes(Counter(), 4) == 4 * 3 * 4 + 2 * 4 * 4 + 5 * 4


@pytest.mark.parametrize("when", [True, False])
@pytest.mark.parametrize("traced", [True, False])
def test_detach_cuts_the_gradient_exactly_when_told(when, traced):
    def loss(x, when):
        state = {"a": x * 3, "n": jnp.arange(2)}
        return detach(state, when)["a"].sum()

    grad = jax.jit(jax.grad(loss))(1.0, when) if traced else jax.grad(loss)(1.0, when)
    assert grad == (0 if when else 3)


def test_emit_without_a_collector_does_nothing_and_unasked_kinds_are_not_traced():
    def f(x):
        emit("metric/x", x)
        emit("loss/x", 2 * x)
        assert wants("loss")
        assert not wants("metric")
        return x + 1

    emit("metric/x", jnp.ones(()))
    y, aux = jax.jit(lambda x: collect(f, "loss")(x))(1.0)
    assert (y, aux) == (2, {"loss/x": (2,)})


def test_collect_keeps_every_emission_of_a_name_in_order():
    def f(x):
        emit("metric/x", x)
        emit("metric/x", x + 1)

    assert collect(f, "metric")(1)[1] == {"metric/x": (1, 2)}


def test_collect_of_a_kind_that_nothing_emits_is_an_error():
    with pytest.raises(LookupError, match="nothing emitted 'metric'"):
        collect(lambda x: x, "metric")(1)
    assert collect(lambda x: x, "loss")(1) == (1, {})  # a model without auxiliary losses is a model


def test_collect_around_a_compiled_function_is_an_error():
    @jax.jit
    def f(x):
        emit("hidden", x)
        return x

    f(1.0)
    with pytest.raises(LookupError, match="inside the jitted function"):
        collect(f, "hidden")(1.0)


def test_an_inner_collect_passes_on_what_the_outer_one_asked_for():
    def inner(x):
        emit("metric/x", x)
        emit("loss/x", x)
        return x

    def outer(x):
        y, aux = collect(inner)(x)
        assert set(aux) == {"metric/x"}
        emit_all(aux)
        return y

    assert collect(outer, "metric")(3)[1] == {"metric/x": (3,)}
    assert collect(inner)(3)[1] == {}  # nobody asked


def test_emissions_cross_nested_scans_and_checkpoints():
    def cell(carry, x):
        emit("metric/carry", carry)
        return carry + x, carry * x

    def row(carry, xs):
        def body(carry, xs):
            return scan(cell, carry, xs)

        (carry, ys), aux = jax.checkpoint(collect(body))(carry, xs)
        emit_all(aux)
        return carry, ys

    @jax.jit
    def f(xs):
        return collect(lambda xs: scan(row, 0.0, xs), "metric")(xs)

    xs = jnp.arange(1.0, 7.0).reshape(2, 3)
    (total, ys), aux = f(xs)
    before = np.array([[0, 1, 3], [6, 10, 15]])  # the running sum before each number
    assert total == 21
    np.testing.assert_array_equal(ys, before * xs)
    np.testing.assert_array_equal(aux["metric/carry"][0], before)
    grad = jax.jit(jax.grad(lambda xs: f(xs)[1]["metric/carry"][0].sum()))(xs)
    np.testing.assert_array_equal(grad.ravel(), [5, 4, 3, 2, 1, 0])
