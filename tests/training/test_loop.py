"""A run can be stopped anywhere and goes on as if nothing had happened."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.config import to_json
from memtx.core import batch_axes
from memtx.data.corpora import load_corpus
from memtx.data.tokenizers import make_tokenizer
from memtx.data.tokens import tokenize
from memtx.errors import UserError
from memtx.memory.bank import Bank
from memtx.reports import from_run
from memtx.runs.configure import build
from memtx.runs.load import load
from memtx.runs.source import train_stream
from memtx.runs.train import Run, _StepLog, train
from memtx.sharding import Layout
from memtx.training.checkpoint import Checkpointer
from memtx.training.metrics import Metrics
from memtx.training.optim import make_optimizer
from tests.runs import tiny


def lines(workdir) -> list[dict]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "train/tokens_per_s"} for row in rows]


def bits(workdir):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(load(workdir).params)]


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """A run of six steps that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, train(tiny(root, "gru"), workdir, say=lambda _: None)


def test_a_run_writes_metrics_of_every_step_and_evaluates_with_memory_carried_and_wiped(whole):
    workdir, trained = whole
    assert (trained.step, trained.finished) == (6, True)
    rows = lines(workdir)
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    evaluations = [row for row in rows if "eval/bits_per_byte" in row]
    assert [row["step"] for row in evaluations] == [3, 6]
    assert evaluations[-1]["eval/bits_per_byte_wiped"] == trained.evaluation.wiped.bits_per_byte
    assert evaluations[0]["eval/bits_per_byte"] != evaluations[0]["eval/bits_per_byte_wiped"]


@pytest.mark.thorough
def test_the_same_config_gives_the_same_bits(whole, root, tmp_path):
    workdir, _ = whole
    train(tiny(root, "gru"), tmp_path / "again", say=lambda _: None)
    assert lines(tmp_path / "again") == lines(workdir)
    assert bits(tmp_path / "again") == bits(workdir)
    train(tiny(root, "gru", seed=1), tmp_path / "other", say=lambda _: None)
    assert bits(tmp_path / "other") != bits(workdir)


def test_a_finished_run_is_not_trained_further(whole, root):
    workdir, trained = whole
    before = (lines(workdir), bits(workdir))
    again = train(tiny(root, "gru"), workdir, say=lambda _: None)
    assert again.finished
    assert again.evaluation.carried.bits_per_byte == trained.evaluation.carried.bits_per_byte
    assert (lines(workdir), bits(workdir)) == before


def test_a_run_past_the_last_step_is_one_line_and_stays_as_it_is(whole, root):
    workdir, _ = whole
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"is at step 6, past train.steps=4; set train.steps=6 or more$"):
        train(tiny(root, "gru", train={"steps": 4}), workdir, say=lambda _: None)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "told", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.thorough)], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_run_told_to_stop_saves_and_goes_on_bit_identically(whole, root, tmp_path, told):
    workdir, _ = whole
    stops = [run_until_next_line(tiny(root, "gru"), tmp_path / "run", told).step]
    while stops[-1] < 6:
        stops.append(run_until_next_line(tiny(root, "gru"), tmp_path / "run", told).step)
    assert len(stops) > 1
    assert lines(tmp_path / "run") == lines(workdir)
    assert bits(tmp_path / "run") == bits(workdir)


def test_being_told_to_stop_while_the_last_save_is_written_is_no_more_than_told(whole, root, tmp_path, monkeypatch):
    workdir, _ = whole
    save, wait, saved, missed = Checkpointer.save, Checkpointer.wait, [], []

    def saving(self, step, **items):
        save(self, step, **items)
        saved.append(step)

    def waiting(self):
        if saved.count(6) == 1:
            saved.append(6)
            os.kill(os.getpid(), signal.SIGTERM)
        wait(self)

    monkeypatch.setattr(Checkpointer, "save", saving)
    monkeypatch.setattr(Checkpointer, "wait", waiting)
    before = signal.signal(signal.SIGTERM, lambda *_: missed.append(True))  # the signal that would have ended the process
    try:
        trained = train(tiny(root, "gru"), tmp_path / "run", say=lambda _: None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (trained.finished, saved[-2:], missed) == (True, [6, 6], [])
    assert bits(tmp_path / "run") == bits(workdir)


def run_until_next_line(config, workdir, told=signal.SIGTERM):
    """Train until the run has written one more line of metrics, then send it a signal."""
    done = threading.Event()
    watcher = threading.Thread(target=stop_after_next_line, args=(workdir / "metrics.jsonl", done, told))
    watcher.start()
    trained = train(config, workdir, say=lambda _: None)
    done.set()
    watcher.join()
    return trained


def stop_after_next_line(path, done: threading.Event, told) -> None:
    size = path.stat().st_size if path.exists() else 0
    while not done.is_set():
        if path.exists() and path.stat().st_size > size:
            return os.kill(os.getpid(), told)
        time.sleep(0.002)


@pytest.mark.thorough
def test_a_run_killed_outright_goes_on_bit_identically(whole, root, tmp_path):
    workdir, _ = whole
    config = tmp_path / "config.json"
    config.write_text(json.dumps(to_json(tiny(root, "gru"))))
    program = (
        "import json, os, sys, memtx, memtx.training.metrics as m\n"
        "write = m.Metrics.write\n"
        "def killed(self, step, values):\n"
        "    write(self, step, values)\n"
        "    if step == 5: os.kill(os.getpid(), 9)\n"
        "m.Metrics.write = killed\n"
        "memtx.train(json.load(open(sys.argv[1])), sys.argv[2])\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(config), str(tmp_path / "run")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert lines(tmp_path / "run")[-1]["step"] == 5
    train(json.loads(config.read_text()), tmp_path / "run", say=lambda _: None)
    assert lines(tmp_path / "run") == lines(workdir)
    assert bits(tmp_path / "run") == bits(workdir)


@pytest.mark.thorough
def test_forgetting_the_memory_on_resume_would_be_noticed(whole, root, tmp_path, monkeypatch):
    """The negative control of the tests above: without the restored memory the bits differ."""
    workdir, _ = whole
    config = tiny(root, "gru")
    assert run_until_next_line(config, tmp_path / "run").step < 6
    loop = Run.loop

    def forgetful(self, state, *rest):
        params, opt_state, memory = state
        return loop(self, (params, opt_state, jax.tree.map(jnp.zeros_like, memory)), *rest)

    monkeypatch.setattr(Run, "loop", forgetful)
    train(config, tmp_path / "run", say=lambda _: None)
    assert bits(tmp_path / "run") != bits(workdir)


@pytest.mark.parametrize("batch", [2, 6])
def test_with_another_batch_streams_keep_their_state_and_new_ones_are_fresh(whole, root, tmp_path, monkeypatch, batch):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    saved, given, told = load(workdir), [], []
    monkeypatch.setattr(Run, "loop", lambda self, state, step, stream, *_: given.extend([state, stream]))
    train(tiny(root, "gru", train={"batch": batch, "steps": 8}), workdir, say=told.append)
    (params, _, state), stream = given
    fresh, axes = saved.lm.init_state(batch), batch_axes(saved.lm.init_state)
    kept = min(batch, 4)

    def check(found, before, new, axis):
        rows = [np.moveaxis(np.asarray(a), axis, 0) for a in (found, before, new)]
        np.testing.assert_array_equal(rows[0][:kept], rows[1][:kept])
        np.testing.assert_array_equal(rows[0][kept:], rows[2][kept:])
        assert np.any(rows[1][:kept] != rows[2][:kept])  # the control

    jax.tree.map(check, state, saved.state, fresh, axes)
    jax.tree.map(np.testing.assert_array_equal, params, saved.params)
    assert next(stream).reset_BP[4:, 0].all()
    ends = "streams 2 to 3 end" if batch == 2 else "streams 4 to 5 start"
    changes = [f"train.batch: {batch} here, 4 in the checkpoint", "train.steps: 8 here, 6 in the checkpoint"]
    assert told[-3:] == [*(f"changed: {change}" for change in changes), ends]


@pytest.mark.thorough
@pytest.mark.parametrize("capacity", [8, 40])
def test_with_banks_of_another_capacity_the_newest_entries_stay(root, tmp_path, monkeypatch, capacity):
    def config(memory, steps):
        base = tiny(root, "memorizing", train={"steps": steps}, eval={"every": 0})
        bank = dataclasses.replace(base.model.memory["memorizing"], memory=memory)
        return dataclasses.replace(base, model=dataclasses.replace(base.model, memory={"memorizing": bank}))

    train(config(16, 3), tmp_path / "run", say=lambda _: None)
    saved, given, loop = load(tmp_path / "run"), [], Run.loop

    def watched(self, state, *rest):
        given.append(jax.device_get(state[2]))
        return loop(self, state, *rest)

    monkeypatch.setattr(Run, "loop", watched)
    assert train(config(capacity, 5), tmp_path / "run", say=lambda _: None).finished

    def banks(state) -> list[Bank]:
        leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Bank))
        return [leaf for leaf in leaves if isinstance(leaf, Bank)]

    (old,), (new,) = banks(saved.state), banks(given[0])
    assert new.capacity == old.capacity + capacity - 16 == banks(load(tmp_path / "run").state)[0].capacity
    np.testing.assert_array_equal(new.cursor, old.cursor)
    for row in np.ndindex(old.cursor.shape):
        kept = sorted(i for i in old.entries.id[row].tolist() if i >= 0)[-new.capacity :]
        assert sorted(i for i in new.entries.id[row].tolist() if i >= 0) == kept
        assert kept
        for i in kept:
            for a, b in zip(jax.tree.leaves(old.entries), jax.tree.leaves(new.entries), strict=True):
                np.testing.assert_array_equal(a[row][i % old.capacity], b[row][i % new.capacity])


@pytest.mark.thorough
def test_a_damaged_step_with_banks_of_another_capacity_falls_back_to_the_one_before(root, tmp_path):
    def config(memory, steps):
        base = tiny(root, "memorizing", train={"steps": steps}, eval={"every": 0})
        bank = dataclasses.replace(base.model.memory["memorizing"], memory=memory)
        return dataclasses.replace(base, model=dataclasses.replace(base.model, memory={"memorizing": bank}))

    train(config(16, 2), tmp_path / "run", say=lambda _: None)
    train(config(40, 4), tmp_path / "run", say=lambda _: None)
    damaged = next(p for p in (tmp_path / "run" / "checkpoints" / "4" / "params").rglob("*") if p.is_file())
    damaged.write_bytes(damaged.read_bytes() + b"x")
    told = []
    assert train(config(40, 5), tmp_path / "run", say=told.append).finished
    assert any("resumed at step 2" in line for line in told)
    assert "changed: memory.memorizing.memory: 40 here, 16 in the checkpoint" in told


def test_another_config_is_refused_and_more_steps_are_not(whole, root):
    workdir, _ = whole
    with pytest.raises(UserError, match="optim.lr: 0.5 here, 0.01 in the checkpoint"):
        train(tiny(root, "gru", optim={"lr": 0.5}), workdir)


@pytest.mark.thorough
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(root, tmp_path):
    config = tiny(root, optim={"lr": 1e30, "warmup": 0, "clip": 0.0})
    with pytest.raises(UserError, match=r"loss of step \d is (nan|inf)"):
        train(config, tmp_path / "run", say=lambda _: None)


@pytest.mark.thorough
def test_a_memory_that_has_nothing_to_read_is_said(root, tmp_path):
    sizes = {"segment": 64, "memory": 64}  # a step has 16 tokens
    config = tiny(root, "memorizing", model={"closed": True}, memory={"memorizing": sizes}, optim={"train": "gate$"})
    with pytest.warns(UserWarning, match="the gradient of step 1 is 0: no trained parameter changes the loss"):
        train(config, tmp_path / "run", say=lambda _: None)


def test_a_step_without_labels_has_no_gradient_and_no_warning(root, tmp_path):
    config = tiny(root)
    with Metrics(tmp_path, config) as metrics:
        log = _StepLog(config, metrics, 0)
        log.pending = (1, {"loss": 0.0, "grad_norm": 0.0, "tokens": 8.0}, 0.0)
        log.write()
        log.pending = (2, {"loss": 1.0, "grad_norm": 0.0, "tokens": 8.0}, 0.0)
        with pytest.warns(UserWarning, match="the gradient of step 2 is 0"):  # control
            log.write()


def pieces(config):
    return pieces_on(config, Layout(config.mesh))


def pieces_on(config, layout: Layout):
    """The compiled functions and the batches of a run."""
    text = load_corpus(config.data.corpus, config.data.cache)
    tok = make_tokenizer(config.data.tokenizer, text, config.data.cache)
    lm = build(config.model, vocab_size=tok.vocab_size)
    run = Run(config, lm, make_optimizer(config.optim, config.train.steps, lm), layout)
    tokens = tokenize(text, tok, "train", config.data.cache)
    return run, train_stream(tokens, config, layout.rows_here(config.train.batch))


def test_steps_do_not_recompile(root):
    run, stream = pieces(tiny(root))
    state = run.init()
    for step in range(5):
        *state, _ = run.step(*state, run.layout.shard(next(stream)), np.int32(step), run.key)
    assert run.step._cache_size() == 1


def test_state_is_donated(root):
    run, stream = pieces(tiny(root))
    state = run.init()
    leaves = jax.tree.leaves(state)
    run.step(*state, run.layout.shard(next(stream)), np.int32(0), run.key)
    assert all(leaf.is_deleted() for leaf in leaves)


@pytest.mark.thorough
@pytest.mark.parametrize("memory", ["window", "gru"])
def test_accumulation_gives_the_same_step(root, memory):
    results = []
    for parts in (1, 2):
        run, stream = pieces(tiny(root, memory, train={"accumulate": parts}))
        _, *rest = run.step(*run.init(), run.layout.shard(next(stream)), np.int32(0), run.key)
        results.append(rest)  # the optimiser's moments are the gradient and its square
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.thorough
def test_a_step_unrolled_is_the_step_in_a_loop(root, monkeypatch):
    results, programs = [], []
    for most in (1, 3):
        monkeypatch.setattr("memtx.training.step.UNROLLED", most)
        run, stream = pieces(tiny(root, "gru", model={"scan": False, "dropout": 0.2}, train={"segments": 3}))
        args = (*run.init(), run.layout.shard(next(stream)), np.int32(0), run.key)
        programs.append(run.step.lower(*args).as_text())
        _, *rest = run.step(*args)
        results.append(rest)  # the optimiser's moments, the memory, the loss
    assert len(programs[0]) < len(programs[1])
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.thorough
def test_dropout_is_random_by_step_and_the_same_again(root):
    losses = []
    for _ in range(2):
        run, stream = pieces(tiny(root, model={"dropout": 0.5}, optim={"lr": 0.0}))
        state, batch = run.init(), next(stream)
        found = []
        for step in range(2):
            *state, metrics = run.step(*state, run.layout.shard(batch), np.int32(step), run.key)
            found.append(float(metrics["loss"]))
        losses.append(found)
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]


def test_the_speed_of_a_step_is_the_time_between_two_steps_whenever_its_line_is_written(root):
    config, shown = tiny(root, train={"log_every": 1, "steps": 100}), []
    log = _StepLog(config, SimpleNamespace(write=lambda step, values: shown.append(values["train/tokens_per_s"])), 0)
    log._clock = 0.0
    for step in range(1, 5):
        log.write()
        log.pending = (step, {"loss": 1.0, "grad_norm": 1.0, "tokens": 50}, 10.0 * step)
        if step == 2:  # before a checkpoint
            log.write()
    assert shown == [5.0] * 3


@pytest.mark.thorough
def test_the_page_of_a_run_lists_the_changes_of_every_resume(root, tmp_path):
    for steps in (1, 2, 2, 3):
        train(tiny(root, train={"steps": steps}), tmp_path / "run", say=lambda _: None)
    found = from_run(tmp_path / "run")
    assert found.changes == [f"at step {n}, train.steps: {n + 1} here, {n} in the checkpoint" for n in (1, 2)]
    assert found.facts()["changed"] == "; ".join(found.changes)
