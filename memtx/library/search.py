"""Search for the entries of a library, which may be more than a device can keep.

    score_j = q . k_j                    ("dot")
    score_j = q . k_j - |k_j|^2 / 2      ("l2": the nearest in Euclidean distance has the highest score)

*Exact.* The keys are searched in blocks, and the k best so far are merged with those of the next block. Keys that fit stay on
the device. Others, such as those of a memory-mapped file, pass through it. While it searches a block, the next one is copied.
If there are several local devices, each block is divided over them.

*Approximate.* faiss builds an HNSW graph in the memory of the host (Malkov and Yashunin 2018, arXiv 1603.09320).

M entries, E features of a key, C entries of a block, Q queries, R results.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from memtx.errors import check_known, optional
from memtx.ops import topk

BLOCK, SMALLEST = 16_384, 128  # entries of a block: SMALLEST times a power of two, so that few programs serve all M
KEEP = 2**31  # bytes
LINKS, BUILD, SEARCH = 32, 80, 128  # of HNSW: neighbours of an entry, candidates when it is added, candidates of a query
Found = tuple[np.ndarray, np.ndarray]


class Index:
    """Keys that can be searched: key_ME, float32, at least one. They must not change while the Index is in use.

    approximate: search an HNSW graph, which needs faiss. It is drawn from a fixed seed.
    keep: keys of at most this many bytes stay on the device.
    """

    def __init__(self, key_ME: np.ndarray, *, metric: str = "dot", approximate: bool = False, keep: int = KEEP):
        check_known(metric, ("dot", "l2"), "metric")
        self.key_ME, self.metric = key_ME, metric
        self._graph = _build_graph(key_ME, metric) if approximate else None
        self._size = _block_size(len(key_ME), jax.local_device_count())
        keep_all = not approximate and key_ME.nbytes <= keep
        self._kept = {begin: self._load(begin) for begin in range(0, len(key_ME), self._size)} if keep_all else {}

    def search(self, query_QE: np.ndarray, k: int, *, first: int = 0, end: int | None = None) -> Found:
        """Return score_QR, descending, and index_QR of the k best entries with first <= index < end (by default all).

        R is k, or the number of these entries if that is smaller. If scores are equal, the lower index comes first. An
        approximate search may find fewer than R entries, and the remaining scores are then -inf.
        """
        query_QE, first = np.asarray(query_QE, np.float32), max(first, 0)
        end = len(self.key_ME) if end is None else min(end, len(self.key_ME))
        k = max(min(k, end - first), 0)
        if not k or not len(query_QE):
            return np.zeros((len(query_QE), k), np.float32), np.zeros((len(query_QE), k), np.int32)
        if self._graph is not None:
            return _search_graph(self._graph, query_QE, k, (first, end), self.metric)
        found = np.full((len(query_QE), k), -np.inf, np.float32), np.zeros((len(query_QE), k), np.int32)
        begins = range(first // self._size * self._size, end, self._size)
        block = self._block(begins[0])
        for begin in begins:
            found = _search_block(found, query_QE[None, :, None], *block, (max(first, begin), end), metric=self.metric)
            if begin != begins[-1]:
                block = self._block(begin + self._size)
            jax.block_until_ready(found)  # there are never more than two blocks on the way
        return np.asarray(found[0]), np.asarray(found[1])

    def _block(self, begin: int) -> tuple[int, Array]:
        return self._kept[begin] if self._kept else self._load(begin)

    def _load(self, begin: int) -> tuple[int, Array]:
        """Start to copy a block to the device. Returns its first entry and key_1C1E. The last block overlaps the one before."""
        start = max(min(begin, len(self.key_ME) - self._size), 0)
        key_CE = np.asarray(self.key_ME[start : start + self._size], np.float32)
        if len(key_CE) < self._size:  # there is one block
            key_CE = np.pad(key_CE, ((0, self._size - len(key_CE)), (0, 0)))
        return start, jax.device_put(key_CE[None, :, None], _over_devices())


def _over_devices() -> NamedSharding | None:
    """Return the sharding of key_1C1E over the entries, or None if there is one device."""
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)
    return NamedSharding(mesh, PartitionSpec(None, "data")) if len(devices) > 1 else None


def _block_size(entries: int, devices: int) -> int:
    """Return C for M entries: at most BLOCK, and a multiple of the number of devices."""
    size = SMALLEST
    while size < min(entries, BLOCK):
        size *= 2
    return -(-size // devices) * devices


@partial(jax.jit, static_argnames="metric")
def _search_block(found: tuple[Any, Any], query_1Q1E, start, key_1C1E: Array, span: tuple[Any, Any], metric: str):
    """Merge `found` with the best entries of the block that begins at entry `start`. Only entries in the span count."""
    score_QR, index_QR = found
    id_1C = start + jnp.arange(key_1C1E.shape[1])[None]
    first_1Q, end_1Q = (jnp.full(query_1Q1E.shape[:2], a) for a in span)
    k = min(score_QR.shape[1], key_1C1E.shape[1])
    score, index = topk.search(query_1Q1E, key_1C1E, id_1C, (first_1Q, end_1Q), k, metric=metric)
    scores, indices = (jnp.concatenate(a, 1) for a in ((score_QR, score[0, :, 0]), (index_QR, index[0, :, 0] + start)))
    return topk.keep_best(scores, indices, score_QR.shape[1])


def _build_graph(key_ME: np.ndarray, metric: str):
    """Build an HNSW graph of all entries, one block after another."""
    faiss = optional("faiss", "faiss")
    kind = {"dot": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}[metric]
    graph = faiss.IndexHNSWFlat(key_ME.shape[1], LINKS, kind)
    graph.hnsw.rng = faiss.RandomGenerator(0)
    graph.hnsw.efConstruction = BUILD
    for start in range(0, len(key_ME), BLOCK):
        graph.add(np.ascontiguousarray(key_ME[start : start + BLOCK], np.float32))
    return graph


def _search_graph(graph, query_QE: np.ndarray, k: int, span: tuple[int, int], metric: str) -> Found:
    """Search an HNSW graph for entries in the span."""
    faiss = optional("faiss", "faiss")
    how = faiss.SearchParametersHNSW(efSearch=max(SEARCH, 2 * k), sel=faiss.IDSelectorRange(*span))
    measure_QR, index_QR = graph.search(np.ascontiguousarray(query_QE), k, params=how)
    if metric == "l2":  # faiss measures |q - k|^2
        measure_QR = (np.square(query_QE).sum(1, keepdims=True) - measure_QR) / 2
    missing_QR = index_QR < 0
    return np.where(missing_QR, -np.inf, measure_QR), np.where(missing_QR, 0, index_QR).astype(np.int32)
