"""Scores of generated text, from 0 to 100: BLEU, chrF, ROUGE, exact match and token F1 against references, and repetition.

`predictions` has one text per example. `references` has one text or several per example. The best of several counts.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from memtx.errors import UserError, check_known, optional
from memtx.evaluation.words import bleu_tokenizer, spaced, words

References = Sequence[str | Sequence[str]]


def bleu(predictions: Sequence[str], references: References, tokenizer: str = "") -> float:
    """Return corpus BLEU by sacrebleu (Papineni et al. 2002; Post 2018). The number of references may vary by example.

    tokenizer: the name of a sacrebleu tokenizer. "" chooses one by the script of the references (see memtx.evaluation.words).
    If no prediction has four tokens, shorter n-grams count instead (sacrebleu's `effective_order`). Predictions that all equal
    a reference therefore score 100, even if they are short. If any prediction has four tokens, the score is sacrebleu's
    default.
    """
    texts = _checked(predictions, references)
    if all(text in several for text, several in zip(predictions, texts, strict=True)):
        return 100.0
    return _bleu(texts, tokenizer).corpus_score(list(predictions), _streams(texts)).score


def bleu_signature(predictions: Sequence[str], references: References, tokenizer: str = "") -> str:
    """Return sacrebleu's signature of `bleu`: tokenizer, smoothing and version."""
    texts = _checked(predictions, references)
    metric = _bleu(texts, tokenizer)
    metric.corpus_score(list(predictions), _streams(texts))
    return str(metric.get_signature())


def chrf(predictions: Sequence[str], references: References) -> float:
    """Return corpus chrF by sacrebleu (Popović 2015). The number of references may vary by example.

    It compares the characters of both texts, in sequences of 1 to 6 without spaces. Recall has twice the weight of precision.
    Predictions that all equal a reference score 100, even if they are empty.
    """
    texts = _checked(predictions, references)
    if all(text in several for text, several in zip(predictions, texts, strict=True)):
        return 100.0
    return optional("sacrebleu", "eval").CHRF().corpus_score(list(predictions), _streams(texts)).score


def _bleu(texts: list[list[str]], tokenizer: str):
    sacrebleu = optional("sacrebleu", "eval")
    chosen = tokenizer or bleu_tokenizer(one for several in texts for one in several)
    check_known(chosen, sacrebleu.BLEU.TOKENIZERS, "tokenizer of sacrebleu")
    try:
        return sacrebleu.BLEU(tokenize=chosen, effective_order=True)
    except (ImportError, RuntimeError) as error:
        raise UserError(f"sacrebleu cannot use the tokenizer {chosen}: {' '.join(str(error).split())}") from None


def _streams(texts: list[list[str]]) -> list[list[str | None]]:
    """Return one list with the first reference of each example, one with the second, and so on."""
    return [[several[i] if i < len(several) else None for several in texts] for i in range(max(map(len, texts)))]


def rouge(predictions: Sequence[str], references: References, kinds: Sequence[str] = ("rouge1", "rouge2", "rougeL")) -> dict:
    """Return the mean F1 by kind: overlap of words, of word pairs, and of the longest common subsequence (Lin 2004).

    memtx.evaluation.words splits texts into words, and English words are stemmed. For ASCII texts the words are those of
    rouge-score. Texts with the same words score 100, even if they are too short to have word pairs.
    """
    texts = _checked(predictions, references)
    scorer = optional("rouge_score.rouge_scorer", "eval").RougeScorer(list(kinds), tokenizer=_Stemmed())
    found = dict.fromkeys(kinds, 0.0)
    for text, several in zip(predictions, texts, strict=True):
        same = any(words(text) == words(one) for one in several)
        scores = scorer.score_multi(several, text)
        found = {kind: sum_ + (1.0 if same else scores[kind].fmeasure) for kind, sum_ in found.items()}
    return {kind: 100 * total / len(texts) for kind, total in found.items()}


class _Stemmed:
    """A tokenizer for rouge-score, which stems English words of more than three letters."""

    def __init__(self):
        self._stem = optional("nltk.stem.porter", "eval").PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        return [self._stem(word) if word.isascii() and len(word) > 3 else word for word in words(text)]


def check_scorers() -> None:
    """Raise a UserError if a package for BLEU, chrF and ROUGE is not installed."""
    for module in ("sacrebleu", "rouge_score.rouge_scorer"):
        optional(module, "eval")


def exact_match(predictions: Sequence[str], references: References) -> float:
    """Return the percentage of predictions that equal a reference after normalisation (Rajpurkar et al. 2016, SQuAD)."""
    return _mean_of_best(predictions, references, lambda a, b: float(normalised(a) == normalised(b)))


def token_f1(predictions: Sequence[str], references: References) -> float:
    """Return the mean F1 of bags of words (SQuAD), or of characters in scripts without spaces (Lewis et al. 2020, MLQA)."""
    return _mean_of_best(predictions, references, _f1)


def repetition(texts: Sequence[str], n: int = 4) -> dict[str, float]:
    """Return how much texts repeat their n-grams of words (see memtx.evaluation.words), by name.

    repetition  the n-grams that occurred earlier in the same text, in percent of its n-grams: the mean over texts
                (Welleck et al. 2020, rep-n)
    distinct    the different n-grams of all texts together, in percent of all n-grams (Li et al. 2016, distinct-n)

    Both depend on the lengths of the texts, so compare texts of similar lengths. Texts of fewer than n words are left out.
    Raises UserError if no text is left or n is below 1.
    """
    if n < 1:
        raise UserError(f"n must be 1 or more, not {n}")
    split = [words(text) for text in texts]
    grams = [[*zip(*(row[i:] for i in range(n)), strict=False)] for row in split if len(row) >= n]
    if not grams:
        raise UserError(f"no text has {n} words, so there are no n-grams to count")
    seen_before = [1 - len(set(row)) / len(row) for row in grams]
    different = len(set().union(*grams)) / sum(map(len, grams))
    return {"repetition": 100 * sum(seen_before) / len(grams), "distinct": 100 * different}


def normalised(text: str) -> str:
    """Normalise text as SQuAD does: lower case, no punctuation, no articles (a, an, the), one space between words.

    As in MLQA, the punctuation of all scripts is removed, and each character of a script without spaces is a word. Full-width
    letters become narrow ones.
    """
    characters = unicodedata.normalize("NFKC", text).lower()
    bare = "".join(c for c in characters if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", spaced(bare)).split())


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
    """Return the list of references of each example. Raises UserError if there are none."""
    if len(predictions) != len(references) or not predictions:
        raise UserError(f"{len(predictions)} predictions and {len(references)} references; give equal numbers, at least one")
    texts = [[one] if isinstance(one, str) else list(one) for one in references]
    if not all(texts):
        raise UserError(f"example {[*map(bool, texts)].index(False)} has no reference")
    return texts
