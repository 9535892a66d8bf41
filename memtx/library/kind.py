"""The kinds of libraries, and how each of them uses its model.

Sentences   the vectors of a document's sentences, by a sentence encoder
Entries     the entries of the banks in a language model's state: pairs of kNN-LM, or keys and values
States      the state of a language model after it has read all documents of a namespace, one after another

The first two read each document separately, so removing one leaves a library that never read it. A state mixes its documents.
It is made again from the texts of the others.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from memtx.errors import UserError
from memtx.fields import plain
from memtx.files.cache import digest
from memtx.library.folder import Arrays, packed
from memtx.library.record import Document, Record
from memtx.library.view import without_positions
from memtx.runs.load import Loaded

Read = Callable[[str], Arrays]  # returns the arrays in the file with a digest
Change = tuple[Record, dict[str, bytes]]  # a new record, and the new files by digest
BLANK = "█"  # in place of the characters of a forgotten sentence


@dataclasses.dataclass(frozen=True)
class Found:
    """An entry that was recalled.

    text      the sentence, or the text around the token. None if the library keeps no texts
    span      where this text begins and ends in the document, in characters. None if it is unknown
    document  the name of its document
    position  where it begins in the document: a character in a library of sentences, or else a token
    score     the cosine of sentence and query, or the share of the model's reads that went to the entry
    entry     its id, for `forget`
    """

    text: str | None
    span: tuple[int, int] | None
    document: str
    namespace: str
    position: int
    score: float
    entry: str


@dataclasses.dataclass(frozen=True)
class Query:
    """A question to a library.

    text    the question, or for a language model also its tokens
    k       how many entries are wanted
    around  how many sentences before and after each sentence its text includes
    first   the first token whose prediction counts. The reads of token n - 1 predict token n
    """

    text: str | Sequence[int]
    k: int = 5
    around: int = 0
    first: int = 0


class Kind:
    """A kind of library. methods: its methods of forgetting, the default first."""

    methods: ClassVar[tuple[str, ...]]

    def __init__(self, loaded: Loaded):
        self.loaded = loaded

    def add(self, record: Record, document: Document, text: str, read: Read) -> Change:
        """Add a document. Raises UserError if the model cannot read it."""
        raise NotImplementedError(f"{type(self).__name__}.add")

    def remove(self, record: Record, ids: Collection[str], method: str, read: Read) -> Change:
        """Remove documents by one of the methods."""
        raise NotImplementedError(f"{type(self).__name__}.remove")

    def recall(self, record: Record, documents: Sequence[Document], query: Query, read: Read) -> list[Found]:
        """Return the best entries of these documents, the best first."""
        raise NotImplementedError(f"{type(self).__name__}.recall")

    def labelled(self, documents: Sequence[Document]) -> dict[int, Document]:
        """Return the documents by the label of their entries in the state of `model`."""
        raise NotImplementedError(f"{type(self).__name__}.labelled")

    def model(self, record: Record, documents: Sequence[Document], read: Read, batch_size: int = 1) -> Loaded:
        """Return the model with a state in which each of B streams remembers these documents."""
        raise NotImplementedError(f"{type(self).__name__}.model")


class Separate(Kind):
    """A kind that reads each document separately into a file of entries."""

    methods = ("erase", "mask")

    def arrays(self, document: Document, text: str) -> tuple[Arrays, int]:
        """Return a document's entries, and the number of tokens read. They depend on nothing but the text and the model."""
        raise NotImplementedError(f"{type(self).__name__}.arrays")

    def add(self, record: Record, document: Document, text: str, read: Read) -> Change:
        """Add the entries of a document."""
        arrays, tokens = self.arrays(document, text)
        name, content = packed(arrays)
        document = dataclasses.replace(document, tokens=tokens, entries=count_entries(arrays), digest=name)
        return record.changed((*record.documents, document)), {name: content}

    def remove(self, record: Record, ids: Collection[str], method: str, read: Read) -> Change:
        """Remove documents."""
        return record.changed(document for document in record.documents if document.id not in ids), {}

    def thin(self, record: Record, positions: Mapping[str, set[int]], read: Read) -> Change:
        """Remove single entries, by document id and position. The other entries stay as they are."""
        documents, files = [], {}
        for document in record.documents:
            if found := positions.get(document.id):
                old = read(document.digest)
                if missing := found - {int(at) for path, array in old.items() if path.endswith("/position") for at in array}:
                    raise UserError(f"no entry {document.id}:{min(missing)}; recall shows the ids of entries")
                arrays = without_positions(old, found)
                name, files[name] = packed(arrays)
                document = dataclasses.replace(document, digest=name, entries=count_entries(arrays))
                document = self.redacted(document, old, found)
            documents.append(document)
        return record.changed(documents), files

    def redacted(self, document: Document, arrays: Arrays, positions: set[int]) -> Document:
        """Return the document without the text of these entries. By default, the library no longer keeps its text."""
        return dataclasses.replace(document, text=None)


def count_entries(arrays: Arrays) -> int:
    """Return the number of entries in a document's file."""
    return sum(len(array) for path, array in arrays.items() if path.endswith("/position"))


def fingerprint(loaded: Loaded) -> str:
    """Return a sha256 of a model: its settings, its tokenizer and its parameters."""
    model, total = loaded.lm.model, hashlib.sha256()
    memory = {name: _chosen(config) for name, config in model.memory.items()}
    tokenizer = {**loaded.tokenizer.stored(), "name": ""}  # its name and `pretrained` may be paths, and folders move
    total.update(digest(_chosen(model) | {"memory": memory, "pretrained": ""}, tokenizer).encode())
    for path, leaf in jax.tree.leaves_with_path(loaded.params):
        array = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        total.update(array.data)
    return total.hexdigest()


def _chosen(group: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that differ from their defaults, so that a new field changes no fingerprint."""
    default = type(group)()
    return {name: value for name, value in plain(group).items() if getattr(group, name) != getattr(default, name)}
