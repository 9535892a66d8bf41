"""What `memtx data` shows: where a corpus comes from, where it lies, and how much of it there is."""

from __future__ import annotations

from dataclasses import dataclass

from memtx import config
from memtx.data.corpora import load_corpus
from memtx.data.tokenizers import make_tokenizer
from memtx.data.tokens import tokenize


@dataclass(frozen=True)
class SplitSize:
    """One split: how many documents, bytes of UTF-8 and tokens it has, and its longest document."""

    split: str
    documents: int
    bytes: int
    tokens: int
    longest: str
    longest_tokens: int


@dataclass(frozen=True)
class Description:
    name: str
    about: str  # what it is, its source and licence
    path: str  # where its records lie
    notes: tuple[str, ...]  # files that are left out or damaged
    tokenizer: str
    vocab_size: int
    splits: tuple[SplitSize, ...]


def describe(data: config.Data) -> Description:
    """Builds corpus, tokenizer and tokens if they are not in the cache yet. UserError as they do."""
    text = load_corpus(data.corpus, data.cache)
    tok = make_tokenizer(data.tokenizer, text, data.cache)
    sizes = []
    for split in text.splits:
        tokens = tokenize(text, tok, split, data.cache)
        longest = int(tokens.length_D.argmax())
        sizes.append(
            SplitSize(
                split=split,
                documents=len(tokens.names),
                bytes=sum(int(tok.bytes_V[tokens.document(d)].sum()) for d in range(len(tokens.names))),
                tokens=len(tokens.ids_N),
                longest=tokens.names[longest],
                longest_tokens=int(tokens.length_D[longest]),
            )
        )
    return Description(data.corpus, text.about, str(text.path), text.notes, tok.name, tok.vocab_size, tuple(sizes))
