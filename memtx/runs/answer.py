"""Answers that are spans of a text, by a run of configs/answer.py or a BERT that was trained for it.

loaded = memtx.load("runs/answers")
[answer] = memtx.answer(loaded, ["When was it built?"], [text])
answer.text, answer.start
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memtx.errors import UserError
from memtx.evaluation.spans import MOST, Answer, find_answers
from memtx.runs.load import Loaded

TOKENS = 384  # of a question and a window of its text, for a model that is no run


def answer(
    loaded: Loaded,
    questions: Sequence[str],
    texts: Sequence[str],
    *,
    tokens: int | None = None,
    most: int = MOST,
    batch: int = 8,
    progress: Callable[[int, int], object] | None = None,
) -> list[Answer]:
    """Return the best span of each text as the answer to its question, with its first character and its score.

    A text of any length is read in windows that overlap by half. tokens: the maximum number of tokens of a question and a
    window. None uses the number of the run's training, or TOKENS. most: the maximum number of tokens of an answer. batch: the
    number of windows in a call. progress: called after each call with the numbers of windows read and of all windows.

    Raises UserError if the model does not predict spans, or if a question leaves no room for its text.
    """
    if isinstance(questions, str) or isinstance(texts, str) or len(questions) != len(texts):
        raise UserError("questions and texts must be lists of strings of the same length")
    if tokens is None:
        known = loaded.config.data.segment if loaded.step else TOKENS
        tokens = min(known, loaded.lm.most_tokens or known)
    asked = list(zip(questions, texts, strict=True))
    sizes = {"tokens": tokens, "most": most, "batch": batch, "progress": progress}
    return find_answers(loaded.lm, loaded.params, loaded.tokenizer, asked, **sizes)
