"""Estimates of train steps agree with the compiler, and the parts of an estimate with arithmetic by hand."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from memtx import cli
from memtx.errors import UserError
from memtx.runs.chips import CHIPS, parse_topology
from memtx.runs.configure import configure, load_config
from memtx.runs.estimate import estimate, fit
from memtx.runs.footprint import footprint

FOLDER = Path(__file__).parents[1] / "benchmarks" / "compiled"
spec = importlib.util.spec_from_file_location("run", FOLDER / "run.py")
assert spec is not None
assert spec.loader is not None
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)

pytestmark = pytest.mark.filterwarnings("ignore:attention forms tiles")  # of small heads and of position biases

STEPS = json.loads((FOLDER / "results" / "steps.json").read_text())
FAR = {  # the ratio of the estimated peak to the compiler's, where they differ by more than 15 %
    "memory=window,size=base mesh.model": 0.74,
    "memory=knn_lm,size=base": 1.22,
    "memory=memory_plus,size=base mesh.fsdp": 1.51,
}
QUICK = "memory=window"


def name_of(step: dict) -> str:
    return " ".join([step["config"], *(key for key in step["changes"] if key.startswith("mesh"))])


def test_most_steps_are_compared():
    assert len(STEPS) - len(FAR) >= 12
    assert {*FAR} <= {*map(name_of, STEPS)}


@pytest.mark.parametrize(
    "step",
    [pytest.param(s, marks=() if s["config"].startswith(QUICK) else pytest.mark.thorough, id=name_of(s)) for s in STEPS],
)
def test_an_estimate_agrees_with_the_compiler(step):
    found = run.estimate_case(step["topology"], step["config"], step["changes"])
    assert found.arguments / run.GIB == pytest.approx(step["arguments"], rel=0.02, abs=0.006)  # figures have two digits
    ratio = found.peak / run.GIB / step["peak"]
    assert ratio == pytest.approx(FAR.get(name_of(step), 1), abs=0.15 if name_of(step) not in FAR else 0.05)


def of(f, *shapes, **options):
    return footprint(jax.make_jaxpr(f)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).jaxpr, **options)


def test_a_footprint_is_what_a_program_keeps():
    size = 4 * 256 * 256

    def chain(x):
        for _ in range(5):
            x = jnp.tanh(x @ x) + 1  # the element-wise part is computed inside of the next product
        return x

    assert of(chain, (256, 256)).least == 2 * size  # an operand and a result
    assert of(jax.grad(lambda x: chain(x).sum()), (256, 256)).least >= 5 * size  # the backward pass needs all of them
    assert of(lambda x: jnp.exp(x) * 2, (256, 256)).least == 0
    halves = of(chain, (256, 256), share=lambda shape: 0.5)
    assert halves.least == size


def test_a_loop_keeps_its_results_and_its_body_only_its_own():
    def loop(x):
        return jax.lax.scan(lambda carry, _: (carry @ carry, carry @ carry), x, length=7)

    size = 4 * 256 * 256
    assert of(loop, (256, 256)).least == 8 * size  # the carry, and seven results


def test_small_last_axes_are_padded_to_tiles():
    found = of(lambda x: (x @ x) @ x, (500, 12, 12))
    assert found.least == 2 * 4 * 12 * 16 * 512  # the axis of 500 is one of the two in tiles
    assert found.most == 2 * 4 * 500 * 16 * 128
    assert of(lambda x: (x @ x) @ x, (500, 12, 12), tiles=False).most == 2 * 4 * 500 * 12 * 12


@pytest.mark.parametrize(
    ("text", "chip", "count"), [("v5e:4x4", "v5e", 16), ("V5p:2x2x4", "v5p", 16), ("h100x8", "h100", 8), ("v6e:1x1", "v6e", 1)]
)
def test_topologies(text, chip, count):
    assert parse_topology(text) == (CHIPS[chip], count)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v5e:4", "v5e needs 2 sizes, such as v5e:2x2"),
        ("v5p:4x4", "v5p needs 3 sizes"),
        ("h100:8", "such as h100x8"),
        ("v9:2x2", "unknown accelerator 'v9'"),
        ("eight", "a topology is"),
        ("v5e:0x4", "a topology is"),
    ],
)
def test_other_texts_are_no_topologies(text, says):
    with pytest.raises(UserError, match=says):
        parse_topology(text)


def values(**changes):
    found = load_config("configs/lm.py:memory=window,size=micro,data=books").to_dict()
    found["train"] |= {"batch": 64}
    for group, change in changes.items():
        found[group] |= change
    return found


@pytest.mark.thorough
def test_devices_divide_an_estimate():
    one, eight = (estimate(configure(values()), topology, vocab_size=260) for topology in ("h100x1", "h100x8"))
    sharded = estimate(configure(values(mesh={"fsdp": True})), "h100x8", vocab_size=260)
    assert one.moved == {}
    assert eight.moved == {"gradients": eight.params}
    assert (eight.params, eight.optimiser) == (one.params, one.optimiser)
    assert sharded.params < 0.2 * eight.params
    for name in ("state", "flops"):
        assert getattr(eight, name) == pytest.approx(getattr(one, name) / 8, rel=0.02)
    assert eight.seconds[0] < eight.seconds[1]
    far = estimate(configure(values(train={"batch": 128})), "h100x16", vocab_size=260)
    assert far.flops == eight.flops
    assert far.seconds[0] > eight.seconds[0]  # gradients cross machines
    assert one.padding == eight.padding == 0  # only TPUs have tiles


@pytest.mark.thorough
def test_the_largest_batch_that_fits_is_found_and_the_next_does_not_fit():
    batch, found = fit(values(), "train.batch", "v5e:2x2", vocab_size=260)
    assert found.fits
    assert batch % 4 == 0
    more = values(train={"batch": batch + -(-batch // 16 // 4) * 4 + 4})
    assert not estimate(configure(more), "v5e:2x2", vocab_size=260).fits


@pytest.mark.parametrize(
    ("key", "changes", "says"),
    [
        ("model.norm", {}, "not an integer"),
        ("train.log_every", {}, "does not change the memory"),
        pytest.param(
            *("train.batch", {"model": {"width": 65536, "ff_dim": 131072}, "train": {"batch": 1}}, "does not fit v5e:1x1"),
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_a_key_that_decides_nothing_is_one_line(key, changes, says):
    with pytest.raises(UserError, match=says):
        fit(values(**changes), key, "v5e:1x1", vocab_size=260)


def test_a_batch_that_the_devices_do_not_divide_is_one_line():
    with pytest.raises(UserError, match="must be a multiple of 256"):
        estimate(configure(values()), "v5e:16x16", vocab_size=260)
    with pytest.raises(UserError, match="reads sources"):
        estimate(configure(load_config("configs/seq2seq.py:size=micro,memory=none")), "h100x1", vocab_size=260)


@pytest.mark.thorough
def test_every_layer_of_a_pattern_moves_its_outputs():
    def moved(pattern: list[str]) -> int:
        config = configure(values(model={"stacks": [[pattern, 2]]}, mesh={"model": 2}))
        return estimate(config, "h100x4", vocab_size=260).moved["outputs"]

    assert moved(["window", "window"]) == 2 * moved(["window"]) > 0


@pytest.mark.thorough
def test_the_command_estimates_and_fits(capsys):
    config = ["--config=configs/lm.py:memory=window,size=micro,data=books", "--config.model.vocab_size=260"]
    cli.main(["plan", *config, "--topology=v5e:2x2", "--format=json"])
    step = json.loads(capsys.readouterr().out)["step"]
    assert step["fits"]
    assert step["params"] + step["optimiser"] + step["state"] + step["batch"] < step["peak"] < step["memory"]
    cli.main(["plan", *config, "--topology=v5e:2x2", "--fit=train.batch"])
    out = capsys.readouterr().out
    assert "a train step on 4 devices, estimated" in out
    assert "--config.train.batch=" in out
    for wrong, says in (
        (["--fit=train.batch"], "--fit needs --topology"),
        (["--compile"], "--compile needs --topology"),
        (["--topology=h100x1", "--fit=train.batch", "--match=params=1e6"], "--match or --fit, not both"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["plan", *config, *wrong])
        assert says in capsys.readouterr().err
