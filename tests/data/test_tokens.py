import numpy as np
import pytest

from memtx.cli.describe import describe
from memtx.config import Data
from memtx.data import tokens
from memtx.data.tokenizers import make_tokenizer
from memtx.data.tokens import tokenize
from memtx.errors import UserError


@pytest.mark.parametrize("name", ["bytes", "bpe:400"])
def test_every_document_is_its_tokens(small, cache, name):
    tok = make_tokenizer(name, small, cache)
    made = tokenize(small, tok, "train", cache)
    documents = dict(small.documents("train"))
    assert made.names == tuple(documents)
    assert [tok.decode(made.document(d)) for d in range(len(made.names))] == list(documents.values())
    assert made.length_D.tolist() == [len(tok.encode(text)) for text in documents.values()]


def test_tokens_are_made_once_and_mapped_not_read(small, cache, monkeypatch):
    tok = make_tokenizer("bytes", small, cache)
    first = tokenize(small, tok, "train", cache)
    monkeypatch.setattr(tokens, "_write", lambda *a: pytest.fail("made again"))
    second = tokenize(small, tok, "train", cache)
    assert isinstance(second.ids_N, np.memmap)
    assert np.array_equal(first.ids_N, second.ids_N)
    assert second.ids_N.dtype == np.uint16


def test_fingerprints_tell_splits_and_tokenizers_apart(small, cache):
    toks = [make_tokenizer(name, small, cache) for name in ("bytes", "bpe:400")]
    found = {tokenize(small, tok, split, cache).fingerprint for tok in toks for split in small.splits}
    assert len(found) == 6


def test_a_missing_split_is_a_user_error_and_leaves_nothing(small, cache, tmp_path):
    with pytest.raises(UserError, match="split"):
        tokenize(small, make_tokenizer("bytes", small, cache), "dev", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.suffix != ".lock"] == [tmp_path / "tokens"]


def test_describe_counts_what_is_there(small, folder, cache, texts):
    about = describe(Data(corpus=f"textdir:{folder}", tokenizer="bpe:400", cache=str(cache)))
    assert sum(split.documents for split in about.splits) == len(texts)
    assert sum(split.bytes for split in about.splits) == sum(len(text.encode()) for text in texts.values())
    assert all(split.longest_tokens <= split.tokens < split.bytes for split in about.splits)
    train = about.splits[0]
    lengths = {name: len(make_tokenizer("bpe:400", small, cache).encode(text)) for name, text in small.documents("train")}
    assert (train.longest, train.longest_tokens) == max(lengths.items(), key=lambda item: item[1])
    assert (about.path, about.vocab_size) == (str(small.path), 400)
