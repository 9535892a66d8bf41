"""Summarize text files, or the rows of a table.

  memtx summarize --workdir=runs/news report.txt
  memtx summarize --model=t5-small *.txt --out=summaries.txt
  memtx summarize --model=smollm2 report.txt

[FILE|-]...   text files, each of which has one summary, or the standard input, or tables (.jsonl, .csv, .tsv) with a column
              "source". A table gives JSON Lines: its rows with a column "prediction"

The model is a run of configs/seq2seq.py, a T5 or a chat model. The end of a text that is too long for the model is left out.
"""

from collections.abc import Sequence

from absl import flags

from memtx.cli import texts

WORDS = True  # the command takes words that are not flags
MESSAGE = "Summarize this text in a few sentences.\n\n"
JOB = texts.Job(keys=("source",), source="{source}", by_line=False, long="cut", task="summarization", message=MESSAGE)


def define(values: flags.FlagValues) -> None:
    """Define the flags of the command."""
    texts.define(values)


def act(values, words: Sequence[str]) -> None:
    """Summarize the files. Raises UserError for a mistake that the user can fix."""
    texts.act(values, JOB, texts.read_sources(words, JOB))
