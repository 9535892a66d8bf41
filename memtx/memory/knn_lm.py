"""kNN-LM: the next token of the most similar contexts seen before, mixed into the model's prediction.

    p_knn(y) ~ sum over the nearest pairs (k_i, v_i) of  1[v_i = y] exp(-|k_i - f|^2 / temperature)
    p = lam p_knn + (1 - lam) p_lm                                     y = log p + logsumexp(logits)

f is the hidden state from which the model predicts. A pair is (f_{t-1}, token t). Pairs come from
- the stream itself: its last `memory` pairs, which it writes as it reads (the continuous cache). A reset of the row clears
  them.
- a datastore of `datastore` entries, which all streams share and only read. `memtx.library` makes it from documents.
`neighbours` pairs of each are read. While there are no pairs, y equals the model's logits, bit for bit.

The distances are differentiable with respect to f and, until the caller detaches the state, to the keys of the stream. The
search is not differentiable. The paper trains nothing.

Source: Khandelwal et al. 2020 (arXiv 1911.00172), and Grave et al. 2017 (arXiv 1612.04426) for the cache.
B stream, T time, M entries, D model, R neighbours, V vocabulary.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from memtx.core import Dims, Memory, Segment, pytree, wants
from memtx.errors import UserError, positive
from memtx.memory import bank
from memtx.memory.bank import Bank, Holder
from memtx.nn import reads as attribution
from memtx.nn.reads import KIND, emit_gate, emit_reads
from memtx.ops.attention import MASKED
from memtx.ops.rows import cut, joined, take
from memtx.ops.skip import skip_unless

LABELS = ("id", "document", "position")  # of an entry that was read


@pytree
class Cache:
    """The pairs of a stream, and the hidden state of the last token, which forms a pair with the next token."""

    bank: Bank
    hidden_BD: Array
    begun_B: Array


@pytree
class Pairs(Holder):
    """All pairs that a stream can read."""

    cache: Any  # Cache, or () if memory=0
    datastore: Any  # Bank without a batch axis, or () if datastore=0

    def written(self) -> Bank:
        return self.cache.bank

    def shelf(self) -> Bank:
        return self.datastore

    def with_shelf(self, bank: Bank):
        return dataclasses.replace(self, datastore=bank)


class KNNLM(Memory):
    """A nearest-neighbour language model, at the head site: (h_BTD, logits_BTV) -> logits of the mixture."""

    site = "head"
    resizable = ("memory",)
    kind = "bank of pairs (hidden state, next token)"

    @dataclasses.dataclass(frozen=True)
    class Config:
        memory: int = 2048  # pairs that a stream keeps, or 0
        datastore: int = 0  # entries of the shared datastore, or 0
        neighbours: int = 32  # pairs read of each
        lam: float = 0.25  # weight of p_knn
        temperature: float = 1.0  # divides the squared distances
        chunk: int = 64  # tokens that are written and then searched for at a time, which bounds the memory of a read
        recall: float = 1.0  # of the search. 1 is exact

        def __post_init__(self):
            positive(self, "neighbours", "chunk")
            if min(self.memory, self.datastore) < 0 or not self.memory + self.datastore:
                raise UserError("memory and datastore must be at least 0, and one of them at least 1")
            if self.neighbours > min(size for size in (self.memory, self.datastore) if size):
                raise UserError(f"neighbours={self.neighbours} is more than the entries of memory or datastore")
            if not 0 < self.lam < 1 or not self.temperature > 0 or not 0 < self.recall <= 1:
                raise UserError("lam must be in (0, 1), temperature above 0 and recall in (0, 1]")

    tiny = (Config(memory=6, neighbours=4, temperature=8.0, chunk=4),)

    @classmethod
    def reading(cls, config: Config, tokens: int) -> Config:
        return dataclasses.replace(config, memory=max(tokens, config.neighbours), datastore=0)

    @classmethod
    def answering(cls, config: Config, entries: int) -> Config:
        return dataclasses.replace(config, datastore=max(entries, config.neighbours))

    def __init__(self, config: Config, dims: Dims, key: Array):
        self.config, self.dims = config, dims

    def init_state(self, batch_size: int) -> Pairs:
        c, width = self.config, self.dims.width
        datastore = empty(c.datastore, width) if c.datastore else ()
        if not c.memory:
            return Pairs((), datastore)
        own = bank.rows(empty(c.memory + c.chunk, width), batch_size)  # a call writes a chunk before it reads
        return Pairs(Cache(own, jnp.zeros((batch_size, width)), jnp.zeros(batch_size, bool)), datastore)

    def __call__(self, x, state: Pairs, seg: Segment, *, key: Array | None = None):
        h_BTD, logits_BTV = x
        tokens = (h_BTD.astype(jnp.float32), jnp.asarray(seg.token_BT), seg.position_BT, seg.mask_BT)
        time = h_BTD.shape[1]
        pieces = max(1, -(-time // self.config.chunk))

        def step(cache, part):
            f, token, position, mask = part
            reads = {}
            if self.config.memory:
                end_BT, cache = remember(cache, f, token, position, mask, seg.document_B)
                first_BT = jnp.maximum(end_BT - self.config.memory, 0)
                reads["cache"] = self.read(f, cache.bank, first_BT, end_BT)
            if self.config.datastore:
                reads["datastore"] = self.read(f, state.datastore, 0, state.datastore.cursor)
            return cache, reads

        cache, reads = lax.scan(step, state.cache, jax.tree.map(lambda a: cut(a, pieces), tokens))
        reads = jax.tree.map(lambda a: joined(a)[:, :time], reads)
        y_BTV, lam_BT1, listed = self.mix(logits_BTV.astype(jnp.float32), reads)
        if wants(KIND):
            emit_gate(lam_BT1, lam_BT1.shape)
        banks = {"datastore": state.datastore} | ({"cache": cache.bank} if self.config.memory else {})
        for name, found in zip(reads, listed, strict=True):
            emit_reads(found, share_BTN=lam_BT1)
            bank.emit_use(banks[name], found, seg, lam_BT1)
        return y_BTV.astype(logits_BTV.dtype), Pairs(cache, state.datastore)

    def read(self, f_BTD: Array, pairs: Bank, first_BT: ArrayLike, end_BT: ArrayLike) -> dict[str, Array]:
        """Return the nearest pairs of each query, [B, T, R]: token, score and the labels of the entry, with id -1 for none."""

        def work(f, pairs):
            how = {"metric": "l2", "recall": self.config.recall}
            query = lax.stop_gradient(f)[:, :, None]
            score, index = bank.search(pairs, query, self.config.neighbours, first_BT=first_BT, end_BT=end_BT, **how)
            read, found = bank.gather(pairs, index[:, :, 0]), score[:, :, 0] > -jnp.inf
            distance = jnp.square(read.key - f[:, :, None]).sum(-1)
            labels = {name: jnp.where(found, getattr(read, name), -1) for name in LABELS}
            return labels | {"token": read.value, "score": jnp.where(found, -distance / self.config.temperature, MASKED)}

        nothing = dict.fromkeys(LABELS, -1) | {"token": 0, "score": MASKED}
        return skip_unless((jnp.asarray(end_BT) > 0).any(), work, nothing, f_BTD, pairs)

    def mix(self, logits_BTV: Array, reads: dict[str, dict[str, Array]]) -> tuple[Array, Array, list[attribution.Reads]]:
        """Return the logits of the mixture, at the scale of the model's, with one softmax over all pairs that were read.

        Also returns the weight of p_knn, [B, T, 1], and the Reads of each bank with their weights in p_knn.
        """
        score, token, id_ = (jnp.concatenate([read[name] for read in reads.values()], -1) for name in ("score", "token", "id"))
        weight = jax.nn.softmax(score, -1) * (id_ >= 0)
        zeros = jnp.zeros(logits_BTV.shape, jnp.float32)
        knn = jax.vmap(jax.vmap(lambda p, token, weight: p.at[token].add(weight)))(zeros, token, weight)
        lam = self.config.lam
        log_knn = jnp.where(knn > 0, jnp.log(jnp.where(knn > 0, knn, 1.0)) + np.log(lam), MASKED)
        total = jax.nn.logsumexp(logits_BTV, -1, keepdims=True)
        mixed = jnp.logaddexp(log_knn + total, logits_BTV + np.log1p(-lam))
        some_BT1 = (id_ >= 0).any(-1, keepdims=True)
        parts = jnp.split(weight[:, :, None], len(reads), -1)
        listed = [attribution.reads(part, **labels(read)) for read, part in zip(reads.values(), parts, strict=True)]
        return jnp.where(some_BT1, mixed, logits_BTV), lam * some_BT1, listed


def labels(read: dict[str, Array]) -> dict[str, Array]:
    """Return the labels of the entries that were read, [B, T, 1, R]."""
    return {name: read[name][:, :, None] for name in LABELS}


def empty(capacity: int, width: int) -> Bank:
    """Return an empty bank of pairs."""
    return bank.empty(capacity, jax.ShapeDtypeStruct((width,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))


def remember(cache: Cache, f_BTD, token_BT, position_BT, mask_BT, document_B) -> tuple[Array, Cache]:
    """Write the pairs (f_{t-1}, token t). Returns the id after that of each token's pair, [B, T], and the cache."""
    keys = jnp.concatenate([cache.hidden_BD[:, None], f_BTD[:, :-1]], 1)
    paired_BT = mask_BT.at[:, 0].set(mask_BT[:, 0] & cache.begun_B)
    end_BT = cache.bank.cursor[:, None] + jnp.cumsum(paired_BT, 1, dtype=jnp.int32)

    def write(pairs, key, token, mask, document, position):
        return bank.write(pairs, key, token, mask_T=mask, document=document, position=position)

    pairs = jax.vmap(write)(cache.bank, keys, token_BT, paired_BT, document_B, position_BT)
    length_B = mask_BT.sum(1, dtype=jnp.int32)
    last = take(f_BTD, jnp.maximum(length_B - 1, 0)[:, None])[:, 0]
    hidden = jnp.where((length_B > 0)[:, None], last, cache.hidden_BD)
    return end_BT, Cache(pairs, hidden, cache.begun_B | (length_B > 0))
