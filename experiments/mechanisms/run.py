"""Fill the table of mechanisms: one run for each mechanism, column and seed that has no stored result yet.

    python experiments/mechanisms/run.py --memories=window,deltanet --columns=mqar,forgetting --seeds=0,1,2
    python experiments/mechanisms/table.py          writes README.md from what is stored

Results: results/MEMORY/COLUMN-SEED.json, with every number of the last evaluation, the config, versions and seconds.
"""

import argparse
import importlib.metadata
import json
import tempfile
import time
from pathlib import Path

from columns import COLUMNS

import memtx
from memtx.config import configure, to_json
from memtx.models.cost import flops_per_token
from memtx.models.lm import build
from memtx.training.cpu import keep_pages

RESULTS = Path(__file__).parent / "results"


def measure(memory: str, column: str, seed: int) -> dict:
    """Train, and read the last line of metrics.jsonl that has an evaluation."""
    config = COLUMNS[column].config(memory)
    config.seed = seed
    with tempfile.TemporaryDirectory() as workdir:
        began = time.monotonic()
        memtx.train(config, f"{workdir}/run", say=lambda *_: None)
        seconds = time.monotonic() - began
        lines = [json.loads(line) for line in (Path(workdir) / "run" / "metrics.jsonl").read_text().splitlines()]
        loaded = memtx.load(f"{workdir}/run")
    last = next(line for line in reversed(lines) if any(key.startswith("eval/") for key in line))
    return {
        "eval": {key: value for key, value in last.items() if key.startswith("eval/")},
        "parameters": loaded.lm.num_params(),
        "state_bytes": memtx.state_bytes(loaded.lm),
        "flops_per_token": flops_per_token(build(config, vocab_size=loaded.tokenizer.vocab_size)),
        "train_tokens_per_s": sorted(line["train/tokens_per_s"] for line in lines if "train/tokens_per_s" in line)[-1],
        "seconds": round(seconds, 1),
        "config": to_json(configure(config)),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "numpy")},
    }


def main(args) -> None:
    keep_pages()
    for seed in args.seeds:
        for column in args.columns:
            for memory in args.memories:
                path = RESULTS / memory / f"{column}-{seed}.json"
                if path.exists():
                    continue
                try:
                    result = measure(memory, column, seed)
                except Exception as error:  # the other cells do not depend on this one
                    print(f"{memory} {column} {seed}: {type(error).__name__}: {error}", flush=True)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(result, indent=1) + "\n")
                numbers = {name: round(result["eval"][key], 3) for name, key in COLUMNS[column].numbers.items()}
                print(memory, column, seed, numbers, f"{result['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    names = lambda text: text.split(",")  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=names, default=list(memtx.MEMORIES))
    parser.add_argument("--columns", type=names, default=list(COLUMNS))
    parser.add_argument("--seeds", type=lambda text: [int(n) for n in text.split(",")], default=[0, 1, 2])
    main(parser.parse_args())
