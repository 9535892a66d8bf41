"""Cross-entropy of next tokens, classes, and the first and the last token of a span.

Legend: B streams, T tokens, V vocabulary or classes, A labels: one per token, or the two ends of a span.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memtx.tasks.base import FIRST, LAST


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
