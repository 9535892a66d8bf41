"""A model of spans learns where answers are. The loss and its gradient equal a definition by loops."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memtx
from memtx.data import tokenizers
from memtx.data.framed import frame
from memtx.evaluation.losses import cross_entropy, labels_of, logits_of_labels
from memtx.evaluation.recall import Recall
from memtx.evaluation.spans import best_span
from memtx.evaluation.text import exact_match
from memtx.runs.evaluate import evaluate_run
from memtx.tasks.base import FIRST, LAST
from memtx.tasks.spans import Spans

VOCABULARY = Path(__file__).parents[1] / "golden" / "hf" / "vocabularies" / "wordpiece"
WORDS = ["ships", "keeper", "counted", "year", "after", "wrote", "they", "came", "The", "He"]
SIZES = {"width": 32, "num_heads": 2, "ff_dim": 64, "post_norm": True, "norm": "layer", "position": "learned", "tied": True}
MODEL = {"stacks": ((("bidirectional",), 1),), "output": "span", "token_types": 2, "embed_norm": True}


def line(rng, length: int = 12) -> dict:
    """The answer is the word of the question."""
    words = rng.permutation(WORDS)[: min(length, len(WORDS))].tolist()
    answer = words[int(rng.integers(len(words)))]
    return {"context": " ".join(words) + ".", "question": f"{answer}?", "answer": answer}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 64), ("valid", 16), ("test", 5)):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps(line(rng)) for _ in range(count)))
    return tmp_path


def task(path, **settings) -> Spans:
    return Spans(Spans.Config(path=str(path), tokenizer=f"pretrained:{VOCABULARY}", **settings))


def config(folder, tokens: int, **changes):
    return memtx.get_config(
        model=SIZES | MODEL | changes,
        data={
            "corpus": "task:spans",
            "task": {"path": str(folder), "tokenizer": f"pretrained:{VOCABULARY}", "tokens": tokens},
            "segment": tokens,
        },
        train={"steps": 150, "batch": 16, "segments": 1},
        eval={"every": 0, "batch": 8, "examples": 16},
        optim={"lr": 1e-2, "warmup": 10, "weight_decay": 0.0},
    )


def one(tmp_path, **row) -> Spans:
    """The task of a single line in each split."""
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    return task(tmp_path)


# --- the loss -----------------------------------------------------------------------------------------------------------------


def by_loops(logits_BT2, label_BT, z_loss=0.0, smoothing=0.0):
    """The sum over rows and ends of -log softmax over the tokens of the text, in float64."""
    total = 0.0
    for logits_T2, label_T in zip(logits_BT2, label_BT, strict=True):
        text = [t for t in range(len(label_T)) if label_T[t] >= 0]
        for end, bit in ((0, FIRST), (1, LAST)):
            for t in text:
                if label_T[t] & bit:
                    log_z = np.log(sum(np.exp(logits_T2[u, end]) for u in text))
                    nll = log_z - logits_T2[t, end]
                    uniform = log_z - np.mean([logits_T2[u, end] for u in text])
                    total += (1 - smoothing) * nll + smoothing * uniform + z_loss * log_z**2
    return total


LABELS = np.asarray([[-1, -1, 0, 1, 0, 2, -1], [-1, 0, 3, 0, 0, -1, -1], [-1] * 7], np.int32)  # the last row is padding


@pytest.mark.parametrize(
    "more", [{"z_loss": 0.1}, *(pytest.param(more, marks=pytest.mark.thorough) for more in ({}, {"label_smoothing": 0.2}))]
)
def test_the_loss_and_its_gradient_are_those_of_the_definition(more):
    logits = np.random.default_rng(0).normal(size=(3, 7, 2)) * 3

    def loss(logits):
        labelled = jnp.asarray(LABELS) >= 0
        labels = labels_of(jnp.asarray(LABELS), labelled, True)
        return cross_entropy(logits_of_labels(logits, labelled, True), *labels, **more)[0]

    def reference(logits):
        return by_loops(logits, LABELS, more.get("z_loss", 0.0), more.get("label_smoothing", 0.0))

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits, jnp.float32))
    assert value == pytest.approx(reference(logits), rel=1e-5)
    numeric = np.zeros_like(logits)
    for at in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[at] = 1e-5
        numeric[at] = (reference(logits + step) - reference(logits - step)) / 2e-5
    np.testing.assert_allclose(gradient, numeric, atol=1e-4)
    assert not gradient[2].any()
    assert not gradient[0, [0, 1, 6]].any()  # the question and the padding
    assert gradient[0, 2:6].all()


def test_bfloat16_logits_are_compared_in_float32():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(3, 7, 2)), jnp.bfloat16)
    assert logits_of_labels(logits, jnp.asarray(LABELS) >= 0, True).dtype == jnp.float32


def test_the_targets_are_the_ends_of_the_spans():
    target, mask = labels_of(LABELS[:, None], LABELS[:, None] >= 0, True)  # with a further axis, as in a step
    assert target[:2, 0].tolist() == [[3, 5], [2, 2]]
    assert mask[:, 0].tolist() == [[True, True], [True, True], [False, False]]


def test_the_best_span_is_the_best_of_all_pairs_that_are_allowed():
    rng = np.random.default_rng(0)
    for most in (1, 2, 5, 30):
        first, last = rng.normal(size=(2, 9)).astype(np.float32)
        pairs = [(i, j) for i in range(9) for j in range(i, min(9, i + most))]
        best = max(pairs, key=lambda pair: first[pair[0]] + last[pair[1]])
        assert best_span(first, last, most) == (*best, pytest.approx(float(first[best[0]] + last[best[1]])))


# --- examples -----------------------------------------------------------------------------------------------------------------


def test_labels_mark_the_answer_in_the_context_alone(tmp_path):
    context = "The keeper counted ships. They came after the keeper wrote."
    found = one(tmp_path, context=context, question="keeper?", answer="keeper wrote", start=46)
    example = found.draw(0, "train", 0)
    assert found.spans
    assert (example.label_L[example.type_L == 0] == -1).all()
    assert example.label_L[-1] == -1  # [SEP]
    marks = example.label_L[example.label_L >= 0].tolist()
    assert sorted(mark for mark in marks if mark) == [FIRST, LAST]
    at = [int(np.flatnonzero(example.label_L == mark)[0]) for mark in (FIRST, LAST)]
    whole = frame(found.tokenizer, "keeper?", context)
    assert (whole.ids_T == example.token_L).all()
    assert context[whole.span_T2[at[0], 0] : whole.span_T2[at[1], 1]] == "keeper wrote"
    first = one(tmp_path, context=context, question="keeper?", answer="keeper").draw(0, "valid", 0)
    at = int(np.flatnonzero(first.label_L == FIRST + LAST)[0])  # one token, the first occurrence
    assert whole.span_T2[at].tolist() == [4, 10]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "x"}, "line 1: the answer 'x' is not in the context$"),
        ({"start": 1}, "line 1: the answer 'ships' is not in the context at character 1$"),
        ({"start": -1}, "line 1: start must be the first character of the answer in the context, from 0, not '-1'"),
        ({"start": "two"}, "line 1: start must be the first character .* not 'two'"),
        ({"start": 10**30}, "not in the context at character"),
        ({"answer": ""}, 'line 1: no text at "answer"'),
        ({"answer": " "}, "gives no tokens for the answer"),
    ],
)
def test_a_faulty_line_is_one_line_of_error(tmp_path, row, message):
    with pytest.raises(memtx.UserError, match=message) as error:
        one(tmp_path, **{"context": "counted ships after", "question": "ships?", "answer": "ships"} | row)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("position", "least"), [(0, 1), (30, 6), (59, 1)])
def test_long_contexts_are_cut_to_windows_with_the_answer(tmp_path, position, least):
    rng = np.random.default_rng(0)
    words = [WORDS[int(rng.integers(9))] for _ in range(60)]
    before = " ".join([*words[:position], ""])
    row = {"context": before + " ".join(["He", *words[position:]]), "question": "He?", "answer": "He", "start": len(before)}
    one(tmp_path, **row)
    found = task(tmp_path, tokens=20)
    assert found.length == 20
    examples = [found.draw(0, "train", epoch) for epoch in range(30)]
    for example in examples:
        assert len(example.token_L) == len(example.label_L) == len(example.type_L) == 20
        assert found.tokenizer.decode(example.token_L[example.label_L > 0]).lower() == "he"
    assert len({example.token_L.tobytes() for example in examples}) >= least
    assert found.draw(0, "valid", 0).token_L.tolist() == found.draw(7, "valid", 0).token_L.tolist()


def test_sizes_that_cannot_be_read_are_refused(folder, tmp_path):
    with pytest.raises(memtx.UserError, match="leaves no room for its text in 3"):
        task(folder, tokens=3)
    with pytest.raises(memtx.UserError, match=r"have \d+ tokens, which one call must read: set data\.segment="):
        memtx.train(
            {**config(folder, 64).to_dict(), "data": {**config(folder, 64).data.to_dict(), "segment": 8}}, tmp_path / "r"
        )
    with pytest.raises(memtx.UserError, match=r"the labels are spans of a text; set model\.output=span"):
        memtx.train(config(folder, 64, output="classes"), tmp_path / "run")
    with pytest.raises(memtx.UserError, match="cannot say where tokens are in a text"):
        Spans(Spans.Config(path=str(folder)))


def test_windows_cover_a_text_and_overlap():
    tokenizer = tokenizers.pretrained(VOCABULARY)
    whole = frame(tokenizer, "ships?", " ".join(WORDS * 9), 24)
    windows = whole.windows(24)
    assert all(len(window.ids_T) == 24 for window in windows)
    seen = [tuple(span) for window in windows for span in window.span_T2[window.text].tolist()]
    assert list(dict.fromkeys(seen)) == [tuple(span) for span in whole.span_T2[whole.text].tolist()]
    assert len(seen) > 1.5 * len(set(seen))
    assert whole.windows(1000) == [whole]


# --- training -----------------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_tiny_model_learns_to_find_words(folder, tmp_path):
    done = memtx.train(config(folder, 64), tmp_path / "run", say=lambda *_: None)
    assert isinstance(done.evaluation, Recall)
    assert done.evaluation.carried.accuracy > 0.9
    assert done.evaluation.labels == 2 * 16
    assert done.evaluation.text["exact_match"] > 90
    assert done.evaluation.text["f1"] >= done.evaluation.text["exact_match"]
    assert "eval/exact_match" in done.evaluation.metrics()
    result, _ = evaluate_run(tmp_path / "run", split="test", examples=5)
    assert isinstance(result, Recall)
    assert result.carried.exact > 0.5
    loaded, rng = memtx.load(tmp_path / "run"), np.random.default_rng(9)
    rows = [line(rng) for _ in range(4)]
    asked, texts, answers = ([row[key] for row in rows] for key in ("question", "context", "answer"))
    assert exact_match([found.text for found in memtx.answer(loaded, asked, texts)], answers) > 70
    long, seen = ["The year after, he came. " * 20 + text for text in texts], []
    for text, found in zip(long, memtx.answer(loaded, asked, long, batch=3, progress=lambda *n: seen.append(n)), strict=True):
        assert text[found.start : found.end] == found.text
    assert seen[-1][0] == seen[-1][1] > 4 * len(long)
    assert memtx.answer(loaded, ["ships?"], [" "])[0].text == ""
    assert len(memtx.answer(loaded, asked[:1], long[:1], most=1)[0].text.split()) == 1


@pytest.mark.thorough
def test_what_cannot_answer_is_one_line(folder, tmp_path):
    c = config(folder, 64)
    c.train.steps = 1
    memtx.train(c, tmp_path / "run", say=lambda *_: None)
    loaded = memtx.load(tmp_path / "run")
    for given, message in (
        ({"texts": []}, "lists of strings of the same length"),
        ({"questions": "a"}, "lists of strings"),
        ({"most": 0}, "must be at least 1"),
        ({"tokens": 4}, "leaves no room for its text in 4"),
        ({"tokens": 10**6}, "8192 learned positions"),
    ):
        with pytest.raises(memtx.UserError, match=message):
            memtx.answer(**{"loaded": loaded, "questions": ["The keeper?"], "texts": ["ships"]} | given)
    other = dataclasses.replace(loaded, lm=memtx.build(dataclasses.replace(loaded.lm.model, output="classes")))
    with pytest.raises(memtx.UserError, match=r"model\.output=classes gives no spans"):
        memtx.answer(other, ["a"], ["b"])


@pytest.mark.thorough
def test_gradients_accumulate_to_those_of_the_whole_batch(folder, tmp_path):
    losses = []
    for accumulate in (1, 4):
        c = config(folder, 64)
        c.train.update({"steps": 3, "accumulate": accumulate, "log_every": 1})
        memtx.train(c, tmp_path / str(accumulate), say=lambda *_: None)
        lines = (tmp_path / str(accumulate) / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(entry)["train/loss"] for entry in lines if "train/loss" in entry])
    np.testing.assert_allclose(*losses, rtol=1e-4)
