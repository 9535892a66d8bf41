"""Scores of written text against references, from 0 to 100: BLEU, ROUGE, exact match and F1 of tokens.

`predictions` has one text per example; `references` has a text, or several of which the best counts, per example.
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
    """Corpus BLEU by sacrebleu (Papineni et al. 2002; Post 2018). Examples may differ in how many references they have.

    tokenizer: of sacrebleu; "" chooses by the script of the references, see memtx.evaluation.words. Where no prediction has
    four tokens, the longest n-grams that there are count instead (sacrebleu's `effective_order`). So texts that all equal a
    reference have 100, however short; where a prediction has four tokens the score is sacrebleu's default.
    """
    texts = _checked(predictions, references)
    if all(text in several for text, several in zip(predictions, texts, strict=True)):
        return 100.0
    return _bleu(texts, tokenizer).corpus_score(list(predictions), _streams(texts)).score


def bleu_signature(predictions: Sequence[str], references: References, tokenizer: str = "") -> str:
    """sacrebleu's signature of `bleu`: its tokenizer, its smoothing, its version."""
    texts = _checked(predictions, references)
    metric = _bleu(texts, tokenizer)
    metric.corpus_score(list(predictions), _streams(texts))
    return str(metric.get_signature())


def _bleu(texts: list[list[str]], tokenizer: str):
    sacrebleu = optional("sacrebleu", "eval")
    chosen = tokenizer or bleu_tokenizer(one for several in texts for one in several)
    check_known(chosen, sacrebleu.BLEU.TOKENIZERS, "tokenizer of sacrebleu")
    try:
        return sacrebleu.BLEU(tokenize=chosen, effective_order=True)
    except (ImportError, RuntimeError) as error:
        raise UserError(f"sacrebleu cannot use the tokenizer {chosen}: {' '.join(str(error).split())}") from None


def _streams(texts: list[list[str]]) -> list[list[str | None]]:
    """The first reference of each example, the second of each, and so on."""
    return [[several[i] if i < len(several) else None for several in texts] for i in range(max(map(len, texts)))]


def rouge(predictions: Sequence[str], references: References, kinds: Sequence[str] = ("rouge1", "rouge2", "rougeL")) -> dict:
    """Mean F1 by kind: overlap of words, of pairs of words, and of the longest common subsequence (Lin 2004).

    Words are those of memtx.evaluation.words, English ones stemmed. For ASCII texts they are rouge-score's own. Texts with the
    same words have 100, also if they are too short for pairs.
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
    """rouge-score's interface of a tokenizer. English words of more than three letters lose their endings."""

    def __init__(self):
        self._stem = optional("nltk.stem.porter", "eval").PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        return [self._stem(word) if word.isascii() and len(word) > 3 else word for word in words(text)]


def check_scorers() -> None:
    """Raise a UserError if a package for BLEU and ROUGE is not installed."""
    for module in ("sacrebleu", "rouge_score.rouge_scorer"):
        optional(module, "eval")


def exact_match(predictions: Sequence[str], references: References) -> float:
    """How many are a reference once both are normalised (Rajpurkar et al. 2016, SQuAD)."""
    return _mean_of_best(predictions, references, lambda a, b: float(normalised(a) == normalised(b)))


def token_f1(predictions: Sequence[str], references: References) -> float:
    """Mean F1 of normalised words as bags (SQuAD); of characters where a script has no blanks (Lewis et al. 2020, MLQA)."""
    return _mean_of_best(predictions, references, _f1)


def normalised(text: str) -> str:
    """SQuAD's: lower case, without punctuation, without the articles a, an, the, one blank between words.

    As in MLQA, punctuation is that of all scripts, and characters of scripts without blanks are words. Full-width letters are
    as narrow ones.
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
    """Each example's references as a list."""
    if len(predictions) != len(references) or not predictions:
        raise UserError(f"{len(predictions)} predictions and {len(references)} references: give as many, at least one")
    texts = [[one] if isinstance(one, str) else list(one) for one in references]
    if not all(texts):
        raise UserError(f"example {[*map(bool, texts)].index(False)} has no reference")
    return texts
