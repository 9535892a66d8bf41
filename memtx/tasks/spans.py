"""Questions from the user's files whose answers are spans of a context (SQuAD).

Lines are {"context": "...", "question": "...", "answer": "...", "start": 0} (see memtx.tasks.files). `start` is the first
character of the answer in the context. Lines may lack it, and the answer is then its first occurrence. An answer that is not in
its context is an error. Set `model.output=span`, and use the tokenizer of a BERT.

The model reads the question and the context in one sequence. A context that is too long is cut to a window with the answer.
Training draws another window in each epoch. Exact match and F1 are measured on whole contexts (see memtx.evaluation.spans).

Slices: `context`, the largest power of two up to the number of tokens in the whole context.

Legend: L tokens of an example, n of them of the context.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from memtx.data.framed import Framed, frame
from memtx.data.streams import NOTHING
from memtx.data.tokenizers import Tokenizer
from memtx.errors import UserError, quoted
from memtx.tasks.base import FIRST, LAST, SPLITS, Example, octave
from memtx.tasks.files import FileTask, Rows


@dataclasses.dataclass(frozen=True)
class Question(Example):
    """A question whose answer is a span of a context. framed: both as tokens, with the whole context."""

    question: str = ""
    context: str = ""
    framed: Framed | None = None

    @property
    def asked_A(self) -> np.ndarray:
        """The two ends of the answer."""
        return np.arange(2)


class Spans(FileTask):
    """Questions about contexts."""

    keys = ("context", "question", "answer")
    optional = ("start",)
    spans = True

    @dataclasses.dataclass(frozen=True)
    class Config(FileTask.Config):
        tokens: int = 384  # the maximum number of tokens of a question and a window of its context (0: no limit)

    def __init__(self, config: Config):
        super().__init__(config)
        self.length = min(self.length, config.tokens or self.length)

    @classmethod
    def find_fault(cls, context: str, question: str, answer: str, start: str) -> str:
        """Return the fault in a line, or ""."""
        if not start:
            return "" if answer in context else f"the answer {quoted([answer])} is not in the context"
        if not start.isdecimal():
            return f"start must be the first character of the answer in the context, from 0, not {quoted([start])}"
        there = context[int(start) :].startswith(answer)
        return "" if there else f"the answer {quoted([answer])} is not in the context at character {start}"

    @classmethod
    def build_examples(cls, config: Config, tokenizer: Tokenizer, rows: Rows) -> dict[str, list[Example]]:
        def example(context: str, question: str, answer: str, start: str) -> Question:
            framed = frame(tokenizer, question, context, config.tokens)
            begin = int(start or context.index(answer))
            ends = framed.find(begin, begin + len(answer))
            if ends is None:
                raise UserError(f"the tokenizer {tokenizer.name} gives no tokens for the answer {quoted([answer])}")
            needed = framed.extra + ends[1] - ends[0] + 1
            if config.tokens and needed > config.tokens:
                raise UserError(f"a question and its answer have {needed} tokens: set data.task.tokens={needed} or more")
            label_L = np.full(len(framed.ids_T), NOTHING, np.int32)
            label_L[framed.text] = 0
            label_L[ends[0]] += FIRST
            label_L[ends[1]] += LAST
            slices = {"context": int(octave(framed.length))}
            return Question(
                framed.ids_T,
                label_L,
                slices,
                type_L=framed.type_T,
                answer=answer,
                question=question,
                context=context,
                framed=framed,
            )

        return {split: [example(*row) for row in found] for split, found in rows.items()}

    def draw(self, seed: int, split: str, index: int, stage: int = 0) -> Example:
        drawn = [seed, stage, index] if split == "train" else [SPLITS[split], index]
        return self._cut(super().draw(seed, split, index, stage), drawn)

    def _cut(self, example: Example, seed: list[int]) -> Example:
        """Return the example with a random window of its context that has the answer."""
        assert isinstance(example, Question)
        assert example.framed
        spare, room = len(example.token_L) - self.length, self.length - example.framed.extra
        if spare <= 0:
            return example
        label_n = example.label_L[example.framed.text]
        first, last = (int(np.flatnonzero(label_n & end)[0]) for end in (FIRST, LAST))
        earliest, latest = max(last + 1 - room, 0), min(first, spare)
        start = earliest + int(np.random.PCG64(seed).random_raw()) % (latest - earliest + 1)
        cut = example.framed.cut(start, self.length)
        label_L = np.full(len(cut.ids_T), NOTHING, np.int32)
        label_L[cut.text] = label_n[start : start + room]
        return dataclasses.replace(example, token_L=cut.ids_T, label_L=label_L, type_L=cut.type_T)
