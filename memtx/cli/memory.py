"""Use a library: read documents, recall, forget with a certificate, move.

  memtx memory read --memory=notes --model=minilm report.txt papers/ --namespace=alice
  memtx memory recall --memory=notes 'When was it built?' --namespace=alice
  memtx memory show --memory=notes
  memtx memory forget --memory=notes report.txt > certificate.json
  memtx memory verify --memory=notes certificate.json

read [FILE|FOLDER|-]...  read text files, the text files of folders, or the standard input
recall QUERY             show the entries that answer best
show                     list the documents, the namespaces, and the entries and bytes of each memory
forget [DOCUMENT]        forget a document, a namespace, or entries, and print a certificate
verify CERTIFICATE       check that a certificate is intact and still true
export FILE, import FILE write the documents to one file, or add those of such a file
merge DIR, diff DIR      add the documents of another library, or show the differences
fork DIR                 copy the library
resize N                 forget whole documents until at most N entries remain
migrate DIR              make a library of another --model from the texts
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from rich.console import Console
from rich.table import Table

from memtx.cli.documents import read_documents
from memtx.cli.options import as_utf8, needed, plural, print_text
from memtx.errors import UserError, check_known, escaped, printable
from memtx.progress import Progress

if TYPE_CHECKING:
    from memtx.library import Library

WORDS = True  # the command takes words that are not flags
NAMES = ("namespace", "document")  # columns of `show`
WIDEST = 10_000  # characters of a line of `show` in a file
COLUMNS = (*NAMES, "entries", "tokens", "bytes", "recalled", "read at")


def define(values: flags.FlagValues) -> None:
    """Define the flags of the command."""

    def string(name: str, text: str) -> None:
        flags.DEFINE_string(name, None, text, flag_values=values)

    def enum(name: str, default: str | None, choices: list[str], text: str) -> None:
        flags.DEFINE_enum(name, default, choices, text, flag_values=values)

    values.set_gnu_getopt(True)
    string("memory", "The folder `DIR` of the library. Required.")
    string("model", "The `MODEL` of a new library: minilm, smollm2, a workdir, a folder. For others: where theirs is now.")
    kinds = ["sentences", "entries", "state"]
    enum("kind", None, kinds, "The kind of a new library. Default: sentences for a sentence encoder, or else entries.")
    flags.DEFINE_bool("no_text", False, "Keep no texts in a new library.", flag_values=values)
    text = "A namespace, by its `NAME`, or * for all. Default: default. read and forget take one"
    flags.DEFINE_multi_string("namespace", [], text, flag_values=values)
    string("document", "The `NAME` of the document from the standard input.")
    flags.DEFINE_integer("k", 5, "Show the N best entries.", lower_bound=1, flag_values=values)
    flags.DEFINE_multi_string("entry", [], "Forget the entry with this `ID`, which recall shows", flag_values=values)
    enum("method", None, ["erase", "replay", "mask"], "The method of forgetting. Default: the strongest.")
    flags.DEFINE_bool("reread", False, "Prove the result by reading all other documents again.", flag_values=values)
    string("key", "A `FILE` whose bytes sign a certificate, or check its signature.")
    enum("keep", "newest", ["newest", "most recalled"], "The documents that resize keeps.")
    enum("format", "table", ["table", "json"], "How to print a result.")


def act(values, words: Sequence[str]) -> None:
    """Run a verb. Raises UserError for a mistake that the user can fix."""
    if not words:
        raise UserError(f"give a verb: {', '.join(VERBS)}")
    verb, *rest = words
    check_known(verb, VERBS, "verb")
    run, word, least, most = VERBS[verb]
    if not least <= len(rest) <= (most or len(rest)):
        count = _count(least, most) + f" ({word})" * bool(word)
        raise UserError(f"memtx memory {verb} takes {count}, not {len(rest)}; see memtx memory --help")
    run(values, [as_utf8(word) for word in rest])


def _read(values, words: Sequence[str]) -> None:
    from memtx import library

    path, model = needed(values, "memory", "notes"), values["model"].value
    texts = [*read_documents(words, values["document"].value)]
    if model and not library.is_library(path):
        found = library.create(path, model, kind=values["kind"].value or "", texts=not values["no_text"].value)
    else:
        found = _library(values)
    namespace = _one(values) or library.SPACE
    with Progress("document") as progress:
        count = found.read_all(texts, namespace=namespace, progress=progress)
    print(f"read {plural(len(texts), 'document')} into {found.path}: {plural(count, 'entry', 'entries')}")


def _recall(values, words: Sequence[str]) -> None:
    library = _library(values)
    found = library.recall(words[0], k=values["k"].value, **_spaces(values))
    if values["format"].value == "json":
        print(json.dumps([dataclasses.asdict(entry) for entry in found], indent=2))
        return
    if not found:
        print(f"nothing, because the namespace has no documents; {library.record.spaces()}")
    for entry in found:
        print_text(
            f"{entry.score:.3f}  {escaped(entry.document)} ({escaped(entry.namespace)}) at {entry.position}  {entry.entry}\n"
        )
        print_text(f"       {' '.join((entry.text or '').split())}\n" if entry.text is not None else "")


def _show(values, words: Sequence[str]) -> None:
    from memtx.library.summary import summarise

    about = summarise(_library(values))
    if spaces := _spaces(values).get("namespace"):
        about["documents"] = [row for row in about["documents"] if row["namespace"] in spaces or "*" in spaces]
    if values["format"].value == "json":
        print(json.dumps(about, indent=2))
        return
    console, table = Console(soft_wrap=True, highlight=False), Table()
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in (*NAMES, "read at") else "right", no_wrap=name in NAMES)
    for row in about["documents"]:
        numbers = (f"{row[name]:,}" for name in ("entries", "tokens", "bytes", "recalled"))
        table.add_row(escaped(row["namespace"]), escaped(row["name"]), *numbers, row["time"][:16].replace("T", " "))
    console.print(f"{about['library']}: {about['kind']} of {about['model']}, version {about['version']}", markup=False)
    width = console.measure(table, options=console.options.update(width=WIDEST))
    console.width = max(console.width, width.minimum) if console.is_terminal else WIDEST  # names are whole, to be copied
    console.print(table)
    for name, group in about["groups"].items():
        console.print(f"memory {name}: {group['entries']:,} entries, {group['bytes']:,} bytes", markup=False)
    for space, size in about["states"].items():
        console.print(f"state of {escaped(space)}: {size:,} bytes", markup=False)
    use, texts = about["use"], [plural(about["use"]["recalls"], "recalled entry", "recalled entries")]
    if "never_recalled" in use:
        texts.append(f"{use['never_recalled']:.1%} of the entries were never recalled")
    if "most_recalled_tenth" in use:
        texts.append(f"the most recalled tenth of the entries has {use['most_recalled_tenth']:.1%} of the recalls")
    console.print(f"use: {', '.join(texts)}\ndigest: {about['digest']}", markup=False)


def _forget(values, words: Sequence[str]) -> None:
    certificate = _library(values).forget(
        document=words[0] if words else None,
        namespace=_one(values),
        entries=values["entry"].value,
        method=values["method"].value,
        reread=values["reread"].value,
        key=_key(values),
    )
    print(json.dumps(certificate, indent=2))


def _verify(values, words: Sequence[str]) -> None:
    try:
        certificate = json.loads(Path(words[0]).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the certificate {printable(words[0])}: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{printable(words[0])} is not a certificate: it is not JSON") from None
    from memtx.library.certificate import CHECKED, REREAD

    _library(values).verify(certificate, key=_key(values), reread=values["reread"].value)
    print(f"true: {CHECKED}{REREAD * (values['reread'].value and certificate['method'] != 'mask')}")


def _export(values, words: Sequence[str]) -> None:
    from memtx.library import export

    count = export(_library(values), words[0], **_spaces(values))
    print(f"wrote {plural(count, 'document')} to {words[0]}")


def _import(values, words: Sequence[str]) -> None:
    from memtx.library import import_file

    library, count = import_file(needed(values, "memory", "notes"), words[0])
    print(f"added {plural(count, 'document')} to {library.path}")


def _merge(values, words: Sequence[str]) -> None:
    from memtx import library

    path, other = needed(values, "memory", "notes"), library.open(words[0])
    if not library.is_library(path):
        raise UserError(f"{path} is not a library yet; memtx memory fork --memory={words[0]} {path} makes it from {words[0]}")
    count = library.merge(_library(values), other, **_spaces(values))
    print(f"added {plural(count, 'document')}")


def _diff(values, words: Sequence[str]) -> None:
    from memtx import library

    found = library.diff(_library(values), library.open(words[0]))
    for mark, documents in (("-", found.here), ("+", found.there), ("~", found.changed)):
        for document in documents:
            size = plural(document.entries, "entry", "entries")
            print(f"{mark} {escaped(document.namespace)} {escaped(document.name)} ({size})")
    if not (found.here or found.there or found.changed):
        print("the same documents")


def _fork(values, words: Sequence[str]) -> None:
    from memtx.library import fork

    print(f"copied to {fork(_library(values), words[0]).path}")


def _resize(values, words: Sequence[str]) -> None:
    from memtx.library import resize

    if not words[0].isdecimal():
        raise UserError(f"resize takes a number of entries, not {words[0]!r}")
    certificate = resize(_library(values), int(words[0]), keep=values["keep"].value, key=_key(values))
    print(json.dumps(certificate, indent=2) if certificate else "all entries fit")


def _migrate(values, words: Sequence[str]) -> None:
    from memtx import library

    model, kind = needed(values, "model", "minilm"), values["kind"].value or ""
    old = library.open(needed(values, "memory", "notes"))
    with Progress("document") as progress:
        new = library.migrate(old, words[0], model, progress, kind=kind, texts=not values["no_text"].value)
    print(f"read {plural(len(new.documents), 'document')} into {new.path}")


VERBS = {  # with the words after the verb: their name, and their smallest and largest number (0: no limit)
    "read": (_read, "FILE, FOLDER or -", 1, 0),
    "recall": (_recall, "QUERY", 1, 1),
    "show": (_show, "", 0, 0),
    "forget": (_forget, "DOCUMENT", 0, 1),
    "verify": (_verify, "CERTIFICATE", 1, 1),
    "export": (_export, "FILE", 1, 1),
    "import": (_import, "FILE", 1, 1),
    "merge": (_merge, "DIR", 1, 1),
    "diff": (_diff, "DIR", 1, 1),
    "fork": (_fork, "DIR", 1, 1),
    "resize": (_resize, "N", 1, 1),
    "migrate": (_migrate, "DIR", 1, 1),
}


# --- the values of flags ----------------------------------------------------------------------------------------------------


def _library(values) -> Library:
    from memtx import library

    return library.open(needed(values, "memory", "notes"), model=values["model"].value)


def _one(values) -> str | None:
    """Return the namespace, or None if none is given. Raises UserError for several."""
    names = [as_utf8(name) for name in values["namespace"].value]
    if len(names) > 1:
        raise UserError("give one --namespace")
    return names[0] if names else None


def _spaces(values) -> dict[str, Any]:
    return {"namespace": [as_utf8(name) for name in values["namespace"].value]} if values["namespace"].value else {}


def _key(values) -> bytes | None:
    if not (path := values["key"].value):
        return None
    try:
        key = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read --key={printable(path)}: {error.strerror}") from None
    if len(key) < 16:
        raise UserError(f"--key={path} must have at least 16 bytes")
    return key


def _count(least: int, most: int) -> str:
    """Return a range of numbers of words as text."""
    words = f"{least} word{'s' * (least != 1)}"
    return words if least == most else f"at least {words}" if not most else f"{least} to {most} words"
