"""The loss of next tokens, from logits and from hidden states in pieces."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.data.streams import Batch
from memtx.evaluation import losses
from memtx.evaluation.losses import cross_entropy
from memtx.runs.configure import build
from memtx.runs.hlo import shapes
from memtx.training.step import make_loss
from tests import runs


def test_cross_entropy_is_that_of_numpy():
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(2, 5, 7)), rng.integers(0, 7, (2, 5))
    mask = np.arange(5) < np.array([[5], [2]])
    log_z = np.log(np.exp(logits).sum(-1))
    nll = log_z - np.take_along_axis(logits, target[..., None], -1)[..., 0]
    smooth = 0.9 * nll + 0.1 * (log_z - logits.mean(-1)) + 0.01 * log_z**2
    objective, plain = cross_entropy(
        jnp.asarray(logits, jnp.float32), jnp.asarray(target), jnp.asarray(mask), z_loss=0.01, label_smoothing=0.1
    )
    np.testing.assert_allclose(plain, nll[mask].sum(), rtol=1e-5)
    np.testing.assert_allclose(objective, smooth[mask].sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("time", "piece"),
    [pytest.param(6, 10**6, marks=pytest.mark.thorough), (6, 14), (7, 14), pytest.param(5, 1, marks=pytest.mark.thorough)],
    ids=["whole", "pieces", "padded", "tokens"],
)
def test_the_loss_in_pieces_is_that_of_all_logits(monkeypatch, time, piece):
    monkeypatch.setattr(losses, "PIECE", piece)
    rng = np.random.default_rng(1)
    h, w = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, time, 3), (3, 7)))
    target, mask = jnp.asarray(rng.integers(0, 7, (2, time))), jnp.arange(time) < jnp.asarray([[time], [2]])
    how = {"z_loss": 0.01, "label_smoothing": 0.1}

    def whole(h, w):
        objective, nll = cross_entropy(h @ w, target, mask, **how)
        return 3 * objective, nll

    def pieces(h, w):
        objective, nll = losses.next_token_loss(h[None], w, target[None], mask[None], **how)
        return 3 * objective, nll

    found, wanted = (jax.jit(jax.value_and_grad(g, (0, 1), has_aux=True))(h, w) for g in (pieces, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)
    np.testing.assert_allclose(pieces(h, w), whole(h, w), rtol=1e-6)


def test_only_the_logits_of_one_piece_exist_in_a_step(monkeypatch):
    def logits(piece: int) -> int:
        """Return how many logits of 53 tokens the largest array of a loss and its gradient has."""
        monkeypatch.setattr(losses, "PIECE", piece)
        h, w, target = jnp.ones((2, 16, 3)), jnp.ones((3, 53)), jnp.ones((2, 16), jnp.int32)
        loss = lambda h, w: losses.next_token_loss(h[None], w, target[None], target[None] > 0)[0]  # noqa: E731
        program = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(h, w))
        return max(math.prod(size) for _, size in shapes(program) if size and size[-1] == 53) // 53

    assert logits(10**6) == 32  # control
    assert logits(4 * 53) == 8


def test_a_step_keeps_no_logits_and_one_gradient_of_their_weight(tmp_path):
    config = runs.tiny(tmp_path, model={"vocab_size": 53}, train={"segments": 4})
    lm = build(config.model)
    batch, segments, time, width = config.train.batch, 4, config.data.segment, config.model.width
    tokens = jax.ShapeDtypeStruct((batch, segments, time), jnp.int32)
    row = jax.ShapeDtypeStruct((batch, segments), jnp.int32)
    given = Batch(*[tokens] * 3, row, jax.ShapeDtypeStruct(row.shape, bool), row)  # pyright: ignore[reportArgumentType]
    args = (lm.abstract_params, jax.eval_shape(lambda: lm.init_state(batch)), given, 1.0, None)
    gradient = jax.grad(make_loss(lm, config), has_aux=True)
    found = {size for _, size in shapes(str(jax.make_jaxpr(gradient, static_argnums=4)(*args)))}
    assert (width, 53) in found  # control
    assert (segments, width, 53) not in found
    assert (segments, batch, time, 53) not in found
