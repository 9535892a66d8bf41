"""Long texts written with and without memory

Language models (1.3 M parameters, BPE of 4,096 tokens) are trained for the same number of steps on Shakespeare's plays
(`books`). In each of their four layers, `window` attends to the last 64 tokens, `xl` also keeps the last 128 hidden states, and
`gated_deltanet` has a matrix per head instead of attention. The columns with `kNN-LM` are of the same weights with a continuous
cache over the logits. Its settings are those of the study [kNN-LM](../knn_lm), with λ = 0.3.

`bits per byte` is that of the first 30,720 tokens of each of the three test plays. `wiped` is that with a fresh state for each
128 tokens. Then each model reads 4,000 bytes before 20 places in these plays and writes 2,000 bytes, at temperature 0.8 or
`greedy`. `rep-4` is the percentage of 4-grams of words that occurred earlier in the same text, and `distinct-4` that of
different 4-grams in the 20 texts together. `known speakers` is the percentage of the names above speeches that the 4,000 bytes
have too. `real` is the text that follows in the plays.

The claim: memory lowers the loss of held-out plays, and a text that is written with memory keeps to the persons of its scene.
"""

import dataclasses
import re
from pathlib import Path
from statistics import mean

import memtx
from memtx.data.corpora import load_corpus
from memtx.evaluation.perplexity import Evaluation
from memtx.evaluation.text import repetition
from memtx.generate import GREEDY, Sampling
from memtx.runs.configure import build, configure
from memtx.runs.source import make_source
from memtx.sharding import Layout
from memtx.sweep import product

BEFORE, AFTER, PLACES = 4000, 2000, 20  # bytes, bytes, and places of all test plays
TOKENS = 800  # that are written, enough for AFTER bytes
CALLS = 240  # of 128 tokens of each test play, for bits per byte
SAMPLED = Sampling(temperature=0.8, top_p=1.0)
KNN = {"memory": 4096, "neighbours": 64, "temperature": 8.0, "lam": 0.3}
SPEAKER = re.compile(r"\*\*([^*\n]+)\*\*")

config = "configs/lm.py:size=tiny,data=books"
common = {
    "data.tokenizer": "bpe:4096",
    "train.steps": 400,
    "eval.every": 0,
    "eval.sample_tokens": 0,
    "eval.health": False,
}


def sweep():
    memories = (
        {"config": f"{config},memory=window", "memory.window.window": 64},
        {"config": f"{config},memory=xl", "memory.xl.segment": 64, "memory.xl.memory": 128},
        {"config": f"{config},memory=gated_deltanet"},
    )
    return product({"seed": [0, 1, 2]}, memories)


def run(config, workdir):
    """Return the bits per byte of the test plays, and scores of the texts. Write the first text of each way to texts.md."""
    trained, (befores, afters) = memtx.load(workdir), places(config)
    with_knn = with_cache(trained)
    texts = {
        "": write(trained, befores, SAMPLED, config.seed),
        "/greedy": write(trained, befores, GREEDY, config.seed),
        "/knn_lm": write(with_knn, befores, SAMPLED, config.seed),
        "/real": afters,
    }
    result = {f"text/{name}{way}": score for way, made in texts.items() for name, score in scores(befores, made).items()}
    for way, model in {"": trained, "/knn_lm": with_knn}.items():
        evaluation = evaluate(model)
        result[f"test/bits_per_byte{way}"] = evaluation.carried.bits_per_byte
        result[f"test/bits_per_byte_wiped{way}"] = evaluation.wiped.bits_per_byte
    lines = [line for way, made in texts.items() for line in (way, "", quoted(made[0]), "")]
    (Path(workdir) / "texts.md").write_text("\n".join(lines))
    return result


def places(config: memtx.Config) -> tuple[list[str], list[str]]:
    """Return the text before each place in the test plays, and the text that follows. Places are at the start of a line."""
    plays = [text for _, text in load_corpus(config.data.corpus, config.data.cache).documents("test")]
    before, after = [], []
    for i in range(PLACES):
        play = plays[i % len(plays)]
        at = play.rindex("\n", 0, len(play) * (i + 2) // (PLACES + 3)) + 1
        before.append(play[:at].encode()[-BEFORE:].decode(errors="ignore"))
        after.append(cut(play[at:]))
    return before, after


def cut(text: str) -> str:
    """Return the first AFTER bytes of a text."""
    return text.encode()[:AFTER].decode(errors="ignore")


def write(model: memtx.Loaded, befores: list[str], sampling: Sampling, seed: int) -> list[str]:
    """Return the texts that a model writes after others."""
    options = {"sampling": sampling, "max_tokens": TOKENS, "seed": 1000 * seed}
    return [cut(text) for text in memtx.complete(model.lm, model.params, model.tokenizer, befores, **options).texts]


def scores(befores: list[str], texts: list[str]) -> dict[str, float]:
    """Return the scores of texts that follow others."""
    known = [
        name in SPEAKER.findall(before) for before, text in zip(befores, texts, strict=True) for name in SPEAKER.findall(text)
    ]
    shares = {"known_speakers": 100 * mean(known) if known else 0.0, "speeches": len(known) / len(texts)}
    return repetition(texts) | shares | {"bytes": mean(len(text.encode()) for text in texts)}


def with_cache(trained: memtx.Loaded) -> memtx.Loaded:
    """Return the trained weights with a kNN-LM head."""
    model = trained.config.model
    changed = dataclasses.replace(model, head="knn_lm", memory={**model.memory, "knn_lm": KNN})
    config = configure(dataclasses.replace(trained.config, model=changed))
    lm = build(config, vocab_size=trained.tokenizer.vocab_size, subwords=trained.tokenizer.subwords)
    return dataclasses.replace(trained, lm=lm, config=config)


def evaluate(model: memtx.Loaded) -> Evaluation:
    """Evaluate a model on the test plays."""
    changed = dataclasses.replace(model.config.eval, split="test", segments=CALLS)
    config = dataclasses.replace(model.config, eval=changed)
    return make_source(config, model.tokenizer).evaluator(model.lm, Layout(config.mesh))(model.params)


def quoted(text: str) -> str:
    """Return a text as a quotation in Markdown."""
    return "\n".join(f"> {line.rstrip()}" if line.strip() else ">" for line in text.splitlines())


COLUMNS = {
    "bits per byte": "test/bits_per_byte",
    "wiped": "test/bits_per_byte_wiped",
    "bits per byte, kNN-LM": "test/bits_per_byte/knn_lm",
}
TEXTS = {"rep-4": ("repetition", "lower"), "distinct-4": ("distinct", "higher"), "known speakers": ("known_speakers", "higher")}
WAYS = {"": "", ", greedy": "/greedy", ", kNN-LM": "/knn_lm", ", real": "/real"}
report = {
    "rows": "memory",
    "columns": COLUMNS
    | {
        f"{heading}{mark}": {"metric": f"text/{name}{way}", "better": better, "digits": 1}
        for heading, (name, better) in TEXTS.items()
        for mark, way in WAYS.items()
    },
    "varies": ("state_bytes", "params", "flops_per_token"),
    "floor": 0.02,
}


def claims(table):
    def of(memory: str, column: str) -> float:
        return table[memory, column].mean

    for memory in ("xl", "gated_deltanet"):
        yield (
            f"{memory} has 0.02 bits per byte less than window",
            of(memory, "bits per byte") < of("window", "bits per byte") - 0.02,
        )
    for memory in ("window", "xl", "gated_deltanet"):
        less = of(memory, "bits per byte, kNN-LM") < of(memory, "bits per byte") - 0.02
        yield f"kNN-LM lowers the bits per byte of {memory} by 0.02", less
    for memory in ("xl", "gated_deltanet"):
        more = of(memory, "known speakers") > of("window", "known speakers") + 10
        yield f"at 0.8, {memory} has 10 more known speakers in a hundred than window", more
