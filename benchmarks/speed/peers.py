"""Train-step speed of each mechanism, compared with a PyPI package of the same mechanism at the same shape.

    python benchmarks/speed/peers.py --peers_python=PATH [--rounds=2] [--steps=3] [--models=memorizing,titans_mac@4,..]

PATH is a Python with torch and the packages below. A step reads some segments of every stream and makes one update. The state
is carried from step to step as each package intends (torch_peers.py). rounds.py describes the measurement, which runs for one
row of the table after another. The script adds to results/peers.json and prints the table.
"""

import json
import math
import sys
from dataclasses import dataclass

from clock import DISTURBED
from rounds import arguments, machine, measure, ratio, row, speed, store


@dataclass(frozen=True)
class Peer:
    """A package and the shape at which it is compared."""

    package: str
    goal: float  # the ratio of speeds to reach
    unlike: str  # differences that remain; all packages also differ in feed-forward network, norms and positions
    streams: int = 2
    segments: int = 2  # of a step, the depth of backpropagation through time


TITANS = (
    "the package adds its read to the residual stream, and starts empty in every step; "
    "ours is read as keys and values, too, and carried"
)

PEERS = {  # by mechanism; titans_mac@N: the package writes once per N tokens, memtx always once per token
    "memorizing": Peer(
        "memorizing-transformers-pytorch",
        2.5,
        "package: approximate search (HNSW), XL memory of 512; ours: exact, window of 768, as many keys in the mean",
    ),
    "titans_mac@1": Peer("titans-pytorch", 2.0, f"both write once per token; {TITANS}", streams=1, segments=1),
    "titans_mac@4": Peer(
        "titans-pytorch",
        2.0,
        f"the package writes once per 4 tokens, as its author's training script does, ours per token; {TITANS}",
    ),
    "titans_mac@64": Peer("titans-pytorch", 2.0, f"the package writes once per 64 tokens, ours per token; {TITANS}"),
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
    table = json.loads(args.out.read_text()) if args.out.is_file() else {}
    for name in args.models:
        peer = PEERS[name]
        shape = {"batch": peer.streams, "segment": args.segment, "segments": peer.segments}
        options = {**shape, "steps": args.steps, "threads": args.threads}
        jobs = {
            "memtx": (sys.executable, "train_step.py", {"model": name.partition("@")[0], **options}),
            peer.package: (args.peers_python, "torch_peers.py", {"model": name, **options}),
        }
        for rounds in measure(jobs, args.rounds):
            ours, theirs = (row(rounds, job, peer.package, math.prod(shape.values())) for job in jobs)
            version = rounds[0][peer.package]["version"]
            settings = {"machine": machine(args), "disturbed_above_cores": DISTURBED, **options}
            table[name] = {"ours": ours, "theirs": theirs, "version": version, "settings": settings, "rounds": rounds}
            store(args.out, table)
        print(markdown({name: table[name]}), flush=True)
    print(markdown(table))


def markdown(table: dict) -> str:
    """Return the table in Markdown."""
    lines = [
        "| mechanism | package | streams x segments | tokens/s (min, max) | the package's | ratio (min, max) | goal "
        "| peak MiB, the package's | parameters, the package's | clean samples | not alike |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, peer in PEERS.items():
        if name not in table:
            continue
        pair = table[name]
        ours, theirs = pair["ours"], pair["theirs"]
        both = (ours, theirs)
        peak = ", ".join(f"{side['peak_mib']:,.0f}" for side in both)
        params = ", ".join(f"{side['params'] / 1e6:.2f} M" for side in both)
        count = ", ".join(f"{side['samples']} of {side['samples'] + side['disturbed']}" for side in both)
        cells = [
            name,
            f"{peer.package} {pair['version']}",
            f"{peer.streams} x {peer.segments}",
            speed(ours),
            speed(theirs),
            ratio(ours),
            f"{peer.goal}",
        ]
        lines.append(f"| {' | '.join([*cells, peak, params, count, peer.unlike])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = arguments(__doc__, "peers.json", rounds=2, steps=3)
    parser.add_argument("--peers_python", required=True, help="a Python with torch and the packages")
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(PEERS))
    main(parser.parse_args())
