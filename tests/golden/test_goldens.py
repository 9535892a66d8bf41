"""The stored goldens are those that the scripts make, and every mechanism has one."""

import subprocess
import sys

import numpy as np
import pytest

from memtx.contract.test_golden import compare
from memtx.memory import MEMORIES
from tests.golden import make


def test_every_memory_has_goldens():
    assert {golden.memory for golden in make.GOLDENS.values()} == set(MEMORIES)
    assert {path.stem for path in make.FOLDER.glob("*.npz")} == set(make.GOLDENS)


@pytest.mark.parametrize("name", make.GOLDENS)
def test_the_script_reproduces_the_golden(name):
    golden, saved = make.GOLDENS[name], np.load(make.FOLDER / f"{name}.npz")
    inputs = golden.inputs(name)
    for key, value in inputs.items():
        np.testing.assert_array_equal(saved[key], value)
    y = golden.outputs({key: v.astype(float) for key, v in inputs.items()})
    np.testing.assert_array_equal(saved["y"], y.astype(np.float32))
    rng = np.random.default_rng(0)
    for key, value in inputs.items():  # a random direction in each input finds an error in any coordinate of its gradient
        direction = rng.normal(size=value.shape)
        slope = (golden.derivative(inputs, {key: direction}) * saved["weight"]).sum()
        size = np.abs(saved[f"grad.{key}"] * direction).sum()
        assert abs(slope - (saved[f"grad.{key}"] * direction).sum()) <= 1e-6 * size


ROUNDED = {  # the largest error of outputs. Memories that select rows by their scores may select others
    **dict.fromkeys(
        ("window-rope", "xl-relative", "memorizing", "landmark-rope", "rmt", "ttt_mlp", "titans_mac", "knn_lm"), 0.05
    ),
    "gated_deltanet": 0.1,
    "product_key": 0.5,
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", ROUNDED)
def test_a_golden_holds_within_the_rounding_of_an_accelerators_products(tpu, name):
    """The maps around a memory have 16-bit operands there."""
    _, errors, _ = compare(np.load(make.FOLDER / f"{name}.npz"))
    assert errors["y"] < ROUNDED[name]
    assert all(np.isfinite(error) for error in errors.values())
    assert name == "knn_lm" or errors["y"] > 1e-4  # control: something was rounded


def test_a_name_without_a_golden_is_refused():
    command = [sys.executable, "-m", "tests.golden.make", "no_such"]
    done = subprocess.run(command, cwd=make.FOLDER.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no golden is named no_such" in done.stderr
