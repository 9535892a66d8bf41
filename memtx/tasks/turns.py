"""Turns from the user's files: a decoder-only model reads a source, writes its target, reads the next source, and so on.

Lines are {"document": "...", "source": "...", "target": "..."} (see memtx.tasks.files). Consecutive lines with the same
document are one example, in their order, so a turn can use the sources and targets before it. A document may be a text that is
translated sentence by sentence. It may also be a conversation of several turns, on which a chat model is fine-tuned. Then
`before`, `between` and `specials` have the markup of its messages. For SmolLM2 they are "<|im_start|>user\\n",
"<|im_end|>\\n<|im_start|>assistant\\n" and True. One file is split by document.

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


@dataclasses.dataclass(frozen=True)
class _Turn:
    """The prompt of a turn, its tokens within a document, and those of the target with the token that ends it."""

    prompt: str
    prompt_T: np.ndarray
    target_T: np.ndarray

    def __len__(self) -> int:
        return len(self.prompt_T) + len(self.target_T)


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
        def turn(document: str, source: str, target: str) -> _Turn:
            prompt = config.before + source + config.between
            target_T = np.append(tokenizer.encode(target), [tokenizer.ending] if tokenizer.eos else [])
            return _Turn(prompt, tokenizer.encode(prompt, specials=config.specials), target_T)

        def example(turns: Sequence[_Turn]) -> Example:
            first = turns[0] if config.specials else dataclasses.replace(turns[0], prompt_T=tokenizer.frame(turns[0].prompt)[0])
            return _build_example([first, *turns[1:]])

        documents = {split: groupby(found, lambda row: row[0]) for split, found in rows.items()}
        return {
            split: [example(part) for _, lines in found for part in _parts(config, [turn(*line) for line in lines])]
            for split, found in documents.items()
        }


def _parts(config: Turns.Config, turns: Sequence[_Turn]) -> Iterator[list[_Turn]]:
    """Yield the turns of a document in parts that have at most `turns` turns and, unless a turn is longer, `tokens` tokens."""
    part: list[_Turn] = []
    for turn in turns:
        if part and (len(part) == config.turns or 0 < config.tokens < sum(map(len, [*part, turn]))):
            yield part
            part = []
        part.append(turn)
    yield part


def _build_example(turns: Sequence[_Turn]) -> Example:
    """Return the example of the turns of a document."""
    token_N = np.concatenate([ids for turn in turns for ids in (turn.prompt_T, turn.target_T)])
    lengths = [len(ids) for turn in turns for ids in (turn.prompt_T, turn.target_T)]
    number_N = np.repeat([n for number in range(len(turns)) for n in (0, number + 1)], lengths)  # 0: not of a target
    token_L, label_L = next_token(token_N, number_N > 0)
    return Example(token_L, label_L, {"turn": octave(number_N[1:][number_N[1:] > 0])})
