"""Landmark attention finds a pass key at sixteen times the trained length, Infini-attention does not

Five digits are hidden in repeated sentences. Two layers of width 64 read the text byte by byte. They learn from texts of 320
bytes and are asked in texts of up to 5,120 bytes, with room for the whole text. `landmark` divides it into chunks of 16 bytes.
Each query and head reads the 2 chunks whose landmarks score best. `full` sees every byte, at distances that it never learned.
`window` sees 64 bytes. `infini` follows a window of 16 bytes and has segments of 64 and the linear update. At 320 bytes the
key begins at most two segments before the segment that asks for it. In longer texts it begins anywhere.

The claims: landmark attention finds pass keys in texts many times as long as those it was trained on (Mohtashami & Jaggi
2023). Infini-attention finds them in the last segments (Munkhdalai et al. 2024), but not after many times as many compressions
as in training (Hugging Face's attempt, 2024).
"""

from dataclasses import replace

import memtx
from memtx.runs.source import make_source
from memtx.sharding import Layout
from memtx.sweep import product

TASK = "configs/task.py:task=passkey,size=micro,memory={}"
LENGTHS = (320, 1280, 5120)
BLOCK = 16

config = TASK.format("landmark")
common = {
    "data.task.length": LENGTHS[0],
    "data.segment": 160,
    "train.segments": 2,
    "train.batch": 32,
    "train.steps": 3000,
    "optim.lr": 3e-3,
    "optim.warmup": 50,
    "eval.every": 0,
    "eval.batch": 16,
    "eval.examples": 256,
}


def room(length: int) -> dict:
    """Return the settings of each memory that make room for a text of `length` bytes."""
    return {"landmark": {"memory": length // BLOCK}, "full": {"capacity": length}, "window": {}, "infini": {}}


def sweep():
    settings = {
        "landmark": {"memory.landmark.block": BLOCK, "memory.landmark.neighbours": 2},
        "full": {},
        "window": {"memory.window.window": 64},
        "infini": {
            "config": "experiments/passkey/config.py:memory=infini",
            "memory.infini.segment": 64,
            "memory.infini.rule": "linear",
            "train.steps": 1500,
        },
    }
    for name, at in room(LENGTHS[0]).items():
        settings[name] |= {f"memory.{name}.{key}": value for key, value in at.items()}
    return product({"seed": [0, 1, 2]}, [{"config": TASK.format(name), **at} for name, at in settings.items()])


def run(config, workdir):
    """Return the share of exact answers and of right bytes for each length, with room in memory for the whole text."""
    params, found = memtx.load(workdir).params, {}
    for length in LENGTHS:
        memory = {name: replace(at, **room(length).get(name, {})) for name, at in config.model.memory.items()}
        task = replace(config.data.task, length=length)
        longer = replace(config, model=replace(config.model, memory=memory), data=replace(config.data, task=task))
        data = make_source(longer)
        lm = memtx.build(longer.model, vocab_size=data.tokenizer.vocab_size)
        metrics = data.evaluator(lm, Layout(longer.mesh))(params).metrics()
        found |= {f"{name}/length={length}": metrics[f"eval/{name}"] for name in ("exact", "accuracy")}
    return found


report = {
    "rows": "memory",
    "columns": {f"{n:,} bytes": {"metric": f"exact/length={n}", "digits": 2, "better": "higher"} for n in LENGTHS},
    "varies": ("state_bytes", "params", "flops_per_token"),
    "floor": 0.1,
}


def claims(table):
    mean = {(name, n): table[name, f"{n:,} bytes"].mean for name in ("landmark", "window", "infini") for n in LENGTHS}
    yield (
        "landmark attention finds more than 0.9 of the keys at 16 times the trained length",
        mean["landmark", LENGTHS[-1]] > 0.9,
    )
    yield "the window finds less than 0.1 of the keys at that length", mean["window", LENGTHS[-1]] < 0.1
    yield "infini finds more than 0.95 of the keys in the last three segments", mean["infini", LENGTHS[0]] > 0.95
    yield "infini finds less than 0.5 of the keys in texts of 80 segments", mean["infini", LENGTHS[-1]] < 0.5
