"""Oracles of mechanisms with fast weights: infini, titans_mac, titans_mag, titans_mal.

Titans' memory is written out: each token's whole gradient, momentum and weights, one token after the other.

W features, I features in, O features out, C segment, P persistent tokens.
"""

from __future__ import annotations

import numpy as np

from tests.golden.base import TIME, D, Golden, H, K, N, pairwise, sigmoid

# --- Infini-attention -------------------------------------------------------------------------------------------------------


def feature(x):
    return np.where(x.real > 0, x + 1, np.exp(np.where(x.real > 0, 0, x)))


def infini(a, position: str, segment: int, rule: str):
    q = a["x.q"]
    k, v = (np.repeat(a[name], N // K, 1) for name in ("x.k", "x.v"))
    outs, gate = [], sigmoid(a["param.gate"])
    memory, z = np.zeros((N, H, H)), np.zeros((N, H))

    def recall(x_TNH):
        if not outs:
            return np.zeros_like(x_TNH)
        s = feature(x_TNH)
        return np.einsum("tnh,nhi->tni", s, memory) / np.einsum("tnh,nh->tn", s, z)[..., None]

    for start in range(0, TIME, segment):
        one = slice(start, start + segment)
        distance = np.arange(segment)[:, None] - np.arange(segment)
        local = pairwise(q[one], k[one], v[one], distance >= 0, distance, position, a.get("shared.relative_bias"))
        y = gate[:, None] * recall(q[one]) + (1 - gate[:, None]) * local
        target = v[one] - recall(k[one]) if rule == "delta" else v[one]
        memory = memory + np.einsum("tnh,tni->nhi", feature(k[one]), target)
        z = z + feature(k[one]).sum(0)
        outs.append(y)
    return np.concatenate(outs)


# --- Titans -----------------------------------------------------------------------------------------------------------------


def silu(x):
    return x * sigmoid(x)


def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def rms(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def convolved(x_TW, kernel_CW):
    """silu of sum_i kernel_i x_{t - taps + 1 + i}"""
    outs = []
    for t in range(len(x_TW)):
        taken = [(i, t - len(kernel_CW) + 1 + i) for i in range(len(kernel_CW))]
        outs.append(sum(kernel_CW[i] * x_TW[j] for i, j in taken if j >= 0))
    return silu(np.stack(outs))


def mlp(weights, x_NI):
    for w in weights[:-1]:
        x_NI = silu(np.einsum("ni,nio->no", x_NI, w))
    return np.einsum("ni,nio->no", x_NI, weights[-1])


def mlp_gradient(weights, k_NH, v_NH):
    """d |M(k) - v|^2 / d W, by hand: backwards through each layer."""
    zs, layers = [], [k_NH]
    for w in weights[:-1]:
        zs.append(np.einsum("ni,nio->no", layers[-1], w))
        layers.append(silu(zs[-1]))
    error, grads = 2 * (np.einsum("ni,nio->no", layers[-1], weights[-1]) - v_NH), []
    for i in reversed(range(len(weights))):
        grads.append(np.einsum("ni,no->nio", layers[i], error))
        if i:
            s = sigmoid(zs[i - 1])
            error = np.einsum("no,nio->ni", error, weights[i]) * (s + zs[i - 1] * s * (1 - s))
    return grads[::-1]


class Memory:
    """One stream's memory; `at` is where its parameters are."""

    def __init__(self, a, chunk: int, depth: int, lr: float):
        self.a = {key.removeprefix("param.memory."): value for key, value in a.items()}
        self.chunk, self.lr, self.count = chunk, lr, 0
        self.now = [self.a[f"first.{i}"] for i in range(depth)]
        self.start, self.momentum = self.now, [0 * w for w in self.now]

    def heads(self, x_TD):
        """q, k, v and gate logits of every token: [T, N, ...]"""
        qkv = convolved(x_TD @ self.a["qkv.w"], self.a["conv.w"]).reshape(len(x_TD), N, 3 * H)
        q, k, v = np.split(qkv, 3, -1)
        return unit(q), unit(k), v, (x_TD @ self.a["gates"] + self.a["gates_bias"]).reshape(len(x_TD), N, 3)

    def learn(self, k_NH, v_NH, logits_N3):
        if self.count % self.chunk == 0:
            self.start = self.now
        theta, eta, alpha = np.moveaxis(sigmoid(logits_N3), -1, 0)[..., None, None]
        grads = mlp_gradient(self.start, k_NH, v_NH)
        self.momentum = [eta * s - self.lr / self.chunk * theta * g for s, g in zip(self.momentum, grads, strict=True)]
        self.now = [(1 - alpha) * w + s for w, s in zip(self.now, self.momentum, strict=True)]
        self.count += 1

    def merge(self, y_NH):
        return (rms(y_NH) * self.a["norm"]).reshape(-1) @ self.a["out.w"]

    def layer(self, x_TD):
        q, k, v, logits = self.heads(x_TD)
        outs = []
        for t in range(len(x_TD)):
            self.learn(k[t], v[t], logits[t])
            outs.append(self.merge(mlp(self.now, q[t])))
        return np.stack(outs)


def attention(a, x_TD, context_SD, seen_TS, distance_TS, position: str):
    """Queries of x to keys of a context and to the persistent tokens, which are seen by all, at distance 0."""
    tokens = a["param.near.tokens"]
    q = (x_TD @ a["param.near.attention.q.w"]).reshape(-1, N, H)
    h = np.concatenate([tokens, context_SD])
    k, v = (np.repeat((h @ a[f"param.near.attention.{x}.w"]).reshape(-1, K, H), N // K, 1) for x in "kv")
    seen = np.concatenate([np.ones((len(x_TD), len(tokens)), bool), seen_TS], 1)
    distance = np.concatenate([np.zeros((len(x_TD), len(tokens)), int), distance_TS], 1)
    return pairwise(q, k, v, seen, distance, position).reshape(len(x_TD), -1) @ a["param.near.attention.out.w"]


def windowed(a, x_TD, position: str, window: int):
    distance = np.arange(TIME)[:, None] - np.arange(TIME)
    return attention(a, x_TD, x_TD, (distance >= 0) & (distance < window), distance, position)


def gated(a, y_TD, m_TD):
    return rms(y_TD) * a["param.gate.y_norm.scale"] * sigmoid(rms(m_TD) * a["param.gate.m_norm.scale"])


def titans_mag(a, position: str, chunk: int, depth: int, window: int, lr: float, **config):
    return gated(a, windowed(a, a["x.x"], position, window), Memory(a, chunk, depth, lr).layer(a["x.x"]))


def titans_mal(a, position: str, chunk: int, depth: int, window: int, lr: float, **config):
    return windowed(a, Memory(a, chunk, depth, lr).layer(a["x.x"]), position, window)


def titans_mac(a, position: str, chunk: int, depth: int, lr: float, **config):
    x, memory = a["x.x"], Memory(a, chunk, depth, lr)
    query = unit(convolved(x @ a["param.query.w"], a["param.conv.w"]).reshape(TIME, N, H))
    ys, outs = np.zeros((0, D)), []
    for t in range(TIME):
        begin = t - t % chunk
        if t == begin:
            h = np.zeros((0, D))
            frozen = memory.now
        h = np.concatenate([h, memory.merge(mlp(frozen, query[t]))[None]])
        context = np.concatenate([h, x[begin : t + 1]])
        distance = np.tile(np.arange(t - begin, -1, -1), 2)[None]
        y = attention(a, x[t : t + 1], context, distance >= 0, distance, position)
        ys = np.concatenate([ys, y])
        q, k, v, logits = (part[-1] for part in memory.heads(ys))
        memory.learn(k, v, logits)
        outs.append(gated(a, y[0], memory.merge(mlp(memory.now, q))))
    return np.stack(outs)


# --- the cases --------------------------------------------------------------------------------------------------------------


def _infini(rule: str, position: str = "rope") -> dict[str, Golden]:
    shapes = {"x.q": (TIME, N, H), "x.k": (TIME, K, H), "x.v": (TIME, K, H), "param.gate": (N,)}
    shapes |= {"shared.relative_bias": (32, N)} if position == "t5" else {}
    return {f"infini-{rule}-{position}": Golden("infini", infini, shapes, {"segment": 4, "rule": rule}, position)}


def _titans(name: str, oracle, depth: int, shapes: dict, **config) -> dict[str, Golden]:
    hidden, inner = 2 * H, N * H
    widths = [H, *[hidden] * (depth - 1), H]
    memory = {"qkv.w": (D, 3 * inner), "conv.w": (4, 3 * inner), "gates": (D, 3 * N), "gates_bias": (3 * N,)}
    memory |= {f"first.{i}": (N, widths[i], widths[i + 1]) for i in range(depth)}
    memory |= {"norm": (N, H), "out.w": (inner, D)}
    near = {"tokens": (2, D), "attention.q.w": (D, inner), "attention.out.w": (inner, D)}
    near |= {f"attention.{x}.w": (D, K * H) for x in "kv"}
    shapes = {"x.x": (TIME, D)} | shapes
    shapes |= {f"param.memory.{key}": shape for key, shape in memory.items()}
    shapes |= {f"param.near.{key}": shape for key, shape in near.items()}
    config |= {"chunk": 4, "depth": depth, "persistent": 2, "expansion": 2, "clip": 0.0}
    return {name: Golden(name, oracle, shapes, config, scale=0.4)}


_GATE = {"param.gate.y_norm.scale": (D,), "param.gate.m_norm.scale": (D,)}
_QUERY = {"param.query.w": (D, N * H), "param.conv.w": (4, N * H)}

GOLDENS = {
    **_infini("delta"),
    **_infini("linear", "alibi"),
    **_infini("linear", "t5"),
    **_titans("titans_mac", titans_mac, 2, _GATE | _QUERY, lr=0.001),
    **_titans("titans_mag", titans_mag, 1, _GATE, window=5, lr=0.1),
    **_titans("titans_mal", titans_mal, 3, {}, window=5, lr=0.01),
}
