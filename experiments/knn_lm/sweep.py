"""kNN-LM lowers the loss without training

Does a memory of its hidden states lower a trained model's loss? `window` (tiny, with a window of 256 tokens) is trained
for 300 steps on `books`. The same weights then read held-out plays with kNN-LM's continuous cache over the logits. The cache
keeps the last 4,096 pairs (hidden state, next byte) of each stream and returns 64 neighbours. Its temperature is 8 and its
weight is λ. λ = 0 is the model alone.

The claim (Khandelwal et al. 2020): the best λ lies inside (0, 1) and gives a lower loss than the model alone.
"""

import dataclasses

import memtx
from memtx.runs.configure import build, configure
from memtx.runs.source import make_source
from memtx.sharding import Layout
from memtx.sweep import product

LAMBDAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
CACHE = {"memory": 4096, "neighbours": 64, "temperature": 8.0}

config = "configs/lm.py:memory=window,size=tiny,data=books"
common = {"train.steps": 300, "eval.every": 0, "eval.sample_tokens": 0}


def sweep():
    return product({"seed": [0, 1, 2]})


def run(config, workdir):
    """Return the bits per byte of the held-out text for each λ, with the trained weights of `workdir`."""
    trained = memtx.load(workdir)
    return {f"eval/bits_per_byte/λ={lam:g}": bits_per_byte(trained, lam) for lam in LAMBDAS}


def bits_per_byte(trained: memtx.Loaded, lam: float) -> float:
    """Evaluate the trained weights under a cache of weight `lam`, or without a cache if it is 0."""
    model = trained.config.model
    if lam:
        head = {"head": "knn_lm", "memory": {**model.memory, "knn_lm": {**CACHE, "lam": lam}}}
        model = dataclasses.replace(model, **head)
    config = configure(dataclasses.replace(trained.config, model=model))
    lm = build(config, vocab_size=trained.tokenizer.vocab_size)
    evaluate = make_source(config, trained.tokenizer).evaluator(lm, Layout(config.mesh))
    return evaluate(trained.params).carried.bits_per_byte


report = {
    "columns": {f"λ = {lam:g}": f"eval/bits_per_byte/λ={lam:g}" for lam in LAMBDAS},
    "figures": {"Bits per byte by the weight of the cache": {"y": "eval/bits_per_byte", "x": "λ"}},
    "floor": 0.01,
}


def claims(table):
    mean = {lam: table[f"λ = {lam:g}"].mean for lam in LAMBDAS}
    best = min(mean, key=mean.__getitem__)
    yield "with the best λ, the loss is lower than that of the model alone", mean[best] < mean[0.0]
    yield "the best λ is neither 0 nor the largest one measured", 0.0 < best < max(LAMBDAS)
