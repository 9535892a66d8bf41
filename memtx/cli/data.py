"""`memtx data`."""

from __future__ import annotations

import dataclasses

from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

HELP = """\
  memtx data      a corpus: its documents, bytes and tokens; a task: one of its examples
      --config=FILE[:...]             or --corpus=pycode|books|speeches|textdir:PATH|tfds:NAME  --tokenizer=bytes|bpe:8192
                                      or --corpus=task:NAME  --example=N
"""


def define(values):
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("corpus", None, "", flag_values=values)
    flags.DEFINE_string("tokenizer", None, "", flag_values=values)
    flags.DEFINE_integer("example", 0, "", lower_bound=0, flag_values=values)


def act(values):
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
