import json
import subprocess
import sys

import numpy as np
import pytest

from memtx.data import tokenizers
from memtx.data.tokenizers import make_tokenizer
from memtx.errors import UserError

AWKWARD = ["", "plain", " two  spaces\r\n\ttab", "Ünïcödé 🦜 日本語", "<bos> <|endoftext|>", "\x00\x7f\u0301\ufffd", "a" * 3000]


@pytest.fixture(scope="module", params=["bytes", "bpe:400"])
def tok(request, small, cache):
    return make_tokenizer(request.param, small, cache)


@pytest.mark.parametrize("text", AWKWARD)
def test_text_comes_back_and_its_tokens_bytes_add_up(tok, text):
    ids = tok.encode(text)
    assert ids.dtype == np.int32
    assert tok.decode(ids) == text
    assert tok.bytes_V[ids].sum() == len(text.encode())


def test_texts_never_give_a_special_and_specials_have_no_bytes(tok, texts):
    assert max(tok.encode(text).max() for text in texts.values()) < tok.bos == tok.vocab_size - 8
    assert not tok.bytes_V[tok.bos :].any()
    assert tok.bytes_V.shape == (tok.vocab_size,)
    assert tok.decode([tok.bos, *tok.encode("ab"), tok.vocab_size - 1]) == "ab"


def test_half_a_character_decodes_to_a_replacement(tok):
    ids = tok.encode("日")
    assert tok.decode(ids[:1]) == "\ufffd" or len(ids) == 1


def test_the_byte_tokenizer_is_bytes_and_eight_specials(small, cache):
    tok = make_tokenizer("bytes", small, cache)
    assert (tok.vocab_size, tok.bos) == (264, 256)
    assert tok.encode("é").tolist() == list("é".encode())
    assert tok.encode("\ud800").tolist() == list(b"?")


def test_a_bpe_is_shorter_than_bytes_and_has_the_size_asked_for(small, cache, texts):
    tok, more = (make_tokenizer(name, small, cache) for name in ("bpe:400", "bpe:2000"))
    text = "".join(texts.values())
    assert len(more.encode(text)) < len(tok.encode(text)) < 0.7 * len(text)
    assert tok.vocab_size == 400
    assert tok.fingerprint != more.fingerprint


def test_a_bpe_learns_from_the_train_split_only(small, tmp_path, monkeypatch):
    asked = []
    documents = type(small).documents
    monkeypatch.setattr(type(small), "documents", lambda self, split: asked.append(split) or documents(self, split))
    make_tokenizer("bpe:300", small, tmp_path)
    assert asked == ["train"]


def test_training_gives_the_same_tokenizer_in_another_process(small, folder, cache, tmp_path):
    script = "import sys; from memtx.data import corpora, tokenizers; c = corpora.load_corpus(*sys.argv[1:]);"
    script += "print(tokenizers.make_tokenizer('bpe:400', c, sys.argv[2]).fingerprint)"
    out = subprocess.check_output([sys.executable, "-c", script, f"textdir:{folder}", str(tmp_path)], text=True)
    assert out.strip() == make_tokenizer("bpe:400", small, cache).fingerprint


def test_a_saved_tokenizer_is_loaded_the_same(tok, tmp_path):
    tok.save(tmp_path / "tokenizer.json")
    back = tokenizers.load(tmp_path / "tokenizer.json")
    assert (back.name, back.vocab_size, back.bos, back.fingerprint) == (tok.name, tok.vocab_size, tok.bos, tok.fingerprint)
    assert all(np.array_equal(back.encode(text), tok.encode(text)) for text in AWKWARD)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps({"name": "bpe:9", "vocab_size": 9, "model": {"x": 1}})])
def test_a_damaged_tokenizer_is_a_user_error(tmp_path, content):
    if content:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        tokenizers.load(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("name", "says"),
    [("byte", "did you mean bytes"), ("bpe", "bpe:4096"), ("bpe:12", "264"), ("bpe:x", "264"), ("bytes:3", "no size")],
)
def test_unknown_tokenizers_are_user_errors(small, cache, name, says):
    with pytest.raises(UserError, match=says):
        make_tokenizer(name, small, cache)
