"""`memtx doctor` reports versions, devices, caches and extras."""

import importlib.metadata
import json
import re
from pathlib import Path

import jax
import pytest

from memtx import cli
from memtx.cli import doctor


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MEMTX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "corpora" / "a").mkdir(parents=True)
    (tmp_path / "cache" / "corpora" / "a" / "text").write_bytes(bytes(3 * 2**20))
    return tmp_path / "cache"


def test_it_shows_versions_devices_caches_and_extras(cache, capsys):
    cli.main(["doctor"])
    shown = capsys.readouterr().out
    for line in (f"jax +{jax.__version__}", f"devices +{len(jax.devices())}", f"folder +{cache}", "corpora +3.0 MiB"):
        assert re.search(rf"^  {line}$", shown, re.MULTILINE), line
    assert [line.split()[0] for line in shown.partition("extras\n")[2].splitlines()] == list(doctor.EXTRAS)


def test_it_gives_json(cache, capsys):
    cli.main(["doctor", "--format=json"])
    found = json.loads(capsys.readouterr().out)
    assert found["cache"]["bytes"]["corpora"] == 3 * 2**20
    assert found["cache"]["writable"]
    assert found["machine"]["devices"] == len(jax.devices())


def test_it_names_the_packages_that_are_missing(cache, capsys, monkeypatch):
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    cli.main(["doctor"])
    assert "BLEU, chrF and ROUGE; lacks sacrebleu, rouge-score: pip install '.[eval]'" in capsys.readouterr().out


def test_it_reports_a_driver_that_does_not_work(cache, capsys, monkeypatch):
    def machine():
        raise RuntimeError("no driver\nfound")

    monkeypatch.setattr("memtx.training.provenance.machine", machine)
    cli.main(["doctor"])
    assert "error             no driver found" in capsys.readouterr().out


def test_a_cache_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMTX_CACHE", str(tmp_path / "a" / "b"))
    assert doctor.examine()["cache"]["bytes"] == {}


def test_it_knows_the_extras_of_setup():
    text = (Path(__file__).parents[1] / "setup.py").read_text(encoding="utf-8")
    listed = re.findall(r'^    "(\w+)": ', text.partition("EXTRAS = {")[2].partition("\n}")[0], re.MULTILINE)
    assert {*doctor.EXTRAS} == {*listed} - {"test", "dev"}
    for _, packages in doctor.EXTRAS.values():
        assert all(package in text or package == "jax-cuda13-plugin" for package in packages)
