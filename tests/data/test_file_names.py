"""Files and folders whose names are not UTF-8 are read, or refused in one line before anything is written."""

from __future__ import annotations

import json
import os

import pytest

import memtx
from memtx import cli
from memtx.data.corpora import load_corpus
from memtx.errors import UserError
from memtx.tasks.labelled import Labelled


@pytest.fixture
def odd(tmp_path):
    """A folder of texts with names in Latin-1."""
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    for i in range(3):
        with open(os.path.join(folder, b"n\xe9%d.txt" % i), "wb") as file:
            file.write(b"hello world " * 5)
    return os.fsdecode(folder)


def test_a_corpus_shows_the_bytes_of_such_names(odd, tmp_path, capsys):
    found = load_corpus(f"textdir:{odd}", tmp_path / "cache")
    names = {id for split in found.splits for id, _ in found.documents(split)}
    assert names == {f"n\\xe9{i}.txt" for i in range(3)}
    cli.main(["data", f"--corpus=textdir:{odd}"])
    assert "n\\xe9" in capsys.readouterr().out


def test_examples_are_read_from_such_a_folder(odd):
    for split in ("train", "valid", "test"):
        with open(f"{odd}/{split}.jsonl", "w") as file:
            file.write(json.dumps({"text": split, "label": "x"}))
    assert Labelled(Labelled.Config(path=odd)).names == ["x"]


def test_a_workdir_or_a_cache_of_such_a_name_is_refused(odd, tmp_path):
    config = memtx.get_config(
        model={"width": 16, "num_heads": 2}, data={"corpus": f"textdir:{odd}", "cache": str(tmp_path / "c")}
    )
    with pytest.raises(UserError, match=r"the workdir .*caf\\xe9/run has a name that is not UTF-8"):
        memtx.train(config, f"{odd}/run", say=lambda *_: None)
    assert not os.path.exists(f"{odd}/run")
    with pytest.raises(UserError, match=r"data.cache .*caf\\xe9 has a name that is not UTF-8"):
        load_corpus(f"textdir:{odd}", odd)
