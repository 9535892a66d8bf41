"""A run on eight devices is the run on one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from memtx.config import Mesh, to_json
from memtx.core import batch_axes
from memtx.errors import UserError
from memtx.memory import MEMORIES
from memtx.nn.linear import Linear
from memtx.runs.configure import build, configure
from memtx.runs.presets import preset
from memtx.sharding import Layout
from memtx.training.optim import make_optimizer
from tests.runs import tiny

MESHES = {"data": {"data": 8}, "model": {"data": 4, "model": 2}, "fsdp": {"data": 8, "fsdp": True}}

PROGRAM = """
import jax, json, sys
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
import numpy as np
from memtx.runs.configure import configure
from tests.training.test_loop import pieces
for values in json.loads(sys.stdin.read()):
    run, stream = pieces(configure(values))
    state, losses = run.init(), []
    for step in range(4):
        *state, metrics = run.step(*state, run.layout.shard(next(stream)), np.int32(step), run.key)
        losses.append(float(metrics["loss"]))
    shares = []
    for leaves in map(jax.tree.leaves, state):
        shares.append(sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves) / sum(leaf.nbytes for leaf in leaves))
    print(json.dumps({"losses": losses, "shares": shares}))
"""


def run(devices: int, configs: list, program: str = PROGRAM) -> list[dict]:
    return on_devices(devices, [to_json(config) for config in configs], program)


def on_devices(devices: int, given: Any, program: str) -> list[dict]:
    """Return the JSON objects that a program prints. It gets the number of devices as argument and `given` as input."""
    out = subprocess.run(
        [sys.executable, "-c", program, str(devices)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert out.returncode == 0, out.stderr
    return [json.loads(line) for line in out.stdout.splitlines() if line.startswith("{")]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("memory", "meshes"), [("window", ["data", "model", "fsdp"]), pytest.param("xl", ["model"], marks=pytest.mark.thorough)]
)
def test_every_mesh_gives_the_losses_of_one_device(root, memory, meshes):
    values = {"train": {"batch": 8}, "model": {"width": 32, "num_heads": 4, "ff_dim": 64}}
    alone = run(1, [tiny(root, memory, **values)])[0]
    assert alone["shares"] == [1, 1, 1]
    results = dict(zip(meshes, run(8, [tiny(root, memory, **values, mesh=MESHES[name]) for name in meshes]), strict=True))
    for name, result in results.items():
        np.testing.assert_allclose(result["losses"], alone["losses"], rtol=1e-5)
        params, opt_state, memory_share = result["shares"]
        whole = name == "model" and memory == "xl"  # its state has the model's width, and no heads
        assert memory_share == pytest.approx(1 / 4 if whole else 1 / 8, rel=0.1)  # by rows, or by rows and heads
        assert opt_state == pytest.approx(params, abs=0.01)
        low, high = {"data": (1, 1), "model": (0.5, 0.6), "fsdp": (0.125, 0.9)}[name]
        assert low <= params <= high


TRANSFERS = """
import jax, json, sys
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from memtx.runs.compiled import abstract_step, compile_for
from memtx.runs.configure import configure
from memtx.sharding import Layout
from memtx.training import step

config = configure(json.loads(sys.stdin.read())[0])
for by_device in (step.by_device, lambda gradient, lm: gradient):
    step.by_device = by_device
    compiled, args = abstract_step(config, Layout(config.mesh), 264)
    found = compile_for(compiled, *args, quick=False).collectives
    print(json.dumps({"moved": [[each.bytes, each.runs] for each in found]}))
"""


@pytest.mark.thorough
def test_gradients_cross_devices_once(root):
    config = tiny(root, "xl", train={"batch": 4, "segments": 2}, data={"segment": 32})
    once, auto = (found["moved"] for found in run(4, [config], TRANSFERS))
    size = 4 * build(config.model, vocab_size=264).num_params()
    assert max(runs for _, runs in once) == 1
    assert sum(each for each, _ in once) == pytest.approx(size, rel=0.01)
    assert sum(each * runs for each, runs in auto) > 2 * size  # control: in each turn of the loops


def layout(data: int, model: int, *, fsdp: bool = False):
    """A Layout over a mesh of abstract devices: specs need no real ones."""
    made = object.__new__(Layout)
    made.fsdp = fsdp
    made.mesh = jax.sharding.AbstractMesh((data, model), ("data", "model"))
    made.whole = jax.sharding.NamedSharding(made.mesh, jax.sharding.PartitionSpec())
    return made


@pytest.mark.parametrize("fsdp", [False, True])
def test_optimiser_state_is_sharded_like_its_parameters(fsdp):
    config = configure({"model": {"vocab_size": 64, "width": 64, "num_heads": 4}})
    lm = build(config.model)
    tx = make_optimizer(config.optim, 10, lm)
    where = layout(4, 2, fsdp=fsdp)
    params = where.params(lm)
    adam = next(s for s in jax.tree.leaves(where.opt_state(tx, lm), is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    assert jax.tree.leaves(adam.mu) == jax.tree.leaves(params)
    assert jax.tree.leaves(adam.nu) == jax.tree.leaves(params)
    assert len(set(jax.tree.leaves(params))) > 2


@pytest.mark.parametrize("name", [name for name, cls in MEMORIES.items() if cls.causal and not cls.encoded])
def test_tensor_parallelism_divides_the_parameters_of_every_memory(name):
    """At least nine tenths of the numbers in the body of preset `base`; without declarations nothing is divided."""
    lm = build(configure({"model": preset(name, "base") | {"vocab_size": 256}}).model)
    shapes, shardings = jax.tree.leaves(lm.abstract_params["body"]), jax.tree.leaves(layout(1, 2).params(lm)["body"])
    divided = sum(leaf.size for leaf, sharding in zip(shapes, shardings, strict=True) if "model" in sharding.spec)
    assert divided >= 0.9 * sum(leaf.size for leaf in shapes)


def test_a_linear_map_declares_the_side_that_is_divided():
    key = jax.random.key(0)
    for shard, w, b in (("out", (None, "model"), ("model",)), ("in", ("model", None), ())):
        linear = Linear(key, 4, 6, bias=True, shard=shard)
        assert linear.w.get_metadata()["axes"] == w
        assert linear.b.get_metadata()["axes"] == b


def test_memory_is_sharded_along_its_batch_axis():
    lm = build(configure({"model": {"vocab_size": 64}}).model)
    where = layout(4, 2)
    for axis, sharding in zip(*map(jax.tree.leaves, (batch_axes(lm.init_state), where.state(lm))), strict=True):
        assert tuple(sharding.spec)[axis] == "data"


@pytest.mark.parametrize("name", [name for name, cls in MEMORIES.items() if cls.causal and not cls.encoded])
def test_tensor_parallelism_divides_the_heads_of_a_state(name):
    """What has no heads is small, or vectors of the model's width, which every device of a row needs whole."""
    lm = build(configure({"model": preset(name, "micro") | {"vocab_size": 256}}).model)
    state, shardings = jax.eval_shape(lambda: lm.init_state(1)), layout(1, 2).state(lm)
    whole = [leaf for leaf, each in zip(*map(jax.tree.leaves, (state, shardings)), strict=True) if "model" not in each.spec]
    large = [leaf for leaf in whole if leaf.size > jax.eval_shape(lambda: lm.init_state(1).position_B).size * 10_000]
    assert all(leaf.shape[-1] == lm.dims.width for leaf in large)


def test_a_bank_that_all_streams_share_is_sharded_over_all_devices_by_entry():
    config = configure({"model": {"vocab_size": 64, "head": "knn_lm", "memory": {"knn_lm": {"datastore": 64}}}})
    lm = build(config.model)
    for data, model in ((4, 2), (8, 1)):
        store = layout(data, model).state(lm).head.datastore
        assert {leaf.spec for leaf in jax.tree.leaves(store.entries)} == {PartitionSpec(("data", "model"))}
        assert store.cursor.spec == PartitionSpec()
    uneven = layout(3, 1).state(lm).head.datastore
    assert {leaf.spec for leaf in jax.tree.leaves(uneven)} == {PartitionSpec()}


def test_a_mesh_that_the_devices_do_not_make_is_refused():
    count = jax.device_count()
    with pytest.raises(UserError, match=f"is not the number of devices, {count}"):
        Layout(Mesh(data=3, model=5))
    with pytest.raises(UserError, match=r"train.batch=6 must be a multiple of 4"):
        layout(4, 2).check_batch("train.batch", 6)
