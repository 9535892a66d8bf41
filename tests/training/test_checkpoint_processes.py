"""Checkpoints of processes that are killed, of other meshes, and of several processes at once."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.training.checkpoint import Checkpointer, restore
from tests.training.runs import CONFIG, resume, same, save, steps

HERE = f"import sys; sys.path[:0] = [{str(Path(__file__).parents[2])!r}]; sys.argv = ['x']; import jax\n"

TRAINER = """
from tests.training.runs import *
with Checkpointer(WORKDIR, CONFIG, keep=1, warn=pytest.fail) as keeper:
    found = keeper.restore(**abstract(trees(0)))
    if found:
        same(found, found.step)
    step = found.step if found else 0
    print("from", step, flush=True)
    while True:
        step += 1
        keeper.save(step, **trees(step), cursor={"next": step})
"""


def python(script: str, **names) -> subprocess.Popen:
    script = HERE + "".join(f"{name} = {value!r}\n" for name, value in names.items()) + script
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # it warns about entries that another process still writes
    return subprocess.Popen([sys.executable, "-W", "error", "-c", script], stdout=-1, stderr=-1, text=True, env=environment)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors[-3000:]
    assert "orbax" not in errors.lower(), "Orbax's log is to be silent"


@pytest.mark.thorough
@pytest.mark.parametrize("least", [3, pytest.param(8, marks=pytest.mark.thorough)])
def test_killed_at_any_moment_a_run_resumes_from_a_sound_step(tmp_path, least):
    reached, rng = 0, random.Random()
    for kills in range(1, 50):  # on a busy machine a step can take as long as a trainer lives
        with python(TRAINER, WORKDIR=str(tmp_path / "run")) as trainer:
            line = trainer.stdout.readline().split()
            assert line, trainer.stderr.read()[-3000:]
            assert int(line[1]) >= reached
            reached = int(line[1])
            time.sleep(rng.uniform(0.3, 1.2))
            trainer.send_signal(signal.SIGKILL)
        if kills >= least and reached > 5:
            break
    found = resume(tmp_path / "run")
    same(found, found.step)
    assert found.step >= reached > 5
    with Checkpointer(tmp_path / "run", CONFIG, keep=1) as keeper:
        save(keeper, found.step + 1)
    assert steps(tmp_path / "run") == [found.step + 1], "remains of the killed runs are cleaned up"


MESHES = """
jax.config.update("jax_num_cpu_devices", 8)
from tests.training.runs import *
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

def shardings(shape):
    mesh = jax.make_mesh(shape, ("data", "model"), (AxisType.Auto,) * 2)
    return {"w": NamedSharding(mesh, P("data", "model")), "b": NamedSharding(mesh, P("model"))}

tree = {"w": jax.random.normal(jax.random.key(0), (16, 32)), "b": jnp.arange(8)}
zero = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)
with Checkpointer(WORKDIR, CONFIG, warn=pytest.fail) as keeper:
    placed = jax.device_put(tree, shardings((4, 2)))
    keeper.save(1, params=placed, opt_state=(), memory=(), cursor={})
    jax.block_until_ready(zero(placed))
    for shape in ((2, 4), (8, 1), (1, 1)):
        there = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings(shape))
        found = keeper.restore(params=there, opt_state=(), memory=()).params
        jax.tree.map(np.testing.assert_array_equal, found, tree)
        assert found["w"].sharding.is_equivalent_to(there["w"].sharding, 2)
"""


def test_another_mesh_gets_the_same_bits(tmp_path):
    finish(python(MESHES, WORKDIR=str(tmp_path / "run")))


DISTRIBUTED = """
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{PORT}", 2, RANK)
from tests.training.runs import *
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
placed = NamedSharding(jax.make_mesh((4,), ("data",), (AxisType.Auto,)), P("data"))
told = []
with Checkpointer(WORKDIR, CONFIG, keep=2, warn=told.append) as keeper:
    for step in (1, 2, 3):
        w = jax.jit(lambda: jnp.arange(16) * step, out_shardings=placed)()
        keeper.save(step, params={"w": w}, opt_state=(), memory=(), cursor={"next": step})
    keeper.wait()
    if RANK == 0:
        (Path(WORKDIR) / "checkpoints" / "3" / "seal.json").unlink()
    wanted = {"w": jax.ShapeDtypeStruct((16,), jnp.int32, sharding=placed)}
    found = keeper.restore(params=wanted, opt_state=(), memory=())
    assert found.step == found.cursor["next"] == 2
    for shard in found.params["w"].addressable_shards:
        np.testing.assert_array_equal(shard.data, np.arange(16)[shard.index] * 2)
    assert len(told) == (RANK == 0), told
    keeper.save(3, params={"w": w}, opt_state=(), memory=(), cursor={"next": 3})
    keeper.wait()
    assert keeper.restore(params=wanted, opt_state=(), memory=()).step == 3
"""


@pytest.mark.thorough
def test_two_processes_write_one_checkpoint(tmp_path):
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    both = [python(DISTRIBUTED, WORKDIR=str(tmp_path / "run"), PORT=port, RANK=rank) for rank in (0, 1)]
    try:
        for process in both:
            finish(process)
    finally:
        for process in both:
            process.kill()
    found = restore(tmp_path / "run", params={"w": jax.ShapeDtypeStruct((16,), jnp.int32)}, warn=pytest.fail)
    np.testing.assert_array_equal(found.params["w"], np.arange(16) * 3)
