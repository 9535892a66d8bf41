from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

HEAD = """
from memtx.sweep import product
config = "configs/task.py:task=mqar,size=micro"
common = {
    "model.stacks": [[["window"], 1]], "model.width": 16, "model.ff_dim": 16, "data.segment": 16,
    "data.task": {"length": 16, "pairs": 2, "vocabulary": 32}, "train.segments": 1, "train.batch": 2,
    "train.steps": 4, "train.log_every": 1, "checkpoint.every": 50, "eval.every": 0, "eval.batch": 2, "eval.examples": 4,
}
"""


@pytest.fixture
def sweep_file(tmp_path, monkeypatch):
    """Writes a sweep file of tiny runs: (its sweep()'s expression, more of the file) -> its path."""
    monkeypatch.chdir(ROOT)

    def write(runs: str = "product({'seed': [0, 1, 2]})", more: str = "") -> Path:
        path = tmp_path / "sweep.py"
        path.write_text(f"{HEAD}\n\ndef sweep():\n    return {runs}\n{more}\n")
        return path

    return write
