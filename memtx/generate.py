"""Text from a language model: the prompt is read into memory in segments, then tokens are drawn one by one.

Memory is carried from the prompt to the text and out again, so a conversation goes on where it stopped and the prompt may be
of any length. The cost of a token does not depend on how much was read, unless the memory itself grows.

B stream, T time, V vocabulary.
"""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Generator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memtx.data.tokenizers import Tokenizer
from memtx.errors import UserError
from memtx.memory.base import segment
from memtx.models.lm import LM, LMState, Params


@dataclasses.dataclass(frozen=True)
class Sampling:
    """temperature 0 takes the likeliest token; top_k = 0 and top_p = 1 keep all of them."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95

    def __post_init__(self):
        if self.temperature < 0:
            raise UserError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k < 0:
            raise UserError(f"top_k must be 0 (all tokens) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}")


def sample(logits_V: Array, key: Array, sampling: Sampling) -> Array:
    """One token id from softmax(logits / temperature), cut to the top_k likeliest and to the fewest of mass top_p."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_V)
    order_V = jnp.argsort(-logits_V)
    logits_V = logits_V[order_V] / sampling.temperature
    p_V = jax.nn.softmax(logits_V)
    keep_V = jnp.cumsum(p_V) - p_V < sampling.top_p
    if sampling.top_k:
        keep_V &= jnp.arange(len(keep_V)) < sampling.top_k
    return order_V[jax.random.categorical(key, jnp.where(keep_V, logits_V, -jnp.inf))]


def generate(
    lm: LM,
    params: Params,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_tokens: int = 200,
    sampling: Sampling | None = None,
    seed: int = 0,
    state: LMState | None = None,
    chunk: int = 128,
) -> Generator[str, None, LMState]:
    """Yields text as it is drawn, until the document ends or after max_tokens; returns the memory, which has read it all.

    state: where an earlier call stopped; None begins a document. chunk: tokens of the prompt that are read at a time.
    """
    sampling = sampling or Sampling()
    drawable_V = np.array(tokenizer.bytes_V > 0)
    if tokenizer.bos >= 0:
        drawable_V[tokenizer.bos] = True

    def read(params, token_BT, length_B, state: LMState):
        seg = segment(state.position_B[:, None] + jnp.arange(token_BT.shape[1]), length_B)
        logits_BTV, state = lm(params, token_BT, state, seg)
        return logits_BTV[0, length_B[0] - 1], state

    def draw(params, logits_V, state: LMState, key):
        token = sample(jnp.where(drawable_V, logits_V, -jnp.inf), key, sampling)
        logits_BTV, state = lm(params, token[None, None], state)
        return token, logits_BTV[0, 0], state

    read, draw = jax.jit(read, donate_argnums=3), jax.jit(draw, donate_argnums=2)
    ids = tokenizer.encode(prompt)
    if state is None and tokenizer.bos >= 0:
        ids = np.concatenate([[tokenizer.bos], ids])
    memory: LMState = jax.jit(lambda: lm.init_state(1))() if state is None else state
    if not len(ids):
        raise UserError("there is nothing to read: to go on with a memory, give a prompt")
    logits_V = None
    for start in range(0, len(ids), chunk):
        part = ids[start : start + chunk]
        token_BT = np.zeros((1, chunk), np.int32)
        token_BT[0, : len(part)] = part
        logits_V, memory = read(params, token_BT, np.asarray([len(part)], np.int32), memory)

    key, utf8 = jax.random.key(seed), codecs.getincrementaldecoder("utf-8")("replace")
    for step in range(max_tokens):
        token, logits_V, memory = draw(params, logits_V, memory, jax.random.fold_in(key, step))
        if int(token) == tokenizer.bos:
            break
        if text := utf8.decode(tokenizer.pieces[int(token)]):  # a character may take several tokens
            yield text
    if text := utf8.decode(b"", final=True):
        yield text
    return memory
