"""The states of the Block-Recurrent Transformer: their contribution beside the window, and the tokens at which they change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.contract.case import DIMS
from memtx.core import segment
from memtx.errors import UserError
from memtx.memory.block_recurrent import BlockRecurrent

TINY = BlockRecurrent.tiny[0]


def test_states_change_at_the_end_of_a_block_and_reach_beyond_the_window():
    layer = BlockRecurrent(TINY, DIMS, jax.random.key(0))
    call = jax.jit(lambda x, state, t: layer(x, state, segment(t[None, None])))
    x = jax.random.normal(jax.random.key(1), (1, 12, 8))

    def run(x, frozen: bool):
        state, ys, changed = layer.init_state(1), [], []
        for t in range(12):
            before = state.state_BSD
            y, state = call(x[:, t : t + 1], state, jnp.asarray(t))
            changed.append(bool((state.state_BSD != before).any()))
            if frozen:
                state = dataclasses.replace(state, state_BSD=jnp.broadcast_to(layer.initial[...], before.shape))
            ys.append(np.asarray(y[0, 0]))
        return np.stack(ys), changed

    moved = x.at[:, 0].add(1.0)
    y, changed = run(x, frozen=False)
    ends = [True, False, False, True, False, False, False, True, False, False, False, True]
    assert changed == ends  # the first: the learned value is put in
    reached = (y != run(moved, frozen=False)[0]).any(-1)
    assert reached.all()
    reached = (run(x, frozen=True)[0] != run(moved, frozen=True)[0]).any(-1)  # control: the window alone
    np.testing.assert_array_equal(reached, np.arange(12) < TINY.window)


def cosine(state_SD) -> float:
    """The mean cosine between two different state vectors."""
    unit = np.asarray(state_SD) / np.linalg.norm(state_SD, axis=-1, keepdims=True)
    return (unit @ unit.T)[~np.eye(len(unit), dtype=bool)].mean()


@pytest.mark.thorough
def test_state_vectors_stay_different_in_a_model_as_it_begins():
    """After 8 blocks a model with the authors' first values had 0.89 and 0.81, one with ids of N(0, 0.02^2) 0.9996."""
    config = BlockRecurrent.Config(block=16, window=32, states=16)
    layer = BlockRecurrent(config, dataclasses.replace(DIMS, width=128, head_dim=32, num_kv_heads=4), jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (1, 8 * config.block, 128))

    def after_eight_blocks() -> float:
        state = jax.jit(lambda x: layer(x, layer.init_state(1), segment(jnp.arange(x.shape[1])[None]))[1])(x)
        return cosine(state.state_BSD[0])

    assert after_eight_blocks() < 0.95
    layer.ids[...], layer.initial[...] = layer.ids[...] * 0.02, layer.initial[...] * 10
    assert after_eight_blocks() > 0.999  # control


@pytest.mark.thorough
def test_states_read_the_block_before_the_one_that_ends():
    def reached(blocks: int) -> list[int]:
        """The tokens that the second change of the state reads, with the state before it held."""
        layer = BlockRecurrent(dataclasses.replace(TINY, blocks=blocks), DIMS, jax.random.key(0))
        x = jax.random.normal(jax.random.key(1), (1, 12, 8))
        at = lambda first, last: segment(jnp.arange(first, last)[None])  # noqa: E731

        def change(x):
            held = layer(x[:, :8], layer.init_state(1), at(0, 8))[1]
            held = dataclasses.replace(held, state_BSD=jax.lax.stop_gradient(held.state_BSD))
            return layer(x[:, 8:], held, at(8, 12))[1].state_BSD.sum()

        return np.flatnonzero(np.asarray(jax.jit(jax.grad(change))(x))[0].any(-1)).tolist()

    assert reached(1) == [8, 9, 10, 11]
    assert reached(2) == [4, 5, 6, 7, 8, 9, 10, 11]
    assert reached(3) == list(range(12))
    assert reached(4) == list(range(12))  # there are no more


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 3}, "window=3 must be at least block=4"),
        ({"gate": "ltsm"}, "did you mean lstm"),
        ({"states": 0}, "states must be at least 1"),
        ({"blocks": 0}, "blocks must be at least 1"),
    ],
)
def test_what_cannot_be_is_a_clear_error(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **changes)
