"""Batches of a task's examples. This module does for tasks what `memtx.data.streams` does for text.

In each round, row b reads the b-th of the next B examples. An example takes K steps of P segments, and K is the same for all
examples of a task. The cursor is therefore just the step and the examples of its round. A run that continues with more rows
has no examples for the new rows until the next round. Each example starts a document at the start of a step, and is padded to K
steps. If an
example fits into P segments of T tokens, K is 1 and gradients pass through all of it. Otherwise the state is carried from step
to step.

A curriculum is a list of stages, each with a number of steps and settings. The configured task follows the last stage. The
stage is a function of the step. Each stage starts with new examples. If its examples are short, its steps have only as many
segments as they need, because empty segments cost nearly as much as full ones. Each stage thus has at most one shape.

An encoder's source comes with the first call of its example, padded to the longest source of the task.

Legend: B streams, P segments per step, T tokens per segment, K steps of an example, L tokens of an example, S tokens of a
source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from memtx.data.streams import NOTHING, Batch
from memtx.errors import UserError
from memtx.files.cache import digest
from memtx.tasks.base import Example, Task

NONE = -1  # the index of a row without an example


class Progress(NamedTuple):
    """The stage, round and part of a step."""

    stage: int
    round: int  # number of the round of examples within the stage
    part: int  # index of the step among the K steps of its examples


class Examples(Iterator[Batch]):
    """Endless batches of examples. With `repeat=False` there is one epoch of `count` examples, after which rows are empty.

    stages: (steps, task) of each stage. The last stage never ends. shape: (B, P, T) of a batch over all processes.
    rows: the rows that this process yields (see Layout.rows_here), by default all.
    count: the number of different examples, shuffled for each epoch (0: every example is new).
    Raises UserError if a block of the task is longer than a segment.
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, Task]],
        shape: tuple[int, int, int],
        *,
        seed: int = 0,
        split: str = "train",
        count: int = 0,
        repeat: bool = True,
        rows: Sequence[int] | None = None,
    ):
        batch, segments, time = shape
        if min(shape) < 1 or min(seed, count) < 0:
            raise UserError(f"examples need positive sizes, not {batch=}, {segments=}, {time=}, {seed=}, {count=}")
        for _, task in stages:
            if task.block > time:
                raise UserError(f"data.segment={time} is shorter than a block of the task; set it to at least {task.block}")
        self._stages = stages
        self._begins = np.cumsum([0, *(steps for steps, _ in stages[:-1])])
        self._batch, self._segments, self._time = batch, segments, time
        self._seed, self._split, self._count, self._repeat = seed, split, count, repeat
        self._source = max(task.source for _, task in stages)
        self._rows = range(batch) if rows is None else rows
        self._step = 0
        # Of the last round that began: its first example, their number, and how many are still read.
        self._first, self._width, self._read = 0, batch, batch
        self._drawn: tuple[tuple[int, int], list[Example | None]] | None = None  # (stage, round) and its examples

    def __next__(self) -> Batch:
        now, first, width, read = self._locate(), self._first, self._width, self._read
        if now.part == 0:
            first, width, read = first + width if now.round else 0, self._batch, self._batch
        if not self._repeat and first >= self._count:
            raise StopIteration
        indices = [self._index(first + row) if row < read else NONE for row in self._rows]
        if self._drawn is None or self._drawn[0] != now[:2]:
            self._drawn = (now[:2], [self._draw(now.stage, index) for index in indices])
        self._step, self._first, self._width, self._read = self._step + 1, first, width, read
        _, task = self._stages[now.stage]
        rows = [self._cut(task, example, now.part) for example in self._drawn[1]]
        token_BPT, target_BPT, type_BPT, position_BPT, length_BP = (np.stack(arrays) for arrays in zip(*rows, strict=True))
        shared = self._pad_sources(self._drawn[1], now.part, token_BPT.shape[1]) if self._source else {}
        return Batch(
            token_BPT=token_BPT,
            target_BPT=target_BPT,
            position_BPT=position_BPT,
            length_BP=length_BP,
            reset_BP=(position_BPT[..., 0] == 0) & (length_BP > 0),
            document_BP=np.where(length_BP > 0, np.asarray(indices)[:, None], -1).astype(np.int32),
            shared=shared | ({"token_type": type_BPT} if task.spans else {}),
        )

    def get_state(self) -> dict:
        """Return the cursor of the next batch, JSON-able and the same on every process."""
        round_ = {"first": self._first, "batch": self._width, "read": self._read}
        return {**self._identity(), "step": self._step, **round_}

    def set_state(self, state: dict) -> None:
        """Resume from a cursor. Raises UserError if the tasks, sizes or seed differ. B may be different."""
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                raise UserError(
                    f"the saved data cursor has {name} {state.get(name)}, but this run has {mine}; keep them the same to resume"
                )
        numbers = [state.get(name, -1) for name in ("step", "batch")] + [state.get("first", 0), state.get("read", 0)]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise UserError(f"the saved data cursor is damaged: its numbers are {numbers}")
        self._step, self._width, self._first, _ = numbers
        self._read, self._drawn = min(state.get("read", self._width), self._batch), None
        if "first" not in state:  # older runs did not save it
            now = self._locate()
            self._first = max(now.round + (now.part > 0) - 1, 0) * self._width

    def _identity(self) -> dict:
        tasks = digest([[steps, task.fingerprint] for steps, task in self._stages])
        sizes = {"segments": self._segments, "time": self._time, "count": self._count}
        return {"tasks": tasks, **sizes, "seed": self._seed, "split": self._split}

    def _locate(self) -> Progress:
        """Return stage, round and part of the next step."""
        stage = int(np.searchsorted(self._begins, self._step, side="right")) - 1
        parts = -(-self._count_calls(self._stages[stage][1]) // self._segments)
        return Progress(stage, *divmod(self._step - int(self._begins[stage]), parts))

    def _span(self, task: Task) -> int:
        """Return the number of tokens of a call."""
        return task.block or self._time

    def _count_calls(self, task: Task) -> int:
        """Return the number of calls for a whole example."""
        return -(-task.length // self._span(task))

    def _index(self, number: int) -> int:
        """Return the index of the `number`-th example to read. Each of `count` examples occurs once in an epoch.

        It sorts raw bits of the generator, which are the same in all versions of NumPy.
        """
        if not self._count or not self._repeat:
            return number
        epoch, at = divmod(number, self._count)
        return int(np.argsort(np.random.PCG64([self._seed, epoch]).random_raw(self._count), kind="stable")[at])

    def _draw(self, stage: int, index: int) -> Example | None:
        ended = index == NONE or (not self._repeat and index >= self._count)
        return None if ended else self._stages[stage][1].draw(self._seed, self._split, index, stage)

    def _pad_sources(self, examples: Sequence[Example | None], part: int, calls: int) -> dict[str, np.ndarray]:
        token_BPS = np.zeros((len(examples), calls, self._source), np.int32)
        length_BP = np.zeros((len(examples), calls), np.int32)
        for row, example in enumerate(examples):
            if part == 0 and example is not None:
                length_BP[row, 0] = len(example.source_S)
                token_BPS[row, 0, : len(example.source_S)] = example.source_S
        return {"source/token": token_BPS, "source/length": length_BP}

    def _cut(self, task: Task, example: Example | None, part: int):
        """Return (token_PT, target_PT, type_PT, position_PT, length_P) of a part. Calls after the end are empty."""
        span, calls = self._span(task), min(self._segments, self._count_calls(task))
        first = part * calls * span  # an example with several parts has P calls in each
        arrays = (np.zeros(0, np.int32),) * 3 if example is None else (example.token_L, example.label_L, example.type_L)
        token_L, label_L, type_L = (array[first : first + calls * span] for array in arrays)

        def spread(values_L, padding: int):
            out_PT = np.full((calls, self._time), padding, np.int32)
            out_PT[:, :span] = np.pad(values_L, (0, calls * span - len(values_L)), constant_values=padding).reshape(calls, span)
            return out_PT

        start_P = first + span * np.arange(calls, dtype=np.int32)
        length_P = np.clip(len(token_L) + first - start_P, 0, span).astype(np.int32)
        position_PT = start_P[:, None] + np.arange(self._time, dtype=np.int32)
        return spread(token_L, 0), spread(label_L, NOTHING), spread(type_L, 0), position_PT, length_P
