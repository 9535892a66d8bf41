"""The base class of all tokenizers, which also implements `bytes` and `bpe:SIZE`, and the base class of pretrained ones.

`bytes` has one token per byte. `bpe:SIZE` is a byte-level BPE that Hugging Face's `tokenizers` trains on the train split of a
corpus. Both end with SPECIALS ids that no text produces. The first is `bos`, which separates documents. The others are spare.

T tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as hf

from memtx.errors import UserError
from memtx.files.cache import digest

SPECIALS = 8


class Tokenizer:
    """A tokenizer with the ids `0 ... vocab_size - 1`. `name` is its name in a config.

    bos            the token between documents, or -1
    eos            the tokens that end a text
    specials       the ids, by name, of tokens that `encode` produces only with `specials=True`
    chat_template  the Jinja template of a conversation, or ""

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
        """Return the tokens that end a text."""
        return (self.bos,) if self.bos >= 0 else ()

    @property
    def ending(self) -> int:
        """Return the token that ends a text in training and in chats, or -1. Generation may stop at any of `eos`."""
        return max(self.eos, default=-1)

    def encode(self, text: str, *, specials: bool = False) -> np.ndarray:
        """Return the ids of a text, int32 [T], without `bos`. A lone surrogate, which UTF-8 cannot encode, becomes "?".

        specials: whether the name of a special token in the text becomes this token. Otherwise it is ordinary text.
        """
        content = text.encode("utf-8", errors="replace")
        if self._model is None:
            return np.frombuffer(content, np.uint8).astype(np.int32)
        return np.asarray(self._model.encode(content.decode(), add_special_tokens=False).ids, np.int32)

    def frame(self, text: str, pair: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids_T, type_T) of a text or a pair of texts, with the special tokens that the model was trained with.

        type_T is 1 in the second text. Raises UserError if the tokenizer cannot join two texts.
        """
        if pair is not None:
            raise UserError(f"the tokenizer {self.name} cannot join two texts; give a single text")
        ids = np.concatenate([np.asarray([self.bos] if self.bos >= 0 else [], np.int32), self.encode(text)])
        return ids, np.zeros_like(ids)

    def locate(self, text: str, pair: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ids_T and type_T as `frame`, and span_T2: which characters of the second text each token is.

        The span of a token outside the second text is (-1, -1). Raises UserError if the tokenizer cannot join two texts, or
        does not know the spans.
        """
        raise UserError(f"the tokenizer {self.name} cannot say where tokens are in a text; use the tokenizer of a BERT")

    @property
    def start(self) -> int:
        """Return the first token of the decoder in an encoder-decoder: <pad> as in T5, or else `bos`."""
        return self.specials.get("<pad>", self.bos)

    @property
    def mask(self) -> int:
        """Return the mask token, or -1."""
        named = [self.specials[name] for name in ("[MASK]", "<mask>") if name in self.specials]
        spare = not self.specials and not self.pieces[-1]  # one of the SPECIALS
        return named[0] if named else self.vocab_size - 1 if spare else -1

    def cut(self, ids_T: np.ndarray, most: int) -> np.ndarray:
        """Return the first `most` tokens of a framed text (0: all). An end token of the text replaces the last of them."""
        if not most or len(ids_T) <= most:
            return ids_T
        ends = int(ids_T[-1]) in {*self.eos, *self.specials.values()}
        return np.concatenate([ids_T[: most - 1], ids_T[-1:]]) if ends else ids_T[:most]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids. Specials are dropped, and bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.pieces[int(id)] for id in ids).decode("utf-8", errors="replace")

    @cached_property
    def bytes_V(self) -> np.ndarray:
        """Return the number of UTF-8 bytes of each token, int32, 0 for specials.

        The sum over the ids of a text is its length in bytes if the tokenizer is lossless. SentencePiece counts one more, for
        the space before the first word. Characters that a tokenizer drops, such as spaces in WordPiece, are not counted.
        """
        return np.asarray([len(piece) for piece in self.pieces], np.int32)

    @cached_property
    def drawable_V(self) -> np.ndarray:
        """Return a mask of the tokens that generation may draw, bool: tokens of text and tokens that end a text."""
        drawable_V = self.bytes_V > 0
        drawable_V[list(self.eos)] = True
        return drawable_V

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of the tokenizer."""
        return digest(self.stored())

    @cached_property
    def pieces(self) -> list[bytes]:
        """Return the bytes of each token, b"" for specials."""
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
        """Return `pieces` if tokens are subwords, or () if they are bytes or the words of a task."""
        return self.pieces if self._model else ()

    def stored(self) -> dict:
        """Return the tokenizer as JSON values."""
        model = json.loads(self._model_json) if self._model_json else None
        return {"name": self.name, "vocab_size": self.vocab_size, "model": model}

    def save(self, path: str | Path) -> None:
        """Write the tokenizer to a JSON file, atomically."""
        part = Path(path).with_name(Path(path).name + ".part")
        part.write_text(json.dumps(self.stored()))
        part.replace(path)


class Pretrained(Tokenizer):
    """The tokenizer of a pretrained model. Its ids may have gaps, and its vocabulary may have added tokens.

    ids: the ids of all tokens. added: the ids of added tokens. specials: ids by name. rows: the rows of the model's embedding
    if these are fewer, see `within`. ending: the token that ends a text, or None for the last of `eos`.
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
        """Set `bos` and the tokens that end a text, which include `bos`.

        bos: None uses the first token of framed texts, or else <|endoftext|>, or else the first of `eos`.
        """
        if bos is None:
            framed = self.frame("a")[0]
            begins = len(framed) and framed[0] in self.specials.values()
            bos = int(framed[0]) if begins else self.specials.get("<|endoftext|>", next(iter(eos), -1))
        self.bos = bos if bos < self.vocab_size else -1
        self._eos = tuple(sorted(id for id in {*eos, self.bos} if 0 <= id < self.vocab_size))

    @property
    def eos(self) -> tuple[int, ...]:
        """Return the tokens that end a text, including `bos`."""
        return self._eos

    @property
    def ending(self) -> int:
        """Return the token that ends a text in training and in chats, or -1."""
        own = self._own_ending
        return own if own is not None and own < self.vocab_size else super().ending

    def within(self, rows: int) -> Pretrained:
        """Return a tokenizer for an embedding with this number of rows. Added tokens beyond the rows are unusable.

        A text that needs such a token raises UserError. Returns this tokenizer unchanged if all tokens fit, or if a token of
        the base vocabulary does not fit.
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
                f"the model's embedding has only {self.vocab_size} rows; leave it out of the text"
            )
        return found

    @cached_property
    def drawable_V(self) -> np.ndarray:
        """Return a mask of the tokens that generation may draw, bool: all tokens of the vocabulary."""
        return np.isin(np.arange(self.vocab_size), [*self._ids])

    def _token(self, id: int) -> str:
        """Return the text of an added token."""
        raise NotImplementedError

    def _more(self) -> dict[str, Any]:
        """Return the common settings for `stored`, without those at their defaults."""
        ending = {} if self.ending == super().ending else {"ending": self._own_ending}
        return {"chat_template": self.chat_template, **({} if self._rows is None else {"rows": self._rows}), **ending}


def check_fits(tokenizer: Tokenizer, rows: int) -> None:
    """Raise UserError if the tokenizer cannot belong to a model whose embedding has this number of rows.

    Embeddings are often padded. Up to a tenth of the vocabulary, or 255 rows, may be spare.
    """
    if not tokenizer.vocab_size <= rows <= tokenizer.vocab_size + max(tokenizer.vocab_size // 10, 255):
        raise UserError(
            f"the tokenizer {tokenizer.name} has {tokenizer.vocab_size} tokens, but the embedding of the model has {rows} "
            "rows; give the tokenizer files that came with the weights"
        )


@cache  # a vocabulary asks for each of its tokens
def byte_of_character() -> dict[str, int]:
    """Return the byte of each of GPT-2's printable characters. Printable bytes are themselves. The others start at 256."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + i): value for i, value in enumerate(others)}
