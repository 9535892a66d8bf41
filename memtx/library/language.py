"""Libraries of a language model: entries of its banks, or whole states of one stream.

B streams, T time, N query heads, R neighbours, G groups of layers in a stack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memtx.errors import UserError
from memtx.generate import writer
from memtx.library.attribution import collect_attribution
from memtx.library.entries import answering_state, holders, read_entries, with_entries
from memtx.library.folder import Arrays, packed
from memtx.library.kind import Change, Found, Kind, Query, Read, Separate
from memtx.library.record import Document, Record
from memtx.library.view import make_view
from memtx.memory.bank import Bank, forget
from memtx.models.lm import LMState
from memtx.nn.reads import KIND
from memtx.runs.load import Loaded
from memtx.training.trees import named_leaves

AROUND = 24, 8  # tokens before and after an entry that are shown with it


class Entries(Separate):
    """The entries of the banks in a state. A model without a bank gets a kNN-LM head, which needs no training."""

    def __init__(self, loaded: Loaded):
        super().__init__(dataclasses.replace(loaded, lm=with_entries(loaded.lm)))

    def arrays(self, document: Document, text: str) -> tuple[Arrays, int]:
        """Return the entries of a document, which is read from a fresh state."""
        ids = self.loaded.tokenizer.frame(text)[0]
        return read_entries(self.loaded.lm, self.loaded.params, ids), len(ids)

    def model(self, record: Record, documents: Sequence[Document], read: Read, batch_size: int = 1) -> Loaded:
        """Return the model with a fresh state that holds the entries of these documents."""
        lm, state = answering_state(self.loaded.lm, make_view(documents, read), batch_size)
        return dataclasses.replace(self.loaded, lm=lm, state=state)

    def recall(self, record: Record, documents: Sequence[Document], query: Query, read: Read) -> list[Found]:
        """Return the entries that the model reads most while it reads the query."""
        text = query.text
        ids = self.loaded.tokenizer.frame(text)[0] if isinstance(text, str) else np.asarray(text, np.int32)
        return recalled(self.model(record, documents, read), self.labelled(documents), ids, query)

    def labelled(self, documents: Sequence[Document]) -> dict[int, Document]:
        """Return the documents by the label of their entries in the state of `model`."""
        return dict(enumerate(sorted(documents, key=lambda d: d.key), 1))


class States(Kind):
    """The state of one stream per namespace, which has read the documents of the namespace in order."""

    methods = ("replay", "mask")

    def add(self, record: Record, document: Document, text: str, read: Read) -> Change:
        """Read a document after those of its namespace."""
        space = document.namespace
        label = 1 + max((known.label for known in record.documents if known.namespace == space), default=0)
        document, state = self._read(dataclasses.replace(document, label=label), text, self._state(record, space, read))
        name, content = packed(_leaves(state))
        return record.changed((*record.documents, document), {**record.states, space: name}), {name: content}

    def remove(self, record: Record, ids: Collection[str], method: str, read: Read) -> Change:
        """Remove documents: "replay" reads the others again, "mask" clears their entries in the banks of the state."""
        documents, states, files = [*record.documents], {**record.states}, {}
        for space in {document.namespace for document in documents if document.id in ids}:
            mine = [document for document in documents if document.namespace == space]
            kept = [document for document in mine if document.id not in ids]
            if method == "mask":
                state = self._masked(self._state(record, space, read), [d.label for d in mine if d.id in ids])
            else:
                kept, state = self._replayed(kept)
            documents = [document for document in documents if document.namespace != space] + kept
            del states[space]
            if kept:
                states[space], content = packed(_leaves(state))
                files[states[space]] = content
        order = {document.id: i for i, document in enumerate(record.documents)}
        return record.changed(sorted(documents, key=lambda d: order[d.id]), states), files

    def recall(self, record: Record, documents: Sequence[Document], query: Query, read: Read) -> list[Found]:
        """Return the entries that the model reads most while it reads the query, if its memories have entries."""
        text = query.text
        ids = self.loaded.tokenizer.encode(text) if isinstance(text, str) else np.asarray(text, np.int32)
        return recalled(self.model(record, documents, read), self.labelled(documents), ids, query)

    def labelled(self, documents: Sequence[Document]) -> dict[int, Document]:
        """Return the documents by the label of their entries in the state of their namespace."""
        return {document.label: document for document in documents}

    def model(self, record: Record, documents: Sequence[Document], read: Read, batch_size: int = 1) -> Loaded:
        """Return the model with the state of a namespace. If some documents are missing, the others are read again.

        Raises UserError for documents of several namespaces.
        """
        spaces = {document.namespace for document in documents}
        if len(spaces) > 1 or batch_size > 1:
            raise UserError("a library of states has one state per namespace, of one stream; choose one namespace")
        whole = len(documents) == len(record.visible(spaces))
        state = self._state(record, next(iter(spaces), ""), read) if whole else self._replayed(documents)[1]
        return dataclasses.replace(self.loaded, state=state)

    def _state(self, record: Record, space: str, read: Read) -> LMState:
        """Return the state of a namespace, or a fresh one."""
        if space not in record.states:
            return writer.fresh(self.loaded.lm, 1)
        saved, empty = read(record.states[space]), jax.eval_shape(partial(self.loaded.lm.init_state, 1))
        return jax.tree.unflatten(jax.tree.structure(empty), [jnp.asarray(saved[name]) for name in named_leaves(empty)])

    def _read(self, document: Document, text: str, state: LMState) -> tuple[Document, LMState]:
        """Return the document with its number of tokens and its start, and the state that has read it."""
        lm, ids, start = self.loaded.lm, self.loaded.tokenizer.frame(text)[0], int(state.position_B[0])
        lm.check_length(start + len(ids), writer.CHUNK, "forget a document, or use a model without them")
        state = writer.read(lm, self.loaded.params, [ids], state, writer.CHUNK, document.label)
        return dataclasses.replace(document, tokens=len(ids), start=start), state

    def _replayed(self, documents: Sequence[Document]) -> tuple[list[Document], LMState]:
        """Return the documents with new labels, and the state that has read them."""
        state, relabelled = writer.fresh(self.loaded.lm, 1), []
        for label, document in enumerate(documents, 1):
            if document.text is None:
                raise UserError(f"the library keeps no texts, so {document.name!r} cannot be read again; use method='mask'")
            document, state = self._read(dataclasses.replace(document, label=label), document.text, state)
            relabelled.append(document)
        return relabelled, state

    def _masked(self, state: LMState, labels: Sequence[int]) -> LMState:
        is_bank = lambda node: isinstance(node, Bank)  # noqa: E731
        if not any(map(is_bank, jax.tree.leaves(state, is_leaf=is_bank))):
            raise UserError("no memory of the model has entries that could be masked; use method='replay'")

        def clear(node, label: int):
            return forget(node, document=label) if is_bank(node) else node

        for label in labels:
            state = jax.tree.map(partial(clear, label=label), state, is_leaf=is_bank)
        return state


def _leaves(state: LMState) -> Arrays:
    return {name: np.asarray(leaf) for name, leaf in named_leaves(state).items()}


def recalled(model: Loaded, labelled: Mapping[int, Document], ids: np.ndarray, query: Query) -> list[Found]:
    """Return the entries that the state's memories read most while the model reads the tokens of a query.

    labelled: the documents by the label of their entries. The score is the share of all reads by tokens, layers and heads.
    Raises UserError if no memory of the model has entries, or if the query asks for neighbours.
    """
    if query.around:
        raise UserError("around is for a library of sentences; an entry has the tokens around it anyway")
    shares: dict[tuple[int, int], float] = {}
    for label_n, position_n, weight_n in _reads(model, ids, max(query.first - 1, 0)):
        for label, position, weight in zip(label_n.tolist(), position_n.tolist(), weight_n.tolist(), strict=True):
            if label in labelled:
                shares[label, position] = shares.get((label, position), 0.0) + weight
    best = sorted(shares, key=lambda at: (-shares[at], labelled[at[0]].key, at[1]))[: query.k]
    framed = {label: model.tokenizer.frame(labelled[label].text or "")[0] for label in {label for label, _ in best}}
    return [_found(model, labelled[label], framed[label], position, shares[label, position]) for label, position in best]


def _reads(model: Loaded, ids: np.ndarray, first: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return (label, position, weight) of the entries of banks that the tokens from `first` on read, flat.

    The weights add up to at most 1.
    """
    if not holders(model.state):
        raise UserError("no memory of this model has entries to recall")
    found: list[Any] = [reads for _, reads in collect_attribution(model.lm, model.params, ids, model.state, (KIND,)).reads]
    found = [jax.tree.map(lambda a: a[first:], reads) for reads in found]
    return [
        (a.document_BTNR.reshape(-1), a.position_BTNR.reshape(-1), a.weight_BTNR.reshape(-1) / (len(found) * a.rest_BTN.size))
        for a in found
    ]


def _found(model: Loaded, document: Document, ids: np.ndarray, position: int, score: float) -> Found:
    """Return the entry at a position of the state. ids: the tokens of its document."""
    text, span, position = None, None, position - document.start
    if document.text is not None:
        start = max(position - AROUND[0], 0)
        text, begin = model.tokenizer.decode(ids[start : position + AROUND[1]]), len(model.tokenizer.decode(ids[:start]))
        span = (begin, begin + len(text)) if document.text.startswith(text, begin) else None  # if tokens spell the text
    return Found(text, span, document.name, document.namespace, position, score, f"{document.id}:{position}")
