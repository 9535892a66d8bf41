"""Scores of text are what their definitions give by hand."""

import math

import pytest

from memtx.errors import UserError
from memtx.evaluation.text import bleu, exact_match, normalised, rouge, token_f1


def test_normalising_drops_case_punctuation_articles_and_blanks():
    assert normalised("  The Cat's  a-hat, an END. ") == "cats ahat end"
    assert normalised("Theatre another") == "theatre another"


def test_exact_match_takes_the_best_reference():
    predictions = ["The lighthouse!", "a ship", "rain"]
    references = [["lighthouse", "tower"], "boat", ["snow", "Rain."]]
    assert exact_match(predictions, references) == pytest.approx(100 * 2 / 3)


def test_token_f1_by_hand():
    # {red, ship, ship} and {ship, ship, sails}: 2 in common, F1 = 2 * 2 / 6; of the other reference 2 * 1 / 4
    assert token_f1(["the red ship ship"], [["ship ship sails", "ship"]]) == pytest.approx(100 * 2 / 3)
    assert token_f1(["", "x", "the"], ["the", "", "a"]) == pytest.approx(100 * 2 / 3)


def test_bleu_by_hand():
    # precisions of 1 to 4 words: 5 of 5, 3 of 4, 2 of 3, 1 of 2; 5 words against 6: times exp(1 - 6/5)
    prediction, reference = "the cat sat on mat", "the cat sat on the mat"
    precisions = [5 / 5, 3 / 4, 2 / 3, 1 / 2]
    expected = 100 * math.exp(1 - 6 / 5) * math.prod(precisions) ** 0.25
    assert bleu([prediction], [reference]) == pytest.approx(expected)
    assert bleu([prediction], [[reference, prediction]]) == pytest.approx(100)
    assert bleu([prediction, "a b c d"], [[reference, prediction], "a b c d"]) == pytest.approx(100)


def test_rouge_by_hand():
    # words: 3 in common of 4 and 5; pairs: 1 of 3 and 4 (on a); longest common subsequence: on a ship
    found = rouge(["keeper on a ship"], ["on a big grey ship"])
    assert found == pytest.approx({"rouge1": 100 * 6 / 9, "rouge2": 100 * 2 / 7, "rougeL": 100 * 6 / 9})
    assert rouge(["ships"], [["boat", "ship"]], kinds=("rouge1",)) == {"rouge1": 100}


@pytest.mark.parametrize("score", [bleu, rouge, exact_match, token_f1])
def test_wrong_numbers_of_references_are_user_errors(score):
    with pytest.raises(UserError, match="2 predictions and 1 references"):
        score(["a", "b"], ["a"])
    with pytest.raises(UserError, match="example 1 has no reference"):
        score(["a", "b"], ["a", []])


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(UserError, match=r"pip install 'memtx\[eval\]'"):
        bleu(["a"], ["a"])
