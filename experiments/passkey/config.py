"""A window of 16 bytes in the first layer and a memory in the second: `config.py:memory=infini`."""

from memtx.runs.configure import get_config as default_config
from memtx.runs.configure import parse_arg
from memtx.runs.presets import SIZES


def get_config(arg: str = ""):
    """Return the ConfigDict for `arg`, "memory=NAME"."""
    memory = parse_arg(arg, memory="infini").memory
    size = {key: value for key, value in SIZES["micro"].items() if key != "layers"}
    return default_config(
        model={**size, "stacks": ((("window",), 1), ((memory,), 1)), "scan": False},
        memory={"window": {"window": 16}, memory: {}},
        data={"corpus": "task:passkey"},
        eval={"sample_tokens": 0},
    )
