"""One train step: truncated backpropagation through P segments, an optimiser update, and the new state.

Legend: B streams, P segments of a step, T tokens of a segment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import PartitionSpec as P

from memtx.config import Config
from memtx.core import batch_axes, collect, detach, scan
from memtx.data.streams import Batch, segment_of
from memtx.evaluation.losses import cross_entropy, labels_of, logits_of_labels, next_token_loss
from memtx.models.lm import LM
from memtx.ops.per_device import mesh_of
from memtx.training.optim import trained

UNROLLED = 4  # a model without scan also unrolls the loop over segments, unless more segments would make compilation slow


def make_loss(lm: LM, config: Config):
    """Build loss(params, state, batch, num_labels, key) -> (objective, (state, nll)).

    The losses are divided by `num_labels`, the number of labels of the whole step.
    """
    optim, learns, spans = config.optim, trained(config.optim, lm), lm.model.output == "span"
    by_hidden = not (lm.model.output or lm.model.head)
    terms_of_loss = {"z_loss": optim.z_loss, "label_smoothing": optim.label_smoothing}

    def loss(params, state, batch: Batch, num_labels: Array, key: Array | None):
        def segment(carry, inputs):
            state, objective, nll = carry
            part, p = inputs
            seg = segment_of(part)
            segment_key = None if key is None else jax.random.fold_in(key, p)
            if by_hidden:
                h, state = lm.hidden(params, part.token_BPT, state, seg, key=segment_key)
                return (state, objective, nll), h
            logits, state = lm(params, part.token_BPT, state, seg, key=segment_key)
            labels = labels_of(part.target_BPT, part.labelled_BPT, spans)
            terms = cross_entropy(logits_of_labels(logits, part.labelled_BPT, spans), *labels, **terms_of_loss)
            return (state, objective + terms[0], nll + terms[1]), None

        params = jax.tree.map(lambda p, t: p if t else jax.lax.stop_gradient(p), params, learns)
        segments = batch.token_BPT.shape[1]
        unroll = segments if not config.model.scan and segments <= UNROLLED else 1
        by_segment = jax.tree.map(lambda a: a.swapaxes(0, 1), batch)
        start = (detach(state), jnp.zeros(()), jnp.zeros(()))

        def run():
            (state, *losses), h_PBTD = scan(segment, start, (by_segment, jnp.arange(segments)), unroll=unroll)
            if by_hidden:  # once for all segments, so that a single gradient of the weight exists
                labels = by_segment.target_BPT, by_segment.labelled_BPT
                losses = next_token_loss(h_PBTD, lm.logit_weight(params), *labels, **terms_of_loss)
            return state, *losses

        (state, objective, nll), aux = collect(run, "loss")()
        extra = sum(jnp.sum(value) for values in aux.values() for value in values) / (segments * config.train.accumulate)
        return objective / num_labels + extra, (state, nll / num_labels)

    return loss


def make_step(lm: LM, tx: optax.GradientTransformation, config: Config):
    """Build step(params, opt_state, state, batch, index, key) -> (params, opt_state, state, metrics).

    The caller jits it and donates the first three arguments.
    """
    loss, learns = make_loss(lm, config), trained(config.optim, lm)
    parts = config.train.accumulate

    def gradient(params, state, batch, num_labels, key) -> tuple[Any, Any]:
        (_, (state, nll)), grads = jax.value_and_grad(loss, has_aux=True)(params, state, batch, num_labels, key)
        return grads, (state, nll)

    def accumulate(params, state, batch, num_labels, key):
        """Sum the gradients of the batch's parts, one after another. Losses that mechanisms emit are averaged."""
        axes = batch_axes(lm.init_state)

        def cut(a, axis):  # takes every parts-th row, so that each part has rows of every device
            return jnp.moveaxis(a.reshape(*a.shape[:axis], -1, parts, *a.shape[axis + 1 :]), axis + 1, 0)

        def join(a, axis):
            a = jnp.moveaxis(a, 0, axis + 1)
            return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :])

        def part(total, inputs):
            state, batch, index = inputs
            part_key = None if key is None else jax.random.fold_in(key, index)
            grads, (state, nll) = gradient(params, state, batch, num_labels, part_key)
            return jax.tree.map(jnp.add, total, (grads, nll)), state

        zero = (jax.tree.map(jnp.zeros_like, params), jnp.zeros(()))
        inputs = (jax.tree.map(cut, state, axes), jax.tree.map(lambda a: cut(a, 0), batch), jnp.arange(parts))
        (grads, nll), state = jax.lax.scan(part, zero, inputs)
        return grads, (jax.tree.map(join, state, axes), nll)

    def step(params, opt_state, state, batch: Batch, index: Array, key: Array):
        _, mask_BPA = labels_of(batch.target_BPT, batch.labelled_BPT, lm.model.output == "span")
        num_labels = jnp.maximum(mask_BPA.sum(dtype=jnp.int32), 1).astype(jnp.float32)
        tokens = batch.length_BP.sum(dtype=jnp.int32).astype(jnp.float32)
        step_key = jax.random.fold_in(key, index) if config.model.dropout else None
        compute = gradient if parts == 1 else accumulate
        compute = compute if config.mesh.fsdp else by_device(compute, lm)
        grads, (state, nll) = compute(params, state, batch, num_labels, step_key)
        updates, opt_state = tx.update(grads, opt_state, params)
        metrics = {"loss": nll, "grad_norm": optax.tree.norm(grads), "tokens": tokens}
        params = jax.tree.map(lambda t, p, u: optax.apply_updates(p, u) if t else p, learns, params, updates)
        return params, opt_state, state, metrics

    return step


def by_device(gradient: Callable, lm: LM) -> Callable:
    """Return the function with which each device of the `data` axis computes the gradient of its rows.

    The gradients then cross devices once. XLA's partitioner would add them in each turn of each loop, and would make all
    devices agree on each condition. If the axis has one device, or streams share arrays of the state, nothing changes. With
    dropout, results depend on the size of the axis.
    """
    axes = batch_axes(lm.init_state)

    def call(params, state, batch, num_labels, key):
        mesh = mesh_of(batch)
        devices = mesh.shape["data"] if mesh else 1
        if devices == 1 or min(jax.tree.leaves(axes)) < 0:
            return gradient(params, state, batch, num_labels, key)

        def here(params, state, batch, num_labels, key):
            key = None if key is None else jax.random.fold_in(key, jax.lax.axis_index("data"))
            # The mean over devices, because the losses that mechanisms emit are means over rows.
            grads, (state, nll) = gradient(params, state, batch, num_labels / devices, key)
            return jax.lax.pmean(grads, "data"), (state, jax.lax.pmean(nll, "data"))

        rows = jax.tree.map(lambda axis: P(*[None] * axis, "data"), axes)
        specs = (P(), rows, P("data"), P(), P())
        return jax.shard_map(
            here, mesh=mesh, in_specs=specs, out_specs=(P(), (rows, P())), axis_names={"data"}, check_vma=False
        )(params, state, batch, num_labels, key)

    return call
