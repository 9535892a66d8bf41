"""Product-key memory, Memory+, PEER and Engram: every entry scored, every n-gram hashed in Python's integers."""

from __future__ import annotations

import numpy as np

from tests.golden.base import VOCAB, D, Golden, sigmoid, softmax, token

HEADS, KEYS, TOP, KEY_DIM, E = 2, 4, 3, 4, 6


def gelu(x):
    """The form by tanh."""
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def normed(x, scale, shift=None):
    """RMSNorm, or LayerNorm where there is a shift."""
    if shift is not None:
        x = x - x.mean()
    y = x / np.sqrt((x * x).mean() + 1e-6) * scale
    return y if shift is None else y + shift


def mapped(a, name: str, x):
    """x W + b, b only if there is one."""
    return x @ a[f"param.{name}.w"] + a.get(f"param.{name}.b", 0)


def chosen(a, x, heads: int, top_k: int, subkeys: int, qk_norm: bool | None = None):
    """(weight, entry) of everything that a token reads, head by head: the softmax of the best of all subkeys^2 scores."""
    found, sub = [], a["param.search.keys"]
    if qk_norm:
        sub = sub / np.sqrt((sub * sub).mean(-1, keepdims=True) + 1e-6) / np.sqrt(sub.shape[-1])
    for head, q in enumerate(np.split(mapped(a, "search.query", x), heads)):
        if qk_norm:
            q = normed(q, a["param.search.norm.scale"])
        elif qk_norm is None:
            q = normed(q, a["param.search.norm.scale"], a["param.search.norm.bias"])
        left, right = np.split(q, 2)
        mine = sub[:, min(head, sub.shape[1] - 1)]
        score = np.array([mine[0, i] @ left + mine[1, j] @ right for i in range(subkeys) for j in range(subkeys)])
        best = np.argsort(-np.real(score))[:top_k]
        found += zip(softmax(score[best], np.ones(top_k, bool)), best, strict=True)
    return found


def product_key(a, position: str, subkeys: int, heads: int, top_k: int, key_dim: int, bias: bool = False):
    return np.stack([sum(w * a["param.values"][i] for w, i in chosen(a, x, heads, top_k, subkeys)) for x in a["x.x"]])


def memory_plus(a, position: str, subkeys: int, heads: int, top_k: int, key_dim: int, value_dim: int, **other):
    outs, values = [], a["shared.memory_plus/values"]
    for x in a["x.x"]:
        read = sum(w * values[i] for w, i in chosen(a, x, heads, top_k, subkeys, other["qk_norm"]))
        gate = mapped(a, "gate", x)
        outs.append(mapped(a, "out", gate * sigmoid(gate) * read))
    return np.stack(outs)


def peer(a, position: str, subkeys: int, heads: int, top_k: int, key_dim: int):
    up, down = a["param.up"], a["param.down"]
    return np.stack([sum(w * gelu(up[i] @ x) * down[i] for w, i in chosen(a, x, heads, top_k, subkeys)) for x in a["x.x"]])


def primes_from(start: int, count: int) -> list[int]:
    found, n = [], start
    while len(found) < count:
        if n > 1 and all(n % d for d in range(2, n)):
            found.append(n)
        n += 1
    return found


def engram(a, position: str, orders, heads: int, rows: int, dim: int, kernel: int, dilation: int, seed: int, pad: int, **other):
    """e_t = concat E_nk[hash]; g = sig(sgn(a) sqrt|a|); v = g e Wv; y = SiLU(conv(RMS(v))) + v."""
    x_TD, canonical = a["x.x"], other["canonical"] or range(VOCAB)
    words = [canonical[v] for v in token(x_TD)]
    bound = (2**63 - 1) // (max(canonical) + 1) // 2
    multiplier = [2 * int(m) + 1 for m in np.random.default_rng(seed).integers(0, bound, max(orders))]
    prime = primes_from(rows, len(orders) * heads)
    values, normal = [], []
    for t, x in enumerate(x_TD):
        read = []
        for which in range(len(orders) * heads):
            mixed = 0
            for j in range(orders[which // heads]):
                mixed ^= (words[t - j] if t >= j else pad) * multiplier[j]
            read.append(a["param.table"][sum(prime[:which]) + mixed % prime[which]])
        e = np.concatenate(read)
        h, k = normed(x, a["param.query_norm.scale"]), normed(e @ a["param.key.w"], a["param.key_norm.scale"])
        match = h @ k / np.sqrt(D)
        sign = np.sign(match.real)
        size = match * sign
        gate = sigmoid(sign * (np.sqrt(size) if size.real > 1e-6 else 1e-3))
        values.append(gate * (e @ a["param.value.w"]))
        normal.append(normed(values[-1], a["param.conv_norm.scale"]))
    outs = []
    for t, v in enumerate(values):
        taps = [(j, t - dilation * (kernel - 1 - j)) for j in range(kernel)]
        mixed = sum(a["param.conv"][j] * normal[s] for j, s in taps if s >= 0)
        outs.append(v + mixed * sigmoid(mixed))
    return np.stack(outs)


_SIZES = {"subkeys": KEYS, "heads": HEADS, "top_k": TOP, "key_dim": KEY_DIM}


def _search(sets: int, *norms: str) -> dict:
    shapes: dict[str, tuple[int, ...]] = {"x.x": (16, D), "param.search.query.w": (D, HEADS * KEY_DIM)}
    shapes["param.search.keys"] = (2, sets, KEYS, KEY_DIM // 2)
    return shapes | {f"param.search.norm.{name}": (KEY_DIM,) for name in norms}


_PLUS = {"shared.memory_plus/values": (KEYS**2, E), "param.gate.w": (D, E), "param.out.w": (E, D)}
_BIASES = {"param.search.query.b": (HEADS * KEY_DIM,)}
_PLUS_BIASES = _BIASES | {"param.gate.b": (E,), "param.out.b": (D,)}
_EXPERTS = {"param.up": (KEYS**2, D), "param.down": (KEYS**2, D)}
_ENGRAM = {
    "x.x": (16, D),
    "param.table": (5 + 7 + 11 + 13, 3),
    "param.key.w": (12, D),
    "param.value.w": (12, D),
    "param.conv": (3, D),
} | {f"param.{name}_norm.scale": (D,) for name in ("query", "key", "conv")}

GOLDENS = {
    "product_key": Golden("product_key", product_key, _search(HEADS, "bias", "scale") | {"param.values": (KEYS**2, D)}, _SIZES),
    "memory_plus": Golden("memory_plus", memory_plus, _search(HEADS) | _PLUS, _SIZES | {"value_dim": E, "qk_norm": False}),
    "memory_plus-qk_norm": Golden(
        "memory_plus", memory_plus, _search(HEADS, "scale") | _PLUS, _SIZES | {"value_dim": E, "qk_norm": True}
    ),
    "product_key-bias": Golden(
        "product_key",
        product_key,
        _search(HEADS, "bias", "scale") | _BIASES | {"param.values": (KEYS**2, D)},
        _SIZES | {"bias": True},
    ),
    "memory_plus-bias": Golden(
        "memory_plus",
        memory_plus,
        _search(HEADS) | _PLUS | _PLUS_BIASES,
        _SIZES | {"value_dim": E, "qk_norm": False, "bias": True},
    ),
    "peer": Golden("peer", peer, _search(1, "bias", "scale") | _EXPERTS, _SIZES),
    "engram": Golden(
        "engram",
        engram,
        _ENGRAM,
        {"orders": [2, 3], "heads": 2, "rows": 5, "dim": 3, "kernel": 3, "dilation": 2, "seed": 7, "pad": 1, "conv_scale": 0.5}
        | {"canonical": [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 8, 9, 10]},
    ),
}
