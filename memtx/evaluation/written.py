"""Metrics of sequence-to-sequence models on held-out pairs of source and target.

bits_per_byte                           of the targets, and `bits_per_byte_wiped` without their sources
exact_match, f1, bleu, chrf, rouge_l    of greedily generated texts, from 0 to 100 (see memtx.evaluation.text)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from memtx.data.tokenizers import Tokenizer
from memtx.evaluation.recall import Recall
from memtx.evaluation.text import bleu, bleu_signature, chrf, exact_match, rouge, token_f1
from memtx.generate import GREEDY, complete_in_batches
from memtx.models.lm import LM, Params
from memtx.tasks.base import Example


def bits_per_byte(recall: Recall, examples: Sequence[Example], bytes_V: np.ndarray) -> dict[str, float]:
    """Convert the losses of `recall` to bits per byte. bytes_V: the number of bytes of each token of the vocabulary."""
    size = sum(int(bytes_V[example.label_L].sum()) for example in examples)
    both = (("", recall.carried), ("_wiped", recall.wiped))
    return {f"bits_per_byte{suffix}": score.loss * recall.labels / math.log(2) / max(size, 1) for suffix, score in both}


def greedy_scores(
    lm: LM, params: Params, tokenizer: Tokenizer, examples: Sequence[Example], **options
) -> tuple[dict[str, float], str]:
    """Generate a text for the source of each example and score it. Returns the metrics and sacrebleu's signature.

    options: of `complete_in_batches`.
    """
    sources = [example.source_S for example in examples]
    texts = complete_in_batches(lm, params, tokenizer, [""] * len(sources), source=sources, sampling=GREEDY, **options).texts
    answers = [example.answer for example in examples]
    scores = {"exact_match": exact_match, "f1": token_f1, "bleu": bleu, "chrf": chrf}
    found = {name: score(texts, answers) for name, score in scores.items()}
    found["rouge_l"] = rouge(texts, answers, ("rougeL",))["rougeL"]
    return found, bleu_signature(texts, answers)
