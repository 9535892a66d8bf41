"""The contract: everything that remembers is one pure call, `(x, state, seg) -> (y, state)`.

A *Module* has parameters and nothing else. A *state* is a pytree that the caller owns. Its tree, shapes and dtypes never change
between calls. A *Segment* describes the tokens of one call. This file defines the three, the operations on any state
(`batch_axes`, `reset`, `detach`) and the wrappers around any call (`emit`, `collect`, `rematerialised`, `scan`).

Legend: B stream, T query time, S source time, M memory slots, N query heads, K kv heads, H head dim, D model.
"""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

State = Any  # a pytree of arrays; `()` if nothing is remembered


@dataclass_transform(frozen_default=True)
def pytree(cls):
    """Make a class a frozen dataclass whose fields are all children of a pytree."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@pytree
class Segment:
    """The tokens of one call for B parallel streams: T >= 1 tokens each, with padding after the real tokens.

    position_BT  int32, the position of each token in its document, consecutive within a call and from call to call
    length_B     int32, how many of the T tokens are real
    reset_B      bool, whether a new document starts at this call's first token; the row's state is then reset before any read
    document_B     int32, the id of the document, which entries record as their origin
    token_BT     int32 or None, the token ids, which the LM sets for memories that store or hash them
    shared       arrays that a model passes to all its layers, such as a bias table or the output of an encoder
    """

    position_BT: Array
    length_B: Array
    reset_B: Array
    document_B: Array
    token_BT: Array | None = None
    shared: Mapping[str, Array] = dataclasses.field(default_factory=dict)

    @property
    def mask_BT(self) -> Array:
        """The mask of the real tokens."""
        return jnp.arange(self.position_BT.shape[1]) < self.length_B[:, None]

    def replace(self, **changes) -> Segment:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def segment(position_BT, length_B=None, reset_B=None, document_B=None) -> Segment:
    """Build a Segment. By default there is no padding and no reset, and the document id is 0."""
    batch, time = position_BT.shape
    return Segment(
        position_BT=jnp.asarray(position_BT, jnp.int32),
        length_B=jnp.full(batch, time, jnp.int32) if length_B is None else jnp.asarray(length_B, jnp.int32),
        reset_B=jnp.zeros(batch, bool) if reset_B is None else jnp.asarray(reset_B, bool),
        document_B=jnp.zeros(batch, jnp.int32) if document_B is None else jnp.asarray(document_B, jnp.int32),
    )


class Stateful(Protocol):
    """An object that has a state."""

    def init_state(self, batch_size: int) -> State:
        """Return the empty state of `batch_size` streams. It depends only on the static config, not on parameters or keys."""
        ...


class Layer(Stateful, Protocol):
    """The interface of every memory, block, stack and body.

    At the *attention* site x is (q_BTNH, k_BTKH, v_BTKH), un-rotated, and y is BTNH. If k and v are None, nothing is written.
    At the *residual* and *body* sites x and y are BTD. At the *head* site x is (h_BTD, logits_BTV) and y are the new logits.
    y has the dtype of x, or that of the logits at the head site. With key=None the call is deterministic.
    """

    def __call__(self, x, state: State, seg: Segment, /, *, key: Array | None = None) -> tuple[Any, State]: ...


@dataclasses.dataclass(frozen=True)
class Dims:
    """The static sizes of a layer, and the way it encodes positions.

    position: "rope", "alibi", "t5", or "none" (including learned positions, which the embedding adds).
    score_scale: the factor of attention scores. 0 means head_dim^-1/2. Mechanisms read it as `scale`.
    vocab_size: for mechanisms that store or hash tokens.
    closed: whether memories that are added to a pretrained backbone contribute exactly nothing at first.
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
        """The factor by which attention scores q k are multiplied."""
        return self.score_scale or self.head_dim**-0.5

    def gate(self, b: Array) -> Array:
        """Return the weight of a memory beside attention: sigmoid(b), or tanh(b) if `closed`.

        tanh(b) is 0 at b = 0 and has a gradient there.
        """
        return jnp.tanh(b) if self.closed else jax.nn.sigmoid(b)


class Body(Layer, Protocol):
    """The layers between embedding and output, or a mechanism around them."""

    def local_position(self, position_BT: Array) -> Array:
        """The positions at which learned position embeddings are read, [B, T]."""
        ...


SITES = ("attention", "residual", "body", "head")


class Memory(nnx.Module):
    """The base class of mechanisms: a Layer that `cls(config, dims, key)` builds, with hooks that describe it.

    A mechanism sets `site`, `kind`, `Config` and `tiny`. It overrides a hook if the default does not fit. The rest of memtx
    reads these attributes, so no module outside `memtx/memory` needs to know a mechanism by its name.
    """

    # --- required

    site: ClassVar[str]
    """The site of its calls, one of SITES. At "body" it is built as `cls(config, dims, key, body)` and wraps that body."""
    kind: ClassVar[str]
    """The kind of its state in a few words, as `memtx list` shows it: "ring of keys and values"."""
    Config: ClassVar[type]
    """The class of its settings: a frozen dataclass with a default for every field."""
    tiny: ClassVar[tuple]
    """Configs for the contract, so small that 16 tokens fill every ring and cross every boundary."""

    # --- optional

    entries: ClassVar[bool] = True
    """Whether the state is a collection of entries, each of which may be empty. False for a vector, a matrix, weights."""
    causal: ClassVar[bool] = True
    """Whether no token's output depends on a later token. If False, each text must come in a single call."""
    encoded: ClassVar[bool] = False
    """Whether the state is written from the output of an encoder, `seg.shared["encoded/..."]`, instead of from x."""
    gradient: ClassVar[bool] = True
    """Whether a gradient passes through the state, until the state is detached."""
    readable: ClassVar[bool] = True
    """At the attention site: whether other layers may read the state as "^NAME". False if writes depend on its parameters."""
    divides_time: ClassVar[bool] = False
    """Whether it was tested on calls whose tokens are divided over devices (`mesh.context`)."""
    positions: ClassVar[tuple[str, ...]] = ("rope", "alibi", "t5", "learned", "none")
    """The values of `model.position` that it supports."""
    block: ClassVar[str | None] = None
    """The pattern entry of its blocks in a preset. None: its own name, or "window" inside a body and under a head."""
    resizable: ClassVar[tuple[str, ...]] = ()
    """The settings that set nothing but capacities of banks. They may change when a run resumes."""
    context: ClassVar[str | None] = None
    """The setting that limits how many tokens it attends to, or None. `configs/pretrained.py` sets it."""
    wrap_layer: ClassVar[Callable[..., Layer] | None] = None
    """At the body site: `wrap_layer(config, dims, key, layer)` builds the layer that takes the place of each inner layer."""

    def __init__(self, config: Any, dims: Dims, key: Array, *body: Layer):
        """Create the parameters. `body` is given only at the body site."""

    def init_state(self, batch_size: int) -> State:
        """Return the empty state of `batch_size` streams. It depends on the config, not on parameters."""
        raise NotImplementedError(f"{type(self).__name__}.init_state")

    def __call__(self, x, state: State, seg: Segment, /, *, key: Array | None = None) -> tuple[Any, State]:
        """See `Layer`."""
        raise NotImplementedError(f"{type(self).__name__}.__call__")

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if (site := getattr(cls, "site", None)) not in (None, *SITES):
            raise TypeError(f"{cls.__name__}.site = {site!r} must be one of {', '.join(SITES)}")

    @classmethod
    def preset_layers(cls, layers: int) -> Sequence[int]:
        """Return the layers that have this mechanism in a preset with `layers` layers. The others have windows."""
        return range(layers)

    @classmethod
    def shared(cls, config, dims: Dims, key: Array) -> dict[str, nnx.Param]:
        """Return the parameters that all layers of the mechanism share, by name. Layers read `seg.shared["NAME/name"]`."""
        return {}

    @classmethod
    def room(cls, config) -> int | None:
        """Return how many tokens the inner layers see between resets, or None without resets. Only for the body site."""
        return None

    @classmethod
    def within(cls, config, room: int):
        """Return the config to use inside a body that resets the state every `room` tokens. More capacity would be unused."""
        return config

    @classmethod
    def of_tokens(cls, config, pieces: Sequence[bytes]):
        """Return the config with the settings that depend on the text of each token. By default there are none."""
        return config

    @classmethod
    def on_backbone(cls, attention: type[Memory] | None) -> dict[str, Any]:
        """Return the settings with which the mechanism starts like the attention of a pretrained backbone.

        attention: the mechanism of its other layers, or None if they keep that of the backbone.
        """
        return {}

    def local_position(self, position_BT: Array) -> Array:
        """Return the positions at which learned position embeddings are read, [B, T]. Only for the body site."""
        return position_BT

    # --- for memories whose entries a library can store: their state is a `memtx.memory.bank.Holder`

    @classmethod
    def reading(cls, config, tokens: int):
        """Return the config that reads a document of `tokens` tokens into a library: the state keeps an entry of each token."""
        return config

    @classmethod
    def answering(cls, config, entries: int):
        """Return the config whose state has room for `entries` entries of a library beside those of the stream."""
        return config

    @classmethod
    def boundary(cls, config) -> int:
        """Return a number of which the ids of the stream's entries begin at a multiple, so that the library is visible."""
        return 1


# --- operations on any state -----------------------------------------------------------------------------------------------


def batch_axes(init_state: Callable[[int], State]) -> State:
    """Return, per leaf, the axis that grows with the batch: 0 in a layer, 1 in a stack, -1 if all streams share the leaf."""
    one, two = (jax.eval_shape(partial(init_state, n)) for n in (1, 2))

    def axis(a, b):
        return next((i for i, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if m != n), -1)

    return jax.tree.map(axis, one, two)


def where_rows(row_B: Array | np.ndarray, new: State, old: State, axes: State = 0) -> State:
    """Return `new` in the rows that are True and `old` elsewhere.

    axes: the batch axis of each leaf, or one number for all. Leaves that all streams share (axis -1) stay old.
    """
    if isinstance(axes, int):
        axes = jax.tree.map(lambda _: axes, old)
    everywhere = isinstance(row_B, np.ndarray) and row_B.all()  # known at compile time: then `old` gets no gradient

    def leaf(n, o, axis):
        if axis < 0:
            return o
        if everywhere:
            return n
        return jnp.where(row_B.reshape((1,) * axis + (-1,) + (1,) * (o.ndim - axis - 1)), n, o)

    return jax.tree.map(leaf, new, old, axes)


def take_rows(state: State, index_B: Array | Sequence[int], axes: State) -> State:
    """Return the rows of a state at these indices, which may repeat. Leaves that all streams share stay."""
    return jax.tree.map(lambda leaf, axis: leaf if axis < 0 else jnp.take(leaf, jnp.asarray(index_B), axis), state, axes)


def reset(layer: Stateful, state: State, reset_B: Array) -> State:
    """Replace the state by a fresh one in the rows that are True.

    If no row is True, this costs nothing. A plain `where` would rewrite every ring in each call.
    """
    fresh = partial(layer.init_state, reset_B.shape[0])
    axes = batch_axes(layer.init_state)
    return lax.cond(reset_B.any(), lambda s: where_rows(reset_B, fresh(), s, axes), lambda s: s, state)


def detach(state: State, when: Array | bool = True) -> State:
    """Stop the gradient here, at a boundary of truncated backpropagation, if `when` is true. `when` may be traced."""
    if when is True:
        return jax.tree.map(lax.stop_gradient, state)
    return jax.tree.map(lambda s: jnp.where(when, lax.stop_gradient(s), s), state)


def state_bytes(layer: Stateful, batch_size: int = 1) -> int:
    """Return the bytes of the state that `batch_size` streams keep between calls."""
    leaves = jax.tree.leaves(jax.eval_shape(partial(layer.init_state, batch_size)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


# --- auxiliary outputs: emit inside, collect at each transform boundary -----------------------------------------------------

_tap: contextvars.ContextVar[tuple[tuple[str, ...], dict]] = contextvars.ContextVar("memtx_tap", default=((), {}))


def wanted() -> tuple[str, ...]:
    """Return the kinds that the enclosing `collect` collects."""
    return _tap.get()[0]


def wants(kind: str) -> bool:
    """Return whether anyone collects this kind. If nobody does, a mechanism need not compute its values."""
    return kind in wanted()


def emit(name: str, value: Any) -> None:
    """Emit an auxiliary value to the enclosing `collect`. If nobody collects its kind, nothing happens.

    The kind is the part of the name before "/". Training adds "loss/..." to the loss. Evaluation reports "metric/..." and
    "use/...". A value is an array, or a tree of arrays for "memory/...", which a body passes on to its later layers.
    """
    kinds, store = _tap.get()
    if name.split("/")[0] in kinds:
        store.setdefault(name, []).append(value)


def emit_all(aux: Mapping[str, tuple[Array, ...]]) -> None:
    """Emit again the values that an inner `collect` returned."""
    for name, values in aux.items():
        for value in values:
            emit(name, value)


def collect(f: Callable, *kinds: str, also: tuple[str, ...] = ()) -> Callable:
    """Return `g(*args) -> (f(*args), {name: values emitted inside})`, for use inside jit.

    Without kinds, g collects the kinds of the enclosing collect. Emissions cross a scan, a checkpoint or a vmap in this way.
    also: further kinds, which f need not emit.
    Raises LookupError if f emits nothing of a named kind other than "loss". A compiled f emits only while it is traced.
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
    """Wrap f in `jax.checkpoint`, which saves only reads from a bank (named "read") for the backward pass. f may emit."""
    tapped = jax.checkpoint(collect(f), policy=jax.checkpoint_policies.save_only_these_names("read"))

    def g(*args):
        out, aux = tapped(*args)
        emit_all(aux)
        return out

    return g


def scan(f: Callable, carry, xs, *, length: int | None = None, unroll: int = 1) -> tuple[Any, Any]:
    """Run `lax.scan` with a body that may emit. Emitted values come back stacked along a new first axis.

    With `unroll >= length` the loop is unrolled in Python. Parts that need no gradient then cost no backward pass.
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
