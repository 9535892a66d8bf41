"""The tokenizer of a pretrained model from its files: tokenizer.json, vocab.txt, vocab.json, a SentencePiece model, GGUF."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers as hf
from tokenizers import decoders, normalizers, pre_tokenizers, processors

from memtx.data.tokenizers import gguf_vocabulary
from memtx.data.tokenizers.base import Tokenizer
from memtx.data.tokenizers.vocabularies import HuggingFace, SentencePiece
from memtx.errors import UserError

T5_EXTRA = 100  # <extra_id_0> is the last


def pretrained(path: str | Path) -> Tokenizer:
    """Of a folder with a tokenizer's files or of a .gguf file. UserError if there is none, or it cannot be read."""
    path = Path(path)
    name = f"pretrained:{path.name}"
    if path.suffix == ".gguf":
        return _guarded(path, lambda: gguf_vocabulary.read(name, path))
    if not path.is_dir():
        raise UserError(f"no tokenizer at {path}: give a folder with its files or a .gguf file")
    for file, read in READERS.items():
        if (path / file).is_file():
            return _guarded(path / file, lambda file=file, read=read: read(name, path / file, _settings(path)))
    raise UserError(f"{path} has no tokenizer: none of {', '.join(READERS)} is in it")


def _guarded(path: Path, read) -> Tokenizer:
    try:
        return read()
    except UserError:
        raise
    except Exception as error:  # `tokenizers` raises bare Exception for a model that it cannot read
        raise UserError(f"cannot read the tokenizer {path}: {error}") from error


def _settings(folder: Path) -> dict[str, Any]:
    """What the smaller files beside a vocabulary say, tokens as their text."""
    found = {}
    for file in ("special_tokens_map.json", "generation_config.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            found |= {key: value for key, value in json.loads((folder / file).read_text()).items() if value is not None}
    if (folder / "added_tokens.json").is_file():
        found["added_tokens"] = json.loads((folder / "added_tokens.json").read_text())
    if (folder / "chat_template.jinja").is_file():
        found["chat_template"] = (folder / "chat_template.jinja").read_text()
    return {
        key: value["content"] if isinstance(value, Mapping) and "content" in value else value for key, value in found.items()
    }


def _chat_template(settings: Mapping) -> str:
    """A tokenizer_config.json may have several, by name."""
    template = settings.get("chat_template", "")
    return template if isinstance(template, str) else {t["name"]: t["template"] for t in template}.get("default", "")


def _eos(settings: Mapping, ids: Mapping[str, int]) -> list[int]:
    """What the files call the end: of a sequence, and of what generation should write."""
    named = [ids[settings[key]] for key in ("eos_token", "sep_token") if settings.get(key) in ids][:1]
    listed = settings.get("eos_token_id", [])
    return sorted({*named, *(listed if isinstance(listed, list) else [listed])})


def _tokenizer_json(name: str, file: Path, settings: Mapping) -> Tokenizer:
    return _huggingface(name, hf.Tokenizer.from_file(str(file)), settings)


def _wordpiece(name: str, file: Path, settings: Mapping) -> Tokenizer:
    """BERT's vocab.txt: a token a line."""
    vocab = {token: id for id, token in enumerate(file.read_text(encoding="utf-8").splitlines())}
    model = hf.Tokenizer(hf.models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))  # pyright: ignore[reportCallIssue]
    model.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.decoder = decoders.WordPiece()
    model.add_special_tokens([token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in vocab])
    model.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    return _huggingface(name, model, {"sep_token": "[SEP]", **settings})


def _byte_bpe(name: str, file: Path, settings: Mapping) -> Tokenizer:
    """GPT-2's vocab.json and merges.txt."""
    merges = (file.parent / "merges.txt").read_text(encoding="utf-8").splitlines()
    vocab = json.loads(file.read_text(encoding="utf-8"))
    model = gguf_vocabulary.byte_bpe(vocab, [line for line in merges if line and not line.startswith("#version")], "gpt-2")
    model.add_special_tokens([token for token in vocab if token == "<|endoftext|>"])
    return _huggingface(name, model, {"eos_token": "<|endoftext|>", **settings})


def _huggingface(name: str, model: hf.Tokenizer, settings: Mapping) -> Tokenizer:
    eos = _eos(settings, model.get_vocab(with_added_tokens=True))
    return HuggingFace(name, model.to_str(), eos=eos, chat_template=_chat_template(settings))


def _sentencepiece(name: str, file: Path, settings: Mapping) -> Tokenizer:
    """A file without settings beside it is read as its families do: with a begin (Llama) texts have that, else an end (T5)."""
    text = base64.b64encode(file.read_bytes()).decode()
    plain = SentencePiece(name, text)
    specials = dict(plain.specials) | settings.get("added_tokens", {})
    if settings.get("tokenizer_class", "").startswith("T5"):
        size, extra = plain.vocab_size, settings.get("extra_ids", T5_EXTRA)
        specials |= {f"<extra_id_{i}>": size + extra - 1 - i for i in range(extra)}
    begin = [id for name, id in specials.items() if name == settings.get("bos_token", "<s>")]
    end = [id for name, id in specials.items() if name == settings.get("eos_token", "</s>")]
    return SentencePiece(
        name,
        text,
        specials=specials,
        begin=begin if settings.get("add_bos_token", True) else [],
        end=end if settings.get("add_eos_token", not begin) else [],
        eos=_eos({"eos_token": "</s>", **settings}, specials),
        chat_template=_chat_template(settings),
    )


READERS = {
    "tokenizer.json": _tokenizer_json,
    "spiece.model": _sentencepiece,
    "tokenizer.model": _sentencepiece,
    "vocab.txt": _wordpiece,
    "vocab.json": _byte_bpe,
}
