"""Words of any script, for scores of text. Where a script writes no blanks between words, each character is a word.

Such scripts are those of Chinese, Japanese, Thai, Lao, Tibetan, Burmese and Khmer. A character keeps its combining marks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

HAN = "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
OTHERS = "\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"
MARKS = "".join(chr(code) for code in range(0x300, 0x1E000) if unicodedata.category(chr(code))[0] == "M")
JOINERS = "\u200c\u200d"  # inside words of Persian and of Indic scripts

_CHARACTER = re.compile(f"[{HAN}{OTHERS}][{MARKS}]*")
_WORD = re.compile(rf"(?=[^\W_])[{HAN}{OTHERS}][{MARKS}]*|(?:(?![{HAN}{OTHERS}])[^\W_][{MARKS}{JOINERS}]*)+")
_HAN = re.compile(f"[{HAN}]")
SHARE = 0.1  # of letters: fewer are taken for a few foreign names


def words(text: str) -> list[str]:
    """Runs of letters, digits and their marks, lower case. `_` and whatever else there is divides words."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def spaced(text: str) -> str:
    """The text with blanks around each character of a script that has none."""
    return _CHARACTER.sub(lambda match: f" {match[0]} ", text)


def bleu_tokenizer(texts: Iterable[str]) -> str:
    """sacrebleu's tokenizer for the script of the texts.

    "zh" if a tenth of the letters, or more, are of scripts without blanks and these are Chinese characters; "char" if they
    are others, such as those of Japanese and Thai; else sacrebleu's default, "13a", as for Korean, Russian, Arabic and Hindi.
    """
    letters = [letter for text in texts for letter in text if letter.isalpha()]
    bare = [letter for letter in letters if _CHARACTER.match(letter)]
    if not bare or len(bare) < SHARE * len(letters):
        return "13a"
    return "zh" if sum(not _HAN.match(letter) for letter in bare) < SHARE * len(bare) else "char"
