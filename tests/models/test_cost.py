"""FLOPs counted from a program, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from memtx.models.cost import flops, flops_per_token
from memtx.runs.configure import build, get_config

A, B = jnp.ones((3, 4)), jnp.ones((4, 5))
ONE = 2 * 3 * 4 * 5


@pytest.mark.parametrize(
    ("f", "times"),
    [
        (lambda a, b: a @ b, 1),
        (lambda a, b: jax.vmap(lambda row: row @ b)(a), 1),
        (lambda a, b: lax.scan(lambda c, _: (c, a @ b), 0, None, length=7), 7),
        (lambda a, b: lax.cond(a[0, 0] > 0, lambda: a @ b + a @ b, lambda: a @ b), 2),
        (lambda a, b: jax.jit(jax.checkpoint(lambda a: a @ b))(a), 1),
        (lambda a, b: jax.grad(lambda a, b: jnp.sin(a @ b).sum(), (0, 1))(a, b), 3),
        (lambda a, b: a + 1, 0),
    ],
)
def test_dots_are_counted_as_often_as_they_run(f, times):
    assert flops(f, A, B) == times * ONE


def test_a_convolution_is_counted_by_its_outputs():
    x, kernel = jnp.ones((2, 10, 3)), jnp.ones((4, 3, 6))  # batch, time, in; width, in, out
    conv = lambda x, k: lax.conv_general_dilated(x, k, (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC"))  # noqa: E731
    assert flops(conv, x, kernel) == 2 * (2 * 7 * 6) * (4 * 3)


def test_a_model_costs_about_two_flops_a_parameter_and_token():
    sizes = {"width": 64, "num_heads": 2, "ff_dim": 128, "vocab_size": 64, "stacks": ((("lstm",), 3),)}
    lm = build(get_config(model=sizes))
    matrices = sum(leaf.size for leaf in jax.tree.leaves(lm.abstract_params) if leaf.ndim > 1)
    assert 0.95 * 2 * matrices < flops_per_token(lm) < 1.05 * 2 * matrices
