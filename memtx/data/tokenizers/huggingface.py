"""Tokenizers of Hugging Face's `tokenizers`.

T tokens, V vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers as hf
from tokenizers import processors

from memtx.data.tokenizers.base import Pretrained, byte_of_character


class HuggingFace(Pretrained):
    """A tokenizer with the content of a tokenizer.json.

    huggingface: the content of tokenizer.json. bos: the token between documents, or None for the one with which `frame` starts
    a text, else <|endoftext|>, else the first of `eos`, else -1. eos: the tokens that end a text, to which `bos` is added.
    model: chat_template, rows and ending of Pretrained.
    """

    def __init__(self, name: str, huggingface: str, *, bos: int | None = None, eos: Sequence[int] = (), **model: Any):
        found = hf.Tokenizer.from_str(huggingface)
        found.no_truncation()
        found.no_padding()
        self._model, self._model_json = found, found.to_str()
        self._kinds = _kinds(json.loads(self._model_json)["decoder"])
        added = found.get_added_tokens_decoder()
        specials = {token.content: id for id, token in added.items() if token.special}
        ids = frozenset(found.get_vocab(with_added_tokens=True).values())
        super().__init__(name, ids, frozenset(added), specials, **model)
        self._end(eos, bos)

    def encode(self, text: str, *, specials: bool = False) -> np.ndarray:
        """Return the ids of a text, see Tokenizer. Raises UserError for a token beyond the model's embedding."""
        return self._checked(self._encode(text, None, specials, framed=False).ids)

    def frame(self, text: str, pair: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids_T, type_T) with the specials of the tokenizer's template, see Tokenizer."""
        found = self._encode(text, pair, False, framed=True)
        return self._checked(found.ids), np.asarray(found.type_ids, np.int32)

    def locate(self, text: str, pair: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (ids_T, type_T, span_T2), see Tokenizer."""
        found = self._encode(text, pair, False, framed=True)
        second_T = np.asarray([number == 1 for number in found.sequence_ids], bool)
        span_T2 = np.where(second_T[:, None], np.asarray(found.offsets, np.int32).reshape(-1, 2), -1)
        return self._checked(found.ids), np.asarray(found.type_ids, np.int32), span_T2

    def _encode(self, text: str, pair: str | None, specials: bool, framed: bool) -> hf.Encoding:
        self._model.encode_special_tokens = not specials
        first, second = (t and t.encode("utf-8", errors="replace").decode() for t in (text, pair))
        return self._model.encode(first or "", second, add_special_tokens=framed)

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids with the decoder of the tokenizer. Special tokens are dropped."""
        if self._kinds == {"ByteLevel"}:  # this decoder would read the characters of an added token as bytes
            return super().decode(ids)
        return self._model.decode([int(id) for id in ids], skip_special_tokens=True)

    @cached_property
    def pieces(self) -> list[bytes]:
        """Return the bytes that each token appends to a text, b"" for specials."""
        pieces = [b""] * (1 + max(self._ids))
        for token, id in self._model.get_vocab(with_added_tokens=False).items():
            pieces[id] = _piece(token, self._kinds)
        for id, token in self._model.get_added_tokens_decoder().items():
            pieces[id] = b"" if token.special else token.content.encode()
        unknown = getattr(self._model.model, "unk_token", None)  # a Unigram has none
        if unknown is not None and (id := self._model.token_to_id(unknown)) is not None:
            pieces[id] = b""
        return pieces[: self.vocab_size]

    @cached_property
    def bytes_V(self) -> np.ndarray:
        """Return the number of UTF-8 bytes of each token, int32, 0 for specials."""
        if "WordPiece" in self._kinds:  # the spaces of the text are lost
            return np.asarray([len(piece.lstrip()) for piece in self.pieces], np.int32)
        return super().bytes_V

    def _token(self, id: int) -> str:
        return self._model.get_added_tokens_decoder()[id].content

    def stored(self) -> dict:
        """Return the tokenizer as JSON values."""
        return {"name": self.name, "huggingface": self._model_json, "bos": self.bos, "eos": list(self.eos), **self._more()}


def frame(model: hf.Tokenizer, begin: Sequence[int], end: Sequence[int]) -> None:
    """Make a model put at most one token before and one after a text."""
    if begin or end:
        single = " ".join([*("BEGIN" for _ in begin), "$A", *("END" for _ in end)])
        model.post_processor = template(model, single, "$A $B:1", {"BEGIN": begin, "END": end})


def template(model: hf.Tokenizer, single: str, pair: str, ids: Mapping[str, Sequence[int]]) -> processors.TemplateProcessing:
    """Return the template of texts such as "BEGIN $A END" and "BEGIN $A END $B:1 END:1". ids: by the names in these texts.

    The names are not the tokens themselves, because tokens may contain spaces and colons.
    """
    tokens = {name: [model.id_to_token(id) for id in found] for name, found in ids.items() if found}
    specials = [{"id": name, "ids": [*ids[name]], "tokens": texts} for name, texts in tokens.items()]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=specials)


def _kinds(decoder: Mapping | None) -> Collection[str]:
    """Return the kinds of decoders that a tokenizer.json chains."""
    if decoder is None:
        return set()
    return {decoder["type"]}.union(*(_kinds(inner) for inner in decoder.get("decoders", ())))


def _piece(token: str, kinds: Collection[str]) -> bytes:
    if "ByteLevel" in kinds:
        byte_of = byte_of_character()
        try:
            return bytes(byte_of[character] for character in token)
        except KeyError:
            return token.encode()
    if "ByteFallback" in kinds and re.fullmatch("<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    if "WordPiece" in kinds or not kinds:
        return token[2:].encode() if token.startswith("##") else f" {token}".encode()
    return token.replace("▁", " ").encode()
