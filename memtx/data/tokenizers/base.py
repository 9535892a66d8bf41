"""The base of all tokenizers, the two that memtx makes itself (bytes, and BPEs of a corpus), and the base of pretrained ones.

`bytes` has one token per byte; `bpe:SIZE` is a byte-level BPE trained on a corpus's train split by Hugging Face's `tokenizers`.
Both end with SPECIALS ids that no text ever gives: the first is `bos`, which separates documents; the others are free to use.

Legend: T time, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as hf

from memtx.errors import UserError
from memtx.files.cache import digest

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

    @property
    def ending(self) -> int:
        """The end that a text has in training and in chats, where several may end what is generated; -1 if there is none."""
        return max(self.eos, default=-1)

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

    @property
    def subwords(self) -> Sequence[bytes]:
        """`pieces`, if a model cuts text into them; () where tokens are bytes or a task's own words."""
        return self.pieces if self._model else ()

    def stored(self) -> dict:
        """The tokenizer as JSON values."""
        model = json.loads(self._model_json) if self._model_json else None
        return {"name": self.name, "vocab_size": self.vocab_size, "model": model}

    def save(self, path: str | Path) -> None:
        """Write it to one JSON file, at once."""
        part = Path(path).with_name(Path(path).name + ".part")
        part.write_text(json.dumps(self.stored()))
        part.replace(path)


class Pretrained(Tokenizer):
    """A tokenizer that came with a model: its ids may have gaps, and tokens were added to its vocabulary.

    ids: of all tokens. added: those of added tokens. rows: of the model's embedding if it is smaller, see `within`.
    ending: the tokenizer's own end, None for the last of `eos`.
    """

    def __init__(
        self,
        name: str,
        ids: frozenset[int],
        added: frozenset[int],
        specials: Mapping[str, int],
        *,
        chat_template: str = "",
        rows: int | None = None,
        ending: int | None = None,
    ):
        self.name, self.chat_template, self._own_ending = name, chat_template, ending
        self._ids, self._added_ids, self._rows = ids, added, rows
        self.vocab_size = 1 + max(ids) if rows is None else min(1 + max(ids), rows)
        self.specials = {name: id for name, id in specials.items() if id < self.vocab_size}

    def _end(self, eos: Sequence[int], bos: int | None = None) -> None:
        """Set the tokens that end a text, and the one between documents, which ends one too.

        bos: None for the token that texts begin with, else <|endoftext|>, else one that ends a text.
        """
        if bos is None:
            framed = self.frame("a")[0]
            begins = len(framed) and framed[0] in self.specials.values()
            bos = int(framed[0]) if begins else self.specials.get("<|endoftext|>", next(iter(eos), -1))
        self.bos = bos if bos < self.vocab_size else -1
        self._eos = tuple(sorted(id for id in {*eos, self.bos} if 0 <= id < self.vocab_size))

    @property
    def eos(self) -> tuple[int, ...]:
        return self._eos

    @property
    def ending(self) -> int:
        own = self._own_ending
        return own if own is not None and own < self.vocab_size else super().ending

    def within(self, rows: int) -> Pretrained:
        """This tokenizer for a model whose embedding has `rows`: it does not use added tokens beyond them.

        A text that needs one is a UserError. The tokenizer itself if all of it fits, or if tokens that were not added do not.
        """
        beyond = {id for id in self._ids if id >= rows}
        stored: dict[str, Any] = self.stored() | {"rows": rows}
        return type(self)(**stored) if beyond and beyond <= self._added_ids else self

    def _checked(self, ids: Sequence[int]) -> np.ndarray:
        found = np.asarray(ids, np.int32)
        if len(beyond := found[found >= self.vocab_size]):
            id = int(beyond[0])
            raise UserError(
                f"the text has {self._token(id)!r}, which was added to the tokenizer {self.name} as token {id}; "
                f"the model's embedding has {self.vocab_size} rows only: leave it out of the text"
            )
        return found

    @cached_property
    def drawable_V(self) -> np.ndarray:
        return np.isin(np.arange(self.vocab_size), [*self._ids])

    def _token(self, id: int) -> str:
        """The text of an added token."""
        raise NotImplementedError

    def _more(self) -> dict[str, Any]:
        """To be stored: the settings that all tokenizers of this kind have, where they are not the usual ones."""
        ending = {} if self.ending == super().ending else {"ending": self._own_ending}
        return {"chat_template": self.chat_template, **({} if self._rows is None else {"rows": self._rows}), **ending}


def check_fits(tokenizer: Tokenizer, rows: int) -> None:
    """UserError if the tokenizer cannot be that of a model whose embedding has `rows`.

    Some rows may be spare, since embeddings are padded: a tenth of the vocabulary, or fewer than 256.
    """
    if not tokenizer.vocab_size <= rows <= tokenizer.vocab_size + max(tokenizer.vocab_size // 10, 255):
        raise UserError(
            f"the tokenizer {tokenizer.name} has {tokenizer.vocab_size} tokens, the model's embedding {rows} rows: "
            "it is not this model's; give the tokenizer files that came with the weights"
        )


def byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: those that print stand for themselves, the others for 256, 257, ..."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + i): value for i, value in enumerate(others)}
