"""Tables store more facts than an MLP with the same FLOPs

The task is a map from 16,384 pairs of tokens to 128 values, the same in all examples (MAD's memorization). Keys have two
tokens, so embeddings cannot store the map, and a model must keep it in its parameters. Training shows each pair about 60
times. The model has two layers. Its last branch is an MLP (row `window`) or a table of 16,384 entries: product-key memory,
Memory+ (three heads) or PEER (four heads, with the same learning rate for its table as the others). Engram sits beside the
second layer and hashes the last two tokens, and the last three, to rows of its tables. The MLP's width is solved so that its
FLOPs per token match the most expensive of the four. `entries read` is the share of a table's entries that 1,024 examples
read.

The claims: with no more FLOPs than an MLP, more facts are stored by product keys (Lample et al. 2019), by Memory+ (Berges et
al. 2024), by PEER's experts (He 2024), and by hashed n-grams (Cheng et al. 2026).
"""

import jax
import numpy as np

import memtx
from memtx.core import collect
from memtx.runs.source import make_source
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
TABLES: dict[str, dict] = {  # replace the last MLP
    "product_key": {},
    "memory_plus": {"heads": 3},
    "peer": {"heads": 4, "value_lr": 4.0},
}
FLOPS = 417_920  # per token with Engram; PEER has as many: 401,536, and 16,384 to read its table, which are not counted


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
    """Return the share of a table's entries that 1,024 examples of 48 tokens read."""
    if not TABLES.keys() & config.model.memory.keys():
        return {}
    trained = memtx.load(workdir)
    lm, stream = trained.lm, make_source(trained.config).stream()
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
        yield f"{name} beats the MLP by more than 0.1", table[name, "facts"].mean > mlp + 0.1
    for name in TABLES:
        yield f"more than 0.5 of {name}'s entries are read", table[name, "entries read"].mean > 0.5
