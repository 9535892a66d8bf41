"""Products on accelerators: which operands are rounded, and by how much results differ. The fixture `tpu` emulates one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.ops import dot, topk
from memtx.ops.delta import delta_rule, delta_rule_by_token


def draw(seed: int, *shape: int):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def error(found, wanted) -> float:
    """The root mean square of the difference, relative to that of what is wanted."""
    return float(jnp.sqrt(jnp.square(found - wanted).mean() / jnp.square(wanted).mean()))


def test_a_delta_rule_is_exact_on_an_accelerator_in_its_gradient_too(tpu):
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    q, k, v = (unit(draw(0, 1, 256, 2, 32)), unit(draw(1, 1, 256, 2, 32)), draw(2, 1, 256, 2, 32))
    s, beta = jnp.zeros((1, 2, 32, 32)), jax.nn.sigmoid(draw(3, 1, 256, 2, 1))
    inexact = delta_rule.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]

    def of(rule):
        loss = lambda v: (jnp.sin(o := rule(q, k, v, s, None, beta)[0]).sum(), o)  # noqa: E731
        (_, o), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(v)
        return o, gradient

    wanted = of(dot.exact(delta_rule_by_token))
    for found, limit in ((of(delta_rule), 1e-5), (of(lambda *a: inexact(*a)), None)):
        for a, b in zip(found, wanted, strict=True):
            assert error(a, b) < limit if limit else error(a, b) > 1e-3  # control: rounded products


@pytest.mark.thorough
def test_an_exact_search_is_exact_on_an_accelerator(tpu):
    """Keys with a common mean of twice their spread, as hidden states have."""
    keys = draw(0, 2048, 64) + 2 * draw(1, 64)
    q = keys[::64] + 0.5 * draw(2, 32, 64)
    true = np.argsort(np.square(np.asarray(q, float)[:, None] - np.asarray(keys, float)).sum(-1), -1)[:, :32]
    args = (
        q[None, :, None],
        keys[None, :, None],
        jnp.arange(2048)[None],
        (jnp.zeros((1, 32), int), jnp.full((1, 32), 2048)),
        32,
    )

    def recall(search) -> float:
        found = np.asarray(search(*args, metric="l2")[1])[0, :, 0]
        return np.mean([len({*a} & {*b}) / 32 for a, b in zip(found, true, strict=True)])

    assert recall(topk.search) == 1
    assert recall(topk.search.__wrapped__) < 0.99  # control  # pyright: ignore[reportFunctionMemberAccess]


def operands(f, *args) -> set[tuple[str, str]]:
    """The dtypes of the operands of all products of a program."""
    shape = r"tensor<(?:\d+x)*(\w+)>"
    return set(re.findall(rf"dot_general.*: \({shape}, {shape}\)", jax.jit(f).lower(*args).as_text()))


def test_16_bit_operands_stay_16_bits_in_the_gradient():
    x, w = draw(0, 8, 4).astype(jnp.bfloat16), draw(1, 4, 6)
    for f in (lambda x, w: dot.dense(x, w, jnp.float32), lambda x, w: dot.einsum("nd,de->ne", x, w.astype(x.dtype))):
        assert operands(jax.grad(lambda x, w, f=f: jnp.sin(f(x, w)).sum(), (0, 1)), x, w) == {("bf16", "bf16")}
    plain = lambda x, w: jnp.sin(jnp.dot(x, w.astype(x.dtype), preferred_element_type=jnp.float32)).sum()  # noqa: E731
    assert ("f32", "f32") in operands(jax.grad(plain), x, w)  # control: JAX's own rule, as a CPU gets it


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_map_and_its_gradient_are_those_of_numpy(dtype):
    x, w, dy = draw(0, 300, 4).astype(dtype), draw(1, 4, 6), draw(2, 300, 6)
    y, back = jax.vjp(lambda x, w: dot.dense(x, w, jnp.float32), x, w)
    dx, dw = back(dy)
    wide = lambda a: np.asarray(a.astype(dtype), np.float64)  # noqa: E731
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.float32, dtype, jnp.float32)
    np.testing.assert_allclose(y, wide(x) @ wide(w), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dw, wide(x).T @ wide(dy), rtol=1e-5, atol=1e-4)  # sums of 300 terms, in float32
    np.testing.assert_allclose(
        np.asarray(dx, np.float64), wide(dy) @ wide(w).T, rtol=1e-2 if dtype == jnp.bfloat16 else 1e-5, atol=1e-5
    )
