"""Long texts written with and without memory

Language models (1.3 M parameters with a BPE of 4,096 tokens) are trained for the same number of steps on Shakespeare's plays
(`books`). `window` has attention to the last 64 tokens in each of four layers. `xl` also keeps the last 256 hidden states of
each layer, and `gated_deltanet` a matrix per head. `kNN-LM` is the same model with a continuous cache of 4,096 tokens over its
logits, without more training. Its weight, 0.1, and temperature, 30, were chosen on the validation plays (seed 0, window).

Each model reads 4,000 bytes before 20 places in the three test plays and then writes 2,000 bytes. The columns with `0.8` sample
at that temperature from all tokens. The others take the likeliest token. `rep-4` is the percentage of 4-grams of words that
occurred earlier in the same text, and `distinct-4` that of different ones in all texts of a run. `known speakers` is the
percentage of the names before speeches that the 4,000 bytes have too. The last rows of columns give the same for the text that
really follows.

The claim: memory lowers the loss of held-out plays, and texts that are written with it keep to the persons of the scene.
"""

import dataclasses
import re
from pathlib import Path
from statistics import mean

import memtx
from memtx.data.corpora import load_corpus
from memtx.evaluation.text import repetition
from memtx.generate import GREEDY, Sampling
from memtx.runs.configure import build, configure
from memtx.runs.source import make_source
from memtx.sharding import Layout
from memtx.sweep import product

BEFORE, AFTER, PLACES = 4000, 2000, 20  # bytes, bytes, and places of all test plays
TOKENS = 1000  # that are written, enough for AFTER bytes
DRAWN = {"": Sampling(temperature=0.8, top_p=1.0), "/greedy": GREEDY}
KNN = {"memory": 4096, "neighbours": 64, "temperature": 30.0, "lam": 0.1}
SPEAKER = re.compile(r"\*\*([^*\n]+)\*\*")

config = "configs/lm.py:size=tiny,data=books"
common = {
    "data.tokenizer": "bpe:4096",
    "train.steps": 600,
    "eval.every": 0,
    "eval.sample_tokens": 0,
    "eval.health": False,
}


def sweep():
    memories = (
        {"config": f"{config},memory=window", "memory.window.window": 64},
        {"config": f"{config},memory=xl", "memory.xl.segment": 64, "memory.xl.memory": 256},
        {"config": f"{config},memory=gated_deltanet"},
    )
    return product({"seed": [0, 1, 2]}, memories)


def run(config, workdir):
    """Return the bits per byte of the test plays, and scores of the texts, with and without a kNN-LM head."""
    trained, (befores, afters) = memtx.load(workdir), places(config)
    result = {f"text/{name}/real": score for name, score in scores(befores, afters).items()}
    lines = ["The last line that was read:", "", quoted(befores[0].splitlines()[-1]), ""]
    for way, model in {"": trained, "/knn_lm": with_cache(trained)}.items():
        evaluation = evaluate(model)
        result[f"test/bits_per_byte{way}"] = evaluation.carried.bits_per_byte
        result[f"test/bits_per_byte_wiped{way}"] = evaluation.wiped.bits_per_byte
        for kind, sampling in DRAWN.items():
            texts = write(model, befores, sampling, config.seed)
            result |= {f"text/{name}{kind}{way}": score for name, score in scores(befores, texts).items()}
            lines += [f"Written{way.replace('/', ' with ')}{kind.replace('/', ', ')}:", "", quoted(texts[0]), ""]
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


def evaluate(model: memtx.Loaded, split: str = "test", segments: int = 0):
    """Evaluate a model on held-out plays. segments: how many are read at most (0: all)."""
    changed = dataclasses.replace(model.config.eval, split=split, segments=segments)
    config = dataclasses.replace(model.config, eval=changed)
    return make_source(config, model.tokenizer).evaluator(model.lm, Layout(config.mesh))(model.params)


def quoted(text: str) -> str:
    """Return a text as a quotation in Markdown."""
    return "\n".join(f"> {line.rstrip()}" if line.strip() else ">" for line in text.splitlines())


def _columns(way: str, label: str) -> dict[str, dict]:
    texts = {"rep-4": "repetition", "distinct-4": "distinct", "known speakers": "known_speakers"}
    better = {"repetition": "lower"}
    found = {f"bits per byte{label}": {"metric": f"test/bits_per_byte{way}"}}
    if not way:
        found["wiped"] = {"metric": "test/bits_per_byte_wiped"}
    for kind, mark in (("", " at 0.8"), ("/greedy", "")):
        for heading, name in texts.items():
            column = {"metric": f"text/{name}{kind}{way}", "better": better.get(name, "higher"), "digits": 1}
            found[f"{heading}{mark}{label}"] = column
    return found


report = {
    "rows": "memory",
    "columns": _columns("", "") | _columns("/knn_lm", ", kNN-LM"),
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
        more = of(memory, "known speakers at 0.8") > of("window", "known speakers at 0.8") + 10
        yield f"at 0.8, {memory} has 10 more known speakers in a hundred than window", more
