"""Train a small model with a memory on this machine's Python standard library.

    memtx train --config=configs/quickstart.py --workdir=runs/quickstart

Segments are short (64 tokens), so the memory of earlier segments matters. Held-out bits per byte should be clearly lower with
the state carried than with the state wiped at each segment.
"""

from memtx.runs.configure import get_config as default_config
from memtx.runs.presets import preset


def get_config(arg: str = ""):
    """Return the ConfigDict. `arg` is unused."""
    return default_config(
        model=preset("window", "tiny") | {"scan": False},
        memory={"window": {"window": 256}},
        data={"corpus": "pycode", "segment": 64},
        train={"steps": 300, "batch": 32, "segments": 1},
        optim={"lr": 5e-3, "warmup": 40},
        eval={"every": 150, "batch": 16, "segments": 64, "prompt": "def read(path):\n"},
        checkpoint={"every": 100},
    )
