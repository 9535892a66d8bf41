"""Compile train steps for TPUs that are not here, and print their memory and transfers as a table.

    pip install 'memtx[plan]'
    python benchmarks/compiled/run.py [--only=memorizing] [--out=benchmarks/compiled/results/steps.json]

Each case is a config of configs/lm.py on a TPU slice, with a vocabulary of 32,000. The figures are the compiler's, per device:
the most memory in use, the arguments (parameters, optimiser, state and batch), what crosses devices in a step, by kind, and
the lines of the program. Beside them are the estimates of `memtx plan`. With --only, only cases whose text has this word are
compiled. No step runs, so there are no times.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from memtx.config import Config
from memtx.runs.compiled import Compiled, compile_step
from memtx.runs.configure import configure, load_config
from memtx.runs.estimate import Estimate, estimate

GIB = 2**30
CONFIG = Path(__file__).parents[2] / "configs" / "lm.py"
CASES = [  # (TPU slice, argument of configs/lm.py, changes, most GiB in use)
    ("v5e:4x4", "memory=window,size=base", {}, 4.0),
    ("v5e:4x4", "memory=window,size=base", {"mesh.model": 4}, 3.3),
    ("v5e:4x4", "memory=window,size=base", {"mesh.fsdp": True}, 2.2),
    ("v5e:16x16", "memory=window,size=1b", {"mesh.fsdp": True}, 1.5),
    (
        "v5e:4x4",
        "memory=full,size=1b",
        {"mesh.fsdp": True, "train.batch": 16, "data.segment": 8192, "memory.full.capacity": 8192},
        13.5,
    ),
    ("v5e:4x4", "memory=xl,size=base", {}, 3.8),
    ("v5e:4x4", "memory=gated_deltanet,size=base", {}, 4.0),
    ("v5e:4x4", "memory=titans_mac,size=base", {}, 6.5),
    ("v5e:4x4", "memory=rmt,size=base", {}, 9.5),
    ("v5e:4x4", "memory=knn_lm,size=base", {}, 12.0),
    ("v5e:4x4", "memory=memorizing,size=base", {"memory.memorizing.memory": 65536}, 15.0),
    ("v5p:2x2x2", "memory=memorizing,size=base", {"memory.memorizing.memory": 65536}, 28.0),
    ("v6e:4x4", "memory=window,size=base", {}, 4.0),
    ("v5e:4x4", "memory=product_key,size=base", {}, 4.0),
    ("v5e:4x4", "memory=product_key,size=base", {"mesh.fsdp": True, "mesh.model": 4}, 3.2),
    ("v5e:4x4", "memory=memory_plus,size=base", {"mesh.fsdp": True}, 2.3),
    ("v5e:4x4", "memory=peer,size=base", {}, 4.0),
]


def compile_case(topology: str, argument: str, changes: dict) -> Compiled:
    """Compile the train step of a case."""
    return compile_step(config_of(argument, changes), topology, vocab_size=32_000)


def estimate_case(topology: str, argument: str, changes: dict) -> Estimate:
    """Estimate the train step of a case."""
    return estimate(config_of(argument, changes), topology, vocab_size=32_000)


def config_of(argument: str, changes: dict) -> Config:
    """Return the config of a case."""
    values = load_config(f"{CONFIG}:{argument}").to_dict()
    values["eval"]["batch"] = values["train"]["batch"]
    for name, value in {**changes, "eval.batch": changes.get("train.batch", values["train"]["batch"])}.items():
        group, key = name.rsplit(".", 1)
        target = values
        for part in group.split("."):
            target = target[part]
        target[key] = value
    return configure(values)


def row(step: Compiled, estimated: Estimate) -> dict:
    """Return the figures of a step."""
    figures = {name: round(getattr(step, name) / GIB, 3) for name in ("peak", "arguments")}
    figures |= {f"estimated_{name}": round(getattr(estimated, name) / GIB, 3) for name in ("peak", "arguments")}
    moved = {kind: round(size / 1e6) for kind, size in step.moved.items() if size > 5e5}
    return {**figures, "lines": step.text.count("\n"), "moved": moved}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    columns = ("peak GiB", "estimated", "arguments GiB", "estimated", "MB between devices", "lines")
    rows, heads = [], ("TPUs", "config", "changes", *columns)
    print(f"| {' | '.join(heads)} |\n|---|---|---|---:|---:|---:|---:|---|---:|")
    for topology, argument, changes, _ in CASES:
        changed = " ".join(f"{name}={value}" for name, value in changes.items())
        if given.only not in f"{topology} {argument} {changed}":
            continue
        case = (topology, argument, changes)
        found = row(compile_case(*case), estimate_case(*case))
        moved = ", ".join(f"{kind} {size:,}" for kind, size in found["moved"].items())
        cells = [
            topology,
            f"`{argument}`",
            changed and f"`{changed}`",
            *(f"{found[name]:.2f}" for name in ("peak", "estimated_peak", "arguments", "estimated_arguments")),
            moved,
        ]
        print(f"| {' | '.join(cells)} | {found['lines']:,} |", flush=True)
        rows.append({"topology": topology, "config": argument, "changes": changes, **found})
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
