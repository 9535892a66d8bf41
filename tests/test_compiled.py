"""Train steps compile for TPUs that are not here, within bounds of memory and transfers (needs libtpu: the extra `plan`)."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from memtx.core import Dims, segment
from memtx.errors import UserError
from memtx.memory import MEMORIES
from memtx.nn.attention import KeySet, attend
from memtx.runs.compiled import compile_for, compile_step, tpu_devices
from memtx.runs.configure import configure, load_config
from memtx.runs.hlo import collectives
from tests.test_docs import block

RUN = Path(__file__).parents[1] / "benchmarks" / "compiled" / "run.py"
spec = importlib.util.spec_from_file_location("run", RUN)
assert spec is not None
assert spec.loader is not None
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)

pytestmark = pytest.mark.filterwarnings("ignore:attention forms tiles")  # of small heads and of position biases

has_libtpu = importlib.util.find_spec("libtpu") is not None or "TPU_LIBRARY_PATH" in os.environ
needs_libtpu = pytest.mark.skipif(not has_libtpu, reason="needs libtpu")


@pytest.mark.skipif(has_libtpu, reason="has libtpu")
def test_without_libtpu_one_line_says_what_to_install():
    with pytest.raises(UserError, match=re.escape("pip install '.[plan]'")):
        tpu_devices("v5e:2x2")


def test_collectives_are_counted_with_the_turns_of_their_loops():
    text = """
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %r = (f32[8]{0}, bf16[4,2]{1,0}) all-reduce-start(%a, %b), to_apply=%add, metadata={op_name="grads"}
  %k = f32[8] custom-call(%a), backend_config={
"x":"{}"
}}, metadata={op_name="kernel"}
  %g = ((f32[8]{0}, f32[4]{0}), (f32[16]{0}, f32[8]{0})) all-gather-start(%a, %c)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %n = s32[] constant(5)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%condition, body=%body
  ROOT %s = f32[2]{0} reduce-scatter(%x), dimensions={0}
}
"""
    found = [(each.kind, each.bytes, each.runs) for each in collectives(text)]
    assert found == [("all-reduce", 32 + 16, 5), ("all-gather", 64 + 32, 5), ("reduce-scatter", 8, 1)]


@needs_libtpu
@pytest.mark.thorough
def test_a_plan_compiles_the_step_for_tpus():
    command = [sys.executable, "-m", "memtx.cli", "plan", "--config=lm:memory=xl,size=tiny"]
    done = subprocess.run(
        [*command, "--topology=v5e:2x2", "--compile", "--format=json"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["compiled"]["peak"] > found["compiled"]["arguments"] > 3 * 4 * found["budget"]["params"]  # with Adam's moments
    assert found["compiled"]["moved"]["all-reduce"] == pytest.approx(4 * found["budget"]["params"], rel=0.01)
    assert found["step"]["peak"] == pytest.approx(found["compiled"]["peak"], rel=0.25)  # of a small model
    done = subprocess.run([*command, "--topology=v5e:3x5", "--compile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@needs_libtpu
@pytest.mark.thorough
@pytest.mark.parametrize("case", run.CASES, ids=lambda case: " ".join(map(str, case[:3])))
def test_a_step_compiles_within_its_bounds(case):
    topology, argument, changes, most = case
    step = run.compile_case(topology, argument, changes)
    assert step.peak < most * run.GIB
    if "mesh.fsdp" not in changes and "mesh.model" not in changes:
        assert max(each.runs for each in step.collectives) == 1  # gradients cross devices once
    if changes == {"mesh.model": 4}:  # no divided matrix is cut
        assert "collective-permute" not in step.moved
        assert step.moved["all-to-all"] < 50e6
    config = run.config_of(argument, changes)
    if not config.model.head:  # the logits of a segment, with the streams in an axis of their own or not
        time, rows = config.data.segment, config.train.batch * config.mesh.model // len(tpu_devices(topology))
        assert not re.search(rf"(,{time}|\[{rows * time}),32000\]", step.text)


@needs_libtpu
@pytest.mark.thorough
@pytest.mark.parametrize(("name", "most"), [("window", 9), ("gated_deltanet", 6)])
def test_a_long_text_on_several_tpus_is_gathered_on_none(name, most):
    changes = {"mesh.context": 16, "train.batch": 1, "train.segments": 1, "data.segment": 262_144}
    step = run.compile_case("v5e:4x4", f"memory={name},size=base", changes)
    assert step.peak < most * run.GIB
    assert "all-gather" not in step.moved


@needs_libtpu
@pytest.mark.thorough
@pytest.mark.parametrize("name", [name for name, cls in MEMORIES.items() if cls.causal and not cls.encoded])
def test_every_memory_compiles_on_a_mesh(name):
    values = load_config(f"{run.CONFIG}:memory={name},size=micro").to_dict()
    values["train"]["batch"] = values["eval"]["batch"] = 16
    values["model"] |= {"scan": True, "dtype": "bfloat16", "remat": True}
    assert compile_step(configure(values), "v5e:4x4", vocab_size=264).peak < run.GIB


@needs_libtpu
@pytest.mark.thorough
def test_the_example_of_the_docs(capsys):
    exec(block("docs/accelerators.md"))
    assert capsys.readouterr().out.splitlines()[1].startswith("all-reduce ")


@needs_libtpu
@pytest.mark.thorough
def test_attention_keeps_no_scores():
    """The memory of attention and its gradient grows with the length of the text, not with its square."""
    heads, kv_heads, size = 32, 8, 64
    dims = Dims(heads * size, heads, kv_heads, size)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=tpu_devices("v5e:2x2"))
    rows = NamedSharding(mesh, PartitionSpec("data"))

    def loss(q, k, v):
        seg = segment(jnp.broadcast_to(jnp.arange(q.shape[1]), q.shape[:2]))
        return attend(q, [KeySet.call(k, v, seg)], seg, dims).astype(jnp.float32).sum()

    def temporary(time: int) -> int:
        args = (jax.ShapeDtypeStruct((4, time, n, size), jnp.bfloat16, sharding=rows) for n in (heads, kv_heads, kv_heads))
        return compile_for(jax.jit(jax.grad(loss, (0, 1, 2))), *args).temporary

    assert temporary(8192) < 4.5 * temporary(2048)
