"""What the oracles are written with: sizes, and the few functions of the papers that several of them need.

Every oracle is a mechanism written a second time, from its paper's equations, in float64 numpy, one stream at a time. Nothing
here is shared with memtx. Under the complex step (memtx/contract/golden.py) a stop-gradient is "take the real part".

T query time, S source time, N query heads, K kv heads, H head dim, D model.
"""

from __future__ import annotations

import numpy as np

from memtx.contract.golden import Golden as Golden

TIME = 16
N, K, H, D, VOCAB = 4, 2, 4, 8, 16


def token(x_TD: np.ndarray) -> np.ndarray:
    """The token ids that the contract tests give with an input: from its first number, so that moving x moves the token."""
    return np.floor(x_TD.reshape(len(x_TD), -1)[:, 0].real * 8).astype(int) % VOCAB


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(score: np.ndarray, seen: np.ndarray) -> np.ndarray:
    shift = np.where(seen, score.real, -np.inf).max(-1, keepdims=True)
    weight = np.exp(np.where(seen, score - shift, 0)) * seen
    return weight / weight.sum(-1, keepdims=True)


def rotate(x: np.ndarray, by: np.ndarray) -> np.ndarray:
    """RoPE: the pair (x_i, x_{i+H/2}) as a complex number times exp(i by 10000^(-2i/H)), in real arithmetic."""
    angle = by[..., None, None] * 10_000.0 ** (-2 * np.arange(H // 2) / H)
    a, b = x[..., : H // 2], x[..., H // 2 :]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1)


def t5_bucket(distance: np.ndarray, future: bool = False) -> np.ndarray:
    """T5's buckets (128 the farthest): 32 of them for the past, or 16 for the past and then 16 for the future."""
    if future:
        return t5_buckets_of(np.abs(distance), 16) + 16 * (distance < 0)
    return t5_buckets_of(np.maximum(distance, 0), 32)


def t5_buckets_of(distance: np.ndarray, buckets: int) -> np.ndarray:
    exact = buckets // 2
    far = exact + np.floor(np.log(np.maximum(distance, 1) / exact) / np.log(128 / exact) * exact)
    return np.where(distance < exact, distance, np.minimum(far, buckets - 1)).astype(int)


def pairwise(q_TNH, k_SNH, v_SNH, seen_TS, distance_TS, position: str, table=None, future=False) -> np.ndarray:
    """Attention of every query to every key that it sees, at the distance stated for the pair."""
    q_TSNH = np.broadcast_to(q_TNH[:, None], (*distance_TS.shape, *q_TNH.shape[1:]))
    if position == "rope":
        q_TSNH = rotate(q_TSNH, distance_TS)
    score_NTS = np.einsum("tsnh,snh->nts", q_TSNH, k_SNH) / np.sqrt(H)
    if position == "alibi":
        score_NTS = score_NTS - 2.0 ** (-8 * np.arange(1, N + 1) / N)[:, None, None] * np.abs(distance_TS)
    if position == "t5":
        score_NTS = score_NTS + np.moveaxis(table[t5_bucket(distance_TS, future)], -1, 0)
    return np.einsum("nts,snh->tnh", softmax(score_NTS, seen_TS), v_SNH)
