"""Talk with a model that remembers your messages and files.

  memtx chat --memory=notes
  memtx chat --memory=notes --page
  memtx chat --memory=notes --kind=entries

A message that ends with a question mark is answered. Any other message is remembered. The library in the folder keeps these
messages and the documents, so a later conversation remembers them.
With --kind=sentences the prompt quotes the sentences that are nearest to your message. With --kind=entries the model that
answers reads the documents into its memory itself.

/read FILE          read a text file, or the text files of a folder
/sources            show the passages that the last answer came from
/documents          list the documents of the namespace
/forget DOCUMENT    forget a document or message
/namespace [NAME]   show the namespace, or change it
/help, /quit        show this list, or end. Ctrl-C ends an answer, Ctrl-D the conversation
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from absl import flags

from memtx.cli.documents import read_documents
from memtx.cli.options import as_utf8, needed, plural, print_text
from memtx.errors import UserError, check_known

if TYPE_CHECKING:
    from memtx.chat import Chat

SHOWN = 100  # characters of a source below an answer
HELP = "".join((__doc__ or "").partition("/read")[1:]).strip()


def define(values: flags.FlagValues) -> None:
    """Define the flags of the command."""

    def string(name: str, default: str | None, text: str) -> None:
        flags.DEFINE_string(name, default, text, flag_values=values)

    def integer(name: str, default: int, text: str) -> None:
        flags.DEFINE_integer(name, default, text, lower_bound=0, flag_values=values)

    string("memory", None, "The folder `DIR` of the library. It is made if it does not exist. Required.")
    string("model", None, "The `MODEL` that answers. Default: that of a library of entries or states, or else smollm2.")
    kinds = ["sentences", "entries", "state"]
    flags.DEFINE_enum("kind", None, kinds, "The kind of a new library. Default: sentences.", flag_values=values)
    string("namespace", "default", "The namespace of the conversation, by its `NAME`.")
    integer("passages", 4, "The number of sources that an answer has at most.")
    integer("around", 0, "Quote N sentences before and after a recalled one with it.")
    integer("window", 0, "Repeat the latest questions and answers in the prompt, up to N tokens.")
    integer("max_tokens", 120, "Write at most N tokens in an answer.")
    flags.DEFINE_float("temperature", 0.0, "Sample at this temperature. 0 takes the likeliest token.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "The seed of the samples.", 0, 2**32 - 1, flag_values=values)
    text = "Answer messages that are not questions with this `TEXT`. If it is empty, the model answers."
    string("acknowledge", "I will remember that.", text)
    flags.DEFINE_bool("page", False, "Show the conversation as a page in the browser instead.", flag_values=values)
    integer("port", 8000, "The port of the page.")


def act(values) -> None:
    """Hold the conversation on the terminal, or serve its page. Raises UserError for a mistake that the user can fix."""
    from memtx.chat import Chat, Settings
    from memtx.generate import Sampling

    names = ("passages", "around", "window", "max_tokens", "seed")
    numbers = {name: values[name].value for name in names}
    named = {name: values[name].value or "" for name in ("model", "kind", "acknowledge")}
    settings = Settings(**named, **numbers, sampling=Sampling(temperature=values["temperature"].value))
    chat = Chat(needed(values, "memory", "notes"), settings, namespace=as_utf8(values["namespace"].value))
    if values["page"].value:
        from memtx.chat.page import serve

        serve(chat, port=values["port"].value)
        return
    Terminal(chat).run()


class Terminal:
    """A conversation on the terminal, or with the lines of the standard input."""

    def __init__(self, chat: Chat):
        self.chat = chat
        self.commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/read": (self.read, "a file"),
            "/sources": (self.sources, ""),
            "/documents": (self.documents, ""),
            "/forget": (self.forget, "a document"),
            "/namespace": (self.namespace, ""),
            "/help": (self.help, ""),
        }

    def run(self) -> None:
        """Take lines until the end of the input or /quit."""
        documents = self.chat.library.record.visible(self.chat.namespace)
        say(f"{plural(len(documents), 'document or message', 'documents and messages')} remembered. /help shows the commands.")
        for line in lines():
            if line in ("/quit", "/exit"):
                return
            try:
                self.act(line)
            except UserError as error:
                say(f"memtx: {error}")
            except OSError as error:
                say(f"memtx: {error.strerror}: {error.filename}")
            except KeyboardInterrupt:
                say("\n(stopped)")

    def act(self, line: str) -> None:
        """Run a command, or answer a message. Raises UserError for a mistake that the user can fix."""
        if not line.startswith("/"):
            self.reply(line)
            return
        name, _, rest = line.partition(" ")
        check_known(name, [*self.commands, "/quit"], "command")
        run, wanted = self.commands[name]
        if wanted and not rest.strip():
            raise UserError(f"give {wanted}: {name} {wanted.split()[-1].upper()}")
        run(rest.strip())

    def reply(self, message: str) -> None:
        """Print the answer while it is written, and a line for each source."""
        if self.chat.loads(message):
            print(
                f"loading {self.chat.model_name} (the first time, its programs are compiled too) ...",
                file=sys.stderr,
                flush=True,
            )
        answering = self.chat.stream(message)
        try:
            for piece in answering:
                print_text(piece)
        finally:
            answering.close()
            print_text("\n")
        turn = self.chat.history()[-1]
        if turn.sources:
            say("  found in the library:")
        for number, found in enumerate(turn.sources, 1):
            say(f"  [{number}] {found.document}: {shortened(found.text)}")
        if not turn.sources and turn.answer != self.chat.settings.acknowledge:
            say("  (no sentence of this namespace is near enough)")

    def read(self, rest: str) -> None:
        """Read a file, or the text files of a folder."""
        from memtx.chat.conversation import LARGEST

        for name, text in read_documents([os.path.expanduser(rest)], most=LARGEST):
            say(f"read {name}: {_entries(self.chat.read(text, document=name))}")

    def sources(self, rest: str) -> None:
        """Print the whole text of the sources of the last answer that has any."""
        turns = [turn for turn in self.chat.history() if turn.sources]
        for number, source in enumerate(turns[-1].sources if turns else (), 1):
            say(f"[{number}] {source.document} at {source.position} (score {source.score:.2f})\n{source.text}\n")
        if not turns:
            say("no answer with sources yet")

    def documents(self, rest: str) -> None:
        """Print the documents of the namespace."""
        for document in self.chat.library.record.visible(self.chat.namespace):
            say(f"{document.name} ({_entries(document.entries)})")

    def forget(self, rest: str) -> None:
        """Forget a document by its name or id."""
        certificate = self.chat.forget(rest)
        for removed in certificate["removed"]:
            say(f"forgot {removed['name']}: {_entries(removed['entries'])} ({certificate['method']})")

    def namespace(self, rest: str) -> None:
        """Change the namespace, or print those that there are."""
        self.chat.namespace = rest or self.chat.namespace
        say(f"namespace {self.chat.namespace}; {self.chat.library.record.spaces()}")

    def help(self, rest: str) -> None:
        """Print the list of commands."""
        say(HELP)


def lines() -> Iterator[str]:
    """Yield the lines of the standard input that are not blank. On a terminal they can be edited."""
    if not sys.stdin.isatty():
        yield from filter(None, (line.strip() for line in sys.stdin))
        return
    with suppress(ImportError):
        importlib.import_module("readline")  # gives `input` a history and editing
    while True:
        try:
            if line := input("> ").strip():
                yield line
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("\n/quit ends the conversation")


def _entries(count: int) -> str:
    return plural(count, "entry", "entries")


def shortened(text: str | None) -> str:
    """Return the start of a text on one line."""
    words = " ".join((text or "").split())
    return words if len(words) <= SHOWN else words[:SHOWN].rsplit(" ", 1)[0] + " ..."


def say(line: str) -> None:
    """Print a line. A terminal gets no control characters."""
    print_text(f"{line}\n")
