"""Row-wise reads and writes against plain indexing."""

import jax
import jax.numpy as jnp
import numpy as np

from memtx.ops.rows import put, shift, slice_rows, take

RNG = np.random.default_rng(0)
A, INDEX = RNG.normal(size=(3, 5, 2)).astype(np.float32), np.array([[0, 4], [1, 0], [3, 2]])


def test_take_reads_each_row_at_its_own_indices():
    np.testing.assert_array_equal(take(jnp.asarray(A), jnp.asarray(INDEX)), A[np.arange(3)[:, None], INDEX])
    np.testing.assert_array_equal(take(jnp.asarray(A[..., 0]), jnp.asarray(INDEX)), A[np.arange(3)[:, None], INDEX, 0])


def test_put_writes_each_row_drops_what_is_out_of_range_and_keeps_the_dtype():
    new, index = RNG.normal(size=(3, 2, 2)), np.array([[0, 5], [1, 0], [7, 2]])
    expected = A.copy()
    for row, slot, entry in [(0, 0, 0), (1, 1, 0), (1, 0, 1), (2, 2, 1)]:
        expected[row, slot] = new[row, entry]
    out = put(jnp.asarray(A), jnp.asarray(index), jnp.asarray(new, jnp.bfloat16))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, rtol=1e-2, atol=1e-2)


def test_slice_rows_starts_where_each_row_says():
    out = slice_rows(jnp.asarray(A), jnp.array([0, 2, 1]), 3)
    np.testing.assert_array_equal(out, np.stack([A[0, 0:3], A[1, 2:5], A[2, 1:4]]))


def test_shift_keeps_the_last_entries_of_each_row():
    new, length = RNG.normal(size=(3, 4, 2)).astype(np.float32), np.array([0, 3, 4])
    shifted = shift(jnp.asarray(A), jnp.asarray(new), jnp.asarray(length))
    for n, row, old, out in zip(length, new, A, shifted, strict=True):
        np.testing.assert_array_equal(out, np.concatenate([old, row[:n]])[-5:])


def test_gradients_go_back_to_where_things_came_from():
    def f(a, new):
        return (take(put(a, jnp.asarray(INDEX), new), jnp.asarray(INDEX[:, :1])) * 2).sum()

    grad_a, grad_new = jax.grad(f, (0, 1))(jnp.asarray(A), jnp.ones((3, 2, 2)))
    np.testing.assert_array_equal(grad_a, 0)  # all that was read had been overwritten
    np.testing.assert_array_equal(grad_new, np.stack([np.full((3, 2), 2.0), np.zeros((3, 2))], 1))


def test_what_put_drops_gets_no_gradient():
    index = jnp.array([[0, 5], [9, 9], [5, 2]])
    grad_a, grad_new = jax.grad(lambda *args: put(args[0], index, args[1]).sum(), (0, 1))(jnp.asarray(A), jnp.ones((3, 2, 2)))
    np.testing.assert_array_equal(grad_new[..., 0], [[1, 0], [0, 0], [0, 1]])
    expected = np.ones_like(A)
    expected[0, 0] = expected[2, 2] = 0
    np.testing.assert_array_equal(grad_a, expected)


def test_put_under_a_gradient_does_not_find_out_which_write_was_last():
    def named(write):
        """Whether JAX scatters a number for each write, which are its only unsigned integers here."""
        loss = lambda a, new: (write(a, jnp.asarray(INDEX), new) ** 2).sum()  # noqa: E731
        return "u32[" in str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(jnp.asarray(A), jnp.ones((3, 2, 2))))

    assert not named(put)
    assert named(jax.vmap(lambda a, i, x: a.at[i].set(x, mode="drop")))  # control: without the promise


def test_indices_known_at_compile_time_become_slices():
    a_BM, new_BT = jnp.arange(12.0).reshape(2, 6), -jnp.ones((2, 3))
    for start in (0, 2, 3, 4):  # at 4 the last index is out of range
        index = np.tile(np.arange(start, start + 3), (2, 1))
        traced = str(jax.make_jaxpr(lambda a, x, i=index: put(a, i, x))(a_BM, new_BT))
        assert ("dynamic_update_slice" in traced) == (start < 4)
        np.testing.assert_array_equal(put(a_BM, index, new_BT), put(a_BM, jnp.asarray(index), new_BT))
        np.testing.assert_array_equal(take(a_BM, index), take(a_BM, jnp.asarray(index)))
    gaps = np.array([[0, 2, 3], [0, 2, 3]])
    assert "gather" in str(jax.make_jaxpr(lambda a: take(a, gaps))(a_BM))  # control
