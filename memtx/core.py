"""The contract: everything that remembers is one pure call, `(x, state, seg) -> (y, state)`.

A *Module* holds parameters and nothing else. A *State* is a pytree that the caller owns: its tree, shapes and dtypes never
change between calls. A *Segment* says what this time step is. This file has those three, and what is done to any state
(`batch_axes`, `reset`, `detach`) and around any call (`emit`, `collect`, `rematerialised`, `scan`).

Legend: B stream, T query time, S source time, M memory slots, N query heads, K kv heads, H head dim, D model.
"""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Protocol, dataclass_transform

import jax
import jax.numpy as jnp
from jax import Array, lax

State = Any  # a pytree of arrays; `()` where nothing is remembered


@dataclass_transform(frozen_default=True)
def pytree(cls):
    """A frozen dataclass whose fields are all pytree children."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@pytree
class Segment:
    """One time step of B parallel streams: T >= 1 tokens each, real tokens first, padding after.

    position_BT  int32, place of each token in its document: they follow one another, within a call and from call to call
    length_B     int32, how many of the T tokens are real
    reset_B      bool, a new document begins at this call's first token: the row's state is cleared before anything is read
    source_B     int32, id of the document, kept as provenance of what is written
    token_BT     int32 or None, the tokens themselves, set by the LM for memories that store or hash them
    shared       arrays that a model hands to all its layers (a bias table, an encoder's output)
    """

    position_BT: Array
    length_B: Array
    reset_B: Array
    source_B: Array
    token_BT: Array | None = None
    shared: Mapping[str, Array] = dataclasses.field(default_factory=dict)

    @property
    def mask_BT(self) -> Array:
        return jnp.arange(self.position_BT.shape[1]) < self.length_B[:, None]

    def replace(self, **changes) -> Segment:
        return dataclasses.replace(self, **changes)


def segment(position_BT, length_B=None, reset_B=None, source_B=None) -> Segment:
    """A Segment with the usual defaults: nothing padded, nothing reset, source 0."""
    batch, time = position_BT.shape
    return Segment(
        position_BT=jnp.asarray(position_BT, jnp.int32),
        length_B=jnp.full(batch, time, jnp.int32) if length_B is None else jnp.asarray(length_B, jnp.int32),
        reset_B=jnp.zeros(batch, bool) if reset_B is None else jnp.asarray(reset_B, bool),
        source_B=jnp.zeros(batch, jnp.int32) if source_B is None else jnp.asarray(source_B, jnp.int32),
    )


class Stateful(Protocol):
    def init_state(self, batch_size: int) -> State:
        """The empty memory. Constants of the static config: no parameters, no keys."""
        ...


class Layer(Stateful, Protocol):
    """What every memory, block, stack and body is.

    At the *attention* site x is (q_BTNH, k_BTKH, v_BTKH), un-rotated, and y is BTNH; k = v = None means nothing to write.
    At the *residual* and *body* sites x and y are BTD. At the *head* site x is (h_BTD, logits_BTV) and y the new logits.
    y has x's dtype (the logits').
    """

    def __call__(self, x, state: State, seg: Segment, /, *, key: Array | None = None) -> tuple[Any, State]: ...


@dataclasses.dataclass(frozen=True)
class Dims:
    """The static sizes that a layer is built for, and how it tells positions apart.

    position: "rope", "alibi", "t5", or "none" (also for learned positions, which the embedding adds).
    score_scale: of attention scores; 0: head_dim^-1/2. Mechanisms read it as `scale`.
    vocab_size: for what stores or hashes tokens.
    closed: what a memory adds to attention begins as exactly nothing, since it stands in a pretrained backbone.
    """

    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    position: str = "rope"
    rope_base: float = 10_000.0
    rope_scaling: tuple[float, ...] = ()
    score_scale: float = 0.0
    vocab_size: int = 0
    closed: bool = False

    @property
    def scale(self) -> float:
        """What q k is multiplied by."""
        return self.score_scale or self.head_dim**-0.5

    def gate(self, b: Array) -> Array:
        """How much a memory counts beside attention: sigmoid(b), or closed tanh(b), which is 0 at b = 0 and still learns."""
        return jnp.tanh(b) if self.closed else jax.nn.sigmoid(b)


class Memory(Protocol):
    """A mechanism: a Layer class that MEMORIES lists, built as `cls(config, dims, key)`.

    site    what x is: "attention", "residual", "body" (built as `cls(config, dims, key, body)`: it wraps a body) or "head"
    kind    what it remembers in: "ring of ...", "bank of ..." (entries with validity), "fixed ..." (a value, always valid),
            "table of ..." (parameters only: the state is `()`) or "nothing"
    Config  its settings, a frozen dataclass
    tiny    settings for the contract tests: so small that 16 tokens fill every ring and cross every boundary of its own

    Optional, with their defaults:
    block = NAME                   the pattern entry that stands for it in a preset (around a body or under a head: "window")
    place = all layers             layers -> which of them hold it in a preset; the others have windows
    causal = True                  whether a token sees nothing after it; if not, a text must come in one call
    encoded = False                whether it is written by what an encoder gave, `seg.shared["encoded/..."]`, and not by x
    gradient = True                whether a gradient passes through the state, until it is detached
    readable = True                at the attention site: whether other layers may read what one wrote, "^NAME" in a pattern;
                                   not if it writes by parameters of its own
    shared(config, dims, key)      parameters that its layers share, by name, found in `seg.shared["NAME/name"]`
    wrap_layer(config, dims, key, layer)      at the body site: what stands for each layer of the body
    Config.room                    at the body site: tokens that layers see before it wipes them, or None
    Config.within(room)            the settings in such a body: no more kept than it will show
    Config.of_tokens(pieces)       the settings with what depends on the texts of a tokenizer's tokens
    """

    site: ClassVar[str]
    kind: ClassVar[str]
    Config: ClassVar[type]
    tiny: ClassVar[tuple]


# --- what is done to any state --------------------------------------------------------------------------------------------


def batch_axes(init_state: Callable[[int], State]) -> State:
    """Per leaf, the axis that grows with the batch: 0 in a layer, 1 in a stack ([G, B, ...]), -1 where all streams share it."""
    one, two = (jax.eval_shape(partial(init_state, n)) for n in (1, 2))

    def axis(a, b):
        return next((i for i, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if m != n), -1)

    return jax.tree.map(axis, one, two)


def where_rows(row_B: Array, new: State, old: State, axes: State) -> State:
    """`new` in the rows that are True, `old` elsewhere; leaves that all streams share (axis -1) stay old."""

    def leaf(n, o, axis):
        if axis < 0:
            return o
        return jnp.where(row_B.reshape((1,) * axis + (-1,) + (1,) * (o.ndim - axis - 1)), n, o)

    return jax.tree.map(leaf, new, old, axes)


def take_rows(state: State, index_B: Array, axes: State) -> State:
    """The rows of a state at these indices, which may repeat; leaves that all streams share stay."""
    return jax.tree.map(lambda leaf, axis: leaf if axis < 0 else jnp.take(leaf, index_B, axis), state, axes)


def reset(layer: Stateful, state: State, reset_B: Array) -> State:
    """Fresh memory in the rows that are True. Costs nothing when no row is: a plain `where` would rewrite every ring."""
    fresh = partial(layer.init_state, reset_B.shape[0])
    axes = batch_axes(layer.init_state)
    return lax.cond(reset_B.any(), lambda s: where_rows(reset_B, fresh(), s, axes), lambda s: s, state)


def detach(state: State, when: Array | bool = True) -> State:
    """The boundary of truncated backpropagation: no gradient passes to before it. `when` may be traced."""
    if when is True:
        return jax.tree.map(lax.stop_gradient, state)
    return jax.tree.map(lambda s: jnp.where(when, lax.stop_gradient(s), s), state)


def state_bytes(layer: Stateful, batch_size: int = 1) -> int:
    """Bytes of memory that `batch_size` streams keep between calls."""
    leaves = jax.tree.leaves(jax.eval_shape(partial(layer.init_state, batch_size)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


# --- auxiliary outputs: emit inside, collect at each transform boundary -----------------------------------------------------

_tap: contextvars.ContextVar[tuple[tuple[str, ...], dict]] = contextvars.ContextVar("memtx_tap", default=((), {}))


def wants(kind: str) -> bool:
    """Whether anyone asked for this kind, so that what nobody asked for is not even traced."""
    return kind in _tap.get()[0]


def wants_only(kind: str) -> bool:
    """Whether nobody asked for another kind; "memory", which layers hand on to later ones, does not count."""
    return set(_tap.get()[0]) <= {kind, "memory"}


def emit(name: str, value: Any) -> None:
    """Hand out an auxiliary value: "loss/...", which training adds; "metric/...", "attribution/...", "hidden" if asked for.

    An array; "memory/...", which a body hands on to its later layers, is a tree of them.
    """
    kinds, store = _tap.get()
    if name.split("/")[0] in kinds:
        store.setdefault(name, []).append(value)


def emit_all(aux: Mapping[str, tuple[Array, ...]]) -> None:
    """Pass on what an inner `collect` returned."""
    for name, values in aux.items():
        for value in values:
            emit(name, value)


def collect(f: Callable, *kinds: str, also: tuple[str, ...] = ()) -> Callable:
    """`g(*args) -> (f(*args), {name: values emitted inside})`, for use inside jit.

    Without kinds: those that the enclosing collect asked for; this is how emissions cross a scan, a checkpoint or a vmap.
    `also`: kinds that may be emitted beside them.
    Raises LookupError if a named kind other than "loss" was emitted by nothing: a compiled f emits only while it is traced.
    """

    def g(*args, **kwargs):
        store: dict[str, list] = {}
        token = _tap.set(((kinds or _tap.get()[0]) + also, store))
        try:
            out = f(*args, **kwargs)
        finally:
            _tap.reset(token)
        for kind in kinds:
            if kind != "loss" and not any(name.split("/")[0] == kind for name in store):
                raise LookupError(f"nothing emitted {kind!r}; call collect inside the jitted function, not around it")
        return out, {name: tuple(values) for name, values in store.items()}

    return g


def rematerialised(f: Callable) -> Callable:
    """f, made again in the backward pass, all but what a mechanism has read from a bank (it is named "read"); it may emit."""
    tapped = jax.checkpoint(collect(f), policy=jax.checkpoint_policies.save_only_these_names("read"))

    def g(*args):
        out, aux = tapped(*args)
        emit_all(aux)
        return out

    return g


def scan(f: Callable, carry, xs, *, length: int | None = None, unroll: int = 1) -> tuple[Any, Any]:
    """`lax.scan` whose body may emit: values come out stacked along a new first axis.

    Fully unrolled (`unroll >= length`) there is no scan at all: what gets no gradient then costs no backward pass.
    """
    tapped = collect(f)

    def body(carry, x):
        (carry, y), aux = tapped(carry, x)
        return carry, (y, aux)

    size = jax.tree.leaves(xs)[0].shape[0] if length is None else length
    if unroll < size:
        carry, (ys, aux) = lax.scan(body, carry, xs, length=length, unroll=unroll)
    else:
        steps = []
        for i in range(size):
            carry, step = body(carry, jax.tree.map(lambda x, i=i: x[i], xs))
            steps.append(step)
        ys, aux = jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)
    emit_all(aux)
    return carry, ys
