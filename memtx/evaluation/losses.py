"""Cross-entropy of next tokens and classes.

Legend: B streams, T tokens, V vocabulary or classes.
"""

import jax
import jax.numpy as jnp
from jax import Array


def repeat_logits(logits: Array, time: int) -> Array:
    """Repeat the logits of a call, [B, V], for each of `time` tokens, [B, T, V]. Logits [B, T, V] do not change."""
    return logits if logits.ndim == 3 else jnp.broadcast_to(logits[:, None], (len(logits), time, logits.shape[-1]))


def token_nll(logits_BTV: Array, target_BT: Array) -> tuple[Array, Array]:
    """Return (nll_BT in nats, log_z_BT) in float32. A target of -1 means no label, and nll is then meaningless."""
    logits = logits_BTV.astype(jnp.float32)
    log_z_BT = jax.nn.logsumexp(logits, -1)
    return log_z_BT - jnp.take_along_axis(logits, jnp.maximum(target_BT, 0)[..., None], -1)[..., 0], log_z_BT


def cross_entropy(logits_BTV, target_BT, mask_BT, *, z_loss: float = 0.0, label_smoothing: float = 0.0):
    """Return (objective, nll) in nats, summed over the tokens in the mask.

    objective = (1-s) nll + s (mean over the vocabulary of -log p) + z_loss log(Z)^2. Here s is `label_smoothing`, and the last
    term is from PaLM (2204.02311).
    """
    nll_BT, log_z_BT = token_nll(logits_BTV, target_BT)
    objective_BT = nll_BT
    if label_smoothing:
        uniform_BT = log_z_BT - logits_BTV.astype(jnp.float32).mean(-1)
        objective_BT = (1 - label_smoothing) * nll_BT + label_smoothing * uniform_BT
    if z_loss:
        objective_BT = objective_BT + z_loss * log_z_BT**2
    return jnp.where(mask_BT, objective_BT, 0).sum(), jnp.where(mask_BT, nll_BT, 0).sum()
