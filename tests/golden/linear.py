"""Oracles of the matrix memories: linear_attention, retnet, gla, deltanet, gated_deltanet, kda. One token after the other.

T time, N heads, H head dim (keys and values alike), E = 3 N H.
"""

from __future__ import annotations

import numpy as np

from tests.golden.base import TIME, D, Golden, H, N, rotate, sigmoid

TAPS, RANK = 3, 3


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.log(1 + np.exp(x))


def norm(x, scale):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def heads(a) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return q, k, v of all tokens. Those of a head are adjacent in the input."""
    z = a["x.x"] @ a["param.qkv.w"]
    if "param.conv.w" in a:
        padded = np.concatenate([np.zeros((TAPS - 1, z.shape[1])), z])
        z = silu(np.stack([(padded[t : t + TAPS] * a["param.conv.w"]).sum(0) for t in range(TIME)]))
    return tuple(np.moveaxis(z.reshape(TIME, N, 3, H), 2, 0))


def by_token(q, k, v, decay, beta=None) -> np.ndarray:
    """decay_TNH is the factor, not its log; with beta_TN the delta rule."""
    s, outs = np.zeros((N, H, v.shape[-1])), []
    for t in range(TIME):
        s = decay[t][..., None] * s
        u = v[t] if beta is None else beta[t][:, None] * (v[t] - (s * k[t][..., None]).sum(1))
        s = s + k[t][:, :, None] * u[:, None, :]
        outs.append((s * q[t][..., None]).sum(1))
    return np.stack(outs)


def out(a, o, gate: np.ndarray | float = 1.0):
    return (norm(o, a["param.norm.scale"]).reshape(TIME, -1) * gate) @ a["param.out.w"]


def gate(a):
    return silu(a["x.x"] @ a["param.gate.w"])


def linear_attention(a, **_):
    q, k, v = heads(a)
    q, k = (np.where(np.real(x) > 0, x + 1, np.exp(x)) for x in (q, k))
    y = []
    for t in range(TIME):
        weight = (q[t] * k[: t + 1]).sum(-1)
        y.append((weight[..., None] * v[: t + 1]).sum(0) / weight.sum(0)[:, None])
    return np.stack(y).reshape(TIME, -1) @ a["param.out.w"]


def retnet(a, **_):
    """The parallel form of the paper: every pair at its distance."""
    q, k, v = heads(a)
    gamma, o = 1 - 2.0 ** (-5 - np.arange(N)), np.zeros_like(v)
    for t in range(TIME):
        for j in range(t + 1):
            score = (rotate(q[t : t + 1], np.array([t - j]))[0] * k[j]).sum(-1) / np.sqrt(H)
            o[t] += (gamma ** (t - j) * score)[:, None] * v[j]
    return out(a, o, gate(a))


def gla(a, **_):
    q, k, v = heads(a)
    logit = a["x.x"] @ a["param.decay.down.w"] @ a["param.decay.up.w"] + a["param.decay.up.b"]
    decay = sigmoid(logit) ** (1 / 16)
    return out(a, by_token(q / np.sqrt(H), k, v, decay.reshape(TIME, N, H)), gate(a))


def delta_family(a, decay, gate: np.ndarray | float = 1.0):
    q, k, v = heads(a)
    beta = sigmoid(a["x.x"] @ a["param.beta.w"])
    return out(a, by_token(unit(q) / np.sqrt(H), unit(k), v, decay, beta), gate)


def deltanet(a, **_):
    return delta_family(a, np.ones((TIME, N, H)))


def kept(a, logit_TNG):
    """exp(-exp(A) softplus(. + b)) for each key dimension."""
    rate = np.exp(a["param.a_log"])[:, None] * softplus(logit_TNG + a["param.step_bias"])
    return np.broadcast_to(np.exp(-rate), (TIME, N, H))


def gated_deltanet(a, **_):
    return delta_family(a, kept(a, (a["x.x"] @ a["param.decay.w"])[..., None]), gate(a))


def kda(a, **_):
    logit = (a["x.x"] @ a["param.decay.down.w"] @ a["param.decay.up.w"]).reshape(TIME, N, H)
    gate = sigmoid(a["x.x"] @ a["param.gate.down.w"] @ a["param.gate.up.w"] + a["param.gate.up.b"])
    return delta_family(a, kept(a, logit), gate)


_BASE = {"x.x": (TIME, D), "param.qkv.w": (D, 3 * N * H), "param.out.w": (N * H, D)}
_NORM, _GATE = {"param.norm.scale": (H,)}, {"param.gate.w": (D, N * H)}
_DELTA = _BASE | _NORM | {"param.conv.w": (TAPS, 3 * N * H), "param.beta.w": (D, N)}
_GATED = _DELTA | {"param.a_log": (N,)}


def _low_rank(name: str, rank: int) -> dict[str, tuple[int, ...]]:
    return {f"param.{name}.down.w": (D, rank), f"param.{name}.up.w": (rank, N * H)}


_KDA = _low_rank("decay", H) | _low_rank("gate", H) | {"param.gate.up.b": (N * H,), "param.step_bias": (N, H)}
_CONV = {"chunk": 4, "conv": TAPS}

GOLDENS = {
    "linear_attention": Golden("linear_attention", linear_attention, _BASE, {"chunk": 4}),
    "retnet": Golden("retnet", retnet, _BASE | _NORM | _GATE, {"chunk": 4}),
    "gla": Golden(
        "gla",
        gla,
        _BASE | _NORM | _GATE | _low_rank("decay", RANK) | {"param.decay.up.b": (N * H,)},
        {"chunk": 4, "rank": RANK},
    ),
    "deltanet": Golden("deltanet", deltanet, _DELTA, _CONV),
    "gated_deltanet": Golden(
        "gated_deltanet", gated_deltanet, _GATED | _GATE | {"param.decay.w": (D, N), "param.step_bias": (N, 1)}, _CONV
    ),
    "kda": Golden("kda", kda, _GATED | _KDA, _CONV),
}
