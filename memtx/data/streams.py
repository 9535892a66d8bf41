"""Streams: documents in B parallel rows, fed segment by segment, with a cursor that is saved and restored exactly.

A document of tokens d0 ... dn-1 is read as inputs bos d0 ... dn-1 with targets d0 ... dn-1 bos. A document starts at the first
token of a call, so the last call of the document before it is padded. A row whose document has ended takes the next document
of a queue. The queue has the documents of an epoch in an order drawn from (seed, epoch). The lowest free row is served first.

Every process knows the layout of all rows (B numbers, no tokens) and gathers only the tokens of the rows that its devices need.
The cursor is therefore the same on all processes and can be restored on a different number of them. It can also be restored
with a different B: the first rows continue, and new rows take documents of the queue.

B stream, P segments per step, T tokens per segment, D documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import jax.numpy as jnp
import numpy as np

from memtx.core import Segment, pytree
from memtx.data.tokens import Tokens
from memtx.errors import UserError

NOTHING = -1  # the target of a token without a label


@pytree
class Batch:
    """One training step: P segments of B streams, as NumPy arrays. In a segment, real tokens come before padding.

    token_BPT     int32, inputs, 0 in padding
    target_BPT    int32, the token after each input, 0 in padding; in tasks -1 for tokens without a label
    position_BPT  int32, position of each input in its document, 0 for `bos`; keeps counting in padding
    length_BP     int32, number of real tokens; 0 in a row that has no document left
    reset_BP      bool, whether a document starts at the segment's first token
    document_BP   int32, index of the document in the split; -1 in a row that has no document left
    shared        further inputs, as in a Segment: "source/token" [B, P, S] and "source/length" [B, P] for an encoder, and
                  "token_type" [B, P, T]
    """

    token_BPT: np.ndarray
    target_BPT: np.ndarray
    position_BPT: np.ndarray
    length_BP: np.ndarray
    reset_BP: np.ndarray
    document_BP: np.ndarray
    shared: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def labelled_BPT(self) -> np.ndarray:
        """Return which tokens have a label, bool."""
        return (np.arange(self.target_BPT.shape[-1]) < self.length_BP[..., None]) & (self.target_BPT >= 0)


def segment_of(batch: Batch, *, wiped: bool = False) -> Segment:
    """Return the Segment of a batch whose leaves have no P axis. wiped: reset every row and leave out the encoder's source."""
    position_BT, length_B, reset_B, document_B = map(
        jnp.asarray, (batch.position_BPT, batch.length_BP, batch.reset_BP, batch.document_BP)
    )
    shared = {key: jnp.asarray(a) for key, a in batch.shared.items() if not (wiped and key.startswith("source/"))}
    return Segment(position_BT, length_B, jnp.ones_like(reset_B) if wiped else reset_B, document_B, shared=shared)


@dataclass(frozen=True)
class Cursor:
    """The positions of all B rows between two calls."""

    document_B: np.ndarray  # int64, index in the split, or -1
    offset_B: np.ndarray  # int64, tokens of the document that were read, including `bos`
    epoch: int  # of the queue
    taken: int  # documents taken from the queue in this epoch


class Stream(Iterator[Batch]):
    """Endless batches of `tokens`, or one epoch if `repeat` is False. It ends when no row has a document left.

    shape: (B, P, T) of a batch over all processes. rows: the rows that this process yields (see Layout.rows_here), by default
    all. Raises UserError if a size is not positive.
    """

    def __init__(
        self,
        tokens: Tokens,
        shape: tuple[int, int, int],
        *,
        seed: int = 0,
        shuffle: bool = True,
        repeat: bool = True,
        rows: Sequence[int] | None = None,
    ):
        batch, segments, time = shape
        if min(shape) < 1 or seed < 0:
            raise UserError(f"a stream needs positive sizes, not {batch=}, {segments=}, {time=}, {seed=}")
        self._rows = list(range(batch) if rows is None else rows)
        self._tokens = tokens
        self._length_D = tokens.length_D + 1  # with bos
        self._segments, self._time = segments, time
        self._seed, self._shuffle, self._repeat = seed, shuffle, repeat
        self._order: tuple[int, np.ndarray] | None = None  # of one epoch
        self._cursor = Cursor(np.full(batch, -1), np.zeros(batch, np.int64), 0, 0)

    @property
    def epoch(self) -> int:
        """Return the number of completed passes over all documents."""
        return self._cursor.epoch

    def __next__(self) -> Batch:
        cursor, calls = self._cursor, []
        for _ in range(self._segments):
            cursor = self._serve(cursor)
            left_B = np.where(cursor.document_B < 0, 0, self._length_D[cursor.document_B] - cursor.offset_B)
            length_B = np.minimum(left_B, self._time)
            calls.append((cursor.document_B, cursor.offset_B, length_B))
            cursor = replace(cursor, offset_B=cursor.offset_B + length_B)
        document_BP, offset_BP, length_BP = (np.stack(arrays, axis=1) for arrays in zip(*calls, strict=True))
        if not length_BP.any():
            raise StopIteration
        self._cursor = cursor
        return self._gather(document_BP[self._rows], offset_BP[self._rows], length_BP[self._rows])

    def get_state(self) -> dict:
        """Return the cursor of the next batch, JSON-able and the same on every process."""
        cursor = self._cursor
        rows = {"document": cursor.document_B.tolist(), "offset": cursor.offset_B.tolist()}
        return {**self._identity(), "epoch": cursor.epoch, "taken": cursor.taken, **rows}

    def set_state(self, state: dict) -> None:
        """Continue from a cursor. Raises UserError if it is damaged or has other tokens, seed or shuffle.

        If the cursor has more rows, the last ones are dropped with the rest of their documents. New rows have no document yet.
        """
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                why = "the texts or the tokenizer have changed since then" if name == "tokens" else "keep it the same to resume"
                raise UserError(
                    f"the checkpoint's place in the data has {name} {state.get(name)}, but this run has {mine}; {why}"
                )
        try:
            document_B, offset_B = (np.asarray(state[name], np.int64).reshape(-1) for name in ("document", "offset"))
            if len(document_B) != len(offset_B):
                raise ValueError(f"{len(document_B)} documents and {len(offset_B)} offsets")
            batch = len(self._cursor.document_B)
            rows = _resized(document_B, batch, -1), _resized(offset_B, batch, 0)
            self._cursor = Cursor(*rows, int(state["epoch"]), int(state["taken"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the saved data cursor is damaged: {error}") from error

    def _identity(self) -> dict:
        return {"tokens": self._tokens.fingerprint, "seed": self._seed, "shuffle": self._shuffle}

    def _serve(self, cursor: Cursor) -> Cursor:
        """Give each row whose document has ended the next document of the queue, or none if the queue is empty."""
        free_B = (cursor.document_B < 0) | (cursor.offset_B >= self._length_D[cursor.document_B])
        if not free_B.any():
            return cursor
        document_B, epoch, taken = cursor.document_B.copy(), cursor.epoch, cursor.taken
        for row in np.flatnonzero(free_B):
            if self._repeat and taken == len(self._length_D):
                epoch, taken = epoch + 1, 0
            some_left = taken < len(self._length_D)
            document_B[row] = self._documents(epoch)[taken] if some_left else -1
            taken += some_left
        return Cursor(document_B, np.where(free_B, 0, cursor.offset_B), epoch, taken)

    def _documents(self, epoch: int) -> np.ndarray:
        """Return the order of documents in an epoch. Raw bits are stable across versions of NumPy, unlike `shuffle`."""
        if self._order is None or self._order[0] != epoch:
            count = len(self._length_D)
            bits_D = np.random.PCG64([self._seed, epoch]).random_raw(count) if self._shuffle else np.arange(count)
            self._order = (epoch, np.argsort(bits_D, kind="stable"))
        return self._order[1]

    def _gather(self, document_BP: np.ndarray, offset_BP: np.ndarray, length_BP: np.ndarray) -> Batch:
        """Return the batch at these offsets. Inputs are the targets shifted by one, and `bos` is at both ends of a document."""
        step_T = np.arange(self._time)
        ids_N, bos = self._tokens.ids_N, self._tokens.bos
        first_BP = self._tokens.offset_D1[document_BP] + offset_BP - 1
        window_BPS = first_BP[..., None] + np.arange(self._time + 1)  # S = T + 1: the inputs and the last target
        id_BPS = np.take(ids_N, window_BPS, mode="clip").astype(np.int32)
        id_BPS[..., 0][offset_BP == 0] = bos
        ends_BP = offset_BP + length_BP == self._length_D[document_BP]
        id_BPS[(*np.nonzero(ends_BP), length_BP[ends_BP])] = bos
        real_BPT = step_T < length_BP[..., None]
        return Batch(
            token_BPT=np.where(real_BPT, id_BPS[..., :-1], 0),
            target_BPT=np.where(real_BPT, id_BPS[..., 1:], 0),
            position_BPT=(offset_BP[..., None] + step_T).astype(np.int32),
            length_BP=length_BP.astype(np.int32),
            reset_BP=(offset_BP == 0) & (length_BP > 0),
            document_BP=document_BP.astype(np.int32),
        )


def _resized(a_B: np.ndarray, size: int, fill: int) -> np.ndarray:
    """Return the first `size` elements, filled up with `fill`."""
    return np.pad(a_B[:size], (0, max(size - len(a_B), 0)), constant_values=fill)
