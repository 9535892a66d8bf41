"""Small corpora that need no network: help texts that every Python carries, as files of a folder."""

from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

from memtx.data.corpora import load_corpus
from memtx.data.tokens import Tokens


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    short = sorted(topics, key=lambda name: len(topics[name]))[:39]
    return {f"{name}.txt": topics[name] for name in short} | {"naïve/日本.txt": "Ünïcödé 🦜 and <bos>\r\n日本語\n"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory, texts) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def small(folder, cache):
    return load_corpus(f"textdir:{folder}", cache)


@pytest.fixture
def numbered():
    """`numbered(lengths)`: Tokens whose ids are all different, so that every one can be followed."""

    def make(lengths, fingerprint="numbered"):
        offsets = np.cumsum([0, *lengths])
        names = tuple(f"document {d}" for d in range(len(lengths)))
        return Tokens(np.arange(1, offsets[-1] + 1, dtype=np.uint32), offsets, names, 1_000_000, fingerprint)

    return make
