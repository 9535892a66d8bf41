"""SmolLM2-135M, which sees 512 tokens, reads a whole play: what does a memory buy, and where in the play?

    python experiments/play/run.py [--variants=window,sink] [--workdir=runs/play]
    python experiments/play/run.py --tune          # kNN-LM's weight and temperature, on another play
    python experiments/play/run.py --show          # the tables and the figure, from what is stored

The play is held out from training; settings were chosen on another that is held out too. Each variant reads it from the first
token to the last, 512 tokens a call, in a process of its own, which also says what memory it took; what is trained is trained
by `memtx train` beforehand, in `workdir`. Adds to results/play.json. A gain is in nats per token, and its error is that of
the mean over calls, paired with the variant that it is compared to.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PLAY, TUNED_ON = ("test", "the-tempest"), ("valid", "twelfth-night")
CALL, PARTS = 512, 6  # tokens of a call, parts of the play in the table


@dataclass(frozen=True)
class Variant:
    """arg: of configs/pretrained.py. settings: overrides of it. base: what it is compared to. steps: of training."""

    arg: str
    settings: dict = field(default_factory=dict)
    base: str = "window"
    steps: int = 0


LAYERS = "20"
MEMORY = {"memory.memorizing.memory": 8192}
OPENED = {"memory.memorizing.gate": 0.2}
CACHE = {"memory.knn_lm.memory": 8192, "memory.knn_lm.neighbours": 64}
VARIANTS = {
    "window": Variant("memory=none,attention=window"),
    "sink": Variant("memory=none,attention=sink"),
    "window, memorizing closed": Variant(f"memory=memorizing,layers={LAYERS},attention=window", MEMORY),
    "window, memorizing opened": Variant(f"memory=memorizing,layers={LAYERS},attention=window", MEMORY | OPENED),
    "window, memorizing trained": Variant(f"memory=memorizing,layers={LAYERS},attention=window", MEMORY, steps=100),
    "sink, memorizing opened": Variant(f"memory=memorizing,layers={LAYERS},attention=sink", MEMORY | OPENED, "sink"),
    "sink, memorizing trained": Variant(f"memory=memorizing,layers={LAYERS},attention=sink", MEMORY, "sink", 100),
    "window, knn_lm": Variant("memory=knn_lm,attention=window", CACHE),
    "sink, knn_lm": Variant("memory=knn_lm,attention=sink", CACHE, "sink"),
}
TRAINING = {"train.segments": 1, "train.log_every": 10, "optim.schedule": "constant", "eval.segments": 1, "eval.sample_tokens": 0}
LAMBDAS, TEMPERATURES = (0.05, 0.1, 0.2, 0.3), (30.0, 100.0, 300.0)


# --- one variant ------------------------------------------------------------------------------------------------------------


def config_of(variant: Variant):
    from memtx.config import configure, load_config
    from memtx.sweep.spec import override

    settings = variant.settings | (TRAINING | {"train.steps": variant.steps} if variant.steps else {})
    return configure(override(load_config(f"configs/pretrained.py:{variant.arg}"), settings))


def model(config, workdir: Path | None):
    """-> lm, params, of the trained run in workdir or as the config begins."""
    import jax

    import memtx
    from memtx.models.pretrained import load_params

    lm = memtx.build(config)
    return lm, memtx.load(workdir).params if workdir else load_params(lm, jax.random.key(config.seed))


def document(config, split: str, name: str):
    """-> input and target tokens of a play, and the bytes of each target."""
    from memtx.data.corpora import corpus
    from memtx.data.tokenizers import tokenizer
    from memtx.data.tokens import tokenize

    text = corpus("books", config.data.cache)
    words = tokenizer(config.data.tokenizer, text, config.data.cache)
    tokens = tokenize(text, words, split, config.data.cache)
    ids = tokens.document(tokens.names.index(name)).astype(np.int32)
    return np.concatenate([[tokens.bos], ids[:-1]]).astype(np.int32), ids, np.asarray(words.bytes_V)[ids]


def calls(inputs, targets):
    """Pieces [1, CALL] with their number of real tokens; the last one is padded."""
    for start in range(0, len(inputs), CALL):
        parts = [np.asarray(a[start : start + CALL]) for a in (inputs, targets)]
        length = len(parts[0])
        x, y = (np.pad(part, (0, CALL - length))[None] for part in parts)
        yield start, length, x, y


def read(name: str, workdir: Path) -> dict:
    """The variant reads the play: the loss of each call, seconds, and this process's memory after each."""
    from memtx.training.cpu import compiler_options, keep_pages

    keep_pages()
    import jax

    from memtx.memory.base import segment, state_bytes
    from memtx.models.names import flat
    from memtx.models.pretrained import new_parameters
    from memtx.provenance import code, machine, versions
    from memtx.training.losses import token_nll

    variant = VARIANTS[name]
    config = config_of(variant)
    lm, params = model(config, folder(workdir, name) if variant.steps else None)
    inputs, targets, bytes_N = document(config, *PLAY)

    def step(params, x, y, state, seg):
        logits, state = lm(params, x, state, seg)
        return token_nll(logits, y)[0], state

    step = jax.jit(step, donate_argnums=3, compiler_options=compiler_options())
    state, found = jax.jit(lambda: lm.init_state(1))(), []
    for start, length, x, y in calls(inputs, targets):
        began = time.monotonic()
        nll_BT, state = step(params, x, y, state, segment(start + np.arange(CALL)[None], [length]))
        nll = float(np.asarray(nll_BT)[0, :length].sum())
        found.append({"tokens": length, "nats": nll, "seconds": time.monotonic() - began, "resident_mib": resident()})
    new = flat(params)
    return {
        "variant": variant.arg,
        "settings": variant.settings,
        "steps": variant.steps,
        "new_parameters": {path: np.asarray(new[path]).round(4).tolist() for path in new_parameters(lm) if new[path].size < 999},
        "bytes": int(bytes_N.sum()),
        "state_bytes": state_bytes(lm),
        "calls": found,
        "code": code(),
        "versions": versions(),
        "machine": machine(),
    }


def resident() -> float:
    """MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def folder(workdir: Path, name: str) -> Path:
    return workdir / name.replace(", ", "_").replace(" ", "_")


def train(name: str, workdir: Path) -> None:
    """As `memtx train` does; a run that is finished is left as it is."""
    import memtx

    memtx.train(config_of(VARIANTS[name]), folder(workdir, name))


# --- kNN-LM's settings --------------------------------------------------------------------------------------------------------


def tune(calls_read: int) -> dict:
    """Nats per token by (weight, temperature), each head over the same hidden states, on the first calls of another play."""
    import jax

    from memtx.memory.base import collect, segment
    from memtx.memory.knn_lm import KNNLM
    from memtx.training.losses import token_nll

    config = config_of(VARIANTS["sink"])
    lm, params = model(config, None)
    inputs, targets, _ = document(config, *TUNED_ON)
    settings = {key.rpartition(".")[2]: value for key, value in CACHE.items()}
    heads = {
        (lam, temperature): KNNLM(KNNLM.Config(lam=lam, temperature=temperature, **settings), lm.dims, jax.random.key(0))
        for lam in LAMBDAS
        for temperature in TEMPERATURES
    }
    run = jax.jit(collect(lm, "hidden"))
    score = {
        key: jax.jit(lambda h, logits, y, state, seg, head=head: (lambda out: (token_nll(out[0], y)[0], out[1]))(
            head((h, logits), state, seg)))
        for key, head in heads.items()
    }
    state, memories = lm.init_state(1), {key: head.init_state(1) for key, head in heads.items()}
    nats = dict.fromkeys([None, *heads], 0.0)
    for number, (start, length, x, y) in enumerate(calls(inputs, targets)):
        if number == calls_read:
            break
        seg = segment(start + np.arange(CALL)[None], [length])
        ((logits, state), found) = run(params, x, state, seg)
        nats[None] += float(token_nll(logits, y)[0].sum())
        for key in heads:
            nll, memories[key] = score[key](found["hidden"][0], logits, y, memories[key], seg.replace(token_BT=x))
            nats[key] += float(nll.sum())
    return {"alone" if key is None else f"λ={key[0]:g} temperature={key[1]:g}": v / calls_read / CALL for key, v in nats.items()}


# --- tables -------------------------------------------------------------------------------------------------------------------


def show(results: dict) -> str:
    nats = {name: np.array([call["nats"] for call in found["calls"]]) for name, found in results.items()}
    tokens = np.array([call["tokens"] for call in next(iter(results.values()))["calls"]])
    edges = np.linspace(0, len(tokens), PARTS + 1).round().astype(int)
    starts = np.concatenate([[0], tokens.cumsum()])[edges]
    spans = [f"{a / 1000:.0f}-{b / 1000:.0f}k" for a, b in zip(starts, starts[1:], strict=False)]
    lines = [
        "| reads with | perplexity | bits per byte | nats per token | state MiB | tokens/s | resident MiB, first sixth, last call |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in results.items():
        loss, all_calls = nats[name].sum() / tokens.sum(), found["calls"]
        rate = CALL / np.median([call["seconds"] for call in all_calls[1:]])
        memory = f"{all_calls[edges[1] - 1]['resident_mib']:,.0f}, {all_calls[-1]['resident_mib']:,.0f}"
        lines.append(
            f"| {name} | {np.exp(loss):.2f} | {nats[name].sum() / np.log(2) / found['bytes']:.4f} | {loss:.4f} "
            f"| {found['state_bytes'] / 2**20:.1f} | {rate:.0f} | {memory} |"
        )
    lines += ["", f"| gain, nats per token | over | whole play | {' | '.join(spans)} |", "|---|---|---:|" + "---:|" * PARTS]
    for name in results:
        base = VARIANTS[name].base
        if name != base and base in results:
            cells = []
            for a, b in [(0, len(tokens)), *zip(edges, edges[1:], strict=False)]:
                gain = (nats[base] - nats[name])[a:b] / tokens[a:b]
                weight = tokens[a:b] / tokens[a:b].sum()
                mean = (gain * weight).sum()
                error = np.sqrt((weight**2 * (gain - mean) ** 2).sum())
                cells.append(f"{mean:+.3f} ± {error:.3f}")
            lines.append(f"| {name} | {base} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: dict, path: Path) -> None:
    """Gain over the window, by position in the play: means of four calls."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for name, found in results.items():
        base = results.get(VARIANTS[name].base)
        if name == VARIANTS[name].base or base is None:
            continue
        gain = np.array([(b["nats"] - a["nats"]) / a["tokens"] for a, b in zip(found["calls"], base["calls"], strict=True)])
        four = gain[: len(gain) // 4 * 4].reshape(-1, 4).mean(1)
        axes.plot(4 * CALL * (np.arange(len(four)) + 0.5), four, label=f"{name}, over {VARIANTS[name].base}")
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(xlabel="position in the play (tokens)", ylabel="gain (nats per token)")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=";".join(VARIANTS), help="names, with semicolons between; all, if none is given")
    parser.add_argument("--workdir", type=Path, default=Path("runs/play"))
    parser.add_argument("--tune", type=int, nargs="?", const=8, help="on so many calls")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        return print(json.dumps(read(args.read, args.workdir)))
    if args.train:
        return train(args.train, args.workdir)
    RESULTS.mkdir(exist_ok=True)
    if args.tune:
        found = tune(args.tune)
        (RESULTS / "tune.json").write_text(json.dumps(found, indent=1) + "\n")
        return print(json.dumps(found, indent=1))
    path = RESULTS / "play.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for name in () if args.show else args.variants.split(";"):
        if VARIANTS[name].steps:
            subprocess.run([sys.executable, __file__, f"--train={name}", f"--workdir={args.workdir}"], check=True)
        command = [sys.executable, __file__, f"--read={name}", f"--workdir={args.workdir}"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[name] = json.loads(done.stdout.splitlines()[-1])
        results = {name: results[name] for name in VARIANTS if name in results}
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(name, "done", flush=True)
    print(show(results))
    draw(results, RESULTS / "gain.png")


if __name__ == "__main__":
    main()
