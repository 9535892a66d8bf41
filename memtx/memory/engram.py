"""Engram: a table of n-grams that is read by exact hashes of the last tokens and gated by the hidden state.

    i_nk(t) = (XOR_{j < n} P(token_{t-j}) multiplier_j) mod prime_nk         64 bits, exact
    P(token): one id for all tokens whose texts agree but for case, accents and white space (`canonical_ids`)
    e_t = concat over orders n and heads k of E_nk[i_nk(t)]
    a = <RMS(h), RMS(e Wk)> / sqrt(D) ;  g = sig(sgn(a) sqrt|a|) ;  v = g e Wv
    y = SiLU(conv(RMS(v))) + v                        depthwise, causal, `kernel` taps `dilation` tokens apart, zero initially

Before the first token of a document, n-grams see pads and the convolution sees zeros. The state has the last tokens and the
last inputs of the convolution. Gradients reach every parameter and, through the convolution, earlier tokens, as far back
as the caller's `detach` allows. Ids are not differentiable. As in the authors' code, |a| below 1e-6 counts as 1e-6, because
the slope of the root is infinite at 0. The table learns 5 times as fast as the model and has no weight decay.

Deviations: all layers of a stack share one hash, which depends on `seed` and not on the number of the layer. Each has its own
table. h is the normalised input of the block, and the result is added beside attention, not before it. There is one residual
stream. Wk and Wv have no bias.

Source: Cheng et al. 2026 (arXiv 2601.07372).
B stream, T time, L earlier tokens, S earlier inputs, D model, E = orders x heads x dim, K taps.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tokenizers import Regex, normalizers

from memtx.core import Dims, Memory, Segment, pytree
from memtx.errors import UserError, positive
from memtx.nn.linear import Linear, Norm, normal
from memtx.ops import ngram
from memtx.ops.rows import slice_rows


@pytree
class Tail:
    """The state: the last canonical tokens or pads, and the last inputs of the convolution. count_B of these are valid."""

    token_BL: Array
    input_BSD: Array
    count_B: Array  # tokens read since the reset


class Engram(Memory):
    """A table of n-grams at the residual site. It reads `seg.token_BT`, which the language model sets."""

    site = "residual"
    kind = "ring of tokens"
    block = "window+engram"

    @classmethod
    def preset_layers(cls, layers: int) -> tuple[int, ...]:
        """Return the second layer and the middle one."""
        return tuple(sorted({min(1, layers - 1), layers // 2}))

    @dataclasses.dataclass(frozen=True)
    class Config:
        """The settings of Engram. Raises UserError if a setting is out of range."""

        orders: tuple[int, ...] = (2, 3)  # lengths n of the n-grams
        heads: int = 8  # tables per order, each with a different prime
        rows: int = 4096  # the size of a table is one of the first primes from here on
        dim: int = 16  # of a row
        kernel: int = 4  # taps of the convolution
        dilation: int = 0  # distance in tokens between two taps of the convolution; 0: the longest order
        seed: int = 0  # of the hash
        pad: int = 0  # canonical id before the start of a document
        conv_scale: float = 0.0  # standard deviation of the initial convolution
        compress: bool = True  # build P from the subwords of the tokenizer; False, and for bytes: the identity
        canonical: tuple[int, ...] = ()  # P, an id for every token of the vocabulary; (): see `compress`

        def __post_init__(self):
            positive(self, "heads", "rows", "dim", "kernel")
            for name in ("orders", "canonical"):
                object.__setattr__(self, name, tuple(getattr(self, name)))
            if not self.orders or self.orders[0] < 2 or list(self.orders) != sorted(set(self.orders)):
                raise UserError(f"orders={self.orders} must list lengths of n-grams, at least 2, in rising order")
            if self.kernel < 2:
                raise UserError("kernel must be at least 2")
            if self.dilation < 0:
                raise UserError(f"dilation must be 0 or more, not {self.dilation}")
            if self.rows >= 2**30:
                raise UserError(f"rows={self.rows} must be below 2^30")
            if self.pad < 0:
                raise UserError(f"pad={self.pad} must be an id, 0 or more")

    tiny = (Config(orders=(2, 3), heads=2, rows=5, dim=3, kernel=3, dilation=2, seed=7, pad=1, conv_scale=0.5),)

    @classmethod
    def of_tokens(cls, config: Config, pieces: Sequence[bytes]) -> Config:
        """Return the config with P for a vocabulary, unless `canonical` is set. pieces: the bytes of each token."""
        if not config.compress or config.canonical:
            return config
        return dataclasses.replace(config, canonical=canonical_ids(pieces))

    def __init__(self, config: Config, dims: Dims, key: Array):
        if config.canonical and len(config.canonical) < dims.vocab_size:
            raise UserError(
                f"memory.engram.canonical has {len(config.canonical)} ids for a vocabulary of {dims.vocab_size} tokens"
            )
        table, k, v, conv = jax.random.split(key, 4)
        self.config, self.width, self.apart = config, dims.width, config.dilation or config.orders[-1]
        words = max(config.canonical) + 1 if config.canonical else dims.vocab_size
        self.multipliers = ngram.multipliers(config.seed, config.orders[-1], words)
        self.primes = ngram.next_primes(config.rows, len(config.orders) * config.heads)
        self.table = normal(table, (sum(self.primes), config.dim), 1.0, optim="no_decay", lr=5.0)
        size = len(self.primes) * config.dim
        self.key, self.value = Linear(k, size, dims.width), Linear(v, size, dims.width)
        self.query_norm, self.key_norm, self.conv_norm = (Norm("rms", dims.width) for _ in range(3))
        self.conv = normal(conv, (config.kernel, dims.width), config.conv_scale)

    def init_state(self, batch_size: int) -> Tail:
        """Return the state before the first token."""
        c = self.config
        return Tail(
            jnp.full((batch_size, c.orders[-1] - 1), c.pad, jnp.int32),
            jnp.zeros((batch_size, (c.kernel - 1) * self.apart, self.width)),
            jnp.zeros(batch_size, jnp.int32),
        )

    def __call__(self, x_BTD, state: Tail, seg: Segment, *, key: Array | None = None):
        """Read a segment: (x_BTD, state) -> (y_BTD, state)."""
        assert seg.token_BT is not None, "engram hashes seg.token_BT, which the language model sets"
        token_BT = self.canonical(seg.token_BT)
        token_BS = jnp.concatenate([state.token_BL, token_BT], 1)
        e_BTE = self.embed(self.rows(token_BS, x_BTD.shape[1])).astype(x_BTD.dtype)
        v_BTD = self.gate(x_BTD, e_BTE) * self.value(e_BTE)
        size = state.input_BSD.shape[1]
        valid_BS = jnp.arange(size) >= size - state.count_B[:, None]
        before_BSD = jnp.where(valid_BS[..., None], state.input_BSD, 0)
        input_BSD = jnp.concatenate([before_BSD, self.conv_norm(v_BTD).astype(jnp.float32)], 1)
        y_BTD = v_BTD + jax.nn.silu(self.convolve(input_BSD, x_BTD.shape[1])).astype(x_BTD.dtype)
        token_BL = slice_rows(token_BS, seg.length_B, state.token_BL.shape[1])
        tail_BSD = slice_rows(input_BSD, seg.length_B, before_BSD.shape[1])
        return y_BTD, Tail(token_BL, tail_BSD, state.count_B + seg.length_B)

    def canonical(self, token_BT: Array) -> Array:
        """Return P(token)."""
        ids = self.config.canonical
        return jnp.asarray(np.array(ids, np.int32))[token_BT] if ids else token_BT

    def rows(self, token_BS: Array, time: int) -> Array:
        """Return the rows of the n-grams that end at each of the last `time` tokens, [B, T, orders x heads]."""
        lead, heads, found = token_BS.shape[1] - time, self.config.heads, []
        mixed = [ngram.product(token_BS[:, lead : lead + time], self.multipliers[0])]
        for j, multiplier in enumerate(self.multipliers[1:], 1):
            mixed.append(ngram.xor(mixed[-1], ngram.product(token_BS[:, lead - j : lead - j + time], multiplier)))
        for i, n in enumerate(self.config.orders):
            found.append(ngram.modulo(mixed[n - 1], self.primes[i * heads : (i + 1) * heads]))
        return jnp.concatenate(found, -1) + np.cumsum((0, *self.primes[:-1]), dtype=np.int32)

    def embed(self, row_BTN: Array) -> Array:
        """Return the concatenated rows of each token, [B, T, E]."""
        e = self.table[...].at[row_BTN].get(mode="promise_in_bounds")
        return e.reshape(*row_BTN.shape[:2], -1)

    def gate(self, x_BTD: Array, e_BTE: Array) -> Array:
        """Return g of every token, [B, T, 1]."""
        h, k = self.query_norm(x_BTD).astype(jnp.float32), self.key_norm(self.key(e_BTE)).astype(jnp.float32)
        a_BT = (h * k).sum(-1) * self.width**-0.5
        root_BT = jnp.sign(a_BT) * jnp.sqrt(jnp.maximum(jnp.abs(a_BT), 1e-6))
        return jax.nn.sigmoid(root_BT)[..., None].astype(x_BTD.dtype)

    def convolve(self, input_BSD: Array, time: int) -> Array:
        """Return the dilated causal convolution at the last `time` tokens, [B, T, D]."""
        apart, w_KD = self.apart, self.conv[...]
        taps = [w_KD[k] * input_BSD[:, k * apart : k * apart + time] for k in range(self.config.kernel)]
        return sum(taps[1:], taps[0])


BLANK = "\ue000"  # a placeholder for a token that is only white space, which `Strip` would remove
CANONICAL = normalizers.Sequence(
    [
        normalizers.NFKC(),
        normalizers.NFD(),
        normalizers.StripAccents(),
        normalizers.Lowercase(),
        normalizers.Replace(Regex(r"[ \t\r\n]+"), " "),
        normalizers.Replace(Regex("^ $"), BLANK),
        normalizers.Strip(),
        normalizers.Replace(BLANK, " "),
    ]
)


def canonical_ids(pieces: Sequence[bytes]) -> tuple[int, ...]:
    """Return P for the vocabulary of a tokenizer, by the normalisers of the authors' code.

    pieces: the UTF-8 of each token. A special (b"") or an incomplete character keeps a separate id.
    """
    ids: dict[object, int] = {}
    return tuple(ids.setdefault(_canonical(piece) if piece else id, len(ids)) for id, piece in enumerate(pieces))


def _canonical(piece: bytes) -> str | bytes:
    text = piece.decode("utf-8", errors="replace")
    return piece if "\ufffd" in text else CANONICAL.normalize_str(text) or text
