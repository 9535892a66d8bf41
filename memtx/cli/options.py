"""Options of a command, and what is wrong with them in one line."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import sys

from absl import flags

from memtx.errors import UserError
from memtx.files.cache import VARIABLE


def parse(values: flags.FlagValues, command: str, rest: list[str]) -> flags.FlagValues:
    spec = next((arg.partition("=")[2] for arg in rest if arg.startswith("--config=")), None)
    if spec is not None:
        from memtx.runs.configure import find_config

        name, colon, arg = spec.partition(":")
        found = f"{find_config(name)}{colon}{arg}"
        rest = [f"--config={found}" if part == f"--config={spec}" else part for part in rest]
    program, sys.argv = sys.argv, [f"memtx {command}", *rest]  # config_flags looks for overrides there
    try:
        left = values(sys.argv)[1:]
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
            raise UserError(f"{spec} fails with {str(error).strip().splitlines()[-1]}") from None
        raise
    finally:
        sys.argv = program
    if left:
        raise UserError(f"unexpected argument {left[0]!r}; options are written --name=value")
    return values


@contextlib.contextmanager
def default_cache(rest: list[str]):
    """The folder of --cache or --config.data.cache is the default for all that reads or fills a cache, config files too."""
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
    """UserError for the first `--config.KEY=VALUE` whose key the config file does not have."""
    from memtx.runs.configure import load_config, override

    keys = [arg.removeprefix("--config.").partition("=")[0] for arg in rest if arg.startswith("--config.")]
    override(load_config(spec), dict.fromkeys(keys))


def needed(values: flags.FlagValues, name: str, example: str):
    if not (value := values[name].value):
        raise UserError(f"--{name} is missing; for example --{name}={example}")
    return value


def parse_settings(text: str | None, option: str) -> dict | None:
    """What an option such as `--task` says, key=value,key=value, as a mapping; values are Python literals or else words."""
    if not text:
        return None
    settings = {}
    for name, value in re.findall(r"(\w+)=((?:\([^)]*\)|[^,(])+)(?:,|$)", text):
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name] = value
    if not settings:
        raise UserError(f"--{option}={text!r} should read key=value,key=value")
    return settings
