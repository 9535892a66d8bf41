"""Texts for sources: translations, summaries and answers.

    t5 = memtx.load("t5-small")
    memtx.write(t5, ["summarize: ..."]).texts

The encoder of an encoder-decoder reads a source. Without an encoder, a model with a chat template reads it as a user's message.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from memtx.data.sentences import pack
from memtx.errors import UserError, check_known
from memtx.generate import GREEDY, chat, complete_in_batches
from memtx.generate.text import WRITTEN, seeds_of
from memtx.memory import MEMORIES
from memtx.models.lm import LM
from memtx.runs.load import Loaded

LONG = ("error", "cut", "split")


@dataclasses.dataclass(frozen=True)
class Written:
    """The text for each source, and the indices of the sources and texts that are not whole.

    cut         sources whose end was not read
    split       sources that were read in parts. The texts of the parts are joined by spaces
    unfinished  texts that reached max_tokens, so their end may be missing
    """

    texts: list[str]
    cut: list[int]
    split: list[int]
    unfinished: list[int]


def write(
    loaded: Loaded,
    sources: Sequence[str],
    *,
    prefix: str = "",
    long: str = "error",
    batch: int = 8,
    progress: Callable[[int, int], object] | None = None,
    **options,
) -> Written:
    """Write a text for each source. It is the likeliest token by token, unless `sampling` or `beams` is given.

    prefix: a text before each source, such as "summarize: ". long: how to read a source that the model cannot read at once.
    "error" raises UserError, "cut" leaves out its end, and "split" reads it in parts of whole sentences. batch: the maximum
    number of sources in a call. It changes a text only if rounding decides between two tokens of nearly the same probability.
    progress: called after each call with the numbers of texts written and of all texts, where a part counts as a text.
    options: those of `memtx.complete` except `state`. By default a run writes at most as many tokens as a target in training.
    Source i, and each of its parts, draws with the seed `seed + i`, or `seed[i]` if seed is a list.

    Raises UserError if the model has neither an encoder nor a chat template, or if the prefix leaves no room for a source.
    """
    check_known(long, LONG, "way to read long sources")
    if isinstance(sources, str) or batch < 1:
        raise UserError("sources must be a list of strings, and batch at least 1")
    if options.get("max_tokens") is None:
        options["max_tokens"] = _most_written(loaded)
    reader = _reader(loaded)(loaded, prefix, options["max_tokens"] or WRITTEN)
    if long == "error":
        reader.check(sources)
    parts = [pack(source, reader.fits) or [source] if long == "split" else [source] for source in sources]
    owner = [i for i, row in enumerate(parts) for _ in row]
    inputs = reader.inputs([part for row in parts for part in row])
    options = {"sampling": GREEDY, "batch": batch, "progress": progress} | inputs | options
    seeds = seeds_of(options.get("seed", 0), len(sources), "sources")
    options["seed"] = [seeds[i] for i in owner]
    done = complete_in_batches(loaded.lm, loaded.params, loaded.tokenizer, **options)
    texts: list[list[str]] = [[] for _ in sources]
    for i, text in zip(owner, done.texts, strict=True):
        texts[i].append(text)
    return Written(
        [row[0] if len(row) == 1 else " ".join(text.strip() for text in row) for row in texts],
        cut=[i for i, row in enumerate(parts) if not all(map(reader.fits, row))],
        split=[i for i, row in enumerate(parts) if len(row) > 1],
        unfinished=sorted({i for i, ended in zip(owner, done.ended, strict=True) if not ended}),
    )


def context_of(lm: LM) -> int | None:
    """Return the number of tokens that attention of a model keeps. None if it has no attention with such a limit.

    If memories differ in it, this is the largest.
    """
    kept = [getattr(c, size) for name, c in lm.model.memory.items() if (size := MEMORIES[name].context)]
    return max(kept, default=None)


def _most_written(loaded: Loaded) -> int | None:
    """Return how many tokens a run with an encoder writes: those of a target in training. None for other models."""
    trained = loaded.step and loaded.lm.source_capacity
    return loaded.config.train.segments * loaded.config.data.segment if trained else None


def _reader(loaded: Loaded) -> type[_Reader]:
    """Return the way in which a model reads sources. Raises UserError if it cannot read any."""
    loaded.lm.check_next_token()
    if loaded.lm.source_capacity:
        return _Encoded
    if loaded.tokenizer.chat_template:
        return _Message
    raise UserError(
        "this model has no encoder that reads a source, and no chat template; give a T5, a run of configs/seq2seq.py or a chat "
        "model (memtx generate continues a text with any model)"
    )


class _Reader(abc.ABC):
    """Sources as a model reads them. `limit` is the maximum number of tokens, or None."""

    limit: int | None

    def __init__(self, loaded: Loaded, prefix: str, max_tokens: int):
        self.lm, self.tokenizer, self.trained = loaded.lm, loaded.tokenizer, loaded.step > 0
        self.prefix, self.max_tokens = prefix, max_tokens
        self.limit = self.find_limit()
        if self.limit is not None and (used := self.count("")) >= self.limit:
            raise UserError(
                f"there is no room for a source: the model reads at most {max(self.limit, 0)} tokens, and {used} of them are "
                "in the prefix and the format; give a shorter prefix, fewer max_tokens or more context"
            )

    @abc.abstractmethod
    def find_limit(self) -> int | None:
        """Return the maximum number of tokens of a source, or None."""

    @abc.abstractmethod
    def needed_context(self, size: int) -> int | None:
        """Return the context with which a pretrained model can read `size` tokens of a source. None if none suffices."""

    @abc.abstractmethod
    def count(self, text: str) -> int:
        """Return the number of tokens of a source, with its prefix."""

    @abc.abstractmethod
    def inputs(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return the arguments of `complete` for sources. The ends of those that do not fit are left out."""

    def fits(self, text: str) -> bool:
        """Return whether the model can read a source at once."""
        return self.limit is None or self.count(text) <= self.limit

    def check(self, sources: Sequence[str]) -> None:
        """Raise a UserError for the first source that does not fit."""
        for number, source in enumerate(sources, 1):
            if not self.fits(source):
                size = self.count(source)
                context = None if self.trained else self.needed_context(size)
                more = f", or load the model with context={context} or more" if context else ""
                raise UserError(
                    f"source {number} has {size} tokens, but the model has room for {self.limit}: set long='cut' or "
                    f"long='split'{more}"
                )


class _Encoded(_Reader):
    """Sources for an encoder."""

    def find_limit(self) -> int | None:
        return self.lm.source_capacity

    def needed_context(self, size: int) -> int | None:
        return size

    def count(self, text: str) -> int:
        return len(self.tokenizer.frame(self.prefix + text)[0])

    def inputs(self, texts: Sequence[str]) -> dict[str, Any]:
        framed = [self.tokenizer.frame(self.prefix + text)[0] for text in texts]
        return {"prompts": [""] * len(texts), "source": [self.tokenizer.cut(ids_S, self.limit or 0) for ids_S in framed]}


class _Message(_Reader):
    """Sources as messages to a chat model, which must be able to see the whole message while it writes.

    A run has no limit, because it may have a memory for the rest.
    """

    def find_limit(self) -> int | None:
        context = None if self.trained else context_of(self.lm)
        return None if context is None else context - self.max_tokens

    def needed_context(self, size: int) -> int | None:
        needed, model = size + self.max_tokens, self.lm.model
        grows = "full" in model.memory  # the context of `memtx.load` does not change a window
        return needed if grows and needed <= model.max_position else None

    def count(self, text: str) -> int:
        return len(self.tokenizer.encode(self._prompt(text), specials=True))

    def inputs(self, texts: Sequence[str]) -> dict[str, Any]:
        return {"prompts": [self._prompt(self._cut(text)) for text in texts], "specials": True}

    def _prompt(self, text: str) -> str:
        content = chat.without_specials(self.tokenizer, self.prefix + text)
        return chat.render(self.tokenizer, [{"role": "user", "content": content}])

    def _cut(self, text: str) -> str:
        ids = self.tokenizer.encode(text)
        while self.limit is not None and len(ids) and (more := self.count(text) - self.limit) > 0:
            ids = ids[:-more]
            text = self.tokenizer.decode(ids).strip("\ufffd ")
        return text
