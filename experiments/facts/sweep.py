"""Tables hold more facts than an MLP of as many FLOPs

A map from 16,384 pairs of tokens to 128 values, the same in all examples (MAD's memorization, with keys of two tokens, so that
embeddings cannot hold it): it can be kept in parameters only, and is seen 60 times in training. In the last branch of a model
of two layers stands an MLP, or a table of 16,384 entries: product-key memory, Memory+ (three heads) or PEER (four heads, its
table's learning rate as that of the others). Engram, beside the second layer, hashes the last two tokens, and the last three,
to its tables' rows. The MLP's width is solved for the FLOPs a token of the dearest of them. `entries read`: the share of a
table's entries that 1,024 examples read.

The claims: with no more FLOPs than an MLP, product keys hold more facts (Lample et al. 2019), so do Memory+ (Berges et al.
2024), PEER's experts (He 2024), and hashed n-grams (Cheng et al. 2026).
"""

import jax
import numpy as np

import memtx
from memtx.core import collect
from memtx.runs.source import source
from memtx.sweep import product

TASK = "configs/task.py:task=mad,size=micro,memory={}"

config = TASK.format("window")
common = {
    "data.task.kind": "memorization",
    "data.task.key_tokens": 2,
    "data.task.vocabulary": 257,
    "data.task.length": 48,
    "data.examples": 0,
    "data.segment": 48,
    "train.segments": 1,
    "train.batch": 64,
    "train.steps": 1000,
    "optim.lr": 3e-3,
    "optim.warmup": 50,
    "eval.every": 0,
}
TABLES: dict[str, dict] = {  # in the last MLP's place
    "product_key": {},
    "memory_plus": {"heads": 3},
    "peer": {"heads": 4, "value_lr": 4.0},
}
FLOPS = 417_920  # of the model with Engram; with PEER 401,536, and 16,384 for reading its table, which are not counted


def in_last_branch(memory):
    settings = {"subkeys": 128, **TABLES[memory]}
    return {
        "config": TASK.format(memory),
        "model.stacks": ((("window",), 1), ((f"window/{memory}",), 1)),
        **{f"memory.{memory}.{key}": value for key, value in settings.items()},
    }


def sweep():
    mlp = {"match": {"flops_per_token": FLOPS}, "solve": "model.ff_dim"}
    return product({"seed": [0, 1, 2]}, [mlp, *map(in_last_branch, TABLES), {"config": TASK.format("engram")}])


def run(config, workdir):
    """The share of a table's entries that 1,024 examples of 48 tokens read."""
    if not TABLES.keys() & config.model.memory.keys():
        return {}
    trained = memtx.load(workdir)
    lm, stream = trained.lm, source(trained.config).stream()
    token_BT = np.concatenate([next(stream).token_BPT[:, 0] for _ in range(16)])
    read = jax.jit(lambda params, token_BT: collect(lm, "metric")(params, token_BT, lm.init_state(len(token_BT)))[1])
    return {"usage": float(read(trained.params, token_BT)["metric/usage"][0][0])}


report = {
    "rows": "memory",
    "columns": {"facts": "eval/accuracy", "entries read": {"metric": "usage", "digits": 2, "better": "higher"}},
    "varies": ("params", "state_bytes"),
    "floor": 0.05,
}


def claims(table):
    mlp = table["window", "facts"].mean
    for name in (*TABLES, "engram"):
        yield f"{name} answers more than the MLP by 0.1", table[name, "facts"].mean > mlp + 0.1
    for name in TABLES:
        yield f"most of {name}'s entries are read (0.5)", table[name, "entries read"].mean > 0.5
