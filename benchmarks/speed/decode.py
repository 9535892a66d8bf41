"""Milliseconds per token of text after prompts of growing length. Memories with a ring or a state of fixed size stay constant.

python benchmarks/speed/decode.py       2 cores: about 2 minutes
"""

import json
from pathlib import Path

from clock import timed

from memtx.training.cpu import keep_pages

keep_pages()

import jax  # noqa: E402
import numpy as np  # noqa: E402

import memtx  # noqa: E402
from memtx.generate.writer import Writer  # noqa: E402

READ, DRAWN, SAMPLES = (256, 1024, 4096, 16384), 256, 5
MODELS = {"window": {"window": 256}, "sink": {}, "gated_deltanet": {}}


def main() -> None:
    found = {}
    for name, settings in MODELS.items():
        sizes = {"stacks": [[[name], 4]], "width": 256, "num_heads": 4}
        lm = memtx.build(memtx.configure({"model": sizes, "memory": {name: settings}}), vocab_size=264)
        params = lm.init(jax.random.key(0))
        decode(lm, params, 256)
        found[name] = {read: min(decode(lm, params, read) for _ in range(SAMPLES)) for read in READ}
        print(name, {read: round(ms, 3) for read, ms in found[name].items()}, "ms a token", flush=True)
    (Path(__file__).parent / "results" / "decode.json").write_text(json.dumps(found, indent=1) + "\n")


def decode(lm, params, read: int) -> float:
    """Return the milliseconds per token for DRAWN tokens after a prompt of `read` tokens."""
    every_V, none_V = np.ones(264, bool), np.zeros(264, bool)
    writer = Writer(lm, params, [np.random.default_rng(0).integers(0, 256, read)], chunk=256)
    jax.block_until_ready(writer.state)

    def write():
        for _ in range(DRAWN // 16):
            writer.write(16, memtx.GREEDY, 0, every_V, none_V)

    return timed(write)["seconds"] / DRAWN * 1e3


if __name__ == "__main__":
    main()
