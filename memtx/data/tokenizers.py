"""Tokenizers: text to token ids and back, with the bytes that each token stands for.

`bytes` has one token per byte; `bpe:SIZE` is a byte-level BPE trained on a corpus's train split by Hugging Face's `tokenizers`.
Both end with SPECIALS ids that no text ever gives: the first is `bos`, which separates documents; the others are free to use.
Tasks of symbols have `Words`: one token per word.

Legend: V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import tokenizers as hf

from memtx.data.cache import built, digest, root
from memtx.data.corpora import Corpus
from memtx.errors import UserError, check_known

SPECIALS = 8


class Tokenizer:
    """Token ids `0 ... vocab_size - 1`; `name` is what the config calls it, `bos` the token between documents.

    model_json: a byte-level model of `tokenizers`, or None for one token per byte.
    """

    def __init__(self, name: str, vocab_size: int, model_json: str | None = None):
        self.name = name
        self.vocab_size = vocab_size
        self.bos = vocab_size - SPECIALS
        self._model_json = model_json
        self._model = hf.Tokenizer.from_str(model_json) if model_json else None

    def encode(self, text: str) -> np.ndarray:
        """int32 ids of a text, without `bos`; what UTF-8 cannot hold (a lone surrogate) becomes "?"."""
        content = text.encode("utf-8", errors="replace")
        if self._model is None:
            return np.frombuffer(content, np.uint8).astype(np.int32)
        return np.asarray(self._model.encode(content.decode(), add_special_tokens=False).ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; specials are dropped, and bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.pieces[int(id)] for id in ids).decode("utf-8", errors="replace")

    @cached_property
    def bytes_V(self) -> np.ndarray:
        """int32, how many bytes of UTF-8 each token stands for; 0 for specials. Over a text's ids they sum to its length."""
        return np.asarray([len(piece) for piece in self.pieces], np.int32)

    @cached_property
    def fingerprint(self) -> str:
        return digest(self._stored())

    @cached_property
    def pieces(self) -> list[bytes]:
        pieces = [b""] * self.vocab_size
        if self._model is None:
            pieces[:256] = [bytes([value]) for value in range(256)]
        else:
            byte_of = _byte_of_character()
            for token, id in self._model.get_vocab().items():
                pieces[id] = bytes(byte_of[character] for character in token)
        return pieces

    def _stored(self) -> dict:
        model = json.loads(self._model_json) if self._model_json else None
        return {"name": self.name, "vocab_size": self.vocab_size, "model": model}

    def save(self, path: str | Path) -> None:
        """Write it to one JSON file, at once."""
        part = Path(path).with_name(Path(path).name + ".part")
        part.write_text(json.dumps(self._stored()))
        part.replace(path)


class Words(Tokenizer):
    """The words of a task, divided by blanks; there are no specials, and `bos` is -1: nothing divides documents."""

    def __init__(self, name: str, words: Sequence[str]):
        super().__init__(name, len(words))
        self.bos = -1
        self.words = tuple(words)
        self.ids = {word: id for id, word in enumerate(words)}

    def encode(self, text: str) -> np.ndarray:
        """int32 ids of words. UserError for one that the task does not know."""
        for word in text.split():
            if word not in self.ids:
                raise UserError(
                    f"the tokens of {self.name} have no {word!r}; they are words divided by blanks, like {self.words[0]!r}"
                )
        return np.asarray([self.ids[word] for word in text.split()], np.int32)

    @cached_property
    def pieces(self) -> list[bytes]:
        return [f"{word} ".encode() for word in self.words]

    def _stored(self) -> dict:
        return {"name": self.name, "words": self.words}


@cache
def numbers(count: int) -> Words:
    """The numbers below `count` as words."""
    return Words(f"numbers:{count}", [*map(str, range(count))])


def byte_tokenizer() -> Tokenizer:
    return Tokenizer("bytes", 256 + SPECIALS)


def load(path: str | Path) -> Tokenizer:
    """What `save` wrote. UserError if the file is missing or not a tokenizer's."""
    try:
        stored = json.loads(Path(path).read_text())
        if "words" in stored:
            return Words(stored["name"], stored["words"])
        return Tokenizer(stored["name"], stored["vocab_size"], json.dumps(stored["model"]) if stored["model"] else None)
    except Exception as error:  # `tokenizers` raises bare Exception for a model that it cannot read
        raise UserError(f"cannot read the tokenizer {path}: {error}") from error


def tokenizer(name: str, corpus: Corpus, cache: str | Path) -> Tokenizer:
    """`bytes` or `bpe:SIZE`; a BPE is trained on `corpus` at its first use and kept in `cache`. UserError for other names."""
    kind, _, size = name.partition(":")
    check_known(kind, ("bytes", "bpe"), "tokenizer")
    if kind == "bytes":
        if size:
            raise UserError(f"tokenizer {name!r}: bytes takes no size")
        return byte_tokenizer()
    least = 256 + SPECIALS
    if not size.isdecimal() or int(size) < least:
        raise UserError(f"tokenizer {name!r}: give a vocabulary of {least} or more, as in bpe:4096")
    folder = root(cache) / "tokenizers" / f"bpe-{size}-{corpus.fingerprint}"
    built(folder, lambda part: _train(name, int(size), corpus).save(part / "tokenizer.json"))
    return load(folder / "tokenizer.json")


def _train(name: str, size: int, corpus: Corpus) -> Tokenizer:
    model = hf.Tokenizer(hf.models.BPE())
    model.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    # No special token is known to the model, so a text that spells one out stays text.
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(vocab_size=size - SPECIALS, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator((text for _, text in corpus.documents("train")), trainer)
    return Tokenizer(name, size, model.to_str())


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: those that print stand for themselves, the others for 256, 257, ..."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + i): value for i, value in enumerate(others)}
