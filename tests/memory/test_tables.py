"""Tests of product_key, memory_plus and peer beyond the contract: exact reads, cost, use of the table, and learning.

N tokens, M entries, D model.
"""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memtx import build
from memtx.contract.test_costs import card
from memtx.core import Dims, collect, segment
from memtx.errors import UserError
from memtx.memory import MEMORIES
from memtx.memory.product_keys import PEER, Keys, MemoryPlus, ProductKey
from memtx.ops import product
from memtx.runs.configure import get_config
from memtx.runs.presets import preset

WIDTH = 128
DIMS = Dims(width=WIDTH, num_heads=4, num_kv_heads=4, head_dim=32, vocab_size=32)


def at(batch: int, time: int, length_B=None):
    return segment(np.broadcast_to(np.arange(time), (batch, time)), length_B)


def random(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.thorough
def test_peer_that_chooses_every_expert_is_a_feed_forward_network():
    config = PEER.Config(subkeys=3, heads=2, top_k=9, key_dim=4)
    layer, x = PEER(config, DIMS, jax.random.key(0)), random(2, 5, WIDTH)
    y, (left, right) = jax.jit(lambda x: (layer(x, (), at(2, 5))[0], layer.search.scores(x)))(x)  # scores [N, H, n]
    router = jax.nn.softmax((left[..., :, None] + right[..., None, :]).reshape(10, 2, 9), -1).sum(1)
    hidden = jax.nn.gelu(x.reshape(10, WIDTH) @ layer.up[...].T)
    np.testing.assert_allclose(y.reshape(10, WIDTH), (router * hidden) @ layer.down[...], atol=1e-5)
    fewer = PEER(dataclasses.replace(config, top_k=8), DIMS, jax.random.key(0))
    assert jnp.abs(jax.jit(lambda x: fewer(x, (), at(2, 5))[0])(x) - y).max() > 1e-3  # control


@pytest.mark.parametrize("cls", [ProductKey, MemoryPlus, PEER])
def test_entries_are_chosen_by_float32_scores_of_16_bit_inputs(cls):
    layer = cls(cls.Config(subkeys=64, heads=4, top_k=8, key_dim=32), DIMS, jax.random.key(0))
    x = random(4, 32, WIDTH).astype(jnp.bfloat16)
    read = jax.jit(lambda x: layer.search(x, at(4, 32))[1])
    chosen = read(x.astype(jnp.float32))
    np.testing.assert_array_equal(read(x), chosen)
    query = layer.search.query
    layer.search.query = lambda x: query(x.astype(jnp.bfloat16)).astype(x.dtype)
    assert (jax.jit(lambda x: layer.search(x, at(4, 32))[1])(x) != chosen).mean() > 0.01  # control: queries in 16 bits


def counted_flops(layer, tokens: int) -> float:
    """XLA's count for a call, per token, with loops unrolled and without the searches' comparisons, which it cannot count."""
    graph, params = nnx.split(layer)
    shared = {"memory_plus/values": jax.ShapeDtypeStruct((layer.search.config.subkeys**2, WIDTH), jnp.float32)}

    def call(params, x, shared):
        return nnx.merge(graph, params)(x, (), at(1, tokens).replace(shared=shared))[0]

    x = jax.ShapeDtypeStruct((1, tokens, WIDTH), jnp.float32)
    analysis = jax.jit(call).lower(params, x, shared).compile().cost_analysis()
    assert analysis is not None
    return analysis["flops"] / tokens


def declared_flops(name: str, config: Keys) -> int:
    """The formula of the card, in which a space between two factors multiplies them."""
    (formula,) = re.findall(r"multiplications and additions of a token: (.*)", card(name)["equations"])
    sizes = {"value_dim": WIDTH, "width": WIDTH} | {key: value for key, value in dataclasses.asdict(config).items() if value}
    return eval(re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", formula), {"__builtins__": {}}, sizes)


@pytest.mark.parametrize("name", ["product_key", "memory_plus", "peer"])
def test_a_token_costs_the_formula_of_the_card_while_the_table_grows(name, monkeypatch):
    """Within 10 %, for 1024 and for 16384 entries."""
    cls = MEMORIES[name]
    monkeypatch.setattr(jax.lax, "scan", partial(jax.lax.scan, unroll=True))
    first = lambda x, k: (x[:, :k], jnp.broadcast_to(jnp.arange(k), (len(x), k)))  # noqa: E731
    monkeypatch.setattr(product, "_top_k", first)
    sizes = {}
    for keys in (32, 128):
        config = cls.Config(subkeys=keys, heads=2, top_k=8, key_dim=128)
        sizes[keys] = counted_flops(cls(config, DIMS, jax.random.key(0)), 64)
        assert abs(sizes[keys] / declared_flops(name, config) - 1) < 0.1, keys
    assert sizes[128] < 2.5 * sizes[32]  # and not 16 times


def observed(layer, x, seg):
    return jax.jit(collect(lambda x: layer(x, (), seg)[0], "metric"))(x)[1]


def test_metrics_tell_how_the_table_is_used():
    layer = ProductKey(ProductKey.Config(subkeys=4, heads=2, top_k=3, key_dim=4), DIMS, jax.random.key(0))
    x, seg = random(2, 5, WIDTH), at(2, 5, [5, 2])
    metrics = observed(layer, x, seg)
    weight_NR, index_NR = jax.jit(lambda x: layer.search(x, seg))(x)
    share = np.zeros(16)
    for n in [0, 1, 2, 3, 4, 5, 6]:  # the real tokens
        for w, i in zip(np.asarray(weight_NR[n], float), np.asarray(index_NR[n]), strict=True):
            share[i] += w / (2 * 7)
    np.testing.assert_allclose(share.sum(), 1, atol=1e-6)
    assert 0.1 < (share > 0).mean() < 1
    np.testing.assert_allclose(metrics["metric/usage"][0], (share > 0).mean())
    used = share[share > 0]
    np.testing.assert_allclose(metrics["metric/kl"][0], (used * np.log(used * 16)).sum(), atol=1e-5)


def test_uniform_use_has_no_divergence():
    layer = ProductKey(ProductKey.Config(subkeys=2, heads=1, top_k=4, key_dim=2), DIMS, jax.random.key(0))
    layer.search.keys[...] = jnp.zeros_like(layer.search.keys[...])
    metrics = observed(layer, random(1, 3, WIDTH), at(1, 3))
    assert metrics["metric/usage"][0] == 1
    assert abs(metrics["metric/kl"][0]) < 1e-6


@pytest.mark.parametrize("name", ["product_key", "memory_plus", "peer"])
def test_tables_have_a_learning_rate_of_their_own_and_no_decay(name):
    lm = build(get_config(model=preset(name, "tiny"), memory={name: {"value_lr": 7.0}}), vocab_size=32)
    lr, optim = (lm.declared(field, default) for field, default in (("lr", 1.0), ("optim", "")))
    size = max(shape.shape[-2] for shape in jax.tree.leaves(lm.abstract_params) if shape.ndim > 1)
    assert size == 64**2
    tables = jax.tree.map(lambda shape: shape.ndim > 1 and shape.shape[-2] == size, lm.abstract_params)
    for is_table, rate, label in zip(*map(jax.tree.leaves, (tables, lr, optim)), strict=True):
        assert (rate == 7.0) == is_table
        assert label == "no_decay" or not is_table


@pytest.mark.thorough
def test_memory_plus_has_one_table_for_all_of_its_layers():
    """Three layers hold it in a model of eight; the table is there once, and each layer moves it."""
    model = preset("memory_plus", "tiny") | {"width": 32, "num_heads": 2, "ff_dim": 32, "scan": False}
    model["stacks"] = ((("window/memory_plus",), 2), (("window",), 1), (("window/memory_plus",), 1))
    lm = build(
        get_config(model=model, memory={"memory_plus": {"subkeys": 8, "heads": 2, "top_k": 4, "key_dim": 8}}), vocab_size=32
    )
    params = lm.init(jax.random.key(0))
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    tables = [path for path, leaf in flat.items() if leaf.ndim == 2 and leaf.shape == (64, 32)]
    assert len(tables) == 1
    assert (
        sum(leaf.shape[0] for path, leaf in flat.items() if path.endswith("['search']['keys']")) == 3
    )  # sub-keys are their own
    token_BT = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 16)))

    @jax.jit
    def moved(params):
        return jax.grad(lambda p: jax.nn.logsumexp(lm(p, token_BT, lm.init_state(2))[0], -1).sum())(params)

    def gradient(which: int | None):
        """Of the table, where only layer `which` puts anything out; None: where none does."""

        def mute(path, leaf):
            name = jax.tree_util.keystr(path)
            if not name.endswith("['branches'][1]['memories'][0]['out']['w']"):
                return leaf
            layers = range(2) if "['bodies'][0]" in name else range(2, 3)
            return leaf * jnp.array([layer == which for layer in layers])[:, None, None]

        grads = moved(jax.tree_util.tree_map_with_path(mute, params))
        return max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(grads) if leaf.shape == (64, 32))

    assert all(gradient(layer) > 1e-4 for layer in range(3))
    assert gradient(None) == 0  # control


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 17, "subkeys": 4}, "top_k=17 is more than the table's subkeys^2 = 16"),
        ({"key_dim": 5}, "key_dim=5 must be even"),
        ({"heads": 0}, "heads must be at least 1"),
    ],
)
def test_what_cannot_be_is_said(changes, message):
    with pytest.raises(UserError) as error:
        ProductKey.Config(**changes)
    assert message in str(error.value)
