"""Read a whole play with SmolLM2-135M, which sees 512 tokens, to measure the gain of a memory by position in the play.

    python benchmarks/play/run.py [--readers="window;sink"] [--workdir=runs/play]
    python benchmarks/play/run.py --tune          # kNN-LM's weight and temperature, on another play
    python benchmarks/play/run.py --pilot         # untrained readers on the first 4,096 tokens of that other play
    python benchmarks/play/run.py --show          # tables and figure from the stored results

The play is held out from training. Settings were chosen on another held-out play. Each reader runs in a separate process, which
also reports its memory, and reads from the first token to the last, 512 tokens per call. Trained readers are trained before by
`memtx train`, in `workdir`. The script adds to results/play.json. A gain is in nats per token. Its error is the standard error
of the mean over calls, paired with the variant that it is compared to.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tables import CALL, draw, nats_of, show

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PLAY, TUNED_ON = ("test", "the-tempest"), ("valid", "twelfth-night")


@dataclass(frozen=True)
class Reader:
    """One way to read the play: a model with its memory."""

    arg: str  # argument of configs/pretrained.py
    settings: dict = field(default_factory=dict)  # overrides of that config
    base: str = "window"  # the reader that it is compared to
    steps: int = 0  # training steps
    heads: dict = field(default_factory=dict)  # name -> settings of kNN-LMs that read the same hidden states
    calls: int = 0  # calls to read; 0: the whole play


ON = "memory=memorizing,layers=9+11+13+20"
MEMORY = {"memory.memorizing.memory": 8192}
OPENED = {"memory.memorizing.gate": 0.2}
KNN = {"knn_lm": {"memory": 8192, "neighbours": 64, "lam": 0.05, "temperature": 150.0}}
READERS = {
    "window": Reader("memory=none,attention=window", heads=KNN),
    "sink": Reader("memory=none,attention=sink", heads=KNN),
    "full": Reader("memory=none,attention=full,context=4608", base="sink", calls=8),
    "window, memorizing closed": Reader(f"{ON},attention=window", MEMORY, calls=8),
    "window, memorizing opened": Reader(f"{ON},attention=window", MEMORY | OPENED, calls=8),
    "window, memorizing trained": Reader(f"{ON},attention=window", MEMORY, steps=40),
    "sink, memorizing closed": Reader(f"{ON},attention=sink", MEMORY, "sink", calls=8),
    "sink, memorizing opened": Reader(f"{ON},attention=sink", MEMORY | OPENED, "sink", calls=8),
    "sink, memorizing trained": Reader(f"{ON},attention=sink", MEMORY, "sink", steps=40),
}
TRAINING = {"train.segments": 1, "train.log_every": 1, "optim.schedule": "constant", "optim.lr": 0.03}
TRAINING |= {"eval.segments": 1, "eval.sample_tokens": 0}
GRID = {
    f"λ={lam:g}, temperature={temperature:g}": KNN["knn_lm"] | {"lam": lam, "temperature": temperature}
    for lam in (0.05, 0.1, 0.2)
    for temperature in (50.0, 150.0, 500.0)
}


def config_of(reader: Reader):
    """Return the complete Config of a reader, with the settings of its training if it has any."""
    from memtx.runs.configure import configure, load_config
    from memtx.sweep.spec import override

    settings = reader.settings | (TRAINING | {"train.steps": reader.steps} if reader.steps else {})
    return configure(override(load_config(f"configs/pretrained.py:{reader.arg}"), settings))


def train(name: str, workdir: Path) -> None:
    """Train a reader as `memtx train` does. A finished run is not repeated."""
    import memtx

    memtx.train(config_of(READERS[name]), folder(workdir, name))


def folder(workdir: Path, name: str) -> Path:
    return workdir / name.replace(", ", "_")


# --- reading ----------------------------------------------------------------------------------------------------------------


def read(name: str, heads: dict, text: tuple[str, str], limit: int, workdir: Path) -> dict[str, dict]:
    """Read a text with one reader and return, for each head, its nats, CPU seconds and resident memory per call.

    The key "" is the reader without a head. text: (split, name). limit: calls to read; 0: the whole text.
    """
    from memtx.training.cpu import keep_pages

    keep_pages()
    import jax

    import memtx
    from memtx.core import collect, segment, state_bytes
    from memtx.evaluation.losses import token_nll
    from memtx.memory.knn_lm import KNNLM
    from memtx.pretrained.load import load_params, new_parameters
    from memtx.pretrained.names import flat
    from memtx.training.provenance import code, machine, versions

    reader = READERS[name]
    config, trained = config_of(reader), bool(reader.steps)
    lm = memtx.build(config)
    params = memtx.load(folder(workdir, name)).params if trained else load_params(lm, jax.random.key(config.seed))
    tokens, bytes_V = tokens_of(config, text[0])
    ids = tokens.document(tokens.names.index(text[1])).astype(np.int32)[: limit * CALL if limit else None]
    inputs, over = np.concatenate([[tokens.bos], ids[:-1]]).astype(np.int32), {"": lm}
    over |= {head: KNNLM(KNNLM.Config(**settings), lm.dims, jax.random.key(0)) for head, settings in heads.items()}

    def backbone(state, params, x, y, seg):
        (logits, state), found = collect(lm, "hidden")(params, x, state, seg)
        return state, (found["hidden"][0], logits), token_nll(logits, y)[0]

    def mixture(head, state, x, y, seg, given):
        logits, state = head(given, state, seg.replace(token_BT=x))
        return state, token_nll(logits, y)[0]

    first = jax.jit(backbone, donate_argnums=0)
    mixed = {head: jax.jit(partial(mixture, over[head]), donate_argnums=0) for head in heads}
    states = {head: jax.jit(partial(module.init_state, 1))() for head, module in over.items()}
    calls: dict[str, list] = {head: [] for head in over}
    for start in range(0, len(ids), CALL):
        x, y = (
            np.resize(a[start : start + CALL], (1, CALL)) for a in (inputs, ids)
        )  # the padding of the last call is not counted
        length = len(ids[start : start + CALL])
        seg, began = segment(start + np.arange(CALL)[None], [length]), time.process_time()
        states[""], given, nll_BT = first(states[""], params, x, y, seg)
        nll = {"": np.asarray(nll_BT)}
        spent = {"": time.process_time() - began}
        for head in heads:
            began = time.process_time()
            states[head], nll_BT = mixed[head](states[head], x, y, seg, given)
            nll[head] = np.asarray(nll_BT)
            spent[head] = spent[""] + time.process_time() - began
        for head, rows in calls.items():
            nats = float(nll[head][0, :length].sum())
            rows.append({"tokens": length, "nats": nats, "cpu_s": round(spent[head], 3), "resident_mib": round(resident(), 1)})
    values = flat(params)
    return {
        head: {
            "config": f"configs/pretrained.py:{reader.arg}",
            "settings": reader.settings | heads.get(head, {}),
            "trained": {path: np.asarray(values[path]).round(4).tolist() for path in new_parameters(lm)} if trained else {},
            "state_bytes": state_bytes(lm) + (state_bytes(over[head]) if head else 0),
            "bytes": int(bytes_V[ids].sum()),
            "calls": calls[head],
            "code": code(),
            "versions": versions(),
            "machine": machine(),
        }
        for head in over
    }


def tokens_of(config, split: str):
    """Return the Tokens of a split's plays and the number of bytes of each token in the vocabulary."""
    from memtx.data.corpora import load_corpus
    from memtx.data.tokenizers import make_tokenizer
    from memtx.data.tokens import tokenize

    plays = load_corpus("books", config.data.cache)
    words = make_tokenizer(config.data.tokenizer, plays, config.data.cache)
    return tokenize(plays, words, split, config.data.cache), np.asarray(words.bytes_V)


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# --- command line -------------------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", default=";".join(READERS), help="names separated by semicolons (all by default)")
    parser.add_argument("--workdir", type=Path, default=Path("runs/play"))
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--pilot", action="store_true")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--worker", choices=["train", "read", "tune", "pilot"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker, args.readers, args.workdir)
    RESULTS.mkdir(exist_ok=True)
    if args.tune:
        found = apart("tune", "sink", args.workdir)
        losses = {name or "alone": float(nats_of(row).mean() / CALL) for name, row in found.items()}
        (RESULTS / "tune.json").write_text(json.dumps(losses, indent=1) + "\n")
        return print(json.dumps(losses, indent=1, ensure_ascii=False))
    if args.pilot:
        for name in (name for name in READERS if not READERS[name].steps):
            for head, row in apart("pilot", name, args.workdir).items():
                loss = nats_of(row).mean() / CALL
                print(f"{name} {head}: perplexity {np.exp(loss):.2f}, {loss:.4f} nats per token", flush=True)
        return None
    path = RESULTS / "play.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for name in () if args.show else args.readers.split(";"):
        if READERS[name].steps:
            apart("train", name, args.workdir)
        for head, row in apart("read", name, args.workdir).items():
            results[f"{name}, {head}" if head else name] = row | {"base": name if head else READERS[name].base}
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(name, "is done", flush=True)
    print(show(results))
    draw(results, RESULTS / "gain.png")


def apart(worker: str, name: str, workdir: Path) -> dict:
    """Run a worker in a separate process and return its result."""
    command = [sys.executable, __file__, f"--worker={worker}", f"--readers={name}", f"--workdir={workdir}"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def work(worker: str, name: str, workdir: Path) -> None:
    """Train or read as the worker of a separate process, and print the result as one line of JSON."""
    reader = READERS[name]
    if worker == "train":
        train(name, workdir)
        found = {}
    elif worker == "tune":
        found = read(name, GRID, TUNED_ON, 6, workdir)
    elif worker == "pilot":
        found = read(name, reader.heads, TUNED_ON, 8, workdir)
    else:
        found = read(name, reader.heads, PLAY, reader.calls, workdir)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
