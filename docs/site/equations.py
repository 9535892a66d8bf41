"""Equations of a card, which are plain text, as MathML that browsers show without a script.

A line becomes words and pieces of mathematics. A piece ends before each relation and each sum outside of brackets, so that long
lines wrap on narrow screens.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass

GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "eta": "η", "theta": "θ", "lam": "λ", "nu": "ν", "phi": "φ", "tau": "τ"}
SIGNS = {"<-": "←", "->": "→", "<=": "≤", ">=": "≥", "..": "…", "...": "…", "~": "∼", "*": "·", "-": "−"}
SIGNS |= {"(x)": "⊗", "(.)": "⊙", "<.": "⟨", ".>": "⟩"}
BREAKS = {"=", "<-", "->", "<", "<=", "+", "-", "~", "*"}  # signs at which a line may wrap
WORDS = {"a", "d"}  # words of one letter, if a word follows
TOKEN = re.compile(
    r"(?P<code>`[^`]+`)|(?P<word>[A-Za-z]\w*-[a-zA-Z]{2,}|[a-z]{3,}/[a-z]{3,}|[a-z]+'s\b)"
    r"|(?P<sign>(?<= )\((?:x|\.)\)(?= )|<\.|\.>|<-|->|<=|>=|\.\.\.?|[^\w\s])|(?P<number>\d+(?:\.\d+)?)"
    r"|(?P<name>[A-Za-z]+\d*)(?P<mark>'|~)?|(?P<script>_)|(?P<space>\s+)"
)
SPLIT = re.compile(r"([A-Z]|[a-z](?=\d)|b(?=[gln]$))([a-z]?\d?|\d)")  # Wq is W with the index q


@dataclass
class Token:
    kind: str  # code, word, sign, number, name, script
    text: str
    mark: str
    spaced: bool  # a space comes before it


def tokens(line: str) -> list[Token]:
    """Return the tokens of a line, without its spaces."""
    found, spaced = [], False
    for match in TOKEN.finditer(line):
        kind = match.lastgroup if match["name"] is None else "name"
        if kind != "space":
            found.append(Token(kind or "", match["name"] or match.group(), match["mark"] or "", spaced))
        spaced = kind == "space"
    return found


class Line:
    """A reader of the tokens of a line, which writes HTML."""

    def __init__(self, line: str):
        self.tokens, self.at, self.depth = tokens(line), 0, 0
        self.pieces: list[str] = []  # MathML of the piece that is not finished
        self.out: list[str] = []

    def peek(self, ahead: int = 0) -> Token:
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else Token("sign", "", "", True)

    def html(self) -> str:
        """Return the line as HTML."""
        while self.at < len(self.tokens):
            token = self.peek()
            if self._is_prose(token):
                self._finish()
                self.out.append(f"<code>{token.text[1:-1]}</code>" if token.kind == "code" else html.escape(token.text))
                self.at += 1
            elif token.text in (";", ",", ":") and not self.depth:
                self._finish()
                self.out[-1:] = [(self.out[-1] if self.out else "") + token.text]
                self.at += 1
            else:
                if token.text in BREAKS and not self.depth and self.pieces:
                    self._finish()
                self.pieces.append(self._space(token) + self._scripted())
        self._finish()
        return " ".join(self.out)

    def _is_prose(self, token: Token) -> bool:
        if token.kind == "word":
            return not self.depth
        if self.depth or token.kind not in ("name", "code") or token.mark or token.text in GREEK:
            return False
        after = self.peek(1)
        bound = not after.spaced and after.text in ("_", "^", "(", "[", "-")
        short = len(token.text) == 1 or SPLIT.fullmatch(token.text)
        if short:
            return token.text in WORDS and after.kind == "name" and len(after.text) > 2 and after.text not in GREEK
        return token.kind == "code" or (not bound and after.text not in ("=", "<-") and token.text != "sum")

    def _space(self, token: Token) -> str:
        """Return a thin space between two factors, and none beside signs."""
        before = self.tokens[self.at - 1] if self.at else Token("sign", "", "", False)
        word = any(each.kind == "name" and len(each.text) > 2 and each.text not in GREEK for each in (before, token))
        factors = token.kind != "sign" or token.text in ("(", "[", "|")
        if not (self.pieces and token.spaced and factors and (before.kind != "sign" or before.text in (")", "]", "|"))):
            return ""
        return f'<mspace width="{0.35 if word else 0.2}em"/>'

    def _scripted(self) -> str:
        """Read one symbol with the indices and powers that follow it."""
        base, low, high = self._symbol(), "", ""
        while self.peek().text in ("_", "^") and not self.peek().spaced:
            sign = self.peek().text
            self.at += 1
            if sign == "_":
                low += self._script(sign)
            else:
                high += self._script(sign)
        if base == "<mo>∑</mo>" and low:
            return f"<munder>{base}<mrow>{low}</mrow></munder>" + high
        if low and high:
            return f"<msubsup>{base}<mrow>{low}</mrow><mrow>{high}</mrow></msubsup>"
        if low or high:
            return f"<m{'sub' if low else 'sup'}>{base}<mrow>{low or high}</mrow></m{'sub' if low else 'sup'}>"
        return base

    def _script(self, sign: str) -> str:
        """Read an index or a power: a name, a number, or a group in brackets."""
        token = self.peek()
        if token.text in ("{", "("):
            return self._group("}" if token.text == "{" else ")")
        if token.text in SIGNS:  # _<=i
            self.at += 1
            return f"<mo>{SIGNS[token.text]}</mo>" + self._symbol()
        if sign == "^" and token.text == "T":
            self.at += 1
            return "<mo>⊤</mo>"
        if token.kind == "name" and not token.mark and 1 < len(token.text) < 3 and token.text not in GREEK:
            self.at += 1
            return "".join(f"<mi>{letter}</mi>" for letter in token.text)
        return self._symbol()

    def _group(self, end: str) -> str:
        """Read to the matching bracket and return the content."""
        self.at += 1
        self.depth += 1
        pieces: list[str] = []
        while self.at < len(self.tokens) and self.peek().text != end:
            self.pieces, kept = pieces, self.pieces
            pieces.append(self._space(self.peek()) + self._scripted())
            self.pieces = kept
        self.at += 1
        self.depth -= 1
        return "".join(pieces)

    def _symbol(self) -> str:
        token = self.peek()
        if token.text == "sqrt":
            self.at += 1
            if self.peek().text == "(":
                return f"<msqrt><mrow>{self._group(')')}</mrow></msqrt>"
            return f"<msqrt><mrow>{self._bars()}</mrow></msqrt>"
        self.at += 1
        if token.kind == "number":
            return f"<mn>{token.text}</mn>"
        if token.kind == "code":
            return f"<mtext>{token.text[1:-1]}</mtext>"
        if token.kind == "word":
            return f"<mtext>{token.text}</mtext>"
        if token.kind == "name":
            return _name(token)
        return self._sign(token.text)

    def _bars(self) -> str:
        """Read |a| after a root."""
        return "".join(self._symbol() for _ in range(3))

    def _sign(self, text: str) -> str:
        if text in ("(", "[", "{"):
            self.depth += 1
        elif text in (")", "]", "}"):
            self.depth = max(0, self.depth - 1)
        shown = html.escape(SIGNS.get(text, text))
        if text in BREAKS and not self._is_prefix():
            return f'<mo form="infix">{shown}</mo>' if self.pieces else f'<mo form="infix" lspace="0">{shown}</mo>'
        if text in BREAKS:
            return f'<mo form="prefix">{shown}</mo>'
        return '<mo stretchy="false" lspace="0" rspace="0">|</mo>' if text == "|" else f'<mo stretchy="false">{shown}</mo>'

    def _is_prefix(self) -> bool:
        """Return whether the sign that was just read follows another sign, as in exp(-a)."""
        before = self.tokens[self.at - 2]
        return self.at > 1 and before.kind in ("sign", "script") and before.text not in (")", "]", "|")

    def _finish(self) -> None:
        if self.pieces:
            self.out.append(f"<math><mrow>{''.join(self.pieces)}</mrow></math>")
            self.pieces = []


def _name(token: Token) -> str:
    """Return a name: a Greek letter, `sum`, a letter with an index (Wq), a letter, or a word in upright type."""
    text = token.text
    if text == "sum":
        base = "<mo>∑</mo>"
    elif text in GREEK:
        base = f"<mi>{GREEK[text]}</mi>"
    elif (split := SPLIT.fullmatch(text)) and split[2]:
        index = "".join(f"<m{'n' if part.isdigit() else 'i'}>{part}</m{'n' if part.isdigit() else 'i'}>" for part in split[2])
        base = f"<msub><mi>{split[1]}</mi><mrow>{index}</mrow></msub>"
    else:
        base = f"<mi>{text}</mi>"  # browsers set names of one letter in italics and longer ones upright
    if token.mark == "'":
        return f"<mrow>{base}<mtext>′</mtext></mrow>"
    return f'<mover accent="true">{base}<mo>~</mo></mover>' if token.mark else base


def equations(text: str, settings: Iterable[str] = ()) -> str:
    """Return the equations of a card as HTML, a paragraph per line. settings: names such as top_k, which are not indices."""
    paragraphs = []
    for line in text.strip().splitlines():
        line = re.sub(r"<(\w.*?)>", r"<.\1.>", re.sub(r"\s*;\s+", " ; ", line.strip()))
        for name in settings:
            line = re.sub(rf"\b{name}\b", f"`{name}`", line) if "_" in name else line
        paragraphs.append("\N{EM SPACE}".join(Line(part).html() for part in re.split(r"\s{2,}", line)))
    return '<div class="equations">\n' + "\n".join(f"<p>{each}</p>" for each in paragraphs) + "\n</div>"
