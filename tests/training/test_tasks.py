"""Runs on tasks: they learn, count labels only, follow a curriculum, and go on as if nothing had happened."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memtx
from memtx import cli
from memtx.config import to_json
from memtx.errors import UserError
from memtx.runs.configure import build, configure
from memtx.runs.evaluate import evaluate_run
from memtx.runs.source import make_source
from memtx.runs.train import Run, train
from memtx.sharding import Layout
from memtx.training.optim import make_optimizer
from memtx.training.step import make_loss
from tests import runs
from tests.training.test_loop import bits, lines, run_until_next_line


def tiny(**groups):
    values = {
        "model": {"stacks": [[["window"], 1]], "width": 16, "num_heads": 2, "ff_dim": 32},
        "memory": {"window": {"window": 32}},
        "data": {
            "corpus": "task:associative",
            "segment": 5,
            "task": {"pairs": 4, "key_size": 2},
            "curriculum": [[2, {"pairs": 1, "key_size": 1}], [2, {"pairs": 2}]],
        },
        "optim": {"warmup": 2, "lr": 0.01},
        "train": {"steps": 6, "batch": 4, "segments": 2, "log_every": 1},
        "eval": {"every": 3, "batch": 4, "examples": 10},
        "checkpoint": {"every": 2},
    }
    for group, changes in groups.items():
        values[group] = {**values.get(group, {}), **changes} if isinstance(changes, dict) else changes
    return configure(values)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("task") / "run"
    return workdir, train(tiny(), workdir, say=lambda _: None)


def test_a_run_writes_accuracy_by_slice_with_memory_carried_and_wiped(whole):
    workdir, trained = whole
    rows = [row for row in lines(workdir) if "eval/accuracy" in row]
    assert [row["step"] for row in rows] == [3, 6]
    assert {"eval/exact", "eval/accuracy_wiped", "eval/loss"} <= set(rows[0])
    assert any(name.startswith("eval/accuracy/pairs=") for name in rows[0])
    assert rows[-1]["eval/loss"] == trained.evaluation.carried.loss
    assert rows[-1]["eval/loss"] != rows[-1]["eval/loss_wiped"]


@pytest.mark.thorough
def test_a_run_in_the_midst_of_a_curriculum_goes_on_bit_identically(whole, tmp_path):
    workdir, _ = whole
    stops = [run_until_next_line(tiny(), tmp_path / "run").step]
    while stops[-1] < 6:
        stops.append(run_until_next_line(tiny(), tmp_path / "run").step)
    assert len(stops) > 1
    assert lines(tmp_path / "run") == lines(workdir)
    assert bits(tmp_path / "run") == bits(workdir)


def test_evaluation_from_the_workdir_is_that_of_the_run_and_may_be_of_other_settings(whole):
    workdir, trained = whole
    result, step = evaluate_run(workdir)
    assert step == 6
    assert result.metrics() == pytest.approx(runs.without_drift(trained.evaluation.metrics()), rel=1e-5)
    longer, _ = evaluate_run(workdir, task={"pairs": 9, "vary": False}, examples=3)
    assert longer.examples == 3
    assert set(longer.carried.exact_by_slice) >= {"pairs=9"}
    with pytest.raises(UserError, match="segments is for text"):
        evaluate_run(workdir, segments=3)


def test_the_loss_counts_labels_only():
    config = tiny(data={"curriculum": []}, train={"segments": 5})
    data = make_source(config)
    lm = build(config.model, vocab_size=data.tokenizer.vocab_size)
    params, batch = lm.init(jax.random.key(0)), next(data.stream())
    asked = batch.labelled_BPT
    assert asked.sum() == 4 * 3
    loss = jax.jit(make_loss(lm, config))

    def of(batch):
        return float(loss(params, lm.init_state(4), batch, jnp.float32(asked.sum()), None)[0])

    memory, nll, call = lm.init_state(4), [], jax.jit(lm.__call__)
    for p in range(5):
        part = jax.tree.map(lambda a, p=p: a[:, p], batch)
        seg = memtx.segment(part.position_BPT, part.length_BP, part.reset_BP, part.document_BP)
        logits, memory = call(params, part.token_BPT, memory, seg)
        log_p = np.asarray(jax.nn.log_softmax(logits))
        rows, places = np.nonzero(asked[:, p])
        nll += (-log_p[rows, places, part.target_BPT[rows, places]]).tolist()
    assert of(batch) == pytest.approx(np.mean(nll), rel=1e-5)
    elsewhere = np.where(asked, batch.target_BPT, -1 - (np.arange(5) % 3))
    assert of(jax.tree.unflatten(jax.tree.structure(batch), [batch.token_BPT, elsewhere, *jax.tree.leaves(batch)[2:]])) == of(
        batch
    )
    moved = np.where(asked, (batch.target_BPT + 1) % 19, -1)  # the control
    assert of(jax.tree.unflatten(jax.tree.structure(batch), [batch.token_BPT, moved, *jax.tree.leaves(batch)[2:]])) != of(batch)


def test_a_step_holds_a_whole_example_or_carries_its_memory_on():
    """The labels are in the last segment, and the first segment of an example has the reset."""
    reach = {}
    for segments in (1, 3):
        config = tiny(data={"curriculum": [], "task": {"pairs": 2, "vary": False}}, train={"segments": segments})
        stream = make_source(config).stream()
        batches = [next(stream) for _ in range(3 // segments)]
        assert batches[0].reset_BP[:, 0].all()
        assert all(not batch.reset_BP[:, 0].any() for batch in batches[1:])
        assert all(not batch.reset_BP[:, 1:].any() for batch in batches)
        reach[segments] = [int(batch.labelled_BPT.sum()) for batch in batches]
    assert reach == {3: [12], 1: [0, 0, 12]}


@pytest.mark.thorough
@pytest.mark.parametrize(("segments", "shapes"), [(1, [1] * 6), (2, [2] * 6), (4, [2, 2, 3, 3, 4, 4])])
def test_a_stage_has_the_segments_that_it_needs_and_no_step_recompiles_within_it(segments, shapes):
    config = tiny(train={"segments": segments})
    data = make_source(config)
    lm = build(config.model, vocab_size=data.tokenizer.vocab_size)
    run = Run(config, lm, make_optimizer(config.optim, 6, lm), Layout(config.mesh))
    stream, state, seen = data.stream(), run.init(), []
    for step in range(6):
        batch = next(stream)
        seen.append(batch.token_BPT.shape[1])
        *state, _ = run.step(*state, run.layout.shard(batch), np.int32(step), run.key)
    assert seen == shapes
    assert run.step._cache_size() == len(set(shapes))


def test_a_task_s_config_survives_json():
    config = tiny()
    assert configure(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"corpus": "task:asociative"}, "did you mean associative"),
        ({"task": {"pair": 3}}, "did you mean pairs"),
        ({"task": {"pairs": 17}}, "key_size"),
        ({"curriculum": [[2, {"pair": 3}]]}, "did you mean pairs"),
        ({"curriculum": [[0, {"pairs": 3}]]}, "data.curriculum must be like"),
        ({"curriculum": [[3]]}, "data.curriculum must be like"),
        ({"tokenizer": "bpe:400"}, "a task makes its own tokens"),
        ({"segment": 3}, "shorter than a block"),
        ({"corpus": "pycode", "task": {"pairs": 3}}, "for data.corpus=task"),
    ],
)
def test_settings_that_cannot_be_are_user_errors(data, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(tiny(data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_eval_settings_that_change_the_vocabulary_are_refused(tmp_path):
    config = tiny(data={"corpus": "task:mqar", "task": {}, "curriculum": []}, eval={"task": {"vocabulary": 64}})
    with pytest.raises(UserError, match="changes the tokens"):
        train(config, tmp_path / "run")


def test_the_command_line_shows_evaluates_and_generates(whole, capsys):
    workdir, _ = whole
    cli.main(["data", "--config=configs/task.py:task=mqar,memory=full", "--example=1"])
    shown = capsys.readouterr().out
    assert "vocabulary=8192" in shown
    assert shown.count(" >") == 4
    cli.main(["data", "--corpus=task:babilong"])
    assert "Answer:" in capsys.readouterr().out
    cli.main(["eval", f"--workdir={workdir}", "--task=pairs=2,vary=False", "--examples=4", "--format=json"])
    assert json.loads(capsys.readouterr().out)["eval/accuracy/pairs=2"] >= 0
    cli.main(["eval", f"--workdir={workdir}"])
    assert "wiped every segment" in capsys.readouterr().out
    assert (workdir / "accuracy.png").exists()
    cli.main(["generate", f"--workdir={workdir}", "--prompt=3 1 sep 4 eos 3 1 gen", "--max_tokens=2", "--temperature=0"])
    assert len(capsys.readouterr().out.removeprefix("3 1 sep 4 eos 3 1 gen").split()) == 2


@pytest.mark.parametrize("study", ["mqar", "mqar_b", "associative", "babilong"])
def test_a_step_of_the_config_file_holds_a_whole_example(study):
    config = configure(memtx.load_config(f"configs/task.py:task={study},memory=full"))
    data = make_source(config)
    assert next(data.stream()).reset_BP[:, 0].all()
    longest = [task.length for _, task in data._stages]
    per_call = data._task.block or config.data.segment
    assert max(longest) <= config.train.segments * per_call
