"""Tokenizers of pretrained models read their own files as Hugging Face does (goldens: tests/golden/hf/vocabularies.py)."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

from memtx.data import tokenizers
from memtx.data.tokenizers import check_fits
from memtx.errors import UserError

FOLDER = Path(__file__).parents[1] / "golden/hf/vocabularies"
GOLDEN = json.loads((FOLDER / "tokens.json").read_text())
TEXTS = GOLDEN.pop("texts")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"


def load(family):
    return tokenizers.pretrained(FOLDER / family)


@pytest.mark.parametrize("family", GOLDEN)
def test_a_folder_gives_the_tokens_that_hugging_face_gives(family):
    tok = load(family)
    for text, golden in zip(TEXTS, GOLDEN[family], strict=True):
        if family == "llama" and text.startswith(" "):
            continue  # HF drops a blank there; SentencePiece, which the models were trained with, does not (below)
        assert tok.encode(text).tolist() == golden["ids"], text
        assert tok.encode(text).dtype == np.int32
        assert tok.frame(text)[0].tolist() == golden["framed"], text
    assert tok.encode(TEXTS[0]).tolist() != GOLDEN[family][1]["ids"]


@pytest.mark.parametrize(("family", "extra"), [("byte_bpe", 0), ("llama", 1)])
def test_where_a_text_comes_back_its_tokens_bytes_add_up(family, extra):
    tok = load(family)
    for text in filter(None, TEXTS):
        ids = tok.encode(text)
        assert tok.decode(ids) == text
        assert tok.bytes_V[ids].sum() == len(text.encode()) + extra  # SentencePiece puts a blank before the first word
        assert b"".join(tok.pieces[i] for i in ids)[extra:] == text.encode()


def test_wordpiece_counts_no_bytes_that_may_not_have_been_there():
    tok = load("wordpiece")
    ids = tok.encode("the ship, the log")
    assert tok.decode(ids) == "the ship, the log"
    assert tok.bytes_V[ids].sum() == len("theship,thelog")


def test_the_token_between_documents_and_those_that_end_a_text():
    ids = {name: (load(name).bos, load(name).eos) for name in GOLDEN}
    assert ids == {"wordpiece": (2, (2, 3)), "byte_bpe": (0, (0,)), "t5": (1, (1,)), "llama": (1, (1, 2))}


def test_a_pair_is_framed_with_types():
    ids, types = load("wordpiece").frame("the log", "the ship")
    assert [ids[0], ids[-1], (ids == 3).sum()] == [2, 3, 2]
    assert types.tolist() == sorted(types) == [0] * (types == 0).sum() + [1] * (types == 1).sum()
    assert types[-1] == 1


def test_t5_has_its_extra_tokens_last_to_first():
    tok = load("t5")
    size = tok.vocab_size
    assert [tok.specials[f"<extra_id_{i}>"] for i in range(4)] == [size - 1, size - 2, size - 3, size - 4]
    assert tok.encode("the <extra_id_0> ship", specials=True).tolist().count(size - 1) == 1
    assert tok.decode([size - 1, *tok.encode("ships")]) == "ships"


@pytest.mark.parametrize("family", GOLDEN)
def test_a_special_in_a_text_is_text_unless_asked_for(family):
    tok = load(family)
    name, id = next(iter(tok.specials.items()))
    assert id not in tok.encode(f"a {name} b")
    assert id in tok.encode(f"a {name} b", specials=True)


@pytest.mark.parametrize("family", GOLDEN)
def test_a_saved_tokenizer_is_loaded_the_same(family, tmp_path):
    tok = load(family)
    tok.save(tmp_path / "tokenizer.json")
    back = tokenizers.load(tmp_path / "tokenizer.json")
    same = ("name", "vocab_size", "bos", "eos", "specials", "fingerprint", "pieces")
    assert all(getattr(back, name) == getattr(tok, name) for name in same)
    for text in TEXTS:
        assert back.frame(text)[0].tolist() == tok.frame(text)[0].tolist()


def test_tokenizer_json_is_read_and_its_truncation_and_padding_are_not_ours(tmp_path):
    tok = load("wordpiece")
    stored = json.loads(json.loads((_saved(tok, tmp_path / "saved.json")).read_text())["huggingface"])
    stored["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    stored["padding"] = {
        "strategy": {"Fixed": 99},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    back = tokenizers.pretrained(tmp_path)
    assert back.frame(TEXTS[0])[0].tolist() == tok.frame(TEXTS[0])[0].tolist()


def test_small_files_say_how_a_chat_is_written(tmp_path):
    for file in (FOLDER / "byte_bpe").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = {"chat_template": [{"name": "default", "template": TEMPLATE}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert tokenizers.pretrained(tmp_path).chat_template == TEMPLATE
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert tokenizers.pretrained(tmp_path).chat_template == "{{ messages }}"


def test_a_gguf_of_byte_level_bpe(tmp_path):
    tok = load("byte_bpe")
    vocab = json.loads((FOLDER / "byte_bpe/vocab.json").read_text())
    merges = (FOLDER / "byte_bpe/merges.txt").read_text().splitlines()[1:]

    def write(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list([*sorted(vocab, key=vocab.get), "<|im_start|>", "<|im_end|>"])
        writer.add_token_types([3] + [1] * (len(vocab) - 1) + [3, 3])
        writer.add_token_merges(merges)
        writer.add_eos_token_id(len(vocab) + 1)
        writer.add_chat_template(TEMPLATE)

    got = tokenizers.pretrained(_gguf(tmp_path, write))
    assert [got.encode(text).tolist() for text in TEXTS[2:4]] == [tok.encode(text).tolist() for text in TEXTS[2:4]]
    assert tok.decode([got.encode("1984").tolist()[0]]) == "1"  # smollm cuts numbers into digits
    assert (got.bos, got.eos, got.chat_template) == (0, (0, len(vocab) + 1), TEMPLATE)
    assert got.encode("<|im_start|>", specials=True).tolist() == [len(vocab)]
    assert len(got.encode("<|im_start|>")) > 1


def test_a_gguf_of_sentencepiece(tmp_path):
    tok = load("llama")
    model = proto.ModelProto()
    model.ParseFromString((FOLDER / "llama/tokenizer.model").read_bytes())

    def write(writer):
        writer.add_tokenizer_model("llama")
        writer.add_token_list([piece.piece for piece in model.pieces])
        writer.add_token_scores([piece.score for piece in model.pieces])
        writer.add_token_types([piece.type for piece in model.pieces])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)

    got = tokenizers.pretrained(_gguf(tmp_path, write))
    for text in TEXTS:
        assert got.frame(text)[0].tolist() == tok.frame(text)[0].tolist()
    assert got.pieces == tok.pieces


def _gguf(folder, write) -> Path:
    path = folder / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    write(writer)
    for part in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{part}_to_file")()
    writer.close()
    return path


def _saved(tok, path) -> Path:
    tok.save(path)
    return path


def test_a_tokenizer_that_does_not_belong_to_a_model_is_a_user_error():
    tok = load("llama")
    check_fits(tok, tok.vocab_size)
    check_fits(tok, tok.vocab_size + 10)
    for rows in (tok.vocab_size - 1, 2 * tok.vocab_size):
        with pytest.raises(UserError, match="came with the weights"):
            check_fits(tok, rows)


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "x.gguf"])
def test_damaged_files_are_user_errors(tmp_path, file):
    (tmp_path / file).write_bytes(b"\x00{broken")
    with pytest.raises(UserError, match=rf"{file}.*cannot|cannot read the tokenizer .*{file}"):
        tokenizers.pretrained(tmp_path / file if file.endswith("gguf") else tmp_path)


def test_a_folder_without_a_tokenizer_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"none of tokenizer\.json"):
        tokenizers.pretrained(tmp_path)
    with pytest.raises(UserError, match="give a folder"):
        tokenizers.pretrained(tmp_path / "absent")


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(UserError, match=r"pip install '\.\[hf\]'"):
        load("llama")


@pytest.mark.parametrize("file", ["t5/spiece.model", "llama/tokenizer.model"])
def test_sentencepiece_itself_agrees(file):
    model = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / file))
    for text in TEXTS:
        assert tokenizers.pretrained((FOLDER / file).parent).encode(text).tolist() == model.encode(text)
