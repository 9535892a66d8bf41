"""A text that devices divide gives the values of a text on one device."""

import json
import re

import numpy as np
import pytest

from memtx.config import to_json
from memtx.errors import UserError
from memtx.memory import MEMORIES
from memtx.runs.configure import configure
from memtx.runs.train import train
from tests.runs import tiny
from tests.training.test_sharding import on_devices

BOTH = {"model": {"stacks": [[["window", "gated_deltanet"], 1]]}}
DIVIDED = [name for name, cls in MEMORIES.items() if cls.divides_time]

CALLS = """
import jax, json, sys
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from tests.training import divided

for name, lost in json.loads(sys.stdin.read()):
    if lost:
        divided.lose_transfers()
    print(json.dumps({"error": divided.largest_error(name)}))
"""


@pytest.mark.thorough
@pytest.mark.parametrize("name", DIVIDED)
def test_eight_devices_compute_the_outputs_the_states_and_the_gradients_of_one(name):
    assert on_devices(8, [[name, False]], CALLS)[0]["error"] < 1e-5


@pytest.mark.thorough
def test_they_do_not_without_transfers():
    assert all(found["error"] > 0.1 for found in on_devices(8, [["window", True], ["linear_attention", True]], CALLS))


TRAIN = """
import jax, json, sys
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
import memtx
config, workdir = json.loads(sys.stdin.read())
memtx.train(config, workdir)
"""


EVERY_AXIS = {"data": 2, "context": 2, "model": 2, "fsdp": True}


@pytest.mark.thorough
@pytest.mark.parametrize("mesh", [{"data": 2, "context": 4}, EVERY_AXIS])
def test_a_run_on_divided_texts_has_the_metrics_of_one_device(root, tmp_path, mesh):
    def config(**mesh):
        return tiny(root, "window", **BOTH, mesh=mesh)

    def losses(workdir):
        rows = [json.loads(line) for line in (tmp_path / workdir / "metrics.jsonl").read_text().splitlines()]
        found = [{key: value for key, value in row.items() if "loss" in key or "eval/" in key} for row in rows]
        return [list(row) for row in found], [value for row in found for value in row.values()]

    train(config(), tmp_path / "alone", say=lambda _: None)
    on_devices(8, [to_json(config(**mesh)), str(tmp_path / "divided")], TRAIN)
    (names, alone), (same_names, divided) = losses("alone"), losses("divided")
    assert names == same_names
    np.testing.assert_allclose(divided, alone, rtol=1e-5)


TRANSFERS = """
import jax, json, re, sys
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from memtx.ops import context
from memtx.runs.compiled import abstract_step, compile_for
from memtx.runs.configure import configure
from memtx.sharding import Layout

config, by_xla = configure(json.loads(sys.stdin.read())), lambda _: None
for context.mesh_here in (context.mesh_here, by_xla):
    jax.clear_caches()  # a layer that was traced before does not call mesh_here again
    step, args = abstract_step(config, Layout(config.mesh), 264)
    compiled = compile_for(step, *args, quick=False)
    gathered = max(each.bytes for each in compiled.collectives if each.kind == "all-gather")
    print(json.dumps({"gathered": gathered, "squares": len(re.findall(r"(24|96),96]", compiled.text))}))
"""


@pytest.mark.thorough
def test_no_device_gets_the_keys_of_a_whole_text(root):
    """The largest array that devices gather has the positions of the tokens. The control leaves all work to XLA."""
    config = tiny(root, "window", data={"segment": 96}, train={"batch": 2}, **BOTH, mesh={"context": 4})
    ours, by_xla = on_devices(4, to_json(config), TRANSFERS)
    assert ours["squares"] == 0
    assert by_xla["squares"] > 0
    positions, keys = (4 * 96 * config.train.batch * each for each in (config.train.segments, config.model.width))
    assert ours["gathered"] <= positions < keys <= by_xla["gathered"]


def test_what_cannot_divide_texts_is_refused():
    def refused(match, **groups):
        with pytest.raises(UserError, match=match) as error:
            configure({"mesh": {"context": 8}, "data": {"segment": 64}, **groups})
        assert "\n" not in str(error.value)

    for name, cls in MEMORIES.items():
        model = {cls.site: name} if cls.site in ("body", "head") else {"stacks": [[["window", name], 1]]}
        if not cls.divides_time and cls.causal and not cls.encoded:
            refused(f"mesh.context=8 divides texts over devices, which {name} cannot", model=model)
    refused("model.position=alibi", model={"position": "alibi"})
    refused(re.escape("data.segment=60 must be a multiple"), data={"segment": 60})
