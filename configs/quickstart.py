"""The quickstart: a small model with a memory learns Python from the standard library found on this machine.

    memtx train --config=configs/quickstart.py --workdir=runs/quickstart

2 cores, about 3 minutes. Segments are short (64 tokens), so that what is remembered of earlier ones counts. Expect held-out
bits per byte to be clearly lower with memory carried than with memory wiped at every segment.
"""

from memtx.config import get_config as default_config
from memtx.models.presets import preset


def get_config(arg: str = ""):
    return default_config(
        model=preset("xl", "tiny") | {"scan": False},
        memory={"xl": {"segment": 64, "memory": 192}},
        data={"corpus": "pycode", "segment": 64},
        train={"steps": 600, "batch": 16, "segments": 2},
        optim={"lr": 4e-3, "warmup": 50},
        eval={"every": 300, "segments": 64, "prompt": "def read(path):\n"},
        checkpoint={"every": 200},
    )
