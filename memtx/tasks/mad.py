"""MAD: six small tasks that separate architectures (Poli et al. 2024, 2403.17844).

recall       k v k v ...  a random map per example. The label of each k seen before is its v
noisy        the same, with pairs of noise tokens between
fuzzy        the same, with keys and values of one to three tokens
copying      tokens with blanks between, the copy mark, blanks. The labels of the last blanks are the tokens in order
compression  tokens, the compression mark, blanks. The labels of the blanks are all tokens again
memorization k ? k ? ...  a map that is the same in all examples. The label of "?" is the v, which no example contains
             (key_tokens: keys of several tokens, which MAD does not have)

Deviations: recall labels only keys seen before, even in training. The reference trains on every next token and tests on keys
seen before. In compression the model predicts the tokens, but the reference decodes the activation at the mark with an MLP. A
model that sees its inputs (attention) can look back, so use compression only to compare memories of fixed size. The published
sets are finite: set `data.examples=12800`, or 256 for memorization.
Source: athms/mad-lab.  Legend: V vocabulary, L tokens, N tokens of the whole sequence.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from memtx.data.streams import NOTHING
from memtx.data.tokenizers import numbers
from memtx.errors import check_known
from memtx.tasks.base import Example, Task, check, next_token, octave

PUBLISHED = {  # vocabulary, length
    "recall": (16, 128),
    "noisy": (32, 128),
    "fuzzy": (16, 128),
    "copying": (16, 256),
    "compression": (16, 32),
    "memorization": (256, 32),
}
MOTIF = 3  # the largest number of tokens of a fuzzy key or value


class Mad(Task):
    """The six tasks of MAD. `kind` selects one."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        kind: str = "recall"
        vocabulary: int = 0  # 0: the published vocabulary
        length: int = 0  # 0: the published length
        noise_vocabulary: int = 16  # of noisy: the number of noise tokens, a part of the vocabulary
        noise: float = 0.2  # of noisy: the share of pairs that are noise
        copies: int = 16  # of copying
        map_seed: int = 12345  # of memorization
        key_tokens: int = 1  # of memorization: tokens per key (an embedding can store facts only about single tokens)

        def __post_init__(self):
            check_known(self.kind, PUBLISHED, "kind")
            check(0 <= self.noise < 1, "noise must be in [0, 1)")
            v, length = Mad.sizes(self)
            check(v - (self.noise_vocabulary if self.kind == "noisy" else 0) >= 6, f"vocabulary={v} is too small")
            check(self.key_tokens >= 1, "key_tokens must be at least 1")
            least = {"copying": 2 * self.copies + 1, "memorization": max(4, self.key_tokens + 1)}.get(self.kind, 4)
            check(length >= least, f"length={length} is too short")

    def __init__(self, config: Config):
        super().__init__(config)
        self.vocabulary, size = self.sizes(config)
        self.length = 2 * size if config.kind == "compression" else size
        self.tokenizer = numbers(self.vocabulary)

    @staticmethod
    def sizes(config: Config) -> tuple[int, int]:
        """Return (vocabulary, length), with the published sizes in place of 0."""
        vocabulary, length = PUBLISHED[config.kind]
        return config.vocabulary or vocabulary, config.length or length

    def example(self, rng):
        kind = self.config.kind
        token_L, label_L, slices = getattr(self, "_recall" if kind in ("noisy", "fuzzy") else f"_{kind}")(rng)
        return Example(token_L.astype(np.int32), label_L.astype(np.int32), {"kind": kind} | slices)

    def _recall(self, rng):
        fuzzy, noisy = self.config.kind == "fuzzy", self.config.kind == "noisy"
        noise_words = self.config.noise_vocabulary if noisy else 0
        words = self.vocabulary - noise_words
        pairs, sequence, asked, distance = {}, [], [], []

        def motif(low: int, high: int) -> tuple[int, ...]:
            size = int(rng.integers(1, MOTIF + 1)) if fuzzy else 1
            return tuple((low + rng.choice(high - low, min(size, high - low), replace=False)).tolist())

        while len(sequence) <= self.length:
            if noisy and rng.random() < self.config.noise:
                sequence += (words + rng.integers(noise_words, size=2)).tolist()
                asked += [False, False]
                continue
            key = motif(0, words // 2)
            seen = key in pairs
            value, at = pairs.get(key) or (motif(words // 2, words), 0)
            if seen:
                distance += [len(sequence) + len(key) - at] * len(value)
            pairs[key] = (value, len(sequence) + len(key))
            sequence += [*key, *value]
            asked += [False] * len(key) + [seen] * len(value)
        token_L, label_L = next_token(np.asarray(sequence)[: self.length + 1], np.asarray(asked)[: self.length + 1])
        return token_L, label_L, {"distance": octave(np.asarray(distance, int)[: (label_L >= 0).sum()])}

    def _copying(self, rng):
        copies, blank, mark = self.config.copies, self.vocabulary - 2, self.vocabulary - 1
        items = rng.integers(blank, size=copies)
        token_L = np.full(self.length, blank)
        spread = self.length - copies - 1
        token_L[np.sort(rng.choice(spread, copies, replace=False))] = items
        token_L[spread] = mark
        label_L = np.full(self.length, NOTHING)
        label_L[spread + 1 :] = items
        return token_L, label_L, {"items": copies}

    def _compression(self, rng):
        size, blank, mark = self.length // 2, self.vocabulary - 2, self.vocabulary - 1
        items = rng.integers(blank, size=size - 1)
        token_L = np.concatenate([items, [mark], np.full(size - 1, blank)])
        label_L = np.concatenate([np.full(size, NOTHING), items])
        return token_L, label_L, {"items": size - 1}

    def _memorization(self, rng):
        size, blank = self.config.key_tokens, self.vocabulary - 1
        keys, count = blank // 2, self.length // (size + 1)
        key = rng.integers(keys, size=(count, size))
        token_L, label_L = np.full(self.length, blank), np.full(self.length, NOTHING)
        token_L[: count * (size + 1)].reshape(count, size + 1)[:, :-1] = key
        label_L[size : count * (size + 1) : size + 1] = self._map[tuple(key.T)]
        return token_L, label_L, {"facts": keys**size}

    @functools.cached_property
    def _map(self) -> np.ndarray:
        """Draw the value of each key. Values of single-token keys are distinct. Values of longer keys may repeat."""
        rng = np.random.Generator(np.random.PCG64(self.config.map_seed))
        keys = (self.vocabulary - 1) // 2
        values = self.vocabulary - 1 - keys
        if self.config.key_tokens == 1:
            return keys + rng.permutation(values)[:keys]
        return keys + rng.integers(values, size=(keys,) * self.config.key_tokens)
