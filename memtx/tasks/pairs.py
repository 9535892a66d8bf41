"""Sources and targets from the user's files: an encoder reads the source, a decoder writes the target (translation, summaries).

Lines are {"source": "...", "target": "..."} (see memtx.tasks.files). The tokenizer adds its special tokens to the source. The
decoder reads the start token (T5's <pad>, else `bos`) and the target. The labels are the tokens of the target and the token
that ends a text. `source_tokens` and `target_tokens` cut long texts. By default nothing is cut.

Slices: `source`, the largest power of two up to the number of tokens in the source.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from memtx.data.tokenizers import Tokenizer
from memtx.tasks.base import Example, octave
from memtx.tasks.files import FileTask, Rows


class Pairs(FileTask):
    """Pairs of a source and a target."""

    keys = ("source", "target")

    @dataclasses.dataclass(frozen=True)
    class Config(FileTask.Config):
        source_tokens: int = 0  # the number of tokens used of each source (0: all)
        target_tokens: int = 0  # the number of tokens used of each target, including the one that ends it (0: all)

    def __init__(self, config: Config):
        super().__init__(config)
        self.source = max(len(example.source_S) for found in self.examples.values() for example in found)

    @classmethod
    def build_examples(cls, config: Config, tokenizer: Tokenizer, rows: Rows) -> dict[str, list[Example]]:
        def example(source: str, target: str) -> Example:
            source_S = tokenizer.cut(tokenizer.frame(source)[0], config.source_tokens)
            label_L = np.append(tokenizer.encode(target), [tokenizer.ending] if tokenizer.eos else []).astype(np.int32)
            label_L = tokenizer.cut(label_L, config.target_tokens)
            token_L = np.append(tokenizer.start, label_L[:-1]).astype(np.int32)
            return Example(token_L, label_L, {"source": int(octave(len(source_S)))}, source_S=source_S, answer=target)

        return {split: [example(*row) for row in found] for split, found in rows.items()}
