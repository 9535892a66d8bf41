"""Ask a question about text files, or the questions of a table.

  memtx ask --workdir=runs/answers 'When was it built?' report.txt
  memtx ask --model=smollm2 'When was it built?' - < report.txt
  memtx ask --workdir=runs/answers questions.jsonl --out=answers.jsonl

QUESTION FILE|-...   a question, and text files or the standard input. The answer to each file is found in that file alone
TABLE...             tables (.jsonl, .csv, .tsv) with columns "question" and "context". They give JSON Lines: their rows with a
                     column "prediction"

A run of configs/answer.py, or a BERT with a head for answers, finds the answer in the text, which may have any length. --prefix
and the flags of writing are not for it. Any other model writes the answer: a run of configs/seq2seq.py, a T5 or a chat model.
Its input is "question: ... context: ...", as in T5, so a run should be trained with such sources. The end of a text that is too
long for it is left out. memtx chat answers questions about many documents, and memtx memory recall finds their sentences.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from memtx.cli import texts
from memtx.cli.options import as_utf8
from memtx.errors import UserError

WORDS = True  # the command takes words that are not flags
SOURCE = "question: {question} context: {context}"
MESSAGE = "Answer the question about the text in one short sentence.\n\n"
JOB = texts.Job(keys=("question", "context"), source=SOURCE, by_line=False, long="cut", task="", message=MESSAGE)


def define(values: flags.FlagValues) -> None:
    """Define the flags of the command."""
    texts.define(values)


def act(values, words: Sequence[str]) -> None:
    """Answer the question or the questions. Raises UserError for a mistake that the user can fix."""
    texts.act(values, JOB, _inputs(words))


def _inputs(words: Sequence[str]) -> texts.Inputs:
    if words and all(map(texts.names_table, words)):  # a question may end with the name of a table
        return texts.read_tables(words, JOB)
    if len(words) < 2:
        example = "memtx ask --workdir=runs/answers 'When was it built?' report.txt"
        raise UserError(f"give a question and then the files to ask, such as {example}")
    question, *files = words
    if texts.names_table(question) and Path(question).is_file():
        raise UserError("give either tables alone, or a question and then text files")
    if texts.is_table(files):
        raise UserError("the questions of a table are in its column 'question'; leave out the one before it")
    asked = [(as_utf8(question), text) for text in texts.read_texts(files)]
    return texts.Inputs([SOURCE.format(question=question, context=context) for question, context in asked], asked=asked)
