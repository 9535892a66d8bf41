"""Libraries of sentences: the vectors of each document's sentences, by a sentence encoder such as MiniLM.

n sentences, Q queries, R results, E features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from memtx.data.sentences import split
from memtx.errors import UserError
from memtx.library.folder import Arrays
from memtx.library.kind import BLANK, Change, Found, Query, Read, Separate
from memtx.library.record import Document, Record, sha256
from memtx.library.search import Index
from memtx.library.view import View, make_view
from memtx.runs.embed import embed, limit
from memtx.runs.load import Loaded

TOKENS = 256  # the longest sentence of an encoder without a limit


class Sentences(Separate):
    """The vectors of sentences. An entry has a key [E], its position and its end in the text, in characters."""

    def __init__(self, loaded: Loaded):
        super().__init__(loaded)
        self.most = limit(loaded.lm) or TOKENS
        self._searched: tuple[set[str], View, Index] | None = None

    def length(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return len(self.loaded.tokenizer.frame(text)[0])

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of texts, [len(texts), E]."""
        return embed(self.loaded, texts, max_tokens=self.most)

    def arrays(self, document: Document, text: str) -> tuple[Arrays, int]:
        """Return the sentences of a document. Their vectors are computed without those of other documents."""
        span_n2 = np.asarray(split(text, lambda part: self.length(part) <= self.most), np.int32).reshape(-1, 2)
        if not len(span_n2):
            raise UserError(f"{document.name!r} has no text")
        sentences = [text[start:end] for start, end in span_n2]
        arrays = {"0/key": self.vectors(sentences), "0/position": span_n2[:, 0], "0/end": span_n2[:, 1]}
        return arrays, sum(map(self.length, sentences))

    def recall(self, record: Record, documents: Sequence[Document], query: Query, read: Read) -> list[Found]:
        """Return the sentences nearest to the query by the cosine."""
        if not isinstance(query.text, str):
            raise UserError("a library of sentences recalls by a text, not by tokens")
        if query.first:
            raise UserError("first is for the tokens that a language model reads; a library of sentences has none")
        self._drop_unless_in(record)
        if not any(document.entries for document in documents):
            return []
        view, index = self._index(documents, read)
        score_QR, index_QR = index.search(self.vectors([query.text]), query.k)
        best = zip(score_QR[0], index_QR[0], strict=True)
        return [_found(view, int(row), float(score), query.around) for score, row in best]

    def _index(self, documents: Sequence[Document], read: Read) -> tuple[View, Index]:
        """Return the view of the documents and its index, which are kept for the next query."""
        searched, names = self._searched, _names(documents)
        if searched is None or searched[0] != names:
            view = make_view(documents, read)
            self._searched = searched = names, view, Index(view.groups["0"].arrays["key"])
        return searched[1:]

    def remove(self, record: Record, ids: Collection[str], method: str, read: Read) -> Change:
        """Remove documents, from the last search too."""
        change = super().remove(record, ids, method, read)
        self._drop_unless_in(change[0])
        return change

    def thin(self, record: Record, positions: Mapping[str, set[int]], read: Read) -> Change:
        """Remove single sentences, from the last search too."""
        change = super().thin(record, positions, read)
        self._drop_unless_in(change[0])
        return change

    def _drop_unless_in(self, record: Record) -> None:
        """Drop the view and the index of the last search, unless the record has all of their documents as they are."""
        if (searched := self._searched) and not searched[0] <= _names(record.documents):
            self._searched = None

    def redacted(self, document: Document, arrays: Arrays, positions: set[int]) -> Document:
        """Return the document with blanked-out sentences."""
        if document.text is None:
            return document
        text = document.text
        for start, end in zip(arrays["0/position"].tolist(), arrays["0/end"].tolist(), strict=True):
            if start in positions:
                text = text[:start] + BLANK * (end - start) + text[end:]
        return dataclasses.replace(document, text=text, sha256=sha256(text.encode()))

    def model(self, record: Record, documents: Sequence[Document], read: Read, batch_size: int = 1) -> Loaded:
        """Raise UserError, because a sentence encoder generates nothing."""
        raise UserError(
            "a library of sentences has no language model that could continue or explain a text; recall shows the sentences "
            "nearest to a text, and memtx memory read --memory=DIR --model=smollm2 makes a library with a language model"
        )


def _names(documents: Sequence[Document]) -> set[str]:
    """Return names of the documents and their entries."""
    return {f"{document.id} {document.digest}" for document in documents}


def _found(view: View, index: int, score: float, around: int) -> Found:
    """Return the sentence at an index of the view, with its neighbours in the document as text."""
    rows = view.groups["0"]
    document = view.documents[rows.document_n[index]]
    position_n, end_n = rows.arrays["position"], rows.arrays["end"]
    first, last = np.searchsorted(rows.document_n, rows.document_n[index] + np.arange(2)) - (0, 1)  # of the document
    span = int(position_n[max(index - around, first)]), int(end_n[min(index + around, last)])
    text, position = None if document.text is None else document.text[slice(*span)], int(position_n[index])
    return Found(text, span, document.name, document.namespace, position, score, f"{document.id}:{position}")
