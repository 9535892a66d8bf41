"""Beyond a table of learned positions: an error, or NaN within a compiled program, and never the last row again."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memtx
from memtx.core import segment
from memtx.data import tokenizers
from memtx.data.tokens import Tokens
from memtx.errors import UserError
from memtx.models.settings import complete_model
from memtx.pretrained import gpt2, t5
from memtx.runs.configure import build
from memtx.runs.source import make_source

SIZES = {"width": 16, "num_heads": 2, "ff_dim": 32}
LEARNED = {**SIZES, "stacks": ((("full",), 1),), "position": "learned", "max_position": 12}


@pytest.fixture(scope="module")
def model():
    lm = build(memtx.get_config(model={**LEARNED, "vocab_size": 264}))
    return lm, lm.init(jax.random.key(0))


def test_a_call_beyond_the_table_is_an_error(model):
    lm, params = model
    tokens, fresh = np.arange(13)[None], lm.init_state(1)
    padded = segment(tokens, np.array([12]))  # padding may go beyond
    logits, state = lm(params, tokens, fresh, padded)
    assert np.isfinite(logits[:, :12]).all()
    with pytest.raises(UserError, match="the model has 12 learned positions, too few for a text of 13 tokens"):
        lm(params, tokens, fresh)
    with pytest.raises(UserError, match="too few for a text of 13 tokens"):
        lm(params, tokens[:, 12:], state)


def test_within_a_program_the_text_beyond_is_no_number_and_no_other(model):
    lm, params = model
    seg = segment(jnp.stack([jnp.arange(3), jnp.arange(10, 13)]))
    logits, _ = jax.jit(lm.__call__)(params, np.zeros((2, 3), int), lm.init_state(2), seg)
    assert np.isfinite(logits[0]).all()
    assert np.isnan(logits[1, 2]).all()


def test_generation_ends_before_the_table_does(model):
    lm, params = model
    tokenizer = tokenizers.byte_tokenizer()
    write = lambda prompt, **more: memtx.complete(lm, params, tokenizer, [prompt], sampling=memtx.GREEDY, **more)  # noqa: E731
    done = write("abcd")  # 5 tokens with bos
    assert int(done.state.position_B[0]) <= 12
    assert write("abcd", max_tokens=7).texts == done.texts
    with pytest.raises(UserError, match="5 tokens were read and 8 are to be written: set max_tokens to 7 or less"):
        write("abcd", max_tokens=8)
    with pytest.raises(UserError, match="12 learned positions, but 21 tokens were read: give a shorter prompt"):
        write("a" * 20)
    with pytest.raises(UserError, match="give a shorter prompt, or begin without the memory"):
        write("a", state=write("abcd", max_tokens=7).state)


def config(corpus, **data):
    model = {**LEARNED, "memory": {}}
    model.pop("memory")
    return memtx.get_config(
        model=model,
        data={"corpus": corpus, "segment": 4, **data},
        train={"steps": 1, "batch": 2, "segments": 1},
        eval={"every": 0, "batch": 2, "segments": 4, "examples": 2, "sample_tokens": 0},
    )


def test_documents_longer_than_the_table_are_refused_or_cut(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.txt").write_text("abcdefghij" * (i + 2))
    cache = {"cache": str(tmp_path / "cache")}
    with pytest.raises(UserError, match=r"12 learned positions .*: set data.document_tokens=12 to cut documents"):
        memtx.train(config(f"textdir:{folder}", **cache), tmp_path / "run", say=lambda *_: None)
    assert not (tmp_path / "run").exists()
    data = make_source(memtx.configure(config(f"textdir:{folder}", document_tokens=12, **cache)))
    data.check(build(data.config.model, vocab_size=data.tokenizer.vocab_size))
    stream = data.stream()
    assert max(int(next(stream).position_BPT.max()) for _ in range(20)) == 11


def test_cut_documents_keep_all_tokens():
    tokens = Tokens(np.arange(20), np.array([0, 7, 7, 12, 20]), ("a", "b", "c", "d"), 0, "x")
    cut = tokens.cut(5)
    assert [cut.document(d).tolist() for d in range(len(cut.names))] == [
        [0, 1, 2, 3, 4],
        [5, 6],
        [],
        [7, 8, 9, 10, 11],
        [12, 13, 14, 15, 16],
        [17, 18, 19],
    ]
    assert cut.names == ("a", "a", "b", "c", "d", "d")
    assert cut.fingerprint != tokens.fingerprint


def test_examples_longer_than_the_table_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": "a" * (10 + i), "label": "xy"[i % 2]}) for i in range(8)))
    whole = config("task:labelled", task={"path": str(path)})
    whole.eval.examples = 1
    whole.model.update({"output": "classes", "pool": "mean", "stacks": ((("bidirectional",), 1),)})
    data = make_source(memtx.configure(whole))
    lm = build(data.config.model, vocab_size=data.tokenizer.vocab_size)
    with pytest.raises(UserError, match=r"a text has 18 tokens, .* 12 learned positions .*: cut texts \(data.task.tokens=12"):
        data.check(lm)


def test_gpt2_says_how_many_positions_it_has():
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 264, "layer_norm_epsilon": 1e-5, "n_positions": 12}
    lm = build(complete_model(gpt2.model(sizes, 2048)))
    with pytest.raises(UserError, match="the model has 12 learned positions, but 14 tokens were read"):
        memtx.complete(lm, lm.init(jax.random.key(0)), tokenizers.byte_tokenizer(), ["a" * 13])


@pytest.mark.thorough
def test_t5_reads_sources_longer_than_n_positions():
    """Positions are relative: the first tokens of a source of 600 affect the output."""
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 264, "n_positions": 512}
    lm = build(complete_model(t5.model(sizes, 2048)))
    params = lm.init(jax.random.key(0))
    source_S = np.full(600, 7)
    read = jax.jit(lm.encode)
    state = read(params, source_S[None], lm.init_state(1))
    other = read(params, np.r_[9, source_S[1:]][None], lm.init_state(1))
    k = [jax.tree.leaves(s.body) for s in (state, other)]
    assert any(np.abs(np.asarray(a, float) - np.asarray(b, float)).max() > 0 for a, b in zip(*k, strict=True))
    with pytest.raises(UserError, match="context=2049, in `memtx generate` --context=2049"):
        lm.check_reads(2049)
    lm.check_reads(2048)
