"""Options of the compiler are given only where XLA knows them."""

import jax
import jax.numpy as jnp
import pytest

from memtx.training import cpu


@pytest.fixture(autouse=True)
def forgetful():
    cpu.compiler_options.cache_clear()
    yield
    cpu.compiler_options.cache_clear()


def test_a_step_with_the_options_gives_the_same_numbers():
    x = jax.random.normal(jax.random.key(0), (64, 64))
    f = jax.jit(jnp.dot, compiler_options=cpu.compiler_options())
    assert jnp.abs(f(x, x) - x @ x).max() < 1e-4


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(cpu, "_OPTIONS", {"xla_cpu_no_such_option": ""})
    assert cpu.compiler_options() is None
