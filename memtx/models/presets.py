"""Sizes by name, and where a mechanism stands in a model of that size."""

from itertools import groupby

from memtx.errors import check_known
from memtx.memory import MEMORIES

SIZES = {
    "tiny": {"width": 128, "num_heads": 4, "ff_dim": 344, "layers": 4},  # 0.8 M parameters with bytes
    "small": {"width": 256, "num_heads": 4, "ff_dim": 704, "layers": 4},  # 3.3 M
    "base": {"width": 768, "num_heads": 12, "ff_dim": 2048, "layers": 12},  # 110 M with a vocabulary of 32,000
    "1b": {"width": 2048, "num_heads": 32, "num_kv_heads": 8, "ff_dim": 8192, "layers": 16},  # 1.0 B with 32,000
}


def preset(memory: str, size: str) -> dict:
    """The `model` group for a mechanism at a size: it stands where its paper has it, windows elsewhere."""
    check_known(size, SIZES, "size")
    check_known(memory, MEMORIES, "memory")
    model = dict(SIZES[size])
    layers, cls = model.pop("layers"), MEMORIES[memory]
    if cls.site in ("body", "head"):
        return {cls.site: memory, "stacks": (((getattr(cls, "block", "window"),), layers),), **model}
    held = cls.place(layers) if hasattr(cls, "place") else range(layers)
    entries = [getattr(cls, "block", memory) if i in held else "window" for i in range(layers)]
    return {"stacks": tuple(((entry,), len(list(run))) for entry, run in groupby(entries)), **model}
