"""Complete commands, flags and values with the tab key in bash, zsh or fish.

  memtx completion bash >> ~/.bashrc
  memtx completion zsh >> ~/.zshrc
  memtx completion fish >> ~/.config/fish/config.fish

SHELL   bash, zsh or fish. The command prints a script, which asks memtx for the words at each press of the key

The words are commands, flags, keys of the config, installed configs with their arguments, memories, sizes, tasks, corpora,
files and folders. The script for zsh belongs after the line with compinit.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import flags

from memtx import cli
from memtx.cli.catalog import stored_catalog
from memtx.config import Config, installed_configs, to_json
from memtx.errors import UserError, check_known

WORDS = True  # the command takes words that are not flags
ROOT = Path(cli.__file__).parents[1]
TOKENIZERS = ("bytes", "bpe:", "pretrained:")
PLAIN = re.compile(r"[\w@%+=:,./~-]*")  # words that no shell changes. Others are left out, such as names of files with a $
FINISHED = re.compile(r"(?!--config=).*[^=:,./]")  # words after which a space is put
SCRIPTS = {
    "bash": """_memtx() {
    local IFS=$'\\n' line=${COMP_LINE:0:COMP_POINT}
    COMPREPLY=($("${COMP_WORDS[0]/#\\~/$HOME}" completion bash --line="$line" 2>/dev/null))
}
complete -o nospace -F _memtx memtx""",
    "zsh": """_memtx() {
    local -a found
    found=("${(@f)$("${words[1]/#\\~/$HOME}" completion zsh --line="${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    [[ -n $found ]] && compadd -Q -S '' -- $found
}
compdef _memtx memtx""",
    "fish": """complete -c memtx -f -a '(memtx completion fish --line=(commandline -cp | string collect) 2>/dev/null)'""",
}


def define(values: flags.FlagValues) -> None:
    """Define the flags of the command."""
    text = "Print the words that complete this `LINE`. The scripts use it."
    flags.DEFINE_string("line", None, text, flag_values=values)


def act(values, words: Sequence[str]) -> None:
    """Print the script of a shell, or the words. Raises UserError for an unknown shell."""
    if len(words) != 1:
        raise UserError(f"give one shell: {', '.join(SCRIPTS)}")
    check_known(shell := words[0], SCRIPTS, "shell")
    if (line := values["line"].value) is None:
        print(SCRIPTS[shell])
        return
    start = max(map(line.rpartition(" ")[2].rfind, "=:")) + 1 if shell == "bash" else 0  # bash completes the part after them
    for word in complete(line):
        print(word[start:] + " " * (shell != "fish" and bool(FINISHED.fullmatch(word))))


def complete(line: str) -> list[str]:
    """Return the words that may replace the last word of a command line."""
    *before, word = line.split(" ")
    command, *before = [part for part in before if part][1:] or [""]
    if not command:
        found: Iterable[str] = cli.COMMANDS
    elif command not in cli.COMMANDS:
        found = ()
    elif word.startswith("-") or not getattr(cli.module_of(command), "WORDS", False):
        found = _flags(command, word)
    else:
        found = _arguments(command, [part for part in before if not part.startswith("-")], word)
    return [each for each in dict.fromkeys(found) if each.startswith(word) and PLAIN.fullmatch(each)]


def _arguments(command: str, before: list[str], word: str) -> Iterable[str]:
    """Return the words that are not flags: verbs, shells and files."""
    if command == "completion":
        return () if before else SCRIPTS
    if command == "memory" and not before:
        from memtx.cli.memory import VERBS

        return VERBS
    return _paths(word)


def _flags(command: str, word: str) -> Iterable[str]:
    """Return the flags of a command, or one flag with its values."""
    values = cli.flags_of(command)
    name, equals, value = word.removeprefix("--").partition("=")
    if name.startswith("config.") and "config" in values:
        return (f"--{name}={each}" for each in _values_of_key(name)) if equals else _keys(word)
    if not equals:
        given = [f"--{flag.name}" + "=" * (not flag.boolean) for flag in map(values.__getitem__, values)]
        return [*given, "--help"] + ["--config."] * ("config" in values)
    return (f"--{name}={each}" for each in _values(command, values[name], value)) if name in values else ()


def _keys(word: str) -> Iterable[str]:
    """Return the keys of the config that start like the word, up to their next dot."""
    for key in _defaults():
        flag = f"--config.{key}="
        if flag.startswith(word):
            yield re.match(r"[^.=]*[.=]?", flag[len(word) :])[0].join((word, ""))  # pyright: ignore[reportOptionalSubscript]


def _defaults() -> dict[str, object]:
    """Return the default of each dotted key."""
    groups: dict = {name: value for name, value in to_json(Config()).items() if name not in ("memory", "own")}
    groups |= {f"memory.{row['name']}": row["settings"] for row in stored_catalog()}
    nested = {name: value for name, value in groups.items() if isinstance(value, dict)}
    single = {name: value for name, value in groups.items() if name not in nested}
    return single | {f"{group}.{key}": value for group, keys in nested.items() for key, value in keys.items()}


def _values_of_key(name: str) -> Iterable[str]:
    key = name.removeprefix("config.")
    known = {"data.corpus": _corpora, "data.tokenizer": lambda: TOKENIZERS}
    if key in known:
        return known[key]()
    return ("true", "false") if isinstance(_defaults().get(key), bool) else ()


def _values(command: str, flag: flags.Flag, value: str) -> Iterable[str]:
    """Return the values of a flag, as far as they are known."""
    if choices := getattr(flag.parser, "enum_values", None):
        return choices
    if flag.name == "config":
        return _configs(value)
    known = {"corpus": _corpora, "tokenizer": lambda: TOKENIZERS}
    if command == "list":
        known["memory"] = _memories
    if flag.name in known:
        return known[flag.name]()
    kind = re.findall("`([^`]*)`", flag.help)[:1]
    return _paths(value, folders=kind == ["DIR"]) if kind in (["DIR"], ["FILE"]) else ()


def _configs(value: str) -> Iterable[str]:
    """Return the installed configs, or one with its arguments and their values."""
    files = installed_configs()
    name, colon, given = value.partition(":")
    if not colon:
        return [*files, *(path for path in _paths(value) if path.endswith((".py", "/")))]
    before, comma, last = given.rpartition(",")
    start, (key, equals, _) = f"{name}:{before}{comma}", last.partition("=")
    if not equals:
        return (f"{start}{each}=" for each in _config_arguments(files.get(name, Path(name))))
    known = {"memory": _memories, "size": _sizes, "task": _tasks, "data": _corpora}
    return (f"{start}{key}={each}" for each in known.get(key, tuple)())


def _config_arguments(file: Path) -> list[str]:
    """Return the arguments of a config file: the keywords of its call of parse_arg."""
    if not file.is_file():
        return []
    calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return [word.arg for node in calls if getattr(node.func, "id", "") == "parse_arg" for word in node.keywords if word.arg]


def _memories() -> list[str]:
    return [row["name"] for row in stored_catalog()]


def _sizes() -> list[str]:
    return _names("runs/presets.py", "SIZES")


def _tasks() -> list[str]:
    return _names("tasks/__init__.py", "TASKS")


def _corpora() -> list[str]:
    named = [f"{name}:" if name == "textdir" else name for name in _names("data/corpora.py", "CORPORA")]
    return [*named, "tfds:", *(f"task:{task}" for task in _tasks())]


def _names(file: str, variable: str) -> list[str]:
    """Return the keys of a dict in a module of memtx, without the import, which would import JAX."""
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(value := getattr(node, "value", None), ast.Dict) and variable in [getattr(t, "id", "") for t in targets]:
            return [key.value for key in value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
    return []


def _paths(start: str, folders: bool = False) -> list[str]:
    """Return the files and folders, or the folders alone, whose names begin with `start`. Folders end with a slash."""
    path, name = Path(start), "" if start.endswith("/") or not start else Path(start).name
    parent = path if not name else path.parent
    prefix = start[: len(start) - len(name)]
    try:
        found = sorted(each for each in parent.expanduser().iterdir() if each.name.startswith(name))
    except OSError:
        return []
    shown = [each for each in found if not each.name.startswith(".") or name.startswith(".")]
    return [prefix + each.name + "/" * each.is_dir() for each in shown if each.is_dir() or not folders]
