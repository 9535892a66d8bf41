"""The prompt of a conversation: the notes that were recalled, the latest turns, and the message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from memtx.data.tokenizers import Tokenizer
from memtx.generate import chat

SYSTEM = "You are a helpful assistant. Answer in one short sentence."
NOTES = "Use these notes, which the user gave you before:"


class Exchange(Protocol):
    """A message and its answer."""

    @property
    def message(self) -> str: ...
    @property
    def answer(self) -> str: ...


@dataclass(frozen=True)
class Prompt:
    """A text to continue. specials: whether special tokens in it are read as such. stop: texts that end the answer."""

    text: str
    specials: bool
    stop: tuple[str, ...]


def write_prompt(tokenizer: Tokenizer, turns: Iterable[Exchange], message: str, notes: Sequence[str]) -> Prompt:
    """Return the prompt, in the chat template of the model, or as lines of text if the model has no template."""
    system = "\n".join([SYSTEM, *([NOTES] if notes else []), *(f"- {' '.join(note.split())}" for note in notes)])
    if tokenizer.chat_template:
        said = [(role, text) for turn in turns for role, text in (("user", turn.message), ("assistant", turn.answer))]
        parts = [("system", system), *said, ("user", message)]
        messages = [{"role": role, "content": chat.without_specials(tokenizer, text)} for role, text in parts]
        return Prompt(chat.render(tokenizer, messages), True, ())
    lines = [f"Question: {turn.message}\nAnswer: {turn.answer}\n" for turn in turns]
    return Prompt("\n".join([system, "", *lines, f"Question: {message}\nAnswer:"]), False, ("\nQuestion:", "\n\n"))
