"""Show the size of a corpus in documents, bytes and tokens, or an example of a task.

  memtx data --corpus=books --tokenizer=bpe:8192
  memtx data --corpus=task:mqar --example=1

The command builds the corpus and the tokenizer if they are not in the cache.
"""

from __future__ import annotations

import dataclasses

from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table


def define(values: flags.FlagValues) -> None:
    """Define the flags of the command."""

    def string(name: str, text: str) -> None:
        flags.DEFINE_string(name, None, text, flag_values=values)

    config_flags.DEFINE_config_file("config", None, "A config file, for its data: `NAME[:key=value,...]`.", flag_values=values)
    string("corpus", "A `CORPUS`: pycode, books, speeches, textdir:PATH, tfds:NAME or task:NAME. Default: that of the config.")
    string("tokenizer", "A `TOKENIZER`: bytes, bpe:SIZE or pretrained:NAME. Default: that of the config.")
    flags.DEFINE_integer("example", 0, "Show training example N of a task.", lower_bound=0, flag_values=values)


def act(values) -> None:
    """Print the corpus or the example. Raises UserError for a mistake that the user can fix."""
    from memtx.cli.describe import describe
    from memtx.config import Data
    from memtx.runs.configure import configure

    data = configure(values["config"].value).data if values["config"].value else Data()
    changes = {name: values[name].value for name in ("corpus", "tokenizer") if values[name].value}
    data, console = dataclasses.replace(data, **changes), Console(soft_wrap=True, highlight=False)
    if data.corpus.startswith("task:"):
        from memtx.cli.examples import show

        console.print(show(data, values["example"].value))
        return
    found = describe(data)
    console.print(f"{found.name}: {found.about}\nat {found.path}", markup=False)
    for note in found.notes:
        console.print(note, markup=False)
    table = Table(caption=f"tokens of {found.tokenizer}, a vocabulary of {found.vocab_size:,}")
    for name in ("split", "documents", "bytes", "tokens", "longest document", "tokens in it"):
        table.add_column(name, justify="left" if name in ("split", "longest document") else "right")
    for s in found.splits:
        table.add_row(s.split, *(f"{n:,}" for n in (s.documents, s.bytes, s.tokens)), s.longest, f"{s.longest_tokens:,}")
    console.print(table)
