"""The vocabulary inside a GGUF file, as a tokenizer: byte-level BPE ("gpt2") or SentencePiece BPE ("llama")."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers as hf
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors

from memtx.data.gguf import read_head
from memtx.data.tokenizers.base import Tokenizer
from memtx.data.tokenizers.vocabularies import HuggingFace, SentencePiece
from memtx.errors import UserError, check_known, optional

CONTROL, USER_DEFINED = 3, 4  # kinds of token, as in SentencePiece
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")

# How a text is cut into words before merges, by the name that GGUF has for it in tokenizer.ggml.pre.
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUTS = {
    "gpt-2": [],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
    "llama-bpe": [pre_tokenizers.Split(Regex(_WORD % r"\p{N}{1,3}"), "isolated")],
    "qwen2": [pre_tokenizers.Split(Regex(_WORD % r"\p{N}"), "isolated")],
}


def read(name: str, path: Path) -> Tokenizer:
    """UserError if the file holds no vocabulary, or one of a kind that memtx does not know."""
    found = read_head(path).metadata
    stored = {key.removeprefix("tokenizer."): value for key, value in found.items() if key.startswith("tokenizer.")}
    if "ggml.tokens" not in stored:
        raise UserError(f"{path} holds no vocabulary; give the tokenizer's own files")
    return from_metadata(name, stored)


def from_metadata(name: str, stored: Mapping[str, Any]) -> Tokenizer:
    """stored: the metadata whose names begin with "tokenizer.", without that."""
    kind = stored["ggml.model"]
    kinds = {"gpt2": _byte_level, "llama": _sentencepiece}
    check_known(kind, kinds, "kind of GGUF vocabulary")
    return kinds[kind](name, stored)


def byte_bpe(vocab: Mapping[str, int], merges: Sequence[str], pre: str) -> hf.Tokenizer:
    """GPT-2's kind of model. merges: "left right", best first. pre: one of CUTS."""
    check_known(pre, CUTS, "GGUF pre-tokenizer")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    whole_words = pre == "llama-bpe"  # a word that is a token is not put together from merges
    model = hf.Tokenizer(hf.models.BPE(dict(vocab), pairs, ignore_merges=whole_words))  # pyright: ignore[reportArgumentType]
    by_regex = CUTS[pre] and pre != "smollm"
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not by_regex)
    model.pre_tokenizer = pre_tokenizers.Sequence([*CUTS[pre], last])
    if pre == "qwen2":
        model.normalizer = normalizers.NFC()
    model.decoder = decoders.ByteLevel()
    return model


def _byte_level(name: str, stored: Mapping[str, Any]) -> Tokenizer:
    tokens, types = stored["ggml.tokens"], stored.get("ggml.token_type")
    types = types or [1] * len(tokens)
    model = byte_bpe({token: id for id, token in enumerate(tokens)}, stored["ggml.merges"], stored.get("ggml.pre", "gpt-2"))
    model.add_special_tokens([token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL])
    model.add_tokens([token for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED])
    begin, end = _framing(stored, begins=False)
    if begin or end:
        framed = " ".join([*(tokens[id] for id in begin), "$A", *(tokens[id] for id in end)])
        used = [(tokens[id], id) for id in {*begin, *end}]
        model.post_processor = processors.TemplateProcessing(single=framed, special_tokens=used)
    return HuggingFace(name, model.to_str(), eos=_ends(stored), chat_template=stored.get("chat_template", ""))


def _sentencepiece(name: str, stored: Mapping[str, Any]) -> Tokenizer:
    """The model file is put together again from tokens, scores and kinds."""
    proto = optional("sentencepiece.sentencepiece_model_pb2")
    model = proto.ModelProto()
    columns = (stored["ggml.tokens"], stored["ggml.scores"], stored["ggml.token_type"])
    for piece, score, kind in zip(*columns, strict=True):
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = proto.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(model.pieces)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = bool(stored.get("ggml.add_space_prefix", True))
    model.normalizer_spec.remove_extra_whitespaces = False
    text = base64.b64encode(model.SerializeToString()).decode()
    begin, end = _framing(stored, begins=True)
    parts = {"begin": begin, "end": end, "eos": _ends(stored), "chat_template": stored.get("chat_template", "")}
    return SentencePiece(name, text, **parts)


def _framing(stored: Mapping[str, Any], begins: bool) -> tuple[list[int], list[int]]:
    """The tokens before and after a text."""
    begin = [stored["ggml.bos_token_id"]] if stored.get("ggml.add_bos_token", begins) else []
    end = [stored["ggml.eos_token_id"]] if stored.get("ggml.add_eos_token", False) else []
    return begin, end


def _ends(stored: Mapping[str, Any]) -> list[int]:
    return [stored[f"ggml.{key}"] for key in ENDS if f"ggml.{key}" in stored]
