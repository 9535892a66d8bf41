"""Bank: a store of entries that can be addressed, searched, edited and traced to where they came from.

An entry is a key, values, and its provenance. The entry with id n stands in slot n mod M; ids count up for ever and are never
used again, so once the bank is full the oldest entries leave first. An empty slot has id -1.

All functions are pure. `vmap` the ones that change a bank to have one per stream; a bare bank is shared by all streams, and
then only read inside a call. `search` and `gather` take either. Search is not differentiated; what is gathered is, and is
named "read": under `save_only_these_names("read")` a train step keeps what was read and not the bank.

B stream, T entries written or queries, M slots, N query heads, K key heads, H head dim, R neighbours.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike

from memtx.core import pytree
from memtx.ops import topk


@pytree
class Entries:
    """Arrays with the same leading axes; the integers are -1 where there is no entry."""

    key: Array
    value: Any  # a pytree
    id: Array
    source: Array  # the document it came from
    position: Array  # its place there
    namespace: Array  # whose entry it is: a search can be confined to one
    step: Array  # when it was written, on a clock of the writer's


@pytree
class Bank:
    entries: Entries  # [M, ...], or [B, M, ...]
    cursor: Array  # the next id: [], or [B]

    @property
    def capacity(self) -> int:
        return self.entries.id.shape[-1]

    @property
    def valid_M(self) -> Array:
        return self.entries.id >= 0


def empty(capacity: int, key: jax.ShapeDtypeStruct, value: Any) -> Bank:
    """No entries yet. key, value: shape and dtype of one entry's (`jax.ShapeDtypeStruct`; value may be a pytree)."""
    keys, values = jax.tree.map(lambda a: jnp.zeros((capacity, *a.shape), a.dtype), (key, value))
    labels: list[Any] = [jnp.full(capacity, -1, jnp.int32) for _ in range(5)]
    return Bank(Entries(keys, values, *labels), jnp.zeros((), jnp.int32))


def rows(bank: Bank, batch_size: int) -> Bank:
    """A copy of the bank for each of B streams."""
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (batch_size, *a.shape)), bank)


def write(
    bank: Bank,
    key_T: Array,
    value_T: Any,
    *,
    mask_T: Array | None = None,
    source: ArrayLike = 0,
    position: ArrayLike = 0,
    namespace: ArrayLike = 0,
    step: ArrayLike = 0,
) -> Bank:
    """Add the entries where mask_T is True; each of the rest is one number or [T]. Takes one bank: vmap it over streams."""
    time = key_T.shape[0]
    mask_T = jnp.ones(time, bool) if mask_T is None else mask_T
    rank_T, count = jnp.cumsum(mask_T, dtype=jnp.int32) - 1, mask_T.sum(dtype=jnp.int32)
    id_T = jnp.where(mask_T, bank.cursor + rank_T, -1)
    labels = (jnp.broadcast_to(jnp.asarray(a, jnp.int32), time) for a in (source, position, namespace, step))
    return put(bank, Entries(key_T, value_T, id_T, *labels), bank.cursor + count)


def put(bank: Bank, new: Entries, cursor: Array) -> Bank:
    """Each new entry in the slot of its id, if it is among the newest M once the cursor stands there."""
    kept_T = (new.id >= 0) & (new.id >= cursor - bank.capacity)
    slot_T = jnp.where(kept_T, new.id % bank.capacity, bank.capacity)
    at = lambda old, new: old.at[slot_T].set(new.astype(old.dtype), mode="drop")  # noqa: E731
    return Bank(jax.tree.map(at, bank.entries, new), cursor)


def search(
    bank: Bank,
    q_BTNH: Array,
    k: int,
    *,
    first_BT: ArrayLike = 0,
    end_BT: ArrayLike = topk.LAST,
    namespace: int | None = None,
    **how,
) -> tuple[Array, Array]:
    """The k best entries with first <= id < end -> (score_BTNR, index_BTNR); score -inf: no entry. `how`: see ops.topk.

    Keys are [M, K, H] or [M, H]. A bank of a stream's own holds [B, M, ...]; one without the B is searched for all streams.
    """
    ids, keys = bank.entries.id, bank.entries.key
    if namespace is not None:
        ids = jnp.where(bank.entries.namespace == namespace, ids, -1)
    if bank.cursor.ndim == 0:
        ids, keys = ids[None], keys[None]
    keys = keys if keys.ndim == 4 else keys[:, :, None]
    first_BT, end_BT = (jnp.broadcast_to(jnp.asarray(a, jnp.int32), q_BTNH.shape[:2]) for a in (first_BT, end_BT))
    return topk.search(q_BTNH, keys, ids, (first_BT, end_BT), k, **how)


def gather(bank: Bank, index: Array, head: Array | None = None) -> Entries:
    """The entries at [B, ...] slots, named "read"; leaves are [B, ..., ...].

    head: where keys and values lead with K heads, the one to take of each; it broadcasts against a stream's slots.
    """

    def pick(a: Array, *at) -> Array:
        one = lambda a, i: a[(i, *at)]  # noqa: E731
        return checkpoint_name((jax.vmap(one) if bank.cursor.ndim else one)(a, index), "read")

    found = jax.tree.map(pick, bank.entries)
    if head is None:
        return found
    key, value = jax.tree.map(lambda a: pick(a, head), (bank.entries.key, bank.entries.value))
    return dataclasses.replace(found, key=key, value=value)


def forget(bank: Bank, *, source: int | None = None, namespace: int | None = None, id: int | None = None) -> Bank:
    """Erase the entries that match everything given (keys and values too); slots and ids of the others stay."""
    given = {"source": source, "namespace": namespace, "id": id}
    if all(value is None for value in given.values()):
        raise ValueError("forget what? give a source, a namespace or an id")
    entries = bank.entries
    match_M = bank.valid_M
    for name, value in given.items():
        match_M &= True if value is None else getattr(entries, name) == value
    blank = {f.name: -1 for f in dataclasses.fields(Entries)} | {"key": 0, "value": 0}

    def erase(name: str):
        wide = lambda a: match_M.reshape(match_M.shape + (1,) * (a.ndim - match_M.ndim))  # noqa: E731
        return jax.tree.map(lambda a: jnp.where(wide(a), jnp.asarray(blank[name], a.dtype), a), getattr(entries, name))

    return Bank(Entries(**{name: erase(name) for name in blank}), bank.cursor)


def resize(bank: Bank, capacity: int) -> Bank:
    """The same entries under the same ids with room for `capacity`, the newest if that is less."""
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), (bank.entries.key, bank.entries.value))
    return put(empty(capacity, *one), bank.entries, bank.cursor)


def merge(a: Bank, b: Bank) -> Bank:
    """All entries of both; those of b get new ids, after a's."""
    capacity = a.capacity + b.capacity
    shift = a.cursor - jnp.maximum(b.cursor - b.capacity, 0)
    moved = dataclasses.replace(b.entries, id=jnp.where(b.valid_M, b.entries.id + shift, -1))
    return put(resize(a, capacity), moved, b.cursor + shift)
