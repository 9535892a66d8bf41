"""A tiny run on help texts that every Python carries: seconds to train, no network."""

from pathlib import Path
from pydoc_data.topics import topics

from memtx.config import Config
from memtx.runs.configure import configure

TOPICS = sorted(topics, key=lambda name: len(topics[name]))[20:44]


def write_texts(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOPICS:
        (folder / f"{name}.txt").write_text(topics[name], encoding="utf-8")
    return folder


def tiny(root: Path, memory: str = "window", /, **groups) -> Config:
    """One layer of width 16 over `root/texts`; groups are changes to the config's."""
    write_texts(root / "texts")
    settings = {
        "window": {"window": 16},
        "xl": {"segment": 8, "memory": 8},
        "full": {"capacity": 32},
        "memorizing": {"window": 4, "segment": 4, "memory": 16, "neighbours": 3},
        "gated_deltanet": {"chunk": 8},
    }
    values = {
        "model": {"stacks": [[[memory], 1]], "width": 16, "num_heads": 2, "ff_dim": 32},
        "memory": {memory: settings.get(memory, {})},
        "data": {"corpus": f"textdir:{root / 'texts'}", "segment": 8, "cache": str(root / "cache")},
        "optim": {"warmup": 2, "lr": 0.01},
        "train": {"steps": 6, "batch": 4, "segments": 2, "log_every": 1},
        "eval": {"every": 3, "batch": 4, "segments": 5, "sample_tokens": 8},
        "checkpoint": {"every": 2},
    }
    for group, changes in groups.items():
        values[group] = {**values.get(group, {}), **changes} if isinstance(changes, dict) else changes
    return configure(values)


def without_drift(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of an evaluation without the drift of keys, which needs the weights before the last train step."""
    return {name: value for name, value in metrics.items() if not name.startswith("memory/drift")}
