"""Entries of a language model: how documents become entries in the banks of its state, and how a state gets them back.

A document is read from a fresh state, so its entries depend on no other document. The memories whose entries a library can
store have a state that is a `memtx.memory.bank.Holder`. Each of them is a group of entries.

B streams, M slots of a bank, n entries of a document, G groups of layers in a stack.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memtx.core import batch_axes
from memtx.errors import UserError
from memtx.generate.writer import CHUNK, fresh, read
from memtx.library.folder import Arrays
from memtx.library.view import View
from memtx.memory import MEMORIES
from memtx.memory.bank import Bank, Entries, Holder
from memtx.models.lm import LM, LMState, Params
from memtx.models.patterns import names
from memtx.models.settings import complete_model

LABELS = ("id", "document", "position", "namespace", "step")
LEAST = 256  # slots: sizes are powers of two from here on, so that few programs are compiled


def holders(state) -> list[Holder]:
    """Return the holders in a state, in order."""
    return [leaf for leaf in jax.tree.leaves(state, is_leaf=_is_holder) if _is_holder(leaf)]


def _is_holder(node: Any) -> bool:
    return isinstance(node, Holder)


def with_entries(lm: LM) -> LM:
    """Return a model whose state holds entries: this one, or this one with the first head that does.

    Raises UserError if the model has a head that holds none, or a body that resets the state of its layers.
    """
    model = lm.model
    if model.body and MEMORIES[model.body].room(model.memory[model.body]):
        raise UserError(f"model.body={model.body} resets the state of its layers; create the library with kind='state'")
    if holders(jax.eval_shape(partial(lm.init_state, 1))):
        return lm
    lm.check_next_token()
    if model.head:
        raise UserError(f"model.head={model.head} has no entries; create the library with kind='state'")
    head = next(name for name, cls in MEMORIES.items() if cls.site == "head")
    return LM(complete_model(dataclasses.replace(model, head=head)))


@lru_cache(maxsize=16)
def reading_model(lm: LM, tokens: int) -> LM:
    """Return the model that reads a document of at most `tokens` tokens and keeps all of its entries."""
    return _with_memories(lm, lambda cls, config: cls.reading(config, tokens))


@lru_cache(maxsize=16)
def answering_model(lm: LM, slots: int) -> LM:
    """Return the model whose state has room for `slots` entries of a library."""
    return _with_memories(lm, lambda cls, config: cls.answering(config, slots))


def _with_memories(lm: LM, change) -> LM:
    memory = {name: change(MEMORIES[name], config) for name, config in lm.model.memory.items()}
    return LM(dataclasses.replace(lm.model, memory=memory))


def slots_for(lm: LM, entries: int) -> int:
    """Return the slots for this number of entries: a power of two, rounded up to a boundary of every memory."""
    boundaries = [MEMORIES[name].boundary(lm.model.memory[name]) for name in names(lm.model.stacks, lm.model.head)]
    return _rounded(max(LEAST, 1 << max(entries - 1, 0).bit_length()), math.lcm(*boundaries))


def _rounded(number: int, to: int) -> int:
    return -(-number // to) * to


def read_entries(lm: LM, params: Params, ids: np.ndarray) -> Arrays:
    """Return the entries of a document, by GROUP/NAME, each [n, ...].

    Raises UserError if the document has too many tokens for learned positions, or too few for an entry.
    """
    lm.check_length(len(ids), CHUNK, "cut the document into shorter ones")
    reader = reading_model(lm, slots_for(lm, len(ids)))
    state = read(reader, params, [ids], fresh(reader, 1), CHUNK)
    found = {}
    for group, (holder, axes) in enumerate(zip(holders(state), holders(batch_axes(reader.init_state)), strict=True)):
        entries = {f"{group}/{name}": array for name, array in _taken(holder.written(), axes.written()).items()}
        if not len(entries[f"{group}/position"]):
            raise UserError(f"a document of {len(ids)} tokens is too short: it gives no entry")
        found |= entries
    return found


def _taken(bank: Bank, axes: Bank) -> Arrays:
    """Return the entries of the first stream: position [n], and key and value, [n, ...]. axes: the batch axis of each leaf."""
    lead = bank.cursor.ndim  # axes before the slots: of the stream, and of the groups of a stack
    id_M = np.asarray(bank.entries.id).reshape(-1, bank.capacity)[0]
    count = int((id_M >= 0).sum())

    def take(leaf: Array, axis: int) -> np.ndarray:
        return np.moveaxis(np.take(np.asarray(leaf), 0, axis), lead - 1, 0)[:count]

    payload = ((bank.entries.key, bank.entries.value), (axes.entries.key, axes.entries.value))
    arrays = dict(zip(_names(payload[0]), jax.tree.leaves(jax.tree.map(take, *payload)), strict=True))
    position = np.asarray(bank.entries.position).reshape(-1, bank.capacity)[0, :count]
    return {**arrays, "position": position}


def _names(payload) -> list[str]:
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(payload)]


def answering_state(lm: LM, view: View, batch_size: int = 1) -> tuple[LM, LMState]:
    """Return the model that can answer from a view, and a fresh state of B streams that hold its entries.

    Entries are labelled with the index of their document in the view plus 1. Tokens of the stream have document 0.
    """
    slots = slots_for(lm, max((len(rows.document_n) for rows in view.groups.values()), default=0))
    lm = answering_model(lm, slots)
    leaves, tree = jax.tree.flatten(fresh(lm, batch_size), is_leaf=_is_holder)
    axes = iter(holders(batch_axes(lm.init_state)))
    group = 0
    for i, leaf in enumerate(leaves):
        if _is_holder(leaf):
            axis = int(next(axes).shelf().cursor)
            if rows := view.groups.get(str(group)):
                leaves[i] = leaf.with_shelf(_filled(leaf.shelf(), axis, rows.arrays, rows.document_n + 1, slots))
            group += 1
    return lm, jax.tree.unflatten(tree, leaves)


def _filled(bank: Bank, axis: int, arrays: Arrays, document_n: np.ndarray, slots: int) -> Bank:
    """Return the bank with these entries in its first slots, in order. axis: that of the streams, or -1 without one."""
    lead, count = bank.cursor.ndim, len(document_n)

    def place(old: Array, new_n: np.ndarray) -> Array:
        full = np.zeros((bank.capacity, *new_n.shape[1:]), old.dtype)
        full[:count] = new_n
        full = np.moveaxis(full, 0, lead - (axis >= 0))
        full = np.expand_dims(full, axis) if axis >= 0 else full
        return jnp.asarray(np.broadcast_to(full, old.shape))

    def label(old: Array, new_n: np.ndarray) -> Array:
        full = np.full(bank.capacity, -1, np.int32)
        full[:count] = new_n
        return jnp.asarray(np.broadcast_to(full, old.shape))

    old, zero_n = bank.entries, np.zeros(count, np.int32)
    payload = (old.key, old.value)
    new = jax.tree.unflatten(jax.tree.structure(payload), [arrays[name] for name in _names(payload)])
    key, value = jax.tree.map(place, payload, new)
    labels = (np.arange(count), document_n, arrays["position"], zero_n, zero_n)
    named = {name: label(getattr(old, name), new_n) for name, new_n in zip(LABELS, labels, strict=True)}
    return Bank(Entries(key, value, **named), jnp.full_like(bank.cursor, slots))
