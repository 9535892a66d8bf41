"""A library without a model: the vector of a text is drawn from its digest, and a document is read in microseconds."""

import hashlib
from pathlib import Path

import numpy as np

from memtx.library.folder import Folder
from memtx.library.library import Library
from memtx.library.record import Settings
from memtx.library.sentences import Sentences

WIDTH = 8


class FakeSentences(Sentences):
    """Sentences with random vectors, at most four words long."""

    def __init__(self):
        self.most, self._searched = 4, None

    def length(self, text: str) -> int:
        return len(text.split())

    def vectors(self, texts) -> np.ndarray:
        found = [np.random.default_rng(list(hashlib.sha256(text.encode()).digest())).normal(size=WIDTH) for text in texts]
        return np.asarray([vector / np.linalg.norm(vector) for vector in found], np.float32)


def open_fake(path: Path) -> Library:
    library = Library(path)
    library.__dict__["kind"] = FakeSentences()
    return library


def create_fake(path: Path, fingerprint: str = "fake", texts: bool = True) -> Library:
    Folder(path).create(Settings("sentences", "fake", 0, fingerprint, texts))
    return open_fake(path)
