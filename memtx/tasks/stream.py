"""Examples of a task as batches: what `Stream` is for text.

Row b of round r reads example r B + b; an example takes K steps of P segments each, the same for all examples of a task, so
all that a cursor holds is the step. An example begins a document: at the start of a step, padded to its K steps. With P
segments of T tokens for a whole example, K is 1 and gradients pass through all of it; else its memory is carried from step to
step.

A curriculum is a list of stages, each of a number of steps with settings of its own; after the last stage comes the task as
it is configured. The stage is a function of the step. A stage begins with new examples, and one of short examples has no more
segments a step than they need: empty ones would cost nearly as much as full ones. So there is a shape for each stage at most.

What an encoder reads before an example comes with the example's first call, padded to the longest of all.

Legend: B stream, P segments per step, T tokens per segment, K steps of an example, L tokens of an example, C calls, S tokens
of a source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from memtx.data.streams import Batch
from memtx.errors import UserError
from memtx.files.cache import digest
from memtx.tasks.base import NOTHING, Example, Task


class Place(NamedTuple):
    """Where a step stands."""

    stage: int
    round: int  # of examples, from the stage's begin
    part: int  # of the examples' K steps


class Examples(Iterator[Batch]):
    """Endless batches of examples; or one epoch of `count` without `repeat`: rows then fall idle, and it ends when all are.

    stages: (steps, task), the last one without an end. batch: B, rows over all processes. segments, time: P and T.
    count: this many different examples, in an order drawn for each epoch; 0: ever new ones.
    UserError if a block of the task is longer than a segment, or `batch` does not divide by `process_count`.
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, Task]],
        *,
        batch: int,
        segments: int,
        time: int,
        seed: int = 0,
        split: str = "train",
        count: int = 0,
        repeat: bool = True,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if min(batch, segments, time) < 1 or min(seed, count) < 0:
            raise UserError(f"examples need positive sizes, not {batch=}, {segments=}, {time=}, {seed=}, {count=}")
        if batch % process_count:
            raise UserError(f"a batch of {batch} rows does not divide by {process_count} processes; change the batch size")
        for _, task in stages:
            if task.block > time:
                raise UserError(f"data.segment={time} is shorter than a block of the task, {task.block} tokens")
        self._stages = stages
        self._begins = np.cumsum([0, *(steps for steps, _ in stages[:-1])])
        self._batch, self._segments, self._time = batch, segments, time
        self._seed, self._split, self._count, self._repeat = seed, split, count, repeat
        self._source = max(task.source for _, task in stages)
        rows = batch // process_count
        self._rows = range(process_index * rows, (process_index + 1) * rows)
        self._step = 0
        self._drawn: tuple[tuple[int, int], list[Example | None]] | None = None  # of one stage and round

    def __next__(self) -> Batch:
        place = self._place()
        first = place.round * self._batch
        if not self._repeat and first >= self._count:
            raise StopIteration
        indices = [self._index(first + row) for row in self._rows]
        if self._drawn is None or self._drawn[0] != place[:2]:
            self._drawn = (place[:2], [self._draw(place.stage, index) for index in indices])
        self._step += 1
        _, task = self._stages[place.stage]
        rows = [self._cut(task, example, place.part) for example in self._drawn[1]]
        token_BPT, target_BPT, position_BPT, length_BP = (np.stack(arrays) for arrays in zip(*rows, strict=True))
        return Batch(
            token_BPT=token_BPT,
            target_BPT=target_BPT,
            position_BPT=position_BPT,
            length_BP=length_BP,
            reset_BP=(position_BPT[..., 0] == 0) & (length_BP > 0),
            source_BP=np.where(length_BP > 0, np.asarray(indices)[:, None], -1).astype(np.int32),
            shared=self._sources(self._drawn[1], place.part, token_BPT.shape[1]) if self._source else {},
        )

    def get_state(self) -> dict:
        """The cursor, JSON-able and the same on every process: where the next batch begins."""
        return {**self._identity(), "step": self._step}

    def set_state(self, state: dict) -> None:
        """Go on from a cursor. UserError if it is of other tasks, or sizes, or another seed."""
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                raise UserError(
                    f"the saved data cursor has {name} {state.get(name)}, this run {mine}; keep them the same to resume"
                )
        if type(step := state.get("step")) is not int or step < 0:
            raise UserError(f"the saved data cursor is damaged: its step is {step!r}")
        self._step, self._drawn = step, None

    def _identity(self) -> dict:
        tasks = digest([[steps, task.fingerprint] for steps, task in self._stages])
        sizes = {"batch": self._batch, "segments": self._segments, "time": self._time, "count": self._count}
        return {"tasks": tasks, **sizes, "seed": self._seed, "split": self._split}

    def _place(self) -> Place:
        stage = int(np.searchsorted(self._begins, self._step, side="right")) - 1
        parts = -(-self._calls(self._stages[stage][1]) // self._segments)
        return Place(stage, *divmod(self._step - int(self._begins[stage]), parts))

    def _span(self, task: Task) -> int:
        """Tokens of a call."""
        return task.block or self._time

    def _calls(self, task: Task) -> int:
        """Of a whole example."""
        return -(-task.length // self._span(task))

    def _index(self, number: int) -> int:
        """The example that comes as `number`: each of `count` once in an epoch. Sorts raw bits, which NumPy never changes."""
        if not self._count or not self._repeat:
            return number
        epoch, at = divmod(number, self._count)
        return int(np.argsort(np.random.PCG64([self._seed, epoch]).random_raw(self._count), kind="stable")[at])

    def _draw(self, stage: int, index: int) -> Example | None:
        ended = not self._repeat and index >= self._count
        return None if ended else self._stages[stage][1].draw(self._seed, self._split, index, stage)

    def _sources(self, examples: Sequence[Example | None], part: int, calls: int) -> dict[str, np.ndarray]:
        token_BPS = np.zeros((len(examples), calls, self._source), np.int32)
        length_BP = np.zeros((len(examples), calls), np.int32)
        for row, example in enumerate(examples):
            if part == 0 and example is not None:
                length_BP[row, 0] = len(example.source_S)
                token_BPS[row, 0, : len(example.source_S)] = example.source_S
        return {"source/token": token_BPS, "source/length": length_BP}

    def _cut(self, task: Task, example: Example | None, part: int):
        """-> (token_PT, target_PT, position_PT, length_P) of the P calls of a part; calls after the example's end are empty."""
        span, calls = self._span(task), min(self._segments, self._calls(task))
        first = part * calls * span  # of an example of several parts, each has all P calls
        token_L = np.zeros(0, np.int32) if example is None else example.token_L[first : first + calls * span]
        label_L = token_L if example is None else example.label_L[first : first + calls * span]

        def spread(values_L, padding: int):
            out_PT = np.full((calls, self._time), padding, np.int32)
            out_PT[:, :span] = np.pad(values_L, (0, calls * span - len(values_L)), constant_values=padding).reshape(calls, span)
            return out_PT

        start_P = first + span * np.arange(calls, dtype=np.int32)
        length_P = np.clip(len(token_L) + first - start_P, 0, span).astype(np.int32)
        return spread(token_L, 0), spread(label_L, NOTHING), start_P[:, None] + np.arange(self._time, dtype=np.int32), length_P
