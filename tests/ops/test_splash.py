"""The TPU's attention kernel, interpreted, is the definition: values and gradients, alone and in the mechanisms that use it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.core import Dims, reset, segment
from memtx.memory import MEMORIES
from memtx.nn import attention
from memtx.ops import splash
from memtx.ops.attention import View, attend
from memtx.runs.configure import configure, load_config
from memtx.runs.estimate import estimate

H = 8


def arrays(seed: int, batch: int, time: int, keys: list[int], heads: int = 4, kv_heads: int = 2):
    rng = np.random.default_rng(seed)
    draw = lambda *size: jnp.asarray(rng.normal(size=size), jnp.float32)  # noqa: E731
    q = draw(batch, time, heads, H)
    return q, [draw(batch, size, kv_heads, H) for size in keys], [draw(batch, size, kv_heads, H) for size in keys]


def call(time: int, **more):
    return {"position_BT": np.arange(time)[None], "key_position_BS": np.arange(time)[None], **more}


def recent(time: int, size: int, valid_B, **more):
    """The `size` tokens before a call, of which valid_B exist in each row."""
    valid = jnp.arange(size) >= size - jnp.asarray(valid_B)[:, None]
    at = {"position_BT": np.arange(time)[None], "key_position_BS": np.arange(-size, 0)[None]}
    return {**at, "valid_BS": valid, **more}


SETS = {
    "causal": (128, [call(128)]),
    "window and ring, odd sizes, ragged": (150, [recent(150, 70, [70, 11], window=70), call(150, window=70)]),
    "ring of a cache": (128, [recent(128, 200, [200, 0], window=200), call(128, window=200)]),
    "every key, ragged": (140, [call(140, future=True, valid_BS=jnp.arange(140) < jnp.array([[140], [60]]))]),
}


@pytest.mark.parametrize("name", SETS)
def test_the_kernel_is_the_definition(name):
    time, sets = SETS[name]
    q, ks, vs = arrays(0, 2, time, [each["key_position_BS"].shape[1] for each in sets])
    probe = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)

    def loss(attend, q, ks, vs):
        views = [View(q, k, v, **each) for k, v, each in zip(ks, vs, sets, strict=True)]
        y = attend(views)
        return (y * probe).sum(), y

    kernel, plain = (
        jax.jit(jax.value_and_grad(partial(loss, f), (0, 1, 2), has_aux=True))(q, ks, vs)
        for f in (partial(splash.attend, interpret=True), attend)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), kernel, plain)


def test_sets_that_a_kernel_cannot_express_have_a_reason():
    q, (k,), (v,) = arrays(0, 1, 128, [128])
    short = [View(q, k, v, **call(128))]
    q, k, v = (jnp.concatenate([a] * 8, -1) for a in (q, k, v))
    assert splash.obstacle([View(q, k, v, **call(128))]) == ""
    late = View(q, k, v, np.arange(128)[None], np.arange(-128, 0)[None], window=9)  # its last queries see nothing
    unknown = View(q, k, v, jnp.arange(128)[None], jnp.arange(128)[None])
    chunks = View(q, k, v, **call(128), chunk_BT=jnp.zeros((1, 128)), key_chunk_BS=jnp.zeros((1, 128)))
    reasons = {
        "not a multiple of 64": short,
        "position bias": [View(q, k, v, **call(128), bias=lambda *_: 0.0)],
        "only the data decide": [unknown],
        "a query may see no key": [late],
    }
    for reason, views in reasons.items():
        assert reason in splash.obstacle(views)
    assert splash.obstacle([chunks]) == splash.obstacle([unknown])


def test_a_program_for_a_tpu_that_cannot_use_the_kernel_says_so_once():
    config = configure(load_config("configs/lm.py:memory=window,size=micro"))
    with pytest.warns(UserWarning, match="instead of using the kernel for TPUs: heads have 32 features") as found:
        estimate(config, "v5e:1x1", vocab_size=260)
    assert len({str(warning.message) for warning in found}) == 1


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "settings"), [("window", {"window": 40}), ("full", {"capacity": 150}), ("bidirectional", {})], ids=lambda a: str(a)
)
def test_a_mechanism_with_the_kernel_is_the_same(monkeypatch, name, settings):
    """Three calls, with gradients through all of them. One row is ragged, and one begins a document in the second call."""
    dims, cls = Dims(2 * H, 2, 1, H), MEMORIES[name]
    layer, used = cls(cls.Config(**settings), dims, jax.random.key(0)), []
    rng = np.random.default_rng(2)
    x = tuple(jnp.asarray(rng.normal(size=(3, 2, 130, heads, H)), jnp.float32) for heads in (2, 1, 1))
    probe = jnp.asarray(rng.normal(size=(3, 2, 130, 2, H)), jnp.float32)

    def loss(x):
        state, total = layer.init_state(2), 0.0
        for i in range(3):
            length = jnp.array([130, 100 if i else 130])
            start = jnp.array([130 * i, 100 if i == 2 else 0])
            seg = segment(start[:, None] + jnp.arange(130), length, jnp.array([False, i == 1]))
            state = reset(layer, state, seg.reset_B)
            y, state = layer(tuple(a[i] for a in x), state, seg)
            total += (y * probe[i] * seg.mask_BT[..., None, None]).sum()
        return total

    plain = jax.value_and_grad(loss)(x)
    obstacle = splash.obstacle

    def but_small_heads(views) -> str:
        used.append(len(views))
        why = obstacle(views)
        return "" if "features" in why else why

    monkeypatch.setattr(attention, "platform", lambda array: "tpu")
    monkeypatch.setattr(splash, "obstacle", but_small_heads)
    monkeypatch.setattr(splash, "attend", partial(splash.attend, interpret=True))
    kernel = jax.value_and_grad(loss)(x)
    assert used
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5, rtol=1e-4), kernel, plain)
