"""Several processes train one run: they read the rows of their devices, agree to stop, and hand a run on to other processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from memtx.config import to_json
from memtx.errors import UserError
from memtx.runs.load import load
from memtx.runs.train import train
from memtx.training import processes
from tests.runs import tiny
from tests.training.test_loop import lines

ROOT = Path(__file__).parents[2]
GLOO = re.compile(r"^(.*(\[Gloo\]|peer ranks).*|\d*)\n", re.MULTILINE)  # its threads write parts of lines between each other's
SETUP = """
import json, sys
import jax
from memtx.training.processes import start
COUNT, DEVICES, INDEX, PORT = map(int, sys.argv[1:5])
jax.config.update("jax_num_cpu_devices", DEVICES)
jax.config.update("jax_cpu_enable_async_dispatch", False)
start(f"localhost:{PORT}" if COUNT > 1 else None, COUNT, INDEX)
CONFIGS = json.loads(sys.stdin.read())
"""


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def run(program: str, configs: list, *, count: int, devices: int) -> list[list[str]]:
    """Run a program in several processes, and return the lines of each that start with a brace."""
    port, environment = free_port(), os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SETUP + program, *map(str, (count, devices, index, port))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index in range(count)
    ]
    try:
        for process in started:
            process.stdin.write(json.dumps(configs))
            process.stdin.close()
            process.stdin = None
        found = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), "\n".join(errors[-3000:] for _, errors in found)
    return [[line for line in out.splitlines() if line.startswith("{")] for out, _ in found]


ROWS = """
from random import Random
import numpy as np
from memtx.config import Mesh
from memtx.runs.configure import configure
from memtx.runs.source import make_source
from memtx.sharding import Layout

config = configure(CONFIGS[0])
data, batch = make_source(config), config.train.batch
whole = [next(stream) for stream in [data.stream()] for _ in range(2)]
all_devices, crossed = jax.devices(), 0
orders = [Random(seed).sample(all_devices, len(all_devices)) for seed in range(24)]
for order in [all_devices, *orders]:
    for model in (1, 2, 4):
        layout = Layout(Mesh(model=model), devices=order)
        crossed += any(len({d.process_index for d in row}) > 1 for row in layout.mesh.devices)
        stream = data.stream(layout.rows_here(batch))
        for expected in whole:
            arrays = layout.shard(next(stream))
            for array, rows in zip(jax.tree.leaves(arrays), jax.tree.leaves(expected), strict=True):
                assert array.shape == rows.shape
                for shard in array.addressable_shards:
                    np.testing.assert_array_equal(shard.data, rows[shard.index])
print(json.dumps({"crossed": crossed}))
"""


@pytest.mark.parametrize(("count", "devices"), [(2, 2), pytest.param(4, 2, marks=pytest.mark.thorough)])
def test_every_order_of_devices_gives_the_rows_of_one_process(root, count, devices):
    found = run(ROWS, [to_json(tiny(root, train={"batch": 8}))], count=count, devices=devices)
    assert all(json.loads(line)["crossed"] > 10 for (line,) in found)  # groups of the model axis that span processes


LOSSES = """
import numpy as np
from memtx.runs.configure import configure
from memtx.sharding import Layout
from tests.training.test_loop import pieces_on
for values, order in CONFIGS:
    config = configure(values)
    devices = jax.devices()
    layout = Layout(config.mesh, devices=[devices[i] for i in order] if order else devices)
    run, stream = pieces_on(config, layout)
    state, losses = run.init(), []
    for step in range(20):
        *state, metrics = run.step(*state, layout.shard(next(stream)), np.int32(step), run.key)
        losses.append(float(metrics["loss"]))
    print(json.dumps({"losses": losses}))
"""

MESHES = {  # the mesh, and the order of four devices, of which two processes have two each
    "model inside": ({"model": 2}, None),
    "model across": ({"model": 2}, [0, 2, 1, 3]),
    "hosts not in order": ({}, [0, 2, 3, 1]),
    "fsdp across": ({"fsdp": True}, [2, 0, 3, 1]),
}


@pytest.mark.thorough
@pytest.mark.parametrize("count", [2, 4])
def test_processes_have_the_losses_of_one(root, count):
    values = {"train": {"batch": 8}, "model": {"width": 32, "num_heads": 4, "ff_dim": 64}}
    (alone,), *_ = run(LOSSES, [(to_json(tiny(root, **values)), None)], count=1, devices=1)
    configs = [(to_json(tiny(root, **values, mesh=mesh)), order) for mesh, order in MESHES.values()]
    expected = json.loads(alone)["losses"]
    assert expected[-1] < expected[0]
    for found in run(LOSSES, configs, count=count, devices=4 // count):
        for name, line in zip(MESHES, found, strict=True):
            np.testing.assert_allclose(json.loads(line)["losses"], expected, rtol=1e-5, err_msg=name)


# --- the command --------------------------------------------------------------------------------------------------------------


def start_train(config, workdir, *, count: int, devices: int, program: Path | None = None) -> list[subprocess.Popen]:
    """Start `memtx train` in several processes, with the variables that a launcher would set. program: the config file."""
    port, program = free_port(), program or workdir.with_suffix(".py")
    values = repr(to_json(config))
    program.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({values})\n")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "JAX_COORDINATOR_ADDRESS": f"localhost:{port}"}
    environment |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_NUM_PROCESSES": str(count)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # of this process. The command sets its own
    command = [sys.executable, "-m", "memtx.cli", "train", f"--config={program}", f"--workdir={workdir}"]
    if count == 1:
        del environment["JAX_COORDINATOR_ADDRESS"]
    return [
        subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment | {"JAX_PROCESS_ID": str(index)})
        for index in range(count)
    ]


def finish(started: list[subprocess.Popen], code: int = 0) -> list[str]:
    try:
        found = [process.communicate(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [code] * len(started), "\n".join(e[-3000:] for _, e in found)
    return [GLOO.sub("", out) for out, _ in found]


def wait_for_step(workdir, step: int, started: list[subprocess.Popen]) -> None:
    path = workdir / "metrics.jsonl"
    while not path.exists() or not any(json.loads(line)["step"] >= step for line in path.read_text().splitlines()):
        assert all(process.poll() is None for process in started), started[0].communicate()
        time.sleep(0.02)


HANDED_ON = [  # processes, devices of each, train.batch, accumulate
    (4, 2, 8, 1),
    (1, 8, 16, 2),
    (1, 1, 8, 1),
    (2, 2, 4, 1),
]


@pytest.mark.thorough
def test_a_signal_to_one_process_saves_once_and_other_processes_continue(root, tmp_path):
    def config(batch, steps, accumulate=1):
        train = {"batch": batch, "steps": steps, "accumulate": accumulate}
        common = {"eval": {"batch": 8}, "optim": {"schedule": "constant"}, "checkpoint": {"every": 1000}}
        return tiny(root, "xl", train=train, **common)

    workdir = tmp_path / "run"
    started = start_train(config(8, 10_000), workdir, count=2, devices=2)
    wait_for_step(workdir, 5, started)
    started[1].send_signal(signal.SIGTERM)
    first, second = finish(started)
    assert "stopped and saved at step" in first
    assert second == ""  # process 0 alone prints
    assert len(os.listdir(workdir / "checkpoints")) == 1
    unbroken = None
    for count, devices, batch, accumulate in HANDED_ON:
        before = load(workdir)
        last = before.step + 3
        out, *others = finish(start_train(config(batch, last, accumulate), workdir, count=count, devices=devices))
        assert f"resumed at step {before.step} of {last}" in out
        assert ("changed: train.batch" in out) == (batch != before.config.train.batch)
        assert set(others) <= {""}
        steps = [row["step"] for row in lines(workdir) if "train/loss" in row]
        assert steps == list(range(1, last + 1)), "every step is written once"
        assert load(workdir).config.train.batch == batch
        if batch == before.config.train.batch == 8 and not unbroken:  # the first of HANDED_ON: other processes and devices
            unbroken = train(config(8, last), tmp_path / "alone", say=lambda _: None)
            (alone, handed) = (
                [row["train/loss"] for row in lines(w) if "train/loss" in row] for w in (tmp_path / "alone", workdir)
            )
            np.testing.assert_allclose(handed, alone, rtol=1e-5)
    assert unbroken


@pytest.mark.thorough
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_others_within_a_minute(root, tmp_path, victim):
    def config(steps):
        return tiny(root, train={"batch": 4, "steps": steps}, eval={"batch": 4, "every": 0}, checkpoint={"every": 5})

    started = start_train(config(100_000), tmp_path / "run", count=2, devices=1)
    wait_for_step(tmp_path / "run", 12, started)
    killed, other = started[victim], started[1 - victim]
    killed.kill()
    began = time.monotonic()
    _, errors = other.communicate(timeout=100)
    assert time.monotonic() - began < 60
    killed.communicate()
    if victim == 0:  # JAX aborts the others
        assert other.returncode == -signal.SIGABRT
    else:
        assert (other.returncode, errors.splitlines()[-1]) == (
            1,
            "memtx: another process of the run ended, so this one ends too",
        )
    step = load(tmp_path / "run").step
    assert step >= 5
    (out,) = finish(start_train(config(step + 2), tmp_path / "run", count=1, devices=1))
    assert f"resumed at step {step}" in out


LOST = """
import os, sys, time
import numpy as np
from jax.experimental import multihost_utils
from memtx.training.processes import WATCH, joined
index, port = map(int, sys.argv[1:])
with joined(f"localhost:{port}", 2, index):
    multihost_utils.process_allgather(np.ones(3))
    time.sleep(2 * WATCH)
    if index == 1:
        os._exit(0)
    time.sleep(1)
    multihost_utils.process_allgather(np.ones(3))
"""


@pytest.mark.thorough
def test_a_transfer_that_fails_because_a_process_ended_is_one_line():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    port = str(free_port())
    started = [
        subprocess.Popen([sys.executable, "-c", LOST, index, port], stderr=-1, text=True, env=environment) for index in "01"
    ]
    errors, _ = [process.communicate(timeout=100)[1] for process in started]
    assert [process.returncode for process in started] == [1, 0]
    assert errors.splitlines()[-1] == "memtx: another process of the run ended, so this one ends too"
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        ("UNKNOWN: Gloo AllGather failed: [pair.cc:547] Connection closed by peer [127.0.0.1]:40139", True),
        ("UNKNOWN: Gloo all-reduce failed: [pair.cc:538] Read error [127.0.0.1]:57557: Connection reset by peer", True),
        ("UNKNOWN: Gloo all-reduce failed: [unbound_buffer.cc:81] Timed out waiting 30000ms for recv operation", False),
        ("no intact checkpoint in runs/Gloo; reset by peer", False),
    ],
)
def test_only_a_lost_connection_means_that_a_process_ended(error, lost):
    assert bool(processes.LOST.search(error)) == lost


DIFFERENT = """
import memtx
config, own = CONFIGS
try:
    memtx.train(config | {"seed": INDEX} if own else config, f"{config['data']['cache']}/run{own}")
    print(json.dumps({"said": "nothing"}))
except memtx.UserError as error:
    print(json.dumps({"said": str(error)}))
"""


@pytest.mark.thorough
@pytest.mark.parametrize("own", [True, False])
def test_processes_with_different_configs_end_with_one_line(root, own):
    config = to_json(tiny(root, train={"batch": 4, "steps": 1}, eval={"batch": 4}))
    found = run(DIFFERENT, [config, own], count=2, devices=1)
    said = [json.loads(line)["said"] for (line,) in found]
    if own:
        ends = "have different configs and texts; give all the same command"
        assert said == [f"processes 0 and 1 {ends}", f"processes 1 and 0 {ends}"]
        assert not (root / "cache" / "runTrue").exists()
    else:
        assert said == ["nothing"] * 2


@pytest.mark.thorough
def test_a_mistake_that_one_process_notices_ends_all_with_one_line(root, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    started = start_train(tiny(root, train={"batch": 8}, eval={"batch": 8}), tmp_path / "run", count=2, devices=1)
    errors = [process.communicate(timeout=100)[1] for process in started]
    assert [process.returncode for process in started] == [2, 2]
    line = f"memtx: {tmp_path / 'run'} is not the workdir of a run (it has no config.json); choose another workdir"
    assert [error.splitlines() for error in errors] == [[line]] * 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("localhost:1", None, None), "needs --processes and --process, or a launcher"),
        ((None, 2, None), "must be given together"),
        ((None, None, 1), "must be given together"),
        ((None, 2, 0), r"process 0 of 2 did not find the others: .*; give --coordinator=HOST:PORT of process 0"),
        (("localhost:1", 2, 5), "process 5 of 2 did not find the others"),
        (("localhost:1", 2, 1), "process 1 of 2 cannot reach process 0 at localhost:1: .*refused"),
        (("localhost", 2, 1), "the coordinator must be HOST:PORT, not 'localhost'"),
        (("localhost:99999999", 2, 1), "the coordinator must be HOST:PORT, not 'localhost:99999999'"),
        (("a..b:1", 2, 1), "'a..b' is not the name of a host"),
    ],
)
def test_settings_that_are_not_complete_are_one_line(monkeypatch, given, says):
    for name in filter(None, (name for names in processes.LAUNCHERS for name in names)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", checked(jax.distributed.initialize))
    monkeypatch.setattr(processes, "PATIENCE", 0)
    with pytest.raises(UserError, match=says):
        processes.start(*given)


def checked(initialize):
    """Raise the errors of `jax.distributed.initialize` without starting anything."""

    def call(coordinator, count, index, device, **_):
        if coordinator is None:
            raise ValueError("coordinator_address should be defined.")
        if not 0 <= index < count:
            raise ValueError("process_id and num_processes must be nonnegative, with process_id < num_processes")
        raise AssertionError("everything was given")

    return call


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}, (None, 4, 3, 1)),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, (None, 2, 1, 0)),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, (None, 2, 0, None)),
        ({"TPU_ML_PLATFORM": "JAX"}, (None, None, None, None)),
        (
            {"TPU_ML_PLATFORM": "JAX", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"},
            (None, 2, 1, None),
        ),
        ({"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "cpu"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # a batch script without srun
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({}, None),
    ],
)
def test_the_variables_of_each_launcher_are_understood(monkeypatch, variables, expected):
    for name in filter(None, (*(n for names in processes.LAUNCHERS for n in names), "JAX_PLATFORMS", processes.TPU_HOST)):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **_: called.append(given))
    processes.start()
    assert called == ([] if expected is None else [expected])
