"""`memtx.load` takes a workdir, a folder of Hugging Face's, or a name."""

import hashlib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tokenizers as hf

import memtx
from memtx.data import tokenizers
from memtx.data.corpora import load_corpus
from memtx.errors import UserError
from memtx.files import hub
from memtx.files.packages import Package
from memtx.runs.configure import build, get_config

WORDS = {f"w{i}": i for i in range(30)} | {"[UNK]": 30}


def save_tokenizer(folder, words) -> None:
    tokenizer = hf.Tokenizer(hf.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def folder(tmp_path):
    sizes = {"width": 16, "num_heads": 2, "ff_dim": 32, "vocab_size": 31, "embed_scale": 1.0}
    lm = build(get_config(model={"stacks": ((("full",), 2),), **sizes}))
    memtx.export(lm, lm.init(jax.random.key(7)), tmp_path / "model")
    save_tokenizer(tmp_path / "model", WORDS)
    return tmp_path / "model"


def test_a_folder_gives_a_model_to_use(folder):
    loaded = memtx.load(folder, context=16)
    token = loaded.tokenizer.encode("w3 w1 w4")
    assert token.tolist() == [3, 1, 4]
    logits, _ = loaded.lm(loaded.params, token[None], loaded.state)
    assert logits.shape == (1, 3, 31)
    assert loaded.config.model.memory["full"].capacity == 16
    assert memtx.load(folder).config.model.memory["full"].capacity == 2048
    again = memtx.configure(loaded.config)
    assert again == memtx.configure(again)
    assert again.model.pretrained == str(folder)


def test_a_tokenizer_of_another_model_is_refused(folder):
    save_tokenizer(folder, {f"w{i}": i for i in range(40)} | {"[UNK]": 40})
    with pytest.raises(UserError, match="came with the weights"):
        memtx.load(folder)


def test_a_name_is_asked_of_the_hub(folder, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append(name)
        assert not any(pattern.endswith((".bin", ".pt")) for pattern in allow_patterns)
        return str(folder)

    monkeypatch.setattr(hub, "optional", lambda _: SimpleNamespace(snapshot_download=snapshot_download))
    here = memtx.load("some/model")
    assert asked
    assert set(asked) == {"some/model"}
    np.testing.assert_array_equal(here.params["embed"], memtx.load(folder).params["embed"])


def test_a_name_that_nobody_knows_is_one_line(tmp_path, monkeypatch):
    def snapshot_download(name, allow_patterns):
        raise OSError("no route to the hub\nand more")

    monkeypatch.setattr(hub, "optional", lambda _: SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(UserError, match=r"no model 'smolm3'.*minilm, smollm2.*\(no route to the hub\)"):
        memtx.load("smolm3")
    with pytest.raises(UserError, match="no folder or file"):
        memtx.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="is not the workdir of a run"):
        memtx.load(tmp_path)


def test_a_model_inside_a_package_is_unpacked_once(tmp_path, monkeypatch):
    wheel = tmp_path / "packages" / "carrier-1.0" / "carrier-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("carrier/model/config.json", "carrier/model/1_Pooling/config.json", "carrier/cli.py"):
            archive.writestr(name, name)
    package = Package("carrier", "1.0", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(hub, "PACKAGED", {"one": hub.Packaged(package, "carrier/model/")})
    folder = hub.find("one", tmp_path)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json", "1_Pooling/config.json"}
    wheel.unlink()  # not needed a second time
    assert hub.find("one", tmp_path) == folder


VOCABULARIES = Path(__file__).parent / "golden" / "hf" / "vocabularies"
TEXTS = ["Hello, world! It's 1984.", "two  blanks", "a\nnew line\t tab", "éèü 漢字", "", "<|endoftext|> </s> [SEP]"]


def made(name: str, tmp_path):
    """The tokenizer of that name, of a corpus where it needs one."""
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text("the cat sat on the mat, " * 20 + f" number {i}")
    return tokenizers.make_tokenizer(name, load_corpus(f"textdir:{tmp_path}", tmp_path / "cache"), tmp_path / "cache")


@pytest.mark.parametrize("name", ["bytes", "bpe:300", "bpe:2000", "byte_bpe", "llama"])
def test_what_is_exported_with_its_tokenizer_is_loaded_with_the_same_ids(name, tmp_path):
    """transformers' AutoTokenizer was seen to read these folders with the same ids."""
    pretrained = f"pretrained:{VOCABULARIES / name}" if (VOCABULARIES / name).exists() else name
    (tmp_path / "texts").mkdir()
    tokenizer = made(pretrained, tmp_path / "texts")
    sizes = {"width": 16, "num_heads": 2, "ff_dim": 32, "vocab_size": tokenizer.vocab_size, "embed_scale": 1.0}
    lm = build(get_config(model={"stacks": ((("full",), 1),), **sizes}))
    memtx.export(lm, lm.init(jax.random.key(0)), tmp_path / "out", tokenizer=tokenizer)
    loaded = memtx.load(tmp_path / "out")
    for text in TEXTS:
        assert loaded.tokenizer.encode(text).tolist() == tokenizer.encode(text).tolist()
        assert loaded.tokenizer.frame(text)[0].tolist() == tokenizer.frame(text)[0].tolist()
    assert (loaded.tokenizer.bos, loaded.tokenizer.eos) == (tokenizer.bos, tokenizer.eos)
    assert loaded.tokenizer.mask == tokenizer.mask
    memtx.export(loaded.lm, loaded.params, tmp_path / "again")  # a pretrained model brings its tokenizer
    assert memtx.load(tmp_path / "again").tokenizer.encode("ships").tolist() == tokenizer.encode("ships").tolist()


def test_the_tokenizer_of_another_model_is_not_exported(folder, tmp_path):
    loaded = memtx.load(folder)
    with pytest.raises(UserError, match="came with the weights"):
        memtx.export(loaded.lm, loaded.params, tmp_path / "out", tokenizer=tokenizers.byte_tokenizer())
    assert not (tmp_path / "out").exists()
