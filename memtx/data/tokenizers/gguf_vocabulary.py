"""The tokenizer inside a GGUF file: byte-level BPE ("gpt2") or SentencePiece BPE ("llama")."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from memtx.data.tokenizers.base import Pretrained
from memtx.data.tokenizers.cuts import CUTS, byte_bpe, gguf_cut
from memtx.data.tokenizers.huggingface import HuggingFace, frame
from memtx.data.tokenizers.sentencepiece import SentencePiece
from memtx.data.tokenizers.settings import checked_ends
from memtx.errors import UserError, check_known, optional
from memtx.files.gguf import read_head

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # kinds of token, as in SentencePiece
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def read(name: str, path: Path) -> Pretrained:
    """Read the tokenizer of a GGUF file. Raises UserError if there is no vocabulary or its kind is unknown."""
    head = read_head(path)
    stored = {key.removeprefix("tokenizer."): value for key, value in head.metadata.items() if key.startswith("tokenizer.")}
    if "ggml.tokens" not in stored:
        raise UserError(f"{path} has no vocabulary; give the tokenizer files of the model")
    try:
        found = from_metadata(name, stored, head.metadata.get("general.architecture", ""))
    except KeyError as error:
        raise UserError(f"the vocabulary of {path} is incomplete: it has no tokenizer.{error.args[0]}") from None
    embedding = head.tensors.get("token_embd.weight")
    return found if embedding is None else found.within(embedding.shape[0])


def from_metadata(name: str, stored: Mapping[str, Any], architecture: str) -> Pretrained:
    """Build the tokenizer. stored: the metadata under "tokenizer.", without this prefix."""
    kind = stored["ggml.model"]
    check_known(kind, ("gpt2", "llama"), "kind of GGUF vocabulary")
    return _byte_level(name, stored, architecture) if kind == "gpt2" else _sentencepiece(name, stored)


def _byte_level(name: str, stored: Mapping[str, Any], architecture: str) -> Pretrained:
    tokens, kinds = stored["ggml.tokens"], stored.get("ggml.token_type")
    kinds = kinds or [NORMAL] * len(tokens)
    vocab = {token: id for id, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED}
    cut = CUTS[gguf_cut(stored.get("ggml.pre", "default"), architecture, vocab)]
    model = byte_bpe(vocab, stored["ggml.merges"], cut)
    added = {token: kind == CONTROL for token, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)}
    model.add_tokens([AddedToken(token, special=special, normalized=False) for token, special in added.items()])
    frame(model, *_framing(stored, begins=cut.begins))
    return HuggingFace(name, model.to_str(), chat_template=stored.get("chat_template", ""), **_ends(stored))


def _sentencepiece(name: str, stored: Mapping[str, Any]) -> Pretrained:
    """Rebuild the model file from tokens, scores and kinds."""
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
    return SentencePiece(name, text, begin=begin, end=end, chat_template=stored.get("chat_template", ""), **_ends(stored))


def _framing(stored: Mapping[str, Any], begins: bool) -> tuple[list[int], list[int]]:
    """Return the tokens before and after a text. begins: whether a text starts with `bos` by default."""
    begin = _ids(stored, "bos_token_id") if stored.get("ggml.add_bos_token", begins) else []
    end = _ids(stored, "eos_token_id") if stored.get("ggml.add_eos_token", False) else []
    return begin, end


def _ends(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return `eos` and `ending` of the tokenizer."""
    return {"eos": [id for key in ENDS for id in _ids(stored, key)], "ending": next(iter(_ids(stored, ENDS[0])), None)}


def _ids(stored: Mapping[str, Any], key: str) -> list[int]:
    """Return the id stored at a key, or none. Raises UserError if it is not in the vocabulary."""
    id = stored.get(f"ggml.{key}")
    return [] if id is None else checked_ends(id, range(len(stored["ggml.tokens"])), f"tokenizer.ggml.{key}")
