"""Cross-entropy of next tokens, classes, and the first and the last token of a span.

`cross_entropy` takes logits. `next_token_loss` takes hidden states and has the same values, but only the logits of one piece of
the text exist at a time. It computes the gradient together with the loss, so it computes no logits twice.

Legend: B streams, P segments, T tokens, V vocabulary or classes, A labels: one per token, or the two ends of a span, D model,
K pieces of a text.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from memtx.nn.linear import dense
from memtx.ops.context import AXIS, WHOLE, is_divided, on_pieces
from memtx.ops.per_device import mesh_of
from memtx.ops.rows import cut, joined
from memtx.tasks.base import FIRST, LAST

PIECE = 2**23  # logits of a stream that exist at a time: 32 MiB in float32


def labels_of(target_BT: Array | np.ndarray, labelled_BT: Array | np.ndarray, spans: bool) -> tuple[Array, Array]:
    """Return (target_BA, mask_BA) of the labels of a call. All arrays may have further axes between B and T.

    target_BT: labels of a task. labelled_BT: which tokens have one. spans: whether labels mark spans (see `FIRST` in
    memtx.tasks.base). The targets are then the positions of the two ends in the call. Other labels are their own targets.
    """
    target_BT, labelled_BT = jnp.asarray(target_BT), jnp.asarray(labelled_BT)
    if not spans:
        return target_BT, labelled_BT
    marked_BAT = labelled_BT[..., None, :] & (target_BT[..., None, :] & jnp.asarray([[FIRST], [LAST]]) > 0)
    mask_BA = jnp.broadcast_to(labelled_BT.any(-1, keepdims=True), marked_BAT.shape[:-1])
    return marked_BAT.argmax(-1).astype(jnp.int32), mask_BA


def logits_of_labels(logits: Array, labelled_BT: Array | np.ndarray, spans: bool) -> Array:
    """Return the logits [B, A, V] of the labels that `labels_of` gives.

    logits: [B, T, V], or [B, V] if each call has a single vector, which is repeated for each token. The logits of a span,
    [B, T, 2], become [B, 2, T]. They are -inf at tokens without a label, which cannot be in the answer.
    """
    if logits.ndim == 2:
        return jnp.broadcast_to(logits[:, None], (*labelled_BT.shape, logits.shape[-1]))
    if not spans:
        return logits
    labelled_BT = jnp.asarray(labelled_BT)
    empty_B = ~labelled_BT.any(-1)  # a row without an example keeps finite logits, so that its gradient is 0
    return jnp.where((labelled_BT | empty_B[:, None])[:, None], logits.astype(jnp.float32).swapaxes(1, 2), -jnp.inf)


def token_nll(logits_BTV: Array, target_BT: Array) -> tuple[Array, Array]:
    """Return (nll_BT in nats, log_z_BT) in float32. A target of -1 means no label, and nll is then meaningless."""
    logits = logits_BTV.astype(jnp.float32)
    log_z_BT = jax.nn.logsumexp(logits, -1)
    return log_z_BT - jnp.take_along_axis(logits, jnp.maximum(target_BT, 0)[..., None], -1)[..., 0], log_z_BT


def cross_entropy(logits_BTV, target_BT, mask_BT, *, z_loss: float = 0.0, label_smoothing: float = 0.0):
    """Return (objective, nll) in nats, summed over the tokens in the mask.

    objective = (1-s) nll + s (mean over the vocabulary of -log p) + z_loss log(Z)^2. Here s is `label_smoothing`, and the last
    term is from PaLM (2204.02311). Entries of the vocabulary whose logit is -inf do not count in the mean.
    """
    nll_BT, log_z_BT = token_nll(logits_BTV, target_BT)
    objective_BT = nll_BT
    if label_smoothing:
        logits = logits_BTV.astype(jnp.float32)
        uniform_BT = log_z_BT - logits.mean(-1, where=logits > -jnp.inf)
        objective_BT = (1 - label_smoothing) * nll_BT + label_smoothing * uniform_BT
    if z_loss:
        objective_BT = objective_BT + z_loss * log_z_BT**2
    return jnp.where(mask_BT, objective_BT, 0).sum(), jnp.where(mask_BT, nll_BT, 0).sum()


def next_token_loss(h_PBTD: Array, w_DV: Array, target_PBT: Array, mask_PBT: Array, **terms: float) -> tuple[Array, Array]:
    """Return `cross_entropy` of the logits h w of P segments, with the same `terms`. nll has no gradient."""

    def loss(w_DV, h, target, mask):
        return cross_entropy(dense(h, w_DV, jnp.float32), target, mask, **terms)

    def here(w_DV, *args):
        h_BTD, target_BT, mask_BT = map(joined, args)
        pieces = max(1, -(-h_BTD.shape[1] * w_DV.shape[1] // PIECE))
        return _sum_of_pieces(loss, w_DV, *(cut(a, pieces) for a in (h_BTD, target_BT, mask_BT)))

    args = w_DV, h_PBTD, target_PBT, mask_PBT
    if not is_divided(h_PBTD, 2):
        return here(*args)
    tokens = P(None, None, AXIS)
    return on_pieces(lambda *args: lax.psum(here(*args), AXIS), (WHOLE, tokens, tokens, tokens), (WHOLE, WHOLE), *args)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_of_pieces(loss: Callable, w_DV: Array, h_KBTD: Array, target_KBT: Array, mask_KBT: Array) -> tuple[Array, Array]:
    def add(total, piece):
        return jax.tree.map(jnp.add, total, loss(w_DV, *piece)), None

    return lax.scan(add, (jnp.zeros(()), jnp.zeros(())), (h_KBTD, target_KBT, mask_KBT))[0]


def _sum_forward(loss, w_DV, h_KBTD, target_KBT, mask_KBT):
    def here(w_DV, h_KBTD, *labels):
        def add(total, piece):
            values, (dw, dh) = _with_gradient(loss, w_DV, *piece)
            return jax.tree.map(jnp.add, total, (values, dw)), dh

        start = ((jnp.zeros(()), jnp.zeros(())), jnp.zeros_like(w_DV))
        return lax.scan(add, start, (h_KBTD, *labels))

    def on_device(*args):
        sums, dh_KBTD = here(*args)
        return lax.psum(sums, "data"), dh_KBTD

    mesh, run = mesh_of(h_KBTD), here
    if mesh is not None and h_KBTD.shape[1] % mesh.shape["data"] == 0:  # or XLA would add dw over devices in each turn
        rows = P(None, "data")
        specs = {"in_specs": (P(), rows, rows, rows), "out_specs": (P(), rows), "axis_names": {"data"}}
        run = jax.shard_map(on_device, mesh=mesh, check_vma=False, **specs)
    (values, dw_DV), dh_KBTD = run(w_DV, h_KBTD, target_KBT, mask_KBT)
    return values, (dw_DV, dh_KBTD)


def _with_gradient(loss, w_DV, h_BTD, *labels) -> tuple[Any, Any]:
    objective, back, nll = jax.vjp(lambda w, h: loss(w, h, *labels), w_DV, h_BTD, has_aux=True)
    return (objective, nll), back(jnp.ones(()))


def _sum_backward(loss, saved, cotangents):
    dw_DV, dh_KBTD = saved
    return dw_DV * cotangents[0], (dh_KBTD * cotangents[0]).astype(dh_KBTD.dtype), None, None


_sum_of_pieces.defvjp(_sum_forward, _sum_backward)
