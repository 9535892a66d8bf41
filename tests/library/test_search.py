"""An index finds the entries that a search by its definition finds, however the keys are stored and divided into blocks.

M entries, E features of a key, Q queries, R results.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtx.errors import UserError
from memtx.library import search
from memtx.library.search import Index
from memtx.ops.topk import search_plain

E, Q = 8, 3


def definition(key_ME, query_QE, k, first, end, metric):
    """The result of `search_plain`, without missing entries."""
    end = min(end, len(key_ME))
    span = np.full((1, len(query_QE)), first), np.full((1, len(query_QE)), end)
    arrays = query_QE[None, :, None], key_ME[None, :, None], np.arange(len(key_ME))[None]
    score, index = search_plain(*arrays, span, max(min(k, end - first), 0), metric=metric)
    return np.asarray(score)[0, :, 0], np.asarray(index)[0, :, 0]


def check(index: Index, query_QE, k, first, end):
    found = index.search(query_QE, k, first=first, end=end)
    for ours, expected in zip(found, definition(index.key_ME, query_QE, k, first, end, index.metric), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.fixture
def short_blocks(monkeypatch):
    monkeypatch.setattr(search, "BLOCK", 256)


def keys(entries: int, seed: int = 0, values: int = 2):
    """Keys and queries of few integers, so that many scores are equal."""
    rng = np.random.default_rng(seed)
    whole = lambda size: rng.integers(-values, values + 1, (size, E)).astype(np.float32)  # noqa: E731
    return whole(entries), whole(Q)


@pytest.mark.parametrize("metric", ["dot", "l2"])
@pytest.mark.parametrize("keep", [0, search.KEEP], ids=["streamed", "kept"])
def test_an_index_is_an_exact_search(short_blocks, metric, keep):
    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(st.sampled_from([1, 5, 128, 256, 257, 700]), st.integers(0, 99), st.integers(0, 300), st.integers(0, 800))
    def run(entries, seed, first, end):
        key_ME, query_QE = keys(entries, seed, values=1 + seed % 3)
        check(Index(key_ME, metric=metric, keep=keep), query_QE, 4, first, end)

    run()


def test_equal_keys_come_in_their_order(short_blocks):
    index = Index(np.ones((600, E), np.float32), keep=0)
    score, found = index.search(np.ones((1, E)), 300)  # more than a block
    np.testing.assert_array_equal(found[0], np.arange(300))
    assert (score == E).all()
    assert index.search(np.ones((1, E)), 999, first=590)[1].tolist() == [[*range(590, 600)]]


def test_nothing_is_found_where_nothing_is():
    key_ME, query_QE = keys(5)
    assert Index(key_ME[:0]).search(query_QE, 4)[1].shape == (Q, 0)
    assert Index(key_ME).search(query_QE[:0], 4)[0].shape == (0, 4)
    assert Index(key_ME).search(query_QE, 4, first=3, end=2)[0].shape == (Q, 0)


def test_a_memory_mapped_file_of_16_bit_keys_is_searched_in_blocks(short_blocks, tmp_path):
    key_ME, query_QE = keys(700)
    np.save(tmp_path / "keys.npy", key_ME.astype(np.float16))
    mapped = np.load(tmp_path / "keys.npy", mmap_mode="r")
    index = Index(mapped, keep=mapped.nbytes - 1)
    check(index, query_QE, 4, 0, 700)
    assert not index._kept
    assert Index(mapped, keep=mapped.nbytes)._kept  # control


def test_an_unknown_metric_is_refused():
    with pytest.raises(UserError, match="unknown metric .cosin.; known: dot, l2"):
        Index(keys(5)[0], metric="cosin")


@pytest.mark.thorough
@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_a_graph_finds_nearly_all(metric):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    key_ME, query_QE = (rng.normal(size=(size, 24)).astype(np.float32) for size in (5000, 50))
    exact, graph = Index(key_ME, metric=metric), Index(key_ME, metric=metric, approximate=True)
    for span in ({}, {"first": 1000, "end": 2000}):
        score_QR, index_QR = graph.search(query_QE, 10, **span)
        best_QR, exact_QR = exact.search(query_QE, 10, **span)
        same_QR = index_QR == exact_QR
        np.testing.assert_allclose(score_QR[same_QR], best_QR[same_QR], rtol=1e-4, atol=1e-4)
        recall = np.mean([len({*ours} & {*all_}) / 10 for ours, all_ in zip(index_QR, exact_QR, strict=True)])
        assert 0.95 < recall <= 1, recall
        assert (index_QR >= span.get("first", 0)).all()
        assert (index_QR < span.get("end", 5000)).all()
    again = Index(key_ME, metric=metric, approximate=True)
    np.testing.assert_array_equal(again.search(query_QE, 10)[1], graph.search(query_QE, 10)[1])


def test_a_missing_faiss_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"faiss is not installed; run pip install '\.\[faiss\]'"):
        Index(keys(5)[0], approximate=True)


# The peak is not ru_maxrss, which starts at the memory of the process that starts this one.
PROGRAM = """
import re, sys
import numpy as np
from memtx.library.search import Index
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
key = np.load(sys.argv[1], mmap_mode="r")
query = np.ones((512, key.shape[1]), np.float32)
Index(key[: 1 << 15], keep=0).search(query, 32)  # compiles
before = peak()
if sys.argv[2] == "index":
    Index(key, keep=0).search(query, 32)
else:
    score = query @ key.T
print(peak() - before)
"""


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_a_million_entries_need_little_memory(tmp_path):
    key_ME = np.random.default_rng(0).random((2**20, 8), np.float32)
    np.save(tmp_path / "keys.npy", key_ME)

    def peak(how):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "keys.npy"), how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1024

    scores = 4 * 512 * len(key_ME)
    assert peak("index") < key_ME.nbytes + scores / 16  # pages of the file count once they are read
    assert peak("scores") > scores / 2  # control
