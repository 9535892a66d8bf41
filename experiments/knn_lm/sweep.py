"""kNN-LM: a lower loss with no training

Does a memory of its own hidden states lower a trained model's loss? `window` (tiny, 256 tokens of window) is trained 300 steps
on `books`; then the same weights read held-out plays with kNN-LM's continuous cache over the logits: each stream's own last
4,096 pairs (hidden state, next byte), 64 neighbours, temperature 8, with weight λ. λ = 0 is the model alone.

The claim (Khandelwal et al. 2020): an optimum of λ inside (0, 1), below the model alone.
"""

import dataclasses

import memtx
from memtx.config import configure
from memtx.models.lm import build
from memtx.runs.source import source
from memtx.sharding import Layout
from memtx.sweep import product

LAMBDAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
CACHE = {"memory": 4096, "neighbours": 64, "temperature": 8.0}

config = "configs/lm.py:memory=window,size=tiny,data=books"
common = {"train.steps": 300, "eval.every": 0, "eval.sample_tokens": 0}


def sweep():
    return product({"seed": [0, 1, 2]})


def run(config, workdir):
    """Bits per byte of the held-out text at every λ, with the weights that were trained."""
    trained = memtx.load(workdir)
    return {f"eval/bits_per_byte/λ={lam:g}": bits_per_byte(trained, lam) for lam in LAMBDAS}


def bits_per_byte(trained: memtx.Loaded, lam: float) -> float:
    model = trained.config.model
    if lam:
        head = {"head": "knn_lm", "memory": {**model.memory, "knn_lm": {**CACHE, "lam": lam}}}
        model = dataclasses.replace(model, **head)
    config = configure(dataclasses.replace(trained.config, model=model))
    lm = build(config, vocab_size=trained.tokenizer.vocab_size)
    evaluate = source(config, trained.tokenizer).evaluator(lm, Layout(config.mesh))
    return evaluate(trained.params).carried.bits_per_byte


report = {
    "columns": {f"λ = {lam:g}": f"eval/bits_per_byte/λ={lam:g}" for lam in LAMBDAS},
    "figures": {"Bits per byte by the weight of the cache": {"y": "eval/bits_per_byte", "x": "λ"}},
    "floor": 0.01,
}


def claims(table):
    mean = {lam: table[f"λ = {lam:g}"].mean for lam in LAMBDAS}
    best = min(mean, key=mean.__getitem__)
    yield "the cache lowers the loss of the model alone", mean[best] < mean[0.0]
    yield "the best λ measured lies inside: a larger one is worse again", 0.0 < best < max(LAMBDAS)
