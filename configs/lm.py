"""Train a language model with any memory, at any size, on any corpus.

    memtx train --config=configs/lm.py:memory=xl,size=tiny,data=books --workdir=runs/xl

memory  a name of `memtx list`        size  micro (0.1 M parameters) | tiny (0.8 M) | small (3.3 M) | base (110 M) | 1b
data    pycode | books | speeches | textdir:PATH | tfds:NAME

Every key can be changed on the command line: --config.train.steps=2000 --config.memory.xl.memory=512
"""

from memtx.runs.configure import get_config as default_config
from memtx.runs.configure import parse_arg
from memtx.runs.presets import preset

TRAINING = {  # settings for each size
    "tiny": {"train": {"steps": 1000, "batch": 8, "segments": 2}, "optim": {"lr": 3e-3}, "data": {"segment": 128}},
    "micro": {"train": {"steps": 1000, "batch": 8, "segments": 2}, "optim": {"lr": 3e-3}, "data": {"segment": 128}},
    "small": {"train": {"steps": 5000, "batch": 8, "segments": 1}, "optim": {"lr": 2e-3}, "data": {"segment": 512}},
    "base": {
        "train": {"steps": 50_000, "batch": 64, "segments": 2},
        "optim": {"lr": 6e-4, "warmup": 1000},
        "data": {"segment": 1024, "tokenizer": "bpe:32000"},
        "eval": {"batch": 64},
    },
    "1b": {
        "train": {"steps": 100_000, "batch": 256, "segments": 2},
        "optim": {"lr": 3e-4, "warmup": 2000},
        "data": {"segment": 2048, "tokenizer": "bpe:32000"},
        "eval": {"batch": 256},
    },
}


def get_config(arg: str = ""):
    """Return the ConfigDict for `arg`, "key=value,..." with the keys above."""
    choice = parse_arg(arg, memory="window", size="tiny", data="pycode")
    model = preset(choice.memory, choice.size)
    if choice.size in ("base", "1b"):
        model |= {"dtype": "bfloat16", "remat": True}
    else:
        model |= {"scan": False}
    groups = TRAINING[choice.size]
    return default_config(**{**groups, "model": model, "data": {**groups["data"], "corpus": choice.data}})
