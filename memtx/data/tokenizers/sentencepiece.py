"""Tokenizers of SentencePiece models, with added tokens.

T tokens, V vocabulary.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import tokenizers as hf
from tokenizers import AddedToken

from memtx.data.tokenizers.base import Pretrained
from memtx.errors import optional


class SentencePiece(Pretrained):
    """A tokenizer with the content of a SentencePiece .model file.

    SentencePiece puts a space before a text. As in transformers, text after an added token gets none, unless the model drops
    redundant spaces (T5) or is `legacy`.

    sentencepiece: the file in base64. specials: further special tokens, by name. added: special and other tokens in the format
    of tokenizer.json. begin, end: the specials that `frame` puts around a text. model: chat_template, rows and ending of
    Pretrained.
    """

    def __init__(
        self,
        name: str,
        sentencepiece: str,
        *,
        specials: Mapping[str, int] | None = None,
        added: Sequence[Mapping[str, Any]] = (),
        begin: Sequence[int] = (),
        end: Sequence[int] = (),
        eos: Sequence[int] = (),
        legacy: bool = False,
        **model: Any,
    ):
        self._model_text, self._added, self._legacy = sentencepiece, tuple(added), legacy
        self._model, self._bare, self._strips = _processors(sentencepiece)
        piece, unknown = self._model.id_to_piece, self._model.unk_id()
        ids = {id for id in range(self._model.vocab_size()) if not self._model.is_unused(id)}
        special = {piece(id): id for id in ids if self._model.is_control(id) or id == unknown} | dict(specials or {})
        special |= {token["content"]: token["id"] for token in added if token["special"]}
        self._content_of = {token["id"]: token["content"] for token in added if token["content"] not in special}
        self._id_of = special | {content: id for id, content in self._content_of.items()}
        found = frozenset(self._id_of.values())
        named = {content: id for content, id in special.items() if id != unknown}
        super().__init__(name, frozenset(ids | found), found, named, **model)
        listed = {token["content"]: _added_token(token) for token in added}
        plain = {content: AddedToken(content, special=True, normalized=False) for content in special}
        self._splitter = _splitter([*(plain | listed).values()])
        self._begin, self._end_ids = tuple(begin), tuple(end)
        self._end(eos)

    def encode(self, text: str, *, specials: bool = False) -> np.ndarray:
        """Return the ids of a text, see Tokenizer. Raises UserError for a token beyond the model's embedding."""
        content, ids = text.encode("utf-8", errors="replace").decode(), []
        for i, (id, part) in enumerate(self._parts(content, specials)):
            ids += [id] if id is not None else self._spelled(part, first=i == 0)
        return self._checked(ids)

    def _parts(self, text: str, specials: bool) -> Iterator[tuple[int | None, str]]:
        """Yield (id of an added token or None, text) for each part of a text."""
        if not (specials or self._content_of):
            yield None, text
            return
        self._splitter.encode_special_tokens = not specials
        found = self._splitter.encode(text, add_special_tokens=False)
        for id, (start, stop) in zip(found.ids, found.offsets, strict=True):
            yield self._id_of.get(self._splitter.id_to_token(id)), text[start:stop]

    def _spelled(self, text: str, first: bool) -> list[int]:
        blank = first or self._strips or (self._legacy and not text.startswith((" ", "▁")))
        return (self._model if blank else self._bare).encode(text)

    def frame(self, text: str, pair: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids_T, type_T) with `begin` and `end` around each text, see Tokenizer."""
        ids, types = [], []
        for i, part in enumerate(t for t in (text, pair) if t is not None):
            framed = [*self._begin, *self.encode(part), *self._end_ids]
            ids += framed
            types += [i] * len(framed)
        return np.asarray(ids, np.int32), np.asarray(types, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids with SentencePiece. Special tokens and unknown words are dropped."""
        dropped, text = {*self._id_of.values()} - {*self._content_of}, ""
        kept = [int(id) for id in ids if int(id) not in dropped]
        for i, (added, run) in enumerate(groupby(kept, key=self._content_of.__contains__)):
            model = self._bare if i else self._model
            text += "".join(self._content_of[id] for id in run) if added else model.decode([*run])
        return text

    @cached_property
    def pieces(self) -> list[bytes]:
        """Return the bytes that each token appends to a text, b"" for specials."""
        model, pieces = self._model, [b""] * (1 + max(self._ids))
        for id in range(model.vocab_size()):
            if model.is_byte(id):
                pieces[id] = bytes([int(model.id_to_piece(id)[3:5], 16)])  # of "<0xE6>"
            elif not (model.is_control(id) or model.is_unknown(id) or model.is_unused(id)):
                pieces[id] = model.id_to_piece(id).replace("▁", " ").encode()
        for id in self._id_of.values():
            pieces[id] = self._content_of.get(id, "").encode()
        return pieces[: self.vocab_size]

    def _token(self, id: int) -> str:
        return next(content for content, known in self._id_of.items() if known == id)

    def stored(self) -> dict:
        """Return the tokenizer as JSON values."""
        parts = {"specials": dict(self.specials), "begin": self._begin, "end": self._end_ids, "eos": self.eos}
        more = ({"added": self._added} if self._added else {}) | ({"legacy": True} if self._legacy else {})
        return {"name": self.name, "sentencepiece": self._model_text, **parts, **self._more(), **more}


def _processors(text: str) -> tuple[Any, Any, bool]:
    """Return the model, a copy that neither adds nor drops spaces, and whether the model drops them."""
    package, proto = optional("sentencepiece"), optional("sentencepiece.sentencepiece_model_pb2")
    content = base64.b64decode(text)
    model = package.SentencePieceProcessor(model_proto=content)
    stored = proto.ModelProto.FromString(content)
    strips = stored.normalizer_spec.remove_extra_whitespaces
    stored.normalizer_spec.add_dummy_prefix = stored.normalizer_spec.remove_extra_whitespaces = False
    return model, package.SentencePieceProcessor(model_proto=stored.SerializeToString()), strips


def _splitter(tokens: Sequence[AddedToken]) -> hf.Tokenizer:
    """Return a tokenizer that finds added tokens in a text. The text between them is one token with an empty name."""
    splitter = hf.Tokenizer(hf.models.WordLevel({"": 0}, unk_token=""))
    splitter.add_tokens([*tokens])
    return splitter


def _added_token(token: Mapping[str, Any]) -> AddedToken:
    return AddedToken(**{key: value for key, value in token.items() if key != "id"})
