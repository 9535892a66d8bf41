"""`memtx eval`, and how an evaluation is shown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from memtx.cli.options import needed, parse_settings
from memtx.errors import UserError

HELP = """\
  memtx eval      what is held out, with memory carried and with memory wiped: bits per byte of text, accuracy of tasks
      --workdir=DIR                   of a trained run; or --config=FILE[:...]: its model as it begins, a pretrained one say
      --split=valid|test|train        --segments=N of text (0: all of it)
      --examples=N of a task          --task=length=512,pairs=8: other settings of it
"""


def define(values):
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_enum("split", None, ["valid", "test", "train"], "", flag_values=values)
    flags.DEFINE_integer("segments", None, "", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("examples", None, "", lower_bound=1, flag_values=values)
    flags.DEFINE_string("task", None, "", flag_values=values)
    flags.DEFINE_enum("format", "table", ["table", "json"], "", flag_values=values)


def act(values):
    from memtx.runs.evaluate import evaluate_config, evaluate_run

    given = {name: values[name].value for name in ("split", "segments", "examples")}
    given["task"] = parse_settings(values["task"].value, "task")
    config, workdir, step = values["config"].value, values["workdir"].value, 0
    if config and workdir:
        raise UserError("give --workdir of a trained run, or --config of a model as it begins, not both")
    if config:
        evaluation = evaluate_config(config, **given)
    else:
        workdir = needed(values, "workdir", "runs/first")
        evaluation, step = evaluate_run(workdir, cache=values["cache"].value, **given)
    if values["format"].value == "json":
        print(json.dumps({"step": step, **evaluation.metrics(), **dataclasses.asdict(evaluation)}))
        return
    console = Console(soft_wrap=True, highlight=False)
    if config:
        show(evaluation, config.model.pretrained or "as it begins", console)
    else:
        print(f"plot  {summarise(evaluation, Path(workdir), console)}")


def summarise(result, workdir: Path, console: Console) -> Path:
    """Shows the table and writes the plot, whose path it returns."""
    from memtx.evaluation.recall import Recall
    from memtx.evaluation.summary import plot, recall_plot

    title = show(result, workdir.name, console)
    if isinstance(result, Recall):
        recall_plot(result, path := workdir / "accuracy.png", title)
    else:
        plot(result, path := workdir / "loss_by_position.png", title)
    return path


def show(result, name: str, console: Console) -> str:
    """Shows the table, and returns its title."""
    from memtx.evaluation.recall import Recall
    from memtx.evaluation.summary import recall_table, table

    examples = isinstance(result, Recall)
    title = f"held-out {'examples' if examples else 'text'}, {name}"
    console.print()
    console.print(recall_table(result, title) if examples else table(result, title))
    return title
