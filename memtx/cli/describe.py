"""The description of a corpus for `memtx data`: its origin, its folder and its size."""

from __future__ import annotations

from dataclasses import dataclass

from memtx import config
from memtx.data.corpora import load_corpus
from memtx.data.tokenizers import make_tokenizer
from memtx.data.tokens import tokenize


@dataclass(frozen=True)
class SplitSize:
    """The size of one split.

    documents, bytes, tokens: the number of each. The bytes are those of the tokens. longest: the name of the longest document.
    longest_tokens: the number of its tokens.
    """

    split: str
    documents: int
    bytes: int
    tokens: int
    longest: str
    longest_tokens: int


@dataclass(frozen=True)
class Description:
    """The description of a corpus with a tokenizer."""

    name: str
    about: str  # its contents, origin and licence
    path: str  # the folder of its records
    notes: tuple[str, ...]  # about files that are left out or damaged
    tokenizer: str
    vocab_size: int
    splits: tuple[SplitSize, ...]


def describe(data: config.Data) -> Description:
    """Describe the corpus of `data`. If the corpus, tokenizer or tokens are not in the cache, they are built.

    Raises UserError if one of them cannot be built.
    """
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
