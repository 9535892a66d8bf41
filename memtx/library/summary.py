"""A summary of a library: documents, namespaces, entries, bytes, and how the entries are used."""

from __future__ import annotations

import dataclasses
from typing import Any

from memtx.library.library import Library
from memtx.library.record import Document
from memtx.library.view import by_group


def summarise(library: Library) -> dict[str, Any]:
    """Return the summary as JSON values.

    documents  the fields of each, its bytes on disk, and how often its entries were recalled
    groups     the entries and bytes of each memory of the model, and the layers that share its entries
    use        the share of entries that were never recalled, and the share of recalls that went to the most recalled tenth

    Raises UserError if a byte on disk has changed.
    """
    record, counts = library.record, library.folder.counts()
    rows, groups = [], {}
    for document in record.documents:
        recalled = counts.get(document.id, {})
        row = {name: value for name, value in dataclasses.asdict(document).items() if name not in ("text", "label", "start")}
        rows.append({"id": document.id, **row, "bytes": 0, "recalled": sum(recalled.values())})
        if document.digest:
            arrays = library.folder.read(document.digest)
            rows[-1]["bytes"] = sum(array.nbytes for array in arrays.values())
            _add(groups, arrays)
    states = {space: sum(a.nbytes for a in library.folder.read(name).values()) for space, name in record.states.items()}
    return {
        "library": str(library.path),
        "kind": library.settings.kind,
        "model": library.settings.model,
        "texts": library.settings.texts,
        "version": record.version,
        "digest": record.digest(),
        "documents": rows,
        "groups": groups,
        "states": states,
        "use": _use(record.documents, counts),
    }


def _add(groups: dict[str, dict[str, int]], arrays) -> None:
    for name, of_group in by_group(arrays).items():
        group = groups.setdefault(name, {"entries": 0, "bytes": 0, "layers": 1})
        group["entries"] += len(of_group["position"])
        group["bytes"] += sum(array.nbytes for array in of_group.values())


def _use(documents: tuple[Document, ...], counts) -> dict[str, float]:
    """Return the shares of `summarise`, without those that need at least one entry or recall."""
    entries = sum(document.entries for document in documents)
    recalls = sorted((n for document in documents for n in counts.get(document.id, {}).values()), reverse=True)
    found: dict[str, float] = {"recalls": sum(recalls)}
    if entries:
        found["never_recalled"] = 1 - len(recalls) / entries
    if recalls:
        found["most_recalled_tenth"] = sum(recalls[: -(-entries // 10)]) / sum(recalls)
    return found
