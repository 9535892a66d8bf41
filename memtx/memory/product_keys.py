"""Product keys: each token reads k of n^2 learned entries, which two searches among n sub-keys find exactly.

    q = norm(x Wq) = (q1, q2) per head ;  s_ij = K1_i q1 + K2_j q2           entry (i, j) of n^2
    I = the k largest s_ij ;  w = softmax over I of s

    product_key   y = sum_heads sum_I w V_I                      a memory of values, in place of the feed-forward network
    memory_plus   y = (SiLU(x W1) * sum_heads sum_I w V_I) Wo    Memory+: one table V for all layers, gated
    peer          y = sum_heads sum_I w gelu(u_I x) v_I          PEER: entries are experts with a single neuron

All entries are parameters, so the state is `()`. Gradients reach the scores and values of the chosen entries, and through the
scores the queries and keys. They do not reach the choice. The cost of a token, given in the cards, grows with n, while the
table grows with n^2. Rows are read one by one (see memtx.ops.table). Values have `value_lr` times the learning rate of the
model and no weight decay. Metrics on request: metric/usage, the share of entries that a call read, and metric/kl, KL(weights ||
uniform) in nats.

Deviations: maps have no bias unless `bias` is set, unlike in the references. Queries pass a LayerNorm in place of a BatchNorm,
whose statistics would couple streams and times. Optimiser updates are dense instead of sparse. The learning rate of Memory+
follows the schedule of the model.

Sources: Lample et al. 2019 (arXiv 1907.05242); Berges et al. 2024 (2412.09764); He 2024 (2407.04153).
B stream, T time, N = B T, D model, H heads, M sub-keys, C half of a key, R = H k entries read, E value dim.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.scipy.special import xlogy

from memtx.core import Dims, Memory, Segment, emit, wants
from memtx.errors import UserError, positive
from memtx.nn.linear import Linear, Norm, normal
from memtx.ops.product import product_top_k
from memtx.ops.table import dots, pool


@dataclasses.dataclass(frozen=True)
class Keys:
    """The settings of the search for entries. Raises UserError if a setting is out of range."""

    subkeys: int = 64  # n sub-keys on each side: a table of n^2 entries
    heads: int = 4  # queries of a token
    top_k: int = 16  # entries that a head reads
    key_dim: int = 64  # of a query, both halves
    value_lr: float = 4.0  # learning rate of the table, as a multiple of the model's
    bias: bool = False  # of the map to queries, and in memory_plus also of the maps around the table

    def __post_init__(self):
        positive(self, "subkeys", "heads", "top_k", "key_dim")
        if self.key_dim % 2:
            raise UserError(f"key_dim={self.key_dim} must be even: a query has two halves")
        if self.top_k > self.subkeys**2:
            raise UserError(f"top_k={self.top_k} is more than the table's subkeys^2 = {self.subkeys**2} entries")


class Search(nnx.Module):
    """The search for entries: x_BTD -> (weight_NR, index_NR). The k weights of each head sum to 1.

    norm: "layer" for queries, "rms" for queries and sub-keys (qk-norm, with scores divided by sqrt(C)), or "".
    """

    def __init__(self, key: Array, width: int, config: Keys, *, norm: str, shared_keys: bool = False):
        query, keys = jax.random.split(key)
        half = config.key_dim // 2
        self.config, self.qk_norm = config, norm == "rms"
        self.query = Linear(query, width, config.heads * config.key_dim, bias=config.bias)
        self.norm = Norm(norm, config.key_dim) if norm else None
        shape = (2, 1 if shared_keys else config.heads, config.subkeys, half)
        self.keys = nnx.Param(jax.random.uniform(keys, shape, minval=-(half**-0.5), maxval=half**-0.5))

    def scores(self, x_BTD: Array) -> Array:
        """Return the scores of the two halves, [2, N, H, M], float32."""
        c = self.config
        q_NHC = self.query(x_BTD.astype(jnp.float32)).reshape(-1, c.heads, c.key_dim)
        if self.norm is not None:
            q_NHC = self.norm(q_NHC)
        keys = self.keys[...]
        if self.qk_norm:
            keys = keys * lax.rsqrt((keys * keys).mean(-1, keepdims=True) + 1e-6) * keys.shape[-1] ** -0.5
        return jnp.stack([products(q, k) for q, k in zip(jnp.split(q_NHC, 2, -1), keys, strict=True)])

    def __call__(self, x_BTD: Array, seg: Segment) -> tuple[Array, Array]:
        """Return (weight_NR, index_NR) of the entries that each token reads."""
        left_NHM, right_NHM = self.scores(x_BTD)
        score_NHk, index_NHk = product_top_k(left_NHM, right_NHM, self.config.top_k)
        weight_NHk = jax.nn.softmax(score_NHk, -1)
        weight_NR, index_NR = (a.reshape(len(a), -1) for a in (weight_NHk, index_NHk))
        if wants("metric"):
            observe(weight_NR, index_NR, seg.mask_BT.reshape(-1), self.config.subkeys**2)
        return weight_NR, index_NR


def products(q_NHC: Array, keys_HMC: Array) -> Array:
    """Return the products of queries with the sub-keys of their head, or with shared sub-keys, [N, H, M], from 2-D dots."""
    if len(keys_HMC) == 1:
        return (q_NHC.reshape(-1, q_NHC.shape[-1]) @ keys_HMC[0].T).reshape(*q_NHC.shape[:2], -1)
    return jnp.stack([q_NHC[:, h] @ keys.T for h, keys in enumerate(keys_HMC)], 1)


def observe(weight_NR: Array, index_NR: Array, mask_N: Array, size: int) -> None:
    """Emit metrics of how the real tokens of a call use the table."""
    weight_NR = lax.stop_gradient(jnp.where(mask_N[:, None], weight_NR, 0))
    share = jnp.zeros(size).at[index_NR].add(weight_NR)
    share = share / jnp.maximum(share.sum(), 1e-30)
    emit("metric/usage", (share > 0).mean())
    emit("metric/kl", math.log(size) + xlogy(share, share).sum())


def table(key: Array, config: Keys, width: int) -> nnx.Param:
    """Return a table of subkeys^2 rows, without weight decay and with the learning rate `value_lr`."""
    return normal(key, (config.subkeys**2, width), width**-0.5, optim="no_decay", lr=config.value_lr)


class Table(Memory):
    """A mechanism at the residual site without a state."""

    site = "residual"

    def init_state(self, batch_size: int) -> tuple:
        """Return ()."""
        return ()


class ProductKey(Table):
    """A product-key memory of values, in place of the feed-forward network of the middle layer."""

    kind = "table of values"
    block = "window/product_key"

    @classmethod
    def preset_layers(cls, layers: int) -> tuple[int, ...]:
        """Return the middle layer."""
        return (layers // 2,)

    Config = Keys
    tiny = (Config(subkeys=4, heads=2, top_k=3, key_dim=4),)

    def __init__(self, config: Keys, dims: Dims, key: Array):
        search, values = jax.random.split(key)
        self.search = Search(search, dims.width, config, norm="layer")
        self.values = table(values, config, dims.width)

    def __call__(self, x_BTD, state: tuple, seg: Segment, *, key: Array | None = None):
        weight_NR, index_NR = self.search(x_BTD, seg)
        y_ND = pool(self.values[...], index_NR, weight_NR)
        return y_ND.reshape(x_BTD.shape).astype(x_BTD.dtype), state


class MemoryPlus(Table):
    """Memory+. The model creates the table once and passes it to all layers in `seg.shared`."""

    kind = "table of values"
    block = "window/memory_plus"

    @classmethod
    def preset_layers(cls, layers: int) -> tuple[int, ...]:
        """Return three layers, at 1/6, 1/2 and 5/6 of the depth."""
        return tuple(sorted({layers // 6, layers // 2, 5 * layers // 6}))

    @dataclasses.dataclass(frozen=True)
    class Config(Keys):
        """The settings of Memory+."""

        top_k: int = 32
        value_dim: int = 0  # 0: the model's width
        qk_norm: bool = False  # for stability in large models

    tiny = (Config(subkeys=4, heads=2, top_k=3, key_dim=4, value_dim=6, qk_norm=True),)

    @classmethod
    def shared(cls, config: Config, dims: Dims, key: Array) -> dict[str, nnx.Param]:
        """Return the parameters that all layers share: the table."""
        return {"values": table(key, config, config.value_dim or dims.width)}

    def __init__(self, config: Config, dims: Dims, key: Array):
        search, gate, out = jax.random.split(key, 3)
        size = config.value_dim or dims.width
        self.search = Search(search, dims.width, config, norm="rms" if config.qk_norm else "")
        self.gate = Linear(gate, dims.width, size, bias=config.bias)
        self.out = Linear(out, size, dims.width, bias=config.bias, shard="in")

    def __call__(self, x_BTD, state: tuple, seg: Segment, *, key: Array | None = None):
        weight_NR, index_NR = self.search(x_BTD, seg)
        y_NE = pool(seg.shared["memory_plus/values"], index_NR, weight_NR)
        gate_BTE = jax.nn.silu(self.gate(x_BTD))
        return self.out(gate_BTE * y_NE.reshape(gate_BTE.shape).astype(x_BTD.dtype)), state


class PEER(Table):
    """PEER: a table of experts with a single neuron, in place of the feed-forward network of the middle layer."""

    kind = "table of experts"
    block = "window/peer"

    @classmethod
    def preset_layers(cls, layers: int) -> tuple[int, ...]:
        """Return the middle layer."""
        return (layers // 2,)

    @dataclasses.dataclass(frozen=True)
    class Config(Keys):
        """The settings of PEER."""

        heads: int = 8
        value_lr: float = 1.0

    tiny = (Config(subkeys=4, heads=2, top_k=3, key_dim=4),)

    def __init__(self, config: Config, dims: Dims, key: Array):
        search, up, down = jax.random.split(key, 3)
        self.search = Search(search, dims.width, config, norm="layer", shared_keys=True)
        self.up, self.down = table(up, config, dims.width), table(down, config, dims.width)

    def __call__(self, x_BTD, state: tuple, seg: Segment, *, key: Array | None = None):
        weight_NR, index_NR = self.search(x_BTD, seg)
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1]).astype(jnp.float32)
        a_NR = jax.nn.gelu(dots(self.up[...], index_NR, x_ND))
        y_ND = pool(self.down[...], index_NR, weight_NR * a_NR)
        return y_ND.reshape(x_BTD.shape).astype(x_BTD.dtype), state
