"""The verses of the Bible in English and Spanish, from two Debian packages with the format zText of SWORD.

A testament has three files. `bzs` has (start, compressed size, size) of each zlib block of `bzz`, as 32-bit numbers. `bzv` has
(block, start, size) of each entry within its block, as two 32-bit numbers and one of 16 bits. An entry is a heading or a verse,
with OSIS markup. The heading of a chapter has its name, such as Gen.1. Both translations number their verses in the same way,
so verses with the same index are a pair.
"""

import html
import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from memtx.files import packages

FOLDER = "usr/share/sword/modules/texts/ztext/"
TESTAMENTS = ("ot", "nt")
HELD_OUT = {"Ruth": "valid", "Phil": "valid", "Judg": "test", "Jas": "test"}  # the other books are for training
CHAPTER = re.compile(r'<chapter [^>]*osisID="([^"]+)"')
HIDDEN = re.compile(r"<(note|title)\b[^>]*(?<!/)>.*?</\1>", re.DOTALL)  # footnotes and headings


class Verse(NamedTuple):
    """A verse in both languages. chapter: its chapter's OSIS name, such as "Gen.1"."""

    chapter: str
    english: str
    spanish: str

    @property
    def book(self) -> str:
        """Return the OSIS name of the book, such as "Gen"."""
        return self.chapter.split(".")[0]


def write_splits(cache: str, most: int, folder: Path) -> None:
    """Write train.jsonl, valid.jsonl and test.jsonl, lines {"document": chapter, "source": English, "target": Spanish}.

    Verses with more than `most` characters in a language are left out. 0 keeps all.
    """
    lines = {"train": [], "valid": [], "test": []}
    for verse in read_verses(cache):
        if not most or max(len(verse.english), len(verse.spanish)) <= most:
            line = {"document": verse.chapter, "source": verse.english, "target": verse.spanish}
            lines[HELD_OUT.get(verse.book, "train")].append(json.dumps(line, ensure_ascii=False))
    for split, found in lines.items():
        (folder / f"{split}.jsonl").write_text("\n".join(found) + "\n")


def read_verses(cache: str) -> Iterator[Verse]:
    """Yield the verses that have text in both languages, in order."""
    files = [packages.debian_files(package, FOLDER, cache) for package in (packages.KJV, packages.RV1909)]
    for testament in TESTAMENTS:
        chapter = ""
        for english, spanish in zip(*(_read_entries(found, testament) for found in files), strict=True):
            if name := CHAPTER.search(english):
                chapter = name[1]
                continue
            pair = to_text(english), lower_first_word(to_text(spanish))
            if chapter and all(pair):
                yield Verse(chapter, *pair)


def _read_entries(files: dict[str, bytes], testament: str) -> Iterator[str]:
    """Yield the entries of a testament with their markup."""
    content = {name.rpartition(".")[2]: data for name, data in files.items() if f"/{testament}." in name}
    blocks = [
        zlib.decompress(content["bzz"][start : start + size]) if size else b""
        for start, size, _ in struct.iter_unpack("<III", content["bzs"])
    ]
    for block, start, size in struct.iter_unpack("<IIH", content["bzv"]):
        yield blocks[block][start : start + size].decode() if size else ""


def to_text(entry: str) -> str:
    """Return the words of an entry, without markup, footnotes and signs of paragraphs."""
    words = html.unescape(re.sub("<[^>]*>", "", HIDDEN.sub("", entry)))
    return " ".join(re.sub(r"¶|\\\w+", "", words).split())  # some markup of paragraphs and names is left in the text


def lower_first_word(text: str) -> str:
    """Return a text whose first word has one capital letter. The Spanish chapters start with a word in capitals."""
    first, space, rest = text.partition(" ")
    return f"{first[:1]}{first[1:].lower()}{space}{rest}" if first.isupper() else text
