"""`memtx eval`, and how an evaluation is shown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from absl import flags
from rich.console import Console

from memtx.cli.options import needed, settings

HELP = """\
  memtx eval      what is held out, with memory carried and with memory wiped: bits per byte of text, accuracy of tasks
      --workdir=DIR                   of a trained run
      --split=valid|test|train        --segments=N of text (0: all of it)
      --examples=N of a task          --task=length=512,pairs=8: other settings of it
"""


def define(values):
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_enum("split", None, ["valid", "test", "train"], "", flag_values=values)
    flags.DEFINE_integer("segments", None, "", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("examples", None, "", lower_bound=1, flag_values=values)
    flags.DEFINE_string("task", None, "", flag_values=values)
    flags.DEFINE_enum("format", "table", ["table", "json"], "", flag_values=values)


def act(values):
    from memtx.evaluation.run import evaluate_run

    workdir = Path(needed(values, "workdir", "runs/first"))
    given = {name: values[name].value for name in ("split", "segments", "examples")}
    evaluation, step = evaluate_run(workdir, **given, task=settings(values["task"].value, "task"))
    if values["format"].value == "json":
        print(json.dumps({"step": step, **evaluation.metrics(), **dataclasses.asdict(evaluation)}))
    else:
        print(f"plot  {summarise(evaluation, workdir, Console(soft_wrap=True, highlight=False))}")


def summarise(result, workdir: Path, console: Console) -> Path:
    """Shows the table and writes the plot, whose path it returns."""
    from memtx.evaluation.recall import Recall
    from memtx.evaluation.summary import plot, recall_plot, recall_table, table

    console.print()
    if isinstance(result, Recall):
        title, picture = f"held-out examples, {workdir.name}", workdir / "accuracy.png"
        console.print(recall_table(result, title))
        recall_plot(result, picture, title)
    else:
        title, picture = f"held-out text, {workdir.name}", workdir / "loss_by_position.png"
        console.print(table(result, title))
        plot(result, picture, title)
    return picture
