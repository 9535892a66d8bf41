"""Train a model, or continue a run that was stopped.

  memtx train --config=lm:memory=xl,size=tiny,data=books --workdir=runs/xl --config.train.steps=2000

--config.GROUP.KEY=VALUE changes any key of the config. The same command continues a run that was stopped or killed, also on
other devices and with another train.batch. Several processes train one run if a launcher such as srun starts the command in
each, or if each gets --coordinator, --processes and --process.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from memtx.cli.eval import summarise
from memtx.cli.options import define_processes, join_processes, needed, print_text
from memtx.files.atomic import write_atomic
from memtx.files.remote import Mirror, place

CONFIG = (
    "A config file, and its arguments: `NAME[:key=value,...]`. It is a path, or the name of an installed one: lm, task, "
    "pretrained, seq2seq, classify, answer, masked, quickstart. Required."
)


def define(values: flags.FlagValues) -> None:
    """Define the flags of the command."""
    config_flags.DEFINE_config_file("config", None, CONFIG, flag_values=values)
    flags.DEFINE_string(
        "workdir",
        None,
        "The folder `DIR` for the checkpoints, the metrics and the TensorBoard files of the run. It may be in a bucket: "
        "gs://BUCKET/FOLDER. Required.",
        flag_values=values,
    )
    define_processes(values)


def act(values) -> None:
    """Train, and print the evaluation and a sample. Raises UserError for a mistake that the user can fix."""
    import jax

    from memtx.runs.configure import configure
    from memtx.runs.train import train

    config = configure(needed(values, "config", "configs/lm.py:memory=xl"))
    workdir = place(needed(values, "workdir", "runs/first"))
    with join_processes(values) as prints:
        console = Console(soft_wrap=True, highlight=False, quiet=not prints)
        trained = train(config, workdir, say=lambda line: console.print(line, markup=False))
    if not prints:
        return
    if not trained.finished:
        console.print(f"stopped and saved at step {trained.step}; give the same command to continue")
        return
    picture = summarise(trained.evaluation, workdir, console)
    if config.eval.sample_tokens and not config.model.output and jax.process_count() == 1:
        from memtx.runs.load import load_run
        from memtx.training.workdir import SAMPLE

        with Mirror(workdir) as files:
            write_atomic(files.folder / SAMPLE, _write_sample(load_run(workdir, streams=False), config, console))
    console.print(f"\nmetrics  {workdir / 'metrics.jsonl'}\nplot     {picture}", markup=False)


def _write_sample(loaded, config, console: Console) -> str:
    """Print a sample while it is generated, and return it with its prompt."""
    from memtx.generate import Sampling, generate

    console.print("\nsample", style="bold")
    tokens = config.eval.sample_tokens
    if most := loaded.lm.most_tokens:
        tokens = min(tokens, most - 1 - len(loaded.tokenizer.encode(config.eval.prompt)))
    print(config.eval.prompt, end="", flush=True)
    pieces = generate(
        loaded.lm,
        loaded.params,
        loaded.tokenizer,
        config.eval.prompt,
        max_tokens=max(tokens, 1),
        sampling=Sampling(),
        seed=config.seed,
        chunk=config.data.segment,
    )
    written = []
    for text in pieces:
        print_text(text)
        written.append(text)
    print("" if written else "(the text ended at once)")
    return config.eval.prompt + "".join(written)
