"""Sampling of the next token from logits. V vocabulary."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from memtx.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The settings of sampling. temperature=0 takes the most likely token. top_k=0 and top_p=1 keep all tokens."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k < 0:
            raise UserError(f"top_k must be 0 (all tokens) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}")


GREEDY = Sampling(temperature=0)


def sample(logits_V: Array, key: Array, sampling: Sampling) -> Array:
    """Draw a token id from softmax(logits / temperature).

    The candidates are the top_k most likely tokens. Of these, it keeps the smallest set with a total probability of top_p.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits_V)
    return draw(logits_V, key, sampling.temperature, sampling.top_k, sampling.top_p)


def draw(logits_V: Array, key: Array, temperature: ArrayLike, top_k: ArrayLike, top_p: ArrayLike) -> Array:
    """Draw like `sample` with temperature > 0. The settings may be traced.

    Tokens of equal probability are kept or dropped together.
    """
    logits_V = logits_V / temperature
    p_V = jax.nn.softmax(logits_V)
    count = jnp.where(jnp.equal(top_k, 0), len(p_V), top_k)
    keep_V = _likeliest(p_V, lambda keep_V: keep_V.sum() >= count)
    keep_V &= _likeliest(p_V, lambda keep_V: jnp.where(keep_V, p_V, 0).sum() >= top_p)
    return jax.random.categorical(key, jnp.where(keep_V, logits_V, -jnp.inf))


def _likeliest(p_V: Array, enough: Callable[[Array], Array]) -> Array:
    """Return the mask of the smallest set of most likely tokens whose total probability is enough.

    It bisects the bits of the probabilities, which costs less than a sort. Positive floats have the same order as their bits as
    integers.
    """
    bits_V = lax.bitcast_convert_type(p_V, jnp.int32)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        kept = enough(bits_V >= middle)
        return jnp.where(kept, middle, low), jnp.where(kept, high, middle)

    most = lax.bitcast_convert_type(jnp.float32(1.5), jnp.int32)
    least, _ = lax.fori_loop(0, 31, halve, (jnp.int32(0), most))
    return bits_V >= least
