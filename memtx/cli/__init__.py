"""The command line: a module for each command, with its HELP, `define(values)` for its options and `act(values)`."""

from __future__ import annotations

import errno
import io
import os
import sys

import jax
from absl import flags

from memtx.cli import data, evaluate, generate, memories, plan, report, sweep, train
from memtx.cli.options import default_cache, parse
from memtx.errors import UserError, check_known
from memtx.files.cache import root
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
HELP += """
Every command takes --cache=DIR: corpora, packages and compiled programs are kept there, and not in ~/.cache/memtx, which the
variable MEMTX_CACHE changes too.
A run that was killed goes on when the same command is given again. Mistakes end with one line and exit status 2.
"""


def main(argv: list[str] | None = None) -> None:
    """Console entry point: exits with 0, or with 2 after one line about what the user can put right."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # characters that a terminal's encoding does not have
    try:
        run(argv)
        sys.stdout.flush()  # here, so that a closed pipe is noticed below
    except UserError as error:
        _fail(str(error))
    except flags.Error as error:
        _fail(str(error).splitlines()[0].removeprefix("FATAL Flags parsing error:").strip())
    except BrokenPipeError:  # `memtx list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _fail(f"the disk is full: {error.filename or error}")
        if not error.filename:
            raise
        _fail(f"{error.strerror}: {error.filename}")
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
    values = flags.FlagValues()
    chosen.define(values)
    flags.DEFINE_string("cache", None, "", flag_values=values)
    with default_cache(rest):
        _keep_compiled()
        chosen.act(parse(values, command, rest))


def _keep_compiled() -> None:
    """Compiled programs are kept in the cache, unless it cannot be written."""
    try:
        folder = root("") / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (UserError, OSError):
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # many small programs are seconds too


def _fail(message: str) -> None:
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    print(f"memtx: {line}", file=sys.stderr)
    sys.exit(2)
