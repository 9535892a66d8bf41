"""Libraries as files and folders: export, import, merge, diff, fork, resize and migrate.

An exported library is one safetensors file. Its tensors are named DIGEST/GROUP/NAME. Its metadata has the settings and the
record. A file that is imported is checked like a library: each document's entries must have the digest in the record.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Collection
from itertools import groupby
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

from memtx.errors import UserError, check_known, listed
from memtx.files.atomic import write_atomic
from memtx.files.cache import absolute
from memtx.library.folder import Arrays, Folder, packed
from memtx.library.library import SPACE, Library, create, is_library
from memtx.library.record import Document, Record, Settings, load_record, load_settings
from memtx.progress import Report, after

KEEP = ("newest", "most recalled")


@dataclasses.dataclass(frozen=True)
class Diff:
    """The documents that differ in two libraries. changed: those of the first with different entries in the second."""

    here: tuple[Document, ...]
    there: tuple[Document, ...]
    changed: tuple[Document, ...]


def export(library: Library, file: str | Path, *, namespace: str | Collection[str] = SPACE) -> int:
    """Write the documents of some namespaces ("*" for all) to one file, and return their number.

    Nothing of other namespaces is in the file. Raises UserError if the file exists or cannot be written, or if there are no
    documents.
    """
    path, record = absolute(file), library.record
    if path.exists():
        raise UserError(f"{path} exists already; choose another file")
    part = _part(record, namespace)
    tensors = {f"{name}/{path}": array for name in sorted(part.files()) for path, array in library.folder.read(name).items()}
    metadata = {"settings": library.settings.dumps(), "record": part.dumps()}
    try:
        write_atomic(path, safetensors.numpy.save(tensors, metadata))
    except OSError as error:
        path.with_name(path.name + ".part").unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return len(part.documents)


def import_file(folder: str | Path, file: str | Path) -> tuple[Library, int]:
    """Add the documents of an exported file to a library, which is created if it does not exist.

    Returns the library and the number of new documents. Raises UserError if the file is damaged, if its model is another one,
    or if the library has other documents of the same names.
    """
    settings, record, files = _read_export(absolute(file))
    path = absolute(folder)
    if not is_library(path):
        Folder(path).create(settings)
    library = Library(path)
    return library, _add(library, settings, record, files.__getitem__)


def merge(library: Library, other: Library, *, namespace: str | Collection[str] = SPACE) -> int:
    """Add the documents of some namespaces ("*" for all) of another library with the same model.

    Returns the number of new documents. Raises UserError if the models differ, or both have different documents of a name.
    """
    record = _part(other.record, namespace)
    return _add(library, other.settings, record, other.folder.read)


def diff(library: Library, other: Library) -> Diff:
    """Return the documents that only one of two libraries has, or that differ."""
    here, there = ({d.key: d for d in lib.record.documents} for lib in (library, other))
    changed = [d for key, d in here.items() if key in there and _content(d) != _content(there[key])]
    only = [tuple(d for key, d in mine.items() if key not in others) for mine, others in ((here, there), (there, here))]
    return Diff(only[0], only[1], tuple(changed))


def fork(library: Library, folder: str | Path) -> Library:
    """Copy a library to a new folder. The two are independent afterwards. Raises UserError if the folder has files."""

    def fill(path: Path) -> None:
        record = library.record
        new = Folder(path)
        new.create(library.settings)
        with new.changing():
            new.commit(record, {name: packed(library.folder.read(name))[1] for name in record.files()})

    return _built(folder, fill)


def migrate(
    library: Library, folder: str | Path, model: str | Path, progress: Report = lambda done, total: None, **settings
) -> Library:
    """Make a library of another model by reading all texts again, in order. settings: see `create`.

    progress: called with the numbers of documents that are read and of all.
    Raises UserError if the library keeps no texts.
    """
    documents = library.record.documents
    if missing := [document.name for document in documents if document.text is None]:
        raise UserError(f"the library has no text of {listed(missing)}, so another model cannot read it")

    def fill(path: Path) -> None:
        new, before = create(path, model, **settings), 0
        for space, group in groupby(documents, key=lambda document: document.namespace):
            texts = [(document.name, document.text or "") for document in group]
            new.read_all(texts, namespace=space, progress=after(progress, before, len(documents)))
            before += len(texts)

    return _built(folder, fill)


def resize(library: Library, entries: int, *, keep: str = "newest", key: bytes | None = None) -> dict[str, Any] | None:
    """Forget whole documents until at most `entries` entries remain, and return the certificate, or None if all fit.

    keep: "newest" forgets the documents that were read first, "most recalled" those whose entries were recalled least often.
    Raises UserError for a library of states, whose size is fixed.
    """
    check_known(keep, KEEP, "way to resize")
    if library.settings.kind == "state":
        raise UserError("a library of states has a fixed size")
    if entries < 0:
        raise UserError(f"entries must be at least 0, not {entries}")
    with library.changing() as record:
        counts = library.folder.counts()
        recalled = [sum(counts.get(document.id, {}).values()) for document in record.documents]
        order = sorted(range(len(recalled)), key=lambda i: (recalled[i] if keep == KEEP[1] else 0, i))
        left, gone = sum(document.entries for document in record.documents), []
        for i in order:
            if left <= entries:
                break
            gone.append(record.documents[i].id)
            left -= record.documents[i].entries
        return library.forget_documents(gone, key=key) if gone else None


# --- inside -------------------------------------------------------------------------------------------------------------------


def _part(record: Record, namespace: str | Collection[str]) -> Record:
    """Return the record of some namespaces. Raises UserError if they have no documents."""
    documents = record.visible(namespace)
    if not documents:
        raise UserError(f"no documents in {_spaces(namespace)}; {record.spaces()}")
    spaces = {document.namespace for document in documents}
    return Record(1, tuple(documents), {space: name for space, name in record.states.items() if space in spaces})


def _spaces(namespace: str | Collection[str]) -> str:
    return f"the namespace {namespace!r}" if isinstance(namespace, str) else f"the namespaces {', '.join(namespace)}"


def _add(library: Library, settings: Settings, record: Record, read: Callable[[str], Arrays]) -> int:
    """Add the documents of a record. Documents that are there already are left out."""
    if (settings.kind, settings.fingerprint) != (library.settings.kind, library.settings.fingerprint):
        raise UserError(f"{library.path} was made by another model ({library.settings.model}, not {settings.model})")
    with library.changing() as mine:
        known = {document.key: document for document in mine.documents}
        new = [document for document in record.documents if document.key not in known]
        if other := [d.name for d in record.documents if d.key in known and _content(known[d.key]) != _content(d)]:
            raise UserError(f"{library.path} has other documents of the same names: {listed(other)}; forget them first")
        mixed = {document.namespace for document in new} & mine.states.keys()
        if mixed:
            raise UserError(f"both have a state of {listed(sorted(mixed))}, and states cannot be merged")
        if not library.settings.texts:
            new = [dataclasses.replace(document, text=None) for document in new]
        states = {document.namespace: record.states[document.namespace] for document in new if record.states}
        merged = mine.changed((*mine.documents, *new), {**mine.states, **states})
        files = {}
        for name in merged.files() - mine.files():
            digest, files[name] = packed(read(name))
            if digest != name:
                raise UserError(f"the entries {name[:12]}... are damaged: their digest differs")
        library.commit(merged, files)
    return len(new)


def _content(document: Document) -> tuple[str, str, int]:
    return document.sha256, document.digest, document.entries


def _read_export(path: Path) -> tuple[Settings, Record, dict[str, Arrays]]:
    """Return the settings, the record and the arrays by digest in an exported file."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays: dict[str, Arrays] = {}
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                digest, _, inner = name.partition("/")
                arrays.setdefault(digest, {})[inner] = file.get_tensor(name)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    try:
        settings, record = load_settings(metadata["settings"].encode()), load_record(metadata["record"].encode())
    except KeyError:
        raise UserError(f"{path} is not an exported library") from None
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if missing := record.files() - arrays.keys():
        raise UserError(f"{path} is damaged: it lacks the entries {listed(sorted(missing))}")
    return settings, record, arrays


def _built(folder: str | Path, fill: Callable[[Path], None]) -> Library:
    """Fill a temporary folder beside `folder`, and give it the final name. Raises UserError if the folder has files."""
    path = absolute(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already; choose another folder")
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        fill(part)
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Library(path)
