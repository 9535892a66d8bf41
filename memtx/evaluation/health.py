"""The health of the state that a model carries: use and age of entries, gates, rank of matrices, and drift of keys.

An evaluation reports these numbers as `memory/...`. They say whether a memory is used, not whether it helps. No mechanism is
known by name: states show their parts (`memtx.memory.inspect`), and calls emit "use/..." and "metric/...".

WORDS explains the numbers. For each "metric/NAME" that a mechanism emits, such as a gate, there are also `memory/NAME`, the
mean over calls, layers and heads, and `memory/NAME_min` and `memory/NAME_max`, the smallest and largest of layers and heads.
`memory/NAME/layer=2` is the value of a layer, counted from 0 among the layers with such parts. A number that has no value, such
as the age if nothing was read, is left out.

Legend: B streams, M entries, G groups of a stack, L reads.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import GetAttrKey, KeyPath, SequenceKey
from jax.typing import ArrayLike

from memtx.core import State, Stateful, batch_axes
from memtx.memory.inspect import Inspectable
from memtx.sharding import Layout

KINDS = ("use", "metric")  # collected in the evaluation with the state carried
ENTRIES = {
    "filled": "the share of the room for entries that has an entry at the end of the evaluation",
    "never_read": "the share of the entries at the end that no query has read since they were written",
    "most_read_tenth": "the share of all reads of those entries that the most-read tenth of each bank got",
    "age": "the mean distance in tokens from a query back to an entry that it reads",
    "age_by_weight": "the same mean, with the weights of the reads",
    "drift": "the relative change of a stored key by one train step, for the same text",
    "entry_norm": "the mean length of the stored keys or vectors",
}
MATRICES = {
    "effective_rank": "exp of the entropy of the singular values of a matrix, the mean over streams, heads and layers",
    "matrix_norm": "the mean Frobenius norm of the matrices",
}
GATES = {  # emitted as "metric/NAME", among others of mechanisms outside memtx
    "gate": "the weight of the memory beside attention",
    "keep": "the share of the state that a token keeps",
    "write": "the strength of a token's write to the state",
    "forget": "the share of the fast weights that a token forgets",
    "usage": "the share of the rows of a table that a segment reads",
    "kl": "the distance of the use of those rows from uniform, in nats",
}
WORDS = ENTRIES | MATRICES | GATES
OUTSIDE = 1 << 30  # sorts parts of the state that are outside the stacks, such as a head, after all layers

# --- numbers of arrays --------------------------------------------------------------------------------------------------------


def use(reads_M: ArrayLike, valid_M: ArrayLike) -> dict[str, float]:
    """Return how evenly entries are read: `filled`, `never_read` and `most_read_tenth` (see the module).

    reads_M: how often each entry was read, [..., M]. valid_M: a mask of the indices with an entry. Each row along the last axis
    is a bank. The numbers are of all banks together. The most-read tenth of a bank is rounded up to whole entries. Numbers of
    no entries, or of no reads, are left out.
    """
    valid = np.asarray(valid_M, bool)
    if not valid.size:
        return {}
    valid = valid.reshape(-1, valid.shape[-1])
    reads = np.where(valid, np.asarray(reads_M).reshape(valid.shape), 0)
    entries, total = int(valid.sum()), float(reads.sum())
    found = {"filled": entries / valid.size}
    if entries:
        found["never_read"] = float((valid & (reads == 0)).sum() / entries)
    if total:
        top = np.arange(valid.shape[-1]) < -(-valid.sum(-1, keepdims=True) // 10)
        found["most_read_tenth"] = float(np.where(top, -np.sort(-reads, -1), 0).sum() / total)
    return found


def count_reads(id_L: ArrayLike, id_M: ArrayLike) -> np.ndarray:
    """Return how often each of the entries id_M occurs among the ids read, of any shape. An id of -1 is no entry."""
    read, times = np.unique(np.asarray(id_L), return_counts=True)
    counts = dict(zip(read.tolist(), times.tolist(), strict=True))
    return np.vectorize(lambda id: counts.get(id, 0) if id >= 0 else 0, otypes=[int])(np.asarray(id_M))


def age(age_L: ArrayLike, weight_L: ArrayLike | None = None) -> dict[str, float]:
    """Return `age`, the mean of the ages of reads, and `age_by_weight` if there are weights. Without reads it is empty."""
    ages = np.asarray(age_L, np.float64)
    weights = None if weight_L is None else np.asarray(weight_L, np.float64)
    one, by_weight = (ages.size, ages.sum()), (0.0, 0.0) if weights is None else (weights.sum(), (weights * ages).sum())
    return _mean_ages([*one, *by_weight])


def _mean_ages(sums: Iterable[float]) -> dict[str, float]:
    """Return the mean ages. sums: of 1, age, weight and age x weight over reads."""
    reads, ages, weight, weighted = map(float, sums)
    pairs = {"age": (ages, reads), "age_by_weight": (weighted, weight)}
    return {name: total / count for name, (total, count) in pairs.items() if count > 0}


def effective_rank(matrix: ArrayLike) -> Array:
    """Return exp(H(p)) of matrices [..., rows, columns], p = s / sum s, where s are the singular values and H is the entropy.

    It is r for r equal singular values, and 0 for a matrix of zeros. Source: Roy & Vetterli 2007, "The effective rank".
    """
    s = jnp.linalg.svd(jnp.asarray(matrix, jnp.float32), compute_uv=False)
    total = s.sum(-1)
    p = s / jnp.where(total > 0, total, 1)[..., None]
    return jnp.where(total > 0, jnp.exp(-jax.scipy.special.xlogy(p, p).sum(-1)), 0)


def drift(old: tuple[Array, Array], new: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the sum of |new - old| / |new| over the entries in both, and their number. Entries are (key [B, M, ...], mask).

    Both have read the same tokens from an empty state, with the weights before and after one train step. Index by index they
    therefore have the keys of the same tokens. If n steps have passed since a key in the state of training was written, it
    differs from today's key for its token by about n times the mean at most.
    """
    both = old[1] & new[1] & (_length(new[0]) > 0)
    return jnp.where(both, _length(new[0] - old[0]) / jnp.where(both, _length(new[0]), 1), 0).sum(), both.sum()


def _length(key_BM: Array) -> Array:
    """Return the length of each key, [B, M]."""
    return jnp.sqrt(jnp.square(key_BM.astype(jnp.float32)).reshape(*key_BM.shape[:2], -1).sum(-1))


# --- parts of a state ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Part:
    """An inspectable node of a state. Its leaves have `stacked` axes before the batch, each of a stack. name: its path."""

    path: KeyPath
    node: Any
    stacked: int

    def each(self, f: Callable[[Any], Any]) -> Any:
        """Apply a function of one layer's node to every group of the stack, and return the results along the first axis."""
        for _ in range(self.stacked):
            f = jax.vmap(f)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[self.stacked :]), f(self.node))

    def layer(self, group: int) -> tuple[int, ...]:
        """Return numbers that sort layers by depth: stack, group and index in the pattern."""
        numbers = [key.idx for key in self.path if isinstance(key, SequenceKey)][:2]
        return (numbers[0], group, *numbers[1:]) if numbers else (OUTSIDE,)


def parts(state: State, axes: State) -> list[Part]:
    """Return the inspectable nodes of a state. axes: the batch axis of each leaf (`batch_axes`)."""
    pairs = zip(_nodes(state), _nodes(axes), strict=True)
    return [Part(path, node, max(jax.tree.leaves(axis)[0], 0)) for (path, node), (_, axis) in pairs]


def _nodes(tree: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Inspectable]]:
    """Yield the inspectable nodes, also those inside others."""
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, Inspectable))[0]:
        if isinstance(leaf, Inspectable):
            yield (*path, *keys), leaf
            for name, value in vars(leaf).items():
                yield from _nodes(value, (*path, *keys, GetAttrKey(name)))


def measure(node: Inspectable) -> dict[str, tuple[Array, Array]]:
    """Return the sum and the count of each number of one layer's node. Matrices of zeros and empty entries do not count."""
    found = {}
    if node.matrices:
        ranks = jnp.concatenate([effective_rank(matrix).ravel() for matrix in node.matrices])
        norms = jnp.concatenate([jnp.linalg.norm(matrix, axis=(-2, -1)).ravel() for matrix in node.matrices])
        written = (norms > 0).sum()
        found = {"effective_rank": (ranks.sum(), written), "matrix_norm": (norms.sum(), written)}
    if entries := stored(node):
        key, valid = entries
        lengths = jnp.where(valid, _length(key), 0).sum()
        found |= {"filled": (valid.sum(), jnp.full((), valid.size)), "entry_norm": (lengths, valid.sum())}
    return found


def stored(node: Inspectable) -> tuple[Array, Array] | None:
    """Return the entries of one layer's node, with a stream axis also if all streams share them, or None."""
    if node.stored is None:
        return None
    key, valid = node.stored
    return (key, valid) if valid.ndim == 2 else (key[None], valid[None])


def summarise(found: Iterable[tuple[Part, Mapping[str, tuple[np.ndarray, np.ndarray]]]]) -> dict[str, float]:
    """Return the numbers of each layer and of all layers together, from the sums and counts [G] of the parts."""
    layers = defaultdict(lambda: defaultdict(lambda: np.zeros(2)))
    for part, numbers in found:
        for name, (total, count) in numbers.items():
            for group, pair in enumerate(np.stack([total, count], -1)):
                layers[part.layer(group)][name] += pair
    names = {key: f"layer={i}" if key != (OUTSIDE,) else "head" for i, key in enumerate(sorted(layers))}
    whole, by_layer = defaultdict(lambda: np.zeros(2)), {}
    for key in sorted(layers):
        for name, (total, count) in layers[key].items():
            whole[name] += total, count
            if count > 0:
                by_layer[f"{name}/{names[key]}"] = float(total / count)
    return {name: float(total / count) for name, (total, count) in whole.items() if count > 0} | by_layer


# --- an evaluation ------------------------------------------------------------------------------------------------------------


class Health:
    """Measures the state of evaluations. Its functions are compiled once.

    For the drift, `remember` is called one train step before an evaluation, with the state after its first segment.
    """

    def __init__(self, lm: Stateful, layout: Layout):
        axes = batch_axes(lm.init_state)
        whole = layout.whole

        def entries(state):
            return [part.each(stored) for part in parts(state, axes)]

        def compare(old, state):
            return [{"drift": jax.vmap(drift)(a, b)} if a else {} for a, b in zip(old, entries(state), strict=True)]

        self.axes, self.before = axes, None
        self.entries = jax.jit(entries)
        self.compare = jax.jit(compare, out_shardings=whole)
        self.join = jax.jit(join, donate_argnums=0)
        self.measure = jax.jit(
            lambda state, emitted: ([part.each(measure) for part in parts(state, axes)], emitted), out_shardings=whole
        )

    def remember(self, state: State) -> None:
        """Keep the entries that today's weights have made of the first segment."""
        self.before = jax.block_until_ready(self.entries(state))

    def watch(self) -> Watch:
        """Start to watch an evaluation."""
        return Watch(self)


Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Evaluate(Generic[Result]):
    """A function evaluate(params, batches) -> Result, which can also prepare to measure the drift.

    calls: yields a tuple after each batch. It starts with the states, of which the first is the carried one.
    """

    run: Callable[[Any, Iterable[Any]], Result]
    calls: Callable[[Any, Iterable[Any]], Iterator[tuple]]
    health: Health | None

    def __call__(self, params: Any, batches: Iterable[Any]) -> Result:
        """Evaluate parameters on batches."""
        return self.run(params, batches)

    def remember(self, params: Any, batches: Iterable[Any]) -> None:
        """Read the first batch and keep its entries (see `Health.remember`). Does nothing if the health is not measured."""
        if self.health:
            for (carried, *_), *_ in self.calls(params, batches):
                return self.health.remember(carried)


class Watch:
    """The health of the state in one evaluation."""

    def __init__(self, health: Health):
        self.health, self.emitted, self.drifts, self.calls = health, None, None, 0

    def add(self, state: State, emitted: Mapping[str, tuple[Array, ...]]) -> None:
        """Add a call: the state after it and what it has emitted of KINDS."""
        health = self.health
        if not self.calls and health.before is not None:
            self.drifts, health.before = health.compare(health.before, state), None
        self.emitted = emitted if self.emitted is None else health.join(self.emitted, emitted)
        self.calls += 1

    def metrics(self, state: State) -> dict[str, float]:
        """Return the numbers of the module, by name. state: the state after the last call."""
        measured, emitted, drifts = jax.device_get((*self.health.measure(state, self.emitted), self.drifts))
        nodes = parts(state, self.health.axes)
        found = summarise(zip(nodes, measured, strict=True))
        if drifts is not None:
            found |= summarise(zip(nodes, drifts, strict=True))
        found |= of_use(emitted) | of_metrics(emitted, self.calls)
        return {f"memory/{name}": value for name, value in found.items() if np.isfinite(value)}


def join(old: Mapping[str, tuple[Array, ...]], new: Mapping[str, tuple[Array, ...]]) -> dict[str, tuple[Array, ...]]:
    """Add the emissions of a call to those of earlier calls. The reads of an entry start again when it is overwritten."""
    found = {name: tuple(map(jnp.add, old[name], values)) for name, values in new.items()}
    labels = {name: new[name] for name in ("use/entry", "use/document") if name in new}
    if labels:
        same = [True] * len(new["use/reads"])
        for name, values in labels.items():
            same = [s & (a == b) for s, a, b in zip(same, old[name], values, strict=True)]
        kept = (jnp.where(s, a, 0) for s, a in zip(same, old["use/reads"], strict=True))
        found |= labels | {"use/reads": tuple(map(jnp.add, kept, new["use/reads"]))}
    return found


def of_use(emitted: Mapping[str, tuple[np.ndarray, ...]]) -> dict[str, float]:
    """Return `never_read`, `most_read_tenth` and the ages, from the joined emissions of an evaluation."""
    banks = [*zip(emitted.get("use/reads", ()), emitted.get("use/entry", ()), strict=True)]
    found = {}
    if banks:
        width = max(reads.shape[-1] for reads, _ in banks)
        wide = [[np.pad(a.reshape(-1, a.shape[-1]), ((0, 0), (0, width - a.shape[-1]))) for a in bank] for bank in banks]
        reads, entry = (np.concatenate(arrays) for arrays in zip(*wide, strict=True))
        found = use(reads, entry > 0)
        del found["filled"]  # of padded arrays. That of the state itself is right
    sums = sum((np.asarray(a, np.float64).reshape(-1, 4).sum(0) for a in emitted.get("use/age", ())), np.zeros(4))
    return found | _mean_ages(sums)


def of_metrics(emitted: Mapping[str, tuple[np.ndarray, ...]], calls: int) -> dict[str, float]:
    """Return the mean of each "metric/NAME" over calls, layers and heads, and the smallest and largest of layers and heads."""
    found = {}
    for name, values in emitted.items():
        kind, _, rest = name.partition("/")
        if kind == "metric":
            means = np.concatenate([np.ravel(value) for value in values]) / calls
            found |= {rest: float(means.mean()), f"{rest}_min": float(means.min()), f"{rest}_max": float(means.max())}
    return found
