"""The small files beside a vocabulary, which set the added tokens, the end tokens and the family.

They are tokenizer_config.json, special_tokens_map.json, added_tokens.json, generation_config.json, config.json and
chat_template.jinja. Each may be missing. If two of them disagree, their precedence is that of transformers.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from memtx.errors import UserError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
GENERIC = ("", "PreTrained", "Tokenizers")  # classes of transformers that read a tokenizer.json of any family
MOST = 1 << 22  # tokens, more than any vocabulary has
FAMILIES = {"llama": "Llama", "mistral": "Llama", "qwen2": "Qwen2", "gpt2": "GPT2", "bert": "Bert", "t5": "T5"}


class Settings:
    """The settings in the files of a folder.

    options: tokenizer_config.json and special_tokens_map.json. model: config.json. Raises UserError if a file is not a JSON
    object.
    """

    def __init__(self, folder: Path):
        self.options = _object(folder / "tokenizer_config.json")
        self.model, self._generation = (_object(folder / f"{name}.json") for name in ("config", "generation_config"))
        self._added = _object(folder / "added_tokens.json")
        specials = {key: value for key, value in _object(folder / "special_tokens_map.json").items() if value is not None}
        self._listed = self.options.get("added_tokens_decoder")
        self.options = {**specials, **self.options} if self._listed else {**self.options, **specials}
        template = folder / "chat_template.jinja"
        self._template = template.read_text(encoding="utf-8") if template.is_file() else self.options.get("chat_template")

    @property
    def family(self) -> str:
        """Return the class of the tokenizer in transformers without "Tokenizer", such as "Qwen2", or ""."""
        model_type = self.model.get("model_type")
        if model_type == "qwen2":  # its files may name another class
            return FAMILIES[model_type]
        named = self.options.get("tokenizer_class") or self.model.get("tokenizer_class") or ""
        family = str(named).removesuffix("Fast").removesuffix("Tokenizer").removesuffix("Backend")
        return FAMILIES.get(str(model_type), str(model_type or "")) if family in GENERIC else family

    def check_family(self, *known: str) -> str:
        """Return the family, spelled as in `known`, or "" if no file names one. Raises UserError if it is not in `known`."""
        names = {"": "", **{name.lower(): name for name in known}}
        if self.family.lower() not in names:
            raise UserError(
                f"a {self.family} tokenizer needs a tokenizer.json; from these files memtx reads only {', '.join(known)}; "
                "write one with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW)"
            )
        return names[self.family.lower()]

    @property
    def chat_template(self) -> str:
        """Return the chat template, or "". If tokenizer_config.json has several named templates, the default one is used."""
        template = self._template or ""
        return template if isinstance(template, str) else {t["name"]: t["template"] for t in template}.get("default", "")

    def token(self, key: str, default: str = "") -> str:
        """Return the text of a token with a role, such as "eos_token"."""
        return _content(self.options.get(key)) or default

    def added(self, vocab: Mapping[str, int], *defaults: str) -> dict[int, AddedToken]:
        """Return the tokens that the files add to a vocabulary, by id. Special tokens listed without an id come last.

        A token of the vocabulary keeps its id. defaults: the tokens that are special in this family. Raises UserError if a file
        gives a token the id of another token, or an impossible id.
        """
        named = {token: token for token in defaults if token in vocab} | {_content(value): value for value in self._specials()}
        content_of = {id: content for content, id in vocab.items()}
        found = {vocab.get(token.content, id): token for id, token in self._with_ids(named)}
        for id, token in found.items():
            if content_of.get(id, token.content) != token.content:
                raise UserError(f"the added token {token.content!r} has the id {id}, which is that of {content_of[id]!r}")
        id_of = {**vocab, **{token.content: id for id, token in found.items()}}
        for content, value in named.items():
            id_of.setdefault(content, max(id_of.values(), default=-1) + 1)
            token = found.get(id_of[content])
            found[id_of[content]] = _token(value if token is None else _fields(token), True)
        return dict(sorted(found.items()))

    def _with_ids(self, named: Collection[str]) -> Iterator[tuple[int, AddedToken]]:
        """Yield (id, token) for the tokens that a file lists with ids. named: the specials."""
        if self._listed:
            if not isinstance(self._listed, Mapping):
                raise UserError("added_tokens_decoder in tokenizer_config.json must be a JSON object of tokens by id")
            for id, token in self._listed.items():
                special = isinstance(token, Mapping) and token.get("special") is True
                yield _checked_id(int(id) if id.isdecimal() else id, _content(token)), _token(token, special)
        else:
            for content, id in self._added.items():
                yield _checked_id(id, content), _token(content, content in named)

    def _specials(self) -> list:
        """Return the specials as written in the files: those with a common role, those with a different role, and the rest."""
        own = [key for key in self.options if key.endswith("_token") and key not in NAMED]
        found = [self.options.get(key) for key in (*NAMED, *own)]
        for key in ("extra_special_tokens", "additional_special_tokens"):
            more = self.options.get(key) or []
            found += more.values() if isinstance(more, Mapping) else more
        return [value for value in found if _content(value)]

    def ends(self, ids: Mapping[str, int], default: str = "") -> dict[str, Any]:
        """Return `eos`, the tokens at which generation stops, and `ending`, the token that the tokenizer puts after a text.

        `eos` comes from generation_config.json, else from config.json, else it is `ending`. ids: the ids of the vocabulary.
        default: the text of `ending` if no file names one. Raises UserError if a file names an invalid id.
        """
        own = ids.get(self.token("eos_token") or self.token("sep_token", default))
        for file, stored in (("generation_config.json", self._generation), ("config.json", self.model)):
            if (value := stored.get("eos_token_id")) not in (None, []):
                return {"eos": checked_ends(value, ids.values(), f"eos_token_id in {file}"), "ending": own}
        return {"eos": [] if own is None else [own], "ending": own}


def checked_ends(value: Any, ids: Collection[int], named: str) -> list[int]:
    """Return the list of ids in a file. Raises UserError if they are not ids of the vocabulary."""
    listed = value if isinstance(value, list) else [value]
    if any(type(id) is not int for id in listed):
        raise UserError(f"{named} is {reprlib.repr(value)}, which is neither a token id nor a list of ids")
    if unknown := sorted(set(listed) - set(ids)):
        raise UserError(
            f"{named} is {reprlib.repr(value)}, but the tokenizer has no token {unknown[0]}; its ids end at {max(ids)}"
        )
    return listed


def _checked_id(id: Any, content: str) -> int:
    if not content:
        raise UserError(f"the added token {id} has no text")
    if type(id) is not int or not 0 <= id < MOST:
        raise UserError(f"the added token {content!r} has the id {id!r}, which is not a valid token id")
    return id


def lines(path: Path) -> list[str]:
    r"""Return the lines of a file, which end in \n or \r\n. Other separators, such as U+2028, may be part of a token."""
    text = path.read_bytes().decode("utf-8-sig").removesuffix("\n")
    return [line.removesuffix("\r") for line in text.split("\n")]


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path.name} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path.name} must be a JSON object, not {type(found).__name__}")
    return found


def _content(value: Any) -> str:
    """Return the text of a token, which a file may write as text or as an object with flags."""
    content = value.get("content") if isinstance(value, Mapping) else value
    return content if isinstance(content, str) else ""


def _fields(token: AddedToken) -> dict[str, Any]:
    return {"content": token.content} | {flag: getattr(token, flag) for flag in FLAGS}


def _token(value: Any, special: bool) -> AddedToken:
    """Return a token. By default only special tokens are matched before normalisation, as in transformers."""
    flags = {flag: bool(value[flag]) for flag in FLAGS if flag in value} if isinstance(value, Mapping) else {}
    return AddedToken(_content(value), special=special, **{"normalized": not special, **flags})
