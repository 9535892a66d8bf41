"""Memorizing Transformer: attention to the most similar keys of the past, beside a sliding window.

    k <- k / |k| ,   q <- |s_h| q / |q|                          one query, one key for both; s_h learned per head
    o_window = softmax(q k_j) v_j                                over the window, with the model's positions; with `sinks`,
                                                                 the document's first tokens too, as in sink.py
    o_memory = softmax(q SG(k_j)) SG(v_j)                        over the `neighbours` best of the memory, without positions
    y = g o_memory + (1 - g) o_window ,   g = sigmoid(b_h)       b_h learned per head, g = tanh(b_h) if it starts closed

The memory of a query is the last `memory` tokens before its segment. Segments have `segment` tokens, counted from the start of
the document. Visibility depends on the ids of entries, so results do not depend on how a text is cut into calls.

Gradient: the window is differentiable, and so are the query, the scale and the gate of a read. Keys and values in the memory
are not differentiable, and neither is the search. Entries are in a Bank, which is cleared for a row at the start of a document.
If it is empty, y = o_window and nothing is searched.

Source: Wu et al. 2022 (arXiv 2203.08913), and google-research/meliad (Apache-2.0) for details that the paper leaves open.
B stream, T time, M bank slots, N query heads, K kv heads, H head dim, R neighbours.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from memtx.core import Dims, Layer, Memory, Segment, emit, pytree, wants
from memtx.errors import UserError, positive
from memtx.memory import bank
from memtx.memory.bank import Bank, Holder
from memtx.memory.sink import Sink, Sinks
from memtx.memory.window import Recent, Window
from memtx.nn.linear import unit
from memtx.nn.reads import KIND, Reads, emit_gate, emit_reads, with_share
from memtx.ops.attention import MASKED
from memtx.ops.skip import skip_unless


@pytree
class Memories(Holder):
    """The window and the bank."""

    recent: Recent | Sinks
    bank: Bank


class Memorizing(Memory):
    """Attention to retrieved keys beside a window, at the attention site."""

    site = "attention"
    resizable = ("memory",)
    context = "window"
    kind = "bank of keys and values"

    @classmethod
    def preset_layers(cls, layers: int) -> tuple[int, ...]:
        return (3 * layers // 4,)

    @dataclasses.dataclass(frozen=True)
    class Config:
        window: int = 512  # tokens that a query sees directly, itself included
        sinks: int = 0  # first tokens of the document that a query also sees directly, as a pretrained backbone may need
        segment: int = 512  # tokens after which the memory of a query moves on
        memory: int = 8192  # tokens in the memory of a query
        neighbours: int = 32  # of them that each query and head reads
        recall: float = 1.0  # of the search. 1 is exact, less is approximate and faster on a TPU
        gate: float = 0.0  # b_h at the start
        normalise: bool = True  # False for a pretrained backbone: q and k stay unchanged, and scores are divided by sqrt(H)

        def __post_init__(self):
            positive(self, "window", "segment", "memory", "neighbours")
            if self.sinks < 0:
                raise UserError(f"sinks must be 0 or more, not {self.sinks}")
            if self.neighbours > self.memory:
                raise UserError(f"neighbours={self.neighbours} is more than memory={self.memory}")
            if not 0 < self.recall <= 1:
                raise UserError(f"recall must be above 0 and at most 1, not {self.recall}")

    tiny = (
        Config(window=3, segment=4, memory=5, neighbours=3),
        Config(window=3, sinks=2, segment=4, memory=5, neighbours=3, normalise=False),
    )

    @classmethod
    def on_backbone(cls, attention: type[Memory] | None) -> dict[str, Any]:
        """Return settings that keep the backbone's queries and keys, and add the sinks that its other layers have."""
        sinks = attention.Config.sinks if attention is not None and issubclass(attention, Sink) else 0
        return {"normalise": False, "sinks": sinks}

    @classmethod
    def reading(cls, config: Config, tokens: int) -> Config:
        return dataclasses.replace(config, memory=max(tokens, config.neighbours))

    @classmethod
    def answering(cls, config: Config, entries: int) -> Config:
        return dataclasses.replace(config, memory=entries + config.memory)

    @classmethod
    def boundary(cls, config: Config) -> int:
        return config.segment

    def __init__(self, config: Config, dims: Dims, key: Array):
        self.config, self.dims = config, dims
        if config.sinks:
            self.near: Layer = Sink(Sink.Config(config.window, config.sinks), dims, key)
        else:
            self.near = Window(Window.Config(config.window), dims, key)
        self.gate = nnx.Param(jnp.full(dims.num_heads, config.gate, jnp.float32), optim="no_decay")
        if config.normalise:
            self.scale = nnx.Param(jnp.full(dims.num_heads, dims.head_dim**0.5, jnp.float32), optim="no_decay")

    @property
    def slots(self) -> int:
        """The capacity of the bank. Calls write before they read, so the bank needs one extra segment at each end."""
        return self.config.memory + 2 * self.config.segment

    def init_state(self, batch_size: int) -> Memories:
        entry = jax.ShapeDtypeStruct((self.dims.num_kv_heads, self.dims.head_dim), jnp.float32)
        return Memories(self.near.init_state(batch_size), bank.rows(bank.empty(self.slots, entry, entry), batch_size))

    def __call__(self, x, state: Memories, seg: Segment, *, key: Array | None = None):
        q, k, v = x
        if self.config.normalise:  # in float32, because its scores choose the entries
            scale_NH = jnp.abs(self.scale[...])[:, None] / self.dims.scale  # which attention multiplies by
            q = unit(q.astype(jnp.float32)) * scale_NH
            k = None if k is None else unit(k.astype(jnp.float32))
        here = jax.tree.map(lambda a: a.astype(x[0].dtype), (q, k, v))
        (near, recent), emit_near = with_share(self.near, here, state.recent, seg)
        if k is None:
            far, reads = self.read(q, state.bank, jnp.broadcast_to(state.bank.cursor[:, None], q.shape[:2]))
        else:
            far, reads, full = self.read_and_write(q, k, v, state.bank, seg)
            state = Memories(recent, full)
        gate_N = self.dims.gate(self.gate[...])
        gate_BTN = jnp.where((reads.id_BTNR >= 0).any(-1), gate_N, 0)
        if wants(KIND):
            emit_gate(gate_BTN, gate_BTN.shape)
            emit_reads(reads, share_BTN=gate_BTN)
        emit_near(1 - gate_BTN)
        bank.emit_use(state.bank, reads, seg, gate_BTN)
        emit("metric/gate", gate_N)
        return (near + gate_BTN[..., None] * (far - near)).astype(near.dtype), state

    def read_and_write(self, q, k, v, full: Bank, seg: Segment):
        """Write and read a call in pieces that fit into the bank. A piece is written first, and its queries do not see its ids.

        Returns o_memory, the reads and the bank.
        """
        size, time, outs = self.config.segment, q.shape[1], []
        for start in range(0, time, size):
            part = slice(start, min(start + size, time))
            id_BT = full.cursor[:, None] + jnp.arange(part.stop - start)
            full = jax.vmap(write)(full, k[:, part], v[:, part], seg.mask_BT[:, part], seg.document_B, seg.position_BT[:, part])
            outs.append(self.read(q[:, part], full, id_BT))
        return *jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *outs), full

    def read(self, q_BTNH: Array, full: Bank, id_BT: Array) -> tuple[Array, Reads]:
        """Return o_memory of the queries of tokens id_BT in float32, and the entries read."""
        end_BT = id_BT // self.config.segment * self.config.segment
        first_BT = jnp.maximum(end_BT - self.config.memory, 0)
        heads, c = self.dims.num_heads, self.config
        head_N1 = jnp.arange(heads)[:, None] // (heads // self.dims.num_kv_heads)

        def work(q):
            score, index = bank.search(full, q, c.neighbours, first_BT=first_BT, end_BT=end_BT, recall=c.recall)
            read = bank.gather(full, index, head_N1)
            return read.key, read.value, index, score > -jnp.inf

        found = skip_unless((end_BT > 0).any(), work, 0, lax.stop_gradient(q_BTNH))
        key, value, index, found_BTNR = bank.keep(lax.stop_gradient(found))
        score = jnp.einsum("BTNH,BTNRH->BTNR", q_BTNH.astype(jnp.float32), key) * self.dims.scale
        weight = jax.nn.softmax(jnp.where(found_BTNR, score, MASKED), -1) * found_BTNR
        reads = bank.reads(bank.gather(full, index), weight, found_BTNR)
        return jnp.einsum("BTNR,BTNRH->BTNH", weight, value), reads


def write(full: Bank, k_TKH, v_TKH, mask_T, document, position_T) -> Bank:
    """Return one stream's bank with these tokens, without gradient."""
    k_TKH, v_TKH = lax.stop_gradient((k_TKH, v_TKH))
    return bank.write(full, k_TKH, v_TKH, mask_T=mask_T, document=document, position=position_T)
