"""The chunked delta rule against its definition, one token after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.ops.delta import between, delta_rule, delta_rule_by_token

BATCH, HEADS, K, V = 2, 2, 4, 6
GATES = {"none": 0, "scalar": 1, "per dimension": K}


def inputs(time: int, decay: int, delta: bool, strength: float = 1.0):
    """q, k, v, S, log decay (`decay` numbers per head and token; 0: None), beta in (0, 2)."""
    rng = np.random.default_rng(time)
    q, k = (rng.normal(size=(BATCH, time, HEADS, K)) for _ in range(2))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v = rng.normal(size=(BATCH, time, HEADS, V))
    s = rng.normal(size=(BATCH, HEADS, K, V))
    g = -strength * rng.exponential(size=(BATCH, time, HEADS, decay)) if decay else None
    beta = rng.uniform(0, 2, (BATCH, time, HEADS, 1)) if delta else None
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (q, k, v, s, g, beta))


def with_gradients(rule, args):
    def loss(args):
        o, s = rule(*args)
        return jnp.sin(o).sum() + jnp.sin(s).sum(), (o, s)

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(args)
    return out, grads


def gap(a, b) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.abs(x - y).max() / (1 + jnp.abs(y).max())) for x, y in pairs)


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("decay", GATES.values(), ids=GATES)
def test_chunks_equal_single_tokens(decay, delta):
    args = inputs(37, decay, delta)
    expected = with_gradients(delta_rule_by_token, args)
    for chunk in (4, 16, 64):
        assert gap(with_gradients(lambda *a, c=chunk: delta_rule(*a, chunk=c), args), expected) < 1e-5
    for i in [i for i, a in enumerate(args) if a is not None]:  # control: every input matters
        changed = [a if j != i else a * 1.1 for j, a in enumerate(args)]
        assert gap(jax.jit(delta_rule)(*changed), expected[0]) > 1e-3


@pytest.mark.parametrize("decay", [1, K])
def test_strong_decay_gives_no_nan(decay):
    """exp(60) a token overflows float32 within two tokens wherever a difference has the wrong sign."""
    args = inputs(70, decay, True, strength=60.0)
    got, expected = with_gradients(delta_rule, args), with_gradients(delta_rule_by_token, args)
    assert gap(got, expected) < 1e-4  # inf and NaN fail this too
    assert gap(jax.jit(delta_rule)(*inputs(70, decay, True)), expected[0]) > 1e-2  # control


def in_float64(q, k, v, s, g, beta) -> tuple[np.ndarray, np.ndarray]:
    """`delta_rule_by_token` in float64."""
    q, k, v, s, g, beta = (np.asarray(x, np.float64) for x in (q, k, v, s, g, beta))
    outs = []
    for t in range(q.shape[1]):
        s = s * np.exp(g[:, t])[..., None]
        s = s + k[:, t][..., None] * (beta[:, t] * (v[:, t] - np.einsum("bnkv,bnk->bnv", s, k[:, t])))[..., None, :]
        outs.append(np.einsum("bnkv,bnk->bnv", s, q[:, t]))
    return np.stack(outs, 1), s


@pytest.mark.parametrize("chunk", [32, 64])
@pytest.mark.parametrize("decay", [1, K])
def test_tokens_after_a_strong_decay_keep_their_own(decay, chunk):
    """With decays as differences of sums from the chunk's start, outputs were off by 1e-4 at -300 and by 1e-2 at -1e30."""
    q, k, v, s, _, beta = inputs(256, 0, True)
    drawn = np.random.default_rng(1).uniform(size=(BATCH, 256, HEADS, decay))
    rule = jax.jit(lambda *a: with_gradients(lambda *a: delta_rule(*a, chunk=chunk), a))
    for strong, share in ((-20, 0.1), (-300, 0.1), (-3000, 0.1), (-1e30, 0.01), (-np.inf, 0.01)):
        args = q, k, v, s, jnp.asarray(np.where(drawn < share, strong, -0.01), jnp.float32), beta
        found, grads = rule(*args)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads)), strong
        assert gap(found, in_float64(*args)) < 2e-6, strong


def test_sums_between_tokens_are_exact_after_strong_decays():
    """Titans' chunks multiply by the same sums. The control is the difference of two sums from the start."""
    rng = np.random.default_rng(0)
    g_C = np.where(rng.uniform(size=64) < 0.1, -3000, -0.01).astype(np.float32)
    i, j = np.indices((64, 64))
    exact = np.array([[np.exp(g_C[b + 1 : a + 1].astype(float).sum()) if a >= b else 0 for b in range(64)] for a in range(64)])
    assert np.abs(np.exp(between(jnp.asarray(g_C))) - exact).max() < 1e-6
    from_start = np.cumsum(g_C)
    assert np.abs(np.where(i >= j, np.exp(np.minimum(from_start[i] - from_start[j], 0)), 0) - exact).max() > 1e-4


@pytest.mark.parametrize("chunk", [-2, 6, 48])
def test_a_chunk_is_a_power_of_two(chunk):
    q, k, v, s, _, _ = inputs(5, 0, True)
    with pytest.raises(ValueError, match=f"chunk must be a power of two, not {chunk}"):
        delta_rule(q, k, v, s, chunk=chunk)


def test_decays_on_values_are_one_head_per_value_dimension():
    """As in the first pass of Gated Slot Attention: S <- S Diag(exp g) + k v^T."""
    q, k, v, s, _, _ = inputs(37, 0, False)
    decay = -np.random.default_rng(0).exponential(size=v.shape).astype(np.float32)
    state, expected, (q_BTNK, k_BTNK, v_BTNV) = np.asarray(s, np.float64), [], map(np.asarray, (q, k, v))
    for t in range(37):
        state = state * np.exp(decay[:, t])[:, :, None] + k_BTNK[:, t, ..., None] * v_BTNV[:, t, :, None]
        expected.append(np.einsum("BNKV,BNK->BNV", state, q_BTNK[:, t]))
    columns = lambda x: x.reshape(BATCH, 37, HEADS * V, 1)  # noqa: E731
    transposed = s.swapaxes(2, 3).reshape(BATCH, HEADS * V, K, 1)
    o, end = jax.jit(delta_rule)(jnp.repeat(q, V, 2), jnp.repeat(k, V, 2), columns(v), transposed, columns(decay))
    assert gap(o.reshape(BATCH, 37, HEADS, V), np.stack(expected, 1)) < 1e-5
    assert gap(end.reshape(BATCH, HEADS, V, K).swapaxes(2, 3), state) < 1e-5


def test_keys_that_repeat_are_overwritten_even_in_long_chunks():
    """One key again and again: powers of the system grow as binomials, an inverse by doubling would lose every digit."""
    time, chunk = 128, 64
    q, k, v, s, _, _ = inputs(time, 0, True)
    k = jnp.broadcast_to(k[:, :1], k.shape)
    o, _ = jax.jit(lambda *a: delta_rule(*a, chunk=chunk))(k, k, v, s, None, jnp.ones((BATCH, time, HEADS, 1)))
    np.testing.assert_allclose(o, v, atol=1e-5)
    assert float(jnp.abs(jax.jit(delta_rule)(q, k, v, s)[0] - v).max()) > 1  # control: without the delta term values pile up


@pytest.mark.thorough
def test_a_long_sequence_stays_exact_and_bounded():
    args = inputs(5000, K, True, strength=0.01)
    got, expected = jax.jit(delta_rule)(*args), jax.jit(delta_rule_by_token)(*args)
    assert gap(got, expected) < 1e-4
    assert float(jnp.abs(expected[1]).max()) < 100
