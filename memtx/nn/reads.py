"""Attribution: the entries that a layer read, in one form for all mechanisms.

If `wants("attribution")`, a mechanism emits the `Reads` of its bank as "attribution/reads", and a gate beside attention as
"attribution/gate". A Branch emits the weights of memories side by side as "attribution/mix". If `wants("attention")`, `attend`
emits the Reads of every softmax over keys as "attention/reads", for which it forms all scores. A Stack adds the number of the
layer. The reader of these values needs to know no mechanism.

B stream, T query time, N query heads (1 at the head site), R entries that were read, G groups of a stack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from memtx.core import collect, emit, emit_all, pytree

KIND, ATTENTION = "attribution", "attention"
NAMES = f"{KIND}/reads", f"{ATTENTION}/reads"
OWN, SOURCE, NOWHERE = -1, -2, -3  # in place of a document: the text being read, the encoder's source, no text


@pytree
class Reads:
    """The entries that the queries of a call read. Missing entries have weight 0.

    weight_BTNR    float32, the share of the entry in the output of its head
    rest_BTN       float32, the sum of the weights of entries that are not listed
    id_BTNR        int32, the id of the entry in its bank, or -1
    document_BTNR  int32, the document that a bank recorded, or OWN, SOURCE or NOWHERE
    position_BTNR  int32, the position of the entry's first token in its document. In OWN text it counts from the query:
                   0 is the query's own token and -1 the token before. NOWHERE: the index of a learned or state vector
    tokens_BTNR    int32, the number of tokens in the entry
    layer          int32 [] or [G], the number of the layer. (): outside the layers, as at the head site
    """

    weight_BTNR: Array
    rest_BTN: Array
    id_BTNR: Array
    document_BTNR: Array
    position_BTNR: Array
    tokens_BTNR: Array
    layer: Array | tuple[()] = ()


@pytree
class Shares:
    """The shares of memories in the output of a layer, float32.

    As "attribution/gate", [B, T, N]: the share of the memory beside attention, per head. As "attribution/mix", [B, T, J]: the
    shares of J memories side by side.
    """

    share_BTN: Array
    layer: Array | tuple[()] = ()


def reads(
    weight_BTNR: Array,
    rest_BTN: ArrayLike = 0.0,
    *,
    id: ArrayLike = -1,
    document: ArrayLike = OWN,
    position: ArrayLike = 0,
    tokens: ArrayLike = 1,
) -> Reads:
    """Return Reads whose labels are broadcast to [B, T, N, R]."""
    labels = (jnp.broadcast_to(jnp.asarray(a, jnp.int32), weight_BTNR.shape) for a in (id, document, position, tokens))
    rest_BTN = jnp.broadcast_to(jnp.asarray(rest_BTN, jnp.float32), weight_BTNR.shape[:-1])
    return Reads(weight_BTNR.astype(jnp.float32), rest_BTN, *labels)


def emit_reads(found: Reads, *, share_BTN: ArrayLike = 1.0, kind: str = KIND) -> None:
    """Emit Reads with their weights multiplied by a share of the layer's output."""
    rest_BTN, share = found.rest_BTN * share_BTN, jnp.asarray(share_BTN)[..., None]
    emit(f"{kind}/reads", dataclasses.replace(found, weight_BTNR=found.weight_BTNR * share, rest_BTN=rest_BTN))


def emit_gate(share: ArrayLike, shape_BTN: tuple[int, ...], name: str = "gate") -> None:
    """Emit the share of a memory beside attention, broadcast to [B, T, N]. name="mix": the shares of J memories, [B, T, J]."""
    emit(f"{KIND}/{name}", Shares(jnp.broadcast_to(jnp.asarray(share, jnp.float32), shape_BTN)))


def with_share(f: Callable, *args) -> tuple[Any, Callable[[ArrayLike], None]]:
    """Call f, and return its result and a function that emits its Reads with a share, for a branch that a gate weights.

    Everything else that f emits is emitted at once.
    """
    out, aux = collect(f)(*args)
    kept = [(name.partition("/")[0], read) for name in NAMES for read in aux.pop(name, ())]
    emit_all(aux)

    def emit_with(share_BTN: ArrayLike) -> None:
        for kind, read in kept:
            emit_reads(read, share_BTN=share_BTN, kind=kind)

    return out, emit_with


def without_reads(f: Callable) -> Callable:
    """Return f without its attribution, for layers whose tokens are not those of the text."""

    def g(*args, **kwargs):
        out, aux = collect(f)(*args, **kwargs)
        emit_all({name: values for name, values in aux.items() if name.partition("/")[0] not in (KIND, ATTENTION)})
        return out

    return g


def in_layer(aux: Mapping[str, tuple], layer: ArrayLike) -> dict[str, tuple]:
    """Return emitted values with the number of the layer in their Reads and Shares."""

    def numbered(value):
        return dataclasses.replace(value, layer=jnp.asarray(layer, jnp.int32)) if isinstance(value, Reads | Shares) else value

    return {name: tuple(map(numbered, values)) for name, values in aux.items()}
