"""Sweeps of real processes: killed at once, stopped gently, started twice on one workdir, and through submitit."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNS = 12

SWEEP = """
from memtx.sweep import product

config = "configs/task.py:task=mqar,size=micro"
common = {
    "model.stacks": [[["window"], 1]], "model.width": 16, "model.ff_dim": 16, "data.segment": 16,
    "data.task": {"length": 16, "pairs": 2, "vocabulary": 32}, "train.segments": 1, "train.batch": 2,
    "train.steps": %d, "train.log_every": 10, "checkpoint.every": 50, "eval.every": 0, "eval.batch": 2, "eval.examples": 4,
}


def sweep():
    return product({"optim.lr": [1e-3, 3e-3]}, {"seed": range(%d)})
"""


@pytest.fixture
def start(tmp_path):
    """Starts `memtx sweep` on tmp_path/sweep.py; nothing that it started outlives the test."""
    started = []

    def start(*options: str) -> subprocess.Popen:
        command = [
            sys.executable,
            "-m",
            "memtx.cli",
            "sweep",
            f"--sweep={tmp_path / 'sweep.py'}",
            f"--workdir={tmp_path / 'w'}",
        ]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(subprocess.Popen([*command, *options], cwd=ROOT, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
    send(signal.SIGKILL, *children(tmp_path).values())


def write(folder: Path, *, steps: int = 1000, runs: int = RUNS) -> Path:
    (folder / "sweep.py").write_text(SWEEP % (steps, runs // 2))
    return folder


def children(folder: Path) -> dict[str, int]:
    """Process ids of the runs of this workdir, by name."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if f"--workdir={folder / 'w'}" in words:
            found |= {word.removeprefix("--run="): int(path.parent.name) for word in words if word.startswith("--run=")}
    return found


def records(folder: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted((folder / "w" / "runs").glob("*/run.json"))}


def finished(folder: Path) -> dict[str, dict]:
    return {name: record for name, record in records(folder).items() if record["status"] == "finished"}


def caught(folder: Path) -> tuple[str, str] | None:
    """Names of two unfinished runs, now stopped, the first in its training; None, and all go on, if there are not two."""
    alive = {name: pid for name, pid in children(folder).items() if name not in finished(folder)}
    send(signal.SIGSTOP, *alive.values())
    metrics = {name: folder / "w" / "runs" / name / "metrics.jsonl" for name in alive if name not in finished(folder)}
    training = [name for name, path in metrics.items() if path.exists() and path.read_text()]
    if len(metrics) == 2 and training:
        return training[0], next(name for name in metrics if name != training[0])
    send(signal.SIGCONT, *alive.values())
    return None


def send(number: signal.Signals, *pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # ended meanwhile
            os.kill(pid, number)


def trained(folder: Path, name: str) -> int:
    """How often a run came to its end: the lines of its log with the last step's evaluation."""
    lines = (folder / "w" / "runs" / name / "log.txt").read_text().splitlines()
    return sum(line.startswith("step 1000/1000  eval/accuracy ") for line in lines)


def until(true: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.thorough
def test_a_sweep_killed_with_one_child_ends_complete_and_no_run_is_done_twice(tmp_path, start):
    folder = write(tmp_path)
    first = start("--parallel=2")
    until(lambda: len(finished(folder)) >= 3)
    while not (names := caught(folder)):
        assert first.poll() is None
        time.sleep(0.02)
    killed, survivor = names
    first.kill()
    send(signal.SIGKILL, children(folder)[killed])
    done = finished(folder)
    send(signal.SIGCONT, children(folder)[survivor])
    first.communicate()

    again = [start("--parallel=1"), start("--parallel=1")]  # and a second one on the same workdir
    shown = [process.communicate(timeout=500)[0] for process in again]
    assert [process.returncode for process in again] == [0, 0], shown
    assert all(f"{RUNS} runs: {RUNS} finished" in text for text in shown)
    after = records(folder)
    assert len(after) == RUNS
    assert {name: trained(folder, name) for name in after} == dict.fromkeys(after, 1)
    assert all(after[name] == record for name, record in done.items())
    assert after[survivor]["attempts"] == 1
    assert after[killed]["attempts"] == 2
    print({name: record["attempts"] for name, record in after.items()})

    third = start()
    assert third.communicate()[0].count("finished  ") == RUNS
    assert records(folder) == after


@pytest.mark.thorough
def test_a_sweep_told_to_stop_saves_its_runs_and_goes_on(tmp_path, start):
    folder = write(tmp_path, steps=100_000, runs=2)
    first = start("--parallel=2")
    until(lambda: len({path.parents[1] for path in (folder / "w" / "runs").glob("*/checkpoints/[0-9]*/seal.json")}) == 2)
    first.send_signal(signal.SIGTERM)
    shown = first.communicate(timeout=120)[0]
    assert first.returncode == 130
    assert "stopped; give the same command to continue" in shown
    assert not children(folder)
    assert {record["status"] for record in records(folder).values()} == {"stopped"}
    second = start("--parallel=2")
    until(lambda: all("resumed at step" in path.read_text() for path in (folder / "w" / "runs").glob("*/log.txt")))
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=120)
    assert {record["attempts"] for record in records(folder).values()} == {2}


@pytest.mark.thorough
def test_submitit_runs_the_same_file(tmp_path, start):
    pytest.importorskip("submitit")
    folder = write(tmp_path, runs=2)
    process = start("--parallel=2", "--executor=local")
    shown = process.communicate(timeout=240)[0]
    assert process.returncode == 0, shown
    assert {name: trained(folder, name) for name in records(folder)} == dict.fromkeys(records(folder), 1)
    assert "2 runs: 2 finished" in shown
