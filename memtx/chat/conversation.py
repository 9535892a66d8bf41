"""A conversation: messages, answers with their sources, and the library that remembers the messages.

    sentences   The library finds the sentences that are nearest to a message, and the prompt quotes them. Sentences with a much
                lower score than the best are left out.
    entries     The model that answers reads the library: its state remembers the documents (kNN-LM, Memorizing, ...).
    state       The same, with one state per namespace.

A message that ends with a question mark is a question. It is answered and not remembered, because it would be the nearest
sentence to itself. Any other message is remembered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Generator, Iterable, Iterator
from datetime import datetime
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any

from memtx.chat.prompt import Prompt, write_prompt
from memtx.errors import UserError, check_known
from memtx.files.text import read_text
from memtx.generate import GREEDY, Sampling, generate
from memtx.library.entries import holders
from memtx.library.kind import Found
from memtx.library.library import KINDS, SPACE, Library, create, is_library
from memtx.library.library import open as open_library
from memtx.library.record import check_name
from memtx.runs.load import Loaded, load
from memtx.runs.write import context_of

ANSWERS = "smollm2"  # the model that answers by default
LARGEST = 2 * 2**20  # bytes of a file that is read in a conversation
LEAST, NEAR = 0.2, 0.75  # the lowest score of a quoted sentence, and the lowest as a share of the best: others confuse a model
SPARE = 4  # how many times as many entries are recalled as wanted, because some overlap
LABELS = ("A:", "Answer:")  # with which a small model may begin its answer
QUESTION_MARKS = ("?", "？", "؟")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a conversation remembers and answers.

    model       the model that answers, as `memtx.load` takes it. "": that of a library of entries, or else smollm2
    kind        the kind of a new library. "": sentences, with the vectors of MiniLM
    passages    how many sources an answer has at most
    around      how many sentences before and after a recalled one the prompt quotes with it. A small model confuses them
    window      how many tokens of earlier answers the prompt repeats. A small model repeats its mistakes
    max_tokens  how long an answer is at most
    sampling    how its tokens are drawn, with the `seed`
    acknowledge the answer to a message that is not a question. "": the model writes it. A small model makes up facts there, and
                believes them later

    Raises UserError for an unknown kind or a negative number.
    """

    model: str = ""
    kind: str = ""
    passages: int = 4
    around: int = 0
    window: int = 0
    max_tokens: int = 120
    sampling: Sampling = GREEDY
    seed: int = 0
    acknowledge: str = "I will remember that."

    def __post_init__(self):
        if self.kind:
            check_known(self.kind, KINDS, "kind of library")
        for name in ("passages", "around", "window", "max_tokens"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, not {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class Answer:
    """A text and its sources, the best first."""

    text: str
    sources: tuple[Found, ...]


@dataclasses.dataclass(frozen=True)
class Turn:
    """A message and its answer. documents: the ids of those that they came from."""

    namespace: str
    message: str
    answer: str
    documents: frozenset[str]
    sources: tuple[Found, ...] = ()


class Chat:
    """A conversation. `turns` are its messages. `namespace` may be set at any time: other namespaces are not read or shown.

    library: the folder of a library, which is made if it does not exist, or a Library. model: the model that answers from a
    library of sentences, if it is loaded already. Raises UserError if the library is of another kind, or was made by another
    model, than the settings say, or if it keeps no texts to quote.
    """

    def __init__(
        self,
        library: str | Path | Library,
        settings: Settings | None = None,
        *,
        namespace: str = SPACE,
        model: Loaded | None = None,
    ):
        self.settings, self.namespace, self._model = settings or Settings(), namespace, model
        self.library = _library(library, self.settings)
        self.turns: list[Turn] = []
        if model and not self.quotes:
            raise UserError("a library of entries or states has a model already; leave out the model that answers")

    @property
    def namespace(self) -> str:
        """The namespace of the conversation. Raises UserError if it is set to a name that no namespace can have."""
        return self._namespace

    @namespace.setter
    def namespace(self, name: str) -> None:
        check_name(name, "namespace")
        self._namespace = name

    @property
    def quotes(self) -> bool:
        """Return whether the prompt quotes recalled sentences. If not, the model that answers reads the library itself."""
        return self.library.settings.kind == "sentences"

    @property
    def model_name(self) -> str:
        """The name or folder of the model that answers, without loading it."""
        return self.settings.model or (ANSWERS if self.quotes else self.library.settings.model)

    def loads(self, message: str) -> bool:
        """Return whether the model must be loaded first to answer this message, which takes seconds or minutes."""
        loaded = self._model or "model" in vars(self) if self.quotes else "kind" in vars(self.library)
        return not loaded and (is_question(message) or not self.settings.acknowledge)

    @cached_property
    def model(self) -> Loaded:
        """The model that answers, without any document."""
        return self._model or load(self.model_name) if self.quotes else self.library.kind.loaded

    # --- messages

    def history(self) -> list[Turn]:
        """Return the turns of the namespace, without those that came from a document that is gone."""
        self._forget_turns()
        return [turn for turn in self.turns if turn.namespace == self.namespace]

    def say(self, message: str) -> Answer:
        """Answer a message, and remember it unless it is a question. Raises UserError if it is blank."""
        answering = self.stream(message)
        while True:
            try:
                next(answering)
            except StopIteration as stop:
                return stop.value

    def stream(self, message: str) -> Generator[str, None, Answer]:
        """Yield the pieces of the answer while it is written, and return it. See `say`.

        If the caller closes the generator, the answer so far belongs to the conversation.
        """
        message = _checked(message)
        if self.settings.acknowledge and not is_question(message):
            self._add(message, answer := Answer(self.settings.acknowledge, ()), {self.tell(message)})
            yield answer.text
            return answer
        prompt, quoted = self._prompt(message)
        model = self.model if self.quotes else self.library.model(namespace=self.namespace)
        read = self._quoted_or_read(quoted)
        read.add(self.tell(message))
        text = ""
        try:
            for piece in self._written(model, prompt):
                text += piece
                yield piece
        except (GeneratorExit, KeyboardInterrupt):
            self._add(message, Answer(text.strip(), tuple(quoted)), read)
            raise
        answer = Answer(text.strip(), tuple(quoted if self.quotes else self._read_by(model, prompt, text)))
        self._add(message, answer, read)
        return answer

    def tell(self, message: str) -> str | None:
        """Remember a message without an answer, and return the id of its document, or None if it is a question."""
        message = _checked(message)
        if is_question(message):
            return None
        with self.library.changing() as record:  # so that no other conversation takes the name meanwhile
            taken = {document.name for document in record.visible(self.namespace)}
            name = _unused(f"message {datetime.now():%Y-%m-%d %H:%M:%S}", taken)
            self.library.read(message, document=name, namespace=self.namespace)
            return self.library.record.matching(name, self.namespace)[0]

    # --- documents

    def read(self, text: str | Path, *, document: str = "") -> int:
        """Read a document, and return the number of its entries. See `Library.read`.

        Raises UserError if a file has more than LARGEST bytes. Read larger files with `memtx memory read`.
        """
        if isinstance(text, Path):
            document, text = document or text.name, read_text(text, LARGEST)
        return self.library.read(text, document=document, namespace=self.namespace)

    def forget(self, document: str, **options) -> dict[str, Any]:
        """Forget a document of the namespace by its name or id, and return a certificate.

        options: method, reread and key of `Library.forget`. The conversation forgets the turns that came from the document, and
        all later ones, which may repeat it.
        """
        certificate = self.library.forget(document=document, namespace=self.namespace, **options)
        self._forget_turns()
        return certificate

    def _forget_turns(self) -> None:
        """Forget the turns of a namespace from the first one on that came from a document that is gone, whoever forgot it."""
        known, kept, forgetting = {document.id for document in self.library.documents}, [], set()
        for turn in self.turns:
            if not turn.documents <= known:
                forgetting.add(turn.namespace)
            if turn.namespace not in forgetting:
                kept.append(turn)
        self.turns = kept

    # --- an answer

    def _add(self, message: str, answer: Answer, documents: Collection[str | None]) -> None:
        """Add a turn. documents: the ids of those that it came from, and of its message."""
        came_from = frozenset(id for id in documents if id)
        self.turns.append(Turn(self.namespace, message, answer.text, came_from, answer.sources))

    def _quoted_or_read(self, quoted: Collection[Found]) -> set[str | None]:
        """Return the ids of the documents that an answer depends on: those quoted, or all that the model has read."""
        if self.quotes:
            return {found.entry.partition(":")[0] for found in quoted}
        return {document.id for document in self.library.record.visible(self.namespace)}

    def _prompt(self, message: str) -> tuple[Prompt, list[Found]]:
        """Return the prompt, and the entries that it quotes.

        If the model cannot see all of it, the worst entries are left out, then the oldest turns. Raises UserError if the
        message alone is too long.
        """
        tokenizer, turns = self.model.tokenizer, self._window()
        quoted = self._recall(message) if self.quotes else []
        room = None if self.model.step else context_of(self.model.lm)  # a run may have a memory for the rest
        while True:
            prompt = write_prompt(tokenizer, turns, message, [found.text or "" for found in quoted])
            size = len(tokenizer.encode(prompt.text, specials=prompt.specials)) + self.settings.max_tokens
            if room is None or size <= room:
                return prompt, quoted
            if not quoted and not turns:
                raise UserError(f"the message is too long: with its answer it has {size} tokens, and the model sees {room}")
            quoted, turns = (quoted[:-1], turns) if quoted else (quoted, turns[1:])

    def _window(self) -> list[Turn]:
        """Return the latest turns of the namespace that together have at most `window` tokens, without acknowledgements."""
        window, left = [], self.settings.window
        for turn in reversed(self.history()):
            if self.settings.acknowledge and not is_question(turn.message):
                continue  # the message is recalled instead, and a small model repeats the acknowledgement as an answer
            left -= len(self.model.tokenizer.encode(turn.message + turn.answer))
            if left < 0:
                break
            window.insert(0, turn)
        return window

    def _recall(self, message: str) -> list[Found]:
        """Return the sentences that the prompt quotes."""
        if not (most := self.settings.passages):
            return []
        asked = {"namespace": self.namespace, "around": self.settings.around}
        found = self.library.recall(message, k=SPARE * most, **asked)
        return _apart((entry for entry in found if entry.score >= max(LEAST, NEAR * found[0].score)), most)

    def _written(self, model: Loaded, prompt: Prompt) -> Iterator[str]:
        """Yield the pieces of the answer, without blanks or a label at its start."""
        chosen = {name: getattr(self.settings, name) for name in ("sampling", "seed", "max_tokens")}
        chosen["specials"] = prompt.specials
        state = None if self.quotes else model.state
        yield from unlabelled(
            generate(model.lm, model.params, model.tokenizer, prompt.text, state=state, stop=prompt.stop, **chosen)
        )

    def _read_by(self, model: Loaded, prompt: Prompt, text: str) -> list[Found]:
        """Return the entries that the model read most to predict the tokens of an answer, if its memories have entries."""
        tokenizer, most = self.model.tokenizer, self.settings.passages
        before, after = (tokenizer.encode(part, specials=prompt.specials) for part in (prompt.text, text))
        if not most or not len(after) or not holders(model.state):
            return []
        ids = [*before.tolist(), *after.tolist()]
        return _apart(self.library.recall(ids, k=SPARE * most, namespace=self.namespace, first=len(before)), most)


def unlabelled(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces of a text without blanks and one of LABELS at its start."""
    start, begun = "", False
    for piece in pieces:
        if begun:
            yield piece
            continue
        start = (start + piece).lstrip()
        if any(label.startswith(start) for label in LABELS):
            continue  # nothing yet, or perhaps the beginning of a label
        start = next((start.removeprefix(label).lstrip() for label in LABELS if start.startswith(label)), start)
        begun = bool(start)
        if start:
            yield start
    if not begun and start and start not in LABELS:
        yield start


def is_question(message: str) -> bool:
    """Return whether a message ends with a question mark."""
    return message.rstrip().endswith(QUESTION_MARKS)


def _library(found: str | Path | Library, settings: Settings) -> Library:
    """Return the library, or open it in its folder, or make one there. Raises UserError if it does not suit the settings."""
    if not isinstance(found, Library) and not is_library(found):
        kind = settings.kind or "sentences"
        return create(found, "minilm" if kind == "sentences" else settings.model or ANSWERS, kind=kind)
    library = found if isinstance(found, Library) else open_library(found)
    kind = library.settings.kind
    if settings.kind not in ("", kind):
        raise UserError(f"{library.path} is a library of kind {kind}, not {settings.kind}")
    if kind == "sentences" and not library.settings.texts:
        raise UserError(f"{library.path} keeps no texts, so a conversation has nothing to quote")
    if settings.model and kind != "sentences":
        library = open_library(library.path, model=settings.model)
        _ = library.kind  # raises UserError if this is another model
    return library


def _apart(found: Iterable[Found], most: int) -> list[Found]:
    """Return the best entries whose texts do not overlap."""
    kept: list[Found] = []
    for entry in found:
        if len(kept) < most and not any(_overlap(entry, other) for other in kept):
            kept.append(entry)
    return kept


def _overlap(a: Found, b: Found) -> bool:
    same = (a.document, a.namespace) == (b.document, b.namespace)
    return same and (not a.span or not b.span or (a.span[0] < b.span[1] and b.span[0] < a.span[1]))


def _checked(message: str) -> str:
    if not message.strip():
        raise UserError("the message is blank")
    return message.strip()


def _unused(name: str, taken: Collection[str]) -> str:
    """Return a name that is not taken: the name, or else with a number."""
    return next(found for found in chain([name], (f"{name} ({n})" for n in count(2))) if found not in taken)


def check_size(size: int, name: str) -> None:
    """Raise a UserError if a text has more bytes than a conversation reads."""
    if size > LARGEST:
        raise UserError(f"{name} is larger than {LARGEST // 2**20} MiB; read larger files with memtx memory read")
