"""Accuracy on the labels of a task, with the state carried and with the state wiped.

The same weights read the same held-out examples twice: with the state carried from segment to segment, and with the state wiped
before every segment. An encoder-decoder with wiped state reads no source, because its state contains the source.
A label is right if it is the most likely token at its position. An example is an exact match if all its labels are right. If
the labels are next tokens, this agrees with greedy generation, which generates the answer only if each of its tokens is right.

Legend: B streams, T tokens of a segment, E examples, L tokens of an example, A labels of an example, W carried and wiped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from memtx.core import collect
from memtx.data.streams import Batch, segment_of
from memtx.evaluation.health import KINDS, Evaluate, Health
from memtx.evaluation.losses import labels_of, logits_of_labels, token_nll
from memtx.models.lm import LM
from memtx.sharding import Layout
from memtx.tasks.base import Example


@dataclasses.dataclass(frozen=True)
class Score:
    """The results of one pass.

    accuracy        the share of labels that are right
    exact           the share of examples with all labels right
    loss            nats per label
    by_slice        the accuracy of each slice, by names such as "pairs=16"
    exact_by_slice  `exact` of each slice that consists of whole examples
    """

    accuracy: float
    exact: float
    loss: float
    by_slice: dict[str, float]
    exact_by_slice: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Recall:
    """The results with the state carried and with the state wiped.

    text: the metrics of memtx.evaluation.written or memtx.evaluation.spans, if any. signature: sacrebleu's signature of the
    BLEU among them. health: of the carried state, see memtx.evaluation.health.
    """

    carried: Score
    wiped: Score
    examples: int
    labels: int
    text: Mapping[str, float] = dataclasses.field(default_factory=dict)
    signature: str = ""
    health: dict[str, float] = dataclasses.field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Return the overall metrics, those of the slices, those of generated text, and the health."""
        found = {}
        for score, suffix in ((self.carried, ""), (self.wiped, "_wiped")):
            found |= {f"eval/{name}{suffix}": getattr(score, name) for name in ("accuracy", "exact", "loss")}
        for score, suffix in ((self.carried, ""), (self.wiped, "_wiped")):
            found |= {f"eval/accuracy{suffix}/{name}": value for name, value in score.by_slice.items()}
            found |= {f"eval/exact{suffix}/{name}": value for name, value in score.exact_by_slice.items()}
        return found | {f"eval/{name}": value for name, value in self.text.items()} | self.health


def make_recall(
    lm: LM, examples: Sequence[Example], layout: Layout, health: Health | None = None, spans: bool = False
) -> Evaluate[Recall]:
    """Build evaluate(params, batches) -> Recall. It creates fresh states at each call and is compiled once.

    batches: batches with P = 1, whose `document_BP` is the index of the example. health: measures the carried state.
    spans: whether labels mark spans. Their two ends are then the labels that count.
    """

    def step(params, states, batch: Batch):
        part = jax.tree.map(lambda a: a[:, 0], batch)
        new, both, emitted = [], [], {}
        for state, wiped in zip(states, (False, True), strict=True):
            read = collect(lm, also=KINDS if health and not wiped else ())
            (logits, state), found = read(params, part.token_BPT, state, segment_of(part, wiped=wiped))
            emitted |= found
            new.append(state)
            both.append(logits)
        return tuple(new), _judge(part, both, spans), emitted

    state_shardings = (layout.state(lm.init_state),) * 2
    step = jax.jit(step, donate_argnums=1, out_shardings=(state_shardings, layout.whole, None))
    start = jax.jit(lambda batch: (lm.init_state(batch),) * 2, static_argnums=0, out_shardings=state_shardings)

    def calls(params, batches: Iterable[Batch]):
        """Yield the states, the results and the emissions of each call. The next call donates the states."""
        states = None
        for batch in batches:
            batch = layout.shard(batch)
            states = start(batch.token_BPT.shape[0]) if states is None else states
            states, found, emitted = step(params, states, batch)
            yield states, found, emitted

    def evaluate(params, batches: Iterable[Batch]) -> Recall:
        watch, states = health and health.watch(), None
        longest = max(len(example.token_L) for example in examples)
        right_WEL, nll_WEL = np.zeros((2, len(examples), longest), bool), np.zeros((2, len(examples), longest), np.float32)
        for states, found, emitted in calls(params, batches):
            if watch:
                watch.add(states[0], emitted)
            document_B, column_BA, mask_BA, right_WBA, nll_WBA = jax.device_get(found)
            row, label = np.nonzero(mask_BA)
            at = (slice(None), document_B[row], column_BA[row, label])
            right_WEL[at], nll_WEL[at] = right_WBA[:, row, label], nll_WBA[:, row, label]
        carried, wiped = (score(examples, right_EL, nll_EL) for right_EL, nll_EL in zip(right_WEL, nll_WEL, strict=True))
        labels = sum(len(example.asked_A) for example in examples)
        found = watch.metrics(states[0]) if watch and states is not None else {}
        return Recall(carried, wiped, len(examples), labels, health=found)

    return Evaluate(evaluate, calls, health)


def _judge(part: Batch, both: Sequence[jax.Array], spans: bool) -> tuple[jax.Array, ...]:
    """Return document_B, and for each label its column among the labels of the example, its mask, right_WBA and nll_WBA.

    part: a batch without P. both: the logits of the two passes.
    """
    target_BA, mask_BA = labels_of(part.target_BPT, part.labelled_BPT, spans)
    logits_W = [logits_of_labels(logits, part.labelled_BPT, spans) for logits in both]
    right_WBA = jnp.stack([logits_BAV.argmax(-1) == target_BA for logits_BAV in logits_W])
    nll_WBA = jnp.stack([token_nll(logits_BAV, target_BA)[0] for logits_BAV in logits_W])
    column_BA = part.position_BPT[:, : target_BA.shape[1]]  # the ends of a span have the columns 0 and 1
    return jnp.asarray(part.document_BP), jnp.asarray(column_BA), mask_BA, right_WBA, nll_WBA


def score(examples: Sequence[Example], right_EL: np.ndarray, nll_EL: np.ndarray) -> Score:
    """Score examples. right_EL: whether the prediction at each token is right. Tokens without a label do not count."""
    all_right, nll, exact = [], [], []
    slices: dict[str, dict] = {}
    exact_slices: dict[str, dict] = {}
    for example, right_L, nll_L in zip(examples, right_EL, nll_EL, strict=True):
        asked_A = example.asked_A
        nll += nll_L[asked_A].tolist()
        scored_A = np.ones(len(asked_A), bool) if example.scored_A is None else example.scored_A
        right_A = right_L[asked_A][scored_A]
        if not len(right_A):
            continue
        all_right += right_A.tolist()
        exact.append(bool(right_A.all()))
        for name, value in example.slices.items():
            of_labels = np.ndim(value) > 0
            values_A = np.asarray(value)[scored_A] if of_labels else np.full(len(right_A), value)
            for key, right in zip(values_A.tolist(), right_A.tolist(), strict=True):
                slices.setdefault(name, {}).setdefault(key, []).append(right)
            if not of_labels:
                exact_slices.setdefault(name, {}).setdefault(value, []).append(exact[-1])
    return Score(mean(all_right), mean(exact), mean(nll), _average(slices), _average(exact_slices))


def mean(values: Sequence[float]) -> float:
    """Return the mean, or NaN if there are no values."""
    return float(np.mean(values)) if values else float("nan")


def _average(slices: dict[str, dict]) -> dict[str, float]:
    """Return the mean of each slice under its name, such as "pairs=16"."""
    return {f"{name}={key}": mean(values) for name, found in slices.items() for key, values in sorted(found.items())}
