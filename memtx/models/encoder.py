"""The encoder of an encoder-decoder: it turns a source into vectors that cross-attention reads.

    E = norm(body(embedded source))          `model.encoder`: its stacks, usually bidirectional
                                             `model.encoder_body`: a mechanism around them, such as rmt_encoder

With T5 positions it has its own relative bias. Each source is read from a fresh state.
B stream, S source time, D model, N heads.
"""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx
from jax import Array

from memtx.config import Model
from memtx.core import Dims, Segment
from memtx.models.body import build_body
from memtx.nn.linear import Norm, normal
from memtx.nn.positions import T5_BUCKETS
from memtx.nn.reads import without_reads


class Encoder(nnx.Module):
    """The module of `model.encoder`."""

    def __init__(self, model: Model, dims: Dims, key: Array):
        for_body, bias = jax.random.split(key)
        self.body = build_body(dataclasses.replace(model, stacks=model.encoder, body=model.encoder_body), dims, for_body)
        self.norm = None if model.post_norm else Norm(model.norm, model.width, model.norm_epsilon)
        t5 = model.position == "t5"
        self.relative_bias = normal(bias, (T5_BUCKETS, model.num_heads), 0.02, optim="no_decay") if t5 else None

    def __call__(self, x_BSD: Array, seg: Segment, *, key: Array | None = None) -> Array:
        """Return E, [B, S, D], from the embedded source."""
        if self.relative_bias is not None:
            seg = seg.replace(shared={**seg.shared, "relative_bias": self.relative_bias[...]})
        h_BSD, _ = without_reads(self.body)(x_BSD, self.body.init_state(len(x_BSD)), seg, key=key)
        return self.norm(h_BSD) if self.norm else h_BSD
