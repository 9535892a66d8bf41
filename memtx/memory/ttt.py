"""TTT-Linear and TTT-MLP: the memory is a small network per head, trained while it reads (test-time training).

The memory reads mini-batches of n tokens. W are the weights at the start of one. The learning rate is eta_ij = r_i s_j with
r_i = max(1/(i+1) + tau_i, 0) and s_j = base_lr sigmoid(x_j Wl + bl) / H. q and k are rotated by their index in the mini-batch.

    loss_j = 1/2 |LN(f(k_j; W)) - (v_j - k_j)|^2         f(z; W, b) = z W + b, or gelu(z W1 + b1) W2 + b2
    W_i = W - r_i G_i                                    all gradients at W, none at a later weight
    G_i = sum_{j <= i} s_j d loss_j / dW
    o_i = q_i + LN(f(q_i; W_i))                          y = out(post-LN(o))
    W <- W_{n-1}                                         at the end of the mini-batch

Within a call, q_i G_i = tril(Q K^T + 1) s u for each layer's input k and output gradient u (dual form). Because eta is a
product, the state of an unfinished mini-batch is the sum G alone.

Everything is differentiable, including the inner gradients, until the caller detaches the state.

Deviations: the state is the distance of the weights from their learned first values. These values therefore get a gradient from
every call, not only from the first one of a document. The only part of the published "Mamba backbone" is the gate
(`gate=True`).

Source: Sun et al. 2024 (arXiv 2407.04620).
B stream, T time, N heads, Q slots of a part of a mini-batch, H head dim, I in, O out, n mini-batch.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.core import Dims, Memory, Segment, pytree
from memtx.errors import UserError, positive
from memtx.memory.inspect import Inspectable
from memtx.nn.linear import Linear, Norm, normal
from memtx.nn.positions import rope
from memtx.ops.chunks import ChunkPart, change_rows, in_chunks

Layers = Any  # ((w [..., N, I, O], b [..., N, 1, O]), ...), or the same of gradients


@pytree
class FastWeights(Inspectable):
    """The weights of B streams, and the gradient of their unfinished mini-batches."""

    moved: Layers  # the weights minus their learned first values
    gradient: Layers  # G of the unfinished mini-batch
    offset_B: Array  # the number of its tokens so far

    @property
    def matrices(self) -> tuple[Array, ...]:
        """Return the change of the weights of each layer and head since their first values (see `Inspectable`)."""
        return tuple(w for w, _ in self.moved)


class TTTLinear(Memory):
    """Residual site: x_BTD -> x_BTD."""

    site = "residual"
    kind = "fixed weights"
    entries = False
    depth: ClassVar[int] = 1

    @dataclasses.dataclass(frozen=True)
    class Config:
        """The settings of TTT-Linear."""

        mini_batch: int = 16  # tokens whose gradients are taken at the same weights
        base_lr: float = 1.0  # factor of the inner learning rates
        gate: bool = False  # gelu(x Wg) on the output

        def __post_init__(self):
            positive(self, "mini_batch")
            if not self.base_lr > 0:
                raise UserError(f"base_lr must be above 0, not {self.base_lr}")

    tiny = (Config(mini_batch=4),)

    def __init__(self, config: Config, dims: Dims, key: Array):
        qkv, rate, out, gate, first = jax.random.split(key, 5)
        heads, head_dim, inner = dims.num_heads, dims.head_dim, dims.num_heads * dims.head_dim
        if head_dim % 2:
            raise UserError(f"{type(self).__name__} rotates pairs of dimensions: model.head_dim must be even, not {head_dim}")
        self.config, self.dims = config, dims
        self.qkv, self.out = Linear(qkv, dims.width, 3 * inner), Linear(out, inner, dims.width, shard="in")
        self.gate = Linear(gate, dims.width, inner) if config.gate else None
        self.rate = Linear(rate, dims.width, heads, bias=True, scale=0.02)
        self.tau = nnx.Param(jnp.zeros(config.mini_batch), optim="no_decay")
        for i, (d_in, d_out) in enumerate(self.sizes):
            setattr(self, f"w{i}", normal(jax.random.fold_in(first, i), (heads, d_in, d_out), 0.02))
            setattr(self, f"b{i}", nnx.Param(jnp.zeros((heads, 1, d_out)), optim="no_decay"))
        self.scale = nnx.Param(jnp.ones((heads, 1, head_dim)), optim="no_decay")
        self.bias = nnx.Param(jnp.zeros((heads, 1, head_dim)), optim="no_decay")
        self.norm = Norm("layer", inner)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The sizes (in, out) of each layer of the fast network."""
        head_dim = self.dims.head_dim
        return [(head_dim, head_dim)] if self.depth == 1 else [(head_dim, 4 * head_dim), (4 * head_dim, head_dim)]

    def init_state(self, batch_size: int) -> FastWeights:
        """Return weights at their learned first values."""

        def zeros() -> Layers:
            shape = (batch_size, self.dims.num_heads)
            return tuple((jnp.zeros((*shape, i, o)), jnp.zeros((*shape, 1, o))) for i, o in self.sizes)

        return FastWeights(zeros(), zeros(), jnp.zeros(batch_size, jnp.int32))

    def __call__(self, x_BTD, state: FastWeights, seg: Segment, *, key: Array | None = None):
        """Train on the call's tokens and read at each: x_BTD -> y_BTD."""
        size = self.config.mini_batch
        first = tuple((getattr(self, f"w{i}")[...], getattr(self, f"b{i}")[...]) for i in range(self.depth))
        row_n = jnp.maximum(1 / jnp.arange(1, size + 1) + self.tau[...], 0)
        norm = partial(layer_norm, self.scale[...], self.bias[...])

        def train(state: FastWeights) -> FastWeights:
            moved = jax.tree.map(lambda m, g: m - row_n[-1] * g, state.moved, state.gradient)
            return FastWeights(moved, jax.tree.map(jnp.zeros_like, moved), state.offset_B)

        def step(state: FastWeights, tokens, part: ChunkPart):
            q, k, v, rate = (a.swapaxes(1, 2) for a in tokens)
            rate = jnp.where(part.valid_BQ[:, None, :, None], rate, 0)
            row = row_n[part.slot_BQ][:, None, :, None]
            start = jax.tree.map(jnp.add, first, state.moved)
            o, gradient = train_and_read(start, state.gradient, q, k, v, rate, row, norm)
            return change_rows(part.ends_B, train, dataclasses.replace(state, gradient=gradient)), o.swapaxes(1, 2)

        tokens = (*self.heads(x_BTD, state.offset_B), self.rates(x_BTD))
        o_BTNH, state = in_chunks(size, step, tokens, state, state.offset_B, seg)
        y = self.norm(o_BTNH.reshape(*x_BTD.shape[:2], -1))
        if self.gate is not None:
            y = y * jax.nn.gelu(self.gate(x_BTD).astype(jnp.float32))
        return self.out(y.astype(x_BTD.dtype)), dataclasses.replace(state, offset_B=(state.offset_B + seg.length_B) % size)

    def heads(self, x_BTD: Array, offset_B: Array) -> list[Array]:
        """Return q and k, rotated by the index in the mini-batch, and v: float32 [B, T, N, H]."""
        shape = (*x_BTD.shape[:2], self.dims.num_heads, self.dims.head_dim)
        q, k, v = (a.astype(jnp.float32).reshape(shape) for a in jnp.split(self.qkv(x_BTD), 3, -1))
        slot_BT = (offset_B[:, None] + jnp.arange(shape[1])) % self.config.mini_batch
        return [rope(q, slot_BT, self.dims.rope_base), rope(k, slot_BT, self.dims.rope_base), v]

    def rates(self, x_BTD: Array) -> Array:
        """Return s_j, [B, T, N, 1]."""
        logit_BTN1 = self.rate(x_BTD).astype(jnp.float32)[..., None]
        return self.config.base_lr * jax.nn.sigmoid(logit_BTN1) / self.dims.head_dim


class TTTMLP(TTTLinear):
    """Residual site: x_BTD -> x_BTD. The fast network has two layers."""

    depth = 2

    @dataclasses.dataclass(frozen=True)
    class Config(TTTLinear.Config):
        """The settings of TTT-MLP."""

        base_lr: float = 0.1

    tiny = (Config(mini_batch=4, base_lr=1.0),)


def layer_norm(scale: Array, bias: Array, z: Array) -> Array:
    """Return the layer norm of the last axis."""
    z = z - z.mean(-1, keepdims=True)
    return z * jax.lax.rsqrt((z * z).mean(-1, keepdims=True) + 1e-6) * scale + bias


def train_and_read(
    start: Layers, gradient: Layers, q: Array, k: Array, v: Array, rate: Array, row: Array, norm: Callable[[Array], Array]
) -> tuple[Array, Layers]:
    """Read a part of a mini-batch. Returns the outputs [B, N, Q, H], each at its token's weights W_i, and G after the part.

    start      the weights W at the start of the mini-batch
    gradient   G of its tokens before this part
    q, k, v    [B, N, Q, H]
    rate, row  s and r, [B, N or 1, Q, 1]
    """
    inputs, pulls, z = [k], [], k
    for i, (w, b) in enumerate(start):
        if i:
            z, pull = jax.vjp(jax.nn.gelu, z)
            inputs, pulls = [*inputs, z], [*pulls, pull]
        z = z @ w + b
    z, pull = jax.vjp(norm, z)
    (u,) = pull(z - (v - k))
    outputs = [u]  # the gradient of each layer's output, last layer first
    for (w, _), pull in zip(start[:0:-1], pulls[::-1], strict=True):
        (u,) = pull(u @ w.swapaxes(-1, -2))
        outputs.append(u)
    y, new = q, []
    for i, ((w, b), (gw, gb), x, u) in enumerate(zip(start, gradient, inputs, outputs[::-1], strict=True)):
        y = jax.nn.gelu(y) if i else y
        u = rate * u
        step = y @ gw + gb + jnp.tril(y @ x.swapaxes(-1, -2) + 1) @ u
        y = y @ w + b - row * step
        new.append((gw + x.swapaxes(-1, -2) @ u, gb + u.sum(-2, keepdims=True)))
    return q + norm(y), tuple(new)
