"""Every figure that is published, in docs/results.md and in the tables of the studies, is that of the stored runs."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import mean, median

import numpy as np
import pytest

from memtx import reports
from memtx.reports.files import section

ROOT = Path(__file__).parents[2]
STUDIES = sorted(path.parent.name for path in ROOT.glob("experiments/*/sweep.py"))


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@cache
def found(study: str) -> reports.Findings:
    folder = Path("experiments") / study
    return reports.conclude(reports.load_study(folder / "sweep.py"), reports.from_results(folder / "results"))


def cell(study: str, *row_and_column: str) -> float:
    return found(study).table[row_and_column].mean


def stored(path: str) -> dict:
    return json.loads((Path("benchmarks") / path).read_text())


def perplexity(name: str) -> float:
    calls = stored("play/results/play.json")[name]["calls"]
    return float(np.exp(sum(call["nats"] for call in calls) / sum(call["tokens"] for call in calls)))


def speed(part: str, name: str) -> dict:
    return stored(f"speed/results/train_step_{part}.json")["table"][name]


def squad(file: str = "recall") -> dict:
    return json.loads((Path("experiments/squad_recall/results") / f"{file}.json").read_text())


def recalled(*methods: str, k: int) -> tuple:
    return tuple(squad()["table"][method]["paragraph"][str(k)] for method in methods)


def reading(model: str) -> tuple[float, float]:
    """The medians of the tokens per CPU second, and of the peak in MiB."""
    readings = stored("search/results/reading.json")["readings"][model]
    rate = median(result["tokens"] / result["second"]["cpu_seconds"] for result in readings)
    return rate, median(result["peak_bytes"] for result in readings) / 2**20


def capacity(memory: str, pairs: int, curriculum: bool = True) -> float:
    rows = [row for row in found("capacity").table.rows if row.name.startswith(f"{memory},") and "[]" not in row.name]
    rows = rows if curriculum else [row for row in found("capacity").table.rows if row.name == f"{memory}, []"]
    return rows[0].cells[f"{pairs} pairs"].mean


def infini(segments: int) -> float:
    runs = reports.from_results(Path("experiments/infini_decline/results"))
    metric = f"eval/accuracy/distance={8 * segments}"  # of 8 to 16 tokens for each of 8; segments of 16
    return mean(run.number(metric) for run in runs if run.value("memory.infini.rule"))


def mechanisms(names: list[str], column: str, of: Callable = min) -> float:
    return of(cell("mechanisms", name, column) for name in names)


def gain(memory: str) -> float:
    return median(speed("two_devices", memory)["tokens_per_s"]) / median(speed("faster_machine", memory)["tokens_per_s"])


DELTA, ADDITIVE = ["deltanet", "gated_deltanet", "kda"], ["linear_attention", "retnet", "gla"]
TABLES = ["product_key", "memory_plus", "peer", "engram"]

FIGURES: dict[str, Callable[[], tuple]] = {
    "train {:.2f} (`full`) and {:.2f} (`window`) times as fast as one": lambda: (gain("full"), gain("window")),
    "with its keys, from {:.2f} to {:.2f}.": lambda: (cell("state_size", "4", "recall"), cell("state_size", "32", "recall")),
    "recall {:.2f} of overwritten values, additive states {:.2f}.": lambda: (
        cell("updates", "deltanet", "updated keys"),
        cell("updates", "linear_attention", "updated keys"),
    ),
    "recalls {:.2f}. Gated DeltaNet recalls {:.2f} with a tenth of the state": lambda: (
        cell("titans", "titans_mal", "default", "recall"),
        cell("titans", "gated_deltanet", "default", "recall"),
    ),
    "recalls 4 pairs ({:.2f})": lambda: (min(cell("recall", name, "recall") for name in ("ttt_linear", "ttt_mlp")),),
    "learn {:.2f} to {:.2f} of 16,384 facts. An MLP with at least as many FLOPs learns {:.2f}.": lambda: (
        min(cell("facts", name, "facts") for name in TABLES),
        max(cell("facts", name, "facts") for name in TABLES),
        cell("facts", "window", "facts"),
    ),
    "answers 16 windows back ({:.2f})": lambda: (cell("far", "block_recurrent", "fixed", "16 windows"),),
    "MAG {:.2f}, MAL {:.2f}, MAC {:.2f}.": lambda: tuple(
        cell("far", f"titans_{name}", "default", "32 windows") for name in ("mag", "mal", "mac")
    ),
    "recall is {:.2f} up to 16 segments back and {:.2f} from 128 segments on": lambda: (infini(16), infini(256)),
    "ARMT answers {:.2f} and RMT {:.2f}.": lambda: (
        capacity("armt", 10),
        capacity("rmt", 10),
    ),
    "they answer {:.2f} and {:.2f} after a curriculum over the number of keys, and {:.2f} and {:.2f} without it": lambda: (
        capacity("armt", 5),
        capacity("rmt", 5),
        capacity("armt", 5, False),
        capacity("rmt", 5, False),
    ),
    "finds {:.2f} of pass keys": lambda: (cell("passkey", "landmark", "5,120 bytes"),),
    "Full attention finds {:.2f} and a window {:.2f}.": lambda: (
        cell("passkey", "full", "5,120 bytes"),
        cell("passkey", "window", "5,120 bytes"),
    ),
    "Infini-attention finds {:.2f} in the last three segments and {:.2f} in the long texts": lambda: (
        cell("passkey", "infini", "320 bytes"),
        cell("passkey", "infini", "5,120 bytes"),
    ),
    "from {:.2f} to {:.2f} without training": lambda: (cell("knn_lm", "λ = 0"), cell("knn_lm", "λ = 0.3")),
    "dates {:.2f} of whole addresses correctly when it reads them segment by segment, and {:.2f} from": lambda: (
        cell("addresses", "rmt_encoder", "460", "accuracy"),
        cell("addresses", "none", "534", "accuracy"),
    ),
    "not from RMT's tokens ({:.2f} without them)": lambda: (cell("addresses", "rmt_encoder", "460", "memory tokens wiped"),),
    "with ROUGE-L {:.1f}, from the first segment alone {:.1f}, and from all at once {:.1f}.": lambda: tuple(
        cell("summaries", *row, "ROUGE-L") for row in (("rmt_encoder", "72"), ("none", "24"), ("none", "72"))
    ),
    "memory tokens add nothing: {:.1f} when they are wiped. The first 8 words of a description score {:.1f}.": lambda: tuple(
        cell("summaries", "rmt_encoder", "72", column) for column in ("memory wiped", "first 8 words")
    ),
    "compares {} mechanisms on four tasks and a text": lambda: (len(found("mechanisms").table.rows),),
    "delta rules and full attention recall at least {:.2f}": lambda: (mechanisms(DELTA, "MQAR"),),
    "delta rules recall at least {:.2f}, and additive states at most {:.2f}": lambda: (
        mechanisms(DELTA, "forgetting"),
        mechanisms(ADDITIVE, "forgetting", max),
    ),
    "have {:.3f} bits per byte with a window, {:.3f} with `xl` and {:.3f} with `gated_deltanet`.": lambda: tuple(
        cell("generation", memory, "bits per byte") for memory in ("window", "xl", "gated_deltanet")
    ),
    "kNN-LM lowers that of the window to {:.3f} without training.": lambda: (
        cell("generation", "window", "bits per byte, kNN-LM"),
    ),
    "their scene: {:.1f} in a hundred with a window, {:.1f} with kNN-LM on top, and {:.1f} in the play.": lambda: tuple(
        cell("generation", "window", f"known speakers{way}") for way in ("", ", kNN-LM", ", real")
    ),
    "translates verses of the Bible with chrF {:.1f}, a copy of the English has {:.1f}.": lambda: tuple(
        cell("translation", "none", "default", column) for column in ("chrF", "chrF of the English")
    ),
    "with its memory (chrF {:.1f}) than when it is wiped ({:.1f}), and worse than a model of single verses ({:.1f}).": lambda: (
        cell("translation", "window", "0", "chrF"),
        cell("translation", "window", "0", "chrF, wiped"),
        cell("translation", "window", "1", "chrF"),
    ),
    "perplexity {:.1f}. With kNN-LM it is {:.1f}": lambda: (perplexity("window"), perplexity("window, knn_lm")),
    "gates trained alone {:.1f}": lambda: (perplexity("window, memorizing trained"),),
    "with four sinks {:.1f}, and with sinks and kNN-LM {:.1f}": lambda: (
        perplexity("sink"),
        perplexity("sink, knn_lm"),
    ),
    "SmolLM2 answers {:.2f} of questions about facts told early": lambda: (cell("conversation", "sentences"),),
    "without a memory {:.2f}, with a window of 256 tokens {:.2f}, with a kNN-LM head {:.2f}.": lambda: tuple(
        cell("conversation", way) for way in ("none", "window", "entries")
    ),
    "Of forgotten facts it answers {:.2f}.": lambda: (cell("conversation", "sentences, forgotten"),),
    "with F1 {:.2f} (articles) and {:.2f} (plays). From the beginning of the text it is {:.2f} and {:.2f}, and after": lambda: (
        tuple(cell("answers", "160", f"{kind}, {way}") for way in ("memory", "none") for kind in ("SQuAD", "plays"))
    ),
    "the document with the answer was forgotten {:.2f} and {:.2f}.": lambda: tuple(
        cell("answers", "160", f"{kind}, forgotten") for kind in ("SQuAD", "plays")
    ),
    "the paragraph of {:.2f} of the questions first. A library of MiniLM's sentences finds {:.2f}": lambda: recalled(
        "BM25 with stems, paragraphs", "library, sentences", k=1
    ),
    "Among twenty paragraphs they find {:.2f} and {:.2f}": lambda: recalled(
        "BM25 with stems, paragraphs", "library, sentences", k=20
    ),
    "MiniLM reads {:,.0f} tokens per CPU second into a library, with a peak of {:,.0f} MiB.": lambda: reading("minilm"),
    "SmolLM2 reads {:.0f}, with {:,.0f} MiB.": lambda: reading("smollm2"),
    "was killed {} times": lambda: (len(stored("resume/results/resume.json")["SIGKILL"]["runs"]),),
    "a train step of {:.1f} M parameters is {:.1f} times (`full`) and {:.1f} times (`window`)": lambda: (
        speed("faster_machine", "full")["params"] / 1e6,
        median(speed("faster_machine", "full")["ratios"]),
        median(speed("faster_machine", "window")["ratios"]),
    ),
    "busy machine, was {:.1f} times": lambda: (median(speed("busy_machine", "full")["ratios"]),),
}
# Bounds, which the figures keep.
BOUNDS: dict[str, Callable[[], bool]] = {
    "differ from those of sentence-transformers by less than a millionth": lambda: (
        squad("vectors")["largest difference"] < 1e-6
    ),
    "falls by less than 0.02": lambda: all(
        cell("positions", name, "loss at 1117") - cell("positions", name, "loss at 5312") < 0.02
        for name in ("window", "gated_deltanet")
    ),
}


def results_page() -> str:
    return " ".join((ROOT / "docs/results.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("phrase", FIGURES)
def test_a_figure_of_the_results_is_that_of_the_stored_runs(phrase):
    assert phrase.format(*FIGURES[phrase]()) in results_page()


@pytest.mark.parametrize("phrase", BOUNDS)
def test_a_bound_of_the_results_holds_for_the_stored_runs(phrase):
    assert phrase in results_page()
    assert BOUNDS[phrase]()


def test_the_results_have_no_other_figure():
    rest = results_page()
    for phrase in [*FIGURES, *BOUNDS]:
        rest = re.sub("[^ ]*".join(map(re.escape, re.split(r"\{[^}]*\}", phrase))), "", rest)
    assert not re.findall(r"\d+\.\d+", rest)


@pytest.mark.parametrize("study", STUDIES)
def test_the_page_of_a_study_is_that_of_its_stored_runs(study):
    folder = Path("experiments") / study
    assert section(found(study), folder / "results") in (folder / "README.md").read_text(encoding="utf-8")


def test_the_page_of_squad_has_the_stored_recalls():
    page, script = Path("experiments/squad_recall/README.md").read_text(encoding="utf-8"), "experiments/squad_recall/run.py"
    for show in ("markdown", "claims"):
        assert runpy.run_path(script)[show](squad()) in page
    found = squad()
    counts = [f"{found[name]:,} {name}" for name in ("paragraphs", "questions", "sentences")]
    share = f"{found['answers in one sentence']:.3f} of the questions"
    vectors = f"at most {squad('vectors')['largest difference']:.0e}"
    assert all(figure in " ".join(page.split()) for figure in [*counts, share, vectors])


def test_the_tables_of_answers_are_those_of_the_stored_runs():
    tables = runpy.run_path("experiments/answers/table.py")["markdown"]()
    assert tables in Path("experiments/answers/README.md").read_text(encoding="utf-8")


def test_the_table_of_reading_is_that_of_the_stored_samples():
    table = runpy.run_path("benchmarks/search/reading.py")["markdown"](stored("search/results/reading.json")["readings"])
    assert table in Path("benchmarks/search/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("part", ["faster_machine", "one_core", "two_devices"])
def test_the_tables_of_train_steps_are_those_of_the_stored_samples(part):
    page = (ROOT / "benchmarks/speed/README.md").read_text(encoding="utf-8")
    for name, row in stored(f"speed/results/train_step_{part}.json")["table"].items():
        tokens, ratios = row["tokens_per_s"], row["ratios"]
        cells = [name, f"{median(tokens):,.0f} ({min(tokens):,.0f}, {max(tokens):,.0f})"]
        cells += [f"{median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"]
        cells += [f"{row['share_of_matmul']:.0%}".replace("%", " %"), f"{row['peak_mib']:,.0f}"]
        assert f"| {' | '.join(cells)} |" in page


def test_the_table_of_the_play_has_the_stored_perplexities():
    page = (ROOT / "benchmarks/play/README.md").read_text(encoding="utf-8")
    rows = {"window": "window", "window, memorizing trained": "window, memorizing trained", "window, kNN-LM": "window, knn_lm"}
    for label, name in (rows | {"window and sinks": "sink", "window and sinks, kNN-LM": "sink, knn_lm"}).items():
        assert f"| {label} | {perplexity(name):.2f} | " in page
