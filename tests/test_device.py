"""The benchmark of one device runs, and says in one line that a machine has none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memtx.runs.chips import CHIPS, NAMES, chip_named

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmarks" / "device.py"), *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_without_a_device_it_is_one_line():
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "device.py: JAX found no GPU or TPU on this machine\n"


@pytest.mark.thorough
def test_the_benchmark_times_steps_and_checks_goldens(tmp_path):
    done = run("--cpu", "--size=micro", "--batch=1", "--seconds=0.2", f"--out={tmp_path / 'device.json'}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "device.json").read_text())
    assert found["steps"].keys() == {"window", "xl", "gated_deltanet", "memorizing", "titans_mac", "plain decoder"}
    assert all(step["seconds"] > 0 and step["flops"] > 1e6 for step in found["steps"].values())
    assert max(found["goldens"].values()) < 1e-5  # a CPU does not round
    assert "| plain decoder |" in done.stdout


def test_the_names_of_devices():
    assert {*NAMES.values()} == {*CHIPS}
    assert chip_named("TPU v5 lite") == CHIPS["v5e"]
    assert chip_named("TPU v5p") == CHIPS["v5p"]
    assert chip_named("NVIDIA H100 80GB HBM3") == CHIPS["h100"]
    assert chip_named("cpu") is chip_named("NVIDIA GH200 480GB") is chip_named("NVIDIA H100 PCIe") is None
