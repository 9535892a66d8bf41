"""The small files beside a vocabulary have the same meaning as in transformers (goldens: tests/golden/hf/vocabularies.py)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from memtx.data import tokenizers
from memtx.data.tokenizers import check_fits
from memtx.errors import UserError
from memtx.generate import chat

FOLDER = Path(__file__).parents[1] / "golden/hf/vocabularies"
GOLDEN = json.loads((FOLDER / "settings.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}
SIZES = {"byte_bpe": 400, "wordpiece": 266, "llama": 400, "t5": 124}
TOOL = {"content": "<tool>", "lstrip": False, "rstrip": False, "normalized": True, "single_word": False, "special": False}


def folder(path: Path, family: str, files: dict | None = None) -> Path:
    shutil.copytree(FOLDER / family, path, dirs_exist_ok=True)
    for file, content in (files or {}).items():
        (path / file).write_text(json.dumps(content))
    return path


def added(family: str, *contents: str, by: int = 0, **flags) -> dict:
    tokens = {str(SIZES[family] + by + i): TOOL | {"content": content, **flags} for i, content in enumerate(contents)}
    extra = {"tokenizer_class": "T5Tokenizer", "extra_ids": 4} if family == "t5" else {}
    return {"tokenizer_config.json": {"added_tokens_decoder": tokens, **extra}}


@pytest.mark.parametrize("name", CASES)
def test_a_folder_gives_the_tokens_and_texts_that_transformers_gives(name, tmp_path):
    case = CASES[name]
    tok = tokenizers.pretrained(folder(tmp_path, case["family"], case["files"]))
    assert tok.vocab_size == case["size"]
    for text, golden in zip(GOLDEN["texts"], case["tokens"], strict=True):
        assert tok.encode(text, specials=True).tolist() == golden["ids"], text
        assert tok.decode(golden["ids"]) == golden["back"], text
    assert tok.frame(GOLDEN["texts"][0])[0].tolist() == case["tokens"][0]["framed"]


@pytest.mark.parametrize("name", CASES)
def test_a_special_that_a_text_spells_out_is_text_and_other_added_tokens_are_tokens(name, tmp_path):
    case = CASES[name]
    tok = tokenizers.pretrained(folder(tmp_path, case["family"], case["files"]))
    found = {id for text in GOLDEN["texts"] for id in tok.encode(text).tolist()}
    named = {id for content, id in tok.specials.items() if content.startswith("<")}
    asked = {id for golden in case["tokens"] for id in golden["ids"]}
    unknown = {id for golden in case["tokens"] for id in golden["ids"] if id < 3}  # WordPiece gives [UNK] for a strange sign
    assert asked - named - unknown <= found
    assert not named & found


@pytest.mark.parametrize("name", CASES)
def test_a_saved_tokenizer_is_loaded_the_same(name, tmp_path):
    case = CASES[name]
    tok = tokenizers.pretrained(folder(tmp_path / "files", case["family"], case["files"]))
    tok.save(tmp_path / "tokenizer.json")
    back = tokenizers.load(tmp_path / "tokenizer.json")
    assert (back.fingerprint, back.eos, back.pieces) == (tok.fingerprint, tok.eos, tok.pieces)
    for text in GOLDEN["texts"]:
        assert back.encode(text, specials=True).tolist() == tok.encode(text, specials=True).tolist()


@pytest.mark.parametrize("family", SIZES)
def test_an_added_token_has_the_id_that_the_file_gives_it_even_after_a_gap(family, tmp_path):
    tok = tokenizers.pretrained(folder(tmp_path, family, added(family, "<tool>", "<two>", by=20)))
    first = SIZES[family] + 20
    assert [id for id in tok.encode("a<tool> b<two>").tolist() if id >= SIZES[family]] == [first, first + 1]
    assert "<tool>" in tok.decode(tok.encode("a<tool> b"))
    assert not tok.drawable_V[SIZES[family] : first].any()
    assert tok.drawable_V[first:].all()


@pytest.mark.parametrize("family", SIZES)
def test_an_added_token_that_takes_the_id_of_another_is_a_user_error(family, tmp_path):
    with pytest.raises(UserError, match=r"'<tool>' has the id 25, which is that of '"):
        tokenizers.pretrained(folder(tmp_path, family, added(family, "<tool>", by=25 - SIZES[family])))


@pytest.mark.parametrize("token", ["<|end of text|>", "é", "日本", "<a:b>", " x"])
def test_an_added_token_may_have_any_sign(token, tmp_path):
    special = folder(tmp_path / "special", "byte_bpe", added("byte_bpe", "<|x|>", token * 2, special=True))
    config = json.loads((special / "tokenizer_config.json").read_text()) | {"add_bos_token": True, "bos_token": token * 2}
    (special / "tokenizer_config.json").write_text(json.dumps(config))
    tok = tokenizers.pretrained(special)
    assert tok.frame("a")[0][0] == tok.bos == 401
    assert tok.pieces[401] == b""
    plain = tokenizers.pretrained(folder(tmp_path / "plain", "byte_bpe", added("byte_bpe", "<|x|>", token * 2)))
    ids = plain.encode(f"a{token * 2}b")
    assert 401 in ids
    assert plain.decode(ids) == f"a{token * 2}b"
    assert plain.bytes_V[ids].sum() == len(f"a{token * 2}b".encode())


def test_only_line_feeds_end_the_lines_of_a_vocabulary(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u2028", "\u0085", "a\x0bb", "\x1c", "ship"]
    for end in ("\n", "\r\n"):
        path = tmp_path / repr(end)
        path.mkdir()
        (path / "vocab.txt").write_bytes("".join(token + end for token in tokens).encode())
        tok = tokenizers.pretrained(path)
        assert tok.encode("ship").tolist() == [9]
        assert tok.vocab_size == 10


def test_only_line_feeds_end_the_lines_of_merges(tmp_path):
    plain = folder(tmp_path, "byte_bpe")
    golden = tokenizers.pretrained(plain).encode(GOLDEN["texts"][0]).tolist()
    merges = (plain / "merges.txt").read_bytes()
    (plain / "merges.txt").write_bytes(merges.replace(b"\n", b"\r\n"))
    assert tokenizers.pretrained(plain).encode(GOLDEN["texts"][0]).tolist() == golden


@pytest.mark.parametrize("config", [{"model_type": "qwen2"}, {"tokenizer_class": "Qwen2TokenizerFast"}])
def test_the_models_config_says_which_family_reads_a_vocabulary(config, tmp_path):
    case = CASES["Qwen2: added_tokens.json"]
    tok = tokenizers.pretrained(folder(tmp_path, "byte_bpe", {"config.json": config}))
    assert tok.encode(GOLDEN["texts"][0]).tolist() == case["tokens"][0]["ids"]
    assert tok.encode(GOLDEN["texts"][0]).tolist() != CASES["GPT2: added_tokens.json"]["tokens"][0]["ids"]


@pytest.mark.parametrize(
    ("family", "class_name"),
    [
        ("byte_bpe", "RobertaTokenizer"),
        ("byte_bpe", "CLIPTokenizerFast"),
        ("wordpiece", "BertJapaneseTokenizer"),
        ("wordpiece", "MPNetTokenizer"),
        ("t5", "AlbertTokenizer"),
        ("llama", "XLMRobertaTokenizer"),
    ],
)
def test_a_family_that_reads_its_files_in_another_way_is_a_user_error(family, class_name, tmp_path):
    with pytest.raises(UserError, match=rf"a {class_name.removesuffix('Fast').removesuffix('Tokenizer')} tokenizer needs"):
        tokenizers.pretrained(folder(tmp_path, family, {"tokenizer_config.json": {"tokenizer_class": class_name}}))


@pytest.mark.parametrize(
    ("generation", "model", "own", "ends"),
    [
        ({"eos_token_id": [5, 6]}, {"eos_token_id": 7}, "!", {5, 6}),
        ({"eos_token_id": None}, {"eos_token_id": 7}, "!", {7}),
        ({"eos_token_id": []}, {"eos_token_id": [7, 8]}, "!", {7, 8}),
        (None, {"eos_token_id": 7}, "!", {7}),
        (None, {"eos_token_id": None}, "!", {1}),
        (None, None, None, set()),
    ],
)
def test_what_ends_a_text_is_said_by_generation_config_then_config_then_the_tokenizer(generation, model, own, ends, tmp_path):
    files = {"generation_config.json": generation, "config.json": model, "special_tokens_map.json": {"eos_token": own}}
    tok = tokenizers.pretrained(folder(tmp_path, "byte_bpe", {name: content for name, content in files.items() if content}))
    assert set(tok.eos) == ends | {tok.bos}
    assert tok.drawable_V[list(tok.eos)].all()


@pytest.mark.parametrize("value", [999, -1, "2", True, 2.0, [0, 999], [[0]], {"a": 1}])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("family", SIZES)
def test_an_end_that_is_no_token_is_a_user_error(family, file, value, tmp_path):
    with pytest.raises(UserError, match=rf"eos_token_id in {file} is ") as error:
        tokenizers.pretrained(folder(tmp_path, family, {file: {"eos_token_id": value}}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map", "added_tokens", "generation_config", "config"])
@pytest.mark.parametrize("content", ["{", "[]", "5", "null", '"a"', "[" * 100_000])
def test_a_damaged_small_file_is_a_user_error_that_names_it(name, content, tmp_path):
    (folder(tmp_path, "byte_bpe") / f"{name}.json").write_text(content)
    with pytest.raises(UserError, match=rf"{name}\.json") as error:
        tokenizers.pretrained(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", SIZES)
def test_tokens_that_were_added_beyond_the_embedding_are_not_used(family, tmp_path):
    rows = SIZES[family]
    files = added(family, "<tool>", "[FILL]", special=True)
    files["tokenizer_config.json"] |= {"pad_token": "[FILL]"}
    tok = tokenizers.pretrained(folder(tmp_path, family, files | {"config.json": {"vocab_size": rows + 1}}))
    check_fits(tok, rows + 1)
    assert len(tok.drawable_V) == len(tok.pieces) == tok.vocab_size == rows + 1
    assert "[FILL]" not in tok.specials
    assert rows in tok.encode("a <tool> b", specials=True)
    with pytest.raises(UserError, match=rf"'\[FILL\]', which was added .* as token {rows + 1}; .* {rows + 1} rows"):
        tok.encode("a [FILL] b", specials=True)
    tok.save(tmp_path / "saved.json")
    assert tokenizers.load(tmp_path / "saved.json").vocab_size == rows + 1


def test_a_vocabulary_that_is_larger_than_the_embedding_is_not_cut(tmp_path):
    tok = tokenizers.pretrained(folder(tmp_path, "byte_bpe", {"config.json": {"vocab_size": 300}}))
    with pytest.raises(UserError, match="400 tokens, but the embedding of the model has 300 rows"):
        check_fits(tok, 300)


@pytest.mark.parametrize("multiple", [8, 64, 128, 256])
def test_an_embedding_may_be_padded(multiple):
    tok = tokenizers.byte_tokenizer()
    check_fits(tok, -(-tok.vocab_size // multiple) * multiple)
    with pytest.raises(UserError, match="came with the weights"):
        check_fits(tok, 3 * tok.vocab_size)


def test_ids_are_int32_and_a_lone_surrogate_is_a_question_mark(tmp_path):
    for family in SIZES:
        tok = tokenizers.pretrained(folder(tmp_path / family, family, added(family, "<tool>")))
        assert tok.encode("a<tool>\ud800").dtype == np.int32
        assert tok.encode("a<tool>\ud800").tolist() == tok.encode("a<tool>?").tolist()


def test_a_chat_and_a_label_have_the_tokenizers_own_end(tmp_path):
    files = {"generation_config.json": {"eos_token_id": [5]}, "tokenizer_config.json": {"eos_token": "!", "sep_token": "?"}}
    tok = tokenizers.pretrained(folder(tmp_path, "byte_bpe", files))
    assert (tok.ending, set(tok.eos)) == (1, {tok.bos, 5})
    tok.save(tmp_path / "saved.json")
    assert tokenizers.load(tmp_path / "saved.json").ending == 1
    tok.chat_template = "{{ messages[0].content }}{{ eos_token }}"
    assert chat.render(tok, [{"role": "user", "content": "a"}]) == "a!"


@pytest.mark.parametrize("id", ["x", "-1", "1e3", 10**30])
@pytest.mark.parametrize("family", SIZES)
def test_an_added_token_without_a_sound_id_is_a_user_error(family, id, tmp_path):
    files = {"tokenizer_config.json": {"added_tokens_decoder": {str(id): TOOL}}}
    with pytest.raises(UserError, match="the added token '<tool>' has the id .* not a valid token id"):
        tokenizers.pretrained(folder(tmp_path / "decoder", family, files))
    with pytest.raises(UserError, match="the added token '<tool>' has the id .* not a valid token id"):
        tokenizers.pretrained(folder(tmp_path / "added", family, {"added_tokens.json": {"<tool>": id}}))
