"""Product keys hold more facts than an MLP of equal FLOPs

A map from 1,024 keys to values that is the same in all examples (MAD's memorization): it can be kept in parameters only. In the
second branch of each block stands an MLP, or a product-key memory of 4,096 values; the MLP's width is solved for the
table's FLOPs a token.

The claim (Lample et al. 2019): at equal FLOPs a token, more facts.
"""

from memtx.sweep import product

TASK = "configs/task.py:task=mad,size=micro,memory={}"

config = TASK.format("window")
common = {
    "data.task.kind": "memorization",
    "data.task.vocabulary": 2048,
    "data.task.length": 32,
    "data.examples": 0,
    "data.segment": 32,
    "train.segments": 1,
    "train.batch": 64,
    "train.steps": 600,
    "optim.lr": 3e-3,
    "optim.warmup": 50,
    "eval.every": 0,
}


FLOPS = 606_208  # of the model with the table


def sweep():
    table = {"config": TASK.format("product_key"), "model.stacks": ((("window/product_key",), 2),)}
    mlp = {"match": {"flops_per_token": FLOPS}, "solve": "model.ff_dim"}
    return product({"seed": [0, 1, 2]}, [mlp, table])


report = {"rows": "memory", "columns": {"facts": "eval/accuracy"}, "varies": "params", "floor": 0.05}


def claims(table):
    yield "the table answers more than the MLP by 0.1", table["product_key", "facts"].mean > table["window", "facts"].mean + 0.1
