"""Oracles of memories in compressed states, state vectors and memory tokens: compressive, block_recurrent, rmt and armt."""

from __future__ import annotations

import numpy as np

from tests.golden.base import TIME, D, Golden, H, K, N, pairwise, sigmoid, softmax
from tests.golden.cached import RELATIVE, XL, relative_attention


def content_attention(a, h, entries):
    """Return softmax((h Wq) (m Wk)), by contents alone, as weights [N, T, S], and the reads [T, N, H]."""
    q = (h @ a["param.q.w"]).reshape(-1, N, H)
    k, v = ((entries @ a[f"param.{x}.w"]).reshape(-1, N, H) for x in "kv")
    weight = softmax(np.einsum("tnh,snh->nts", q, k) / np.sqrt(H), np.ones((len(h), len(entries)), bool))
    return weight, np.einsum("nts,snh->tnh", weight, v)


def squeeze(a, old, h, rate: int, compression: str):
    """f_c(old)."""
    groups = old.reshape(len(old) // rate, rate, D)
    if compression == "conv":
        return groups.reshape(len(groups), -1) @ a["param.conv.w"]
    if compression == "most_used":
        usage = content_attention(a, h, old)[0].mean((0, 1))
        return old[sorted(np.argsort(-usage.real)[: len(groups)])]
    return {"mean": np.mean, "max": np.max}[compression](groups, 1)


def compressive(a, position: str, segment: int, memory: int, compressed: int, rate: int, compression: str, losses=None):
    """Appends the attention reconstruction loss of each segment that pushes something out to `losses`, if given."""
    mem, squeezed, outs = np.zeros((0, D)), np.zeros((0, D)), []
    for start in range(0, TIME, segment):
        h = a["x.x"][start : start + segment]
        outs.append(relative_attention(a, np.concatenate([squeezed, mem]).real, h, position))
        if len(mem) == memory:
            old = mem[:segment].real
            new = squeeze(a, old, h.real, rate, compression)
            squeezed = np.concatenate([squeezed, new.real])[-compressed:]
            if losses is not None:
                losses.append(((content_attention(a, h, old)[1] - content_attention(a, h, new)[1]) ** 2).mean())
        mem = np.concatenate([mem, h])[-memory:]
    return np.concatenate(outs)


def block_recurrent(a, position: str, block: int, window: int, states: int, gate: str, blocks: int, normalize: bool):
    """One block of tokens after the other; S changes at the end of each."""
    x, state, outs = a["x.x"], a["param.initial"], []
    t = np.arange(TIME)
    distance = t[:, None] - t

    def direction(vectors):
        return vectors / np.sqrt((vectors**2).sum(-1, keepdims=True) + 1e-6) if normalize else vectors

    def keys_values(kind, entries):
        k, v = (np.repeat((entries @ a[f"param.{x}{kind}.w"]).reshape(-1, K, H), N // K, 1) for x in "kv")
        return direction(k), v

    def queries(kind, entries):
        q = direction((entries @ a[f"param.q{kind}.w"]).reshape(-1, N, H))
        if not normalize:
            return q
        scale = a[f"param.q{kind}.scale"]
        return q * (scale * np.sign(scale.real))[:, None] * np.sqrt(H)  # pairwise divides by sqrt(H)

    def plain(q, keys, values):
        shape = (len(q), len(keys))
        return pairwise(q, keys, values, np.ones(shape, bool), np.zeros(shape), "none").reshape(shape[0], -1)

    k_x, v_x = keys_values("", x)
    own = pairwise(queries("", x), k_x, v_x, (distance >= 0) & (distance < window), distance, position)

    for start in range(0, TIME, block):
        now = slice(start, start + block)
        scale = a["param.norm.scale"] / np.sqrt((state**2).mean(-1, keepdims=True) + 1e-6)
        s = state * scale + a["param.ids"]
        k_s, v_s = keys_values("_state", s)
        cross = plain(queries("_cross", x[now]), k_s, v_s)
        outs.append(np.concatenate([own[now].reshape(block, -1), cross], 1) @ a["param.out.w"])
        past = slice(max(0, now.stop - blocks * block), now.stop)
        read = [plain(queries("_state", s), k_s, v_s), plain(queries("_state_cross", s), k_x[past], v_x[past])]
        z = np.concatenate(read, 1) @ a["param.update.w"] + a["param.update.b"]
        if gate == "fixed":
            keep = sigmoid(a["param.keep"])
            state = keep * state + (1 - keep) * z
        else:
            z, i, f = np.split(z, 3, 1)
            state = sigmoid(f + 1) * state + sigmoid(i - 1) * np.tanh(z)
    return np.concatenate(outs)


def block_of(a, path: str, x, capacity: int, future: bool = False):
    """A pre-norm block of attention to the last `capacity` tokens, or to all, and a SwiGLU network; x is all it ever sees."""
    p = {key.removeprefix(path): value[0] for key, value in a.items() if key.startswith(path)}  # a stack of one group

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale

    h = norm(x, p["norms.0.scale"])
    q = (h @ p["branches.0.attention.q.w"]).reshape(-1, N, H)
    k, v = (np.repeat((h @ p[f"branches.0.attention.{x}.w"]).reshape(-1, K, H), N // K, 1) for x in "kv")
    distance = np.arange(len(x))[:, None] - np.arange(len(x))
    y = pairwise(q, k, v, future | (distance >= 0) & (distance < capacity), distance, "rope")
    x = x + y.reshape(len(x), -1) @ p["branches.0.attention.out.w"]
    gate, up = (norm(x, p["norms.1.scale"]) @ p[f"branches.1.memories.0.{name}.w"] for name in ("gate", "up"))
    return x + (gate * sigmoid(gate) * up) @ p["branches.1.memories.0.down.w"]


CAPACITY = 7  # of `full` in the contract tests
LAYER = "param.body.bodies.0.layers.0."


def rmt(a, position: str, segment: int, memory: int):
    m, outs = a["param.initial"], []
    for start in range(0, TIME, segment):
        y = block_of(a, LAYER, np.concatenate([m, a["x.x"][start : start + segment], m]), CAPACITY)
        outs.append(y[memory:-memory])
        last = y[-memory:]
        m = last / np.sqrt((last**2).mean(-1, keepdims=True) + 1e-6) * a["param.norm.scale"]
    return np.concatenate(outs)


def rmt_encoder(a, position: str, segment: int, memory: int):
    """Memory tokens come only before the text. Each call of 4 tokens is cut into segments, of which the last is shorter."""
    m, outs = a["param.initial"], []
    for call in range(0, TIME, 4):
        for start in range(call, call + 4, segment):
            text = a["x.x"][start : min(start + segment, call + 4)]
            y = block_of(a, LAYER, np.concatenate([m, text]), TIME, future=True)
            outs.append(y[memory:])
            m = y[:memory] / np.sqrt((y[:memory] ** 2).mean(-1, keepdims=True) + 1e-6) * a["param.norm.scale"]
    return np.concatenate(outs)


def phi(u, nu: int):
    """DPFP: products of rectified features with those j places before them, for j = 1..nu; of length 1."""
    r = np.concatenate([u * (u.real > 0), -u * (u.real < 0)])
    products = np.array([r[i] * r[i - j] for j in range(1, nu + 1) for i in range(len(r))])
    return products / np.sqrt((products**2).sum() + 1e-12)


def armt(a, position: str, segment: int, memory: int, features: int, nu: int, **_):
    size, e, outs = 2 * nu * features, 1e-5, []
    matrix, z = np.zeros((size, D)), np.zeros(size)
    q, k, v, beta_w, beta_b = (a[LAYER + name][0] for name in ("q.w", "k.w", "v.w", "beta.w", "beta.b"))
    for start in range(0, TIME, segment):
        h = np.concatenate([a["x.x"][start : start + segment], a["param.initial"]])
        if start:
            keys = [phi(row @ q, nu) for row in h]
            h = h + np.stack([key @ matrix / (key @ z + e) for key in keys])
        y = block_of(a, LAYER + "layer.", h, CAPACITY)
        outs.append(y[:segment])
        add, more = 0, 0
        for m in y[segment:]:
            key, beta = phi(m @ k, nu), sigmoid(m @ beta_w + beta_b)
            known = key @ matrix / (key @ z + e) if start else 0
            gamma = np.clip(1 - np.real(key @ z + e) / (np.real(key @ key) + e), 0, 1) if start else 1
            add, more = add + np.outer(key, beta * (m @ v - known)), more + gamma * key
        matrix, z = matrix + add, z + more
    return np.concatenate(outs)


_BLOCK = {
    "norms.0.scale": (1, D),
    "branches.0.attention.q.w": (1, D, N * H),
    "branches.0.attention.k.w": (1, D, K * H),
    "branches.0.attention.v.w": (1, D, K * H),
    "branches.0.attention.out.w": (1, N * H, D),
    "norms.1.scale": (1, D),
    "branches.1.memories.0.gate.w": (1, D, 16),
    "branches.1.memories.0.up.w": (1, D, 16),
    "branches.1.memories.0.down.w": (1, 16, D),
}


def _rmt(name: str = "rmt", oracle=rmt, segment: int = 4) -> Golden:
    shapes = {LAYER + key: shape for key, shape in _BLOCK.items()}
    shapes |= {"x.x": (TIME, D), "param.initial": (2, D), "param.norm.scale": (D,)}
    # With N(0, 1), float32's rounding of the inputs changes the oracle's own y by up to 1.4 %.
    return Golden(name, oracle, shapes, {"segment": segment, "memory": 2}, scale=0.5)


def _armt() -> Golden:
    shapes = {f"{LAYER}layer.{key}": shape for key, shape in _BLOCK.items()}
    maps = {"q.w": (1, D, 3), "k.w": (1, D, 3), "v.w": (1, D, D), "beta.w": (1, D, 1), "beta.b": (1, 1)}
    shapes |= {LAYER + key: shape for key, shape in maps.items()} | {"x.x": (TIME, D), "param.initial": (2, D)}
    return Golden("armt", armt, shapes, {"segment": 4, "memory": 2, "features": 3, "nu": 2, "value_scale": 0.3})


def _compressive(compression: str, position: str = "relative") -> Golden:
    shapes = XL | (RELATIVE if position == "relative" else {})
    if compression == "conv":
        shapes = shapes | {"param.conv.w": (2 * D, D)}
    sizes = {"segment": 4, "memory": 4, "compressed": 3, "rate": 2}
    return Golden("compressive", compressive, shapes, sizes | {"compression": compression, "position": position})


def _block_recurrent(gate: str, blocks: int = 2, normalize: bool = False) -> Golden:
    sizes, gates = {"block": 4, "window": 5, "states": 3}, {"fixed": 1, "lstm": 3}[gate]
    inner = N * H
    shapes = {
        "x.x": (TIME, D),
        "param.q.w": (D, inner),
        "param.q_cross.w": (D, inner),
        "param.k.w": (D, K * H),
        "param.v.w": (D, K * H),
        "param.out.w": (2 * inner, D),
        "param.q_state.w": (D, inner),
        "param.q_state_cross.w": (D, inner),
        "param.k_state.w": (D, K * H),
        "param.v_state.w": (D, K * H),
        "param.update.w": (2 * inner, gates * D),
        "param.update.b": (gates * D,),
        "param.initial": (3, D),
        "param.ids": (3, D),
        "param.norm.scale": (D,),
    }
    if gate == "fixed":
        shapes["param.keep"] = (D,)
    if normalize:
        shapes |= {f"param.q{kind}.scale": (N,) for kind in ("", "_cross", "_state", "_state_cross")}
    return Golden("block_recurrent", block_recurrent, shapes, sizes | {"gate": gate, "blocks": blocks, "normalize": normalize})


GOLDENS = {
    **{f"compressive-{name}": _compressive(name) for name in ("conv", "mean", "max", "most_used")},
    "compressive-rope": _compressive("conv", "rope"),
    **{f"block_recurrent-{gate}": _block_recurrent(gate) for gate in ("fixed", "lstm")},
    "block_recurrent-normalize": _block_recurrent("fixed", 1, True),
    "rmt": _rmt(),
    "rmt_encoder": _rmt("rmt_encoder", rmt_encoder, 3),
    "armt": _armt(),
}
