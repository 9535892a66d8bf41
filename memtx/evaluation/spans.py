"""Answers that are spans of a text, by a model with `model.output=span`.

    score(first, last) = logit_first + logit'_last,    first <= last < first + most

The best span of all windows of the text is the answer (Devlin et al. 2018).

B windows of a batch, T tokens of a window, n tokens of the text in a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memtx.core import segment
from memtx.data.framed import Framed, frame
from memtx.data.tokenizers import Tokenizer
from memtx.errors import UserError
from memtx.evaluation.text import exact_match, token_f1
from memtx.models.lm import LM, Params
from memtx.tasks.spans import Question

MOST = 30  # tokens of an answer
MULTIPLE = 32  # windows are padded to a multiple of it, so that few shapes are compiled


@dataclass(frozen=True)
class Answer:
    """An answer, its first character in the text, the one after its last, and the sum of the two logits."""

    text: str
    start: int
    end: int
    score: float


def find_answers(
    lm: LM,
    params: Params,
    tokenizer: Tokenizer,
    asked: Sequence[tuple[str, str]],
    *,
    tokens: int = 384,
    most: int = MOST,
    batch: int = 8,
    progress: Callable[[int, int], object] | None = None,
) -> list[Answer]:
    """Return the best answer to each question in its text. An answer in a text without tokens is empty.

    asked: (question, text) for each answer. The other arguments are those of `memtx.answer`. Raises UserError if the model does
    not predict spans, or if a question leaves no room for its text.
    """
    if most < 1 or batch < 1:
        raise UserError(f"most and batch must be at least 1, not {most} and {batch}")
    if lm.model.output != "span":
        raise UserError(f"model.output={lm.model.output or 'next tokens'} gives no spans: load a model with output='span'")
    lm.check_length(tokens, tokens, "set tokens to that number or fewer")
    framed = [frame(tokenizer, question, text, tokens) for question, text in asked]
    owned = [(i, window) for i, whole in enumerate(framed) if whole.length for window in whole.windows(tokens)]
    best = [Answer("", 0, 0, -np.inf)] * len(framed)
    order = sorted(range(len(owned)), key=lambda n: len(owned[n][1].ids_T))  # similar lengths need little padding
    for start in range(0, len(order), batch):
        rows = [owned[n] for n in order[start : start + batch]]
        logits_BT2 = read_windows(lm, params, [window for _, window in rows], batch)
        for (i, window), logits_T2 in zip(rows, logits_BT2, strict=False):
            span_n2, logits_n2 = window.span_T2[window.text], logits_T2[window.text]
            first, last, score = best_span(logits_n2[:, 0], logits_n2[:, 1], most)
            if score > best[i].score:
                begin, end = int(span_n2[first, 0]), int(span_n2[last, 1])
                best[i] = Answer(asked[i][1][begin:end], begin, end, score)
        if progress:
            progress(min(start + batch, len(order)), len(order))
    return best


def read_windows(lm: LM, params: Params, windows: Sequence[Framed], batch: int) -> np.ndarray:
    """Return the logits of windows, [batch, T, 2]. Rows beyond the windows are padding."""
    longest = -(-max(len(window.ids_T) for window in windows) // MULTIPLE) * MULTIPLE
    length_B = np.zeros(batch, np.int32)
    token_BT, type_BT = np.zeros((2, batch, longest), np.int32)
    for b, window in enumerate(windows):
        length_B[b] = len(window.ids_T)
        token_BT[b, : length_B[b]], type_BT[b, : length_B[b]] = window.ids_T, window.type_T
    return np.asarray(_logits(lm, params, token_BT, type_BT, length_B))


@partial(jax.jit, static_argnums=0)
def _logits(lm: LM, params: Params, token_BT: Array, type_BT: Array, length_B: Array) -> Array:
    position_BT = jnp.broadcast_to(jnp.arange(token_BT.shape[1]), token_BT.shape)
    seg = segment(position_BT, length_B).replace(shared={"token_type": type_BT})
    return lm(params, token_BT, lm.init_state(len(token_BT)), seg)[0]


def best_span(first_n: np.ndarray, last_n: np.ndarray, most: int) -> tuple[int, int, float]:
    """Return the first and the last token of the best span of at most `most` tokens, and its score."""
    score_nn = first_n[:, None] + last_n[None]
    allowed_nn = np.triu(np.ones_like(score_nn, bool)) & ~np.triu(np.ones_like(score_nn, bool), most)
    first, last = np.unravel_index(np.where(allowed_nn, score_nn, -np.inf).argmax(), score_nn.shape)
    return int(first), int(last), float(score_nn[first, last])


def answer_scores(lm: LM, params: Params, tokenizer: Tokenizer, examples: Sequence[Question], **options) -> dict[str, float]:
    """Return the exact match and F1 of answers from whole contexts, from 0 to 100 (see memtx.evaluation.text).

    options: of `find_answers`.
    """
    asked = [(example.question, example.context) for example in examples]
    found = find_answers(lm, params, tokenizer, asked, **options)
    texts, answers = [answer.text for answer in found], [example.answer for example in examples]
    return {"exact_match": exact_match(texts, answers), "f1": token_f1(texts, answers)}
