"""What a model writes after held-out sources: bits per byte of the targets, and greedy texts scored against them.

bits_per_byte        of targets, `_wiped`: without their sources
exact_match, f1      of normalised words, bleu, rouge_l: of greedy texts, from 0 to 100 (memtx.evaluation.text)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from memtx.data.tokenizers import Tokenizer
from memtx.evaluation.recall import Recall
from memtx.evaluation.text import bleu, bleu_signature, exact_match, rouge, token_f1
from memtx.generate import GREEDY, complete
from memtx.models.lm import LM, Params
from memtx.tasks.base import Example


def bits_per_byte(recall: Recall, examples: Sequence[Example], bytes_V: np.ndarray) -> dict[str, float]:
    size = sum(int(bytes_V[example.label_L].sum()) for example in examples)
    both = (("", recall.carried), ("_wiped", recall.wiped))
    return {f"bits_per_byte{suffix}": score.loss * recall.labels / math.log(2) / max(size, 1) for suffix, score in both}


def greedy_scores(
    lm: LM, params: Params, tokenizer: Tokenizer, examples: Sequence[Example], *, batch: int, max_tokens: int
) -> tuple[dict[str, float], str]:
    """Scores of the text that is written after each example's source, against its answer, and sacrebleu's signature."""
    texts: list[str] = []
    while len(texts) < len(examples):
        rows = examples[len(texts) : len(texts) + batch]
        sources = [row.source_S for row in (*rows, *[rows[-1]] * (batch - len(rows)))]  # whole batches: one program
        done = complete(lm, params, tokenizer, [""] * batch, source=sources, sampling=GREEDY, max_tokens=max_tokens)
        texts += done.texts[: len(rows)]
    answers = [example.answer for example in examples]
    scores = {"exact_match": exact_match, "f1": token_f1, "bleu": bleu}
    found = {name: score(texts, answers) for name, score in scores.items()}
    found["rouge_l"] = rouge(texts, answers, ("rougeL",))["rougeL"]
    return found, bleu_signature(texts, answers)
