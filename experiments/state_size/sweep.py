"""The size of the state governs recall

Multi-query associative recall: 16 pairs in 64 tokens, a vocabulary of 128, two layers of width 64 with 2 heads. A head's
state is a matrix of key_dim x value_dim; here 4, 8, 16 and 32 squared.

The claim (Arora et al. 2023, 2024): recall grows with the state, and attention, whose state grows with the text, needs none
of that. (Attention is slower to learn it: it has 1,500 steps where the others have 600.)
"""

from itertools import pairwise

from memtx.sweep import chain, product

TASK = "configs/task.py:task=mqar,size=micro,memory={}"
DIMS = (4, 8, 16, 32)

config = TASK.format("deltanet")
common = {
    "data.task.vocabulary": 128,
    "data.task.pairs": 16,
    "data.task.length": 64,
    "train.steps": 600,
    "train.batch": 64,
    "optim.lr": 3e-3,
    "optim.warmup": 50,
    "eval.every": 0,
}


def sweep():
    states = [{"memory.deltanet.key_dim": d, "memory.deltanet.value_dim": d} for d in DIMS]
    return product({"seed": [0, 1, 2]}, chain(states, [{"config": TASK.format("full"), "train.steps": 1500}]))


report = {
    "rows": ("memory", "memory.deltanet.key_dim"),
    "columns": {"recall": "eval/accuracy"},
    "figures": {"Recall by the size of the state": {"y": "eval/accuracy", "x": "state_bytes"}},
    "varies": ("state_bytes", "params", "flops_per_token"),
    "floor": 0.05,
}


def claims(table):
    mean = [table["deltanet", d, "recall"].mean for d in DIMS]
    yield "recall does not fall as the state grows (0.02)", all(b > a - 0.02 for a, b in pairwise(mean))
    yield "the largest state recalls 0.3 more than the smallest", mean[-1] > mean[0] + 0.3
    yield "attention recalls nearly all (0.95)", table["full", "default", "recall"].mean > 0.95
