"""The quickstart: a small model with a memory learns Python from the standard library found on this machine.

    memtx train --config=configs/quickstart.py --workdir=runs/quickstart

Segments are short (64 tokens), so that what is remembered of the ones before counts: expect held-out bits per byte to be
clearly lower with memory carried than with memory wiped at every segment.
"""

from memtx.config import get_config as default_config
from memtx.runs.presets import preset


def get_config(arg: str = ""):
    return default_config(
        model=preset("window", "tiny") | {"scan": False},
        memory={"window": {"window": 256}},
        data={"corpus": "pycode", "segment": 64},
        train={"steps": 300, "batch": 32, "segments": 1},
        optim={"lr": 5e-3, "warmup": 40},
        eval={"every": 150, "batch": 16, "segments": 64, "prompt": "def read(path):\n"},
        checkpoint={"every": 100},
    )
