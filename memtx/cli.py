"""The command line: `memtx train | eval | generate | data | list`."""

from __future__ import annotations

import ast
import dataclasses
import errno
import json
import os
import re
import sys
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from memtx.errors import UserError, check_known
from memtx.training.cpu import keep_pages

HELP = """\
memtx: Transformers with long-term memory

  memtx train     train a model, or go on with a run that was stopped
      --config=FILE[:key=value,...]   a config file; configs/lm.py:memory=xl,size=tiny,data=books
      --workdir=DIR                   where checkpoints, metrics.jsonl and TensorBoard files go
      --config.GROUP.KEY=VALUE        change any key; --config.train.steps=2000 --config.optim.lr=3e-4

  memtx eval      what is held out, with memory carried and with memory wiped: bits per byte of text, accuracy of tasks
      --workdir=DIR                   of a trained run
      --split=valid|test|train        --segments=N of text (0: all of it)
      --examples=N of a task          --task=length=512,pairs=8: other settings of it

  memtx generate  text from a trained run
      --workdir=DIR  --prompt=TEXT    or --prompt_file=FILE, of any length
      --max_tokens=200  --temperature=0.8  --top_k=0  --top_p=0.95  --seed=0

  memtx data      a corpus: its documents, bytes and tokens; a task: one of its examples
      --config=FILE[:...]             or --corpus=pycode|books|speeches|textdir:PATH|tfds:NAME  --tokenizer=bytes|bpe:8192
                                      or --corpus=task:NAME  --example=N

  memtx list      the memories: kind of state, bytes per stream, cost per token
      --format=table|json             --memory=NAME: one mechanism's settings and card

A run that was killed goes on when the same command is given again. Mistakes end with one line and exit status 2.
"""


def main(argv: list[str] | None = None) -> None:
    """Console entry point: exits with 0, or with 2 after one line about what the user can put right."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        run(argv)
    except UserError as error:
        _fail(str(error))
    except flags.Error as error:
        _fail(str(error).splitlines()[0].removeprefix("FATAL Flags parsing error:").strip())
    except BrokenPipeError:  # `memtx list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _fail(f"the disk is full: {error.filename or error}")
    except KeyboardInterrupt:
        sys.exit(130)


def run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        check_known(command, COMMANDS, "command")
    if "-h" in rest or "--help" in rest:
        print(HELP, end="")
        return
    define, act = COMMANDS[command]
    keep_pages()
    jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/memtx/compiled").expanduser()))
    values = flags.FlagValues()
    define(values)
    act(_parse(values, command, rest))


def _parse(values: flags.FlagValues, command: str, rest: list[str]) -> flags.FlagValues:
    spec = next((arg.partition("=")[2] for arg in rest if arg.startswith("--config=")), None)
    if spec is not None and not Path(spec.partition(":")[0]).is_file():
        raise UserError(f"no config file {spec.partition(':')[0]!r}")
    program, sys.argv = sys.argv, [f"memtx {command}", *rest]  # config_flags looks for overrides there
    try:
        left = values(sys.argv)[1:]
    except (KeyError, AttributeError) as error:  # how ml_collections refuses a key
        names = re.findall(r"\w+", str(error).replace("\\n", " "))
        near = f"; did you mean {names[names.index('mean') + 1]}?" if "mean" in names else ""
        raise UserError(f"unknown config key {names[0]!r}{near}") from None
    except flags.IllegalFlagValueError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
    finally:
        sys.argv = program
    if left:
        raise UserError(f"unexpected argument {left[0]!r}; options are written --name=value")
    return values


def _needed(values: flags.FlagValues, name: str, example: str):
    if not (value := values[name].value):
        raise UserError(f"--{name} is missing; for example --{name}={example}")
    return value


def _fail(message: str) -> None:
    print(f"memtx: {message}", file=sys.stderr)
    sys.exit(2)


# --- train -----------------------------------------------------------------------------------------------------------------


def _train_flags(values):
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)


def _train(values):
    from memtx import evaluation  # noqa: F401
    from memtx.config import configure
    from memtx.training.loop import train

    config = configure(_needed(values, "config", "configs/lm.py:memory=xl"))
    workdir = Path(_needed(values, "workdir", "runs/first"))
    console = Console(soft_wrap=True, highlight=False)
    trained = train(config, workdir, say=lambda line: console.print(line, markup=False))
    if not trained.finished:
        console.print(f"stopped and saved at step {trained.step}; give the same command to go on")
        return
    picture = _summarise(trained.evaluation, workdir, console)
    if config.eval.sample_tokens:
        from memtx.loading import load

        _write_sample(load(workdir), config, console)
    console.print(f"\nmetrics  {workdir / 'metrics.jsonl'}\nplot     {picture}", markup=False)


def _summarise(result, workdir: Path, console: Console) -> Path:
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


def _write_sample(loaded, config, console: Console) -> None:
    from memtx.generate import Sampling, generate

    console.print("\nsample", style="bold")
    print(config.eval.prompt, end="", flush=True)
    for text in generate(
        loaded.lm,
        loaded.params,
        loaded.tokenizer,
        config.eval.prompt,
        max_tokens=config.eval.sample_tokens,
        sampling=Sampling(),
        seed=config.seed,
        chunk=config.data.segment,
    ):
        print(text, end="", flush=True)
    print()


# --- eval ------------------------------------------------------------------------------------------------------------------


def _eval_flags(values):
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_enum("split", None, ["valid", "test", "train"], "", flag_values=values)
    flags.DEFINE_integer("segments", None, "", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("examples", None, "", lower_bound=1, flag_values=values)
    flags.DEFINE_string("task", None, "", flag_values=values)
    flags.DEFINE_enum("format", "table", ["table", "json"], "", flag_values=values)


def _eval(values):
    from memtx.evaluation.run import evaluate_run

    workdir = Path(_needed(values, "workdir", "runs/first"))
    given = {name: values[name].value for name in ("split", "segments", "examples")}
    evaluation, step = evaluate_run(workdir, **given, task=_settings(values["task"].value))
    if values["format"].value == "json":
        print(json.dumps({"step": step, **evaluation.metrics(), **dataclasses.asdict(evaluation)}))
    else:
        print(f"plot  {_summarise(evaluation, workdir, Console(soft_wrap=True, highlight=False))}")


def _settings(text: str | None) -> dict | None:
    """What `--task` says, key=value with commas between, as a mapping; values are Python literals or else words."""
    if not text:
        return None
    settings = {}
    for name, value in re.findall(r"(\w+)=((?:\([^)]*\)|[^,(])+)(?:,|$)", text):
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name] = value
    if not settings:
        raise UserError(f"--task={text!r} should read key=value,key=value")
    return settings


# --- generate --------------------------------------------------------------------------------------------------------------


def _generate_flags(values):
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_string("prompt", None, "", flag_values=values)
    flags.DEFINE_string("prompt_file", None, "", flag_values=values)
    flags.DEFINE_integer("max_tokens", 200, "", lower_bound=1, flag_values=values)
    flags.DEFINE_float("temperature", 0.8, "", flag_values=values)
    flags.DEFINE_integer("top_k", 0, "", flag_values=values)
    flags.DEFINE_float("top_p", 0.95, "", flag_values=values)
    flags.DEFINE_integer("seed", 0, "", flag_values=values)


def _generate(values):
    from memtx.generate import Sampling, generate
    from memtx.loading import load

    sampling = Sampling(values["temperature"].value, values["top_k"].value, values["top_p"].value)
    loaded = load(_needed(values, "workdir", "runs/first"))
    prompt = _prompt(values)
    print(prompt, end="", flush=True)
    for text in generate(
        loaded.lm,
        loaded.params,
        loaded.tokenizer,
        prompt,
        max_tokens=values["max_tokens"].value,
        sampling=sampling,
        seed=values["seed"].value,
        chunk=loaded.config.data.segment,
    ):
        print(text, end="", flush=True)
    print()


def _prompt(values) -> str:
    text, path = values["prompt"].value, values["prompt_file"].value
    if text is not None and path is not None:
        raise UserError("give either --prompt or --prompt_file, not both")
    if path is None:
        return text or ""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read --prompt_file: {error}") from None


# --- data and list ---------------------------------------------------------------------------------------------------------


def _data_flags(values):
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("corpus", None, "", flag_values=values)
    flags.DEFINE_string("tokenizer", None, "", flag_values=values)
    flags.DEFINE_integer("example", 0, "", lower_bound=0, flag_values=values)


def _data(values):
    from memtx.config import Data, configure
    from memtx.data.describe import describe

    data = configure(values["config"].value).data if values["config"].value else Data()
    changes = {name: values[name].value for name in ("corpus", "tokenizer") if values[name].value}
    data, console = dataclasses.replace(data, **changes), Console(soft_wrap=True, highlight=False)
    if data.corpus.startswith("task:"):
        from memtx.data.tasks.show import show

        console.print(show(data, values["example"].value))
        return
    found = describe(data)
    console.print(f"{found.name}: {found.about}\nat {found.path}", markup=False)
    table = Table(caption=f"tokens of {found.tokenizer}, a vocabulary of {found.vocab_size:,}")
    for name in ("split", "documents", "bytes", "tokens", "longest document", "tokens in it"):
        table.add_column(name, justify="left" if name in ("split", "longest document") else "right")
    for s in found.splits:
        table.add_row(s.split, *(f"{n:,}" for n in (s.documents, s.bytes, s.tokens)), s.longest, f"{s.longest_tokens:,}")
    console.print(table)


def _list_flags(values):
    flags.DEFINE_enum("format", "table", ["table", "json"], "", flag_values=values)
    flags.DEFINE_string("memory", "", "", flag_values=values)


def _list(values):
    from memtx.models.listing import details, listing, table

    if values["memory"].value:
        print(details(values["memory"].value), end="")
    elif values["format"].value == "json":
        print(json.dumps(listing(), indent=2))
    else:
        Console().print(table(listing()))


COMMANDS = {
    "train": (_train_flags, _train),
    "eval": (_eval_flags, _eval),
    "generate": (_generate_flags, _generate),
    "data": (_data_flags, _data),
    "list": (_list_flags, _list),
}

if __name__ == "__main__":
    main()
