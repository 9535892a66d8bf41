"""A split of a corpus as one memory-mapped array of token ids, kept in the cache.

N tokens of the split, D documents, P pieces of documents.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memtx.data.corpora import Corpus
from memtx.data.tokenizers import Tokenizer
from memtx.errors import UserError
from memtx.files.cache import built, digest, root
from memtx.progress import counted


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a split. Document d is `ids_N[offset_D1[d] : offset_D1[d + 1]]`, without `bos`, and is named `names[d]`."""

    ids_N: np.ndarray  # uint16 or uint32
    offset_D1: np.ndarray  # int64
    names: tuple[str, ...]
    bos: int
    fingerprint: str  # of the corpus, the split and the tokenizer

    @property
    def length_D(self) -> np.ndarray:
        """Return the number of tokens of each document, int64."""
        return np.diff(self.offset_D1)

    def cut(self, most: int) -> Tokens:
        """Return these tokens with longer documents cut into pieces of `most` tokens. The last piece may be shorter."""
        pieces_D = np.maximum(-(-self.length_D // most), 1)
        document_P = np.repeat(np.arange(len(pieces_D)), pieces_D)
        piece_P = np.arange(len(document_P)) - np.repeat(np.cumsum(pieces_D) - pieces_D, pieces_D)
        offset_P1 = np.append(self.offset_D1[document_P] + most * piece_P, self.offset_D1[-1])
        names = tuple(self.names[d] for d in document_P)
        return dataclasses.replace(self, offset_D1=offset_P1, names=names, fingerprint=digest(self.fingerprint, most))

    def document(self, d: int) -> np.ndarray:
        """Return the tokens of document d."""
        return self.ids_N[self.offset_D1[d] : self.offset_D1[d + 1]]


def tokenize(corpus: Corpus, tokenizer: Tokenizer, split: str, cache: str | Path) -> Tokens:
    """Return the tokens of a split. They are computed on first use and kept in `cache`.

    Raises UserError if the corpus has no such split or the split is empty.
    """
    fingerprint = digest(corpus.fingerprint, tokenizer.fingerprint, split)
    folder = root(cache) / "tokens" / fingerprint
    built(folder, lambda part: _write(part, corpus, tokenizer, split))
    names, dtype = json.loads((folder / "documents.json").read_text())
    ids = np.memmap(folder / "ids.bin", dtype, mode="r")
    return Tokens(ids, np.load(folder / "offsets.npy", allow_pickle=False), tuple(names), tokenizer.bos, fingerprint)


def _write(part: Path, corpus: Corpus, tokenizer: Tokenizer, split: str) -> None:
    dtype = "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"
    names, lengths = [], [0]
    documents = counted(corpus.documents(split), "document", corpus.count(split), f"tokens of {split}")
    with open(part / "ids.bin", "wb") as file:  # one document at a time, because a corpus may be larger than the host memory
        for name, text in documents:
            ids = tokenizer.encode(text)
            ids.astype(dtype).tofile(file)
            names.append(name)
            lengths.append(len(ids))
    if not names:
        raise UserError(f"split {split} of {corpus.name} has no text")
    np.save(part / "offsets.npy", np.cumsum(lengths, dtype=np.int64))
    (part / "documents.json").write_text(json.dumps([names, dtype]))
