"""The small files beside a vocabulary: which tokens were added to it, which one ends a text, and which family reads it.

They are tokenizer_config.json, special_tokens_map.json, added_tokens.json, generation_config.json, config.json and
chat_template.jinja. Each may be missing. Where two of them disagree, the same one wins as in transformers.
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
MOST = 1 << 22  # tokens: more than any vocabulary has
FAMILIES = {"llama": "Llama", "mistral": "Llama", "qwen2": "Qwen2", "gpt2": "GPT2", "bert": "Bert", "t5": "T5"}


class Settings:
    """Of a folder. UserError if one of the files is not a JSON object.

    options: of tokenizer_config.json and special_tokens_map.json. model: config.json.
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
        """The tokenizer's class in transformers without "Tokenizer", such as "Qwen2"; "" if no file names one."""
        model_type = self.model.get("model_type")
        if model_type == "qwen2":  # whatever class its files name
            return FAMILIES[model_type]
        named = self.options.get("tokenizer_class") or self.model.get("tokenizer_class") or ""
        family = str(named).removesuffix("Fast").removesuffix("Tokenizer").removesuffix("Backend")
        return FAMILIES.get(str(model_type), str(model_type or "")) if family in GENERIC else family

    def check_family(self, *known: str) -> str:
        """The one of `known` that the family is, "" if no file names a family. UserError if it is another."""
        names = {"": "", **{name.lower(): name for name in known}}
        if self.family.lower() not in names:
            raise UserError(
                f"a {self.family} tokenizer needs a tokenizer.json: from these files memtx reads only {', '.join(known)}; "
                "write one with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW)"
            )
        return names[self.family.lower()]

    @property
    def chat_template(self) -> str:
        """A tokenizer_config.json may have several, by name."""
        template = self._template or ""
        return template if isinstance(template, str) else {t["name"]: t["template"] for t in template}.get("default", "")

    def token(self, key: str, default: str = "") -> str:
        """The text of the token that has a part, such as "eos_token"."""
        return _content(self.options.get(key)) or default

    def added(self, vocab: Mapping[str, int], *defaults: str) -> dict[int, AddedToken]:
        """The tokens that the files add to a vocabulary, by id, in order: those listed with an id, then other specials.

        A token of the vocabulary keeps its id. defaults: those of its tokens that are special in this family. UserError if a
        file gives a token the id of another, or one that no vocabulary has.
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
        """Those that a file lists with their ids. named: the specials."""
        if self._listed:
            if not isinstance(self._listed, Mapping):
                raise UserError("added_tokens_decoder in tokenizer_config.json should be a JSON object: tokens by their ids")
            for id, token in self._listed.items():
                special = isinstance(token, Mapping) and token.get("special") is True
                yield _checked_id(int(id) if id.isdecimal() else id, _content(token)), _token(token, special)
        else:
            for content, id in self._added.items():
                yield _checked_id(id, content), _token(content, content in named)

    def _specials(self) -> list:
        """As the files write them: those that have a part, those of the model, and others."""
        own = [key for key in self.options if key.endswith("_token") and key not in NAMED]
        found = [self.options.get(key) for key in (*NAMED, *own)]
        for key in ("extra_special_tokens", "additional_special_tokens"):
            more = self.options.get(key) or []
            found += more.values() if isinstance(more, Mapping) else more
        return [value for value in found if _content(value)]

    def ends(self, ids: Mapping[str, int], default: str = "") -> dict[str, Any]:
        """`eos` and `ending` of the tokenizer: the tokens that end what is generated, and its own one.

        Those are of generation_config.json, else config.json, else its own. ids: of the vocabulary. default: its own where no
        file names one. UserError for what is no id.
        """
        own = ids.get(self.token("eos_token") or self.token("sep_token", default))
        for file, stored in (("generation_config.json", self._generation), ("config.json", self.model)):
            if (value := stored.get("eos_token_id")) not in (None, []):
                return {"eos": checked_ends(value, ids.values(), f"eos_token_id in {file}"), "ending": own}
        return {"eos": [] if own is None else [own], "ending": own}


def checked_ends(value: Any, ids: Collection[int], named: str) -> list[int]:
    """Ids as a file lists them. UserError if they are not ids of the vocabulary."""
    listed = value if isinstance(value, list) else [value]
    if any(type(id) is not int for id in listed):
        raise UserError(f"{named} is {reprlib.repr(value)}, which is neither the id of a token nor a list of ids")
    if unknown := sorted(set(listed) - set(ids)):
        raise UserError(
            f"{named} is {reprlib.repr(value)}, but the tokenizer has no token {unknown[0]}; its ids end at {max(ids)}"
        )
    return listed


def _checked_id(id: Any, content: str) -> int:
    if not content:
        raise UserError(f"the added token {id} has no text")
    if type(id) is not int or not 0 <= id < MOST:
        raise UserError(f"the added token {content!r} has the id {id!r}, which is no token of any vocabulary")
    return id


def lines(path: Path) -> list[str]:
    r"""The lines of a file, which only \n and \r\n end: other signs, such as U+2028, may be part of a token."""
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
        raise UserError(f"{path.name} should be a JSON object, not {type(found).__name__}")
    return found


def _content(value: Any) -> str:
    """Of a token that a file writes as text, or as an object with flags."""
    content = value.get("content") if isinstance(value, Mapping) else value
    return content if isinstance(content, str) else ""


def _fields(token: AddedToken) -> dict[str, Any]:
    return {"content": token.content} | {flag: getattr(token, flag) for flag in FLAGS}


def _token(value: Any, special: bool) -> AddedToken:
    """transformers normalizes a text before it looks for a token, unless the token is special or says otherwise."""
    flags = {flag: bool(value[flag]) for flag in FLAGS if flag in value} if isinstance(value, Mapping) else {}
    return AddedToken(_content(value), special=special, **{"normalized": not special, **flags})
