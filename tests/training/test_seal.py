"""Damage is noticed, named and got around."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from memtx.errors import UserError
from memtx.training import checkpoint
from memtx.training.checkpoint import Checkpointer, restore
from tests.training.runs import CONFIG, abstract, resume, same, save, steps, trees


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def array_files(step: Path) -> list[Path]:
    return [p for item in checkpoint.ARRAYS for p in sorted((step / item).rglob("*")) if p.is_file() and p.stat().st_size]


def test_every_flipped_bit_is_detected(saved):
    shutil.rmtree(saved / "checkpoints" / "1")
    files, rng = array_files(saved / "checkpoints" / "2"), random.Random(0)
    wanted, detected = abstract(trees(0)), 0
    for _ in range(100):
        path = rng.choice(files)
        bit = rng.randrange(8 * path.stat().st_size)
        flip(path, bit)
        with pytest.raises(UserError, match="2 is damaged"):
            restore(saved, **wanted)
        detected += 1
        flip(path, bit)
    assert detected == 100
    same(restore(saved, **wanted, warn=pytest.fail), 2)


def test_without_the_seal_flipped_bits_would_pass(saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "faults", lambda *_: [])
    path = saved / "checkpoints" / "2" / "params" / "embed" / "0.0"
    flip(path, 8 * (path.stat().st_size // 2))
    found = restore(saved, params=abstract(trees(0)["params"]))
    assert not np.array_equal(found.params["embed"], trees(2)["params"]["embed"])


@pytest.mark.parametrize("harm", ["flip", "truncate", "lose a file", "lose a leaf", "add", "lose the seal", "spoil the seal"])
def test_a_damaged_newest_step_is_named_and_the_one_before_used(saved, harm):
    step = saved / "checkpoints" / "2"
    chunk = step / "memory" / "0.key_BSKH" / "0.0.0.0"
    {
        "flip": lambda: flip(chunk, 100),
        "truncate": lambda: chunk.write_bytes(chunk.read_bytes()[:-1]),
        "lose a file": chunk.unlink,
        "lose a leaf": lambda: shutil.rmtree(chunk.parent),
        "add": lambda: (chunk.parent / "9.9.9.9").write_bytes(b"x"),
        "lose the seal": (step / "seal.json").unlink,
        "spoil the seal": lambda: flip(step / "seal.json", 8),
    }[harm]()
    told = []
    found = resume(saved, warn=told.append)
    same(found, 1)
    assert len(told) == 1
    assert "checkpoint 2 is damaged" in told[0]
    assert "seal" in harm or "memory/0.key_BSKH" in told[0]
    assert (saved / "damaged" / "2").exists()
    with Checkpointer(saved, CONFIG, warn=pytest.fail) as keeper:
        save(keeper, 2)
        same(keeper.restore(**abstract(trees(0))), 2)


def test_reading_moves_nothing(saved):
    (saved / "checkpoints" / "2" / "seal.json").unlink()
    told = []
    assert restore(saved, warn=told.append).step == 1
    assert len(told) == 1
    assert steps(saved) == [1, 2]


def test_damaged_bookkeeping_of_orbax_does_no_harm(saved):
    (saved / "checkpoints" / "2" / "_CHECKPOINT_METADATA").write_bytes(b"\xff{")
    same(resume(saved), 2)


def test_no_sound_step_is_an_error(saved):
    for step in (1, 2):
        (saved / "checkpoints" / str(step) / "seal.json").unlink()
    with pytest.raises(UserError, match=r"no intact checkpoint.*2 is damaged.*1 is damaged"):
        resume(saved)
    assert steps(saved) == [1, 2]
