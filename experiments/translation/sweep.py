"""Translation from English to Spanish, of verses and of whole chapters

The texts are 31,084 verses of the Bible in the King James Version and the Reina-Valera of 1909 (Debian's `sword-text-kjv` and
`sword-text-sparv`). Judges and James are for testing, Ruth and Philippians for validation, all other books for training. All
models are new, with two layers of width 128 (the T5 has two in each half) and a BPE of 4,096 tokens. They always write the
likeliest token.

The first row is a T5 that translates verses of at most 128 characters, each alone. The other rows are decoder-only models that
translate chapters verse by verse, after having read the earlier verses and their own translations of them. They are trained on
parts of chapters of at most 512 tokens (`data.task.turns=0`), or on as many tokens of single verses (`data.task.turns=1`). The
first 32 verses of the 26 chapters of Judges and James are translated three times: with the carried state, with the state wiped
before each verse, and with the state of another chapter. Bits per byte are those of the true translation, after the true
translations of the earlier verses.

The claim: a state that remembers the earlier verses helps to translate the next one.
"""

import json
import sys
from functools import partial
from itertools import groupby
from pathlib import Path

from bible import write_splits
from chapters import bits_per_byte, translate_alone, translate_chapters

import memtx
from memtx.data import rows
from memtx.errors import UserError
from memtx.evaluation.text import bleu, chrf
from memtx.files.atomic import write_atomic
from memtx.files.cache import built, root
from memtx.tasks.turns import Turns

CACHE = "~/.cache/memtx"
SHORT, LONG, ALL = 128, 224, 0  # the most characters of a verse: for the T5, for the chapters, and to test
TOKENS = 122  # of a verse and its translation, for the chapters
VERSES = 32  # of each test chapter
MEMORIES = ("window",)

config = "configs/seq2seq.py:size=tiny,tokenizer=bpe:4096,source=64,target=64,memory=none"
common = {
    "eval.every": 0,
    "eval.batch": 20,
    "eval.examples": 60,
    "eval.health": False,
    "train.log_every": 50,
    "checkpoint.every": 100,
    "optim.lr": 3e-3,
}


def folder(most: int) -> str:
    return f"{CACHE}/derived/bible_to_{most}_characters"


def sweep():
    for most in (SHORT, LONG, ALL):
        try:
            built(root(folder(most)), partial(_write, most))
        except UserError as error:  # a report needs no verses
            print(error, file=sys.stderr)
    verses = {
        "data.task.path": folder(SHORT),
        "data.task.source_tokens": 40,
        "data.task.target_tokens": 40,
        "data.segment": 40,
        "model.stacks": ((("full/cross/mlp",), 2),),
        "model.encoder": ((("bidirectional",), 2),),
        "model.scan": False,
        "train.batch": 32,
        "train.steps": 2800,
    }
    chapters = {
        "data.task.path": folder(LONG),
        "data.task.tokenizer": "bpe:4096",
        "data.segment": 128,
        "train.steps": 1250,
    }
    whole = chapters | {
        "data.task.turns": 0,
        "data.task.tokens": 512,
        "train.segments": 4,
        "train.batch": 4,
        "eval.batch": 14,
        "eval.examples": 28,  # all parts of the validation books
    }
    alone = chapters | {"data.task.turns": 1, "train.segments": 1, "train.batch": 26}
    for seed in (0, 1, 2):
        yield {"seed": seed} | verses
    for seed in (0, 1, 2):
        for memory, settings in (*((memory, whole) for memory in MEMORIES), (MEMORIES[0], alone)):
            spec = f"configs/lm.py:memory={memory},size=tiny,data=task:turns"
            yield {"seed": seed, "config": spec, "model.stacks": (((memory,), 2),)} | settings


def _write(most: int, folder: Path) -> None:
    """Write the verses of at most `most` characters (0: all), for LONG only those of at most TOKENS tokens."""
    write_splits(CACHE, most, folder)
    if most != LONG:
        return
    verses = Turns(Turns.Config(path=str(folder), tokenizer="bpe:4096", cache=CACHE, turns=1)).examples
    for split, examples in verses.items():
        lines = (folder / f"{split}.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line, example in zip(lines, examples, strict=True) if len(example.token_L) <= TOKENS]
        (folder / f"{split}.jsonl").write_text("".join(kept))


def run(config, workdir):
    """Translate the test set. Returns BLEU and chrF and, of chapters, the bits per byte, for each state."""
    loaded = memtx.load(workdir)
    if loaded.lm.model.encoder:
        found = rows.read(Path(root(folder(SHORT))) / "test.jsonl", ("source", "target"))
        texts = memtx.write(loaded, [source for source, _ in found], long="cut", batch=32, max_tokens=64).texts
        return _score(workdir, found, {"": texts, "/copied": [source for source, _ in found]})
    lines = rows.read(Path(root(folder(ALL))) / "test.jsonl", ("document", "source", "target"))
    chapters = [[(line[1], line[2]) for line in verses][:VERSES] for _, verses in groupby(lines, lambda line: line[0])]
    found = [verse for chapter in chapters for verse in chapter]
    if config.data.task.turns == 1:
        bits = bits_per_byte(loaded, chapters, ("wiped",))
        return _score(workdir, found, {"": translate_alone(loaded, chapters)}) | {"test/bits_per_byte": bits["wiped"]}
    written = translate_chapters(loaded, chapters)
    texts = {"": written["carried"], "/wiped": translate_alone(loaded, chapters), "/wrong": written["wrong"]}
    bits = bits_per_byte(loaded, chapters)
    return _score(workdir, found, texts) | {f"test/bits_per_byte/{way}".removesuffix("/carried"): bits[way] for way in bits}


def _score(workdir, verses, texts):
    """Return the scores of translations by the suffix of their metric, and write the translations beside the run."""
    write_atomic(Path(workdir) / "translations.json", json.dumps({"verses": verses} | texts, ensure_ascii=False, indent=1))
    references = [spanish for _, spanish in verses]
    scores = {"bleu": bleu, "chrf": chrf}
    return {f"test/{name}{way}": score(found, references) for way, found in texts.items() for name, score in scores.items()}


def _column(metric: str) -> dict:
    bits = metric.startswith("bits")
    return {"metric": f"test/{metric}", "better": "lower" if bits else "higher", "digits": 3 if bits else 1}


report = {
    "rows": ("memory", "data.task.turns"),
    "columns": {
        "BLEU": _column("bleu"),
        "chrF": _column("chrf"),
        "chrF, wiped": _column("chrf/wiped"),
        "chrF, another chapter": _column("chrf/wrong"),
        "bits per byte": _column("bits_per_byte"),
        "bits, wiped": _column("bits_per_byte/wiped"),
        "bits, another chapter": _column("bits_per_byte/wrong"),
        "chrF of the English": _column("chrf/copied"),
    },
    "varies": ("params", "state_bytes", "flops_per_token"),
}


def claims(table):
    def mean(memory, turns, heading):
        return table[memory, turns, heading].mean

    t5 = ("none", "default")
    yield "the T5 is 15 chrF above a copy of the English", mean(*t5, "chrF") > mean(*t5, "chrF of the English") + 15
    alone = mean(MEMORIES[0], 1, "chrF")
    for memory in MEMORIES:
        chrf, bits = mean(memory, 0, "chrF"), mean(memory, 0, "bits per byte")
        yield f"{memory}: with the carried state, chrF is 0.5 above that of the model of single verses", chrf > alone + 0.5
        yield f"{memory}: it is 0.5 above that with the state wiped", chrf > mean(memory, 0, "chrF, wiped") + 0.5
        yield f"{memory}: the carried state saves 0.02 bits per byte", bits < mean(memory, 0, "bits, wiped") - 0.02
        yield f"{memory}: that of another chapter saves 0.01 less", bits < mean(memory, 0, "bits, another chapter") - 0.01
