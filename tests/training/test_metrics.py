"""What metrics promise: every line written is there, once, whatever happens."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from memtx.config import Config, Train
from memtx.progress import REDRAW
from memtx.training.metrics import Metrics

CONFIG = Config(train=Train(steps=10))


def lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def loss(step: int) -> dict:
    return {"train/loss": np.float32(1 / step), "train/tokens_per_s": 5120.4}


def run(workdir, steps, **options) -> str:
    console = Console(file=io.StringIO(), width=200)
    with Metrics(workdir, CONFIG, console=console, **options) as metrics:
        for step in steps:
            metrics.write(step, loss(step))
            if step % 2 == 0:
                metrics.write(step, {"eval/bits_per_byte": 2.0 + step})
    return console.file.getvalue()


def test_a_line_begins_with_the_step_and_has_floats_in_full(tmp_path):
    run(tmp_path, [3])
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 3, "train/loss": 0.3333333432674408, "train/tokens_per_s": 5120.4}\n'
    )


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), -np.inf])
def test_what_is_not_finite_is_null(tmp_path, value):
    with Metrics(tmp_path, CONFIG, console=Console(file=io.StringIO())) as metrics:
        metrics.write(1, {"train/loss": value, "train/count": 3})
    assert lines(tmp_path) == [{"step": 1, "train/loss": None, "train/count": 3}]


def test_a_killed_and_resumed_run_ends_with_the_lines_of_one_never_stopped(tmp_path):
    run(tmp_path / "whole", range(1, 11))
    run(tmp_path / "cut", range(1, 8))
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')
    run(tmp_path / "cut", range(4, 11), resumed=4)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_a_new_run_starts_with_no_lines(tmp_path):
    run(tmp_path, range(1, 4))
    run(tmp_path, [1])
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_sigkill_loses_no_line_that_was_written(tmp_path):
    script = f"""
from memtx.training.metrics import Metrics
from memtx.config import Config
metrics = Metrics({str(tmp_path)!r}, Config())
for step in range(1, 6):
    metrics.write(step, {{"train/loss": 1.0}})
import os
os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_plain_lines_say_loss_speed_and_time_left(tmp_path):
    shown = run(tmp_path, [1, 2]).splitlines()
    assert shown[0] == "step 0/10  compiling"
    assert shown[1].startswith("step 1/10  loss 1.0000  5,120 tokens/s  0:0")
    assert shown[1].endswith(" left")
    assert shown[3] == "step 2/10  eval/bits_per_byte 4.0000"


def test_a_terminal_shows_the_same_beside_a_bar(tmp_path):
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    with Metrics(tmp_path, CONFIG, console=console) as metrics:
        time.sleep(REDRAW)
        metrics.write(5, loss(5))
        metrics.write(5, {"eval/bits_per_byte": 2.5})
    shown = console.file.getvalue()
    assert any("━" in line and "step 5/10  loss 0.2000  5,120 tokens/s  0:00 left" in line for line in shown.splitlines())
    assert "step 5/10  eval/bits_per_byte 2.5000" in shown


def events(workdir):
    """All events of a run, file by file; a record is a length, its checksum, the event and its checksum."""
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def test_tensorboard_gets_the_scalars_and_is_told_what_to_forget(tmp_path):
    run(tmp_path, range(1, 8))
    run(tmp_path, [5], resumed=4)
    found = list(events(tmp_path))
    scalars = [(e.step, e.summary.value[0].tag) for e in found if e.HasField("summary")]
    assert scalars.count((3, "train/loss")) == 1
    assert (4, "eval/bits_per_byte") in scalars
    assert sorted(e.step for e in found if e.HasField("session_log")) == [0, 5]
