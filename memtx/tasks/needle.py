"""A needle at a given distance: one key and its value, then noise, then the key again.

    . . . . K k v . . . . . . . . . . K k     the label on the last k is v

The value is exactly d tokens before the query's last token, where d is one of `distances`. An example starts with `before`
tokens of noise. Choose distances from below the model's window to far beyond it: accuracy by distance then shows the memory's
reach. Noise tokens are neither keys nor values, so chance is 1 / value_kinds.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from memtx.data.streams import NOTHING
from memtx.data.tokenizers import Words
from memtx.tasks.base import Example, Task, check


class Needle(Task):
    """A key with its value in noise, and the key again."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        distances: tuple = (16, 32, 64, 128, 256, 512)
        key_kinds: int = 16
        value_kinds: int = 16
        noise_kinds: int = 16
        before: int = 16

        def __post_init__(self):
            check(len(self.distances) > 0 and min(self.distances) >= 3, "distances must be 3 or more")
            check(
                min(self.key_kinds, self.value_kinds, self.noise_kinds) >= 1,
                "key_kinds, value_kinds and noise_kinds must be at least 1",
            )
            check(self.before >= 0, "before must be 0 or more")

    def __init__(self, config: Config):
        super().__init__(config)
        kinds = (("k", config.key_kinds), ("v", config.value_kinds), (".", config.noise_kinds))
        self.tokenizer = Words("needle", [f"{kind}{i}" for kind, count in kinds for i in range(count)] + ["K"])
        self.length = config.before + max(config.distances) + 3

    def example(self, rng):
        c = self.config
        distance = int(rng.choice(np.asarray(c.distances)))
        key, value, mark = rng.integers(c.key_kinds), c.key_kinds + rng.integers(c.value_kinds), self.tokenizer.vocab_size - 1
        ahead, between = (c.key_kinds + c.value_kinds + rng.integers(c.noise_kinds, size=n) for n in (c.before, distance - 2))
        token_L = np.concatenate([ahead, [mark, key, value], between, [mark, key]]).astype(np.int32)
        label_L = np.full(len(token_L), NOTHING, np.int32)
        label_L[-1] = value
        return Example(token_L, label_L, {"distance": distance})
