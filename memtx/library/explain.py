"""Explanations: which entries each token was predicted from, in which document, and how much each document helped.

`explain` reads given tokens once and collects the attribution that layers emit (nn/reads.py). A token is explained by the reads
of the token before it, because these give its prediction. Losses with and without a document come from the same program on two
states, so that their difference is exact.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from memtx.data.tokenizers import Tokenizer
from memtx.errors import UserError, optional
from memtx.files.pages import read_template
from memtx.library.attribution import CHUNK, EARLIER, THIS, Summary, collect_attribution, losses, resolve, summarise
from memtx.models.lm import LM, LMState
from memtx.nn.reads import NOWHERE, SOURCE
from memtx.runs.load import Loaded

WHOLE = 2000  # texts with at most this number of tokens are stored whole
SHUT = 0.0005  # smaller shares of a memory are shown as 0
LEAVE_OUT = 16  # the most documents to leave out
AROUND = 24  # tokens around a read that are stored of longer texts
NAMES = {THIS: "this text", EARLIER: "earlier text", SOURCE: "the encoder's source", NOWHERE: "learned and state vectors"}


@dataclasses.dataclass(frozen=True)
class Text:
    """A document that the model may have read.

    ids    its tokens, or None if they are not stored
    start  for a document that the stream itself has read: the position of its first token in the stream
    """

    name: str
    ids: Sequence[int] | np.ndarray | None = None
    start: int | None = None

    @property
    def span(self) -> range | None:
        """The positions of its tokens in the stream that has read it, if it is known."""
        return None if self.start is None or self.ids is None else range(self.start, self.start + len(self.ids))


class Read(NamedTuple):
    """One entry that was read to predict a token.

    layer     the number of the layer, or -1 after all layers
    head      the head of that layer
    source    the index of the text in `Explanation.sources`
    position  the first token of the entry in that text
    tokens    the number of tokens of the entry
    weight    the share of the entry in the output of the head
    """

    layer: int
    head: int
    source: int
    position: int
    tokens: int
    weight: float


@dataclasses.dataclass(frozen=True)
class Gate:
    """The shares of memories in the output of a layer, `share[token][head]`, for each explained token.

    name: "gate" for the memory beside attention, and "mix" for memories side by side, which take the place of heads.
    layer: -1 after all layers.
    """

    layer: int
    name: str
    share: list[list[float]]


@dataclasses.dataclass(frozen=True)
class Source:
    """A text from which tokens were read.

    excerpts      (position, tokens) of the parts with reads. A short text has one part. Texts that are not stored have none
    share         for each explained token, the share of this text in all weights
    bits_without  the loss of each explained token without this document, in bits, or None if it was not left out
    """

    name: str
    excerpts: list[tuple[int, list[str]]]
    share: list[float]
    bits_without: list[float] | None = None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The entries from which each token of a text was predicted. Lists by token begin with token `first`.

    model    the name of the model: that of the packages or the hub, or its folder and the one around it
    tokens   the text of every token. Of the tokens of one character, the last one has it
    first    the index of the first explained token
    bits     the loss of each explained token, in bits
    reads    the entries that were read, largest weights first
    covered  the share of `reads` in all weights
    sources  the texts that were read or left out. The first one is the explained text itself
    gates    the gates of the layers
    """

    model: str
    tokens: list[str]
    first: int
    bits: list[float]
    reads: list[list[Read]]
    covered: list[float]
    sources: list[Source]
    gates: list[Gate]

    @property
    def closed(self) -> bool:
        """Whether there are gates and all of them are 0, so that the model took nothing from its memory."""
        return bool(self.gates) and all(abs(x) < SHUT for gate in self.gates for row in gate.share for x in row)

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as JSON values."""
        return dataclasses.asdict(self)

    def text(self, read: Read) -> str:
        """Return the text of an entry, or "" if it is not stored."""
        for position, tokens in self.sources[read.source].excerpts:
            if position <= read.position < position + len(tokens):
                return "".join(tokens[read.position - position :][: read.tokens])
        return ""

    def effect(self, source: int) -> float | None:
        """Return how many bits more the text costs without a document, or None if the document was not left out."""
        without = self.sources[source].bits_without
        return None if without is None else math.fsum(without) - math.fsum(self.bits)

    def html(self) -> str:
        """Return a page that needs no other files. Raises UserError if jinja2 is not installed."""
        return render(self)

    def write(self, path: str | Path) -> Path:
        """Write the page to a file, and return its path. Raises UserError if jinja2 is not installed."""
        path = Path(path)
        path.write_text(self.html(), encoding="utf-8", errors="replace")
        return path


def explain(
    loaded: Loaded,
    text: str | Sequence[int] | np.ndarray,
    *,
    state: LMState | None = None,
    documents: Mapping[int, Text] | None = None,
    without: Callable[[int], Loaded] | None = None,
    first: int = 1,
    reads: int = 32,
    leave_out: int = LEAVE_OUT,
) -> Explanation:
    """Explain the tokens of a text.

    text       a text, or its tokens. At the start of a document, a text is framed as the tokenizer frames documents
    state      the state of one stream before the text. None starts a document
    documents  the texts that entries can come from, by the numbers that banks record for them
    without    returns the model with the state that has not read one of the documents, given its number
    first      the index of the first token to explain, such as the number of tokens of a prompt
    reads      the most entries to list per token and layer
    leave_out  the most documents to leave out: those that were read most
    Raises UserError if the model does not predict next tokens, the state has several streams, or there is no token to explain.
    """
    lm, params, tokenizer, documents = loaded.lm, loaded.params, loaded.tokenizer, dict(documents or {})
    before = lm.init_state(1) if state is None else state
    ids_T, start = _encoded(loaded, text, before, first), int(before.position_B[0])

    def bits(lm: LM, state: LMState) -> list[float]:
        return losses(lm, params, ids_T, state)[first - 1 :].tolist()

    found = collect_attribution(lm, params, ids_T, before)
    read_before = {label: span for label, document in documents.items() if (span := document.span) is not None}
    summary = summarise(resolve(found, first, start, read_before), len(ids_T) - first, reads)
    most_read = sorted(documents, key=lambda label: -sum(summary.share.get(label, ())))
    others = ((label, without(label)) for label in most_read[:leave_out]) if without else ()  # one at a time
    left_out = {label: bits(other.lm, other.state) for label, other in others}
    documents[THIS] = Text(NAMES[THIS], ids_T)
    seen = {THIS, *summary.share, *left_out}
    labels = [label for label in dict.fromkeys([THIS, *most_read, *summary.share]) if label in seen]
    index = {label: i for i, label in enumerate(labels)}
    return Explanation(
        model="/".join(Path(loaded.name).parts[-2:]) or tokenizer.name,
        tokens=texts_of(tokenizer, ids_T),
        first=first,
        bits=bits(lm, before),
        reads=[[Read(layer, head, index[label], *rest) for layer, head, label, *rest in row] for row in summary.rows],
        covered=summary.covered.tolist(),
        sources=[_source(tokenizer, label, documents.get(label), summary, left_out.get(label)) for label in labels],
        gates=[Gate(layer, name, share[first - 1 : -1].tolist()) for layer, name, share in found.shares],
    )


def _encoded(loaded: Loaded, text: str | Sequence[int] | np.ndarray, state: LMState, first: int) -> np.ndarray:
    """Return the tokens of a text. Raises UserError if the model cannot explain them."""
    loaded.lm.check_next_token()
    if len(state.position_B) != 1:
        raise UserError(f"the state has {len(state.position_B)} streams; pick one of them with memtx.take_rows")
    start = int(state.position_B[0])
    if isinstance(text, str):
        text = loaded.tokenizer.encode(text) if start else loaded.tokenizer.frame(text)[0]
    if not 1 <= first < len(text):
        raise UserError(f"there is no token to explain: the text has {len(text)} tokens and first={first}")
    loaded.lm.check_length(start + len(text), CHUNK, "give a shorter text")
    return np.asarray(text, np.int32)


def explain_with_source(loaded: Loaded, text: str | Sequence[int] | np.ndarray, source: str, *, first: int = 1) -> Explanation:
    """Explain a text after the encoder has read a source. The source is a document, which is left out too. See `explain`.

    Raises UserError if the model has no encoder, or no room for the source.
    """
    lm, source_S = loaded.lm, loaded.tokenizer.frame(source)[0]
    lm.check_reads(len(source_S))
    unread = dataclasses.replace(loaded, state=lm.init_state(1))
    state = jax.jit(lm.encode)(loaded.params, source_S[None], unread.state)
    documents = {SOURCE: Text(NAMES[SOURCE], source_S)}
    return explain(loaded, text, state=state, documents=documents, without=lambda _: unread, first=first)


def _source(
    tokenizer: Tokenizer, label: int, document: Text | None, summary: Summary, bits_without: list[float] | None
) -> Source:
    share = summary.share.get(label, np.zeros(len(summary.rows))).tolist()
    if document is None or document.ids is None:
        name = document.name if document else NAMES.get(label, f"document {label}")
        return Source(name, [], share, bits_without)
    tokens = texts_of(tokenizer, document.ids)
    spans = [(0, len(tokens))]
    if len(tokens) > WHOLE and label != THIS:
        read = {(position, position + count) for row in summary.rows for *_, at, position, count, _ in row if at == label}
        spans = joined((max(first - AROUND, 0), min(last + AROUND, len(tokens))) for first, last in read)
    return Source(document.name, [(first, tokens[first:last]) for first, last in spans], share, bits_without)


def joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges (first, end) in order, with ranges that touch or overlap as one."""
    found: list[tuple[int, int]] = []
    for first, end in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif first < end:
            found.append((first, end))
    return found


def texts_of(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """Return the text of each token. Of the tokens of one character the last one has it, and specials have their names."""
    specials = {tokenizer.bos: "<bos>"} | {id: name for name, id in tokenizer.specials.items()}
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    found = []
    for id in map(int, ids):
        piece = tokenizer.pieces[id]
        found.append(utf8.decode(piece) if piece else specials.get(id, f"<{id}>"))
    if found and (rest := utf8.decode(b"", final=True)):
        found[-1] += rest
    return found


def render(explanation: Explanation) -> str:
    """Return the page of an explanation. Raises UserError if jinja2 is not installed."""
    template = read_template("memtx.library", "explain.html")
    return template.render(model=explanation.model, closed=explanation.closed, data=_script(_rounded(explanation.to_json())))


def _script(value: Any) -> Any:
    """Return JSON that is safe inside a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return optional("markupsafe", "report").Markup(text)


def _rounded(value: Any) -> Any:
    """Return JSON values with numbers of four digits, and null in place of numbers that JSON lacks."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value
