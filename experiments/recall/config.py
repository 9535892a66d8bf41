"""A window of 16 tokens in the first layer and a memory in the second: `config.py:memory=ttt_linear`."""

from memtx.runs.configure import get_config as default_config
from memtx.runs.configure import parse_arg
from memtx.runs.presets import SIZES

LENGTH = 64


def get_config(arg: str = ""):
    """Return the ConfigDict for `arg`, "memory=NAME"."""
    memory = parse_arg(arg, memory="window").memory
    size = {key: value for key, value in SIZES["micro"].items() if key != "layers"}
    return default_config(
        model={**size, "stacks": ((("window",), 1), ((memory,), 1)), "scan": False},
        memory={"window": {"window": 16}, "full": {"capacity": LENGTH}},
        data={"corpus": "task:mqar", "segment": LENGTH, "task": {"vocabulary": 128, "pairs": 4, "length": LENGTH}},
        train={"steps": 1200, "batch": 64, "segments": 1, "log_every": 100},
        optim={"lr": 5e-3, "warmup": 50},
        eval={"every": 0, "batch": 64, "examples": 1024, "sample_tokens": 0},
    )
