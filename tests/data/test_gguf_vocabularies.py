"""The vocabulary of a GGUF file: how a text is cut into words, and which tokens are no text."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from memtx.data import tokenizers
from memtx.data.tokenizers.base import byte_of_character
from memtx.data.tokenizers.cuts import CUTS, byte_bpe, gguf_cut
from memtx.errors import UserError

FOLDER = Path(__file__).parents[1] / "golden/hf/vocabularies/byte_bpe"
VOCAB = json.loads((FOLDER / "vocab.json").read_text())
TOKENS = sorted(VOCAB, key=VOCAB.get)
SIZE = len(TOKENS)
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

# By hand from the patterns in llama.cpp's src/llama-vocab.cpp.
TEXT = "cost:$5 and 12345 iPhoneX/\n don't"
WORDS = {
    "gpt-2": "cost|:$|5| and| 12345| iPhoneX|/|\n| don|'t",
    "smollm": "cost|:$|5| and| |1|2|3|4|5| iPhoneX|/|\n| don|'t",
    "qwen2": "cost|:$|5| and| |1|2|3|4|5| iPhoneX|/\n| don|'t",
    "llama-bpe": "cost|:$|5| and| |123|45| iPhoneX|/\n| don|'t",
    "smaug-bpe": "cost|:$|5| and| |123|45| iPhoneX|/\n| don|'t",
    "tekken": "cost|:$|5| and| |1|2|3|4|5| i|Phone|X|/\n| don|'t",
    "default": "cost|:$|5| and| |123|45| iPhoneX|/|\n| don|'|t",
}


def read(path: Path, *, pre: str = "smollm", more=(), architecture: str = "llama", rows: int = 0, **ids):
    """more: further tokens and their kinds. ids: such as eos=3."""
    writer = gguf.GGUFWriter(path / "tiny.gguf", architecture)
    writer.add_tokenizer_model("gpt2")
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS + [token for token, _ in more])
    writer.add_token_types([CONTROL] + [NORMAL] * (SIZE - 1) + [kind for _, kind in more])
    writer.add_token_merges([line for line in (FOLDER / "merges.txt").read_text().split("\n")[1:] if line])
    for name, value in ids.items():
        getattr(writer, f"add_{name}_token_id")(value)
    if rows:
        writer.add_tensor("token_embd.weight", np.zeros((rows, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tokenizers.pretrained(path / "tiny.gguf")


@pytest.mark.parametrize("name", CUTS)
def test_a_text_is_cut_as_llama_cpp_cuts_it(name):
    byte_of = byte_of_character()
    found = byte_bpe({}, [], CUTS[name]).pre_tokenizer.pre_tokenize_str(TEXT)
    assert "|".join(bytes(byte_of[sign] for sign in word).decode() for word, _ in found) == WORDS[name]


@pytest.mark.parametrize(
    ("named", "cut"),
    [
        ("llama3", "llama-bpe"),
        ("llama-v3", "llama-bpe"),
        ("pixtral", "llama-bpe"),
        ("dbrx", "smaug-bpe"),
        ("tekken", "tekken"),
        ("deepseek-r1-qwen", "qwen2"),
        ("phi-2", "gpt-2"),
        ("refact", "smollm"),
        ("default", "default"),
    ],
)
def test_the_names_that_llama_cpp_writes_are_known(named, cut, tmp_path):
    assert gguf_cut(named, "llama", TOKENS) == cut
    ids = read(tmp_path, pre=named).encode("counted 1207 ships").tolist()
    model = byte_bpe(VOCAB, [line for line in (FOLDER / "merges.txt").read_text().split("\n")[1:] if line], CUTS[cut])
    assert ids == model.encode("counted 1207 ships").ids


def test_a_file_that_names_no_rule_has_that_of_its_family():
    assert gguf_cut("default", "qwen2", TOKENS) == "qwen2"
    assert gguf_cut("default", "llama", [*TOKENS, "<|begin_of_text|>"]) == "llama-bpe"
    assert gguf_cut("default", "llama", TOKENS) == "default"


def test_a_file_without_a_name_is_read_by_the_default(tmp_path):
    for pre, architecture in (("", "llama"), ("", "qwen2")):
        (tmp_path / architecture).mkdir()
        (tmp_path / f"{architecture}-named").mkdir()
        named = read(tmp_path / f"{architecture}-named", pre="default", architecture=architecture)
        bare = read(tmp_path / architecture, pre=pre, architecture=architecture)
        assert bare.encode(TEXT).tolist() == named.encode(TEXT).tolist()


def test_an_unknown_rule_is_a_user_error_that_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="did you mean llama-bpe"):
        read(tmp_path, pre="lama-bpe")


@pytest.mark.parametrize(("pre", "begins"), [("llama-bpe", True), ("tekken", True), ("qwen2", False), ("smollm", False)])
def test_a_text_of_llama_3_begins_with_bos_where_the_file_does_not_say(pre, begins, tmp_path):
    tok = read(tmp_path, pre=pre, bos=7)
    assert tok.frame("ships")[0].tolist().count(7) == begins


@pytest.mark.parametrize("token", ["<|end of text|>", "<|日本|>", "<|a:b|>", "<｜end▁of▁sentence｜>"])
def test_a_control_token_may_have_any_sign(token, tmp_path):
    tok = read(tmp_path, more=[(token, CONTROL), (f"{token}x", USER_DEFINED)], bos=SIZE, pre="llama-bpe")
    assert (tok.frame("a")[0][0], tok.specials[token], tok.pieces[SIZE]) == (SIZE, SIZE, b"")
    assert SIZE in tok.encode(f"a{token}b", specials=True)
    assert SIZE not in tok.encode(f"a{token}b")
    assert tok.decode(tok.encode(f"a{token}b")) == f"a{token}b"
    assert tok.pieces[SIZE + 1] == f"{token}x".encode()
    assert SIZE + 1 in tok.encode(f"a{token}x")
    assert tok.bytes_V.shape == tok.drawable_V.shape == (SIZE + 2,)


def test_what_only_pads_the_vocabulary_is_no_token(tmp_path):
    tok = read(tmp_path, more=[("<|im_end|>", CONTROL), ("[PAD401]", UNUSED), ("[PAD402]", UNUSED)], rows=SIZE + 3, eos=SIZE)
    assert tok.vocab_size == SIZE + 1
    assert tok.eos == (0, SIZE)


def test_a_control_token_beyond_the_embedding_is_not_used(tmp_path):
    tok = read(tmp_path, more=[("<|im_end|>", CONTROL), ("<pad>", CONTROL)], rows=SIZE + 1)
    assert tok.vocab_size == SIZE + 1
    assert "<pad>" not in tok.specials
    with pytest.raises(UserError, match="'<pad>'"):
        tok.encode("<pad>", specials=True)


@pytest.mark.parametrize("part", ["eos", "bos"])
def test_a_part_that_is_no_token_is_a_user_error(part, tmp_path):
    with pytest.raises(UserError, match=rf"tokenizer.ggml.{part}_token_id is 999"):
        read(tmp_path, pre="llama-bpe", **{part: 999})


def test_a_vocabulary_that_is_not_whole_is_a_user_error(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"has no tokenizer\.ggml\.merges"):
        tokenizers.pretrained(tmp_path / "tiny.gguf")
