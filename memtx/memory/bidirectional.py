"""Bidirectional attention: every token sees every token of its call, including later ones, as in an encoder.

    y_t = softmax(q_t k_j / sqrt(H)) v_j   over all tokens j of the call

It remembers nothing. A text must come in one call, unless the body around it carries a state between calls, as `rmt` does.
It is not causal, so a model with it cannot be trained to predict the next token.

Positions: rotary by distance, or ALiBi's or T5's bias by distance in both directions (T5 has half of its buckets for each).

Source: Vaswani et al. 2017 (arXiv 1706.03762), the encoder; Devlin et al. 2018 (1810.04805).
B stream, T time, N query heads, H head dim.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from memtx.core import Dims, Memory, Segment
from memtx.nn.attention import KeySet, attend


class Bidirectional(Memory):
    """Attention within a call in both directions, at the attention site."""

    site = "attention"
    kind = "nothing"
    causal = False

    @dataclasses.dataclass(frozen=True)
    class Config:
        pass

    tiny = (Config(),)

    def __init__(self, config: Config, dims: Dims, key: Array):
        self.dims = dims

    def init_state(self, batch_size: int) -> tuple:
        return ()

    def __call__(self, x, state: tuple, seg: Segment, *, key: Array | None = None):
        q_BTNH, k, v = x
        if k is None:
            return jnp.zeros_like(q_BTNH), state
        return attend(q_BTNH, [KeySet.call(k, v, seg, future=True)], seg, self.dims), state
