"""A mechanism in a file of one's own passes the contract by `--memory=FILE:CLASS`, and is caught when it breaks it."""

import subprocess
import sys
from pathlib import Path

import pytest

from memtx.contract import case
from tests.runs import write_texts

AVERAGE = '''
import dataclasses
import jax
import jax.numpy as jnp
from memtx.core import Memory, pytree


@pytree
class Sums:
    sum_BD: jax.Array
    count_B: jax.Array


class Average(Memory):
    """The mean of all hidden states so far."""

    site = "residual"
    kind = "vector"
    entries = False

    @dataclasses.dataclass(frozen=True)
    class Config:
        scale: float = 1.0

    tiny = (Config(),)

    def __init__(self, config, dims, key):
        self.config, self.width = config, dims.width

    def init_state(self, batch_size):
        return Sums(jnp.zeros((batch_size, self.width)), jnp.zeros(batch_size, jnp.int32))

    def __call__(self, x_BTD, state, seg, *, key=None):
        x = jnp.where(seg.mask_BT[..., None], x_BTD.astype(jnp.float32), 0)
        sum_BTD = state.sum_BD[:, None] + jnp.cumsum(x, 1)
        count_BT = state.count_B[:, None] + jnp.cumsum(seg.mask_BT, 1, dtype=jnp.int32)
        y = self.config.scale * sum_BTD / jnp.maximum(count_BT, 1)[..., None]
        return y.astype(x_BTD.dtype), Sums(sum_BTD[:, -1], count_BT[:, -1])


class Leaky(Average):
    """Sees the end of its call."""

    def __call__(self, x_BTD, state, seg, *, key=None):
        y, state = super().__call__(x_BTD, state, seg)
        return jnp.broadcast_to(y[:, -1:], y.shape), state
'''


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "average.py"
    path.write_text(AVERAGE)
    return path


def contract_of(file: Path, name: str, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "--pyargs", "memtx.contract", f"--memory={file}:{name}", *options]
    return subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=False)


def test_an_own_memory_passes(file):
    done = contract_of(
        file,
        "Average",
    )
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout


CONFIG = """
import sys

sys.path.insert(0, {folder!r})

import memtx
from average import Average

memtx.MEMORIES["average"] = Average


def get_config(arg=""):
    return memtx.get_config(
        model={{"stacks": ((("window+average",), 1),), "width": 16, "num_heads": 2, "ff_dim": 32}},
        data={{"corpus": "textdir:{texts}", "segment": 8, "cache": {folder!r}}},
        train={{"steps": 2, "batch": 2, "segments": 2}},
        eval={{"segments": 2, "sample_tokens": 4}},
    )
"""


def test_an_own_memory_trains_from_a_config_file(file, tmp_path):
    texts = write_texts(tmp_path / "texts")
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(folder=str(tmp_path), texts=texts))
    command = [sys.executable, "-m", "memtx.cli", "train", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "bits per byte" in done.stdout


def test_one_that_sees_the_future_or_depends_on_calls_is_caught(file):
    done = contract_of(file, "Leaky", "-k", "c2_cuts or c3", "--tb=no")
    assert done.returncode == 1
    failed = [line.split("::")[1].split("[")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert set(failed) == {"test_c2_cuts_do_not_matter", "test_c3_the_past_does_not_see_the_future"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.py:X", "no file"),
        ("{file}:Missing", "no class Missing"),
        ("{file}:Sums", "no class Sums that is a memtx.core.Memory"),
    ],
)
def test_mistakes_are_named(file, given, message):
    with pytest.raises(pytest.UsageError, match=message):
        case.load(given.format(file=file))
