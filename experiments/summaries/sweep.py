"""Synopses of packages: an encoder with memory reads descriptions longer than its segments

A T5 is trained from random weights to write the synopsis of a Debian package from its long description (26 to 42 words). The
encoder reads either the first 24 tokens, or up to 72 tokens in segments of 24 with RMT's memory tokens (`rmt_encoder`), or the
same 72 tokens at once. The decoder reads the outputs of the encoder at all tokens that it has read. Packages of one family,
such as those of one source package, are in the same split. The tokenizer is a BPE of 4,096 tokens trained on the training
texts. All models have the same size and number of steps. The texts come from apt, whose mirror can change them.

The columns after ROUGE-L give the same weights less to read. `first 24 tokens` leaves out all later segments. `later segments
of another` keeps the first 24 tokens and takes the rest from another description. `memory wiped` starts each segment with the
learned memory tokens, and `memory of another` with those that another description wrote. `first 8 words` and `first sentence`
are the beginning of the description itself, without a model.

The claim: an encoder with memory writes better synopses than one that reads only its first segment.
"""

import dataclasses
from pathlib import Path

import numpy as np
from descriptions import FOLDER

import memtx
from memtx.data.sentences import split
from memtx.evaluation.text import rouge
from memtx.files.cache import root
from memtx.generate import GREEDY, complete_in_batches
from memtx.memory import MEMORIES
from memtx.runs.configure import build, configure
from memtx.tasks.pairs import Pairs

SEGMENT, WHOLE, TARGET, BATCH = 24, 72, 20, 16
TESTED = 464  # descriptions, a multiple of the batch
SHOWN = 20
LATER = "later segments of another"

config = f"configs/seq2seq.py:tokenizer=bpe:4096,size=tiny,segment={SEGMENT},source={WHOLE},target={TARGET}"
common = {
    "data.task.path": FOLDER,
    "data.task.target_tokens": TARGET,
    "model.dropout": 0.0,
    "model.stacks": ((("full/cross/mlp",), 2),),
    "model.encoder": ((("bidirectional",), 2),),
    "model.scan": False,
    "train.steps": 1200,
    "train.batch": 16,
    "optim.lr": 4e-3,
    "eval.every": 0,
    "eval.examples": 256,
    "eval.batch": 16,
    "eval.generate": 0,
    "eval.health": False,
}


def sweep():
    for seed in (0, 1, 2):
        for memory, tokens in (("none", SEGMENT), ("rmt_encoder", WHOLE), ("none", WHOLE)):
            around = {"memory.rmt_encoder.memory": 8, "memory.rmt_encoder.remat": False} if memory == "rmt_encoder" else {}
            yield {"seed": seed, "config": f"{config},memory={memory}", "data.task.source_tokens": tokens} | around


def run(config, workdir):
    """Return the scores on test descriptions. Write unselected texts to texts.md in the run's folder."""
    trained = memtx.load(workdir)
    tested = Pairs(dataclasses.replace(config.data.task, source_tokens=0)).examples["test"][:TESTED]
    sources = [example.source_S[: config.data.task.source_tokens] for example in tested]
    wholes = [example.source_S for example in tested]
    answers, bodies = [example.answer for example in tested], [trained.tokenizer.decode(ids) for ids in wholes]
    texts = {"": write(trained, sources)}
    if config.data.task.source_tokens > SEGMENT:
        others = [*sources[1:], sources[0]]
        swapped = [np.append(own[:SEGMENT], other[SEGMENT:]) for own, other in zip(sources, others, strict=True)]
        texts["/first segment"] = write(trained, [ids[:SEGMENT] for ids in sources])
        texts["/later segments of another"] = write(trained, swapped)
    if config.model.encoder_body:
        texts |= {f"/memory {name.lower()}": write(with_memory(trained, name), sources) for name in ("Wiped", "Swapped")}
    texts["/first 8 words"] = [" ".join(body.split()[:8]) for body in bodies]
    texts["/first sentence"] = [body[slice(*split(body, lambda _: True)[0])] for body in bodies]
    (Path(workdir) / "texts.md").write_text(shown(trained, sources[:SHOWN], texts[""][:SHOWN], answers))
    found = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
    result = {f"test/{found[kind]}{way}": score for way, made in texts.items() for kind, score in rouge(made, answers).items()}
    return result | {"source_tokens": sum(map(len, wholes)) / len(wholes), "train_pairs": _lines(config.data.task.path)}


def write(trained: memtx.Loaded, sources: list[np.ndarray]) -> list[str]:
    """Return the likeliest text for each source, token by token."""
    options = {"sampling": GREEDY, "max_tokens": TARGET, "batch": BATCH}
    return complete_in_batches(*_parts(trained), [""] * len(sources), source=sources, **options).texts


def with_memory(trained: memtx.Loaded, name: str) -> memtx.Loaded:
    """Return the trained weights with a class of forgetful.py around the encoder."""
    model = trained.config.model
    around = MEMORIES.add(f"{Path(__file__).parent / 'forgetful.py'}:{name}")
    memory = {**model.memory, around: model.memory[model.encoder_body]}
    changed = configure(
        dataclasses.replace(trained.config, model=dataclasses.replace(model, encoder_body=around, memory=memory))
    )
    tokenizer = trained.tokenizer
    lm = build(changed, vocab_size=tokenizer.vocab_size, subwords=tokenizer.subwords)
    return dataclasses.replace(trained, lm=lm)


def shown(trained: memtx.Loaded, sources: list[np.ndarray], texts: list[str], answers: list[str]) -> str:
    """Return the texts in Markdown, and how they change if each segment of a source is left out."""
    lines = ["| synopsis of the package | synopsis of the model |", "| --- | --- |"]
    lines += [f"| {answer} | {text} |" for answer, text in zip(answers, texts, strict=False)]
    for ids, text, answer in zip(sources[:3], texts, answers, strict=False):
        starts = range(0, len(ids), SEGMENT)
        less = write(trained, [np.append(ids[:i], ids[i + SEGMENT :]) for i in starts]) if len(starts) > 1 else []
        lines += ["", f"{answer}: {text}", "", "| segment left out | synopsis of the model |", "| --- | --- |"]
        lines += [
            f"| {trained.tokenizer.decode(ids[i : i + SEGMENT])} | {made} |" for i, made in zip(starts, less, strict=False)
        ]
    return "\n".join([*lines, ""])


def _parts(trained: memtx.Loaded) -> tuple:
    return trained.lm, trained.params, trained.tokenizer


def _lines(folder: str) -> int:
    return len((root(folder) / "train.jsonl").read_text().splitlines())


LESS = {
    "first 24 tokens": "/first segment",
    "later segments of another": "/later segments of another",
    "memory wiped": "/memory wiped",
    "memory of another": "/memory swapped",
    "first 8 words": "/first 8 words",
    "first sentence": "/first sentence",
}
report = {
    "rows": ("memory", "data.task.source_tokens"),
    "columns": {
        heading: {"metric": f"test/{metric}", "better": "higher", "digits": 1}
        for heading, metric in {
            **{f"ROUGE-{kind}": f"rouge_{kind.lower()}" for kind in "12L"},
            **{heading: f"rouge_l{way}" for heading, way in LESS.items()},
        }.items()
    },
    "varies": ("state_bytes", "params", "flops_per_token"),
    "floor": 1.0,
}


def claims(table):
    def of(memory: str, tokens: int, column: str = "ROUGE-L") -> float:
        return table[memory, tokens, column].mean

    memory = of("rmt_encoder", WHOLE)
    yield "with memory, ROUGE-L is 1 above that of the first 24 tokens", memory > of("none", SEGMENT) + 1
    yield "with memory, ROUGE-L is at most 1 below that of reading all at once", memory > of("none", WHOLE) - 1
    yield "with memory, ROUGE-L is 1 above that of the first 8 words", memory > of("none", WHOLE, "first 8 words") + 1
    yield "the later segments of another description lower ROUGE-L by 1", memory > of("rmt_encoder", WHOLE, LATER) + 1
    yield "wiping the memory tokens lowers ROUGE-L by 1", memory > of("rmt_encoder", WHOLE, "memory wiped") + 1
