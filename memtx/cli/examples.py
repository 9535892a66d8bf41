"""Display of an example of a task: the tokens, with the labels in bold."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from rich.text import Text

from memtx.config import Data
from memtx.runs.configure import complete_task
from memtx.runs.stages import changed
from memtx.tasks.base import FIRST, LAST, Example


def show(data: Data, index: int = 0) -> Text:
    """Return the settings of `data.task` and its training example `index`.

    A label that is not the next token is shown after its position: k >v. Raises UserError for an unknown task or setting.
    """
    data = complete_task(data)
    task = changed(data, {})
    example, pieces = task.draw(0, "train", index), task.tokenizer.pieces
    settings = ", ".join(f"{name}={value!r}" for name, value in dataclasses.asdict(data.task).items())
    out = Text(f"{data.corpus}  {settings}\n")
    out.append(f"{len(example.token_L)} of at most {task.length} tokens, a vocabulary of {task.tokenizer.vocab_size}; ")
    out.append(f"{len(example.asked_A)} labels; {_slices(example.slices)}\n\n")
    if len(example.source_S):
        out.append(f"source, {len(example.source_S)} tokens: {task.tokenizer.decode(example.source_S)}\n\n")
    if task.spans:
        return _mark_answer(out, pieces, example)
    answers, asked = [], False
    for position, (token, label) in enumerate(zip(example.token_L, example.label_L, strict=True)):
        after = example.token_L[position + 1] if position + 1 < len(example.token_L) else None
        out.append(pieces[token].decode(errors="replace"), style="bold" if asked else "")
        asked = bool(label >= 0 and label == after and not task.classes)
        if label >= 0:
            answers.append(label)
            if not asked:
                said = str(task.names[label]) if task.classes else pieces[label].decode(errors="replace")
                out.append((">" if after is not None or task.classes else "") + said, style="bold")
    said = ", ".join(str(task.names[label]) for label in answers) if task.classes else task.tokenizer.decode(answers)
    return out.append(f"\n\nlabels: {said}")


def _mark_answer(out: Text, pieces: Sequence[bytes], example: Example) -> Text:
    """Append the tokens of an example whose labels mark a span, with the span in bold."""
    first, last = (int(np.flatnonzero((example.label_L > 0) & (example.label_L & end > 0))[0]) for end in (FIRST, LAST))
    for position, token in enumerate(example.token_L):
        out.append(pieces[token].decode(errors="replace"), style="bold" if first <= position <= last else "")
    return out.append(f"\n\nlabels: {example.answer}")


def _slices(slices) -> str:
    return ", ".join(f"{name}={value}" for name, value in slices.items())
