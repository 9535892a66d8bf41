"""C6: gradients reach back to where the state is detached, and no further."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.contract.case import BATCH, EXACT, MOVED, at, calls_of, distance, joined, shard
from memtx.core import detach, segment


@pytest.mark.thorough
def test_c6_truncation_is_exact_in_depth(case):
    """The loss of call p has a gradient for the input of call q only if no detached boundary lies between them.

    Calls have two tokens, and every second call detaches. One token comes first, so that boundaries of the mechanism (every 4
    tokens) differ from those of the detached calls.
    """
    x, state = calls_of(2, case.x(2, 8)), case.call(case.x(3, 1), case.init_state(), at(0, 1))[1]

    @jax.jit
    def jacobian(x_P, state, every):
        def losses(x_P):
            def step(state, inputs):
                p, x = inputs
                seg = segment(jnp.broadcast_to(1 + 2 * p + jnp.arange(2), (BATCH, 2)))
                y, state = case.apply(case.params, x, detach(state, p % every == 0), seg)
                return state, jnp.sin(y).sum()

            return jax.lax.scan(step, state, (jnp.arange(4), x_P))[1]

        per_leaf = [jnp.abs(j).max(range(2, j.ndim)) for j in jax.tree.leaves(jax.jacrev(losses)(x_P))]
        return jnp.stack(per_leaf).max(0)

    x = shard(x, 1)
    truncated, whole = np.asarray(jacobian(x, state, 2)), np.asarray(jacobian(x, state, 100))
    p, q = np.indices((4, 4))
    same_block = p // 2 == q // 2
    assert (truncated[(q > p) | ~same_block] == 0).all()
    if not (case.keeps_x and case.cls.gradient):
        assert (whole[q != p] == 0).all()
        assert (whole[q == p] > 1e-6).all()  # control
        return
    assert (truncated[(q <= p) & same_block] > 1e-6).all()
    assert (whole[q == p - 1] > 1e-6).all()  # control: without detach the gradient crosses calls


@pytest.mark.thorough
def test_c6_gradients_do_not_depend_on_cuts(case):
    """One call of 15 tokens gives the same gradients as five calls of three, which do not align with the chunks."""
    if not case.causal:
        pytest.skip("not causal: its output depends on how the text is cut")

    def loss(params, x, time):
        def step(state, inputs):
            x, p = inputs
            y, state = case.apply(params, x, state, segment(jnp.broadcast_to(time * p + jnp.arange(time), (BATCH, time))))
            return state, y

        y = joined(jax.lax.scan(step, case.layer.init_state(BATCH), (calls_of(time, x), jnp.arange(15 // time)))[1])
        return jnp.sin(y).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    x = shard(case.x(0, 15))
    whole = gradient(case.params, x, 15)
    assert distance(gradient(case.params, x, 3), whole) <= EXACT
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(whole)) > MOVED
