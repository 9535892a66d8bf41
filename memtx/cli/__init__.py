"""The command line, with one module per command. Each module has the name of its command.

Each module has `define(values)`, which defines the flags, and `act(values)`, which runs the command with the parsed flags. With
`WORDS = True` it is `act(values, words)`, with the arguments that are not flags. The docstring and the texts of the flags are
the help of the command. A module imports JAX in `act` or later, so that help is quick.
In this file `list` and `eval` are the modules, not the builtins.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

from absl import flags

from memtx.cli.options import default_cache, flags_help, parse
from memtx.errors import UserError, check_known, escaped
from memtx.files.cache import root

COMMANDS = (
    *("train", "eval", "generate", "translate", "summarize", "ask", "memory", "chat"),
    *("sweep", "report", "plan", "data", "list", "doctor", "completion"),
)
WITHOUT_JAX = {"list", "completion"}
HELP = {"-h", "--help"}
CACHE = (
    "The folder `DIR` for corpora, packages and compiled programs. Default: the folder in the variable MEMTX_CACHE, or "
    "~/.cache/memtx."
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and return, or exit with status 2 after printing one line about a mistake that the user can fix.

    argv: the arguments after `memtx`. None uses the arguments of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for characters that the terminal's encoding lacks
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"memtx: {escaped(str(message))}", file=sys.stderr)
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


def run(argv: Sequence[str]) -> None:
    """Run a command, or print help. Raises UserError or absl's flags.Error for a mistake in the arguments."""
    if not argv or argv[0] in HELP | {"help"}:
        print(overview(), end="")
        return
    command, *rest = argv
    check_known(command, COMMANDS, "command")
    module, values = module_of(command), flags_of(command)
    takes_words = getattr(module, "WORDS", False)
    if HELP & {*rest}:
        print(f"memtx {command}: {(module.__doc__ or '').strip()}\n\n{flags_help(values)}", end="")
        return
    with default_cache(rest):
        if command not in WITHOUT_JAX:
            _start_jax()
        words = parse(values, command, rest)
        if words and not takes_words:
            raise UserError(f"unexpected argument {words[0]!r}; options are written --name=value")
        module.act(values, words) if takes_words else module.act(values)


def overview() -> str:
    """Return the list of the commands, each with the first sentence of its help."""
    lines = [f"  {name:12}{(module_of(name).__doc__ or '').strip().partition('.')[0]}" for name in COMMANDS]
    return (
        "\n".join(["memtx: Transformers with long-term memory", *lines, "memtx COMMAND --help shows the flags of a command."])
        + "\n"
    )


def module_of(command: str) -> ModuleType:
    """Return the module of a command."""
    return importlib.import_module(f"memtx.cli.{command}")


def flags_of(command: str) -> flags.FlagValues:
    """Return the flags of a command, which are not parsed yet."""
    values = flags.FlagValues()
    module_of(command).define(values)
    flags.DEFINE_string("cache", None, CACHE, flag_values=values)
    return values


def _start_jax() -> None:
    """Configure JAX before its first use: its CPU, and the cache of compiled programs if it can be written."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors of XLA without its warnings, before jaxlib reads it
    import jax

    from memtx.training.cpu import keep_pages, schedule_in_order

    keep_pages()
    schedule_in_order()
    try:
        folder = root("") / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (UserError, OSError):
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # many small programs take seconds too


def _fail(message: str) -> None:
    print(f"memtx: {escaped(message)}", file=sys.stderr)
    sys.exit(2)
