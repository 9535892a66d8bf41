"""Sources and targets of one's own: an encoder reads the one, a decoder writes the other (translation, summaries, answers).

Lines are {"source": "...", "target": "..."}; memtx.tasks.files says where. The source is framed as the tokenizer frames
texts. The decoder reads the token that begins (T5's <pad>, else `bos`) and the target; each token of it and the one that ends
a text are asked for. Nothing is cut unless `source_tokens` or `target_tokens` says so.

Slices: `source`, the power of two at or below the source's tokens.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from memtx.data.tokenizers import Tokenizer
from memtx.tasks.base import Example, octave
from memtx.tasks.files import FileTask, Rows


class Pairs(FileTask):
    keys = ("source", "target")

    @dataclasses.dataclass(frozen=True)
    class Config(FileTask.Config):
        source_tokens: int = 0  # the first so many of each source; 0: all
        target_tokens: int = 0  # the first so many of each target, the end included; 0: all

    def __init__(self, config: Config):
        super().__init__(config)
        self.source = max(len(example.source_S) for found in self.examples.values() for example in found)

    @classmethod
    def made(cls, config: Config, tokenizer: Tokenizer, rows: Rows) -> dict[str, list[Example]]:
        def example(source: str, target: str) -> Example:
            source_S = tokenizer.cut(tokenizer.frame(source)[0], config.source_tokens)
            label_L = np.append(tokenizer.encode(target), [tokenizer.ending] if tokenizer.eos else []).astype(np.int32)
            label_L = tokenizer.cut(label_L, config.target_tokens)
            token_L = np.append(tokenizer.start, label_L[:-1]).astype(np.int32)
            return Example(token_L, label_L, {"source": int(octave(len(source_S)))}, source_S=source_S, answer=target)

        return {split: [example(*row) for row in found] for split, found in rows.items()}
