"""Recall on SQuAD: a library of sentences beside BM25. README.md describes the measurement.

    pip install bm25s PyStemmer
    python experiments/squad_recall/run.py [--library=runs/squad_recall]
    python experiments/squad_recall/run.py --show          # the table from the stored results
    pip install sentence-transformers
    python experiments/squad_recall/run.py --oracle        # MiniLM's vectors beside those of sentence-transformers

The first command makes the library, or takes the one in its folder, and writes results/recall.json. The last one writes
results/vectors.json.

Q questions, R results, U units (sentences or paragraphs), E features.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
RECALL, VECTORS = HERE / "results" / "recall.json", HERE / "results" / "vectors.json"
KS = (1, 5, 20)
DEPTH = 500  # results of each question, enough for 20 different paragraphs
SINGLY = 100  # questions that are also asked one by one
RESAMPLES = 10_000
LIBRARY = "library, sentences"
BASELINES = {"paragraph": "BM25 with stems, paragraphs", "sentence": "BM25 with stems, sentences"}


# --- data -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A question, the index of its paragraph, and the texts of its answers."""

    text: str
    paragraph: int
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Squad:
    """SQuAD's development set. names, texts: of the paragraphs. A name is ARTICLE/NUMBER."""

    names: list[str]
    texts: list[str]
    questions: list[Question]


@dataclass(frozen=True)
class Units:
    """Texts that are searched, and the index of the paragraph of each."""

    texts: list[str]
    paragraph_U: np.ndarray


def load_squad() -> Squad:
    """Fetch and parse the data."""
    from memtx.files.packages import SQUAD, extract

    names, texts, questions = [], [], []
    for article in json.loads(extract(SQUAD, "").read_text(encoding="utf-8"))["data"]:
        for number, paragraph in enumerate(article["paragraphs"]):
            for asked in paragraph["qas"]:
                answers = tuple({answer["text"] for answer in asked["answers"]})
                questions.append(Question(asked["question"], len(texts), answers))
            names.append(f"{article['title']}/{number:03d}")
            texts.append(paragraph["context"])
    return Squad(names, texts, questions)


# --- methods ----------------------------------------------------------------------------------------------------------------


def open_library(folder: Path, squad: Squad):
    """Return the library of all paragraphs. It is made on first use."""
    import memtx

    if not memtx.library.is_library(folder):
        memtx.library.create(folder, model="minilm")
    library = memtx.library.open(folder)
    documents = {document.name for document in library.documents}
    library.read_all((name, text) for name, text in zip(squad.names, squad.texts, strict=True) if name not in documents)
    return library


def sentences_of(library, squad: Squad) -> tuple[Units, np.ndarray]:
    """Return the sentences of the library and their vectors, key_UE."""
    from memtx.library.view import make_view

    view = make_view(library.documents, library.folder.read)
    rows, index = view.groups["0"], {name: n for n, name in enumerate(squad.names)}
    paragraph_U = np.array([index[view.documents[n].name] for n in rows.document_n])
    spans = zip(paragraph_U, rows.arrays["position"], rows.arrays["end"], strict=True)
    return Units([squad.texts[n][start:end] for n, start, end in spans], paragraph_U), rows.arrays["key"]


def search_bm25(units: Units, queries: list[str], stems: bool) -> np.ndarray:
    """Return index_QR of the best units by BM25 with the defaults of bm25s, without English stop words."""
    import bm25s
    import Stemmer

    options = {"stopwords": "en", "stemmer": Stemmer.Stemmer("english") if stems else None, "show_progress": False}
    index = bm25s.BM25()
    index.index(bm25s.tokenize(units.texts, **options), show_progress=False)
    found, _ = index.retrieve(bm25s.tokenize(queries, **options), k=DEPTH, show_progress=False)
    return np.asarray(found)


def make_methods(library, squad: Squad) -> dict[str, tuple[Units, Callable[[], np.ndarray]]]:
    """Return the units and the search of each method."""
    from memtx.library.search import Index

    queries = [question.text for question in squad.questions]
    query_QE = library.kind.vectors(queries)
    sentences, key_UE = sentences_of(library, squad)
    paragraphs = Units(squad.texts, np.arange(len(squad.texts)))

    def by_vectors(keys: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
        return lambda: Index(keys()).search(query_QE, DEPTH)[1]

    return {
        LIBRARY: (sentences, by_vectors(lambda: key_UE)),
        "MiniLM, paragraphs": (paragraphs, by_vectors(lambda: library.kind.vectors(squad.texts))),
        "BM25, sentences": (sentences, lambda: search_bm25(sentences, queries, stems=False)),
        BASELINES["sentence"]: (sentences, lambda: search_bm25(sentences, queries, stems=True)),
        "BM25, paragraphs": (paragraphs, lambda: search_bm25(paragraphs, queries, stems=False)),
        BASELINES["paragraph"]: (paragraphs, lambda: search_bm25(paragraphs, queries, stems=True)),
    }


def check_singly(library, squad: Squad, units: Units, index_QR: np.ndarray) -> None:
    """Check that `library.recall` finds the same sentences as the batch."""
    for question, index_R in zip(squad.questions[:SINGLY], index_QR, strict=False):
        found = [(entry.document, entry.text) for entry in library.recall(question.text, k=max(KS))]
        batch = [(squad.names[units.paragraph_U[i]], units.texts[i]) for i in index_R[: max(KS)]]
        assert len(set(found) & set(batch)) >= max(KS) - 1, question.text  # the last may differ by a rounding error
        assert found[0] == batch[0], question.text


# --- measures ---------------------------------------------------------------------------------------------------------------


def rank_answers(units: Units, index_QR: np.ndarray, questions: Sequence[Question]) -> tuple[np.ndarray, np.ndarray]:
    """Return rank_Q of the right paragraph among the different paragraphs found, and rank_Q of a unit that answers.

    A unit answers if it is of the right paragraph and has the text of an answer. Ranks begin at 0. A rank is DEPTH if nothing
    was found.
    """
    paragraph_Q, unit_Q = (np.full(len(questions), DEPTH) for _ in range(2))
    for q, (question, index_R) in enumerate(zip(questions, index_QR, strict=True)):
        paragraph_R = units.paragraph_U[index_R]
        _, first = np.unique(paragraph_R, return_index=True)
        assert len(first) >= max(KS), "DEPTH is too small for so many paragraphs"
        right = np.flatnonzero(paragraph_R == question.paragraph)
        if len(right):
            paragraph_Q[q] = (first < right[0]).sum()
        unit_Q[q] = next((r for r in right if answers(units.texts[index_R[r]], question)), DEPTH)
    return paragraph_Q, unit_Q


def answers(text: str, question: Question) -> bool:
    """Return whether a text has an answer of the question."""
    return any(answer in text for answer in question.answers)


def recall_at(rank_Q: np.ndarray) -> dict[str, float]:
    """Return the share of the questions with a rank below k, for each k."""
    return {str(k): float((rank_Q < k).mean()) for k in KS}


def differences(rank_Q: np.ndarray, other_Q: np.ndarray, squad: Squad) -> dict[str, list[float]]:
    """Return the difference of the recalls of two methods, with a 95 % interval over articles (bootstrap), for each k."""
    articles = [squad.names[question.paragraph].partition("/")[0] for question in squad.questions]
    article_Q = np.unique(articles, return_inverse=True)[1]
    count = np.bincount(article_Q)
    drawn = np.random.default_rng(0).integers(0, len(count), (RESAMPLES, len(count)))
    found = {}
    for k in KS:
        gain_Q = (rank_Q < k).astype(float) - (other_Q < k)
        gain = np.bincount(article_Q, gain_Q)[drawn].sum(1) / count[drawn].sum(1)
        found[str(k)] = [float(gain_Q.mean()), *map(float, np.quantile(gain, (0.025, 0.975)))]
    return found


def share_in_one_sentence(units: Units, squad: Squad) -> float:
    """Return the share of the questions with an answer inside one sentence, which no recall of a sentence can exceed."""
    sentences: dict[int, list[str]] = {}
    for paragraph, text in zip(units.paragraph_U.tolist(), units.texts, strict=True):
        sentences.setdefault(paragraph, []).append(text)
    return float(np.mean([any(answers(text, q) for text in sentences[q.paragraph]) for q in squad.questions]))


def measure(folder: Path) -> dict:
    """Return the results of all methods."""
    squad = load_squad()
    library = open_library(folder, squad)
    methods, table, rank = make_methods(library, squad), {}, {}
    for name, (units, search) in methods.items():
        index_QR = search()
        rank[name] = dict(zip(("paragraph", "sentence"), rank_answers(units, index_QR, squad.questions), strict=True))
        if units.texts is squad.texts:
            del rank[name]["sentence"]
        table[name] = {unit: recall_at(rank_Q) for unit, rank_Q in rank[name].items()}
        if name == LIBRARY:
            check_singly(library, squad, units, index_QR)
        print(f"{name}: done", flush=True)
    sentences, _ = methods[LIBRARY]
    gains = {unit: differences(rank[LIBRARY][unit], rank[name][unit], squad) for unit, name in BASELINES.items()}
    return {
        "paragraphs": len(squad.texts),
        "sentences": len(sentences.texts),
        "questions": len(squad.questions),
        "answers in one sentence": share_in_one_sentence(sentences, squad),
        "table": table,
        "gains": gains,
        "versions": {name: version(name) for name in ("memtx", "jax", "bm25s", "PyStemmer")},
    }


def markdown(found: dict) -> str:
    """Return the table in Markdown."""
    heads = [f"{unit}@{k}" for unit in ("paragraph", "sentence") for k in KS]
    lines = [f"| method | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for name, row in found["table"].items():
        cells = [f"{row[unit][str(k)]:.3f}" if unit in row else "-" for unit in ("paragraph", "sentence") for k in KS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def claims(found: dict) -> str:
    """Return the verdicts in Markdown."""
    lines = []
    for unit, gains in found["gains"].items():
        for k, (gain, low, high) in gains.items():
            verdict = "holds" if low > 0 else "does not hold"
            interval = f"{gain:+.3f}, from {low:+.3f} to {high:+.3f}"
            lines.append(f"- **{verdict}**: {unit}@{k} of the library is above that of {BASELINES[unit]} ({interval})")
    return "\n".join(lines)


# --- vectors ----------------------------------------------------------------------------------------------------------------


def compare_vectors(folder: Path) -> dict:
    """Return the largest difference between the vectors of memtx and of sentence-transformers, over features and 200 texts.

    The texts are 165 sentences at equal distances in the library, its 20 longest sentences, five texts of 40
    paragraphs, which both cut after 256 tokens, and ten odd texts.
    """
    import sentence_transformers

    import memtx
    from memtx.files.hub import find

    squad = load_squad()
    texts = sentences_of(open_library(folder, squad), squad)[0].texts
    chosen = [texts[i] for i in np.linspace(0, len(texts) - 1, 165).astype(int)] + sorted(texts, key=len)[-20:]
    chosen += [" ".join(squad.texts[n : n + 40]) for n in range(0, 200, 40)]
    chosen += ["", " ", ".", "?", "a", "\n\n", "é", "漢字", "🙂", "-"]
    theirs = sentence_transformers.SentenceTransformer(str(find("minilm", "")), device="cpu")
    difference_QE = np.abs(memtx.embed(memtx.load("minilm"), chosen) - theirs.encode(chosen, convert_to_numpy=True))
    worst = int(difference_QE.max(1).argmax())
    return {
        "texts": len(chosen),
        "longest, tokens": max(len(theirs.tokenizer(text)["input_ids"]) for text in chosen),
        "largest difference": float(difference_QE.max()),
        "worst text, characters": len(chosen[worst]),
        "sentence-transformers": sentence_transformers.__version__,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, default=Path("runs/squad_recall"))
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--oracle", action="store_true")
    args = parser.parse_args()
    if not args.show:
        file = VECTORS if args.oracle else RECALL
        found = compare_vectors(args.library) if args.oracle else measure(args.library)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(found, indent=1) + "\n")
    if args.oracle:
        print(VECTORS.read_text())
    else:
        found = json.loads(RECALL.read_text())
        print(markdown(found), claims(found), sep="\n\n")


if __name__ == "__main__":
    main()
