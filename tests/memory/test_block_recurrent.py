"""The states of the Block-Recurrent Transformer: what they add to the window, and where they change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.errors import UserError
from memtx.memory.base import segment
from memtx.memory.block_recurrent import BlockRecurrent
from tests.contract.case import DIMS

(TINY,) = BlockRecurrent.tiny


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 3}, "window=3 must hold a block: at least block=4"),
        ({"gate": "ltsm"}, "did you mean lstm"),
        ({"states": 0}, "states must be at least 1"),
    ],
)
def test_what_cannot_be_is_a_clear_error(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **changes)
