"""The contract of tasks: examples that ask for something that came earlier.

An example is a sequence of tokens. At some positions it has a label, which the model should predict at that same position.
In most tasks the label is the next token. In MQAR it is the value of the key just read. An example is a function of
(seed, split, stage, index), so a resumed run sees the same examples as an uninterrupted one.

Legend: L tokens of an example, A labels, N tokens of a sequence that is split into inputs and labels.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from memtx.data.streams import NOTHING
from memtx.data.tokenizers import Tokenizer, byte_tokenizer, numbers
from memtx.errors import UserError
from memtx.files.cache import digest

FIRST, LAST = 1, 2  # labels of the ends of a span. A token that is both has their sum, and other tokens of the text have 0
SPLITS = {"train": 0, "valid": 1, "test": 2}  # the number seeds a split's examples


@dataclasses.dataclass(frozen=True)
class Example:
    """One example.

    token_L   int32 tokens
    label_L   int32 labels, NOTHING at positions without one
    slices    properties by which results are grouped: a number or a word, one per example or one per label
    scored_A  bool, the labels that accuracy counts (None: all). The loss counts all labels
    source_S  int32 tokens that an encoder reads before the first token. There may be none
    type_L    int32 types of the tokens, for a model with token types. There may be none
    answer    the labels as text, which generated text is compared with
    """

    token_L: np.ndarray
    label_L: np.ndarray
    slices: Mapping[str, Any]
    scored_A: np.ndarray | None = None
    source_S: np.ndarray = dataclasses.field(default_factory=partial(np.zeros, 0, np.int32))
    type_L: np.ndarray = dataclasses.field(default_factory=partial(np.zeros, 0, np.int32))
    answer: str = ""

    @property
    def asked_A(self) -> np.ndarray:
        """The positions of the labels."""
        return np.flatnonzero(self.label_L >= 0)


class Task(abc.ABC):
    """A generator of examples, built from its settings.

    tokenizer  converts between tokens and text
    length     the largest number of tokens of an example
    block      the number of tokens per call, at most a segment (0: a whole segment)
    classes    the number of classes if labels are classes (0: labels are tokens)
    names      the names of those classes, in order
    source     the largest number of tokens of an encoder's source (0: the task has no source)
    spans      whether labels mark the first and the last token of an answer. Examples then have token types
    """

    Config: ClassVar[type]
    block: int = 0
    classes: int = 0
    names: Sequence[str] = ()
    source: int = 0
    spans: bool = False
    tokenizer: Tokenizer
    length: int

    def __init__(self, config):
        self.config = config

    @abc.abstractmethod
    def example(self, rng: np.random.Generator) -> Example:
        """Draw one example."""

    def draw(self, seed: int, split: str, index: int, stage: int = 0) -> Example:
        """Return example `index` of a split: the same arguments give the same example."""
        example = self.example(np.random.Generator(np.random.PCG64([seed, SPLITS[split], stage, index])))
        if len(example.token_L) > self.length:
            raise ValueError(f"{type(self).__name__} drew {len(example.token_L)} tokens, more than its length {self.length}")
        return example

    @property
    def fingerprint(self) -> str:
        """A digest of the settings and one example. The example detects NumPy versions that draw different random numbers."""
        first = self.draw(0, "train", 0)
        return digest(type(self).__name__, dataclasses.asdict(self.config), first.token_L.tolist(), first.label_L.tolist())


class Numbered(Task):
    """A task whose tokens are numbers below `config.vocabulary`. Its examples have `config.length` tokens."""

    def __init__(self, config):
        super().__init__(config)
        self.length = config.length
        self.tokenizer = numbers(config.vocabulary)


class TextTask(Task):
    """A task of text with one token per byte. Examples start with `bos`."""

    tokenizer = byte_tokenizer()

    @property
    def length(self) -> int:
        """The number of bytes of an example."""
        return self.config.length

    def build_example(self, prompt: str, answer: str, **slices) -> Example:
        """Return the example of `prompt` and `answer` in which each byte of `answer` is a label."""
        token_N = self.tokenizer.encode(prompt + answer)
        start = len(self.tokenizer.encode(prompt))
        token_L = np.concatenate([[self.tokenizer.bos], token_N[:-1]]).astype(np.int32)
        return Example(token_L, np.where(np.arange(len(token_N)) >= start, token_N, NOTHING).astype(np.int32), slices)

    def room(self, text: str) -> int:
        """Return how many of `length` bytes remain after `text`. Raises UserError if `text` is longer than `length`."""
        left = self.length - len(text.encode())
        if left < 0:
            raise UserError(
                f"data.task.length={self.length} is too short: this example needs at least {len(text.encode())} bytes"
            )
        return left


def next_token(token_N: np.ndarray, asked_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split a sequence into (token_L, label_L), L = N - 1. The label is the next token if `asked_N` is true there."""
    return token_N[:-1].astype(np.int32), np.where(asked_N[1:], token_N[1:], NOTHING).astype(np.int32)


def octave(distance) -> np.ndarray:
    """Return the largest power of two that is at most each distance. Results are grouped by it."""
    return 2 ** np.floor(np.log2(np.maximum(distance, 1))).astype(int)


def tenth(fraction: float) -> int:
    """Round a depth from 0 to 1 down to 0, 10, ..., 90 percent."""
    return 10 * min(int(10 * fraction), 9)


def check(condition: bool, message: str) -> None:
    """Raise UserError with `message` about the settings of a task unless the condition is true."""
    if not condition:
        raise UserError(message)
