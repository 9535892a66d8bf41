"""A pretrained model writes with its own tokenizer, though their sizes differ, and ends where its files say."""

import json
import shutil
from pathlib import Path

import jax
import pytest

import memtx
from memtx.cli import main
from memtx.models.settings import complete_model
from memtx.pretrained import llama
from memtx.pretrained import load as pretrained

VOCABULARY = Path(__file__).parent / "golden/hf/vocabularies/byte_bpe"
SIZE = 400


def folder(path: Path, rows: int, **files) -> Path:
    """A tiny random Llama with `rows` in its embedding and GPT-2's kind of tokenizer. files: small ones, without ".json"."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    hf = {"model_type": "llama", "vocab_size": rows, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, **sizes}
    lm = memtx.build(complete_model(llama.model(hf, 256)))
    pretrained.export(lm, lm.init(jax.random.key(0)), path)
    shutil.copytree(VOCABULARY, path, dirs_exist_ok=True)
    files.setdefault("tokenizer_config", {})["tokenizer_class"] = "GPT2Tokenizer"
    for name, content in files.items():
        old = json.loads((path / f"{name}.json").read_text()) if (path / f"{name}.json").exists() else {}
        (path / f"{name}.json").write_text(json.dumps(old | content))
    return path


def written(path: Path, **options) -> str:
    loaded = memtx.load(path)
    options = {"sampling": memtx.GREEDY, "max_tokens": 12} | options
    return memtx.complete(loaded.lm, loaded.params, loaded.tokenizer, ["The ships"], **options).texts[0]


@pytest.mark.thorough
def test_an_end_in_config_json_alone_ends_what_is_written(tmp_path):
    first = written(folder(tmp_path / "endless", SIZE), max_tokens=1)
    [end] = memtx.load(tmp_path / "endless").tokenizer.encode(first).tolist()
    assert written(folder(tmp_path / "ended", SIZE, config={"eos_token_id": end}), max_tokens=1) == ""


def test_nothing_is_drawn_that_the_tokenizer_lacks(tmp_path):
    path = folder(tmp_path / "padded", 512)
    assert written(path, sampling=memtx.Sampling(temperature=100.0, top_p=1.0), max_tokens=48)
    assert written(path, beams=3)


@pytest.mark.thorough
def test_a_pad_that_has_no_row_is_never_read_or_written(tmp_path):
    path = folder(tmp_path / "pad", SIZE, special_tokens_map={"pad_token": "[PAD]"})
    assert written(path)
    loaded = memtx.load(path)
    with pytest.raises(memtx.UserError, match=r"'\[PAD\]'.*only 400 rows"):
        memtx.complete(loaded.lm, loaded.params, loaded.tokenizer, ["a [PAD] b"], specials=True)
    assert loaded.tokenizer.encode("a [PAD] b").max() < SIZE


@pytest.mark.parametrize("value", [999, "2"])
def test_an_end_that_is_no_token_is_one_line_of_the_command(value, tmp_path, capsys):
    path = folder(tmp_path / "model", SIZE, generation_config={"eos_token_id": value})
    with pytest.raises(SystemExit) as stop:
        main(["generate", f"--model={path}", "--prompt=a"])
    out = capsys.readouterr()
    assert stop.value.code == 2
    assert out.err.count("\n") == 1
    assert f"eos_token_id in generation_config.json is {value!r}" in out.err
