"""The common part of `memtx ask`, `memtx summarize` and `memtx translate`: they read files and write a text for each source.

Text files give text: one line for each source. Only a single file that is read as a whole may give several lines. A table
(.jsonl, .csv, .tsv) gives JSON Lines: its rows with a further column.
The module imports JAX in functions only, so that help is quick.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from memtx.cli.options import as_utf8, define_writing, plural, print_text, writing
from memtx.data import rows
from memtx.errors import UserError, listed, printable
from memtx.files.atomic import check_new, write_atomic
from memtx.files.text import decoded, read_text
from memtx.progress import Progress

if TYPE_CHECKING:
    from memtx.runs.load import Loaded
    from memtx.runs.write import Written

MOST = 16 * 2**20  # bytes of a file. A larger one would take days, and nothing is written before the end
COLUMN = "prediction"  # the column of the texts
T5_CONTEXT = 512  # tokens of a source for which T5 was trained
TABLES = (*rows.TABLES, *rows.LINES)


@dataclasses.dataclass(frozen=True)
class Job:
    """The differences between the commands.

    keys     the columns of a table
    source   the source that the model reads, with the names of the columns in braces
    by_line  whether each line of a text file is a source, or else the whole file
    long     how to read a source that is too long (see `memtx.write`)
    task     how the names of the task start in the config of a T5
    message  the default prefix for a chat model
    """

    keys: tuple[str, ...]
    source: str
    by_line: bool
    long: str
    task: str
    message: str


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The sources, "" for blank lines of a text. table: the rows that they came from, or None for text files.

    asked: the question and the context in each source, for a model that answers by spans.
    """

    sources: list[str]
    table: list[dict[str, Any]] | None = None
    asked: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def define(values: flags.FlagValues) -> None:
    """Define the flags of the commands."""

    def string(name: str, text: str) -> None:
        flags.DEFINE_string(name, None, text, flag_values=values)

    def integer(name: str, default: int | None, text: str) -> None:
        flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=values)

    values.set_gnu_getopt(True)
    string("workdir", "The folder `DIR` of a trained run. Give either --workdir or --model.")
    string("model", "A pretrained `MODEL`: a T5 (a Hugging Face folder or a name of the hub), or a chat model such as smollm2.")
    string("out", "Write to this new `FILE` when all texts are done. Default: the standard output.")
    prefix = "none for a run, that of its config.json for a T5, an instruction for a chat model"
    string("prefix", f"The `TEXT` before each source. Default: {prefix}.")
    integer("batch", 8, "Read N sources at once. The texts depend on it only through rounding.")
    integer("context", None, "The number of tokens that a --model reads at once. Default: 512, or 2048 for a chat model.")
    define_writing(values, temperature=0.0, length="200, or as many as the targets of a run had room for")


def act(values, job: Job, inputs: Inputs) -> None:
    """Write a text for each source to --out or the standard output. Raises UserError for a mistake that the user can fix."""
    out = values["out"].value
    if out is not None:
        _check_out(Path(out), inputs)
    loaded, prefix = _load(values, job)
    sources = [source for source in inputs.sources if source]
    if inputs.asked and loaded.lm.model.output == "span":
        texts = _find(values, loaded, inputs.asked)
    else:
        texts = _write(values, loaded, sources, {"prefix": prefix, "long": job.long})
    content = _content(job, inputs, texts)
    if out is None:
        print_text(content)
        return
    _write_new(Path(out), content)
    print(f"memtx: wrote {printable(out)}: {plural(len(sources), 'text')}", file=sys.stderr)


def _write(values, loaded: Loaded, sources: Sequence[str], how: dict[str, Any]) -> list[str]:
    """Return a written text for each source."""
    from memtx.runs.write import write

    with Progress("text") as progress:
        done = write(loaded, sources, **writing(values), **how, batch=values["batch"].value, progress=progress)
    _warn(done)
    return done.texts


def _find(values, loaded: Loaded, asked: Sequence[tuple[str, str]]) -> list[str]:
    """Return the span of each context that answers its question."""
    from memtx.runs.answer import answer

    if values["prefix"].value:
        raise UserError("the model answers by a span of the text, so it takes no --prefix")
    questions, contexts = zip(*asked, strict=True)
    with Progress("window") as progress:
        found = answer(loaded, questions, contexts, batch=values["batch"].value, progress=progress)
    return [one.text for one in found]


# --- inputs -------------------------------------------------------------------------------------------------------------------


def read_sources(words: Sequence[str], job: Job) -> Inputs:
    """Read the sources in text files or tables. Raises UserError for a file that cannot be read, is empty or too large."""
    return read_tables(words, job) if is_table(words) else Inputs(read_texts(words, job.by_line))


def is_table(words: Sequence[str]) -> bool:
    """Return whether the files are tables. Raises UserError if there are no files, or if only some are tables."""
    kinds = set(map(names_table, words))
    if len(kinds) != 1:
        several = f"either text files or tables ({', '.join(TABLES)}), not both"
        raise UserError(f"give {several if kinds else 'the files to read, or - for the standard input'}")
    return kinds == {True}


def names_table(word: str) -> bool:
    """Return whether a word ends like the name of a table."""
    return Path(word).suffix.lower() in TABLES


def read_tables(words: Sequence[str], job: Job) -> Inputs:
    """Read the rows of tables."""
    table = []
    for path in map(Path, words):
        if path.is_file() and path.stat().st_size > MOST:
            raise UserError(f"{printable(str(path))} is larger than {MOST // 2**20} MiB: split it into smaller files")
        table += rows.read_lines(path, job.keys)
    if any(COLUMN in row for row in table):
        raise UserError(f"a table has the column {COLUMN!r} already, where the texts would go: rename it or leave it out")
    parts = [{key: str(row[key]) for key in job.keys} for row in table]
    asked = [(part["question"], part["context"]) for part in parts if "question" in part]
    return Inputs([job.source.format(**part) for part in parts], table, asked)


def read_texts(words: Sequence[str], by_line: bool = False) -> list[str]:
    """Return the texts of files, or their lines. Blank lines are ""."""
    texts = [_text(word) for word in words]
    if not by_line:
        return [text.strip() for text in texts]
    return [line.strip() for text in texts for line in io.StringIO(text, newline=None)]


def _text(word: str) -> str:
    name = "the standard input" if word == "-" else printable(word)
    text = decoded(sys.stdin.buffer.read(MOST + 1), name, MOST) if word == "-" else read_text(Path(word), MOST)
    if "\0" in text:
        raise UserError(f"{name} is not text: it has NUL bytes")
    if not text.strip():
        raise UserError(f"{name} is empty")
    return text


# --- the model ----------------------------------------------------------------------------------------------------------------


def _load(values, job: Job) -> tuple[Loaded, str]:
    """Return the model that the flags name, and the prefix of its sources."""
    from memtx.pretrained.load import CONTEXT, settings
    from memtx.runs.load import is_pretrained, load, load_run

    workdir, model, context = (values[name].value for name in ("workdir", "model", "context"))
    prefix = None if values["prefix"].value is None else as_utf8(values["prefix"].value)
    if bool(workdir) == bool(model):
        raise UserError("give either --workdir, such as --workdir=runs/pairs, or --model, such as --model=t5-small")
    if workdir or not is_pretrained(model):
        if context:
            raise UserError("--context is for a pretrained --model; the config of a run sets its context")
        return load_run(workdir or model, streams=False), prefix or ""
    loaded = load(model, context=context or (T5_CONTEXT if settings(model).encoder else CONTEXT))
    return loaded, _prefix(model, loaded, job) if prefix is None else prefix


def _prefix(model: str, loaded: Loaded, job: Job) -> str:
    """Return the default prefix of a pretrained model. Raises UserError if the user has to choose one."""
    from memtx.pretrained.load import prefixes

    if not loaded.lm.source_capacity:
        if loaded.tokenizer.chat_template and not job.message:
            raise UserError(f"{model} is a chat model, which needs an instruction, such as --prefix='Translate into German: '")
        return job.message
    found = {prefix for task, prefix in prefixes(model).items() if job.task and task.startswith(job.task)}
    if len(found) > 1:
        raise UserError(f"{model} knows several tasks: choose its --prefix from {listed(map(repr, sorted(found)))}")
    return next(iter(found), "")


# --- results ------------------------------------------------------------------------------------------------------------------


def _check_out(path: Path, inputs: Inputs) -> None:
    suffix = path.suffix.lower()
    if inputs.table is not None and suffix not in (".jsonl", ".ndjson"):
        raise UserError(f"the rows of a table are written as JSON Lines: give an --out that ends with .jsonl, not {path.name}")
    if inputs.table is None and suffix in TABLES:
        raise UserError(f"text files give a text: give an --out that does not end with {suffix}, or a table as input")
    check_new(path)


def _content(job: Job, inputs: Inputs, texts: Sequence[str]) -> str:
    """Return the result: rows with their texts, or a line for each source and each blank line."""
    if inputs.table is not None:
        return "".join(_json(row | {COLUMN: text}) for row, text in zip(inputs.table, texts, strict=True))
    if len(inputs.sources) == 1 and not job.by_line:
        return texts[0].strip() + "\n"
    left = iter(texts)
    lines = [next(left) if source else "" for source in inputs.sources]
    return "".join(" ".join(part.strip() for part in line.splitlines()).strip() + "\n" for line in lines)


def _write_new(path: Path, content: str) -> None:
    """Write the result to a new file. If that fails, print it, so that it is not lost, and raise a UserError."""
    try:
        if os.path.lexists(path):  # it did not exist at the start of the work
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        write_atomic(path, content)
    except OSError as error:
        print_text(content)
        raise UserError(
            f"cannot write {printable(str(path))}: {error.strerror}. The texts were printed to the standard output instead"
        ) from None


def _json(row: dict[str, Any]) -> str:
    line = json.dumps(row, ensure_ascii=False)
    return (json.dumps(row) if re.search("[\ud800-\udfff]", line) else line) + "\n"


def _warn(done: Written) -> None:
    """Say how many texts would be different if the model read or wrote more tokens."""
    for found, read in ((done.cut, "read without the end"), (done.split, "read in parts")):
        if found:
            verb = "was" if len(found) == 1 else "were"
            print(f"memtx: {plural(len(found), 'source')} {verb} too long for the model and {verb} {read}", file=sys.stderr)
    if done.unfinished:
        print(f"memtx: {plural(len(done.unfinished), 'text')} stopped at --max_tokens before the end", file=sys.stderr)
