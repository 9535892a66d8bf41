"""What checkpoints promise: all comes back, nothing that does not fit, and no step is lost."""

import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.errors import UserError
from memtx.training import checkpoint
from memtx.training.checkpoint import Checkpointer, read_meta, restore
from memtx.training.seal import write_seal
from tests.training.runs import CONFIG, abstract, names, resume, same, save, steps, trees


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


def test_the_newest_and_the_best_are_kept_across_restarts(tmp_path):
    bits = {1: 3.0, 2: 1.0, 3: 2.0, 4: float("nan"), 5: 4.0}
    for step in range(1, 7):
        with Checkpointer(tmp_path, CONFIG, keep=2) as keeper:
            save(keeper, step, metrics={checkpoint.BEST[0]: np.float32(bits[step])} if step in bits else None)
            assert keeper.latest_step() == step
    assert steps(tmp_path) == [2, 5, 6]
    with pytest.raises(UserError, match="at least 1"):
        Checkpointer(tmp_path, CONFIG, keep=0)


def test_a_step_has_its_name_only_once_it_is_sealed_and_older_ones_go_only_then(saved, monkeypatch):
    seen = []
    monkeypatch.setattr(checkpoint, "write_seal", lambda step: (seen.append(names(saved)), write_seal(step)))
    with Checkpointer(saved, CONFIG, keep=1) as keeper:
        save(keeper, 3)
    assert seen == [["1", "2", "3.orbax-checkpoint-tmp"]]
    assert names(saved) == ["3"]


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
            keeper.save(2, params=big, opt_state=(), memory=(), cursor={})
            with pytest.raises(UserError, match="the disk is full"):
                keeper.wait()
        same(resume(disk / "run"), 1)
        assert steps(disk / "run") == [1]
    finally:
        subprocess.run(["umount", disk], check=True)
