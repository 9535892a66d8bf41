"""Libraries: memory as an object that its user can read, search, forget, prove, move and share.

library = memtx.library.create("notes", model="minilm")
library.read("The tower was built in 1889.", document="tower.txt", namespace="alice")
library.recall("When was it built?", namespace="alice")       the entries that answer best, with their documents
certificate = library.forget(document="tower.txt")            the library is now one that never read it, bit for bit
library.verify(certificate)

record.py        the documents that were read              folder.py   the folder, which changes atomically
kind.py          how a library uses its model              view.py     the entries of some namespaces
sentences.py     vectors of sentences                      text.py     texts to sentences
language.py      entries or states of a language model     entries.py  documents to entries, entries to a state
certificate.py   proofs of forgetting                      move.py     export, import, merge, diff, fork, resize, migrate
explain.py       the entries behind each token             attribution.py   the pass that collects them
"""

from memtx.library.kind import Found
from memtx.library.library import SPACE, Library, create, is_library, open
from memtx.library.move import Diff, diff, export, fork, import_file, merge, migrate, resize
from memtx.library.record import Document

__all__ = [
    "SPACE",
    "Diff",
    "Document",
    "Found",
    "Library",
    "create",
    "diff",
    "export",
    "fork",
    "import_file",
    "is_library",
    "merge",
    "migrate",
    "open",
    "resize",
]
