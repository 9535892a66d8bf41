"""MQAR: multi-query associative recall, many keys asked for their values (Arora et al. 2023, 2312.04927).

    k1 v1 ... kN vN  . . k3 . k1 . . . k2 ...     at each later k_j the label is v_j, on the key's own place

Keys are distinct tokens of [1, V/2), values distinct ones of [V/2, V). The places after the context are slots of two tokens;
query j stands in slot g_j, drawn without repeats with p_i ~ a i^(a-1). What is left is filled:
    zero     token 0 (protocol A)
    zoology  any token of the vocabulary (protocol B), as in the reference: now and then a key and a wrong value meet
    safe     any token but this example's keys, so that none does
The reference draws fillers from torch's global generator; here they are the example's own.
Source: HazyResearch/zoology (multiquery_ar).  Legend: C context, N pairs, W tokens of a key, L length, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import numpy as np

from memtx.data.tokenizers import numbers
from memtx.errors import check_known
from memtx.tasks.base import NOTHING, Example, Task, check, octave

FILLERS = ("zero", "zoology", "safe")


class MQAR(Task):
    @dataclasses.dataclass(frozen=True)
    class Config:
        vocabulary: int = 8192
        length: int = 64
        pairs: int = 4
        mix: tuple = ()  # ((length, pairs, weight), ...): every example is of one of these, drawn by weight
        power: float = 0.01  # a
        filler: str = "zero"  # zero | zoology | safe

        def __post_init__(self):
            check_known(self.filler, FILLERS, "filler")
            for length, pairs, weight in self.mix or ((self.length, self.pairs, 1),):
                check(pairs >= 1 and 4 * pairs <= length and length % 2 == 0, f"{length=} must be even and at least 4 {pairs=}")
                check(weight > 0, "the weights of mix must be above 0")
                check(self.vocabulary > 2 * pairs + 1, f"vocabulary={self.vocabulary} is too small for {pairs=}")

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
    """-> (token_L, label_L, distance_A): the context, and after it each key once in a slot of W + 1 tokens, the rest 0.

    The label v stands on a key's last token; `distance_A` is the octave of how far back `written_N`, its value's place, is.
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
    """The chance of each slot: p_i ~ a i^(a-1)."""
    p = power * np.arange(1, space + 1) ** (power - 1)
    return p / p.sum()


def fill(rng, token_L: np.ndarray, vocabulary: int, key_N: np.ndarray, filler: str) -> None:
    """Replace zeros in place."""
    if filler == "zero":
        return
    free_L = token_L == 0
    noise = rng.integers(vocabulary - (len(key_N) if filler == "safe" else 0), size=free_L.sum())
    if filler == "safe":  # count on past the keys, smallest first
        for key in np.sort(key_N):
            noise += noise >= key
    token_L[free_L] = noise
