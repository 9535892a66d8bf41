"""Scores of written text against references, from 0 to 100: BLEU, ROUGE, exact match and F1 of tokens.

`predictions` has one text per example; `references` has a text, or several of which the best counts, per example.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from memtx.errors import UserError, optional

References = Sequence[str | Sequence[str]]


def bleu(predictions: Sequence[str], references: References) -> float:
    """Corpus BLEU with sacrebleu's own tokens and smoothing (Papineni et al. 2002; Post 2018). Examples may differ in how many
    references they have."""
    texts = _checked(predictions, references)
    most = max(map(len, texts))
    streams = [[several[i] if i < len(several) else None for several in texts] for i in range(most)]
    return optional("sacrebleu", "eval").corpus_bleu(list(predictions), streams).score


def rouge(predictions: Sequence[str], references: References, kinds: Sequence[str] = ("rouge1", "rouge2", "rougeL")) -> dict:
    """Mean F1 by kind: overlap of words, of pairs of words, and of the longest common subsequence (Lin 2004); stemmed."""
    texts = _checked(predictions, references)
    scorer = optional("rouge_score.rouge_scorer", "eval").RougeScorer(list(kinds), use_stemmer=True)
    found = [scorer.score_multi(several, text) for text, several in zip(predictions, texts, strict=True)]
    return {kind: 100 * sum(scores[kind].fmeasure for scores in found) / len(found) for kind in kinds}


def check_scorers() -> None:
    """UserError if what BLEU and ROUGE need is not installed."""
    for module in ("sacrebleu", "rouge_score.rouge_scorer"):
        optional(module, "eval")


def exact_match(predictions: Sequence[str], references: References) -> float:
    """How many are a reference once both are normalised (Rajpurkar et al. 2016, SQuAD)."""
    return _mean_of_best(predictions, references, lambda a, b: float(normalised(a) == normalised(b)))


def token_f1(predictions: Sequence[str], references: References) -> float:
    """Mean F1 of normalised words as bags (SQuAD)."""
    return _mean_of_best(predictions, references, _f1)


def normalised(text: str) -> str:
    """SQuAD's: lower case, without punctuation, without the articles a, an, the, one blank between words."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _f1(prediction: str, reference: str) -> float:
    mine, theirs = normalised(prediction).split(), normalised(reference).split()
    common = sum((Counter(mine) & Counter(theirs)).values())
    if not mine or not theirs:
        return float(mine == theirs)
    return 2 * common / (len(mine) + len(theirs))


def _mean_of_best(predictions: Sequence[str], references: References, score: Callable[[str, str], float]) -> float:
    texts = _checked(predictions, references)
    best = [max(score(text, one) for one in several) for text, several in zip(predictions, texts, strict=True)]
    return 100 * sum(best) / len(best)


def _checked(predictions: Sequence[str], references: References) -> list[list[str]]:
    """Each example's references as a list."""
    if len(predictions) != len(references) or not predictions:
        raise UserError(f"{len(predictions)} predictions and {len(references)} references: give as many, at least one")
    texts = [[one] if isinstance(one, str) else list(one) for one in references]
    if not all(texts):
        raise UserError(f"example {[*map(bool, texts)].index(False)} has no reference")
    return texts
