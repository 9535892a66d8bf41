"""Titans compared with Gated DeltaNet

The task is recall (MQAR, 8 pairs in 64 tokens, a vocabulary of 128) with two layers of width 64. Titans' memory is here a
layer before a window of 16 tokens (MAL). It is an MLP that learns by gradient descent while it reads, with the same weights
for 16 tokens. With a single linear layer and no momentum it is Gated DeltaNet's rule, except for those 16 tokens. The step
size of a token is up to 1 (lr = 16). With up to 1/16 (lr = 1) `titans_mag` answered only from its window: 0.44 to 0.50 on
seeds 0 and 1, at any depth, with and without momentum.

The claim (Behrouz et al. 2024): a deep memory with momentum recalls more than a matrix.
"""

from memtx.sweep import product

TASK = "configs/task.py:task=mqar,size=micro,memory={}"

config = TASK.format("gated_deltanet")
common = {
    "data.task.vocabulary": 128,
    "data.task.pairs": 8,
    "data.task.length": 64,
    "train.steps": 600,
    "train.batch": 64,
    "optim.lr": 3e-3,
    "optim.warmup": 50,
    "eval.every": 0,
}


def sweep():
    titans = {"config": TASK.format("titans_mal")} | {f"memory.titans_mal.{key}": 16 for key in ("window", "chunk", "lr")}
    linear = {"memory.titans_mal.depth": 1, "memory.titans_mal.momentum": False}
    return product({"seed": [0, 1, 2]}, [{}, titans | linear, titans])


report = {
    "rows": ("memory", "memory.titans_mal.depth"),
    "columns": {"recall": "eval/accuracy"},
    "varies": ("state_bytes", "params", "flops_per_token"),
    "floor": 0.05,
}


def claims(table):
    matrix, linear = table["gated_deltanet", "default", "recall"].mean, table["titans_mal", "1", "recall"].mean
    deep = table["titans_mal", "default", "recall"].mean
    yield "a linear memory without momentum recalls as much as Gated DeltaNet (within 0.1)", abs(linear - matrix) < 0.1
    yield "depth 2 with momentum recalls more than Gated DeltaNet (0.02)", deep > matrix + 0.02
    yield "depth 2 with momentum recalls more than the linear memory (0.02)", deep > linear + 0.02
