"""Flags of a command: help, parsing, errors on one line, and the flags that several commands share."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import sys
import textwrap
from typing import Any

from absl import flags

from memtx.errors import UserError, escaped
from memtx.files.cache import VARIABLE

INDENT, WIDTH = 28, 110  # of the texts in the help
REPEATED = r"\.?;\s+repeat this option to specify a list of values"  # the words of absl
PLACEHOLDERS = {"int": "N", "float": "X"}


def flags_help(values: flags.FlagValues) -> str:
    """Return a paragraph for each flag: its name, its text and its default.

    The first words in backquotes in the text of a flag are the placeholder of its value. "The folder `DIR`" gives --name=DIR.
    """
    return "".join(f"{_flag_help(values[name])}\n" for name in values)


def _flag_help(flag: flags.Flag) -> str:
    kinds = getattr(flag.parser, "enum_values", None) or re.findall("`([^`]*)`", flag.help)[:1]
    value = "" if flag.boolean else f"={'|'.join(kinds) or PLACEHOLDERS[flag.flag_type()]}"
    text = flag.help.partition(">: ")[2] or flag.help  # absl puts the choices in front
    text = re.sub(REPEATED, ". May be repeated.", text)
    if flag.default not in (None, "", []):
        text += f" Default: {str(flag.default).lower() if flag.boolean else str(flag.default).removesuffix('.')}."
    text, left, space = " ".join(text.replace("`", "").split()), f"  --{flag.name}{value}", " " * INDENT
    lines = textwrap.wrap(text, WIDTH - INDENT, break_on_hyphens=False, break_long_words=False)
    first = [left.ljust(INDENT) + lines[0]] if len(left) < INDENT - 1 else [left, space + lines[0]]
    return "\n".join([*first, *(space + line for line in lines[1:])])


def parse(values: flags.FlagValues, command: str, rest: list[str]) -> list[str]:
    """Parse the arguments of a command into its flags, and return those that are not flags.

    The name of an installed config is completed to its path. Raises UserError if a config file cannot be found or read, or if
    it lacks a key. Raises absl's flags.Error for other mistakes.
    """
    spec = next((arg.partition("=")[2] for arg in rest if arg.startswith("--config=")), None)
    if spec is not None:
        from memtx.runs.configure import find_config

        name, colon, arg = spec.partition(":")
        found = f"{find_config(name)}{colon}{arg}"
        rest = [f"--config={found}" if part == f"--config={spec}" else part for part in rest]
    program, sys.argv = sys.argv, [f"memtx {command}", *rest]  # config_flags looks for overrides there
    try:
        return values(sys.argv)[1:]
    except (KeyError, AttributeError, IndexError, ValueError):
        if spec is not None:
            _check_keys(spec, rest)
        raise
    except SyntaxError as error:
        raise UserError(f"cannot read the config file: {error}") from None
    except flags.IllegalFlagValueError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        if "Error whilst parsing config file" in str(error):  # a traceback follows
            raise UserError(f"{spec} raises {str(error).strip().splitlines()[-1]}") from None
        raise
    finally:
        sys.argv = program


@contextlib.contextmanager
def default_cache(rest: list[str]):
    """Use the folder of --cache or --config.data.cache as the default cache within the context, even in config files."""
    before = os.environ.get(VARIABLE)
    for name, _, value in (arg.partition("=") for arg in rest):
        if value and name in ("--config.data.cache", "--cache"):
            os.environ[VARIABLE] = value
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def _check_keys(spec: str, rest: list[str]) -> None:
    """Raise a UserError for the first `--config.KEY=VALUE` whose key the config file does not have."""
    from memtx.runs.configure import load_config, override

    keys = [arg.removeprefix("--config.").partition("=")[0] for arg in rest if arg.startswith("--config.")]
    override(load_config(spec), dict.fromkeys(keys))


def print_text(text: str) -> None:
    """Print a piece of generated text. A terminal gets control characters, which could confuse it, in escaped form."""
    print(escaped(text, keep="\n\t") if sys.stdout.isatty() else text, end="", flush=True)


def plural(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun: "1 entry", "2,000 entries". many: the plural if it is not `one` with an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def needed(values: flags.FlagValues, name: str, example: str):
    """Return the value of a flag. Raises a UserError with an example if it was not given."""
    if not (value := values[name].value):
        raise UserError(f"--{name} is missing; for example --{name}={example}")
    return value


def as_utf8(argument: str) -> str:
    """Return an argument decoded as UTF-8 in any locale. Python reads bytes that the locale lacks as lone surrogates."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def define_processes(values: flags.FlagValues) -> None:
    """Define the flags of several processes that run a command together."""
    given = "Default: that of the launcher, such as srun, mpirun or a TPU slice."
    flags.DEFINE_string(
        "coordinator", os.environ.get("JAX_COORDINATOR_ADDRESS"), f"`HOST:PORT` of process 0. {given}", flag_values=values
    )
    flags.DEFINE_integer("processes", None, f"The number of processes. {given}", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("process", None, f"The index of this process. {given}", lower_bound=0, flag_values=values)


def join_processes(values: flags.FlagValues):
    """Return a context in which several processes work together. Its value is whether this is the one that prints."""
    from memtx.training.processes import joined

    return joined(*(values[name].value for name in ("coordinator", "processes", "process")))


def define_writing(values: flags.FlagValues, temperature: float, length: str) -> None:
    """Define the flags of generated text. temperature: the default. length: the default of --max_tokens, in words."""

    def integer(name: str, default: int | None, text: str, least: int | None = 1, most: int | None = None) -> None:
        flags.DEFINE_integer(name, default, text, lower_bound=least, upper_bound=most, flag_values=values)

    def real(name: str, default: float, text: str) -> None:
        flags.DEFINE_float(name, default, text, flag_values=values)

    integer("max_tokens", None, f"Write at most N tokens. Default: {length}.")
    real("temperature", temperature, "Sample at this temperature. 0 takes the likeliest token.")
    integer("top_k", 0, "Sample from the N likeliest tokens only. 0 allows all.", least=None)
    real("top_p", 0.95, "Sample from the fewest tokens with this probability in sum.")
    integer("seed", 0, "The seed of the samples.", least=0, most=2**32 - 1)
    integer("beams", 1, "Search with N beams. More than 1 turns sampling off, unless --temperature is given.")
    real("length_penalty", 1.0, "Divide the score of a beam by its number of tokens to this power.")


def writing(values) -> dict[str, Any]:
    """Return the arguments of `memtx.complete` that these flags give. Raises UserError if a value is not valid."""
    from memtx.generate import Sampling

    sampling = Sampling(values["temperature"].value, values["top_k"].value, values["top_p"].value)
    if values["beams"].value > 1 and not values["temperature"].present:
        sampling = Sampling(temperature=0)
    return {name: values[name].value for name in ("max_tokens", "seed", "beams", "length_penalty")} | {"sampling": sampling}


def parse_settings(text: str | None, option: str) -> dict | None:
    """Parse `key=value,key=value`. Returns a mapping, or None if there is no text.

    Values are Python literals, or words if they are not literals. Raises UserError, with the name of the option, for text of
    any other form.
    """
    if not text:
        return None
    settings = {}
    for name, value in re.findall(r"(\w+)=((?:\([^)]*\)|[^,(])+)(?:,|$)", text):
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name] = value
    if not settings:
        raise UserError(f"--{option}={text!r} must have the form key=value,key=value")
    return settings
