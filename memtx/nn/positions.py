"""Position encodings of attention: rotary (RoPE), ALiBi and T5's bucketed bias.

Keys are stored un-rotated. Positions are integers, and a nearby origin is subtracted from them before they become floats.
float32 angles at absolute positions are off by 0.6 % at one million and by 5 % at ten million.

B stream, T query time, S source time, N query heads, H head dim.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def rope(x_BTNH: Array, position_BT: Array | np.ndarray, base: float, scaling: tuple[float, ...] = ()) -> Array:
    """Rotate the pairs (x_i, x_{i+H/2}) by position * base^(-2i/H) (Su et al. 2021, arXiv 2104.09864).

    scaling: as in `rope_frequencies`. If the positions are a NumPy array, the angles are constants of the program.
    """
    head_dim = x_BTNH.shape[-1]
    frequency = rope_frequencies(head_dim, base, scaling)
    if isinstance(position_BT, np.ndarray):  # known at compile time
        angle = position_BT[..., None] * frequency
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    else:
        cos, sin = cos_sin(position_BT[..., None].astype(jnp.float32), jnp.asarray(frequency, jnp.float32))
    return _turn(x_BTNH, cos, sin)


def rotate(x_BTNH: Array, position_BT: Array, base: float) -> Array:
    """Apply `rope` at absolute positions, with the same precision at two billion as at 0. Later calls may use the result.

    Angles are counted in turns, whose whole part does not matter. The first 32 bits of a frequency times a position are
    integers, which wrap around. The next 32 bits give less than half a turn, in float32.
    """
    turns = rope_frequencies(x_BTNH.shape[-1], base) / (2 * np.pi) * 2.0**32  # per position, in 2^-32 of a turn
    high, low = np.floor(turns), turns % 1
    wrapped_BTF = position_BT[..., None] * jnp.asarray(high.astype(np.uint32).view(np.int32))
    rest_BTF = position_BT[..., None].astype(jnp.float32) * jnp.asarray(low, jnp.float32)
    angle_BTF = (wrapped_BTF.astype(jnp.float32) + rest_BTF) * np.float32(2 * np.pi / 2**32)
    return _turn(x_BTNH, jnp.cos(angle_BTF), jnp.sin(angle_BTF))


def _turn(x_BTNH: Array, cos_BTF: Array | np.ndarray, sin_BTF: Array | np.ndarray) -> Array:
    cos, sin = cos_BTF[:, :, None], sin_BTF[:, :, None]
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BTNH.dtype)


def rope_frequencies(head_dim: int, base: float, scaling: tuple[float, ...] = ()) -> np.ndarray:
    """Return the angles per position of all pairs, [H/2].

    scaling = (factor, low, high, length) is Llama 3's (Dubey et al. 2024, arXiv 2407.21783). A pair that turns fewer than `low`
    times within `length` positions turns `factor` times slower. One that turns more than `high` times is unchanged, and those
    in between are interpolated. length = 0 slows all pairs (linear interpolation of positions).
    """
    frequency = base ** (-np.arange(0, head_dim, 2) / head_dim)
    if not scaling:
        return frequency
    factor, low, high, length = scaling
    turns = length * frequency / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return frequency * (kept + (1 - kept) / factor)


def cos_sin(position_BT1: Array, frequency_F: Array) -> tuple[Array, Array]:
    """Return cos and sin of position * frequency, [B, T, F].

    They are computed in a loop of two steps, because XLA stores the results of a loop. Without the loop, XLA's CPU backend
    fuses the sines into their users and recomputes them for every head, tile and gradient.
    """

    def tables(frequency):
        angle = position_BT1 * frequency
        return jnp.cos(angle), jnp.sin(angle)

    if frequency_F.size % 2:
        return tables(frequency_F)
    halves = lax.map(tables, frequency_F.reshape(2, -1))
    return jax.tree.map(lambda x: jnp.concatenate([x[0], x[1]], -1), halves)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Return the slopes of ALiBi (Press et al. 2021, arXiv 2108.12409), [N].

    They are 2^(-8i/n) for n = the largest power of two <= N, followed by every other slope of 2n.
    """
    n = 2 ** int(np.log2(num_heads))
    slopes = 2.0 ** (-8 * np.arange(1, n + 1) / n)
    extra = 2.0 ** (-4 * np.arange(1, 2 * (num_heads - n), 2) / n)
    return np.concatenate([slopes, extra]).astype(np.float32)


T5_BUCKETS, T5_MAX_DISTANCE = 32, 128


def t5_bucket(distance: Array | np.ndarray, future: bool = False) -> Array:
    """Return the buckets of T5 (Raffel et al. 2019): one each for distances 0..15, then 16 logarithmic buckets up to 128.

    distance  how many positions the key is before the query
    future    whether each direction gets half of the buckets, as in T5's encoder (the second half: keys after the query)
    """
    buckets = T5_BUCKETS // 2 if future else T5_BUCKETS
    far = jnp.abs(distance) if future else jnp.maximum(distance, 0)
    exact = buckets // 2
    log = jnp.log(jnp.maximum(far, 1) / exact) / np.log(T5_MAX_DISTANCE / exact) * (buckets - exact)
    bucket = jnp.where(far < exact, far, jnp.minimum(exact + log.astype(jnp.int32), buckets - 1))
    return bucket + buckets * (distance < 0) if future else bucket
