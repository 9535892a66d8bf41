"""Fixtures of the tests of training."""

import os

import pytest

from memtx.files import remote
from memtx.training.checkpoint import Checkpointer
from tests.bucket import serving
from tests.training.runs import CONFIG, save


@pytest.fixture
def saved(tmp_path):
    """A run with steps 1 and 2."""
    with Checkpointer(tmp_path / "run", CONFIG) as keeper:
        save(keeper, 1)
        save(keeper, 2)
    return tmp_path / "run"


@pytest.fixture(scope="session")
def server():
    """One bucket for all tests, since TensorStore and gcsfs keep its address."""
    pytest.importorskip("gcsfs", reason="gcsfs is not installed (extra gcs)")
    before = dict(os.environ)
    with serving() as bucket:
        os.environ.update(bucket.environment)
        yield bucket
        remote._store().clear_instance_cache()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def bucket(server, tmp_path, monkeypatch):
    """A bucket with a neighbour of runs/a. Nothing may be written outside runs/a, and no temporary file may be left."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)
    server.objects.clear()
    server.generations.clear()
    server.put("runs/ab/config.json", b"a neighbour")
    server.log.clear()
    yield server
    server.forbidden.clear()
    assert server.objects["runs/ab/config.json"] == b"a neighbour"
    assert all(name.startswith("runs/a/") for _, name in server.log)
    assert [p.name for p in tmp_path.iterdir()] == ["tmp"]
    assert not list((tmp_path / "tmp").glob("memtx-run-*"))
