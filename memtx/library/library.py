"""The Library: reads documents, recalls entries, and forgets with proof."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeVar

from memtx.errors import UserError, check_known
from memtx.files.cache import absolute
from memtx.files.hub import PACKAGED
from memtx.files.text import read_text
from memtx.library import certificate as certificates
from memtx.library.explain import LEAVE_OUT, Explanation, Text, explain
from memtx.library.folder import SETTINGS, Folder, unpacked
from memtx.library.kind import Change, Found, Kind, Query, Separate, fingerprint
from memtx.library.language import Entries, States
from memtx.library.record import Document, Record, Settings, check_name, now
from memtx.library.sentences import Sentences
from memtx.pretrained.load import CONTEXT
from memtx.progress import Report
from memtx.runs.load import Loaded, load

T = TypeVar("T")
KINDS: dict[str, type[Kind]] = {"sentences": Sentences, "entries": Entries, "state": States}
SPACE = "default"  # the namespace of documents that are read without one
GROUP = 64  # documents that `read_all` saves at a time


def create(
    folder: str | Path,
    model: str | Path,
    *,
    kind: str = "",
    context: int = CONTEXT,
    texts: bool = True,
    loaded: Loaded | None = None,
) -> Library:
    """Create an empty library in a folder that is empty or does not exist.

    model: the model that reads the documents, as `memtx.load` takes it: "minilm", "smollm2", a workdir, a folder.
    loaded: this model, if it is loaded already.
    kind: "sentences" for a sentence encoder, "entries" or "state" for a language model (default: "entries").
    context: how many tokens full attention of a pretrained model keeps.
    texts: whether to keep the texts of documents, which `replay`, `migrate` and the texts of recalled entries need.

    Raises UserError if the folder is in use, or if the model does not suit the kind.
    """
    path, model = absolute(folder), str(model)
    model = str(Path(model).resolve()) if model not in PACKAGED and Path(model).exists() else model
    loaded = loaded or load(model, **_context(model, context))
    pooled = loaded.lm.model.output == "pooled"
    kind = kind or ("sentences" if pooled else "entries")
    check_known(kind, KINDS, "kind of library")
    if pooled != (kind == "sentences"):
        raise UserError(f"{model} cannot have a library of kind {kind}, because it gives {'' if pooled else 'no '}vectors")
    KINDS[kind](loaded)
    settings = Settings(kind, model, context, fingerprint(loaded), texts)
    Folder(path).create(settings)
    return Library(path, loaded)


def open(folder: str | Path, *, model: str | Path | None = None) -> Library:
    """Open a library. model: where its model is now, if it has moved. Raises UserError if the folder is not a library."""
    return Library(absolute(folder), model=None if model is None else str(model))


def is_library(folder: str | Path) -> bool:
    """Return whether a folder is a library."""
    return (absolute(folder) / SETTINGS).exists()


def _context(model: str, context: int) -> dict[str, int]:
    return {} if (Path(model) / "checkpoints").is_dir() else {"context": context}


class Library:
    """A library on disk. Several processes may use it: changes wait for one another, and a query sees a whole version."""

    def __init__(self, path: Path, loaded: Loaded | None = None, *, model: str | None = None):
        self.path, self.folder = path, Folder(path)
        self.settings = self.folder.settings()
        self._model, self._loaded = model, loaded
        self._cached: tuple[tuple[int, ...], Record] = (), Record()  # one attribute, because other threads read it unlocked
        self.folder.clean()  # raises if the record is damaged

    def __repr__(self) -> str:
        record, settings = self.record, self.settings
        return f"<Library {str(self.path)!r}: {settings.kind} of {settings.model}, {len(record.documents)} documents>"

    # --- contents

    @property
    def record(self) -> Record:
        """The newest record, even if another process has changed the library."""
        stamp, record = self._cached
        return record if stamp == self.folder.stamp() else self._load()

    def _load(self) -> Record:
        """Read the record from disk, and keep it with the stamp that it had at least."""
        stamp = self.folder.stamp()
        record = self.folder.record()
        self._cached = stamp, record
        return record

    @property
    def documents(self) -> tuple[Document, ...]:
        """The documents, in the order in which they were read."""
        return self.record.documents

    @cached_property
    def kind(self) -> Kind:
        """The kind, with the loaded model. Raises UserError if the model is not the one that made the library."""
        name = self._model or self.settings.model
        try:
            loaded = self._loaded or load(name, **_context(name, self.settings.context))
        except UserError as error:
            hint = "" if self._model else "; if the model has moved, say where it is (--model, or open(..., model=))"
            raise UserError(f"cannot load the model of {self.path}: {error}{hint}") from error
        if self._loaded is None and fingerprint(loaded) != self.settings.fingerprint:
            raise UserError(f"{name} is not the model of the library {self.path}: its weights, settings or tokenizer differ")
        return KINDS[self.settings.kind](loaded)

    def digest(self) -> str:
        """Return a sha256 of everything the library remembers, whatever its history (see `Record.digest`).

        Raises UserError if a byte on disk has changed.
        """

        def check(record: Record) -> str:
            for name in record.files():
                self.folder.read(name)
            return record.digest()

        return self._consistent(check)

    def model(self, *, namespace: str | Sequence[str] = SPACE, without: Collection[str] = (), batch_size: int = 1) -> Loaded:
        """Return the language model with a state that remembers the documents of these namespaces.

        Pass its `state` to `memtx.generate`. without: ids of documents to leave out. Raises UserError for a library of
        sentences.
        """
        kind = self.kind

        def load_state(record: Record) -> Loaded:
            documents = [document for document in record.visible(namespace) if document.id not in without]
            return kind.model(record, documents, self.folder.read, batch_size)

        return self._consistent(load_state)

    # --- verbs

    def read(self, text: str | Path, *, document: str = "", namespace: str = SPACE) -> int:
        """Read a document, and return the number of its entries. It replaces a document of the same name and namespace.

        text: the text, or the Path of a UTF-8 file. document: its name, by default that of the file. Raises UserError if the
        file or the model cannot read the text.
        """
        if isinstance(text, Path):
            document, text = document or text.name, read_text(text)
        return self.read_all([(document, text)], namespace=namespace)

    def read_all(self, documents: Iterable[tuple[str, str]], *, namespace: str = SPACE, progress: Report | None = None) -> int:
        """Read documents, given as name and text, and return the number of their entries.

        progress: called with the numbers of documents that are read and of all, or 0 if `documents` has no length.
        They are saved in groups, which is quicker than one by one. If one cannot be read, those before it are saved, and
        UserError is raised.
        """
        check_name(namespace, "namespace")
        left, count, done = iter(documents), 0, 0
        total = len(documents) if isinstance(documents, Collection) else 0
        while group := [*islice(left, GROUP)]:
            with self.changing() as record:
                before, files = record, {}
                try:
                    for name, text in group:
                        record, files, entries = self._added(record, files, Document.of(name, namespace, text))
                        count, done = count + entries, done + 1
                        if progress:
                            progress(done, total)
                finally:
                    if record is not before:
                        self.commit(dataclasses.replace(record, version=before.version + 1), files)
        return count

    def recall(
        self,
        query: str | Sequence[int],
        *,
        k: int = 5,
        namespace: str | Sequence[str] = SPACE,
        around: int = 0,
        first: int = 0,
    ) -> list[Found]:
        """Return the k entries of these namespaces that answer a query best, the best first.

        Entries of other namespaces are not in the arrays that are searched. around, first: see `Query`. Raises UserError if k
        is below 1, or the model has no entries.
        """
        if k < 1 or around < 0:
            raise UserError(f"k must be at least 1 and around at least 0, not {k} and {around}")
        kind, asked = self.kind, Query(query, k, around, first)
        found = self._consistent(lambda record: kind.recall(record, record.visible(namespace), asked, self.folder.read))
        self._count(found)
        return found

    def explain(
        self,
        text: str | Sequence[int],
        *,
        namespace: str | Sequence[str] = SPACE,
        progress: Report = lambda done, total: None,
        **options,
    ) -> Explanation:
        """Explain a text: which entries of these namespaces the model reads to predict it, and the bits each document saves.

        progress: called with the numbers of documents that were left out and that will be, because each may take long.
        options: see `memtx.explain`. The losses without a document are those of a library that never read it. Raises UserError
        for a library of sentences.
        """
        model, documents = self.model(namespace=namespace), self.kind.labelled(self.record.visible(namespace))
        frame = model.tokenizer.frame
        several = len({document.namespace for document in documents.values()}) > 1
        names = {n: f"{d.namespace}/{d.name}" if several else d.name for n, d in documents.items()}
        ids = {n: None if d.text is None else frame(d.text)[0] for n, d in documents.items()}
        texts = {n: Text(names[n], ids[n], d.start) for n, d in documents.items()}
        done, total = count(), min(options.get("leave_out", LEAVE_OUT), len(documents))

        def without(label: int) -> Loaded:
            progress(next(done), total)
            return self.model(namespace=namespace, without=[documents[label].id])

        explanation = explain(model, text, state=model.state, documents=texts, without=without, **options)
        progress(total, total)
        return explanation

    def forget(
        self,
        *,
        document: str | None = None,
        namespace: str | None = None,
        entries: Collection[str] = (),
        method: str | None = None,
        reread: bool = False,
        key: bytes | None = None,
    ) -> dict[str, Any]:
        """Forget a document, a namespace, or single entries (ids from `recall`), and return a certificate.

        document: a name or id. Without a namespace, only one document may have the name. method: see certificate.METHODS, by
        default the strongest of the library's kind; single entries can only be masked. reread: prove the result by reading all
        other documents again from their texts. key: signs the certificate. Raises UserError if nothing matches.
        """
        kind = self.kind
        with self.changing() as record:
            if entries:
                if document or namespace or not isinstance(kind, Separate) or method not in (None, "mask"):
                    raise UserError("single entries can only be masked, without document and namespace, and not in a state")
                positions = record.positions(entries)
                removed = [record.describe(d, (), positions[d.id]) for d in record.documents if d.id in positions]
                return self._forget(kind.thin(record, positions, self.folder.read), removed, "mask", reread, key)
            return self.forget_documents(record.matching(document, namespace), method=method, reread=reread, key=key)

    def forget_documents(
        self, ids: Collection[str], *, method: str | None = None, reread: bool = False, key: bytes | None = None
    ) -> dict[str, Any]:
        """Forget documents by their ids, in one change. See `forget`."""
        kind = self.kind
        method = method or kind.methods[0]
        check_known(method, kind.methods, "method of forgetting")
        with self.changing() as record:
            removed = [record.describe(d, ids) for d in record.documents if d.id in ids]
            return self._forget(kind.remove(record, ids, method, self.folder.read), removed, method, reread, key)

    def verify(self, certificate: Mapping[str, Any], *, key: bytes | None = None, reread: bool = False) -> bool:
        """Return True if a certificate is unchanged and still true of this library.

        reread: read all documents again from their texts, and compare. Raises UserError that names the difference.
        """
        certificates.check_seal(certificate, key)
        self._checked(certificate["removed"], certificate["method"], reread)
        record = self.record
        if record.version < certificate["version"]:
            same = record.digest() == certificate["after"]
            what = "has the same documents, but another history" if same else "is an older copy, or another library"
            raise UserError(
                f"{self.path} {what}: it is at change {record.version}, and the certificate is of change "
                f"{certificate['version']}; verify it with the library that forgot, or a fork of it"
            )
        if record.version == certificate["version"] and record.digest() != certificate["after"]:
            raise UserError(f"{self.path} is not the library of the certificate: its digest differs")
        return True

    # --- changes

    @contextmanager
    def changing(self) -> Iterator[Record]:
        """Lock the library for a change, and give its record on disk. Nested changes of this object are one.

        Raises UserError if another process keeps changing it.
        """
        with self.folder.changing():
            yield self._load()

    def commit(self, record: Record, files: Mapping[str, bytes]) -> None:
        """Replace the record within `changing`. files: new files of entries by digest, of which unnamed ones are left out."""
        kept = record.files()
        self.folder.commit(record, {name: content for name, content in files.items() if name in kept})

    def _added(self, record: Record, files: dict[str, bytes], new: Document) -> tuple[Record, dict[str, bytes], int]:
        """Return the record with a document, the new files so far, and the number of its entries."""
        kind, text = self.kind, new.text or ""
        known = next((document for document in record.documents if document.key == new.key), None)
        if known and known.sha256 == new.sha256:
            return record, files, known.entries
        if known:
            record, more = kind.remove(record, [known.id], kind.methods[0], partial(self._new, files))
            files = files | more
        new = new if self.settings.texts else dataclasses.replace(new, text=None)
        record, more = kind.add(record, new, text, partial(self._new, files))
        return record, files | more, record.documents[-1].entries

    def _forget(self, change: Change, removed: Sequence[Mapping[str, Any]], method: str, reread: bool, key: bytes | None):
        """Make a change that forgets, check it, and return the certificate."""
        before = self.record.digest()
        self.commit(*change)
        check, after = self._checked(removed, method, reread), self.record
        args = method, removed, before, after.digest(), after.version, now(), check
        return certificates.sealed(certificates.make_certificate(*args), key)

    def _checked(self, removed: Sequence[Mapping[str, Any]], method: str, reread: bool) -> str:
        """Check on disk that documents or entries are gone. Returns a description of the check."""
        record = self.folder.record()
        ids = {document.id: document for document in record.documents}
        for gone in removed:
            if copies := [name for name in record.copies(gone) if name not in gone["copies"]]:
                raise UserError(f"the text of {gone['name']!r} is in {self.path} again, as {copies[0]!r}")
            if gone["id"] in ids and ("positions" not in gone or gone["digest"] == ids[gone["id"]].digest):
                raise UserError(f"{gone['name']!r} is in {self.path}: it was read again at {ids[gone['id']].time}")
            if gone["digest"] and gone["digest"] in self.folder.stored() - record.files():
                raise UserError(f"the entries of {gone['name']!r} are still in {self.path}")
        for name in record.files():
            self.folder.read(name)
        if reread and method != "mask":
            self._check_reread(record)
        return certificates.CHECKED + certificates.REREAD * (reread and method != "mask")

    def _check_reread(self, record: Record) -> None:
        """Raise a UserError unless the library equals one that reads the documents of its record now, in order."""
        again, files = Record(), {}
        for document in record.documents:
            if document.text is None:
                raise UserError(f"the library keeps no text of {document.name!r}, so it cannot be read again")
            again, new = self.kind.add(again, document, document.text, partial(self._new, files))
            files = {name: content for name, content in (files | new).items() if name in again.states.values()}
        if again.digest() != record.digest():
            raise UserError(f"{self.path} differs from a library that reads its documents now")

    def _new(self, files: Mapping[str, bytes], name: str):
        """Return the arrays of a file that may not be on disk yet."""
        return unpacked(files[name]) if name in files else self.folder.read(name)

    def _consistent(self, use: Callable[[Record], T]) -> T:
        """Use a version of the library. If another process deletes files of it meanwhile, use the next version."""
        while True:
            record = self.record
            try:
                return use(record)
            except UserError:
                if self.record.version == record.version:
                    raise

    def _count(self, found: Sequence[Found]) -> None:
        """Count the entries that were recalled, unless the library cannot be written now."""
        with suppress(UserError), self.folder.changing(wait=0):
            counts = self.folder.counts()
            for entry in found:
                document, _, position = entry.entry.partition(":")
                of_document = counts.setdefault(document, {})
                of_document[position] = of_document.get(position, 0) + 1
            self.folder.write_counts(counts)
