"""Hashes are exact in 64 bits, against Python's integers."""

import numpy as np
import pytest

from memtx.ops import ngram

TOKENS = [0, 1, 2, 65_535, 65_536, 65_537, 127_999, 2**31 - 1]


def whole(pair) -> list[int]:
    return [int(high) << 32 | int(low) for high, low in zip(*pair, strict=True)]


@pytest.mark.parametrize("multiplier", [1, 3, 2**32 - 1, 2**32 + 1, 0x7FFF_FFFF_FFFF_FFFF, 0x1234_5678_9ABC_DEF1])
def test_products_are_exact(multiplier):
    tokens = [t for t in TOKENS if t * multiplier < 2**64]
    assert whole(ngram.product(np.array(tokens), multiplier)) == [t * multiplier for t in tokens]


def test_every_bit_of_random_products_and_xors():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 128_000, (3, 500))
    multipliers = ngram.multipliers(0, 3, 128_000)
    products = [ngram.product(t, m) for t, m in zip(tokens, multipliers, strict=True)]
    mixed = ngram.xor(ngram.xor(products[0], products[1]), products[2])
    expected = [a * multipliers[0] ^ b * multipliers[1] ^ c * multipliers[2] for a, b, c in tokens.T.tolist()]
    assert whole(mixed) == expected
    assert max(expected) > 2**60  # control: 32 bits, or a float, would not do
    assert max(expected) < 2**63


@pytest.mark.parametrize("start", [2, 251, 65_537, 1_000_000, 2**30])
def test_modulo_of_64_bits_is_exact(start):
    primes = ngram.next_primes(start, 3)
    number = np.random.default_rng(1).integers(0, 2**64, 300, dtype=np.uint64)
    number[:3] = 0, 2**64 - 1, primes[0]
    pair = (number >> np.uint64(32)).astype(np.uint32), (number & np.uint64(0xFFFF_FFFF)).astype(np.uint32)
    rest = ngram.modulo(pair, primes)
    assert rest.tolist() == [[n % p for p in primes] for n in number.tolist()]


def test_primes_are_distinct_and_the_next_ones():
    assert ngram.next_primes(1, 5) == (2, 3, 5, 7, 11)
    assert ngram.next_primes(4096, 3) == (4099, 4111, 4127)


def test_multipliers_are_odd_and_follow_the_seed():
    a, b = ngram.multipliers(0, 4, 50_000), ngram.multipliers(1, 4, 50_000)
    assert all(m % 2 and m * 49_999 < 2**63 for m in a + b)
    assert not set(a) & set(b)
