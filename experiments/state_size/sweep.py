"""Recall grows with the size of the state

The task is multi-query associative recall: 16 pairs in 64 tokens, with a vocabulary of 128. DeltaNet has two layers of width
64 with 2 heads. The state of a head is a matrix of key_dim x value_dim, here 4, 8, 16 and 32 squared.

The claim (Arora et al. 2023, 2024): recall grows with the state. Attention, whose state grows with the text, is left out: it
had not learned the task after 1,300 steps of this recipe. A matrix of 32 squared needs fewer than 600 steps.
"""

from itertools import pairwise

from memtx.sweep import product

DIMS = (4, 8, 16, 32)

config = "configs/task.py:task=mqar,size=micro,memory=deltanet"
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
    return product({"seed": [0, 1, 2]}, states)


report = {
    "rows": "memory.deltanet.key_dim",
    "columns": {"recall": "eval/accuracy"},
    "figures": {"Recall by the size of the state": {"y": "eval/accuracy", "x": "state_bytes"}},
    "varies": ("state_bytes", "params", "flops_per_token"),
    "floor": 0.05,
}


def claims(table):
    mean = [table[d, "recall"].mean for d in DIMS]
    yield "recall falls by less than 0.02 from any state to the next larger one", all(b > a - 0.02 for a, b in pairwise(mean))
    yield "the largest state recalls 0.3 more than the smallest", mean[-1] > mean[0] + 0.3
