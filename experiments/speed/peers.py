"""Train-step speed of each mechanism, beside the PyPI package that one would take instead, at the same shape.

    python experiments/speed/peers.py --peers_python=PATH [--rounds=2] [--steps=3] [--models=memorizing,titans_mac,..]

PATH is a Python with torch and the packages below. A step is two segments of every stream and one update; memory goes on from
step to step as each package means it (torch_peers.py). How it is measured: rounds.py, mechanism by mechanism. Adds to
results/peers.json and prints the table.
"""

import json
import sys
from dataclasses import dataclass

from clock import DISTURBED
from rounds import arguments, machine, measure, ratio, row, speed, store


@dataclass(frozen=True)
class Peer:
    package: str
    goal: float  # the ratio of speeds to reach
    unlike: str  # what could not be made alike; of all: the form of the feed-forward network, norms, positions


PEERS = {
    "memorizing": Peer(
        "memorizing-transformers-pytorch",
        2.5,
        "package: approximate search (HNSW), XL memory of 512; ours: exact, window of 768, as many keys in the mean",
    ),
    "titans_mac": Peer(
        "titans-pytorch",
        2.0,
        "package: one write per 64 tokens, its read added to the residual stream, memory starts empty in every step; "
        "ours: one per token, read as keys and values too, carried",
    ),
    "compressive": Peer(
        "compressive-transformer-pytorch",
        3.0,
        "package: stops training keys and values after its first compression; GRU gates off",
    ),
    "infini": Peer("infini-transformer-pytorch", 1.5, "package: the gate's sign"),
    "rmt": Peer("recurrent-memory-transformer-pytorch", 1.5, "package: read and write tokens differ; hyper-connections off"),
    "block_recurrent": Peer(
        "block-recurrent-transformer-pytorch",
        1.5,
        "package: memory of 512 before each block; ours: window of 768, as many keys in the mean",
    ),
    "product_key": Peer("product-key-memory", 1.5, "both without memory across segments"),
}


def main(args):
    options = {name: getattr(args, name) for name in ("batch", "segment", "segments", "steps", "threads")}
    table = json.loads(args.out.read_text()) if args.out.is_file() else {}
    for model in args.models:
        package = PEERS[model].package
        jobs = {
            model: (sys.executable, "train_step.py", {"model": model, **options}),
            package: (args.peers_python, "torch_peers.py", {"model": model, **options}),
        }
        for rounds in measure(jobs, args.rounds):
            tokens = args.batch * args.segment * args.segments
            ours, theirs = (row(rounds, name, package, tokens) for name in jobs)
            version = rounds[0][package]["version"]
            settings = {"machine": machine(args), "disturbed_above_cores": DISTURBED, **options}
            table[model] = {"ours": ours, "theirs": theirs, "version": version, "settings": settings, "rounds": rounds}
            store(args.out, table)
        print(markdown({model: table[model]}), flush=True)
    print(markdown(table))


def markdown(table: dict) -> str:
    lines = [
        "| mechanism | package | tokens/s (min, max) | the package's | ratio (min, max) | goal | peak MiB, the package's "
        "| parameters, the package's | clean samples | not alike |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model, pair in table.items():
        ours, theirs, peer = pair["ours"], pair["theirs"], PEERS[model]
        both = (ours, theirs)
        peak = ", ".join(f"{side['peak_mib']:,.0f}" for side in both)
        params = ", ".join(f"{side['params'] / 1e6:.2f} M" for side in both)
        count = ", ".join(f"{side['samples']} of {side['samples'] + side['disturbed']}" for side in both)
        cells = [model, f"{peer.package} {pair['version']}", speed(ours), speed(theirs), ratio(ours), f"{peer.goal}"]
        lines.append(f"| {' | '.join([*cells, peak, params, count, peer.unlike])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = arguments(__doc__, "peers.json", rounds=2, steps=3, batch=2)
    parser.add_argument("--peers_python", required=True, help="a python that has torch and the packages")
    parser.add_argument("--segments", type=int, default=2, help="of a step")
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(PEERS))
    main(parser.parse_args())
