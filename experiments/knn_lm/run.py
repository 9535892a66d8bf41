"""Does a memory of its own hidden states lower a trained model's loss, with no training at all?

    python experiments/knn_lm/run.py --seeds=0,1,2

Trains `window` (tiny) on books, then reads the same held-out text with kNN-LM's continuous cache over the same weights, for
each weight lam of the cache. lam = 0 is the model alone. Writes results.json and the table of README.md.
"""

import argparse
import dataclasses
import json
import re
import statistics
import tempfile
from pathlib import Path

import memtx
from memtx.config import configure
from memtx.models.lm import build
from memtx.training.cpu import keep_pages
from memtx.training.sharding import Layout
from memtx.training.source import source

FOLDER = Path(__file__).parent
LAMBDAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
CACHE = {"memory": 4096, "neighbours": 64, "temperature": 8.0}


def train(seed: int, steps: int, workdir: str) -> memtx.Loaded:
    config = memtx.load_config("configs/lm.py:memory=window,size=tiny,data=books")
    config.seed, config.train.steps, config.eval.every, config.eval.sample_tokens = seed, steps, 0, 0
    memtx.train(config, workdir, say=lambda *_: None)
    return memtx.load(workdir)


def bits_per_byte(trained: memtx.Loaded, lam: float) -> float:
    """Of the held-out text, read by the trained weights with a cache of weight lam over the logits."""
    model = trained.config.model
    if lam:
        head = {"head": "knn_lm", "memory": {**model.memory, "knn_lm": {**CACHE, "lam": lam}}}
        model = dataclasses.replace(model, **head)
    config = configure(dataclasses.replace(trained.config, model=model))
    lm = build(config, vocab_size=trained.tokenizer.vocab_size)
    evaluate = source(config, trained.tokenizer).evaluator(lm, Layout(config.mesh))
    return evaluate(trained.params).carried.bits_per_byte


def table(results: dict[str, dict[str, float]]) -> str:
    seeds = list(results)
    lines = ["| lam | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean |", "|---" + "|---:" * (len(seeds) + 1) + "|"]
    for lam in map(str, LAMBDAS):
        values = [results[seed][lam] for seed in seeds]
        lines.append(f"| {lam} | " + " | ".join(f"{v:.4f}" for v in values) + f" | {statistics.mean(values):.4f} |")
    return "\n".join(lines)


def main(args) -> None:
    keep_pages()
    results = {}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            trained = train(seed, args.steps, f"{folder}/run")
        results[str(seed)] = {str(lam): bits_per_byte(trained, lam) for lam in LAMBDAS}
        print(seed, results[str(seed)], flush=True)
        stored = {"steps": args.steps, "cache": CACHE, "bits_per_byte": results}
        (FOLDER / "results.json").write_text(json.dumps(stored, indent=1) + "\n")
    readme = FOLDER / "README.md"
    marked = re.compile(r"(<!-- table -->\n).*?(\n<!-- end -->)", re.DOTALL)
    readme.write_text(marked.sub(lambda m: m[1] + table(results) + m[2], readme.read_text()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=lambda text: [int(n) for n in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args())
