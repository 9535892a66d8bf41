"""Evaluate on held-out text or examples: bits per byte of text, accuracy of tasks.

  memtx eval --workdir=runs/xl --split=test
  memtx eval --config=pretrained:backbone=smollm2

The text is read twice: with the state carried from segment to segment, and with a fresh state for each segment. The difference
is the gain from memory. Give --workdir for a trained run, or --config for a model before training, such as a pretrained one.
All devices take part, and several processes as in memtx train.
"""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from memtx.cli.options import define_processes, join_processes, needed, parse_settings
from memtx.errors import UserError
from memtx.files.remote import Mirror, place
from memtx.progress import Progress


def define(values: flags.FlagValues) -> None:
    """Define the flags of the command."""

    def integer(name: str, least: int, text: str) -> None:
        flags.DEFINE_integer(name, None, text, lower_bound=least, flag_values=values)

    def string(name: str, text: str) -> None:
        flags.DEFINE_string(name, None, text, flag_values=values)

    config_flags.DEFINE_config_file("config", None, "A config file: `NAME[:key=value,...]`.", flag_values=values)
    string("workdir", "The folder `DIR` of a trained run.")
    flags.DEFINE_enum("split", None, ["valid", "test", "train"], "The split. Default: that of the config.", flag_values=values)
    integer("segments", 0, "Read at most N segments of the text, or all of it for 0. Default: that of the config.")
    integer("examples", 1, "Use N examples of the task. Default: that of the config.")
    integer("batch", 1, "Read N texts or examples at a time, a multiple of the devices. Default: that of the config.")
    string("task", "Change settings of the task: `key=value,...`, such as length=512,pairs=8.")
    flags.DEFINE_enum("format", "table", ["table", "json"], "How to print the result.", flag_values=values)
    define_processes(values)


def act(values) -> None:
    """Evaluate, and print the result. Raises UserError for a mistake that the user can fix."""
    from memtx.models.patterns import names
    from memtx.runs.evaluate import evaluate_config, evaluate_run

    given = {name: values[name].value for name in ("split", "segments", "examples", "batch")}
    given["task"] = parse_settings(values["task"].value, "task")
    config, workdir, step = values["config"].value, values["workdir"].value, 0
    if config and workdir:
        raise UserError("give --workdir for a trained run, or --config for a model before training, not both")
    workdir = "" if config else needed(values, "workdir", "runs/first")
    with join_processes(values) as prints, Progress("part") if prints else nullcontext() as progress:
        if config:
            evaluation = evaluate_config(config, progress, **given)
        else:
            evaluation, step = evaluate_run(workdir, cache=values["cache"].value, progress=progress, **given)
    if not prints:
        return
    if values["format"].value == "json":
        print(json.dumps({"step": step, **evaluation.metrics(), **dataclasses.asdict(evaluation)}))
        return
    console = Console(soft_wrap=True, highlight=False)
    if config:
        memories = names(config.model.stacks, config.model.body, config.model.head)
        show(evaluation, f"{config.model.pretrained or 'before training'} ({', '.join(memories)})", console)
    else:
        print(f"plot  {summarise(evaluation, place(workdir), console, split=given['split'] or '')}")


def summarise(result, workdir: Path, console: Console, *, split: str = "") -> Path:
    """Print the table and write the plot. Returns the path of the plot. split: a part of its name, if it is not ""."""
    from memtx.evaluation.recall import Recall
    from memtx.evaluation.summary import plot, recall_plot

    title, end = show(result, workdir.name, console), f"_{split}.png" if split else ".png"
    with Mirror(workdir) as files:
        if isinstance(result, Recall):
            recall_plot(result, path := files.folder / f"accuracy{end}", title)
        else:
            plot(result, path := files.folder / f"loss_by_position{end}", title)
    return workdir / path.name


def show(result, name: str, console: Console) -> str:
    """Print the table, and return its title."""
    from memtx.evaluation.recall import Recall
    from memtx.evaluation.summary import recall_table, table

    examples = isinstance(result, Recall)
    title = f"held-out {'examples' if examples else 'text'}, {name}"
    console.print()
    console.print(recall_table(result, title) if examples else table(result, title))
    return title
