"""The contract, on every mechanism: what makes it done. Each equality has a control that shows the test can fail.

C1 parity with independent float64 numpy   C2 cuts do not matter   C3 causality          C4 rows are isolated
C5 an empty memory reads nothing           C6 exact truncation     C7 save and restore   C8 bfloat16
C9 eight devices == one                    C10 declared bytes      and the same once through a whole language model

What is not causal (an encoder's attention) is a function of one call: where C2 and C3 cut a text, or hide what comes after,
it is tested to depend on just that.
"""

from __future__ import annotations

import dataclasses
import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml
from flax import nnx

import memtx.memory
from memtx.memory import MEMORIES
from memtx.memory.base import batch_axes, detach, segment, state_bytes
from memtx.models.lm import LM
from tests.contract import BATCH, DIMS, Case, at, cut, distance, mesh, place, rows_differ
from tests.golden import make

# float32 rounding (armt through a language model comes to 2.4e-5; nothing else was seen above 2e-5); what a control must change
EXACT, MOVED = 3e-5, 1e-3
CARDS = Path(memtx.memory.__file__).parent / "cards"


# --- C1 -------------------------------------------------------------------------------------------------------------------


def test_every_memory_has_goldens():
    assert {golden.memory for golden in make.GOLDENS.values()} == set(MEMORIES)
    assert {path.stem for path in make.FOLDER.glob("*.npz")} == set(make.GOLDENS)


def test_the_script_reproduces_the_golden(golden):
    saved = np.load(make.FOLDER / f"{golden}.npz")
    inputs = make.inputs(golden)
    for key, value in inputs.items():
        np.testing.assert_array_equal(saved[key], value)
    y = make.outputs(golden, {key: v.astype(float) for key, v in inputs.items()})
    np.testing.assert_array_equal(saved["y"], y.astype(np.float32))
    rng = np.random.default_rng(0)
    for key, value in inputs.items():  # a random direction in each input finds an error in any coordinate of its gradient
        direction = rng.normal(size=value.shape)
        slope = (make.derivative(golden, inputs, {key: direction}) * saved["weight"]).sum()
        size = np.abs(saved[f"grad.{key}"] * direction).sum()
        assert abs(slope - (saved[f"grad.{key}"] * direction).sum()) <= 1e-6 * size


def test_c1_outputs_and_gradients_match_the_golden(golden):
    saved = np.load(make.FOLDER / f"{golden}.npz")
    settings = json.loads(str(saved["settings"]))
    cls = MEMORIES[settings["memory"]]
    dims = dataclasses.replace(DIMS, position=settings["position"])
    case = Case(settings["memory"], cls, cls.Config(**settings["config"]), dims)
    given = {
        kind: {key.removeprefix(kind): saved[key] for key in saved.files if key.startswith(kind)}
        for kind in ("x.", "param.", "shared.")
    }
    shapes = {key: value.shape for key, value in flat(case.params.get("memory", {})).items()}
    assert {key: value.shape for key, value in given["param."].items()} == shapes

    def loss(given, weight, wipe):
        parts, params = given["x."], {**case.params, "memory": nest(given["param."])}
        fresh = case.layer.init_state(BATCH)
        x = parts["x"] if "x" in parts else tuple(parts[name] for name in ("q", "k", "v", "h", "logits") if name in parts)

        def step(state, inputs):
            x, p = inputs
            seg = segment(jnp.broadcast_to(4 * p + jnp.arange(4), (BATCH, 4))).replace(shared=given["shared."])
            y, state = case.apply(params, x, jax.tree.map(partial(jnp.where, wipe), fresh, state), seg)
            return state, y

        y = joined(jax.lax.scan(step, fresh, (calls_of(4, x), jnp.arange(4)))[1])
        return (y * weight).sum(), y

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    given = place(given, {kind: dict.fromkeys(keys, 0 if kind == "x." else -1) for kind, keys in given.items()})
    (_, y), grads = gradient(given, place(saved["weight"]), False)
    assert distance(y, saved["y"]) <= 1e-5
    for kind, parts in grads.items():
        for key, value in parts.items():
            expected = saved[f"grad.{kind}{key}"]
            assert np.abs(value - expected).max() <= 1e-4 * np.abs(expected).max(), kind + key
    if case.remembers:
        (_, y), _ = gradient(given, place(saved["weight"]), True)
        assert distance(y, saved["y"]) > MOVED  # control: memory wiped between calls


def calls_of(time: int, x):
    """[B, P T, ...] -> [P, B, T, ...], to scan over calls."""
    return jax.tree.map(lambda a: a.reshape(BATCH, -1, time, *a.shape[2:]).swapaxes(0, 1), x)


def joined(y_PBT):
    return y_PBT.swapaxes(0, 1).reshape(BATCH, -1, *y_PBT.shape[3:])


def flat(params) -> dict:
    return {".".join(map(str, path)): value for path, value in nnx.traversals.flatten_mapping(params).items()}


def nest(params):
    path = lambda key: tuple(int(part) if part.isdigit() else part for part in key.split("."))  # noqa: E731
    return nnx.traversals.unflatten_mapping({path(key): value for key, value in params.items()})


# --- C2 -------------------------------------------------------------------------------------------------------------------


ODD = [1, 7, 3, 1, 4]


@pytest.mark.parametrize("cuts", [[4] * 4, [1] * 16, ODD], ids=["segments", "tokens", "odd"])
def test_c2_cuts_do_not_matter(case, cuts):
    x = case.x(0)
    assert (distance(case.run(x, cuts), case.run(x, [16])) <= EXACT) == case.causal


def test_c2_control_every_part_of_the_state_is_carried(case):
    x, fresh = case.x(0), jax.tree.leaves(case.init_state())
    whole = case.run(x, ODD)

    def wipe(i, state):
        leaves, tree = jax.tree.flatten(state)
        return tree.unflatten([*leaves[:i], fresh[i], *leaves[i + 1 :]])

    for i in range(len(fresh)):
        assert distance(case.run(x, ODD, between=partial(wipe, i)), whole) > MOVED, f"leaf {i} carries nothing"


@pytest.mark.parametrize("time", [4, pytest.param(7, marks=pytest.mark.thorough)])
def test_c2_rows_out_of_step(case, time):
    """Ragged calls, padded with large junk; each row begins a second document in the middle of everything."""
    if not case.causal:
        pytest.skip("cuts matter to it")
    x, second = case.x(0), np.array([5, 3, 9, 14])
    y_first, _ = case.call(x, case.init_state(), at(0, 16, second))
    shifted = jax.tree.map(lambda a: jnp.stack([jnp.roll(a[row], -n, 0) for row, n in enumerate(second)]), x)
    y_second, state = case.call(shifted, case.init_state(), at(0, 16, 16 - second))
    y, ragged = run_ragged(case, x, second, time)
    for row, n in enumerate(second):
        assert distance(y[row, :n], y_first[row, :n]) <= EXACT
        assert distance(y[row, n:], y_second[row, : 16 - n]) <= EXACT
    assert distance(ragged, state) <= EXACT
    if not case.remembers:
        return
    y, unreset = run_ragged(case, x, second, time, ignore=True)  # control
    assert all(distance(y[row, n:], y_second[row, : 16 - n]) > MOVED for row, n in enumerate(second))
    assert distance(unreset, state) > MOVED


def run_ragged(case, x, second, time: int, ignore: bool = False):
    """Each row takes a few tokens per call, never across the start of its second document (which one may `ignore`)."""
    state, place_B, call = case.init_state(), np.zeros(BATCH, int), 0
    x = jax.tree.map(np.asarray, x)
    y_out = None
    while (place_B < 16).any():
        want = np.roll([4, 2, 0, 3], call)
        end = np.where(place_B < second, second, 16)
        length = np.minimum(want, end - place_B)
        begins = (place_B == second) & (length > 0)
        part = jax.tree.map(lambda a, at=place_B, n=length: take_padded(a, at, n, time), x)
        position = place_B - np.where((place_B >= second) & (not ignore), second, 0)
        y, state = case.call(part, state, at(position, time, length, begins & (not ignore)))
        y_out = np.zeros((BATCH, 16, *y.shape[2:])) if y_out is None else y_out
        for row, n in enumerate(length):
            y_out[row, place_B[row] : place_B[row] + n] = y[row, :n]
        place_B, call = place_B + length, call + 1
    return y_out, state


def take_padded(a, start_B, length_B, time: int):
    out = np.full((BATCH, time, *a.shape[2:]), 50.0, a.dtype)
    for row, (start, n) in enumerate(zip(start_B, length_B, strict=True)):
        out[row, :n] = a[row, start : start + n]
    return out


def test_c2_padding_is_not_seen(case):
    x, state, length = case.x(1, 7), case.warm(), np.array([5, 7, 1, 3])
    seg = at([7, 4, 6, 5], 7, length)
    padding = np.arange(7) >= length[:, None]
    junk = jax.tree.map(lambda a: jnp.where(padding.reshape(BATCH, 7, *[1] * (a.ndim - 2)), 50.0, a), x)
    (y, after), (other, same) = case.call(x, state, seg), case.call(junk, state, seg)
    for row, n in enumerate(length):
        assert distance(other[row, :n], y[row, :n]) <= EXACT
    assert distance(same, after) <= EXACT
    other, _ = case.call(junk, state, at([7, 4, 6, 5], 7))  # control: the same as real tokens
    np.testing.assert_array_equal(rows_differ(y, other), length < 7)


def test_c2_another_layer_reads_the_same_memory_however_text_is_cut(case):
    """A reader (memtx/models/readers.py): parameters and queries of its own, the writer's keys, values and state."""
    if case.cls.site != "attention":
        pytest.skip("only at the attention site do layers read what others write")
    x, q = case.x(0), case.x(5)[0]
    rng = np.random.default_rng(0)
    own = jax.tree.map(lambda a: place(a + rng.normal(0, 0.5, a.shape).astype(a.dtype), -1), case.params)

    def read(cuts):
        state, outs, start = case.init_state(), [], 0
        for time in cuts:
            (mine, k, v), seg = cut((q, *x[1:]), start, time), at(start, time)
            outs.append(np.asarray(case.jitted(own, place((mine, k, v)), state, place(seg))[0]))
            _, state = case.call(cut(x, start, time), state, seg)
            start += time
        return np.concatenate(outs, 1)

    readable = getattr(case.cls, "readable", True) and case.causal
    assert (distance(read(ODD), read([16])) <= EXACT) == readable, "readable=False where it writes by parameters of its own"


# --- C3, C4, C5 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("time", "t"), [(7, 3), (16, 9)])
def test_c3_the_past_does_not_see_the_future(case, time, t):
    x, state, start = case.x(1, time), case.warm(), [7, 4, 6, 5]
    moved = jax.tree.map(lambda a: a.at[:, t].add(1.0), x)
    y, other = (np.asarray(case.call(a, state, at(start, time))[0]) for a in (x, moved))
    assert not rows_differ(y[:, :t], other[:, :t]).any() if case.causal else rows_differ(y[:, :t], other[:, :t]).all()
    assert rows_differ(y[:, t:], other[:, t:]).all()  # control


def test_c4_rows_are_isolated(case):
    x, state, start = case.x(1, 7), case.warm(), [7, 4, 6, 5]
    moved = jax.tree.map(lambda a: a.at[2].add(1.0), x)
    before, after = (case.call(a, state, at(start, 7)) for a in (x, moved))
    only_third = [False, False, True, False]  # the third is the control
    np.testing.assert_array_equal(rows_differ(before[0], after[0]), only_third)
    np.testing.assert_array_equal(rows_differ(before[1], after[1], case.axes), np.array(only_third) & case.keeps_x)


def test_c4_a_reset_row_is_a_fresh_row_and_others_stay(case):
    if not case.remembers:
        pytest.skip("a table has no state to reset")
    x, state, start = case.x(1, 7), case.warm(), np.array([7, 4, 6, 5])
    row = np.arange(BATCH) == 1
    start_reset = np.where(row, 0, start)
    fresh = case.call(x, case.init_state(), at(0, 7))
    kept = case.call(x, state, at(start, 7))
    wiped = case.call(x, state, at(start_reset, 7, reset_B=row))
    np.testing.assert_array_equal(rows_differ(wiped[0], kept[0]), row)  # row 1 is the control
    for _ in range(2):  # the call of the reset, and the one after it
        for part, axes in ((0, 0), (1, case.axes)):
            assert not rows_differ(wiped[part], kept[part], axes)[~row].any()
            assert not rows_differ(wiped[part], fresh[part], axes)[row].any()
        fresh = case.call(x, fresh[1], at(7, 7))
        kept = case.call(x, kept[1], at(start + 7, 7))
        wiped = case.call(x, wiped[1], at(start_reset + 7, 7))


def test_c5_an_empty_memory_reads_nothing(case):
    """Junk where nothing was written changes no bit."""
    if case.cls.kind.startswith("fixed"):
        pytest.skip("a fixed memory has no entries that could be empty: C1 checks its first value")
    if not case.remembers:
        pytest.skip("a table is never empty")

    def litter(state):
        return jax.tree.map(lambda a: a + 1e3 if jnp.issubdtype(a.dtype, jnp.floating) else a, state)

    x, empty, used = case.x(1, 7), case.init_state(), case.warm()
    y, littered = (case.call(x, s, at(0, 7))[0] for s in (empty, litter(empty)))
    assert not rows_differ(y, littered).any()
    y, littered = (case.call(x, s, at([7, 4, 6, 5], 7))[0] for s in (used, litter(used)))
    assert rows_differ(y, littered).all()  # control: where entries are valid, junk is read


def test_c5_rows_without_a_token_stay_as_they_are(case):
    x = case.x(1, 7)
    for state in (case.init_state(), case.warm()):
        y, after = case.call(x, state, at([7, 4, 6, 5], 7, [0, 7, 0, 2]))
        assert np.isfinite(np.asarray(y)).all()
        np.testing.assert_array_equal(rows_differ(after, state, case.axes), np.array([0, 1, 0, 1], bool) & case.keeps_x)


# --- C6 -------------------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_c6_truncation_is_exact_in_depth(case):
    """Jacobian of the loss of call p to the input of call q, detached every second call, calls of two tokens.

    One token went before, so that boundaries of the mechanism's own (every 4 tokens) and the detached ones do not coincide.
    """
    x, state = calls_of(2, case.x(2, 8)), case.call(case.x(3, 1), case.init_state(), at(0, 1))[1]

    @jax.jit
    def jacobian(x_P, state, every):
        def losses(x_P):
            def step(state, inputs):
                p, x = inputs
                seg = segment(jnp.broadcast_to(1 + 2 * p + jnp.arange(2), (BATCH, 2)))
                y, state = case.apply(case.params, x, detach(state, p % every == 0), seg)
                return state, jnp.sin(y).sum()

            return jax.lax.scan(step, state, (jnp.arange(4), x_P))[1]

        per_leaf = [jnp.abs(j).max(range(2, j.ndim)) for j in jax.tree.leaves(jax.jacrev(losses)(x_P))]
        return jnp.stack(per_leaf).max(0)

    x = place(x, 1)
    truncated, whole = np.asarray(jacobian(x, state, 2)), np.asarray(jacobian(x, state, 100))
    p, q = np.indices((4, 4))
    same_block = p // 2 == q // 2
    assert (truncated[(q > p) | ~same_block] == 0).all()
    if not (case.keeps_x and getattr(case.cls, "gradient", True)):
        assert (whole[q != p] == 0).all()
        assert (whole[q == p] > 1e-6).all()  # control
        return
    assert (truncated[(q <= p) & same_block] > 1e-6).all()
    assert (whole[q == p - 1] > 1e-6).all()  # control: without detach the gradient does cross


@pytest.mark.thorough
def test_c6_gradients_do_not_depend_on_cuts(case):
    """One call of 15 tokens, or five of three, out of step with boundaries of the mechanism's own."""
    if not case.causal:
        pytest.skip("cuts matter to it")

    def loss(params, x, time):
        def step(state, inputs):
            x, p = inputs
            y, state = case.apply(params, x, state, segment(jnp.broadcast_to(time * p + jnp.arange(time), (BATCH, time))))
            return state, y

        y = joined(jax.lax.scan(step, case.layer.init_state(BATCH), (calls_of(time, x), jnp.arange(15 // time)))[1])
        return jnp.sin(y).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    x = place(case.x(0, 15))
    whole = gradient(case.params, x, 15)
    assert distance(gradient(case.params, x, 3), whole) <= EXACT
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(whole)) > MOVED


# --- C7, C8 -----------------------------------------------------------------------------------------------------------------


def test_c7_save_restore_and_go_on(case, tmp_path):
    state, x, seg = case.warm(), case.x(5, 7), at([7, 4, 6, 5], 7)

    def restored(placed):
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), placed)
        return manager.restore(0, args=ocp.args.StandardRestore({"memory": abstract}))["memory"]

    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(0, args=ocp.args.StandardSave({"memory": state}))
        manager.wait_until_finished()
        expected = case.call(x, state, seg)
        same = case.call(x, restored(state), seg)
        other = None
        if mesh():
            on = mesh(2)  # ('data', 'model') = (2, N / 2): other shards than the ones saved
            moved = restored(place(state, case.axes, on))
            other = case.jitted(place(case.params, -1, on), place(x, 0, on), moved, place(seg, 0, on))
    assert jax.tree.structure(same) == jax.tree.structure(expected)
    assert not rows_differ(same[0], expected[0]).any()
    assert not rows_differ(same[1], expected[1], case.axes).any()
    if other:
        assert distance(other, expected) <= 1e-6
    if case.remembers:
        assert rows_differ(case.call(x, case.init_state(), seg)[0], expected[0]).all()  # control: the memory mattered


@pytest.mark.parametrize("time", [1, 3, 4, 9])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_c8_types_never_change(case, time, dtype):
    state = jax.eval_shape(lambda: case.layer.init_state(BATCH))
    x = case.x(0, time, dtype)
    y, after = jax.eval_shape(case.apply, case.params, x, state, at(0, time))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(after)] == [(a.shape, a.dtype) for a in jax.tree.leaves(state)]
    assert y.dtype == jax.tree.leaves(x)[-1].dtype
    assert all(leaf.size for leaf in jax.tree.leaves(state)), "a leaf of size zero cannot be saved; use ()"


@pytest.mark.thorough
def test_c8_two_hundred_calls_in_bfloat16(case):
    @jax.jit
    def many(state, x_P):
        def step(state, inputs):
            p, x = inputs
            y, state = case.apply(case.params, x, state, segment(jnp.broadcast_to(3 * p + jnp.arange(3), (BATCH, 3))))
            return state, jnp.abs(y.astype(jnp.float32)).max()

        return jax.lax.scan(step, state, (jnp.arange(200), x_P))

    state, y_P = many(case.init_state(), place(calls_of(3, case.x(0, 600, jnp.bfloat16)), 1))
    assert (np.asarray(y_P) < 100).all()  # a NaN fails too
    for leaf in jax.tree.leaves(state):
        assert (np.abs(np.asarray(leaf, np.float64)) <= 1000).all()  # counters stand at 600
    assert y_P[-1] > 0


# --- C9, C10 ----------------------------------------------------------------------------------------------------------------


def gathers(hlo: str) -> list[str]:
    """Collectives of a compiled program that move more than scalars."""
    found = re.findall(r"= (.*?) (all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter)\w*(?:-start)?\(", hlo)
    return [f"{name} {shape}" for shape, name in found if re.search(r"\[[^\]]", shape)]


@pytest.mark.skipif("config.getoption('devices') == 1", reason="needs --devices=8")
def test_c9_many_devices_are_one(case):
    x, state, seg = case.x(1, 7), case.warm(), at([7, 4, 6, 5], 7, reset_B=[False, True, False, False])
    sharded = case.call(x, state, seg)
    one = partial(jax.tree.map, lambda a: jax.device_put(np.asarray(a), jax.devices()[0]))  # an array's type keeps its mesh
    assert distance(sharded, case.jitted(*map(one, (case.params, x, state, seg)))) <= 1e-5

    def collectives(f, *args):
        return gathers(jax.jit(f).lower(*args).compile().as_text())

    placed = place(x), case.warm(), place(seg)
    assert collectives(case.apply, case.params, *placed) == []
    ring, index, new = place((jnp.zeros((BATCH, 64, 8)), jnp.ones((BATCH, 3), int), jnp.ones((BATCH, 3, 8))))
    assert collectives(lambda a, i, n: a.at[jnp.arange(BATCH)[:, None], i].set(n), ring, index, new)  # control


def card(name: str) -> dict:
    return yaml.safe_load((CARDS / f"{name}.yaml").read_text())


def test_c10_declared_bytes_are_real(case):
    declared = state_bytes(case.layer, BATCH)
    assert declared == sum(leaf.nbytes for leaf in jax.tree.leaves(case.warm()))
    if case.name in MEMORIES:  # the card states the size of one stream as a formula
        sizes = dataclasses.asdict(case.config) | dataclasses.asdict(case.dims)
        assert declared == BATCH * eval(card(case.name)["state"]["bytes"], {"__builtins__": {}}, sizes)


FIELDS = {
    "name": str,
    "paper": str,
    "equations": str,
    "differentiable": str,
    "deviations": list,
    "reference_code": list,
    "golden": dict,
    "state": dict,
    "claim": dict,
    "negative_results": list,
}


def test_every_memory_has_a_card():
    assert {path.stem for path in CARDS.glob("*.yaml")} == set(MEMORIES)
    for name in MEMORIES:
        fields = card(name)
        assert {key: type(value) for key, value in fields.items()} == FIELDS, name
        assert fields["name"] == name
        assert set(fields["golden"]) == {"source", "files", "tolerance"}, name
        assert {f"{key}.npz" for key, golden in make.GOLDENS.items() if golden.memory == name} == set(fields["golden"]["files"])
        assert fields["state"]["kind"] == MEMORIES[name].kind, name
        assert set(fields["claim"]) == {"paper", "status"}, name


# --- through a whole language model -------------------------------------------------------------------------------------------


def language_model(case, monkeypatch, **changes) -> LM:
    monkeypatch.setitem(MEMORIES, case.name, case.cls)
    (pattern, _), *_ = case.model.stacks
    return LM(dataclasses.replace(case.model, stacks=((pattern, 2),), **changes))


@pytest.mark.thorough
def test_language_model_goes_on_and_begins_anew(case, monkeypatch):
    lm = language_model(case, monkeypatch)
    call = jax.jit(lm.__call__)
    params = place(lm.init(jax.random.key(0)), -1)
    token = np.random.default_rng(0).integers(0, DIMS.vocab_size, (BATCH, 16))

    def run(token, state, cuts, segs=None):
        outs, start = [], 0
        for i, time in enumerate(cuts):
            logits, state = call(params, place(token[:, start : start + time]), state, segs and segs[i])
            outs.append(logits)
            start += time
        return jnp.concatenate(outs, 1), state

    fresh = place(lm.init_state(BATCH), batch_axes(lm.init_state))
    whole = run(token, fresh, [16])
    assert (distance(run(token, fresh, [4] * 4), whole) <= EXACT) == case.causal
    row = np.arange(BATCH) == 1
    position = np.where(row, 0, 16)[:, None] + np.arange(16)
    again, _ = run(token, whole[1], [16], [place(segment(position, reset_B=row))])
    assert distance(again[1], whole[0][1]) <= EXACT
    if case.keeps_x:
        assert all(distance(again[i], whole[0][i]) > MOVED for i in (0, 2, 3))  # control: rows that were not reset remember
    if mesh():
        assert gathers(call.lower(params, place(token[:, :4]), fresh).compile().as_text()) == []


@pytest.mark.thorough
def test_language_model_unrolled_is_the_one_scanned_and_rematerialised(case, monkeypatch):
    """Values and gradients, with dropout: the same key gives the same numbers however the stack is run."""
    token = place(np.random.default_rng(0).integers(0, DIMS.vocab_size, (BATCH, 4)))
    lm = language_model(case, monkeypatch)
    params, state = place(lm.init(jax.random.key(0)), -1), place(lm.init_state(BATCH), batch_axes(lm.init_state))

    def gradient(**changes):
        lm = language_model(case, monkeypatch, dropout=0.5, **changes)

        def loss(params, key):
            logits, _ = lm(params, token, state, key=key)
            return jax.nn.logsumexp(logits, -1).mean()

        return jax.jit(jax.value_and_grad(loss))

    unrolled, rematerialised = gradient(scan=False), gradient(remat=True)
    expected = unrolled(params, jax.random.key(1))
    assert distance(rematerialised(params, jax.random.key(1)), expected) <= EXACT
    assert distance(unrolled(params, jax.random.key(2)), expected) > MOVED  # control: the key is used
