"""Words of any script, for scores of text. If a script has no spaces between words, each character is a word.

Chinese, Japanese, Thai, Lao, Tibetan, Burmese and Khmer have such scripts. A character keeps its combining marks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

HAN = "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
OTHERS = "\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"
MARKS = "".join(chr(code) for code in range(0x300, 0x1E000) if unicodedata.category(chr(code))[0] == "M")
JOINERS = "\u200c\u200d"  # these occur inside words of Persian and Indic scripts

_CHARACTER = re.compile(f"[{HAN}{OTHERS}][{MARKS}]*")
_WORD = re.compile(rf"(?=[^\W_])[{HAN}{OTHERS}][{MARKS}]*|(?:(?![{HAN}{OTHERS}])[^\W_][{MARKS}{JOINERS}]*)+")
_HAN = re.compile(f"[{HAN}]")
SHARE = 0.1  # the least share of letters; a smaller share may be a few foreign names


def words(text: str) -> list[str]:
    """Return the words in lower case: runs of letters, digits and their marks. Any other character separates words."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def spaced(text: str) -> str:
    """Return the text with spaces around each character of a script without spaces."""
    return _CHARACTER.sub(lambda match: f" {match[0]} ", text)


def bleu_tokenizer(texts: Iterable[str]) -> str:
    """Return the name of sacrebleu's tokenizer for the script of the texts.

    If at least a tenth of the letters belong to scripts without spaces, it is "zh" for Chinese characters and "char" for
    others, such as Japanese and Thai. Otherwise it is sacrebleu's default, "13a", as for Korean, Russian, Arabic and Hindi.
    """
    letters = [letter for text in texts for letter in text if letter.isalpha()]
    bare = [letter for letter in letters if _CHARACTER.match(letter)]
    if not bare or len(bare) < SHARE * len(letters):
        return "13a"
    return "zh" if sum(not _HAN.match(letter) for letter in bare) < SHARE * len(bare) else "char"
