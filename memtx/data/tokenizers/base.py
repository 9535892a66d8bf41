"""The base of all tokenizers, and the two that memtx makes itself: bytes, and BPEs of a corpus.

`bytes` has one token per byte; `bpe:SIZE` is a byte-level BPE trained on a corpus's train split by Hugging Face's `tokenizers`.
Both end with SPECIALS ids that no text ever gives: the first is `bos`, which separates documents; the others are free to use.

Legend: T time, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers as hf

from memtx.data.cache import digest
from memtx.errors import UserError

SPECIALS = 8


class Tokenizer:
    """Token ids `0 ... vocab_size - 1`; `name` is what the config calls it.

    bos            the token between documents, -1 if nothing divides them
    eos            the tokens that end a text
    specials       ids by name of the tokens that `encode` gives only when asked to
    chat_template  Jinja, how a conversation is written; "" if the model was not taught any

    model_json: a byte-level model of `tokenizers`, or None for one token per byte.
    """

    specials: Mapping[str, int] = {}
    chat_template = ""

    def __init__(self, name: str, vocab_size: int, model_json: str | None = None):
        self.name = name
        self.vocab_size = vocab_size
        self.bos = vocab_size - SPECIALS
        self._model_json = model_json
        self._model = hf.Tokenizer.from_str(model_json) if model_json else None

    @property
    def eos(self) -> tuple[int, ...]:
        return (self.bos,) if self.bos >= 0 else ()

    def encode(self, text: str, *, specials: bool = False) -> np.ndarray:
        """int32 ids of a text, without `bos`; what UTF-8 cannot hold (a lone surrogate) becomes "?".

        specials: whether a special that the text spells out is that token; else it is text like any other.
        """
        content = text.encode("utf-8", errors="replace")
        if self._model is None:
            return np.frombuffer(content, np.uint8).astype(np.int32)
        return np.asarray(self._model.encode(content.decode(), add_special_tokens=False).ids, np.int32)

    def frame(self, text: str, pair: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(ids_T, type_T) of a whole text, or of two, with the specials that the model's own texts have around them.

        type_T is 1 in the second text. UserError if the tokenizer knows no pairs.
        """
        if pair is not None:
            raise UserError(f"the tokenizer {self.name} has no way to write two texts as one; give one")
        ids = np.concatenate([np.asarray([self.bos] if self.bos >= 0 else [], np.int32), self.encode(text)])
        return ids, np.zeros_like(ids)

    @property
    def start(self) -> int:
        """What a decoder reads first, once its encoder has read a source: <pad> as in T5, else `bos`."""
        return self.specials.get("<pad>", self.bos)

    @property
    def mask(self) -> int:
        """What stands for a hidden token; -1 if there is none."""
        named = [self.specials[name] for name in ("[MASK]", "<mask>") if name in self.specials]
        spare = not self.specials and not self.pieces[-1]  # one of the SPECIALS
        return named[0] if named else self.vocab_size - 1 if spare else -1

    def cut(self, ids_T: np.ndarray, most: int) -> np.ndarray:
        """The first `most` tokens of a framed text (0: all), of which the last is the special that ends it, if it has one."""
        if not most or len(ids_T) <= most:
            return ids_T
        ends = int(ids_T[-1]) in {*self.eos, *self.specials.values()}
        return np.concatenate([ids_T[: most - 1], ids_T[-1:]]) if ends else ids_T[:most]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; specials are dropped, and bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.pieces[int(id)] for id in ids).decode("utf-8", errors="replace")

    @cached_property
    def bytes_V(self) -> np.ndarray:
        """int32, how many bytes of UTF-8 each token stands for; 0 for specials.

        Over a text's ids they sum to its length if the tokenizer gives the text back (SentencePiece: one more, for the blank
        that it puts before the first word). What a tokenizer drops, such as WordPiece all blanks, is not counted.
        """
        return np.asarray([len(piece) for piece in self.pieces], np.int32)

    @cached_property
    def drawable_V(self) -> np.ndarray:
        """bool, which tokens generation may draw: those of text and those that end it."""
        drawable_V = self.bytes_V > 0
        drawable_V[list(self.eos)] = True
        return drawable_V

    @cached_property
    def fingerprint(self) -> str:
        return digest(self.stored())

    @cached_property
    def pieces(self) -> list[bytes]:
        pieces = [b""] * self.vocab_size
        if self._model is None:
            pieces[:256] = [bytes([value]) for value in range(256)]
        else:
            byte_of = byte_of_character()
            for token, id in self._model.get_vocab().items():
                pieces[id] = bytes(byte_of[character] for character in token)
        return pieces

    def stored(self) -> dict:
        """What it is, as JSON has it."""
        model = json.loads(self._model_json) if self._model_json else None
        return {"name": self.name, "vocab_size": self.vocab_size, "model": model}

    def save(self, path: str | Path) -> None:
        """Write it to one JSON file, at once."""
        part = Path(path).with_name(Path(path).name + ".part")
        part.write_text(json.dumps(self.stored()))
        part.replace(path)


def byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: those that print stand for themselves, the others for 256, 257, ..."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + i): value for i, value in enumerate(others)}
