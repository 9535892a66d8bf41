"""Bits per byte are those of a plain loop, with memory carried and with memory wiped."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.core import segment
from memtx.data.corpora import load_corpus
from memtx.data.tokenizers import make_tokenizer
from memtx.data.tokens import tokenize
from memtx.evaluation.perplexity import make_evaluator
from memtx.evaluation.summary import plot, table
from memtx.runs.configure import build
from memtx.runs.source import eval_batches
from memtx.sharding import Layout
from tests.runs import tiny


@pytest.fixture(scope="module")
def evaluated(root):
    config = tiny(root, "window", eval={"segments": 0, "batch": 4})
    text = load_corpus(config.data.corpus, config.data.cache)
    tok = make_tokenizer("bytes", text, config.data.cache)
    tokens = tokenize(text, tok, "valid", config.data.cache)
    lm = build(config.model, vocab_size=tok.vocab_size)
    params = lm.init(jax.random.key(0))
    evaluate = make_evaluator(lm, tok.bytes_V, Layout())
    return lm, params, tokens, evaluate(params, eval_batches(tokens, config, Layout())), config


@functools.cache
def jitted(lm):
    return jax.jit(lm.__call__)


def nll_of(lm, params, document, bos, *, wiped: bool, time: int) -> np.ndarray:
    """One document, one segment after another, by the model alone."""
    inputs, targets = np.concatenate([[bos], document]), np.concatenate([document, [bos]])
    state, out = lm.init_state(1), []
    for start in range(0, len(inputs), time):
        part = inputs[start : start + time]
        padded = np.pad(part, (0, time - len(part)))[None].astype(np.int32)
        seg = segment(start + jnp.arange(time)[None], length_B=[len(part)], reset_B=[wiped])
        logits, state = jitted(lm)(params, padded, state, seg)
        p = np.asarray(jax.nn.log_softmax(logits[0]))[: len(part)]
        out.append(-np.take_along_axis(p, targets[start : start + time, None].astype(np.int64), -1)[:, 0])
    return np.concatenate(out)


@pytest.mark.parametrize("wiped", [False, True])
def test_bits_per_byte_are_those_of_one_document_after_another(evaluated, wiped):
    lm, params, tokens, evaluation, _ = evaluated
    documents = [tokens.document(d) for d in range(len(tokens.names))]
    nll = [nll_of(lm, params, d, tokens.bos, wiped=wiped, time=8) for d in documents]
    found = evaluation.wiped if wiped else evaluation.carried
    assert found.bytes == sum(map(len, documents))
    assert found.tokens == found.bytes + len(documents)
    assert found.bits_per_byte == pytest.approx(sum(n.sum() for n in nll) / np.log(2) / found.bytes, rel=1e-5)
    places = [np.concatenate([n[i::8] for n in nll]).mean() for i in range(8)]
    np.testing.assert_allclose(found.loss_by_place, places, rtol=1e-4)


def test_carried_and_wiped_differ_only_after_the_first_segment(evaluated):
    *_, evaluation, _ = evaluated
    carried, wiped = evaluation.carried, evaluation.wiped
    assert carried.bits_per_byte != wiped.bits_per_byte
    first = [i for i, position in enumerate(carried.position) if position < 7]
    assert first
    for i in first:
        assert carried.loss_by_position[i] == pytest.approx(wiped.loss_by_position[i], rel=1e-5)


def test_the_summary_shows_both(evaluated, tmp_path, capsys):
    *_, evaluation, _ = evaluated
    from rich.console import Console

    Console(width=100).print(table(evaluation, "a title"))
    shown = capsys.readouterr().out
    assert f"{evaluation.carried.bits_per_byte:.4f}" in shown
    assert f"{evaluation.wiped.bits_per_byte:.4f}" in shown
    plot(evaluation, tmp_path / "plot.png", "a title")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert json.dumps(evaluation.metrics())
