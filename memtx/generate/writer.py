"""A Writer keeps the streams of a generation: their state, their last tokens, and compiled steps over them.

B stream, T time, N tokens of one call, S source time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from memtx.core import pytree, segment
from memtx.errors import UserError
from memtx.generate.sampling import Sampling, draw
from memtx.generate.unstack import stack_state, unstack_params, unstack_state, unstacked
from memtx.models.lm import LM, LMState, Params

CHUNK = 512  # how many tokens of a prompt are read at a time
LEAST = 32  # the fewest tokens of a smaller call for the rest of a prompt
LOOK = 16  # how many tokens are written before the host sees them


class Writer:
    """B streams. `state`, a state of `unstacked(lm)`, has read all tokens except the last ones of each row (`unread`).

    ids: a prompt of at least one token per row. state: the state after an earlier call, which is copied. None starts documents.
    source: the input of an encoder-decoder's encoder.
    Raises UserError if a prompt is empty or the state has a different number of streams.
    """

    def __init__(
        self,
        lm: LM,
        params: Params,
        ids: Sequence[np.ndarray],
        *,
        state: LMState | None = None,
        source: Sequence[np.ndarray] | None = None,
        chunk: int = CHUNK,
    ):
        if not ids or not all(len(row) for row in ids):
            raise UserError("every prompt must have at least one token, even if a state is given")
        if state is not None and len(state.position_B) != len(ids):
            raise UserError(
                f"the state has {len(state.position_B)} streams, but the number of prompts is {len(ids)}; give one prompt per "
                "stream, or pick streams with memtx.take_rows"
            )
        memory: LMState = jax.tree.map(jnp.copy, state) if state is not None else fresh(lm, len(ids))
        if source is not None:
            memory = _encode(lm, params, *_padded_sources(lm, source), memory)
        memory = read(lm, params, [row[:-1] for row in ids], memory, chunk)
        self.stacked, self.lm = (lm, params), unstacked(lm)
        if self.lm is not lm:
            params, memory = unstack_params(lm, params), unstack_state(lm, memory)
        self.params, self.state = params, memory
        self.unread = [row[-1:] for row in ids]
        self.live_B = np.ones(len(ids), bool)
        self.step = 0

    def write(
        self, count: int, sampling: Sampling, seed_B: np.ndarray, drawable_V: np.ndarray, ends_V: np.ndarray
    ) -> np.ndarray:
        """Write up to `count` tokens of each live row, [B, count], with -1 after its end. seed_B: the seeds of the samples."""
        settings = jnp.asarray([sampling.temperature, sampling.top_k, sampling.top_p], jnp.float32)
        rule = Rule(drawable_V, ends_V, settings, jnp.asarray(seed_B), self.step)
        rows = self.token_B, self.live_B
        write = partial(_write, self.lm, self.params, greedy=sampling.temperature == 0)
        token_BN, (token_B, live_B), self.state = write(rows, self.state, rule, min(count, LOOK))
        self.step += min(count, LOOK)
        self.unread, self.live_B = [*np.asarray(token_B)[:, None]], np.array(live_B)
        return np.asarray(token_BN)[:, :count]

    @property
    def token_B(self) -> np.ndarray:
        """Return the last token of each row, int32."""
        return np.asarray([row[-1] for row in self.unread], np.int32)

    def memory(self) -> Callable[[], LMState]:
        """Return a function that reads the last tokens and returns the state of `lm`. Do not use the writer afterwards."""
        (lm, params), state, unread, apart = self.stacked, self.state, self.unread, self.lm is not self.stacked[0]
        return lambda: read(lm, params, unread, stack_state(lm, state) if apart else state, CHUNK)


def read(lm: LM, params: Params, ids: Sequence[np.ndarray], state: LMState, chunk: int, document: int = 0) -> LMState:
    """Return the state after each row has read its tokens, if any. `state` is donated. document: the label of entries."""
    sizes = [*(size for size in (chunk // 16, chunk // 4) if size >= LEAST), chunk]
    longest, start = max(map(len, ids)), 0
    while start < longest:
        size = next((size for size in sizes if 2 * size >= longest - start), chunk)  # two small calls cost less than padding
        token_BT, length_B = padded([row[start : start + size] for row in ids], size)
        state = _read(lm, params, token_BT, length_B, state, np.full(len(ids), document, np.int32))
        start += size
    return state


def padded(ids: Sequence[np.ndarray], size: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return int32 token_BT, padded after the real tokens, and length_B. size: T, by default the longest row's length."""
    token_BT = np.zeros((len(ids), size or max(map(len, ids))), np.int32)
    for row, part in zip(token_BT, ids, strict=True):
        row[: len(part)] = part
    return token_BT, np.asarray([*map(len, ids)], np.int32)


def _padded_sources(lm: LM, source: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pad sources to a few lengths, because each length is compiled. Raises UserError if the encoder cannot read them."""
    longest = max(map(len, source))
    lm.check_reads(longest)
    return padded(source, min(-(-longest // LEAST) * LEAST, lm.source_capacity))


@partial(jax.jit, static_argnames=("lm", "batch"))
def fresh(lm: LM, batch: int) -> LMState:
    """Return the empty state of `batch` streams."""
    return lm.init_state(batch)


@partial(jax.jit, static_argnames="lm", donate_argnames="state")
def _encode(lm: LM, params: Params, token_BS: Array, length_B: Array, state: LMState) -> LMState:
    return lm.encode(params, token_BS, state, length_B)


@partial(jax.jit, static_argnames="lm", donate_argnames="state")
def _read(lm: LM, params: Params, token_BT: Array, length_B: Array, state: LMState, document_B=None) -> LMState:
    """Return the state after a call. Its logits are unused, so they are not computed."""
    return step(lm, params, token_BT, length_B, state, document_B)[1]


def step(lm: LM, params: Params, token_BT: Array, length_B: Array, state: LMState, document_B=None) -> tuple[Array, LMState]:
    """Return the logits and the state after a call without resets. document_B: the labels of entries, by default 0."""
    seg = segment(state.position_B[:, None] + jnp.arange(token_BT.shape[1]), length_B, document_B=document_B)
    return lm(params, token_BT, state, seg)


@pytree
class Rule:
    """The rule by which tokens are drawn.

    drawable_V  which tokens may be written
    ends_V      which tokens end a row
    settings    temperature, top_k and top_p, float32
    seed_B      the seed of each row
    first       how many tokens the writer has already written
    """

    drawable_V: ArrayLike
    ends_V: ArrayLike
    settings: Array
    seed_B: Array
    first: Array | int

    def draw(self, logits_BV: Array, n: Array, greedy: bool) -> Array:
        """Return the n-th token of this call in each row, int32 [B]."""
        logits_BV = jnp.where(self.drawable_V, logits_BV, -jnp.inf)
        if greedy:
            return jnp.argmax(logits_BV, -1).astype(jnp.int32)
        key_B = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), self.first + n))(self.seed_B)
        return jax.vmap(lambda v, k: draw(v, k, *self.settings))(logits_BV, key_B).astype(jnp.int32)


@partial(jax.jit, static_argnames=("lm", "greedy"), donate_argnames="state")
def _write(lm: LM, params: Params, rows: tuple[Array, Array], state: LMState, rule: Rule, count: Array, *, greedy: bool):
    """Write `count` tokens, at most LOOK, in one program. Rows that have ended stay as they are.

    rows: the last token of each row, and which rows are live. Returns token_BN, the new rows and the new state.
    """

    def one(carry):
        n, (token_B, live_B), state, token_BN = carry
        logits_BTV, state = step(lm, params, token_B[:, None], live_B.astype(jnp.int32), state)
        drawn_B = rule.draw(logits_BTV[:, 0], n, greedy)
        token_BN = token_BN.at[:, n].set(jnp.where(live_B, drawn_B, -1))
        rows = jnp.where(live_B, drawn_B, token_B), live_B & ~jnp.asarray(rule.ends_V)[drawn_B]
        return n + 1, rows, state, token_BN

    def is_unfinished(carry):
        n, (_, live_B), *_ = carry
        return (n < count) & live_B.any()

    nothing_BN = jnp.full((len(rows[0]), LOOK), -1, jnp.int32)
    _, rows, state, token_BN = lax.while_loop(is_unfinished, one, (jnp.int32(0), rows, state, nothing_BN))
    return token_BN, rows, state
