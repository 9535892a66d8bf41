"""Infini-attention and the number of compressions

Recall of 4 pairs among tokens that look like keys and values, learned in 64 tokens: a window of 16 in the first layer, then
Infini-attention with segments of 16 and the paper's linear update; what lies before the present segment is in the compressive
memory only, to which every segment is added. Asked in texts of 4,096 tokens, accuracy by how many tokens ago a pair was
written. Beside it Gated DeltaNet, whose matrix is as large a memory, with a forget gate.

The claim (the failed reproduction of Infini-attention by Hugging Face, 2024): what it recalls falls with the number of
compressions.
"""

from memtx.sweep import product

CONFIG = "experiments/recall/config.py:memory={}"
AGES = (16, 64, 256, 1024, 2048)  # in tokens, up to twice as many

config = CONFIG.format("infini")
common = {"data.task.filler": "safe", "train.steps": 1500, "eval.task": {"length": 4096}}


def sweep():
    infini = {"memory.infini.segment": 16, "memory.infini.rule": "linear"}
    return product({"seed": [0, 1, 2]}, [infini, {"config": CONFIG.format("gated_deltanet")}])


report = {
    "rows": "memory",
    "columns": {f"{n:,} ago": {"metric": f"eval/accuracy/distance={n}", "digits": 2} for n in AGES},
    "figures": {"Accuracy by distance": {"y": "eval/accuracy", "x": "distance"}},
    "varies": ("params", "flops_per_token", "state_bytes"),
    "floor": 0.1,
}


def claims(table):
    mean = [table["infini", f"{n:,} ago"].mean for n in AGES]
    yield "infini tells what was written one segment ago (0.95)", mean[0] > 0.95
    yield "and four to eight, twice as long as it learned from (0.95)", mean[1] > 0.95
    yield "from 128 segments on it tells less (0.1)", mean[-1] < mean[1] - 0.1
