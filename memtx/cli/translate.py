"""Translate texts, line by line, or the rows of a table.

  memtx translate --workdir=runs/en-es letter.txt --out=letter.es.txt
  memtx translate --model=t5-small --prefix='translate English to German: ' letter.txt
  memtx translate --workdir=runs/en-es test.jsonl --out=translated.jsonl

[FILE|-]...   text files, whose lines are translated one by one, or the standard input, or tables (.jsonl, .csv, .tsv) with a
              column "source". A table gives JSON Lines: its rows with a column "prediction"

The model is a run of configs/seq2seq.py or a T5. It may have been trained to rewrite lines in any other way. A line that is too
long for the model is translated in parts of whole sentences.
"""

from collections.abc import Sequence

from absl import flags

from memtx.cli import texts

WORDS = True  # the command takes words that are not flags
JOB = texts.Job(keys=("source",), source="{source}", by_line=True, long="split", task="translation", message="")


def define(values: flags.FlagValues) -> None:
    """Define the flags of the command."""
    texts.define(values)


def act(values, words: Sequence[str]) -> None:
    """Translate the files. Raises UserError for a mistake that the user can fix."""
    texts.act(values, JOB, texts.read_sources(words, JOB))
