"""Titans' neural long-term memory: an MLP per stream and head that learns by gradient descent while it reads.

    q, k, v = SiLU(conv(x W))            q, k l2-normalised
    theta = lr sig(.) / chunk,  eta = sig(.),  alpha = sig(.)              per token and head: step, momentum, forgetting
    G_i = grad |M(k_i) - v_i|^2          at the weights of the chunk's START, for all tokens i of a chunk
    S_t = eta_t S_{t-1} - theta_t G_t
    W_t = (1 - alpha_t) W_{t-1} + S_t
    y_t = M_{W_t}(q_t)                   forward only: the token's own write is read
    M(x) = silu(.. silu(x W^1) ..) W^L   L = depth. There are no biases. The first weights are learned

Unlike in the paper, G_i is scaled down if its norm exceeds `clip`. Otherwise depth 2 gave NaN within 600 tokens of noise.

The weights of a single token are never computed. G_i has rank one in each layer: a_i d_i^T, the layer's input and the error at
its output. Within a chunk, with W and S from before it,

    W_t = keep_t W + push_t S - sum_{i <= t} mix_ti a_i d_i^T
    x W_t = keep_t x W + push_t x S - ((x a^T) * mix) d                    mix = lower(1 - alpha) lower(eta) diag(theta)

so all products are chunk x chunk, as in attention. An unfinished chunk carries the weights of its start, so a text may be cut
anywhere.

Everything is differentiable, including the inner gradient, until the caller detaches the state. The backward pass
recomputes each chunk (remat).

Used by titans_blocks.py. Source: Behrouz et al. 2025 (arXiv 2501.00663).
B stream, T time, K chunks, Q slots in a chunk, N heads, H head dim, I features in, O features out, E features, F = 3 H + 3.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from memtx.core import Dims, Segment, emit, pytree, wants, where_rows
from memtx.errors import UserError, positive
from memtx.memory.inspect import Inspectable
from memtx.nn.conv import ShortConv
from memtx.nn.linear import Linear, dense, normal, unit
from memtx.ops.chunks import ChunkPart, in_chunks
from memtx.ops.delta import between

Weights = tuple[Array, ...]  # one [B, N, I, O] per layer


@dataclasses.dataclass(frozen=True)
class Settings:
    """The memory settings of all Titans. Defaults are those of the paper if it gives them, except `clip`."""

    chunk: int = 32  # tokens whose gradients are taken at the same weights
    depth: int = 2  # layers of the memory's MLP
    expansion: int = 2  # its hidden features, as a multiple of head_dim
    lr: float = 1.0  # the largest inner step that a chunk's tokens take together, before momentum
    momentum: bool = True  # add the gradients of earlier tokens, by eta
    forget: bool = True  # shrink the weights at each token, by alpha
    conv: int = 4  # taps of the convolution over q, k and v, or 1 for none
    clip: float = 1.0  # largest norm of a token's gradient, or 0 for no clipping, as in the paper

    def __post_init__(self):
        positive(self, "chunk", "depth", "expansion", "conv")
        if not 1 <= self.depth <= 4:
            raise UserError(f"depth must be from 1 to 4, not {self.depth}")
        if self.lr <= 0 or self.clip < 0:
            raise UserError("lr must be above 0, clip at least 0")


@pytree
class Fast(Inspectable):
    """The memories of B streams and N heads."""

    now: Weights
    start: Weights  # the weights at the start of the unfinished chunk
    momentum: Weights  # () without momentum
    offset_B: Array  # tokens in the unfinished chunk
    fresh_B: Array  # whether the row has read nothing yet, so that `initialise` gives it the learned first weights

    @property
    def matrices(self) -> Weights:
        """Return the weights of each layer and head (see `Inspectable`)."""
        return self.now


@pytree
class Gates:
    """The gates of the tokens of a chunk. All are 0 in slots without a token."""

    theta_BNQ: Array
    log_keep_BNQ: Array  # log (1 - alpha)
    log_eta_BNQ: Array
    valid_BNQ: Array  # 1 where there is a token


# --- a chunk ----------------------------------------------------------------------------------------------------------------


def apply(weights: Weights, x_BNQI: Array) -> Array:
    """Return M(x). Nothing is learned from it."""
    for w in weights[:-1]:
        x_BNQI = jax.nn.silu(x_BNQI @ w)
    return x_BNQI @ weights[-1]


def gradient(weights: Weights, k_BNQH: Array, v_BNQH: Array) -> tuple[list[Array], list[Array]]:
    """Return a and d of each layer. The gradient of |M(k_i) - v_i|^2 is a_i d_i^T."""
    inputs, slopes = [k_BNQH], []
    for w in weights[:-1]:
        z = inputs[-1] @ w
        s = jax.nn.sigmoid(z)
        inputs.append(z * s)
        slopes.append(s + z * s * (1 - s))
    errors = [2 * (inputs[-1] @ weights[-1] - v_BNQH)]
    for w, slope in zip(weights[:0:-1], slopes[::-1], strict=True):
        errors.append(slope * jnp.einsum("BNQO,BNIO->BNQI", errors[-1], w))
    return inputs, errors[::-1]


def decay(log_BNQ: Array) -> Array:
    """Return, as [t, j], the product of the factors after j up to t, or 0 if j > t. The argument has the logarithms."""
    return jnp.exp(between(log_BNQ))


def learn(now: Weights, start: Weights, momentum: Weights, q, k, v, gates: Gates, clip: float = 0.0):
    """Read a chunk or a part of one. Returns the weights and the momentum after it, and y_BNQH."""
    inputs, errors = gradient(start, k, v)
    theta = gates.theta_BNQ
    if clip:
        square = sum((a * a).sum(-1) * (d * d).sum(-1) for a, d in zip(inputs, errors, strict=True))
        theta = theta * lax.rsqrt(jnp.maximum(square / clip**2, 1.0))
    keep_BNQ = jnp.exp(jnp.cumsum(gates.log_keep_BNQ, -1))
    mix_BNQQ = decay(gates.log_keep_BNQ) * gates.valid_BNQ[:, :, None]
    if momentum:
        eta_BNQ, eta_BNQQ = jnp.exp(jnp.cumsum(gates.log_eta_BNQ, -1)), decay(gates.log_eta_BNQ)
        push_BNQ = jnp.einsum("BNTQ,BNQ->BNT", mix_BNQQ, eta_BNQ)
        last_BNQ = eta_BNQQ[:, :, -1] * theta
        mix_BNQQ = mix_BNQQ @ eta_BNQQ
    mix_BNQQ = mix_BNQQ * theta[:, :, None]

    x, after, momentum_after = q, [], []
    for i, (w, a, d) in enumerate(zip(now, inputs, errors, strict=True)):
        z = keep_BNQ[..., None] * (x @ w) - (jnp.einsum("BNTI,BNQI->BNTQ", x, a) * mix_BNQQ) @ d
        new = keep_BNQ[:, :, -1, None, None] * w - outer(a, mix_BNQQ[:, :, -1], d)
        if momentum:
            s = momentum[i]
            z = z + push_BNQ[..., None] * (x @ s)
            new = new + push_BNQ[:, :, -1, None, None] * s
            momentum_after.append(eta_BNQ[:, :, -1, None, None] * s - outer(a, last_BNQ, d))
        after.append(new)
        x = jax.nn.silu(z) if i + 1 < len(now) else z
    return tuple(after), tuple(momentum_after), x


def outer(a_BNQI: Array, scale_BNQ: Array, d_BNQO: Array) -> Array:
    """Return sum_i scale_i a_i d_i^T, [B, N, I, O]."""
    return jnp.einsum("BNQI,BNQO->BNIO", a_BNQI * scale_BNQ[..., None], d_BNQO)


# --- the module -------------------------------------------------------------------------------------------------------------


class NeuralMemory(nnx.Module):
    """The long-term memory as a layer: x_BTD -> y_BTD. Its state is (Fast, the last inputs of the convolution)."""

    def __init__(self, config: Settings, dims: Dims, key: Array):
        qkv, conv, gates, first, out = jax.random.split(key, 5)
        self.config, self.dims = config, dims
        heads, size = dims.num_heads, dims.head_dim
        self.qkv, self.conv = Linear(qkv, dims.width, 3 * heads * size), ShortConv(conv, 3 * heads * size, config.conv)
        self.gates = normal(gates, (dims.width, 3 * heads), 0.1 * dims.width**-0.5, optim="no_decay")
        alpha = np.geomspace(1e-3, 1e-1, heads)  # heads start with memories of 10 to 1000 tokens
        bias = np.stack([np.zeros(heads), np.zeros(heads), np.log(alpha / (1 - alpha))], -1)
        self.gates_bias = nnx.Param(jnp.asarray(bias.reshape(-1), jnp.float32), optim="no_decay")
        hidden = config.expansion * size
        self.sizes = list(zip([size, *[hidden] * (config.depth - 1)], [*[hidden] * (config.depth - 1), size], strict=True))
        keys = jax.random.split(first, config.depth)
        self.first = nnx.List(
            [normal(k, (heads, *shape), shape[0] ** -0.5, optim="no_decay") for k, shape in zip(keys, self.sizes, strict=True)]
        )
        self.norm = nnx.Param(jnp.ones((heads, size)), optim="no_decay")
        self.out = Linear(out, heads * size, dims.width, shard="in")

    def init_state(self, batch_size: int) -> tuple[Fast, Array | tuple[()]]:
        """Return the state of rows that have read nothing."""

        def zeros():
            return tuple(jnp.zeros((batch_size, self.dims.num_heads, *shape)) for shape in self.sizes)

        momentum = zeros() if self.config.momentum else ()
        fast = Fast(zeros(), zeros(), momentum, jnp.zeros(batch_size, jnp.int32), jnp.ones(batch_size, bool))
        return fast, self.conv.init_state(batch_size)

    def __call__(self, x_BTD: Array, state, seg: Segment) -> tuple[Array, tuple]:
        """Read the tokens of the call and learn from them: x_BTD -> y_BTD."""
        old, tail = state
        tokens_BTNF, tail = self.project(x_BTD, tail, seg.length_B)
        if wants("metric"):
            emit("metric/forget", jax.nn.sigmoid(tokens_BTNF[..., -1]).mean((0, 1)))
        size, fast = self.config.chunk, self.initialise(old)
        y_BTNH, fast = in_chunks(size, self.step, tokens_BTNF, fast, old.offset_B, seg, remat=True)
        return self.merge(y_BTNH, x_BTD.dtype), (finish(old, fast, seg, size), tail)

    def project(self, x_BTD: Array, tail, length_B: Array):
        """Return q, k, v and the gate logits concatenated, float32 [B, T, N, F], and the last inputs of the convolution."""
        qkv, tail = self.conv(self.qkv(x_BTD), tail, length_B)
        shape = (*x_BTD.shape[:2], self.dims.num_heads, -1)
        q, k, v = jnp.split(qkv.reshape(shape).astype(jnp.float32), 3, -1)
        logits = dense(x_BTD.astype(jnp.float32), self.gates[...]) + self.gates_bias[...]
        return jnp.concatenate([unit(q), unit(k), v, logits.reshape(shape)], -1), tail

    def step(self, fast: Fast, tokens_BQNF: Array, part: ChunkPart) -> tuple[Fast, Array]:
        """Read one part of a chunk and learn from it. Returns the new memories and y_BQNH."""
        size, start = self.dims.head_dim, chunk_start(fast, part)
        q, k, v, logits = jnp.split(tokens_BQNF.swapaxes(1, 2), [size, 2 * size, 3 * size], -1)
        theta, eta, alpha = jnp.moveaxis(logits, -1, 0)
        theta = self.config.lr / self.config.chunk * jax.nn.sigmoid(theta)
        log_keep = jax.nn.log_sigmoid(-alpha) if self.config.forget else jnp.zeros_like(alpha)
        gates = Gates(theta, log_keep, jax.nn.log_sigmoid(eta), jnp.ones_like(theta))
        gates = jax.tree.map(lambda gate: jnp.where(part.valid_BQ[:, None], gate, 0), gates)
        now, momentum, y_BNQH = learn(fast.now, start, fast.momentum, q, k, v, gates, self.config.clip)
        return dataclasses.replace(fast, now=now, start=start, momentum=momentum), y_BNQH.swapaxes(1, 2)

    def initialise(self, fast: Fast) -> Fast:
        """Put the learned first weights into rows that have not read anything."""

        def put(old):
            return tuple(jnp.where(fast.fresh_B[:, None, None, None], p[...], w) for p, w in zip(self.first, old, strict=True))

        return dataclasses.replace(fast, now=put(fast.now), start=put(fast.start))

    def merge(self, y_BTNH: Array, dtype) -> Array:
        """Normalise the output of each head and map the heads to [B, T, D]."""
        y = y_BTNH * lax.rsqrt((y_BTNH * y_BTNH).mean(-1, keepdims=True) + 1e-6) * self.norm[...]
        return self.out(y.reshape(*y.shape[:2], -1).astype(dtype))


def chunk_start(fast: Fast, part: ChunkPart) -> Weights:
    """Return the weights at the start of each row's chunk, at which gradients are taken."""
    return where_rows(part.starts_B, fast.now, fast.start)


def finish(old: Fast, new: Fast, seg: Segment, chunk: int) -> Fast:
    """Return the state after a call. Rows without a token keep `old` bit for bit."""
    offset_B = (old.offset_B + seg.length_B) % chunk
    new = dataclasses.replace(new, offset_B=offset_B, fresh_B=jnp.zeros_like(old.fresh_B))
    return where_rows(seg.length_B > 0, new, old)
