"""The Bank: ids across wraps, editing, provenance.

T entries written, M slots, H head dim.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memtx.core import Dims
from memtx.errors import UserError
from memtx.memory import MEMORIES, bank
from memtx.memory.bank import Bank

M, H = 5, 3
write, gather, search = jax.jit(bank.write), jax.jit(bank.gather), jax.jit(bank.search, static_argnums=2)
FLOAT = jax.ShapeDtypeStruct((H,), jnp.float32)
TOKEN = jax.ShapeDtypeStruct((), jnp.int32)


def fresh(capacity: int = M) -> Bank:
    return bank.empty(capacity, FLOAT, TOKEN)


def key_of(ids):
    """A key that encodes its id, so that the entry at an index can be identified."""
    return jnp.asarray(ids, jnp.float32)[..., None] * jnp.ones(H)


def add(b: Bank, count: int, **labels) -> Bank:
    ids = b.cursor + jnp.arange(count)
    return write(b, key_of(ids), ids, **labels)


def held(b: Bank) -> list[int]:
    return sorted(int(i) for i in b.entries.id if i >= 0)


def consistent(b: Bank) -> bool:
    """Every entry is whole: key and value are those that were written under its id."""
    valid = np.asarray(b.valid_M)
    ids = np.asarray(b.entries.id)[valid]
    return (np.asarray(b.entries.key)[valid] == ids[:, None]).all() and (np.asarray(b.entries.value)[valid] == ids).all()


@pytest.mark.parametrize("counts", [[1] * 23, [3] * 8, [5, 7, 11], [23], [4, 1, 13, 2]])
def test_the_newest_entries_are_held_across_wraps(counts):
    b = fresh()
    for count in counts:
        b = add(b, count)
        assert held(b) == list(range(max(0, int(b.cursor) - M), int(b.cursor)))
        assert consistent(b)
    assert int(b.cursor) == sum(counts) >= 3 * M


def test_only_masked_entries_are_written():
    b = write(add(fresh(), 2), key_of(jnp.array([9, 2, 9, 3])), jnp.array([9, 2, 9, 3]), mask_T=jnp.arange(4) % 2 == 1)
    assert held(b) == [0, 1, 2, 3]
    assert consistent(b)


def test_forget_erases_and_ids_are_never_used_again():
    b = add(add(add(fresh(), 2, document=7), 1, document=8), 1, document=7, namespace=1)
    gone = bank.forget(b, document=7)
    assert held(gone) == [2]
    assert np.asarray(gone.entries.key)[[0, 1, 3]].max() == 0  # nothing of it is left in the arrays
    assert held(bank.forget(b, document=7, namespace=1)) == [0, 1, 2]
    assert held(bank.forget(b, id=1)) == [0, 2, 3]
    after = add(gone, 3)
    assert held(after) == [2, 4, 5, 6]
    assert consistent(after)
    with pytest.raises(ValueError, match="forget needs"):
        bank.forget(b)


@pytest.mark.parametrize("capacity", [2, 5, 9])
def test_resize_keeps_the_newest_under_their_ids(capacity):
    b = bank.resize(add(add(fresh(), 4), 4), capacity)
    assert held(b) == list(range(max(3, 8 - capacity), 8))
    assert consistent(b)
    assert consistent(add(b, capacity + 1))
    assert held(add(b, 1))[-1] == 8


def test_search_sees_its_namespace_and_gather_tells_the_provenance():
    b = fresh()
    for document in range(4):
        b = add(b, 1, document=10 + document, position=20 + document, namespace=document % 2, step=3)
    q = jnp.ones((2, 1, 1, H))
    score, index = search(b, q, 2)
    np.testing.assert_array_equal(index[:, 0, 0], [[3, 2]] * 2)
    score, index = search(b, q, 3, namespace=0)
    read = gather(b, index[:, 0, 0])
    np.testing.assert_array_equal(np.isfinite(score[:, 0, 0]), [[True, True, False]] * 2)
    np.testing.assert_array_equal(read.document[:, :2], [[12, 10]] * 2)
    np.testing.assert_array_equal(read.position[:, :2], [[22, 20]] * 2)
    np.testing.assert_array_equal(read.key[:, :2, 0], [[2, 0]] * 2)


def test_a_bank_per_stream_by_vmap():
    b = bank.rows(fresh(), 2)
    ids = jnp.arange(4)
    b = jax.jit(jax.vmap(bank.write))(
        b, key_of(jnp.stack([ids, ids])), jnp.stack([ids, ids]), mask_T=ids < jnp.array([[4], [2]])
    )
    np.testing.assert_array_equal(b.cursor, [4, 2])
    _, index = search(b, jnp.ones((2, 1, 1, H)), 1)
    np.testing.assert_array_equal(gather(b, index).id[:, 0, 0, 0], [3, 1])


RESIZABLE = [(name, key) for name, cls in MEMORIES.items() for key in cls.resizable]


@pytest.mark.parametrize(("name", "key"), RESIZABLE)
def test_a_setting_that_may_change_on_resume_changes_nothing_but_banks(name, key):
    cls = MEMORIES[name]
    dims = Dims(width=16, num_heads=2, num_kv_heads=2, head_dim=8, vocab_size=32)
    small, large = cls.tiny[0], dataclasses.replace(cls.tiny[0], **{key: getattr(cls.tiny[0], key) + 7})
    one, two = (cls(config, dims, jax.random.key(0)) for config in (small, large))
    assert jax.tree.map(jnp.shape, nnx.state(one, nnx.Param)) == jax.tree.map(jnp.shape, nnx.state(two, nnx.Param))
    old, new = (layer.init_state(3) for layer in (one, two))
    assert jax.tree.map(jnp.shape, old) != jax.tree.map(jnp.shape, new)
    for state, like in ((old, new), (new, old)):
        assert jax.tree.map(jnp.shape, bank.refit(state, like)) == jax.tree.map(jnp.shape, like)


def test_a_bank_cannot_appear_in_a_state():
    with pytest.raises(UserError, match="cannot be added to a run or removed"):
        bank.refit({"near": jnp.zeros(3), "bank": ()}, {"near": jnp.zeros(3), "bank": fresh()})
