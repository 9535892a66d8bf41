"""Hashes of n-grams, exact in 64 bits although jax runs in 32: XOR of token times multiplier, modulo a prime.

    hash_n(t) = (XOR_{j < n} token_{t-j} multiplier_j) mod prime

A 64-bit number is a pair (high, low) of uint32. Tables of ids that were trained elsewhere need exactly this arithmetic. In 32
bits the products would overflow.

Arrays may have any shape.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

Wide = tuple[Array, Array]  # (high, low) words of a 64-bit number


def product(token: Array, multiplier: int) -> Wide:
    """Return token * multiplier, for 0 <= token < 2^31 and multiplier < 2^63 with a product below 2^64.

    This is long multiplication with digits of 16 bits. A product of two digits fits 32 bits, and its halves are added by
    column.
    """
    token = token.astype(jnp.uint32)
    column: list = [jnp.zeros_like(token) for _ in range(7)]
    for i, a in enumerate((token & 0xFFFF, token >> 16)):
        for j in range(4):
            partial = a * np.uint32(multiplier >> (16 * j) & 0xFFFF)
            column[i + j] += partial & 0xFFFF
            column[i + j + 1] += partial >> 16
    for i in range(3):  # carry
        column[i + 1] += column[i] >> 16
    digit = [c & 0xFFFF for c in column[:4]]
    return digit[3] << 16 | digit[2], digit[1] << 16 | digit[0]


def xor(a: Wide, b: Wide) -> Wide:
    """Return the bitwise XOR of two 64-bit numbers."""
    return a[0] ^ b[0], a[1] ^ b[1]


def modulo(number: Wide, primes: Sequence[int]) -> Array:
    """Return number mod each of the primes (below 2^31), along a new last axis, in int32. It is a long division."""
    step = 32 - max(primes).bit_length()
    divisor = np.array(primes, np.uint32)
    rest = jnp.zeros((*number[0].shape, len(primes)), jnp.uint32)
    for word in number:
        left = 32
        while left:
            bits = min(step, left)
            left -= bits
            digit = word >> left & np.uint32(2**bits - 1)
            rest = (rest << bits | digit[..., None]) % divisor
    return rest.astype(jnp.int32)


def next_primes(start: int, count: int) -> tuple[int, ...]:
    """Return the `count` smallest primes that are at least `start`."""
    found, n = [], max(start, 2)
    while len(found) < count:
        if all(n % d for d in range(2, int(n**0.5) + 1)):
            found.append(n)
        n += 1
    return tuple(found)


def multipliers(seed: int, count: int, vocab_size: int) -> tuple[int, ...]:
    """Draw `count` odd numbers whose products with any of `vocab_size` tokens are below 2^63."""
    bound = max(1, (2**63 - 1) // vocab_size // 2)
    return tuple(2 * int(m) + 1 for m in np.random.default_rng(seed).integers(0, bound, count))
