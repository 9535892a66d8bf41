"""MQAR: multi-query associative recall, queries for the values of many keys (Arora et al. 2023, 2312.04927).

    k1 v1 ... kN vN  . . k3 . k1 . . . k2 ...     the label at each later k_j is v_j, at the position of the key

Keys are distinct tokens of [1, V/2), values distinct tokens of [V/2, V). The positions after the context form slots of two
tokens. Query j is in slot g_j, drawn without repeats with p_i ~ a i^(a-1). The other positions are filled with
    zero     token 0 (protocol A)
    zoology  any token of the vocabulary (protocol B), as in the reference. A key may then precede a wrong value
    safe     any token except the keys of this example, so that this cannot occur
The reference draws fillers from torch's global generator. Here they come from the example's generator.
Source: HazyResearch/zoology (multiquery_ar).  Legend: C context, N pairs, W tokens of a key, L length, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import numpy as np

from memtx.data.streams import NOTHING
from memtx.data.tokenizers import numbers
from memtx.errors import check_known
from memtx.tasks.base import Example, Task, check, octave

FILLERS = ("zero", "zoology", "safe")


class MQAR(Task):
    """Pairs of keys and values, then queries for all keys."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        vocabulary: int = 8192
        length: int = 64
        pairs: int = 4
        mix: tuple = ()  # ((length, pairs, weight), ...), each example draws one by weight. (): the settings above
        power: float = 0.01  # a
        filler: str = "zero"  # zero | zoology | safe

        def __post_init__(self):
            check_known(self.filler, FILLERS, "filler")
            for length, pairs, weight in self.mix or ((self.length, self.pairs, 1),):
                check(
                    pairs >= 1 and 4 * pairs <= length and length % 2 == 0,
                    f"{length=} must be even and at least 4 times {pairs=}, and pairs at least 1",
                )
                check(weight > 0, "the weights of mix must be above 0")
                check(self.vocabulary > 2 * pairs + 1, f"vocabulary={self.vocabulary} must be above 2 pairs + 1, {pairs=}")

    def __init__(self, config: Config):
        super().__init__(config)
        self.cases = [tuple(case) for case in config.mix] or [(config.length, config.pairs, 1)]
        self.length = max(length for length, _, _ in self.cases)
        self.tokenizer = numbers(config.vocabulary)

    def example(self, rng):
        vocabulary, weights = self.config.vocabulary, np.array([weight for *_, weight in self.cases], float)
        length, pairs, _ = self.cases[rng.choice(len(self.cases), p=weights / weights.sum())]
        key_N = 1 + rng.choice(vocabulary // 2 - 1, pairs, replace=False)
        value_N = vocabulary // 2 + rng.choice(vocabulary - vocabulary // 2, pairs, replace=False)
        context_C = np.stack([key_N, value_N], 1).ravel()
        written_N = 2 * np.arange(pairs) + 1
        token_L, label_L, distance_A = ask(rng, context_C, key_N[:, None], value_N, written_N, length, self.config.power)
        fill(rng, token_L, vocabulary, key_N, self.config.filler)
        return Example(token_L, label_L, {"pairs": pairs, "length": length, "distance": distance_A})


def ask(rng, context_C, key_NW, value_N, written_N, length: int, power: float):
    """Return (token_L, label_L, distance_A): the context, then each key once in a slot of W + 1 tokens, and zeros elsewhere.

    The label of a key is at its last token. `written_N` has the positions of the values in the context. `distance_A` is the
    octave of the distance from each label back to the position of its value, in the order of the labels.
    """
    width = key_NW.shape[1]
    p = slots((length - len(context_C)) // (width + 1), power)
    first_N = len(context_C) + (width + 1) * rng.choice(len(p), len(value_N), replace=False, p=p)
    token_L, label_L = np.zeros(length, np.int32), np.full(length, NOTHING, np.int32)
    token_L[: len(context_C)] = context_C
    token_L[first_N[:, None] + np.arange(width)] = key_NW
    label_L[first_N + width - 1] = value_N
    return token_L, label_L, octave(first_N + width - 1 - written_N)[np.argsort(first_N)]


@lru_cache
def slots(space: int, power: float) -> np.ndarray:
    """Return the probability of each slot: p_i ~ a i^(a-1)."""
    p = power * np.arange(1, space + 1) ** (power - 1)
    return p / p.sum()


def fill(rng, token_L: np.ndarray, vocabulary: int, key_N: np.ndarray, filler: str) -> None:
    """Replace the zeros of `token_L` in place with the `filler`."""
    if filler == "zero":
        return
    free_L = token_L == 0
    noise = rng.integers(vocabulary - (len(key_N) if filler == "safe" else 0), size=free_L.sum())
    if filler == "safe":  # shift the draws past the keys, smallest key first
        for key in np.sort(key_N):
            noise += noise >= key
    token_L[free_L] = noise
