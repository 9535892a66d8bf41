"""One train step: P segments of truncated backpropagation through time, an optimiser update, and the memory handed on.

B stream, P segments of a step, T time, A parts of a step's batch.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from memtx.config import Config
from memtx.core import batch_axes, collect, detach, scan
from memtx.data.streams import Batch, segment_of
from memtx.evaluation.losses import at_each_place, cross_entropy
from memtx.models.lm import LM
from memtx.training.optim import trained

UNROLLED = 4  # segments of a step, at most, that are unrolled where the model's loops are: compile time grows with them


def make_loss(lm: LM, config: Config):
    """loss(params, memory, batch, asked, key) -> (objective, (memory, nll)), per place asked in the whole step."""
    optim, learns = config.optim, trained(config.optim, lm)

    def loss(params, memory, batch: Batch, asked: Array, key: Array | None):
        def segment(carry, inputs):
            memory, objective, nll = carry
            part, p = inputs
            seg = segment_of(part)
            segment_key = None if key is None else jax.random.fold_in(key, p)
            logits, memory = lm(params, part.token_BPT, memory, seg, key=segment_key)
            logits = at_each_place(logits, part.target_BPT.shape[1])
            terms = cross_entropy(
                logits, part.target_BPT, part.asked_BPT, z_loss=optim.z_loss, label_smoothing=optim.label_smoothing
            )
            return (memory, objective + terms[0], nll + terms[1]), None

        params = jax.tree.map(lambda p, t: p if t else jax.lax.stop_gradient(p), params, learns)
        segments = batch.token_BPT.shape[1]
        unroll = segments if not config.model.scan and segments <= UNROLLED else 1
        by_segment = jax.tree.map(lambda a: a.swapaxes(0, 1), batch)
        start = (detach(memory), jnp.zeros(()), jnp.zeros(()))

        def run():
            return scan(segment, start, (by_segment, jnp.arange(segments)), unroll=unroll)[0]

        (memory, objective, nll), aux = collect(run, "loss")()
        extra = sum(jnp.sum(value) for values in aux.values() for value in values) / (segments * config.train.accumulate)
        return objective / asked + extra, (memory, nll / asked)

    return loss


def make_step(lm: LM, tx: optax.GradientTransformation, config: Config):
    """step(params, opt_state, memory, batch, index, key) -> (params, opt_state, memory, metrics), to be jitted and donated."""
    loss, learns = make_loss(lm, config), trained(config.optim, lm)
    parts = config.train.accumulate

    def gradient(params, memory, batch, asked, key) -> tuple[Any, Any]:
        (_, (memory, nll)), grads = jax.value_and_grad(loss, has_aux=True)(params, memory, batch, asked, key)
        return grads, (memory, nll)

    def accumulated(params, memory, batch, asked, key):
        """The same gradient from one part of the batch after another; loss terms other than tokens' are averaged."""
        axes = batch_axes(lm.init_state)

        def cut(a, axis):  # every parts-th row, so that each part has rows of every device
            return jnp.moveaxis(a.reshape(*a.shape[:axis], -1, parts, *a.shape[axis + 1 :]), axis + 1, 0)

        def join(a, axis):
            a = jnp.moveaxis(a, 0, axis + 1)
            return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :])

        def part(total, inputs):
            memory, batch, index = inputs
            part_key = None if key is None else jax.random.fold_in(key, index)
            grads, (memory, nll) = gradient(params, memory, batch, asked, part_key)
            return jax.tree.map(jnp.add, total, (grads, nll)), memory

        zero = (jax.tree.map(jnp.zeros_like, params), jnp.zeros(()))
        inputs = (jax.tree.map(cut, memory, axes), jax.tree.map(lambda a: cut(a, 0), batch), jnp.arange(parts))
        (grads, nll), memory = jax.lax.scan(part, zero, inputs)
        return grads, (jax.tree.map(join, memory, axes), nll)

    def step(params, opt_state, memory, batch: Batch, index: Array, key: Array):
        asked = jnp.maximum(batch.asked_BPT.sum(dtype=jnp.int32), 1).astype(jnp.float32)
        tokens = batch.length_BP.sum(dtype=jnp.int32).astype(jnp.float32)
        step_key = jax.random.fold_in(key, index) if config.model.dropout else None
        compute = gradient if parts == 1 else accumulated
        grads, (memory, nll) = compute(params, memory, batch, asked, step_key)
        updates, opt_state = tx.update(grads, opt_state, params)
        metrics = {"loss": nll, "grad_norm": optax.tree.norm(grads), "tokens": tokens}
        params = jax.tree.map(lambda t, p, u: optax.apply_updates(p, u) if t else p, learns, params, updates)
        return params, opt_state, memory, metrics

    return step
