"""Recurrent Memory Transformer: memory tokens around each segment carry information from one segment to the next.

    [. ; y ; m'] = body([m ; x ; m])        x: n tokens of a segment, m: M memory tokens, m': the body's outputs at the last m
    m <- norm m'                            at the end of each segment. m starts at a learned value

`Segmented` (segmented.py) calls the body. The layers inside see one segment and its memory tokens: their own state is reset at
the start of each segment, row by row. With inner="keep" it is kept, as in the paper's Transformer-XL with memory tokens.

Everything is differentiable. Gradients pass through the memory tokens until the caller detaches the state. The backward
pass recomputes each segment (remat). `rmt_encoder` is the version for layers that see all of a segment.

Deviations: RMT has a norm for m'. In the paper's code m' has passed the model's final norm, and without a norm it would grow
from segment to segment. `rmt` is causal everywhere, like the authors' decoder. A reset at the start of a document clears the
memory.

Source: Bulatov et al. 2022 (arXiv 2207.06881), 2023 (2304.11062).
B stream, T time, M memory tokens, D model.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from memtx.core import Dims, Layer, State, pytree, reset
from memtx.errors import check_known
from memtx.memory.inspect import Inspectable
from memtx.memory.segmented import Segmented
from memtx.nn.linear import Norm


@pytree
class Tokens(Inspectable):
    """The memory tokens m that the last segment wrote, and the number of finished segments."""

    memory_BMD: Array
    segments_B: Array

    @staticmethod
    def empty(batch_size: int, tokens: int, width: int) -> "Tokens":
        """Return the memory tokens of rows that have not finished a segment."""
        return Tokens(jnp.zeros((batch_size, tokens, width)), jnp.zeros(batch_size, jnp.int32))

    @property
    def stored(self) -> tuple[Array, Array]:
        """Return the memory tokens, which are written from the first finished segment on (see `Inspectable`)."""
        written_B1 = self.segments_B[:, None] > 0
        return self.memory_BMD, jnp.broadcast_to(written_B1, self.memory_BMD.shape[:2])

    def read(self, initial_MD: Array) -> Array:
        """Return m [B, M, D]: the learned value in a row's first segment."""
        return jnp.where((self.segments_B == 0)[:, None, None], initial_MD, self.memory_BMD)

    def write(self, new_BMD: Array) -> "Tokens":
        """Return the memory tokens after one more segment."""
        return Tokens(new_BMD, self.segments_B + 1)


class RMT(Segmented):
    """Body site: x_BTD -> x_BTD around `body`."""

    kind = "fixed memory tokens"
    entries = False

    @dataclasses.dataclass(frozen=True)
    class Config(Segmented.Config):
        """The settings of RMT."""

        inner: str = "wipe"  # wipe | keep: whether the state of the layers inside is reset at the start of each segment

        def __post_init__(self):
            super().__post_init__()
            check_known(self.inner, ("wipe", "keep"), "inner")

    tiny = (Config(segment=4, memory=2, remat=False),)

    @classmethod
    def room(cls, config) -> int | None:
        """Return the number of tokens in a segment with its memory tokens, or None with inner="keep"."""
        return None if config.inner == "keep" else super().room(config)

    def __init__(self, config: Config, dims: Dims, key: Array, body: Layer):
        super().__init__(config, dims, key, body)
        self.around = config.memory, config.memory
        self.norm = Norm("rms", dims.width)

    def init_memory(self, batch_size: int) -> Tokens:
        """Return the memory tokens before the first segment."""
        return Tokens.empty(batch_size, self.config.memory, self.width)

    def memory_tokens(self, memory: Tokens, batch_size: int) -> Array:
        """Return the memory tokens m of the current segment, [B, M, D]."""
        return memory.read(self.initial[...])

    def start(self, body: State, memory: Tokens, starts_B: Array) -> tuple[State, Array | int]:
        """Reset the layers inside, or keep them, with positions that continue from segment to segment."""
        if self.config.inner == "wipe":
            return reset(self.body, body, starts_B), 0
        return body, memory.segments_B * (self.config.segment + sum(self.around))

    def write(self, memory: Tokens, written_BMD: Array) -> Tokens:
        """Apply m <- norm m' and return the new memory."""
        return memory.write(self.norm(written_BMD.astype(jnp.float32)))
