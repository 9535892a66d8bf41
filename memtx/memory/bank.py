"""Bank: a store of entries that can be addressed, searched, edited and traced to their origin.

An entry is a key, values, and its provenance. The entry with id n is at index n mod M. Ids count up and are never reused, so
the oldest entries are overwritten first once the bank is full. An empty index has id -1.

All functions are pure. With one bank per stream, `vmap` the functions that change a bank. A bank without a stream axis is
shared by all streams and is only read inside a call. `search` and `gather` accept both. The search is not differentiable, but
the gathered entries are. They are named "read", so that with `save_only_these_names("read")` a train step keeps them instead of
the bank. The results of a condition around a search need the name again (`keep`), or the backward pass would search again.

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

from memtx.core import Segment, emit, pytree, wants
from memtx.errors import UserError
from memtx.memory.inspect import Inspectable
from memtx.nn import reads as attribution
from memtx.ops import topk


@pytree
class Entries:
    """Arrays with the same leading axes. The integers are -1 at empty indices."""

    key: Array
    value: Any  # a pytree
    id: Array
    document: Array  # the document of origin
    position: Array  # in that document
    namespace: Array  # the owner of the entry, to which a search can be restricted
    step: Array  # the time of writing, on the writer's clock


@pytree
class Bank(Inspectable):
    """M entries and the id of the next one."""

    entries: Entries  # [M, ...], or [B, M, ...]
    cursor: Array  # the next id: [], or [B]

    @property
    def capacity(self) -> int:
        """Return M."""
        return self.entries.id.shape[-1]

    @property
    def valid_M(self) -> Array:
        """Return a mask of the indices that have an entry."""
        return self.entries.id >= 0

    @property
    def stored(self) -> tuple[Array, Array]:
        """Return the keys and a mask of the indices that have an entry (see `Inspectable`)."""
        return self.entries.key, self.valid_M


class Holder:
    """A state whose entries a library can store. This base class is for states with a single bank, in the field `bank`."""

    bank: Bank

    def written(self) -> Bank:
        """Return the bank that a stream writes."""
        return self.bank

    def shelf(self) -> Bank:
        """Return the bank that a library fills."""
        return self.bank

    def with_shelf(self, bank: Bank):
        """Return the state with this bank in place of `shelf()`."""
        return dataclasses.replace(self, bank=bank)  # pyright: ignore[reportArgumentType]  (subclasses are dataclasses)


def empty(capacity: int, key: jax.ShapeDtypeStruct, value: Any) -> Bank:
    """Return an empty bank. key, value: the shapes and dtypes of one entry (`jax.ShapeDtypeStruct`; value may be a pytree)."""
    keys, values = jax.tree.map(lambda a: jnp.zeros((capacity, *a.shape), a.dtype), (key, value))
    labels: list[Any] = [jnp.full(capacity, -1, jnp.int32) for _ in range(5)]
    return Bank(Entries(keys, values, *labels), jnp.zeros((), jnp.int32))


def rows(bank: Bank, batch_size: int) -> Bank:
    """Return a copy of the bank for each of B streams."""
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (batch_size, *a.shape)), bank)


def write(
    bank: Bank,
    key_T: Array,
    value_T: Any,
    *,
    mask_T: Array | None = None,
    document: ArrayLike = 0,
    position: ArrayLike = 0,
    namespace: ArrayLike = 0,
    step: ArrayLike = 0,
) -> Bank:
    """Add the entries at which mask_T is True to a bank without a stream axis.

    document, position, namespace and step are numbers or arrays [T].
    """
    time = key_T.shape[0]
    mask_T = jnp.ones(time, bool) if mask_T is None else mask_T
    rank_T, count = jnp.cumsum(mask_T, dtype=jnp.int32) - 1, mask_T.sum(dtype=jnp.int32)
    id_T = jnp.where(mask_T, bank.cursor + rank_T, -1)
    labels = (jnp.broadcast_to(jnp.asarray(a, jnp.int32), time) for a in (document, position, namespace, step))
    return put(bank, Entries(key_T, value_T, id_T, *labels), bank.cursor + count)


def put(bank: Bank, new: Entries, cursor: Array) -> Bank:
    """Put each new entry at the index of its id, if it is among the newest M entries before the new cursor."""
    kept_T = (new.id >= 0) & (new.id >= cursor - bank.capacity)
    index_T = jnp.where(kept_T, new.id % bank.capacity, bank.capacity)
    at = lambda old, new: old.at[index_T].set(new.astype(old.dtype), mode="drop")  # noqa: E731
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
    """Return (score_BTNR, index_BTNR) of the k best entries with first <= id < end. A score of -inf marks a missing entry.

    Keys are [M, K, H] or [M, H], with a leading B if each stream has a separate bank. namespace: search only its entries.
    how: see ops.topk.search.
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
    """Return the entries at these indices, [B, ...], named "read".

    head: the head to take, if keys and values have a leading axis of K heads. It broadcasts against the indices of a stream.
    """

    def pick(a: Array, *at) -> Array:
        one = lambda a, i: a[(i, *at)]  # noqa: E731
        return keep((jax.vmap(one) if bank.cursor.ndim else one)(a, index))

    found = jax.tree.map(pick, bank.entries)
    if head is None:
        return found
    key, value = jax.tree.map(lambda a: pick(a, head), (bank.entries.key, bank.entries.value))
    return dataclasses.replace(found, key=key, value=value)


def keep(found: Any) -> Any:
    """Name arrays "read", so that a train step keeps them for the backward pass."""
    return jax.tree.map(lambda a: checkpoint_name(a, "read"), found)


def reads(found: Entries, weight_BTNR: Array, found_BTNR: Array, tokens: int = 1) -> attribution.Reads:
    """Return the Reads of gathered entries, of `tokens` tokens each. Where found_BTNR is False, there is no entry."""
    labels = {name: jnp.where(found_BTNR, getattr(found, name), -1) for name in ("id", "document", "position")}
    return attribution.reads(weight_BTNR, tokens=tokens, **labels)


def forget(bank: Bank, *, document: int | None = None, namespace: int | None = None, id: int | None = None) -> Bank:
    """Erase the entries that match all arguments, with their keys and values. Other entries keep their index and id.

    Raises ValueError if there are no arguments.
    """
    given = {"document": document, "namespace": namespace, "id": id}
    if all(value is None for value in given.values()):
        raise ValueError("forget needs a document, a namespace or an id")
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
    """Return a bank of a different capacity with the same entries and ids, or the newest ones if not all fit."""
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), (bank.entries.key, bank.entries.value))
    return put(empty(capacity, *one), bank.entries, bank.cursor)


def refit(state: Any, like: Any) -> Any:
    """Return a state whose banks have the capacities of those of `like`, with the newest entries that fit.

    like: a state, or its shapes. Raises UserError if they differ in more than capacities.
    """
    is_bank = lambda node: isinstance(node, Bank)  # noqa: E731

    def node(old, new):
        if not is_bank(old) or old.capacity == new.capacity:
            return old
        change = lambda bank: resize(bank, new.capacity)  # noqa: E731
        for _ in range(old.cursor.ndim):
            change = jax.vmap(change)
        return change(old)

    if jax.tree.structure(state) != jax.tree.structure(like):
        raise UserError("a memory cannot be added to a run or removed from it; start a new run")
    return jax.tree.map(node, state, like, is_leaf=is_bank)


# --- the use of entries -----------------------------------------------------------------------------------------------------


def emit_use(bank: Bank, found: attribution.Reads, seg: Segment, share_BTN: ArrayLike = 1.0) -> None:
    """Emit how the queries of a call have used the entries of a bank, if anyone collects it (see memtx.evaluation.health).

    bank: the bank after the call. share_BTN: the share of the bank in the output, by which weights are multiplied.
    use/entry, use/document, use/reads  [B, M], or [M] for a shared bank: id + 1 of each entry (0: none), its document, and how
                                        many reads it had in this call
    use/age                             [4], for a bank with a stream axis: the sums of 1, age, weight and age x weight over the
                                        reads of real tokens. The age is the distance in tokens from the entry to its query
    """
    if not wants("use"):
        return
    found_BTNR = (found.id_BTNR >= 0) & seg.mask_BT[:, :, None, None]
    id_BL = jnp.where(found_BTNR, found.id_BTNR, -1).reshape(len(found_BTNR), -1)
    counts = jax.vmap(count_reads)(bank.entries.id, id_BL) if bank.cursor.ndim else count_reads(bank.entries.id, id_BL.ravel())
    emit("use/entry", bank.entries.id + 1)
    emit("use/document", bank.entries.document)
    emit("use/reads", counts)
    if bank.cursor.ndim:
        age_BTNR = (seg.position_BT[:, :, None, None] - found.position_BTNR).astype(jnp.float32)
        weight_BTNR = found.weight_BTNR * jnp.asarray(share_BTN)[..., None]
        terms = jnp.stack([jnp.ones_like(age_BTNR), age_BTNR, weight_BTNR, age_BTNR * weight_BTNR])
        emit("use/age", jnp.where(found_BTNR, terms, 0).reshape(4, -1).sum(1))


def count_reads(id_M: Array, read_L: Array) -> Array:
    """Return how many of the ids read, [L], are those of each entry, [M]. Ids that are not stored are left out."""
    index_L = read_L % len(id_M)
    stored_L = (read_L >= 0) & (id_M[index_L] == read_L)
    return jnp.zeros(len(id_M), jnp.int32).at[index_L].add(stored_L.astype(jnp.int32))
