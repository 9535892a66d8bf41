"""Libraries of sentences: the vectors of each document's sentences, by a sentence encoder such as MiniLM.

n sentences, Q queries, R results, E features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from memtx.errors import UserError
from memtx.library.folder import Arrays
from memtx.library.kind import BLANK, Found, Read, Separate
from memtx.library.record import Document, Record, sha256
from memtx.library.text import split
from memtx.library.view import View, make_view
from memtx.ops import topk
from memtx.runs.embed import embed, limit
from memtx.runs.load import Loaded

TOKENS = 256  # the longest sentence of an encoder without a limit


class Sentences(Separate):
    """The vectors of sentences. An entry has a key [E], its position and its end in the text, in characters."""

    def arrays(self, document: Document, text: str) -> tuple[Arrays, int]:
        """Return the sentences of a document. Their vectors are computed without those of other documents."""
        most, frame = limit(self.loaded.lm) or TOKENS, self.loaded.tokenizer.frame
        span_n2 = np.asarray(split(text, lambda part: len(frame(part)[0]) <= most), np.int32).reshape(-1, 2)
        if not len(span_n2):
            raise UserError(f"{document.name!r} has no text")
        sentences = [text[start:end] for start, end in span_n2]
        key_nE = embed(self.loaded, sentences, max_tokens=most)
        tokens = sum(len(frame(sentence)[0]) for sentence in sentences)
        return {"0/key": key_nE, "0/position": span_n2[:, 0], "0/end": span_n2[:, 1]}, tokens

    def recall(self, record: Record, documents: Sequence[Document], query: str, k: int, read: Read) -> list[Found]:
        """Return the sentences nearest to the query by the cosine."""
        view = make_view(documents, read)
        if not view.groups:
            return []
        key_nE, count = view.groups["0"].arrays["key"], len(view.groups["0"].document_n)
        query_QE = embed(self.loaded, [query])
        span = jnp.zeros((1, 1), jnp.int32), jnp.full((1, 1), topk.LAST)
        args = jnp.asarray(query_QE)[None, :, None], jnp.asarray(key_nE)[None, :, None], jnp.arange(count)[None], span
        score_R, index_R = (np.asarray(a)[0, 0, 0] for a in topk.search(*args, min(k, count)))
        return [_found(view, int(index), float(score)) for score, index in zip(score_R, index_R, strict=True)]

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
        raise UserError("a library of sentences has no state that a language model could continue; use recall")


def _found(view: View, index: int, score: float) -> Found:
    rows = view.groups["0"]
    document = view.documents[rows.document_n[index]]
    start, end = int(rows.arrays["position"][index]), int(rows.arrays["end"][index])
    text = None if document.text is None else document.text[start:end]
    return Found(text, document.name, document.namespace, start, score, f"{document.id}:{start}")
