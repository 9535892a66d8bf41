"""Turns from the user's files: a decoder-only model reads a source, writes its target, reads the next source, and so on.

Lines are {"document": "...", "source": "...", "target": "..."} (see memtx.tasks.files). Consecutive lines with the same
document are one example, in their order, so a turn can use the sources and targets before it. A document may be a text that is
translated sentence by sentence. It may also be a conversation of several turns, on which a chat model is fine-tuned with the
markup of its messages in `before` and `between`. One file is split by document.

The tokens of a turn are those of before + source + between, those of the target, and the token that ends a text. Labels are the
tokens of the target and this last token. A trained model continues in the same way, with the state of the turns before:

    first = memtx.complete(lm, params, tokenizer, [source + "\\n"])
    second = memtx.complete(lm, params, tokenizer, [next_source + "\\n"], state=first.state)

Slices: `turn`, the largest power of two up to the number of the turn, counted from 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from memtx.data.tokenizers import Tokenizer
from memtx.tasks.base import Example, next_token, octave
from memtx.tasks.files import FileTask, Rows

Turn = tuple[np.ndarray, np.ndarray]  # the tokens before its target, and those of the target with the one that ends it


class Turns(FileTask):
    """Documents, or conversations, of several sources and targets."""

    keys = ("document", "source", "target")
    texts = slice(1, None)

    @dataclasses.dataclass(frozen=True)
    class Config(FileTask.Config):
        before: str = ""  # the text before each source
        between: str = "\n"  # the text between a source and its target
        specials: bool = False  # whether special tokens that a prompt spells out are read as such, as in memtx.complete
        turns: int = 0  # the most turns of an example: longer documents are cut into parts (0: never)
        tokens: int = 0  # the most tokens of an example: longer documents are cut between turns (0: never)

    @classmethod
    def build_examples(cls, config: Config, tokenizer: Tokenizer, rows: Rows) -> dict[str, list[Example]]:
        def documents(found: Sequence[tuple[str, ...]]) -> Iterator[list[Turn]]:
            for _, lines in groupby(found, lambda row: row[0]):
                yield from _parts(config, [_encode(config, tokenizer, *line[1:]) for line in lines])

        def example(turns: list[Turn]) -> Example:
            start = tokenizer.frame("")[0] if not config.specials else np.zeros(0, np.int32)
            return _join(start, turns)

        return {split: [example(turns) for turns in documents(found)] for split, found in rows.items()}


def _encode(config: Turns.Config, tokenizer: Tokenizer, source: str, target: str) -> Turn:
    """Return the tokens before the target, and those of the target with the one that ends it."""
    prompt_T = tokenizer.encode(config.before + source + config.between, specials=config.specials)
    return prompt_T, np.append(tokenizer.encode(target), [tokenizer.ending] if tokenizer.eos else []).astype(np.int32)


def _parts(config: Turns.Config, turns: Sequence[Turn]) -> Iterator[list[Turn]]:
    """Yield the turns of a document in parts that have at most `turns` turns and, unless a turn is longer, `tokens` tokens."""
    part: list[Turn] = []
    for turn in turns:
        tokens = sum(len(ids) for one in [*part, turn] for ids in one)
        if part and (len(part) == config.turns or 0 < config.tokens < tokens):
            yield part
            part = []
        part.append(turn)
    yield part


def _join(start_T: np.ndarray, turns: Sequence[Turn]) -> Example:
    """Return the example of the turns of a document. start_T: the tokens that start a document."""
    parts = [(start_T, 0)]  # tokens, and the number of their turn if they are of a target, or else 0
    for number, (prompt_T, target_T) in enumerate(turns, 1):
        parts += [(prompt_T, 0), (target_T, number)]
    token_N = np.concatenate([ids for ids, _ in parts])
    number_N = np.concatenate([np.full(len(ids), number) for ids, number in parts])
    token_L, label_L = next_token(token_N, number_N > 0)
    return Example(token_L, label_L, {"turn": octave(number_N[1:][number_N[1:] > 0])})
