"""Tokenizers by their names in a config, and from a saved file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import tokenizers as hf

from memtx.data.tokenizers.base import SPECIALS, Tokenizer
from memtx.data.tokenizers.files import pretrained
from memtx.data.tokenizers.huggingface import HuggingFace
from memtx.data.tokenizers.sentencepiece import SentencePiece
from memtx.data.tokenizers.words import Words
from memtx.errors import UserError, check_known
from memtx.files.cache import built, root
from memtx.files.hub import find
from memtx.progress import counted


class Texts(Protocol):
    """Texts that a tokenizer can be trained on, such as a corpus or the lines of a task. `fingerprint` is their digest."""

    @property
    def fingerprint(self) -> str: ...

    def documents(self, split: str, /) -> Iterable[tuple[str, str]]:
        """Yield (id, text) of each document of a split."""
        ...


def byte_tokenizer() -> Tokenizer:
    """Return the tokenizer with one token per byte."""
    return Tokenizer("bytes", 256 + SPECIALS)


def load(path: str | Path) -> Tokenizer:
    """Return the tokenizer that `save` wrote. Raises UserError if the file is missing or is not a tokenizer."""
    try:
        stored = json.loads(Path(path).read_text())
        for key, cls in (("words", Words), ("huggingface", HuggingFace), ("sentencepiece", SentencePiece)):
            if key in stored:
                return cls(**stored)
        return Tokenizer(stored["name"], stored["vocab_size"], json.dumps(stored["model"]) if stored["model"] else None)
    except Exception as error:  # `tokenizers` raises bare Exception for a model that it cannot read
        raise UserError(f"cannot read the tokenizer {path}: {error}") from error


def make_tokenizer(name: str, texts: Texts, cache: str | Path) -> Tokenizer:
    """Return the tokenizer `bytes`, `bpe:SIZE` or `pretrained:NAME` (see memtx.files.hub).

    A BPE is trained on the train split of `texts` on first use and kept in `cache`. Raises UserError for other names.
    """
    kind, _, size = name.partition(":")
    check_known(kind, ("bytes", "bpe", "pretrained"), "tokenizer")
    if kind == "pretrained":
        return pretrained(find(size, cache))
    if kind == "bytes":
        if size:
            raise UserError(f"tokenizer {name!r}: bytes takes no size")
        return byte_tokenizer()
    least = 256 + SPECIALS
    if not size.isdecimal() or int(size) < least:
        raise UserError(f"tokenizer {name!r}: give a vocabulary of {least} or more, as in bpe:4096")
    folder = root(cache) / "tokenizers" / f"bpe-{size}-{texts.fingerprint}"
    built(folder, lambda part: _train(name, int(size), texts).save(part / "tokenizer.json"))
    return load(folder / "tokenizer.json")


def _train(name: str, size: int, texts: Texts) -> Tokenizer:
    model = hf.Tokenizer(hf.models.BPE())
    model.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    # The model has no special tokens, so the name of one in a text stays text.
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(vocab_size=size - SPECIALS, initial_alphabet=alphabet, show_progress=False)
    documents = counted(texts.documents("train"), "document", note=f"training {name}")
    model.train_from_iterator((text for _, text in documents), trainer)
    return Tokenizer(name, size, model.to_str())
