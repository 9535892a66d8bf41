"""Perplexity of held-out text, with and without the model's memory.

The same weights read the same documents twice: with the state *carried* from segment to segment, and with the state *wiped*
before every segment. Everything else is equal, so the difference measures the gain from memory.

Legend: B streams, P segments of a batch, T tokens of a segment, L buckets of position.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memtx.core import Segment, collect, pytree
from memtx.data.streams import Batch, segment_of
from memtx.evaluation.health import KINDS, Evaluate, Health
from memtx.evaluation.losses import token_nll
from memtx.models.lm import LM
from memtx.sharding import Layout

OCTAVES, PER_OCTAVE = 22, 4  # buckets of position in the document: four per octave, up to four million tokens


@pytree
class Sums:
    """Running sums over the tokens read so far: nats in float32, counts as integers."""

    nll: Array
    tokens: Array
    bytes: Array
    nll_T: Array  # by position in the segment
    tokens_T: Array
    nll_L: Array  # by position in the document
    tokens_L: Array

    @staticmethod
    def zero(time: int) -> Sums:
        """Return sums of zero for segments of `time` tokens."""

        def both(shape):
            return jnp.zeros(shape), jnp.zeros(shape, jnp.int32)

        return Sums(*both(()), jnp.zeros((), jnp.int32), *both(time), *both(OCTAVES * PER_OCTAVE))


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """The results of one pass. Losses are in nats per token: overall, and by position in the segment and in the document."""

    bits_per_byte: float
    loss: float
    perplexity: float
    tokens: int
    bytes: int
    loss_by_place: list[float]
    position: list[float]  # the middle of each bucket with tokens
    loss_by_position: list[float]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The results with the state carried and wiped. health: of the carried state, see memtx.evaluation.health."""

    carried: Perplexity
    wiped: Perplexity
    health: dict[str, float] = dataclasses.field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Return the overall metrics, the loss by position and the health. position=1 is the first token of a document."""
        found = {}
        for p, suffix in ((self.carried, ""), (self.wiped, "_wiped")):
            found |= {f"eval/{name}{suffix}": getattr(p, name) for name in ("bits_per_byte", "perplexity")}
            slices = zip(p.position, p.loss_by_position, strict=True)
            found |= {f"eval/loss{suffix}/position={round(middle + 1)}": loss for middle, loss in slices}
        return found | self.health


def make_evaluator(lm: LM, bytes_V: np.ndarray, layout: Layout, health: Health | None = None) -> Evaluate[Evaluation]:
    """Build evaluate(params, batches) -> Evaluation. It creates fresh states at each call and is compiled once.

    bytes_V: the number of bytes of each token of the vocabulary. batches: batches with P = 1. health: measures the state that
    is carried. evaluate raises ValueError if there are no batches.
    """

    def step(params, states, sums, batch: Batch):
        part = jax.tree.map(lambda a: a[:, 0], batch)
        new_states, new_sums, emitted = [], [], {}
        for state, total, wiped in zip(states, sums, (False, True), strict=True):
            seg = segment_of(part, wiped=wiped)
            read = collect(lm, also=KINDS if health and not wiped else ())
            (logits, state), found = read(params, part.token_BPT, state, seg)
            emitted |= found
            nll_BT = token_nll(logits, part.target_BPT)[0]
            new_states.append(state)
            new_sums.append(add(total, nll_BT, jnp.asarray(bytes_V)[part.target_BPT], seg, part.labelled_BPT))
        return tuple(new_states), tuple(new_sums), emitted

    state_shardings = (layout.state(lm),) * 2
    step = jax.jit(step, donate_argnums=(1, 2), out_shardings=(state_shardings, layout.whole, None))

    @partial(jax.jit, static_argnums=(0, 1), out_shardings=(state_shardings, layout.whole))
    def start(batch: int, time: int):
        return (lm.init_state(batch), lm.init_state(batch)), (Sums.zero(time), Sums.zero(time))

    def calls(params, batches: Iterable[Batch]):
        """Yield the states, the sums and the emissions after each call. The next call donates the states and sums."""
        carry = None
        for batch in batches:
            batch = layout.shard(batch)
            states, sums = carry or start(batch.token_BPT.shape[0], batch.token_BPT.shape[2])
            states, sums, emitted = step(params, states, sums, batch)
            yield states, sums, emitted
            carry = states, sums

    def evaluate(params, batches: Iterable[Batch]) -> Evaluation:
        watch, last = health and health.watch(), None
        for last in calls(params, batches):
            if watch:
                watch.add(last[0][0], last[2])
        if last is None:
            raise ValueError("no text to evaluate on")
        carried, wiped = (perplexity(sums) for sums in jax.device_get(last[1]))
        return Evaluation(carried, wiped, watch.metrics(last[0][0]) if watch else {})

    return Evaluate(evaluate, calls, health)


def add(sums: Sums, nll_BT: Array, bytes_BT: Array, seg: Segment, mask_BT: Array) -> Sums:
    """Add the tokens of one segment to the sums. mask_BT: true where a token has a label."""
    nll_BT = jnp.where(mask_BT, nll_BT, 0.0)
    one_BT = mask_BT.astype(jnp.int32)
    octave_BT = jnp.log2(seg.position_BT.astype(jnp.float32) + 1)
    bucket_BT = jnp.minimum((octave_BT * PER_OCTAVE).astype(jnp.int32), OCTAVES * PER_OCTAVE - 1)
    return Sums(
        nll=sums.nll + nll_BT.sum(),
        tokens=sums.tokens + one_BT.sum(dtype=jnp.int32),
        bytes=sums.bytes + (bytes_BT * one_BT).sum(dtype=jnp.int32),
        nll_T=sums.nll_T + nll_BT.sum(0),
        tokens_T=sums.tokens_T + one_BT.sum(0, dtype=jnp.int32),
        nll_L=sums.nll_L.at[bucket_BT].add(nll_BT),
        tokens_L=sums.tokens_L.at[bucket_BT].add(one_BT),
    )


def perplexity(sums: Sums) -> Perplexity:
    """Divide the sums by their counts."""
    nll, tokens = float(sums.nll), int(sums.tokens)
    filled = np.flatnonzero(sums.tokens_L)
    return Perplexity(
        bits_per_byte=nll / math.log(2) / max(int(sums.bytes), 1),
        loss=nll / max(tokens, 1),
        perplexity=math.exp(min(nll / max(tokens, 1), 700.0)),
        tokens=tokens,
        bytes=int(sums.bytes),
        loss_by_place=(sums.nll_T / np.maximum(sums.tokens_T, 1)).tolist(),
        position=(2 ** ((filled + 0.5) / PER_OCTAVE) - 1).tolist(),
        loss_by_position=(sums.nll_L[filled] / sums.tokens_L[filled]).tolist(),
    )
