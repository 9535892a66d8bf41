"""The attribution of a text: one pass through a model, and the places in documents that its reads lead to.

T tokens of the text, Q explained tokens, N heads, R entries that were read, E entries of a layer (N R of each of its Reads).
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memtx.core import collect, pytree, segment
from memtx.evaluation.losses import token_nll
from memtx.models.lm import LM, LMState, Params
from memtx.nn.reads import ATTENTION, KIND, OWN, Reads, Shares

CHUNK, LEAST = 128, 32  # tokens of a call, and of the smallest one
THIS, EARLIER = 2**31 - 1, 2**31 - 2  # labels of the text that is explained, and of text that its stream has read before
HEAD_SITE = -1  # the layer of reads after all layers
LEAST_WEIGHT = 1e-6  # entries with smaller weights are not listed


@dataclasses.dataclass(frozen=True)
class Attribution:
    """The reads and the shares of each layer, over all tokens of a text: arrays [T, N, ...] without a batch axis."""

    reads: list[tuple[int, Reads]]
    shares: list[tuple[int, str, np.ndarray]]  # layer, "gate" or "mix", [T, N]


def collect_attribution(
    lm: LM, params: Params, ids_T: np.ndarray, state: LMState, kinds: tuple[str, ...] = (KIND, ATTENTION)
) -> Attribution:
    """Return the values that layers emit while they read the tokens.

    kinds: KIND for the reads from banks, ATTENTION for those of keys.
    """
    calls = [(list(_by_layer(aux)), length) for _, aux, length in _calls(partial(_read, kinds), lm, params, ids_T, state)]
    reads, shares = [], []
    for parts in zip(*(found for found, _ in calls), strict=True):  # the same value in each call
        name, layer, _ = parts[0]
        cut = [jax.tree.map(lambda a, n=n: a[:n], value) for (*_, value), (_, n) in zip(parts, calls, strict=True)]
        value = jax.tree.map(lambda *arrays: np.concatenate(arrays), *cut)
        if isinstance(value, Reads):
            reads.append((layer, value))
        else:
            shares.append((layer, name, value.share_BTN))
    return Attribution(reads, shares)


def losses(lm: LM, params: Params, ids_T: np.ndarray, state: LMState) -> np.ndarray:
    """Return the loss of each token after the first in bits, [T - 1]."""
    nats = [np.asarray(nll_BT)[0, :length] for nll_BT, _, length in _calls(_score, lm, params, ids_T, state)]
    return (np.concatenate(nats).astype(np.float64) / np.log(2))[:-1]


def _calls(call, lm: LM, params: Params, ids_T: np.ndarray, state: LMState) -> Iterator[tuple[Array, dict, int]]:
    """Yield (nll_BT, emitted values, number of real tokens) of each call."""
    size = min(CHUNK, 1 << (max(len(ids_T), LEAST) - 1).bit_length())  # few sizes are compiled
    for start in range(0, len(ids_T), size):
        part = ids_T[start : start + size]
        target = np.append(ids_T[start + 1 : start + 1 + size], [0] * size)[:size]
        token_BT = np.pad(part, (0, size - len(part)))[None]
        (nll_BT, state), aux = call(lm, params, token_BT, target[None], np.asarray([len(part)], np.int32), state)
        yield nll_BT, jax.device_get(aux), len(part)


def _step(lm: LM, params: Params, token_BT: Array, target_BT: Array, length_B: Array, state: LMState):
    document_B = jnp.full(len(length_B), THIS, jnp.int32)
    seg = segment(state.position_B[:, None] + jnp.arange(token_BT.shape[1]), length_B, document_B=document_B)
    logits_BTV, state = lm(params, token_BT, state, seg)
    return token_nll(logits_BTV, target_BT)[0], state


@partial(jax.jit, static_argnums=0)
def _score(lm: LM, *args):
    return _step(lm, *args), {}


@partial(jax.jit, static_argnums=(0, 1))
def _read(kinds: tuple[str, ...], lm: LM, *args):
    return collect(partial(_step, lm), also=kinds)(*args)


def _by_layer(aux: Mapping[str, tuple]) -> Iterator[tuple[str, int, Reads | Shares]]:
    """Yield (name, layer, value) for each emitted value and layer, as arrays of the first stream, [T, ...]."""
    for name, values in aux.items():
        for value in values:
            layer_G, value = np.asarray(value.layer, np.int32), dataclasses.replace(value, layer=())
            if not layer_G.size:
                yield name.partition("/")[2], HEAD_SITE, jax.tree.map(lambda a: a[0], value)
            for g, layer in enumerate(layer_G):
                yield name.partition("/")[2], int(layer), jax.tree.map(lambda a, g=g: a[g, 0], value)


@pytree
class Layer:
    """The entries that one layer read for each explained token, [Q, E], and the weights of entries not listed, [Q, N]."""

    head: np.ndarray
    label: np.ndarray
    position: np.ndarray
    tokens: np.ndarray
    weight: np.ndarray
    rest: np.ndarray


def resolve(found: Attribution, first: int, start: int, before: Mapping[int, range]) -> dict[int, Layer]:
    """Return the entries of each layer, in order, from which the tokens `first` and later were predicted.

    start: the position of token 0. before: the positions at which the stream read earlier documents, by label.
    """
    layers: dict[int, list[Layer]] = defaultdict(list)
    for number, reads in found.reads:
        reads: Any = jax.tree.map(lambda a: a[first - 1 : -1], reads)  # a token is predicted by the token before it
        at_Q11 = (start + first - 1 + np.arange(len(reads.weight_BTNR)))[:, None, None]
        label, position = _place(reads, at_Q11, start, before)
        head = np.broadcast_to(np.arange(label.shape[1])[:, None], label.shape)
        arrays = (head, label, position, reads.tokens_BTNR, reads.weight_BTNR, reads.rest_BTN)
        layers[number].append(Layer(*(a.reshape(len(a), -1) for a in arrays)))
    joined = {number: jax.tree.map(lambda *arrays: np.concatenate(arrays, 1), *each) for number, each in layers.items()}
    return dict(sorted(joined.items(), key=lambda item: (item[0] == HEAD_SITE, item[0])))


def _place(reads: Any, at_Q11: np.ndarray, start: int, before: Mapping[int, range]) -> tuple[np.ndarray, np.ndarray]:
    """Return the label of the document of each entry, and its position from the first token of the document."""
    label, position = reads.document_BTNR.copy(), reads.position_BTNR.copy()
    own = label == OWN
    position[own] = (position + at_Q11)[own]
    label[own] = np.where(position[own] >= start, THIS, EARLIER)
    for document, span in before.items():
        label[own & (position >= span.start) & (position < min(span.stop, start))] = document
        position[label == document] -= span.start
    position[label == THIS] -= start
    return label, position


@dataclasses.dataclass(frozen=True)
class Summary:
    """The entries of all layers.

    rows     for each explained token, the kept entries (layer, head, label, position, tokens, weight), largest weights first
    share    the share of each label in all weights, [Q]
    covered  the share of the kept entries in all weights, [Q]
    """

    rows: list[list[tuple]]
    share: dict[int, np.ndarray]
    covered: np.ndarray


def summarise(layers: Mapping[int, Layer], explained: int, keep: int) -> Summary:
    """Keep the `keep` entries with the largest weights of each layer and each of the Q = `explained` tokens."""
    rows: list[list[tuple]] = [[] for _ in range(explained)]
    total_Q, kept_Q, share = np.zeros(explained), np.zeros(explained), defaultdict(lambda: np.zeros(explained))
    for number, layer in layers.items():
        total_Q += layer.weight.sum(1) + layer.rest.sum(1)
        for label in np.unique(layer.label[layer.weight > 0]):
            share[int(label)] += (layer.weight * (layer.label == label)).sum(1)
        best = np.argsort(-layer.weight, 1, kind="stable")[:, :keep]
        columns = (layer.head, layer.label, layer.position, layer.tokens, layer.weight)
        picked = [np.take_along_axis(a, best, 1) for a in columns]
        kept_Q += picked[-1].sum(1)
        for row, *values in zip(rows, *(a.tolist() for a in picked), strict=True):
            row += [(number, *entry) for entry in zip(*values, strict=True) if entry[-1] >= LEAST_WEIGHT]
    for row in rows:
        row.sort(key=lambda entry: -entry[-1])
    whole_Q = np.where(total_Q > 0, total_Q, 1)
    return Summary(rows, {label: sums / whole_Q for label, sums in share.items()}, kept_Q / whole_Q)
