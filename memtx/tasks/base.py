"""The contract of tasks: synthetic examples that ask for something said before.

An example is a sequence of tokens with, where something is asked, the label that the model should give at that very place:
the next token in most tasks, the value that belongs to the key just read in MQAR. It is a function of (seed, split, stage,
index), so a run goes on with exactly the examples that it would have seen.

Legend: L tokens of an example, A places where something is asked, N tokens of a sequence that is cut into inputs and labels.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from memtx.data.tokenizers import Tokenizer, byte_tokenizer, numbers
from memtx.errors import UserError
from memtx.files.cache import digest

NOTHING = -1  # the label of a place where nothing is asked
SPLITS = {"train": 0, "valid": 1, "test": 2}  # each draws its own examples


@dataclasses.dataclass(frozen=True)
class Example:
    """One example.

    token_L   int32
    label_L   int32, NOTHING where nothing is asked
    slices    what to tell results apart by: a number or a word, of the whole example or of each of its A labels
    scored_A  bool, the labels that accuracy counts; None: all. Loss counts all
    source_S  int32, what an encoder reads before the first token, if anything
    answer    the text that the labels are, as it should be written
    """

    token_L: np.ndarray
    label_L: np.ndarray
    slices: Mapping[str, Any]
    scored_A: np.ndarray | None = None
    source_S: np.ndarray = dataclasses.field(default_factory=partial(np.zeros, 0, np.int32))
    answer: str = ""


class Task(abc.ABC):
    """A generator of examples, built from its settings.

    tokenizer  what the tokens mean
    length     the most tokens that an example has
    block      examples are fed so many tokens at a time, whatever the segment; 0: as many as a segment holds
    classes    how many classes there are, if a label is the class of what was read; 0: labels are tokens
    names      the names of those classes, in order
    source     the most tokens that an encoder has to read before an example; 0: it has nothing to read
    """

    Config: ClassVar[type]
    block: int = 0
    classes: int = 0
    names: Sequence[str] = ()
    source: int = 0
    tokenizer: Tokenizer
    length: int

    def __init__(self, config):
        self.config = config

    @abc.abstractmethod
    def example(self, rng: np.random.Generator) -> Example:
        """Draws one example."""

    def draw(self, seed: int, split: str, index: int, stage: int = 0) -> Example:
        """Example `index` of a split: always the same one."""
        example = self.example(np.random.Generator(np.random.PCG64([seed, SPLITS[split], stage, index])))
        if len(example.token_L) > self.length:
            raise ValueError(f"{type(self).__name__} drew {len(example.token_L)} tokens, more than its length {self.length}")
        return example

    @property
    def fingerprint(self) -> str:
        """Of what it draws: the settings, and one example, so that another NumPy's random numbers would be noticed."""
        first = self.draw(0, "train", 0)
        return digest(type(self).__name__, dataclasses.asdict(self.config), first.token_L.tolist(), first.label_L.tolist())


class Numbered(Task):
    """A task whose tokens are the numbers below `config.vocabulary`, and whose examples are `config.length` long."""

    def __init__(self, config):
        super().__init__(config)
        self.length = config.length
        self.tokenizer = numbers(config.vocabulary)


class TextTask(Task):
    """A task of text, one token per byte; examples begin with `bos`."""

    tokenizer = byte_tokenizer()

    @property
    def length(self) -> int:
        return self.config.length

    def asked(self, prompt: str, answer: str, **slices) -> Example:
        """The example that asks for every byte of `answer` after `prompt`."""
        token_N = self.tokenizer.encode(prompt + answer)
        start = len(self.tokenizer.encode(prompt))
        token_L = np.concatenate([[self.tokenizer.bos], token_N[:-1]]).astype(np.int32)
        return Example(token_L, np.where(np.arange(len(token_N)) >= start, token_N, NOTHING).astype(np.int32), slices)

    def room(self, text: str) -> int:
        """Bytes left beside `text`. UserError if there are none."""
        left = self.length - len(text.encode())
        if left < 0:
            raise UserError(
                f"data.task.length={self.length} is too short: this example needs {len(text.encode())} bytes or more"
            )
        return left


def next_token(token_N: np.ndarray, asked_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A sequence as (token_L, label_L), L = N - 1: each input is labelled with the token after it, where that one is asked."""
    return token_N[:-1].astype(np.int32), np.where(asked_N[1:], token_N[1:], NOTHING).astype(np.int32)


def octave(distance) -> np.ndarray:
    """The power of two at or below each distance: what distances are told apart by."""
    return 2 ** np.floor(np.log2(np.maximum(distance, 1))).astype(int)


def tenth(fraction: float) -> int:
    """A depth from 0 to 1 as 0, 10, ..., 90 percent."""
    return 10 * min(int(10 * fraction), 9)


def check(condition: bool, message: str) -> None:
    """UserError with a message about settings of the task, unless the condition holds."""
    if not condition:
        raise UserError(message)
