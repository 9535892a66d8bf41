"""What checkpoints promise: nothing lost, nothing silently wrong, nothing overwritten by accident."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.errors import UserError
from memtx.memory.base import pytree
from memtx.training import checkpoint
from memtx.training.checkpoint import Checkpointer, read_meta, restore

CONFIG = {"model": {"width": 128, "stacks": ((("window",), 4),)}, "train": {"steps": 10, "batch": 8}, "eval": {"every": 5}}


@pytree
class Ring:
    key_BSKH: jax.Array
    valid_BS: jax.Array


def trees(seed: int) -> dict:
    """A step's trees, random and so hard to compress, except for the leaf of zeros."""
    k = jax.random.split(jax.random.key(seed), 4)
    params = {"embed": jax.random.normal(k[0], (32, 8)), "stacks": ({"w": jax.random.normal(k[1], (4, 8), jnp.bfloat16)}, ())}
    return {
        "params": params,
        "opt_state": (jnp.int32(seed), {"mu": jax.tree.map(jnp.zeros_like, params)}, ()),
        "memory": (Ring(jax.random.normal(k[2], (2, 3, 1, 4)), jax.random.bernoulli(k[3], 0.5, (2, 3))), ()),
    }


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def save(keeper: Checkpointer, step: int, **options) -> None:
    keeper.save(step, **trees(step), cursor={"next": step}, **options)
    keeper.wait()


def same(found, seed: int) -> None:
    for item, tree in trees(seed).items():
        jax.tree.map(partial(np.testing.assert_array_equal, strict=True), getattr(found, item), tree)
    assert found.cursor == {"next": seed}


def steps(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def array_files(step: Path) -> list[Path]:
    return [p for item in checkpoint.ARRAYS for p in sorted((step / item).rglob("*")) if p.is_file() and p.stat().st_size]


@pytest.fixture
def saved(tmp_path):
    """A run with steps 1 and 2."""
    with Checkpointer(tmp_path / "run", CONFIG) as keeper:
        save(keeper, 1)
        save(keeper, 2)
    return tmp_path / "run"


def resume(workdir, config=CONFIG, warn=pytest.fail, wanted=None):
    with Checkpointer(workdir, config, warn=warn) as keeper:
        return keeper.restore(**(wanted or abstract(trees(0))))


def test_nothing_saved_restores_none(tmp_path):
    assert resume(tmp_path / "run") is None


def test_what_is_saved_comes_back_bit_for_bit(saved):
    found = resume(saved)
    assert found.step == 2
    same(found, 2)
    assert found.meta["config"]["model"] == {"width": 128, "stacks": [[["window"], 4]]}
    assert found.meta["versions"]["jax"] == jax.__version__


def test_an_empty_memory_and_a_bare_array_are_trees_too(tmp_path):
    with Checkpointer(tmp_path, CONFIG) as keeper:
        keeper.save(1, params=jnp.arange(3), opt_state={"a": ()}, memory=(), cursor={})
        found = keeper.restore(params=jax.ShapeDtypeStruct((3,), jnp.int32), opt_state={"a": ()}, memory=())
    np.testing.assert_array_equal(found.params, [0, 1, 2])
    assert found.opt_state == {"a": ()}
    assert found.memory == ()


def test_reading_takes_only_what_is_asked_for(saved):
    found = restore(saved, params=abstract(trees(0)["params"]), warn=pytest.fail)
    np.testing.assert_array_equal(found.params["embed"], trees(2)["params"]["embed"])
    assert found.memory is found.opt_state is None


def test_meta_is_read_without_arrays(saved):
    shutil.rmtree(saved / "checkpoints" / "2" / "params")
    assert read_meta(saved)["step"] == 2


def test_reading_where_nothing_is_saved_is_an_error(tmp_path):
    for read in (restore, read_meta):
        with pytest.raises(UserError, match="no checkpoint in"):
            read(tmp_path / "none")
    assert not (tmp_path / "none").exists()


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
    with pytest.raises(UserError, match=r"no sound checkpoint.*2 is damaged.*1 is damaged"):
        resume(saved)
    assert steps(saved) == [1, 2]


def test_every_leaf_that_does_not_fit_is_listed(saved):
    wanted = abstract(trees(0))
    wanted["params"]["more"] = jax.ShapeDtypeStruct((2,), jnp.float32)
    wanted["params"]["embed"] = jax.ShapeDtypeStruct((32, 9), jnp.float32)
    wanted["params"]["stacks"][0]["w"] = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    wanted["memory"] = ()
    with pytest.raises(UserError) as error:
        resume(saved, wanted=wanted)
    for part in (
        "only in the program: params.more float32[2]",
        "params.embed is float32[32,9] in the program, float32[32,8] in the checkpoint",
        "params.stacks.0.w is float32[4,8] in the program, bfloat16[4,8] in the checkpoint",
        "only in the checkpoint: memory.0.key_BSKH float32[2,3,1,4], memory.0.valid_BS bool[2,3]",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert "opt_state" not in str(error.value)


def test_another_config_is_refused(saved):
    other = CONFIG | {"model": {"width": 256, "stacks": ()}, "extra": 1}
    with pytest.raises(UserError) as error:
        resume(saved, other)
    assert "model.width: 256 here, 128 in the checkpoint" in str(error.value)
    assert "model.stacks" in str(error.value)
    assert "extra: 1 here, absent in the checkpoint" in str(error.value)


def test_steps_and_evaluation_may_change(saved):
    longer = CONFIG | {"train": {"steps": 99, "batch": 8}, "eval": {"every": 1}, "mesh": {"data": 2}, "checkpoint": {"keep": 9}}
    same(resume(saved, longer), 2)
    with pytest.raises(UserError, match=r"train\.batch"):
        resume(saved, CONFIG | {"train": {"steps": 10, "batch": 4}})


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not a memtx run"):
        Checkpointer(tmp_path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_start_cut_off_before_the_config_was_written_is_no_obstacle(tmp_path):
    (tmp_path / "config.json.part").write_text("{")
    assert resume(tmp_path) is None


def test_the_newest_and_the_best_are_kept_across_restarts(tmp_path):
    bits = {1: 3.0, 2: 1.0, 3: 2.0, 4: float("nan"), 5: 4.0}
    for step in (1, 2, 3, 4, 5, 6):
        with Checkpointer(tmp_path, CONFIG, keep=2) as keeper:
            save(keeper, step, metrics={checkpoint.BEST: bits[step]} if step in bits else None)
            assert keeper.latest_step() == step
    assert steps(tmp_path) == [2, 5, 6]
    with pytest.raises(UserError, match="at least 1"):
        Checkpointer(tmp_path, CONFIG, keep=0)


def test_a_step_that_is_there_is_not_saved_again(saved):
    with Checkpointer(saved, CONFIG) as keeper:
        keeper.save(2, **trees(7), cursor={})
        same(keeper.restore(**abstract(trees(0))), 2)


def test_arrays_may_be_donated_and_the_cursor_changed_right_after_save(tmp_path):
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 7, tree), donate_argnums=0)
    make = jax.jit(lambda step: {f"w{i}": jnp.arange(200_000.0) + step + i for i in range(8)})
    jax.block_until_ready(overwrite(make(0)))
    with Checkpointer(tmp_path, CONFIG, keep=9) as keeper:
        for step in range(6):
            tree, cursor = jax.block_until_ready(make(step)), {"next": step}
            keeper.save(step, params=tree, opt_state=(), memory=(), cursor=cursor)
            cursor["next"] = -1
            jax.block_until_ready(overwrite(tree))
            found = keeper.restore(params=abstract(make(0)), opt_state=(), memory=())
            assert found.cursor == {"next": step}
            jax.tree.map(np.testing.assert_array_equal, found.params, make(step))


def test_a_full_disk_is_one_line_and_leaves_the_older_steps(saved, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    with Checkpointer(saved, CONFIG) as keeper:
        monkeypatch.setattr(checkpoint, "write_seal", full)
        with pytest.raises(UserError, match="the disk is full: checkpoint 3 was not saved"):
            save(keeper, 3)
        monkeypatch.undo()
        assert steps(saved) == [1, 2]
        save(keeper, 4)
    same(resume(saved), 4)


def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        with Checkpointer(disk / "run", CONFIG) as keeper:
            save(keeper, 1)
            big = {"w": jax.random.normal(jax.random.key(0), (1_000_000,))}
            with pytest.raises(UserError, match="the disk is full"):
                keeper.save(2, params=big, opt_state=(), memory=(), cursor={})
                keeper.wait()
        same(resume(disk / "run"), 1)
        assert steps(disk / "run") == [1]
    finally:
        subprocess.run(["umount", disk], check=True)


# --- in other processes -----------------------------------------------------------------------------------------------------

HERE = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]; sys.argv = ['x']; import jax\n"

TRAINER = """
from test_checkpoint import *
with Checkpointer(WORKDIR, CONFIG, keep=2, warn=pytest.fail) as keeper:
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
    return subprocess.Popen([sys.executable, "-W", "error", "-c", script], stdout=-1, stderr=-1, text=True, env=environment)


def output(process: subprocess.Popen) -> str:
    out, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors[-3000:]
    return out


def test_killed_at_any_moment_a_run_resumes_from_a_sound_step(tmp_path):
    reached, rng = 0, random.Random(time.time())
    for _ in range(5):
        with python(TRAINER, WORKDIR=str(tmp_path / "run")) as trainer:
            line = trainer.stdout.readline().split()
            assert line, trainer.stderr.read()[-3000:]
            assert int(line[1]) >= reached
            reached = int(line[1])
            time.sleep(rng.uniform(0.3, 1.2))
            trainer.send_signal(signal.SIGKILL)
    found = resume(tmp_path / "run")
    same(found, found.step)
    assert found.step > 5
    with Checkpointer(tmp_path / "run", CONFIG, keep=2) as keeper:
        save(keeper, found.step + 1)
    assert len(steps(tmp_path / "run")) == 2


MESHES = """
jax.config.update("jax_num_cpu_devices", 8)
from test_checkpoint import *
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
    output(python(MESHES, WORKDIR=str(tmp_path / "run")))


DISTRIBUTED = """
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{PORT}", 2, RANK)
from test_checkpoint import *
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


def test_two_processes_write_one_checkpoint(tmp_path):
    port = random.randrange(20_000, 60_000)
    both = [python(DISTRIBUTED, WORKDIR=str(tmp_path / "run"), PORT=port, RANK=rank) for rank in (0, 1)]
    for process in both:
        output(process)
    assert resume(
        tmp_path / "run", wanted={"params": {"w": jax.ShapeDtypeStruct((16,), jnp.int32)}, "opt_state": (), "memory": ()}
    )
