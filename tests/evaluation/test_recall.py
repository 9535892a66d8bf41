"""Accuracy and exact match are counted right, by slice, with memory carried and wiped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.evaluation.recall import make_recall, score
from memtx.evaluation.summary import recall_plot, recall_table
from memtx.runs.configure import configure
from memtx.runs.source import eval_examples
from memtx.sharding import Layout
from memtx.tasks import TASKS
from memtx.tasks.base import Example


class Finder:
    """In place of a model: it remembers the token after "K" and its key, and says it at every place."""

    values = 4

    def init_state(self, batch_size):
        return {"value": jnp.zeros(batch_size, jnp.int32), "since": jnp.full(batch_size, 9, jnp.int32)}

    def __call__(self, params, token_BT, state, seg):
        since = jnp.where(seg.reset_B, 9, state["since"])
        value = jnp.where(seg.reset_B, 0, state["value"])

        def step(carry, token_B):
            since, value = carry
            since = jnp.where(token_B == params["mark"], 0, since + 1)
            is_value = (since == 2) & (token_B >= 4) & (token_B < 8)
            value = jnp.where(is_value, token_B, value)
            return (since, value), value

        (since, value), said_TB = jax.lax.scan(step, (since, value), token_BT.T)
        return jax.nn.one_hot(said_TB.T, params["vocabulary"].shape[0]) * 20, {"value": value, "since": since}


@pytest.fixture(scope="module")
def found():
    config = configure(
        {
            "data": {"corpus": "task:needle", "segment": 16, "task": {"distances": [4, 40], "key_kinds": 4, "value_kinds": 4}},
            "eval": {"batch": 8, "examples": 50},
        }
    )
    task = TASKS["needle"](config.data.task)
    examples = [task.draw(0, "valid", index) for index in range(50)]
    params = {"mark": jnp.int32(task.tokenizer.vocab_size - 1), "vocabulary": jnp.zeros(task.tokenizer.vocab_size)}
    return make_recall(Finder(), examples, Layout())(params, eval_examples(task, config)), examples


def test_what_carries_its_memory_finds_the_needle_and_what_is_wiped_does_not(found):
    recall, examples = found
    assert recall.carried.accuracy == recall.carried.exact == 1
    assert recall.carried.by_slice == {"distance=4": 1.0, "distance=40": 1.0}
    assert recall.wiped.by_slice["distance=4"] == 1.0  # 16 before, so it lies in the segment of its query
    assert recall.wiped.by_slice["distance=40"] == 0.0
    share = np.mean([example.slices["distance"] == 4 for example in examples])
    assert recall.wiped.accuracy == pytest.approx(share)
    assert (recall.examples, recall.labels) == (50, 50)
    assert recall.carried.loss == pytest.approx(np.log(1 + (examples[0].token_L.max()) * np.exp(-20)), abs=1e-6)


def test_metrics_have_names_by_slice(found):
    recall, _ = found
    metrics = recall.metrics()
    assert metrics["eval/accuracy"] == metrics["eval/exact"] == 1
    assert metrics["eval/accuracy/distance=40"] == metrics["eval/exact/distance=40"] == 1
    assert metrics["eval/accuracy_wiped/distance=40"] == metrics["eval/exact_wiped/distance=40"] == 0
    assert {"eval/loss", "eval/loss_wiped", "eval/accuracy_wiped", "eval/exact_wiped"} <= set(metrics)


def test_the_summary_shows_both(found, tmp_path, capsys):
    from rich.console import Console

    recall, _ = found
    Console(width=100).print(recall_table(recall, "a title"))
    shown = capsys.readouterr().out
    assert f"{recall.wiped.accuracy:.4f}" in shown
    assert "distance=40" in shown
    recall_plot(recall, tmp_path / "plot.png", "a title")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_labels_that_are_not_scored_and_places_that_are_not_asked_do_not_count():
    label = np.asarray([-1, 3, 4, -1, 5], np.int32)
    examples = [
        Example(label, label, {"pairs": 2, "place": np.asarray(["a", "b", "a"])}, np.asarray([False, True, True])),
        Example(label, label, {"pairs": 3, "place": np.asarray(["a", "a", "a"])}),
    ]
    right = np.asarray([[True, False, True, True, True], [True, True, False, False, True]])
    nll = np.asarray([[9, 1, 2, 9, 3], [9, 1, 1, 9, 1]], np.float32)
    found = score(examples, right, nll)
    assert found.accuracy == 4 / 5
    assert found.exact == 1 / 2
    assert found.loss == 9 / 6  # all labels
    assert found.by_slice == {"pairs=2": 1.0, "pairs=3": 2 / 3, "place=a": 3 / 4, "place=b": 1.0}
    assert found.exact_by_slice == {"pairs=2": 1.0, "pairs=3": 0.0}
