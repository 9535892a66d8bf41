"""Scores of text equal values computed by hand from their definitions."""

import math
from pydoc_data.topics import topics

import pytest
import sacrebleu

from memtx.errors import UserError
from memtx.evaluation.text import _Stemmed, bleu, bleu_signature, chrf, exact_match, normalised, repetition, rouge, token_f1
from memtx.evaluation.words import bleu_tokenizer, words


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


def test_chrf_by_hand():
    # characters: 4 of 4 and 4 of 6; then 3 of 3 and 5, 2 of 2 and 4, 1 of 1 and 3; the text has no 5 or 6 in a row
    recall = (4 / 6 + 3 / 5 + 2 / 4 + 1 / 3) / 4
    assert chrf(["ab cd"], ["abcdef"]) == pytest.approx(100 * 5 * recall / (4 + recall))
    assert chrf(["ab cd"], [["x", "abcdef"]]) == chrf(["ab cd"], ["abcdef"])  # the better reference
    assert chrf(["abcdef"], ["ab cd"]) > chrf(["ab cd"], ["abcdef"])  # recall counts more than precision
    assert chrf(["ab"], ["xy"]) == 0


def test_rouge_by_hand():
    # words: 3 in common of 4 and 5; pairs: 1 of 3 and 4 (on a); longest common subsequence: on a ship
    found = rouge(["keeper on a ship"], ["on a big grey ship"])
    assert found == pytest.approx({"rouge1": 100 * 6 / 9, "rouge2": 100 * 2 / 7, "rougeL": 100 * 6 / 9})
    assert rouge(["ships"], [["boat", "ship"]], kinds=("rouge1",)) == {"rouge1": 100}


def test_repetition_by_hand():
    # a b, b a, a b, b c: "a b" is repeated, 1 of 4. b c, c d: nothing is, 0 of 2. Together: 4 different pairs of 6
    found = repetition(["A b, a b c!", "b c d"], n=2)
    assert found == pytest.approx({"repetition": 100 * (1 / 4 + 0) / 2, "distinct": 100 * 4 / 6})
    assert repetition(["to be or not to be or not", "to be"]) == pytest.approx({"repetition": 20.0, "distinct": 80.0})


@pytest.mark.parametrize(("texts", "n", "message"), [(["one two three"], 4, "no text has 4 words"), (["a"], 0, "n must be 1")])
def test_repetition_needs_ngrams(texts, n, message):
    with pytest.raises(UserError, match=message):
        repetition(texts, n)


PERFECT = {
    "Chinese": "我们在老灯塔旁边数了二十艘船。",
    "Chinese word": "船",
    "Japanese": "古い灯台のそばで船を数えました。",
    "Thai": "เรานับเรือยี่สิบลำข้างประภาคารเก่า",
    "Khmer": "យើងរាប់ទូក",
    "Korean": "우리는 오래된 등대 옆에서 배를 세었다.",
    "Russian": "Мы насчитали двадцать кораблей у маяка.",
    "Arabic": "عددنا عشرين سفينة قرب المنارة القديمة.",
    "Hindi": "हमने पुराने प्रकाशस्तंभ के पास जहाज़ गिने।",
    "mixed": "Apple 在上海的 iPhone 商店 opened on Monday.",
    "one word": "rain",
    "two words": "grey ships",
    "three words": "the grey ships",
    "emoji": "⛵🌧",
    "blank": "",
}


@pytest.mark.parametrize("text", PERFECT.values(), ids=PERFECT)
def test_a_perfect_text_of_any_script_and_length_scores_100(text):
    for texts in ([text], [text] * 3, [text, "x"]):
        for references in (texts, [[f"{one} and more that is not there", one] for one in texts]):
            assert bleu(texts, references) == pytest.approx(100)
            assert chrf(texts, references) == pytest.approx(100)
            assert rouge(texts, references) == pytest.approx({"rouge1": 100, "rouge2": 100, "rougeL": 100})
            assert exact_match(texts, references) == token_f1(texts, references) == 100


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("我们在老灯塔旁边数了二十艘船。", "我们在新灯塔旁边数了三十艘船。", "今天下雨"),
        ("古い灯台のそばで船を数えました。", "古い灯台のそばで鳥を数えました。", "あめ"),
        ("เรานับเรือยี่สิบลำ", "เรานับเรือสามสิบลำ", "ฝนตก"),
        ("Мы насчитали двадцать кораблей у старого маяка", "Мы насчитали двадцать птиц у старого маяка", "Идёт дождь"),
        ("우리는 오래된 등대 옆에서 배를 세었다", "우리는 오래된 등대 옆에서 새를 세었다", "비가 온다"),
        ("हमने पुराने प्रकाशस्तंभ के पास जहाज़ गिने", "हमने पुराने प्रकाशस्तंभ के पास पक्षी गिने", "बारिश हो रही"),
    ],
)
def test_scores_of_other_scripts_fall_with_the_distance(text, near, far):
    for score in (bleu, chrf, lambda p, r: rouge(p, r)["rougeL"], token_f1):
        assert 0 <= score([far], [text]) < score([near], [text]) < 100
        assert score([""], [text]) == 0


def test_long_english_texts_score_as_by_sacrebleu_and_rouge_score_themselves():
    from rouge_score.rouge_scorer import RougeScorer  # here, because it imports scipy for two seconds
    from rouge_score.tokenizers import DefaultTokenizer

    references = [" ".join(topics[name].split()[:60]) for name in sorted(topics)[:12]]
    predictions = [" ".join(word for i, word in enumerate(text.split()) if i % 7) for text in references]
    assert bleu(predictions, references) == pytest.approx(sacrebleu.corpus_bleu(predictions, [references]).score, abs=1e-9)
    assert "tok:13a" in bleu_signature(predictions, references)
    assert chrf(predictions, references) == pytest.approx(sacrebleu.corpus_chrf(predictions, [references]).score, abs=1e-9)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    by_hand = [scorer.score(a, b) for a, b in zip(references, predictions, strict=True)]
    for kind, score in rouge(predictions, references).items():
        assert score == pytest.approx(100 * sum(one[kind].fmeasure for one in by_hand) / len(by_hand))
    for text in [*references, "snake_case, don't; 3.14 e-mail's FLIES running!"]:
        assert _Stemmed().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


def test_the_tokenizer_is_chosen_by_script_and_named():
    chosen = {name: bleu_tokenizer([text]) for name, text in PERFECT.items()}
    assert {name for name, tokenizer in chosen.items() if tokenizer == "zh"} == {"Chinese", "Chinese word", "mixed"}
    assert {name for name, tokenizer in chosen.items() if tokenizer == "char"} == {"Japanese", "Thai", "Khmer"}
    assert bleu_tokenizer(["a report in English that names 北京 once, and no more than once, in all of its words"]) == "13a"
    assert "tok:zh" in bleu_signature(["我们"], [PERFECT["Chinese"]])
    assert "tok:char" in bleu_signature(["a b"], ["a b c"], tokenizer="char")
    with pytest.raises(UserError, match="unknown tokenizer of sacrebleu 'chr'; did you mean char"):
        bleu(["a b"], ["a b c"], tokenizer="chr")


def test_words_of_any_script():
    assert words("Don't, café_x 1,000") == ["don", "t", "café", "x", "1", "000"]
    assert words("हिन्दी में।") == ["हिन्दी", "में"]
    assert words("我们 ABＣ。") == ["我", "们", "abc"]
    assert words("می‌خواهم") == ["می‌خواهم"]
    assert words("เรือ") == ["เ", "รื", "อ"]
    assert normalised("「灯塔」！ the Ｓhip.") == "灯 塔 ship"
    # {灯, 塔} and {老, 灯, 塔}: F1 = 2 * 2 / 5
    assert token_f1(["灯塔。"], ["老灯塔"]) == pytest.approx(80)


@pytest.mark.parametrize("score", [bleu, chrf, rouge, exact_match, token_f1])
def test_wrong_numbers_of_references_are_user_errors(score):
    with pytest.raises(UserError, match="2 predictions and 1 references"):
        score(["a", "b"], ["a"])
    with pytest.raises(UserError, match="example 1 has no reference"):
        score(["a", "b"], ["a", []])


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(UserError, match=r"pip install '\.\[eval\]'"):
        bleu(["a"], ["b"])
    with pytest.raises(UserError, match=r"pip install '\.\[eval\]'"):
        chrf(["a"], ["b"])
