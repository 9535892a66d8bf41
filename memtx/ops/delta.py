"""The delta rule with decay, computed in chunks. Linear attention, RetNet, GLA and the DeltaNet family all use it.

Each head has a matrix S that decays, is written and is read, in this order:

    S <- exp(g_t) S                     g_t <= 0: log decay, one number per head or one per key dimension
    u_t = v_t                           without beta: plain outer products
    u_t = beta_t (v_t - S^T k_t)        with beta: the error of the memory at k_t
    S <- S + k_t u_t^T ;  o_t = S^T q_t

For a chunk of C tokens, with d_ij = g_{j+1} + ... + g_i, P(a)_ij = sum_d a_id k_jd exp(d_ijd) for i >= j, else 0, and (.)
the elementwise product, all u of the chunk solve one triangular system (Yang et al. 2024, arXiv 2406.06484, 2412.06464):

    (1 + tril(beta P(k), -1)) u = beta (v - (exp(d_i0) (.) k) S)
    o = (exp(d_i0) (.) q) S + P(q) u ;  S <- exp(d_C0) (.) S + (exp(d_Ci) (.) k)^T u

Only the terms with S are sequential, over chunks. Every d is computed as a sum of decays, never as a difference of two longer
sums. A difference would lose the decays after a strong one, because float32 has a resolution of 2e-5 at 300. Therefore exp
never sees a positive number, and every g <= 0 is allowed, including -inf. A decay per key dimension is split, between two
blocks of tokens, at the end of the earlier block. The output of token i depends, bit for bit, only on tokens up to i. All
arithmetic is float32. With products of 16-bit operands, a TPU's default, the outputs would have errors of half a per cent.

A mechanism whose decays apply to value dimensions, as in the first pass of Gated Slot Attention, can use one head per value
dimension: repeat q and k over these heads, and give each head V = 1 and a single decay.

B stream, T time, N heads, K key dim, V value dim, M chunks, C tokens of a chunk, G = 1 or K.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.linalg import solve_triangular

from memtx.ops.backend import platform
from memtx.ops.context import AXIS, PIECES, WHOLE, earlier, is_divided, on_pieces
from memtx.ops.dot import exact

CHUNKS = {"cpu": 32}  # the fastest size of a chunk. Accelerators multiply larger matrices in the same time
CHUNK = 64


@exact
def delta_rule(
    q_BTNK: Array,
    k_BTNK: Array,
    v_BTNV: Array,
    s_BNKV: Array,
    decay_BTNG: Array | None = None,
    beta_BTN1: Array | None = None,
    *,
    chunk: int = 0,
) -> tuple[Array, Array]:
    """Return o_BTNV and the matrix S after T tokens, both float32.

    decay: g in the module docstring. None means 0. beta: None leaves out the delta term. A token whose k and decay are 0 does
    not change S. chunk: the number of tokens to compute together, or 0 for the best of the platform. It affects the cost, not
    the result. Raises ValueError if it is not a power of two.
    """
    chunk = chunk or CHUNKS.get(platform(q_BTNK), CHUNK)
    if chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f"chunk must be a power of two, not {chunk}")
    if is_divided(q_BTNK):
        specs = (PIECES, PIECES, PIECES, WHOLE, PIECES, PIECES)
        work = partial(delta_rule_of_piece, chunk=chunk)
        return on_pieces(work, specs, (PIECES, WHOLE), q_BTNK, k_BTNK, v_BTNV, s_BNKV, decay_BTNG, beta_BTN1)
    time = q_BTNK.shape[1]
    size = min(chunk, 1 << (time - 1).bit_length())
    q, k, v = (chunks(x, size) for x in (q_BTNK, k_BTNK, v_BTNV))
    g = None if decay_BTNG is None else chunks(decay_BTNG, size)
    since, until = (None, None) if g is None else sums(g)
    reads, pull = products(q, k, g), None
    if beta_BTN1 is not None:
        beta = chunks(beta_BTN1, size)
        system = jnp.tril(beta * products(k, k, g), -1)
        inverse = transposed(beta) * solve_triangular(
            system, jnp.broadcast_to(jnp.eye(size), system.shape), lower=True, unit_diagonal=True
        )
        v, pull = inverse @ v, inverse @ decayed(k, since)
    total = None if since is None else jnp.exp(since[..., -1, :])

    def step(s_BNKV, chunk):
        q, rest, reads, u, pull, total = chunk
        if pull is not None:
            u = u - pull @ s_BNKV
        o = q @ s_BNKV + reads @ u
        if total is not None:
            s_BNKV = s_BNKV * total[..., None]
        return s_BNKV + transposed(rest) @ u, o

    s_BNKV, o_MBNCV = lax.scan(step, s_BNKV, (decayed(q, since), decayed(k, until), reads, v, pull, total))
    o_BMCNV = o_MBNCV.transpose(1, 0, 3, 2, 4)
    return o_BMCNV.reshape(o_BMCNV.shape[0], -1, *o_BMCNV.shape[3:])[:, :time], s_BNKV


def delta_rule_of_piece(
    q_BTNK: Array,
    k_BTNK: Array,
    v_BTNV: Array,
    s_BNKV: Array,
    decay_BTNG: Array | None,
    beta_BTN1: Array | None,
    *,
    chunk: int,
) -> tuple[Array, Array]:
    """Compute `delta_rule` on devices that each have a piece of the text. S before and after the text is on every device.

    The rule is affine in S. A piece maps S to A S + D, and its outputs are R S + o. One pass over the piece computes all of
    them: K more columns of S start from the identity, with values of 0, and give A and R. The first device starts D from S.

    The maps are then composed in ceil(log2 C) rounds. In each round a device applies its map to the result of the one 1, 2,
    4, ... pieces earlier, or to 0. In the end D is S after its piece. A device has two maps at a time, and not those of all
    devices.
    """
    size, piece, count = k_BTNK.shape[-1], lax.axis_index(AXIS), lax.axis_size(AXIS)
    eye_BNKK = jnp.broadcast_to(jnp.eye(size), (*s_BNKV.shape[:3], size))
    start = jnp.concatenate([eye_BNKK, jnp.where(piece == 0, s_BNKV, 0)], -1)
    v_BTNV = jnp.pad(v_BTNV, [(0, 0)] * 3 + [(size, 0)])
    passed = delta_rule(q_BTNK, k_BTNK, v_BTNV, start, decay_BTNG, beta_BTN1, chunk=chunk)
    (r_BTNK, o_BTNV), (a_BNKK, d_BNKV) = (jnp.split(x, [size], -1) for x in passed)
    for turn in range((count - 1).bit_length()):
        a, d = earlier((a_BNKK, d_BNKV), 2**turn)
        a_BNKK, d_BNKV = a_BNKK @ a, a_BNKK @ d + d_BNKV
    o_BTNV = o_BTNV + jnp.einsum("BTNK,BNKV->BTNV", r_BTNK, earlier(d_BNKV, 1))
    return o_BTNV, lax.psum(jnp.where(piece == count - 1, d_BNKV, 0), AXIS)


def chunks(x_BTN: Array, size: int) -> Array:
    """Return x as [M, B, N, C, ...], padded with zeros."""
    x = jnp.pad(x_BTN, [(0, 0), (0, -x_BTN.shape[1] % size), (0, 0), (0, 0)])
    return x.reshape(x.shape[0], -1, size, *x.shape[2:]).transpose(1, 0, 3, 2, 4)


def sums(g_CG: Array) -> tuple[Array, Array]:
    """Return two sums of decays for each token: over the chunk up to and including it, and over the rest of the chunk."""
    after_CG = jnp.concatenate([g_CG[..., 1:, :], jnp.zeros_like(g_CG[..., :1, :])], -2)
    axis = g_CG.ndim - 2
    return lax.cumsum(g_CG, axis), lax.cumsum(after_CG, axis, reverse=True)


def between(g_C: Array) -> Array:
    """Return d_ij, the summed decays of the tokens after j up to i, [..., C, C], or -inf where i < j."""
    lower = jnp.tril(jnp.ones((g_C.shape[-1],) * 2, bool))
    d_CC = lax.cumsum(jnp.where(jnp.tril(lower, -1), g_C[..., :, None], 0), g_C.ndim - 1)
    return jnp.where(lower, d_CC, -jnp.inf)


def decayed(x_CK: Array, d_CG: Array | None) -> Array:
    """Return x exp(d), or x if d is None."""
    return x_CK if d_CG is None else x_CK * jnp.exp(d_CG)


def products(a_MBNCK: Array, k_MBNCK: Array, g_MBNCG: Array | None) -> Array:
    """Return P_ij = sum_d a_id k_jd exp(d_ijd) for i >= j, else 0, [M, B, N, C, C]."""
    if g_MBNCG is None:
        return jnp.tril(a_MBNCK @ transposed(k_MBNCK))
    if g_MBNCG.shape[-1] == 1:
        return a_MBNCK @ transposed(k_MBNCK) * jnp.exp(between(g_MBNCG[..., 0]))
    return blocks(a_MBNCK, k_MBNCK, g_MBNCG)[0]


def blocks(a_MBNCK: Array, k_MBNCK: Array, g_MBNCK: Array) -> tuple[Array, Array, Array]:
    """Return `products` with a decay per key dimension, and `sums`.

    It recurses on halves of the tokens and adds the products of the later half with the earlier one. The halves are kept in
    the axis of the heads, because dots of rank 8 crash XLA's CPU backend.
    """
    size = a_MBNCK.shape[3]
    if size == 1:
        return (a_MBNCK * k_MBNCK).sum(-1, keepdims=True), g_MBNCK, jnp.zeros_like(g_MBNCK)
    halves = [x.reshape(*x.shape[:2], -1, size // 2, x.shape[-1]) for x in (a_MBNCK, k_MBNCK, g_MBNCK)]
    (first, second), (since, since_middle), (until_middle, until) = ((x[:, :, 0::2], x[:, :, 1::2]) for x in blocks(*halves))
    (_, a), (k, _) = (jnp.split(x, 2, 3) for x in (a_MBNCK, k_MBNCK))
    across = decayed(a, since_middle) @ transposed(decayed(k, until_middle))
    upper = jnp.concatenate([first, jnp.zeros_like(across)], -1)
    product = jnp.concatenate([upper, jnp.concatenate([across, second], -1)], 3)
    since = jnp.concatenate([since, since[..., -1:, :] + since_middle], 3)
    until = jnp.concatenate([until_middle + since_middle[..., -1:, :], until], 3)
    return product, since, until


def transposed(x: Array) -> Array:
    """Return x with its last two axes swapped."""
    return x.swapaxes(-1, -2)


def delta_rule_by_token(
    q_BTNK: Array,
    k_BTNK: Array,
    v_BTNV: Array,
    s_BNKV: Array,
    decay_BTNG: Array | None = None,
    beta_BTN1: Array | None = None,
) -> tuple[Array, Array]:
    """Compute `delta_rule` one token after the other. This is the definition of `delta_rule`."""

    def step(s_BNKV, token):
        q, k, v, decay, beta = token
        if decay is not None:
            s_BNKV = s_BNKV * jnp.exp(decay)[..., None]
        if beta is not None:
            v = beta * (v - jnp.einsum("BNKV,BNK->BNV", s_BNKV, k))
        s_BNKV = s_BNKV + k[..., None] * v[..., None, :]
        return s_BNKV, jnp.einsum("BNKV,BNK->BNV", s_BNKV, q)

    tokens = jax.tree.map(lambda x: x.swapaxes(0, 1), (q_BTNK, k_BTNK, v_BTNV, decay_BTNG, beta_BTN1))
    s_BNKV, o_TBNV = lax.scan(step, s_BNKV, tokens)
    return o_TBNV.swapaxes(0, 1), s_BNKV
