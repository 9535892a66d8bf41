"""Product keys: each token reads k of n^2 learned entries, found exactly by two searches among n sub-keys.

    q = norm(x Wq) = (q1, q2) per head ;  s_ij = K1_i q1 + K2_j q2           entry (i, j) of n^2
    I = the k largest s_ij ;  w = softmax over I of s

    product_key   y = sum_heads sum_I w V_I                      a memory of values, in the feed-forward's place
    memory_plus   y = (SiLU(x W1) * sum_heads sum_I w V_I) Wo    Memory+: one table V for all of its layers, gated
    peer          y = sum_heads sum_I w gelu(u_I x) v_I          PEER: entries are experts of a single neuron

Parameters only: the state is `()`. The gradient reaches what was chosen (its score, so queries and keys, and its values), not
the choice. A token costs `flops_per_token`, which grows with n, while the table grows with n^2; reads are row by row (see
memtx.ops.table). Values have a learning rate of their own (`value_lr` times the model's) and no weight decay. When metrics
are asked for: metric/usage, the share of entries that a call read, and metric/kl, KL(their weights || uniform) in nats.

Deviations: maps have no bias unless asked for (`bias`), those of the references have one; LayerNorm in place of the queries'
BatchNorm, whose statistics would tie streams and times together; dense optimiser updates in place of sparse ones; Memory+'s
own learning rate follows the model's schedule, as a multiple.

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
    """What finds entries."""

    subkeys: int = 64  # n sub-keys on each side: a table of n^2 entries
    heads: int = 4
    top_k: int = 16  # entries that a head reads
    key_dim: int = 64  # of a query, both halves
    value_lr: float = 4.0  # learning rate of the table, as a multiple of the model's
    bias: bool = False  # of the map to queries; in memory_plus of those around the table, too

    def __post_init__(self):
        positive(self, "subkeys", "heads", "top_k", "key_dim")
        if self.key_dim % 2:
            raise UserError(f"key_dim={self.key_dim} must be even: a query has two halves")
        if self.top_k > self.subkeys**2:
            raise UserError(f"top_k={self.top_k} is more than the table's subkeys^2 = {self.subkeys**2} entries")


class Search(nnx.Module):
    """x_BTD -> the entries that each token reads, (weight_NR, index_NR); each head's k weights add up to 1.

    norm: of queries, "layer"; or "rms", of queries and sub-keys alike (qk-norm, scores then divided by sqrt(C)); or "".
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
        """s of the two halves, [2, N, H, M], float32."""
        c = self.config
        q_NHC = self.query(x_BTD.astype(jnp.float32)).reshape(-1, c.heads, c.key_dim)
        if self.norm is not None:
            q_NHC = self.norm(q_NHC)
        keys = self.keys[...]
        if self.qk_norm:
            keys = keys * lax.rsqrt((keys * keys).mean(-1, keepdims=True) + 1e-6) * keys.shape[-1] ** -0.5
        return jnp.stack([products(q, k) for q, k in zip(jnp.split(q_NHC, 2, -1), keys, strict=True)])

    def __call__(self, x_BTD: Array, seg: Segment) -> tuple[Array, Array]:
        left_NHM, right_NHM = self.scores(x_BTD)
        score_NHk, index_NHk = product_top_k(left_NHM, right_NHM, self.config.top_k)
        weight_NHk = jax.nn.softmax(score_NHk, -1)
        weight_NR, index_NR = (a.reshape(len(a), -1) for a in (weight_NHk, index_NHk))
        if wants("metric"):
            observe(weight_NR, index_NR, seg.mask_BT.reshape(-1), self.config.subkeys**2)
        return weight_NR, index_NR

    def flops_per_token(self, width: int) -> int:
        c = self.config
        return 2 * c.heads * c.key_dim * (width + c.subkeys)


def products(q_NHC: Array, keys_HMC: Array) -> Array:
    """Every query with the sub-keys of its head (or of all heads, if there is one set) -> [N, H, M], as 2-D dots."""
    if len(keys_HMC) == 1:
        return (q_NHC.reshape(-1, q_NHC.shape[-1]) @ keys_HMC[0].T).reshape(*q_NHC.shape[:2], -1)
    return jnp.stack([q_NHC[:, h] @ keys.T for h, keys in enumerate(keys_HMC)], 1)


def observe(weight_NR: Array, index_NR: Array, mask_N: Array, size: int) -> None:
    """How the real tokens of this call used the table."""
    weight_NR = lax.stop_gradient(jnp.where(mask_N[:, None], weight_NR, 0))
    share = jnp.zeros(size).at[index_NR].add(weight_NR)
    share = share / jnp.maximum(share.sum(), 1e-30)
    emit("metric/usage", (share > 0).mean())
    emit("metric/kl", math.log(size) + xlogy(share, share).sum())


def table(key: Array, config: Keys, width: int) -> nnx.Param:
    return normal(key, (config.subkeys**2, width), width**-0.5, optim="no_decay", lr=config.value_lr)


class Table(Memory):
    """Residual site, nothing remembered."""

    site = "residual"

    def init_state(self, batch_size: int) -> tuple:
        return ()


class ProductKey(Table):
    kind = "table of values"
    block = "window/product_key"

    @classmethod
    def preset_layers(cls, layers: int) -> tuple[int, ...]:
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

    @property
    def flops_per_token(self) -> int:
        c, width = self.search.config, self.values.shape[-1]
        return self.search.flops_per_token(width) + 2 * c.heads * c.top_k * width


class MemoryPlus(Table):
    """The table comes in `seg.shared`: a model makes it once, for all of its layers."""

    kind = "table of values"
    block = "window/memory_plus"

    @classmethod
    def preset_layers(cls, layers: int) -> tuple[int, ...]:
        return tuple(sorted({layers // 6, layers // 2, 5 * layers // 6}))

    @dataclasses.dataclass(frozen=True)
    class Config(Keys):
        top_k: int = 32
        value_dim: int = 0  # 0: the model's width
        qk_norm: bool = False  # for stability in large models

    tiny = (Config(subkeys=4, heads=2, top_k=3, key_dim=4, value_dim=6, qk_norm=True),)

    @classmethod
    def shared(cls, config: Config, dims: Dims, key: Array) -> dict[str, nnx.Param]:
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

    @property
    def flops_per_token(self) -> int:
        c, (size, width) = self.search.config, self.out.w.shape
        return self.search.flops_per_token(width) + 2 * c.heads * c.top_k * size + 4 * size * width


class PEER(Table):
    kind = "table of experts"
    block = "window/peer"

    @classmethod
    def preset_layers(cls, layers: int) -> tuple[int, ...]:
        return (layers // 2,)

    @dataclasses.dataclass(frozen=True)
    class Config(Keys):
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

    @property
    def flops_per_token(self) -> int:
        c, width = self.search.config, self.down.shape[-1]
        return self.search.flops_per_token(width) + 4 * c.heads * c.top_k * width
