"""Each number of memory health equals its plain definition, runs write it, and training does not change."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.core import batch_axes, collect, segment
from memtx.data.streams import segment_of
from memtx.evaluation import health
from memtx.evaluation.health import KINDS, Health, age, count_reads, drift, effective_rank, join, parts, use
from memtx.evaluation.perplexity import make_evaluator
from memtx.memory import bank
from memtx.memory.inspect import Inspectable
from memtx.nn.reads import reads
from memtx.runs.configure import build
from memtx.runs.source import make_source
from memtx.runs.train import Run, train
from memtx.sharding import Layout
from memtx.training.optim import make_optimizer
from tests.runs import tiny
from tests.training.test_metrics import events

# --- numbers of arrays --------------------------------------------------------------------------------------------------------


def test_use_counts_the_entries_of_all_banks():
    reads = [[6, 1, 0, 9], [1, 1, 1, 1]]
    valid = [[True, True, True, False], [True, False, False, False]]
    assert use(reads, valid) == {"filled": 4 / 8, "never_read": 1 / 4, "most_read_tenth": (6 + 1) / 8}
    assert use(jnp.asarray(reads), jnp.asarray(valid)) == use(reads, valid)
    even = use(np.ones(20), np.ones(20, bool))
    assert even == {"filled": 1, "never_read": 0, "most_read_tenth": 2 / 20}


def test_what_has_no_value_is_left_out():
    assert use([0, 0], [False, False]) == {"filled": 0}
    assert use([0, 3], [True, False]) == {"filled": 0.5, "never_read": 1}
    assert use([], []) == {}
    assert age([]) == {}
    assert age([2.0], [0.0]) == {"age": 2.0}


def test_ages_are_means_and_weighted_means():
    assert age([1, 5]) == {"age": 3}
    assert age([1, 5], [3, 1]) == {"age": 3, "age_by_weight": 2}


def test_reads_are_counted_by_id():
    np.testing.assert_array_equal(count_reads([[3, 3, -1], [5, 9, 3]], [3, 4, 5, -1]), [3, 0, 1, 0])
    stored = jnp.asarray([8, 5, -1, 7])  # id n is at index n mod 4; id 4 was overwritten by 8
    np.testing.assert_array_equal(bank.count_reads(stored, jnp.asarray([8, 4, 7, 7, -1, 6])), [1, 0, 0, 2])


def test_the_effective_rank_is_the_number_of_equal_singular_values():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    spread = turn @ np.diag([2.0, 2, 2, 0, 0, 0]) @ turn
    p = np.array([3, 1]) / 4
    found = effective_rank(np.stack([np.eye(6), spread, np.outer(turn[0], turn[1]), np.zeros((6, 6))]))
    np.testing.assert_allclose(found, [6, 3, 1, 0], rtol=1e-4)
    assert float(effective_rank([[3.0, 0, 0], [0, 1, 0]])) == pytest.approx(math.exp(-(p * np.log(p)).sum()))


def test_drift_is_the_relative_change_of_the_keys_in_both():
    old = jnp.asarray([[[[3.0, 4]], [[1, 0]], [[0, 2]], [[7, 7]]]])
    new = jnp.asarray([[[[6.0, 8]], [[1, 0]], [[0, 0]], [[1, 1]]]])
    mask = jnp.asarray([[True, True, True, False]])
    total, count = drift((old, mask), (new, mask))
    assert (float(total), int(count)) == (0.5, 2)  # |3 4| / |6 8|, and 0. A new key of length 0 is left out
    assert int(drift((old, ~mask), (new, mask))[1]) == 0


def test_the_reads_of_an_overwritten_entry_start_again():
    def emitted(entry, document, reads):
        arrays = zip(("entry", "document", "reads"), (entry, document, reads), strict=True)
        return {f"use/{name}": (jnp.asarray(a),) for name, a in arrays} | {"use/age": (jnp.ones(4),)}

    joined = join(emitted([1, 2, 3], [0, 0, 0], [5, 6, 7]), emitted([1, 5, 3], [0, 0, 9], [1, 1, 1]))
    np.testing.assert_array_equal(joined["use/reads"][0], [6, 1, 1])
    np.testing.assert_array_equal(joined["use/entry"][0], [1, 5, 3])
    np.testing.assert_array_equal(joined["use/age"][0], [2, 2, 2, 2])


# --- an evaluation ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(root):
    """A function of a memory: its config, model, two sets of weights, source and held-out batches."""

    def make(memory: str, **groups):
        config = tiny(root, memory, **groups)
        data = make_source(config)
        lm = build(config.model, vocab_size=data.tokenizer.vocab_size)
        both = [lm.init(jax.random.key(seed)) for seed in (0, 1)]
        return data, lm, both, lambda: data.evaluator(lm, Layout()).batches()

    return make


@pytest.mark.thorough
def test_the_use_of_a_bank_is_that_of_the_attributions_of_all_calls(reader):
    data, lm, (params, _), batches = reader("memorizing")
    found = data.evaluator(lm, Layout())(params).health

    @jax.jit
    def call(state, batch):
        part = jax.tree.map(lambda a: a[:, 0], batch)
        return collect(lm, "attribution")(params, part.token_BPT, state, segment_of(part))

    times, ages, weights, state = {}, [], [], None
    for batch in batches():
        state = lm.init_state(len(batch.token_BPT)) if state is None else state
        (_, state), aux = call(state, batch)
        read = aux["attribution/reads"][0]
        id_BTNR, position_BTNR, weight_BTNR = (np.asarray(a)[0] for a in (read.id_BTNR, read.position_BTNR, read.weight_BTNR))
        for b, t, n, r in np.argwhere(id_BTNR >= 0):
            if t < batch.length_BP[b, 0]:
                at = b, int(batch.document_BP[b, 0]), int(id_BTNR[b, t, n, r])
                times[at] = times.get(at, 0) + 1
                ages.append(int(batch.position_BPT[b, 0, t] - position_BTNR[b, t, n, r]))
                weights.append(weight_BTNR[b, t, n, r])
    entries = next(part.node.entries for part in parts(state, batch_axes(lm.init_state)) if isinstance(part.node, bank.Bank))
    ids, documents = np.asarray(entries.id)[0], np.asarray(entries.document)[0]
    count = np.zeros(ids.shape, int)
    for b, m in np.ndindex(*ids.shape):
        count[b, m] = times.get((b, int(documents[b, m]), int(ids[b, m])), 0)
    expected = use(count, ids >= 0) | age(ages, weights)
    assert 0 < expected["never_read"] < 1
    for name in ("never_read", "most_read_tenth", "age", "age_by_weight"):
        assert found[f"memory/{name}"] == pytest.approx(expected[name], rel=1e-5), name
    gate = np.asarray(jax.nn.sigmoid(jnp.zeros(2)))
    assert found["memory/gate"] == found["memory/gate_min"] == found["memory/gate_max"] == pytest.approx(gate[0])


@pytest.mark.thorough
def test_drift_compares_the_first_segment_before_and_after_a_step(reader):
    data, lm, (old, new), batches = reader("xl", model={"stacks": [[["xl"], 2]]})
    evaluator = data.evaluator(lm, Layout())
    assert "memory/drift" not in evaluator(old).health
    evaluator.remember(old)
    found = evaluator(new).health
    assert "memory/drift" not in evaluator(new).health
    part = jax.tree.map(lambda a: a[:, 0], next(iter(batches())))

    def hidden(params):
        _, state = jax.jit(lm.__call__)(params, part.token_BPT, lm.init_state(len(part.token_BPT)), segment_of(part))
        (layer,) = parts(state, batch_axes(lm.init_state))
        return [np.asarray(a) for a in layer.each(lambda node: node.stored)]

    (key, _), (today, valid) = hidden(old), hidden(new)
    by_layer = [(np.linalg.norm(today - key, axis=-1) / np.linalg.norm(today, axis=-1))[i][valid[i]].mean() for i in (0, 1)]
    for i, expected in enumerate(by_layer):
        assert found[f"memory/drift/layer={i}"] == pytest.approx(expected, rel=1e-5)
    assert found["memory/drift"] == pytest.approx(np.mean(by_layer), rel=1e-5)
    evaluator.remember(new)
    assert evaluator(new).health["memory/drift"] == 0


@pytest.mark.thorough
def test_matrices_are_measured_in_every_layer_and_gates_over_real_tokens(reader):
    data, lm, (params, _), batches = reader("gated_deltanet", model={"stacks": [[["gated_deltanet"], 2]]})
    found, state = data.evaluator(lm, Layout())(params).health, None
    for batch in batches():
        part = jax.tree.map(lambda a: a[:, 0], batch)
        state = lm.init_state(len(part.token_BPT)) if state is None else state
        _, state = jax.jit(lm.__call__)(params, part.token_BPT, state, segment_of(part))
    (layer,) = parts(state, batch_axes(lm.init_state))
    (matrix,) = layer.node.matrices
    assert matrix.shape[:3] == (2, len(part.token_BPT), 2)
    for i in (0, 1):
        s = np.linalg.svd(np.asarray(matrix[i], float), compute_uv=False)
        p = s / s.sum(-1, keepdims=True)
        rank = np.exp(-(p * np.log(p)).sum(-1)).mean()
        assert found[f"memory/effective_rank/layer={i}"] == pytest.approx(rank, rel=1e-4)
        norm = np.linalg.norm(matrix[i], axis=(-2, -1)).mean()
        assert found[f"memory/matrix_norm/layer={i}"] == pytest.approx(norm, rel=1e-4)
    assert 0 < found["memory/keep_min"] < found["memory/keep"] < found["memory/keep_max"] < 1
    assert 0 < found["memory/write_min"] < found["memory/write"] < found["memory/write_max"] < 1


def test_layers_are_numbered_by_depth_and_a_head_comes_last():
    pair = np.array([2.0, 4.0]), np.array([1, 2])
    key = jax.tree_util.SequenceKey
    made = [health.Part((key(0), key(i)), None, 1) for i in (1, 0)] + [health.Part((), None, 0)]
    found = health.summarise((part, {"filled": pair if part.path else ([6.0], [2])}) for part in made)
    assert found == {
        "filled": 18 / 8,
        **{f"filled/layer={i}": 2 for i in range(4)},
        "filled/head": 3,
    }


def test_the_losses_are_the_same_and_chunks_are_read_by_the_same_program(reader):
    data, lm, (params, _), batches = reader("xl")
    plain = make_evaluator(lm, data.tokenizer.bytes_V, Layout())
    watched = make_evaluator(lm, data.tokenizer.bytes_V, Layout(), Health(lm, Layout()))
    without, found = plain(params, batches()), watched(params, batches())
    assert dataclasses.asdict(without) == dataclasses.asdict(found) | {"health": {}}
    assert found.health
    part = jax.tree.map(lambda a: a[:, 0], next(iter(batches())))
    args = params, part.token_BPT, lm.init_state(len(part.token_BPT)), segment_of(part)
    both = [str(jax.make_jaxpr(lm)(*args)), str(jax.make_jaxpr(collect(lm, also=KINDS))(*args))]
    assert both[0].count("cond[") == both[1].count("cond[") > 0


# --- runs ---------------------------------------------------------------------------------------------------------------------

WRITTEN = {
    "memorizing": {"filled", "never_read", "most_read_tenth", "age", "age_by_weight", "gate", "drift"},
    "gated_deltanet": {"effective_rank", "matrix_norm", "keep", "write"},
    "xl": {"filled", "entry_norm", "drift"},
}


@pytest.mark.thorough
@pytest.mark.parametrize("memory", WRITTEN)
def test_a_run_writes_its_health_to_the_metrics_and_to_tensorboard(memory, root, tmp_path, capsys):
    train(tiny(root, memory, train={"steps": 3}), tmp_path, say=lambda _: None)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (line,) = (line for line in lines if "eval/bits_per_byte" in line)
    assert not any(name.startswith("memory/") for other in lines if other is not line for name in other)
    found = {name.removeprefix("memory/"): value for name, value in line.items() if name.startswith("memory/")}
    assert WRITTEN[memory] <= set(found)
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values()), found
    if "drift" in found:
        assert 0 < found["drift"] < 1
    tags = {(e.step, e.summary.value[0].tag) for e in events(tmp_path) if e.HasField("summary")}
    assert {(3, f"memory/{name.replace('=', '_')}") for name in found} <= tags  # TensorBoard's tags have no "="
    assert "memory/" not in capsys.readouterr().out


@pytest.mark.thorough
def test_it_can_be_switched_off_and_the_train_step_is_the_same(root):
    def program(on: bool):
        config = tiny(root, "memorizing", eval={"health": on})
        data = make_source(config)
        lm = build(config.model, vocab_size=data.tokenizer.vocab_size)
        run = Run(config, lm, make_optimizer(config.optim, config.train.steps, lm), Layout())
        shapes = run.shapes()
        text = run.step.lower(*shapes, next(data.stream()), np.int32(0), run.key).as_text()
        evaluate = data.evaluator(lm, Layout())
        params = lm.init(jax.random.key(0))
        evaluate.remember(params)
        return text, evaluate(params).metrics()

    (on, with_health), (off, without) = map(program, (True, False))
    assert on == off
    assert [name for name in with_health if name not in without]
    assert not any(name.startswith("memory/") for name in without)
    assert without == {name: with_health[name] for name in without}


@pytest.mark.parametrize("shared", [True, False])
def test_the_use_of_a_bank_leaves_out_padding_and_entries_that_are_gone(shared):
    one = bank.empty(4, jax.ShapeDtypeStruct((2,), jnp.float32), ())
    one = bank.write(one, jnp.ones((6, 2)), (), document=7, position=jnp.arange(6))  # ids 2 to 5 are left
    full = one if shared else bank.rows(one, 2)
    id_BTNR = jnp.asarray([[[[2, 3]], [[2, 1]]], [[[5, -1]], [[5, 5]]]])
    found = reads(jnp.full(id_BTNR.shape, 0.5), id=id_BTNR, document=7, position=id_BTNR)
    seg = segment(jnp.asarray([[6, 7], [8, 9]]), [2, 1])  # the last query is padding
    _, aux = jax.jit(collect(lambda: bank.emit_use(full, found, seg, 0.5 * jnp.ones((2, 2, 1))), "use"))()
    counts = {index: int(count) for index, count in np.ndenumerate(aux["use/reads"][0]) if count}
    assert counts == ({(2,): 2, (3,): 1, (1,): 1} if shared else {(0, 2): 2, (0, 3): 1, (1, 1): 1})
    assert ("use/age" in aux) == (not shared)
    if not shared:
        ages = np.array([6 - 2, 6 - 3, 7 - 2, 7 - 1, 8 - 5])
        np.testing.assert_allclose(aux["use/age"][0], [5, ages.sum(), 5 * 0.25, ages.sum() * 0.25])


def test_a_part_of_a_state_that_is_not_a_property_is_named():
    with pytest.raises(TypeError, match="Part.matrices must be a property"):

        class Part(Inspectable):
            def matrices(self):
                return ()
