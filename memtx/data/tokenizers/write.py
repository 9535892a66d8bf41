"""Writer of the tokenizer files of a Hugging Face folder, from which `AutoTokenizer` and `memtx.load` give the same ids."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers, processors

from memtx.data.tokenizers.base import SPECIALS, Tokenizer, byte_of_character
from memtx.data.tokenizers.huggingface import HuggingFace
from memtx.data.tokenizers.sentencepiece import SentencePiece
from memtx.data.tokenizers.words import Words
from memtx.errors import optional

END = "<|endoftext|>"  # the name of `bos` of `bytes` and `bpe:SIZE` in these files
PARTS = {  # the role of a special by its usual name
    "[UNK]": "unk_token",
    "[CLS]": "cls_token",
    "[SEP]": "sep_token",
    "[PAD]": "pad_token",
    "[MASK]": "mask_token",
    "<unk>": "unk_token",
    "<pad>": "pad_token",
    "<mask>": "mask_token",
}


def write(tokenizer: Tokenizer, folder: Path, model_type: str) -> None:
    """Write tokenizer.json or a SentencePiece model, tokenizer_config.json, and generation_config.json for a decoder.

    model_type: the family, as in config.json. `bytes` and `bpe:SIZE` become a byte-level BPE with the same ids, in which `bos`
    is named <|endoftext|>.
    """
    settings = _parts(tokenizer)
    if isinstance(tokenizer, SentencePiece):
        settings |= _write_sentencepiece(tokenizer, folder, model_type)
    else:
        content = (
            tokenizer.stored()["huggingface"] if isinstance(tokenizer, HuggingFace) else _as_huggingface(tokenizer).to_str()
        )
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if not isinstance(tokenizer, HuggingFace | Words):
            settings |= {"bos_token": END, "eos_token": END, "mask_token": "<mask>"}
    if tokenizer.chat_template:
        settings["chat_template"] = tokenizer.chat_template
    _dump(folder / "tokenizer_config.json", settings)
    if tokenizer.eos and model_type not in ("bert", "t5"):  # these have it in config.json or in the specials
        ends = [id for id in tokenizer.eos if id != tokenizer.bos] or [tokenizer.bos]
        _dump(folder / "generation_config.json", {"bos_token_id": tokenizer.bos, "eos_token_id": ends})


def _parts(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the roles of the specials for tokenizer_config.json."""
    names = {id: name for name, id in tokenizer.specials.items()}
    found = {part: name for name, part in PARTS.items() if name in tokenizer.specials}
    framed, name = tokenizer.frame("a")[0].tolist(), names.get(tokenizer.bos, "")
    begins = [name] if name == END or (name and name not in PARTS and framed[:1] == [tokenizer.bos]) else []
    others = [id for id in tokenizer.eos if id != tokenizer.bos] or [tokenizer.bos]
    ends = [names[id] for id in others if id in names and names[id] not in PARTS]
    return found | ({"bos_token": begins[0]} if begins else {}) | ({"eos_token": ends[0]} if ends else {})


def _write_sentencepiece(tokenizer: SentencePiece, folder: Path, model_type: str) -> dict[str, Any]:
    stored, t5 = tokenizer.stored(), model_type == "t5"
    content = base64.b64decode(stored["sentencepiece"])
    (folder / ("spiece.model" if t5 else "tokenizer.model")).write_bytes(content)
    extra = [name for name in tokenizer.specials if name.startswith("<extra_id_")]
    size = optional("sentencepiece").SentencePieceProcessor(model_proto=content).vocab_size()
    listed = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in stored.get("added", ())
    }
    added = {name: id for name, id in tokenizer.specials.items() if id >= size and name not in extra and str(id) not in listed}
    if added:
        _dump(folder / "added_tokens.json", added)
    more = {"added_tokens_decoder": listed} if listed else {}
    if t5:
        return more | {"tokenizer_class": "T5Tokenizer", "extra_ids": len(extra)}
    return more | {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": bool(stored["begin"]),
        "add_eos_token": bool(stored["end"]),
        "legacy": stored.get("legacy", False),
    }


def _as_huggingface(tokenizer: Tokenizer) -> hf.Tokenizer:
    """Convert a `bytes`, `bpe:SIZE` or word tokenizer to Hugging Face's format."""
    if isinstance(tokenizer, Words):
        model = hf.Tokenizer(models.WordLevel(dict(tokenizer.ids), unk_token=tokenizer.words[0]))
        model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return model
    if found := tokenizer.stored()["model"]:
        model = hf.Tokenizer.from_str(json.dumps(found))
    else:
        model = hf.Tokenizer(models.BPE(byte_of_character(), []))
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    spare = tokenizer.vocab_size - SPECIALS - model.get_vocab_size()  # a small corpus yields fewer tokens than requested
    specials = [END, *(f"<|special_{i}|>" for i in range(1, SPECIALS - 1)), "<mask>"]
    model.add_special_tokens([*(f"<|unused_{i}|>" for i in range(spare)), *specials])
    template = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, tokenizer.bos)])
    model.post_processor = template
    return model


def _dump(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
