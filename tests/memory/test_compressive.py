"""The auxiliary loss of the Compressive Transformer is the paper's, trains the compressor and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memtx.contract.case import DIMS
from memtx.contract.golden import STEP
from memtx.core import collect, scan, segment
from memtx.errors import UserError
from memtx.memory.compressive import Compressive
from memtx.memory.xl import TransformerXL
from tests.golden.tokens import compressive

(TINY,) = Compressive.tiny


def run(config, params, x_TD, cuts):
    """-> (y_TD, the auxiliary loss of all calls), one stream."""
    layer = Compressive(config, DIMS, jax.random.key(0))
    nnx.update(layer, params)

    def calls():
        state, ys, start = layer.init_state(1), [], 0
        for time in cuts:
            y, state = layer(x_TD[None, start : start + time], state, segment(start + jnp.arange(time)[None]))
            ys.append(y[0])
            start += time
        return jnp.concatenate(ys)

    y_TD, aux = collect(calls, "loss")()
    return y_TD, sum(map(jnp.sum, aux["loss/compression"]))


def given(config):
    layer = Compressive(config, DIMS, jax.random.key(1))
    return nnx.state(layer), jax.random.normal(jax.random.key(2), (16, 8))


def oracle_inputs(params, x_TD):
    flat = nnx.traversals.flatten_mapping(nnx.to_pure_dict(params))
    named = {"param." + ".".join(path): np.asarray(value, np.float64) for path, value in flat.items()}
    return named | {"x.x": np.asarray(x_TD, np.float64)}


def loss_of_oracle(a, config):
    losses = []
    compressive(a, losses=losses, **{f.name: getattr(config, f.name) for f in dataclasses.fields(config)})
    assert len(losses) == 3  # of four segments, all but the first push one out
    return np.sum(losses)


@pytest.mark.parametrize(
    "cuts", [(16,), pytest.param((4,) * 4, marks=pytest.mark.thorough), (1, 7, 3, 1, 4)], ids=["whole", "segments", "odd"]
)
def test_the_auxiliary_loss_is_the_papers_wherever_calls_are_cut(cuts):
    params, x = given(TINY)
    _, loss = jax.jit(lambda params, x: run(TINY, params, x, cuts))(params, x)
    np.testing.assert_allclose(loss, loss_of_oracle(oracle_inputs(params, x), TINY), rtol=1e-5)


@pytest.mark.thorough
def test_each_gradient_reaches_what_it_should():
    params, x = given(TINY)
    lm, aux = (jax.jit(jax.grad(lambda p, x, i=i: jnp.sum(run(TINY, p, x, (8, 8))[i]), (0, 1)))(params, x) for i in (0, 1))
    for (params_grad, x_grad), trained in ((lm, {"q", "k", "v", "out", "r", "u", "w"}), (aux, {"conv"})):
        for path, value in nnx.traversals.flatten_mapping(nnx.to_pure_dict(params_grad)).items():
            assert (np.abs(value).max() > 1e-6) == (path[0] in trained), path
            assert path[0] in trained or (np.asarray(value) == 0).all(), path
        assert (np.asarray(x_grad) == 0).all() == (trained == {"conv"})
    a = oracle_inputs(params, x)
    expected = np.zeros_like(a["param.conv.w"])
    for index in np.ndindex(expected.shape):
        w = a["param.conv.w"].astype(complex)
        w[index] += 1j * STEP
        expected[index] = loss_of_oracle(a | {"param.conv.w": w}, TINY).imag / STEP
    np.testing.assert_allclose(aux[0]["conv"]["w"][...], expected, atol=1e-4 * np.abs(expected).max())


def test_the_loss_crosses_a_scan_over_segments():
    params, x = given(TINY)
    layer = Compressive(TINY, DIMS, jax.random.key(0))
    nnx.update(layer, params)

    @jax.jit
    def scanned():
        def step(state, inputs):
            x, p = inputs
            return layer(x, state, segment(4 * p + jnp.arange(4)[None]))[1], None

        return collect(lambda: scan(step, layer.init_state(1), (x.reshape(4, 1, 4, 8), jnp.arange(4))), "loss")()[1]

    (losses_P,) = scanned()["loss/compression"]
    assert losses_P.shape == (4,)
    assert losses_P[0] == 0
    np.testing.assert_allclose(losses_P.sum(), run(TINY, params, x, (16,))[1], rtol=1e-5)


def test_without_compressed_states_it_is_transformer_xl():
    config = dataclasses.replace(TINY, compressed=0)
    layer = Compressive(config, DIMS, jax.random.key(0))
    xl = TransformerXL(TransformerXL.Config(segment=4, memory=4), DIMS, jax.random.key(9))
    nnx.update(xl, nnx.state(layer))
    state, x = layer.init_state(1), jax.random.normal(jax.random.key(2), (1, 12, 8))
    assert state.compressed_BSD == ()
    seg = segment(jnp.arange(12)[None])
    np.testing.assert_array_equal(layer(x, state, seg)[0], xl(x, xl.init_state(1), seg)[0])
    more = Compressive(TINY, DIMS, jax.random.key(0))  # control: with them it differs
    assert (np.asarray(more(x, more.init_state(1), seg)[0] != layer(x, state, seg)[0])[0, 8:]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 3}, "rate=3 does not divide segment=4"),
        ({"memory": 6}, "segment=4 does not divide memory=6"),
        ({"compression": "cnov"}, "did you mean conv"),
        ({"memory": 0}, "memory must be at least 1"),
        ({"compressed": -1}, "at least 0"),
    ],
)
def test_what_cannot_be_is_a_clear_error(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **changes)
