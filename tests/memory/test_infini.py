"""Infini-attention: the sign of its gate, its metrics, and its settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.contract.case import DIMS, Case, at
from memtx.core import collect
from memtx.errors import UserError
from memtx.memory.infini import Infini

CASE = Case("infini", Infini, Infini.Config(segment=4))


@pytest.mark.parametrize("rule", ["delta", "linear"])
def test_an_open_gate_reads_memory_alone_and_a_closed_one_the_segment_alone(rule):
    case = Case("infini", Infini, Infini.Config(segment=4, rule=rule))
    x = case.x(0)

    def y(gate, x):
        params = jax.tree.map(lambda p: jnp.full_like(p, gate), case.params)  # it has no other
        return np.asarray(case.jitted(params, x, case.init_state(), at(0, 16))[0])

    other = jax.tree.map(lambda a: a.at[:, :4].add(1.0), x)  # the first segment
    np.testing.assert_array_equal(y(-1e9, x)[:, 4:], y(-1e9, other)[:, 4:])
    assert np.abs(y(-1e9, x)).min() > 0
    np.testing.assert_array_equal(y(1e9, x)[:, :4], 0)
    assert (y(1e9, x)[:, 4:] != y(1e9, other)[:, 4:]).all()


def test_gates_are_emitted_when_wanted_and_learn_fast_without_decay():
    def call(x):
        return CASE.apply(CASE.params, x, CASE.init_state(), at(0, 4))[0]

    _, aux = jax.jit(collect(call, "metric"))(CASE.x(0, 4))
    np.testing.assert_array_equal(aux["metric/gate"][0], np.full(DIMS.num_heads, 0.5))
    metadata = Infini(Infini.Config(gate_lr=3.0), DIMS, jax.random.key(0)).gate.get_metadata()
    assert (metadata["optim"], metadata["lr"]) == ("no_decay", 3.0)


@pytest.mark.parametrize(("wrong", "message"), [({"rule": "hebb"}, "delta or linear"), ({"segment": 0}, "segment")])
def test_wrong_settings_are_clear_errors(wrong, message):
    with pytest.raises(UserError, match=message):
        Infini.Config(**wrong)
