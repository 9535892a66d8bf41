"""The optimisers of a config, which respect the declarations of mechanisms on their parameters.

A parameter with `optim="no_decay"` gets no weight decay. One with `lr=5.0` learns five times as fast. Parameters that the
pretrained weights lack (a head, a memory) learn `optim.new_lr` times as fast. Muon updates the matrices inside blocks. Adam
updates embeddings, heads, vectors and parameters with `optim="no_decay"`.

`optim.train` is a regex of paths ("memories/0", "embed|to_logits"). Other parameters are frozen and have no optimiser state.
"""

import re

import jax
import optax

from memtx.config import Optim
from memtx.errors import UserError
from memtx.models.lm import LM, Params
from memtx.pretrained.load import new_parameters
from memtx.pretrained.names import flat


def make_schedule(optim: Optim, steps: int) -> optax.Schedule:
    """Return a schedule: warm-up from 0 to `lr`, then constant, or a cosine or line to `final_lr * lr` at the last step."""
    warmup = min(optim.warmup, max(steps - 1, 0))
    rest = max(steps - warmup, 1)
    if optim.schedule == "cosine":
        after = optax.cosine_decay_schedule(optim.lr, rest, alpha=optim.final_lr)
    elif optim.schedule == "linear":
        after = optax.linear_schedule(optim.lr, optim.final_lr * optim.lr, rest)
    else:
        after = optax.constant_schedule(optim.lr)
    return optax.join_schedules([optax.linear_schedule(0.0, optim.lr, warmup), after], [warmup])


def make_optimizer(optim: Optim, steps: int, lm: LM, cache: str = "") -> optax.GradientTransformation:
    """Return one optax chain for the trained parameters: clip, precondition, decay, scale. cache: as in data.cache."""
    chain = _chain(optim, steps, lm, _factors(optim, lm, cache))
    if not optim.train:
        return chain
    labels = jax.tree.map(lambda t: "trained" if t else "frozen", trained(optim, lm))
    return optax.partition({"trained": chain, "frozen": optax.set_to_zero()}, labels)


def trained(optim: Optim, lm: LM) -> Params:
    """Return whether each parameter is trained. Raises UserError if none is."""
    try:
        pattern = re.compile(optim.train)
    except re.error as error:
        raise UserError(f"optim.train={optim.train!r} is not a regular expression: {error}") from None
    shapes = flat(lm.abstract_params)
    chosen = [bool(pattern.search(path)) for path in shapes]
    if not any(chosen):
        raise UserError(f"no parameter path matches optim.train={optim.train!r}; paths look like {next(reversed(shapes))}")
    return jax.tree.unflatten(jax.tree.structure(lm.abstract_params), chosen)


def _chain(optim: Optim, steps: int, lm: LM, factors: Params) -> optax.GradientTransformation:
    decays = jax.tree.map(lambda label: "no_decay" not in label, lm.declared("optim", ""))
    parts = [optax.clip_by_global_norm(optim.clip)] if optim.clip else []
    parts.append(_precondition(optim, lm, decays))
    if optim.weight_decay:
        parts.append(optax.add_decayed_weights(optim.weight_decay, mask=decays))
    if any(factor != 1.0 for factor in jax.tree.leaves(factors)):
        parts.append(optax.stateless(lambda updates, _: jax.tree.map(_scaled, factors, updates)))
    parts.append(optax.scale_by_learning_rate(make_schedule(optim, steps)))
    return optax.chain(*parts)


def _factors(optim: Optim, lm: LM, cache: str) -> Params:
    """Return the learning rate factor of each parameter. Raises UserError if `new_lr` is set but no parameter is new."""
    factors = lm.declared("lr", 1.0)
    if optim.new_lr == 1.0:
        return factors
    new = set(new_parameters(lm, cache=cache)) if lm.model.pretrained else set()
    if not new:
        raise UserError(f"optim.new_lr={optim.new_lr} needs new parameters beside pretrained ones; set optim.lr instead")
    paths = jax.tree.unflatten(jax.tree.structure(factors), list(flat(lm.abstract_params)))
    return jax.tree.map(lambda path, factor: factor * optim.new_lr if path in new else factor, paths, factors)


def _scaled(factor: float, update):
    return update if isinstance(update, optax.MaskedNode) else update * factor  # masked: frozen


def _precondition(optim: Optim, lm: LM, decays) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(optim.b1, optim.b2)
    if optim.name == "adamw":
        return adam
    if optim.name == "lion":
        return optax.scale_by_lion(optim.b1, optim.b2)
    if optim.name == "adafactor":
        return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.ema(optim.b1, debias=True))
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)  # [groups, in, out]

    def is_matrix(path, leaf, decay):
        return decay and leaf.ndim == 3 and path[0].key == "body"

    shapes = lm.abstract_params
    matrices = jax.tree_util.tree_map_with_path(is_matrix, shapes, decays)
    labels = jax.tree.map(lambda m: "muon" if m else "adam", matrices)

    def dimensions(params):
        return jax.tree.map(lambda _: matrix, params)

    muon = optax.chain(
        optax.contrib.scale_by_muon(beta=0.95, weight_dimension_numbers=dimensions),
        optax.scale(0.2 * lm.model.width**0.5),  # updates as large as Adam's (Liu et al. 2025, arXiv 2502.16982)
    )
    return optax.partition({"muon": muon, "adam": adam}, labels)
