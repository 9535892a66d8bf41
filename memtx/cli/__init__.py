"""The command line: a module for each command, with its HELP, `define(values)` for its options and `act(values)`."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path

import jax
from absl import flags

from memtx.cli import data, evaluate, generate, memories, plan, report, sweep, train
from memtx.cli.options import parse
from memtx.errors import UserError, check_known
from memtx.training.cpu import keep_pages

COMMANDS = {
    "train": train,
    "eval": evaluate,
    "generate": generate,
    "sweep": sweep,
    "report": report,
    "plan": plan,
    "data": data,
    "list": memories,
}

HELP = "memtx: Transformers with long-term memory\n\n" + "\n".join(command.HELP for command in COMMANDS.values())
HELP += "\nA run that was killed goes on when the same command is given again. Mistakes end with one line and exit status 2.\n"


def main(argv: list[str] | None = None) -> None:
    """Console entry point: exits with 0, or with 2 after one line about what the user can put right."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of a name that is not UTF-8, or a character that it cannot show
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
    chosen = COMMANDS[command]
    keep_pages()
    jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/memtx/compiled").expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # many small programs are seconds too
    values = flags.FlagValues()
    chosen.define(values)
    chosen.act(parse(values, command, rest))


def _fail(message: str) -> None:
    print(f"memtx: {message}", file=sys.stderr)
    sys.exit(2)
