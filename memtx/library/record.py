"""The record of a library: every document that it has read. It is one JSON file with a line per document.

{"memtx record": 1, "version": 3, "states": {}, "sha256": "..."}     the digest is of all other lines
{"name": "report.txt", "namespace": "alice", ...}                    the fields of Document
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from memtx.errors import UserError, nearest
from memtx.fields import to_dataclass

FORMAT = 1
EVERY = "*"  # in place of a namespace: all of them
LONGEST = 200  # characters of a name
KINDS = ("sentences", "entries", "state")


@dataclass(frozen=True)
class Document:
    """A document that was read.

    sha256   of its text in UTF-8
    tokens   how many tokens the model read
    time     when it was read (ISO 8601, UTC)
    entries  how many entries the library has of it
    digest   the sha256 of the file with these entries, or "" if its state is mixed with that of other documents
    label    the number by which entries in a mixed state name it, or 0
    start    the position of its first token in that state, or 0
    text     None if the library does not keep texts
    """

    name: str
    namespace: str
    sha256: str
    tokens: int
    time: str
    entries: int
    digest: str = ""
    label: int = 0
    start: int = 0
    text: str | None = None

    @staticmethod
    def of(name: str, namespace: str, text: str) -> Document:
        """Return a document that is about to be read. Raises UserError for a name or a text that cannot be stored."""
        check_name(name, "document")
        try:
            return Document(name, namespace, sha256(text.encode()), 0, now(), 0, text=text)
        except UnicodeEncodeError:
            raise UserError(f"{name!r} has characters that UTF-8 cannot encode; clean the text first") from None

    @property
    def key(self) -> tuple[str, str]:
        """The namespace and the name. No two documents share them, and libraries are sorted by them."""
        return self.namespace, self.name

    @property
    def id(self) -> str:
        """The id, 16 hex digits. It depends on namespace, name and text."""
        return sha256(json.dumps([*self.key, self.sha256]).encode())[:16]


@dataclass(frozen=True)
class Record:
    """The documents of a library, in the order in which they were read.

    version  how many times the library has changed
    states   by namespace, the sha256 of the file with its state, in a library of states
    """

    version: int = 0
    documents: tuple[Document, ...] = ()
    states: Mapping[str, str] = field(default_factory=dict)

    def files(self) -> set[str]:
        """Return the digests of all files that the record names."""
        return {document.digest for document in self.documents if document.digest} | {*self.states.values()}

    def digest(self) -> str:
        """Return a sha256 over everything that the library remembers. It does not depend on how the library came to be.

        The order of reading counts only within a namespace of a library of states, and the time of reading never.
        """
        ordered = sorted(self.documents, key=lambda d: d.namespace if self.states else d.key)
        documents = [[*d.key, d.sha256, d.digest, d.entries, d.text is not None] for d in ordered]
        return sha256(json.dumps([documents, dict(self.states)], sort_keys=True).encode())

    def changed(self, documents: Iterable[Document], states: Mapping[str, str] | None = None) -> Record:
        """Return the next version, with these documents and states."""
        return Record(self.version + 1, tuple(documents), self.states if states is None else states)

    def visible(self, namespace: str | Collection[str]) -> list[Document]:
        """Return the documents of one or several namespaces. "*" means all."""
        spaces = {namespace} if isinstance(namespace, str) else {*namespace}
        return [document for document in self.documents if document.namespace in spaces or EVERY in spaces]

    def spaces(self) -> str:
        """Describe the namespaces that have documents, for a message."""
        names = sorted({document.namespace for document in self.documents})
        return f"there are: {', '.join(names)}" if names else "the library is empty"

    def copies(self, gone: Mapping[str, Any]) -> list[str]:
        """Return the names of other documents with the same text in the namespace of a document, given as by `describe`."""
        mine = self.visible(gone["namespace"])
        return [document.name for document in mine if document.sha256 == gone["sha256"] and document.id != gone["id"]]

    def describe(self, document: Document, gone: Collection[str], positions: set[int] | None = None) -> dict[str, Any]:
        """Return the description of a document for a certificate, without its text.

        gone: the ids of all documents that are forgotten with it. positions: of the entries, if only some are forgotten. The
        description has `copies`, the names of documents that stay and have the same text.
        """
        fields = {name: value for name, value in dataclasses.asdict(document).items() if name not in ("text", "label", "start")}
        found = {"id": document.id, **fields, **({} if positions is None else {"positions": sorted(positions)})}
        kept = Record(documents=tuple(other for other in self.documents if other.id not in gone))
        return {**found, "copies": kept.copies(found)}

    def matching(self, name: str | None, namespace: str | None) -> list[str]:
        """Return the ids of the documents with a name or id, in a namespace. None matches all.

        Raises UserError if there are none, if several namespaces have the name, or if both are None.
        """
        if name is None and namespace is None:
            raise UserError("name a document, a namespace or entries")
        here = [document for document in self.documents if namespace in (None, document.namespace)]
        found = [document for document in here if name in (None, document.name, document.id)]
        if not found and name is None:
            raise UserError(f"no document is in the namespace {namespace!r}")
        if not found:
            known = sorted({document.name for document in here})
            inside = [other for other in known if other.endswith(f"/{name}")]  # in a folder
            raise UserError(f"no document {name!r}{nearest(name or '', inside or known)}")
        if name is not None and len(found) > 1:
            spaces = ", ".join(sorted(document.namespace for document in found))
            raise UserError(f"several namespaces have a document {name!r} ({spaces}); choose one of them")
        return [document.id for document in found]

    def positions(self, entries: Collection[str]) -> dict[str, set[int]]:
        """Return the positions of entries by document id. Raises UserError for an id without a document."""
        known, positions = {document.id for document in self.documents}, {}
        for entry in entries:
            document, _, position = entry.partition(":")
            if document not in known or not position.isdecimal():
                raise UserError(f"no entry {entry!r}; recall shows the ids of entries")
            positions.setdefault(document, set()).add(int(position))
        return positions

    def dumps(self) -> str:
        """Return the content of the file."""
        lines = "".join(json.dumps(dataclasses.asdict(document)) + "\n" for document in self.documents)
        head = {"memtx record": FORMAT, "version": self.version, "states": dict(self.states), "sha256": sha256(lines.encode())}
        return json.dumps(head) + "\n" + lines


@dataclass(frozen=True)
class Settings:
    """The settings of a library, which never change.

    kind         one of KINDS
    model        the model that reads and recalls, as `memtx.load` takes it
    context      how many tokens full attention of a pretrained model keeps
    fingerprint  the sha256 of the model, see `memtx.library.kinds.fingerprint`
    texts        whether the record keeps the texts
    """

    kind: str
    model: str
    context: int
    fingerprint: str
    texts: bool = True

    def dumps(self) -> str:
        """Return the content of the file."""
        values = {"memtx library": FORMAT} | dataclasses.asdict(self)
        return json.dumps(values | {"sha256": sha256(json.dumps(values).encode())}, indent=2) + "\n"


def load_record(content: bytes) -> Record:
    """Return the record in a file. Raises UserError if a byte has changed."""
    first, _, lines = content.partition(b"\n")
    try:
        head = json.loads(first)
        _check_format(head, "memtx record")
        if head["sha256"] != sha256(lines):
            raise UserError("its digest differs")
        documents = tuple(to_dataclass(Document, json.loads(line), "document") for line in lines.split(b"\n") if line)
        record = to_dataclass(Record, {"version": head["version"], "documents": documents, "states": head["states"]}, "record")
    except (ValueError, TypeError, KeyError) as error:
        raise UserError("it is not a record of a library") from error
    if not all(re.fullmatch("[0-9a-f]{64}", name) for name in record.files()):  # they become file names
        raise UserError("a digest in it is not a sha256")
    return record


def load_settings(content: bytes) -> Settings:
    """Return the settings in a file. Raises UserError if it has none."""
    try:
        values: dict[str, Any] = json.loads(content)
        _check_format(values, "memtx library")
        if values.pop("sha256") != sha256(json.dumps(values).encode()):
            raise UserError("its digest differs")
        settings = to_dataclass(Settings, {name: value for name, value in values.items() if name != "memtx library"})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError("it is not the settings of a library") from error
    if settings.kind not in KINDS:
        raise UserError(f"its kind is {settings.kind!r}, not one of {', '.join(KINDS)}")
    return settings


def _check_format(values: Mapping[str, Any], name: str) -> None:
    if values[name] != FORMAT:
        raise UserError(f"its format is {values[name]!r}, and this version of memtx reads format {FORMAT}")


def check_name(name: str, what: str) -> None:
    """Raise a UserError unless a name of a document or namespace can be shown on a line."""
    if not name or not name.isprintable() or len(name) > LONGEST or name != name.strip() or name == EVERY:
        raise UserError(f"the name of a {what} must have 1 to {LONGEST} printable characters, not {name[:60]!r}")


def now() -> str:
    """Return the time, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def sha256(content: bytes) -> str:
    """Return the SHA-256 of bytes, 64 hex digits."""
    return hashlib.sha256(content).hexdigest()
