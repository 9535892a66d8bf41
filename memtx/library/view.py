"""A view of a library: the entries of the documents in some namespaces, and nothing of any other document.

Arrays in the file of a document are named GROUP/NAME. The rows of a group are entries. A sentence library has one group, and a
language model one for each memory that holds entries. Every group has `position`, the place of the entry in its document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from memtx.library.folder import Arrays
from memtx.library.record import Document


@dataclass(frozen=True)
class Rows:
    """The entries of one group. document_n: the index of each entry's document in the view. arrays: by name, [n, ...]."""

    document_n: np.ndarray
    arrays: Arrays


@dataclass(frozen=True)
class View:
    """Documents, sorted by namespace and name, and their entries by group."""

    documents: tuple[Document, ...]
    groups: dict[str, Rows]


def make_view(documents: Iterable[Document], read: Callable[[str], Arrays]) -> View:
    """Return the view of these documents. read: returns the arrays in the file with a digest."""
    documents = tuple(sorted(documents, key=lambda document: document.key))
    files = [by_group(read(document.digest)) for document in documents]
    groups = {}
    for group in sorted({name for file in files for name in file}):
        parts = [file[group] for file in files]
        counts = [len(part["position"]) for part in parts]
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        groups[group] = Rows(np.repeat(np.arange(len(parts)), counts), arrays)
    return View(documents, groups)


def by_group(file: Arrays) -> dict[str, Arrays]:
    """Return the arrays of a file by group and name."""
    groups: dict[str, Arrays] = {}
    for path, array in file.items():
        group, _, name = path.partition("/")
        groups.setdefault(group, {})[name] = array
    return groups


def without_positions(file: Arrays, positions: set[int]) -> Arrays:
    """Return a document's arrays without the entries at these positions."""
    kept = {group: ~np.isin(arrays["position"], [*positions]) for group, arrays in by_group(file).items()}
    return {path: array[kept[path.partition("/")[0]]] for path, array in file.items()}
