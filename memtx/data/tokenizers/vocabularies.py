"""Tokenizers of pretrained models: a model of `tokenizers` or of `sentencepiece`, and the parts that its tokens play.

Legend: T time, V vocabulary.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import tokenizers as hf

from memtx.data.tokenizers.base import Tokenizer, byte_of_character
from memtx.errors import UserError, optional


class HuggingFace(Tokenizer):
    """What a tokenizer.json holds, in `huggingface`.

    bos: the token between documents. None: the one that `frame` begins a text with, else <|endoftext|>, else -1.
    eos: the tokens that end a text; `bos` is always one.
    """

    def __init__(
        self, name: str, huggingface: str, *, bos: int | None = None, eos: Sequence[int] = (), chat_template: str = ""
    ):
        self.name, self.chat_template = name, chat_template
        model = hf.Tokenizer.from_str(huggingface)
        model.no_truncation()
        model.no_padding()
        self._model, self._model_json = model, model.to_str()
        self.specials = {token.content: id for id, token in model.get_added_tokens_decoder().items() if token.special}
        self.vocab_size = 1 + max(model.get_vocab(with_added_tokens=True).values())
        self.bos = _between(self, eos) if bos is None else bos
        self._eos = _ends(self.bos, eos)

    @property
    def eos(self) -> tuple[int, ...]:
        return self._eos

    def encode(self, text: str, *, specials: bool = False) -> np.ndarray:
        return self._encode(text, None, specials, framed=False)[0]

    def frame(self, text: str, pair: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        return self._encode(text, pair, False, framed=True)

    def _encode(self, text: str, pair: str | None, specials: bool, framed: bool) -> tuple[np.ndarray, np.ndarray]:
        self._model.encode_special_tokens = not specials
        first, second = (t and t.encode("utf-8", errors="replace").decode() for t in (text, pair))
        found = self._model.encode(first or "", second, add_special_tokens=framed)
        return np.asarray(found.ids, np.int32), np.asarray(found.type_ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids as the tokenizer's own decoder writes it; specials are dropped."""
        return self._model.decode([int(id) for id in ids], skip_special_tokens=True)

    @cached_property
    def pieces(self) -> list[bytes]:
        """What each token adds to a text that goes before it."""
        model = json.loads(self._model_json)
        kinds, pieces = _kinds(model["decoder"]), [b""] * self.vocab_size
        for token, id in self._model.get_vocab(with_added_tokens=False).items():
            pieces[id] = _piece(token, kinds)
        for id, token in self._model.get_added_tokens_decoder().items():
            pieces[id] = b"" if token.special else token.content.encode()
        if (unknown := model["model"].get("unk_token")) in self._model.get_vocab():
            pieces[self._model.get_vocab()[unknown]] = b""
        return pieces

    @cached_property
    def bytes_V(self) -> np.ndarray:
        if "WordPiece" in _kinds(json.loads(self._model_json)["decoder"]):  # which blanks were in the text is lost
            return np.asarray([len(piece.lstrip()) for piece in self.pieces], np.int32)
        return super().bytes_V

    @cached_property
    def drawable_V(self) -> np.ndarray:
        return np.ones(self.vocab_size, bool)

    def stored(self) -> dict:
        parts = {"bos": self.bos, "eos": list(self.eos), "chat_template": self.chat_template}
        return {"name": self.name, "huggingface": self._model_json, **parts}


class SentencePiece(Tokenizer):
    """What a SentencePiece .model file holds, in `sentencepiece` (base64).

    specials: tokens beside those of the file. begin, end: the specials that `frame` puts around a text. Others as above.
    """

    def __init__(
        self,
        name: str,
        sentencepiece: str,
        *,
        specials: Mapping[str, int] | None = None,
        begin: Sequence[int] = (),
        end: Sequence[int] = (),
        eos: Sequence[int] = (),
        chat_template: str = "",
    ):
        self.name, self.chat_template, self._model_text = name, chat_template, sentencepiece
        content = base64.b64decode(sentencepiece)
        self._model = optional("sentencepiece").SentencePieceProcessor(model_proto=content)
        size = self._model.vocab_size()
        own = {self._model.id_to_piece(id): id for id in range(size) if self._model.is_control(id)}
        self.specials = own | dict(specials or {})
        self.vocab_size = max([size - 1, *self.specials.values()]) + 1
        self._begin, self._end = tuple(begin), tuple(end)
        self.bos = _between(self, eos)
        self._eos = _ends(self.bos, eos)

    @property
    def eos(self) -> tuple[int, ...]:
        return self._eos

    def encode(self, text: str, *, specials: bool = False) -> np.ndarray:
        content = text.encode("utf-8", errors="replace").decode()
        names = "|".join(map(re.escape, sorted(self.specials, key=len, reverse=True)))
        parts = re.split(f"({names})", content) if specials and names else [content]
        ids = ([self.specials[part]] if i % 2 else self._model.encode(part) for i, part in enumerate(parts))
        return np.asarray([*itertools.chain.from_iterable(ids)], np.int32)

    def frame(self, text: str, pair: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        ids, types = [], []
        for i, part in enumerate(t for t in (text, pair) if t is not None):
            framed = [*self._begin, *self.encode(part), *self._end]
            ids += framed
            types += [i] * len(framed)
        return np.asarray(ids, np.int32), np.asarray(types, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids as SentencePiece writes it; specials are dropped."""
        dropped = set(self.specials.values())
        return self._model.decode([int(id) for id in ids if int(id) not in dropped])

    @cached_property
    def pieces(self) -> list[bytes]:
        """What each token adds to a text that goes before it."""
        model, pieces = self._model, [b""] * self.vocab_size
        for id in range(model.vocab_size()):
            if model.is_byte(id):
                pieces[id] = _byte(model.id_to_piece(id))
            elif not (model.is_control(id) or model.is_unknown(id) or model.is_unused(id)):
                pieces[id] = model.id_to_piece(id).replace("▁", " ").encode()
        return pieces

    @cached_property
    def drawable_V(self) -> np.ndarray:
        return np.ones(self.vocab_size, bool)

    def stored(self) -> dict:
        parts = {"specials": dict(self.specials), "begin": self._begin, "end": self._end}
        texts = {"eos": self.eos, "chat_template": self.chat_template}
        return {"name": self.name, "sentencepiece": self._model_text, **parts, **texts}


def check_fits(tokenizer: Tokenizer, rows: int) -> None:
    """UserError if the tokenizer cannot be that of a model whose embedding has `rows`, at most a tenth of them spare."""
    if not tokenizer.vocab_size <= rows <= 1.1 * tokenizer.vocab_size:
        raise UserError(
            f"the tokenizer {tokenizer.name} has {tokenizer.vocab_size} tokens, the model's embedding {rows} rows: "
            "it is not this model's; give the tokenizer files that came with the weights"
        )


def _between(tokenizer: Tokenizer, eos: Sequence[int]) -> int:
    """The token between documents: what texts begin with, else <|endoftext|>, else what ends them."""
    framed = tokenizer.frame("a")[0]
    if len(framed) and framed[0] in tokenizer.specials.values():
        return int(framed[0])
    return tokenizer.specials.get("<|endoftext|>", next(iter(eos), -1))


def _ends(bos: int, eos: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted({*eos, bos} - {-1}))


def _kinds(decoder: Mapping | None) -> set[str]:
    """The decoders that a tokenizer.json chains."""
    if decoder is None:
        return set()
    return {decoder["type"]}.union(*(_kinds(inner) for inner in decoder.get("decoders", ())))


def _piece(token: str, kinds: set[str]) -> bytes:
    if "ByteLevel" in kinds:
        byte_of = byte_of_character()
        return bytes(byte_of[character] for character in token)
    if "ByteFallback" in kinds and re.fullmatch("<0x[0-9A-F]{2}>", token):
        return _byte(token)
    if "WordPiece" in kinds or not kinds:
        return token[2:].encode() if token.startswith("##") else f" {token}".encode()
    return token.replace("▁", " ").encode()


def _byte(token: str) -> bytes:
    """Of "<0xE6>"."""
    return bytes([int(token[3:5], 16)])
