"""Readers for the tokenizer of a pretrained model: tokenizer.json, vocab.txt, vocab.json, a SentencePiece model, or GGUF."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import tokenizers as hf
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers

from memtx.data.tokenizers import gguf_vocabulary
from memtx.data.tokenizers.base import Pretrained
from memtx.data.tokenizers.cuts import CUTS, byte_bpe
from memtx.data.tokenizers.huggingface import HuggingFace, frame, template
from memtx.data.tokenizers.sentencepiece import SentencePiece
from memtx.data.tokenizers.settings import FLAGS, MOST, Settings, lines
from memtx.errors import UserError, optional

T5_EXTRA = 100  # the number of extra ids, of which <extra_id_0> is the last
WORDPIECE = ("Bert", "ConvBert", "DistilBert", "Electra", "LayoutLM", "Lxmert", "MobileBert", "SqueezeBert")


def pretrained(path: str | Path) -> Pretrained:
    """Read the tokenizer of a folder or of a .gguf file. Raises UserError if there is none or it cannot be read.

    Added tokens beyond `vocab_size` in the config.json of the folder are not used (see `Pretrained.within`).
    """
    path = Path(path)
    name = f"pretrained:{path.name}"
    if path.suffix == ".gguf":
        return _guarded(path, lambda: gguf_vocabulary.read(name, path))
    if not path.is_dir():
        raise UserError(f"no tokenizer at {path}; give a folder with its files or a .gguf file")
    for file, read in READERS.items():
        if (path / file).is_file():
            return _guarded(path / file, lambda file=file, read=read: _fitted(read, name, path / file))
    raise UserError(f"{path} has no tokenizer: it has none of {', '.join(READERS)}")


def _guarded(path: Path, read) -> Pretrained:
    """Turn every error into a UserError that names the file."""
    try:
        return read()
    except Exception as error:  # `tokenizers` raises bare Exception for a model that it cannot read
        if isinstance(error, UserError) and str(path) in str(error):
            raise
        raise UserError(f"cannot read the tokenizer {path}: {' '.join(str(error).split())}") from error


def _fitted(read, name: str, file: Path) -> Pretrained:
    settings = Settings(file.parent)
    found, rows = read(name, file, settings), settings.model.get("vocab_size")
    return found.within(rows) if type(rows) is int and rows > 0 else found


def _tokenizer_json(name: str, file: Path, settings: Settings) -> Pretrained:
    return _huggingface(name, hf.Tokenizer.from_file(str(file)), settings)


def _wordpiece(name: str, file: Path, settings: Settings) -> Pretrained:
    """Read BERT's vocab.txt, which has one token per line."""
    settings.check_family(*WORDPIECE)
    vocab = {token: id for id, token in enumerate(lines(file))}
    part = {key: settings.token(f"{key}_token", f"[{key.upper()}]") for key in ("pad", "unk", "cls", "sep", "mask")}
    added = settings.added(vocab, *part.values())
    kind = hf.models.WordPiece(_with_gaps(vocab, added), unk_token=part["unk"], max_input_chars_per_word=100)  # pyright: ignore[reportCallIssue]
    model = hf.Tokenizer(kind)
    model.normalizer = normalizers.BertNormalizer(
        lowercase=settings.options.get("do_lower_case", True),
        strip_accents=settings.options.get("strip_accents"),
        handle_chinese_chars=settings.options.get("tokenize_chinese_chars", True),
    )
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.decoder = decoders.WordPiece()
    _add(model, added)
    ids = {f"[{key.upper()}]": [_id(model, part[key])] for key in ("cls", "sep")}
    model.post_processor = template(model, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ids)
    return _huggingface(name, model, settings, part["sep"])


def _byte_bpe(name: str, file: Path, settings: Settings) -> Pretrained:
    """Read vocab.json and merges.txt of GPT-2 and Qwen2."""
    cut = CUTS["qwen2" if settings.check_family("GPT2", "CodeGen", "Qwen2") == "Qwen2" else "gpt-2"]
    merges = [line for line in lines(file.with_name("merges.txt")) if line and not line.startswith("#version")]
    vocab = json.loads(file.read_text(encoding="utf-8"))
    end = "<|endoftext|>"
    added = settings.added(vocab, end)
    prefix = bool(settings.options.get("add_prefix_space"))
    model = byte_bpe(_with_gaps(vocab, added), merges, cut, add_prefix_space=prefix)
    _add(model, added)
    asked = [key for key in ("bos", "eos") if settings.options.get(f"add_{key}_token")]
    ids = {key: [_id(model, settings.token(f"{key}_token", end))] for key in asked}
    frame(model, ids.get("bos", []), ids.get("eos", []))
    return _huggingface(name, model, settings, end)


def _with_gaps(vocab: Mapping[str, int], added: Mapping[int, AddedToken]) -> dict[str, int]:
    """Return the vocabulary with the added tokens that leave a gap. `tokenizers` numbers the others consecutively."""
    found, following = dict(vocab), max(vocab.values(), default=-1) + 1
    for id, token in added.items():
        if id == following:
            following += 1
        elif token.content not in vocab:
            found[token.content] = id
    return found


def _add(model: hf.Tokenizer, added: Mapping[int, AddedToken]) -> None:
    model.add_tokens([*added.values()])
    for id, token in added.items():
        if (found := _id(model, token.content)) != id:
            raise UserError(f"the added token {token.content!r} cannot have the id {id}, because it has the id {found}")


def _id(model: hf.Tokenizer, token: str) -> int:
    if (id := model.token_to_id(token)) is None:
        raise UserError(f"the vocabulary has no token {token!r}")
    return id


def _huggingface(name: str, model: hf.Tokenizer, settings: Settings, end: str = "") -> Pretrained:
    """Build the tokenizer. end: the token that ends a text, if no file names one."""
    ends = settings.ends(model.get_vocab(with_added_tokens=True), end)
    return HuggingFace(name, model.to_str(), chat_template=settings.chat_template, **ends)


def _sentencepiece(name: str, file: Path, settings: Settings) -> Pretrained:
    """Read a SentencePiece model. By default, texts get a start token if there is one (Llama), or an end token (T5)."""
    family, options = settings.check_family("Llama", "T5", "MT5"), settings.options
    t5, content = family in ("T5", "MT5"), file.read_bytes()
    model = optional("sentencepiece.sentencepiece_model_pb2").ModelProto.FromString(content)
    if (prefix := options.get("add_prefix_space")) is not None and not t5:
        model.normalizer_spec.add_dummy_prefix = bool(prefix)
        content = model.SerializeToString()
    vocab = {piece.piece: id for id, piece in enumerate(model.pieces)}
    specials = {piece.piece: vocab[piece.piece] for piece in model.pieces if piece.type == piece.CONTROL}
    if t5:
        size, extra = len(vocab), options.get("extra_ids", T5_EXTRA)
        if type(extra) is not int or not 0 <= extra < MOST:
            raise UserError(f"extra_ids in tokenizer_config.json is {extra!r}, which is not a number of tokens")
        specials |= {f"<extra_id_{i}>": size + extra - 1 - i for i in range(extra)}
    added = settings.added({**vocab, **specials})
    specials |= {token.content: id for id, token in added.items() if token.special}
    begin = [specials[token] for token in (settings.token("bos_token", "<s>"),) if token in specials]
    end = [specials[token] for token in (settings.token("eos_token", "</s>"),) if token in specials]
    return SentencePiece(
        name,
        base64.b64encode(content).decode(),
        specials=specials,
        added=[_listed(id, token) for id, token in added.items() if not token.special or _flagged(token)],
        begin=begin if options.get("add_bos_token", True) else [],
        end=end if options.get("add_eos_token", not begin) else [],
        legacy=options.get("legacy") is True,
        chat_template=settings.chat_template,
        **settings.ends({**vocab, **specials}, "</s>"),
    )


def _flagged(token: AddedToken) -> bool:
    return token.single_word or token.lstrip or token.rstrip


def _listed(id: int, token: AddedToken) -> dict:
    """Return an added token in the format of tokenizer.json."""
    return {"id": id, "content": token.content, "special": token.special} | {flag: getattr(token, flag) for flag in FLAGS}


READERS = {
    "tokenizer.json": _tokenizer_json,
    "spiece.model": _sentencepiece,
    "tokenizer.model": _sentencepiece,
    "vocab.txt": _wordpiece,
    "vocab.json": _byte_bpe,
}
