"""Completion of commands, flags and values, in Python and in real shells."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memtx import cli
from memtx.cli import COMMANDS, completion
from memtx.cli.completion import complete
from memtx.cli.memory import VERBS
from memtx.data.corpora import CORPORA
from memtx.memory import MEMORIES
from memtx.runs.presets import SIZES
from memtx.tasks import TASKS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder with a program memtx, a folder and two files."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "read.txt").write_text("")
    (tmp_path / ".hidden").write_text("")
    (tmp_path / "r;$(touch x)`id`*.txt").write_text("")  # a shell would run it
    program = tmp_path / "bin" / "memtx"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m memtx.cli "$@"\n')
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("memtx ", list(COMMANDS)),
        ("memtx tra", ["train", "translate"]),
        ("memtx  train  --work", ["--workdir="]),
        ("memtx nosuch ", []),
        ("memtx train --config", ["--config=", "--config."]),
        ("memtx train --config=se", ["--config=seq2seq"]),
        ("memtx train --config=lm:", ["--config=lm:memory=", "--config=lm:size=", "--config=lm:data="]),
        ("memtx train --config=lm:memory=xl,si", ["--config=lm:memory=xl,size="]),
        ("memtx train --config=lm:memory=xl,size=t", ["--config=lm:memory=xl,size=tiny"]),
        ("memtx train --config.tr", ["--config.train."]),
        ("memtx train --config.train.st", ["--config.train.steps="]),
        ("memtx train --config.se", ["--config.seed="]),
        ("memtx train --config.memory.x", ["--config.memory.xl."]),
        ("memtx plan --config.model.remat=", ["--config.model.remat=true", "--config.model.remat=false"]),
        ("memtx train --config.data.corpus=sp", ["--config.data.corpus=speeches"]),
        ("memtx data --tokenizer=bp", ["--tokenizer=bpe:"]),
        ("memtx eval --split=t", ["--split=test", "--split=train"]),
        ("memtx list ", ["--format=", "--memory=", "--cache=", "--help"]),
        ("memtx list --memory=xl", ["--memory=xl"]),
        ("memtx report --workdir=r", ["--workdir=runs/"]),
        ("memtx report --sweep=r", ["--sweep=read.txt", "--sweep=runs/"]),
        ("memtx memory ", list(VERBS)),
        ("memtx memory --memory=notes read r", ["read.txt", "runs/"]),
        ("memtx summarize ./r", ["./read.txt", "./runs/"]),
        ("memtx completion ", ["bash", "zsh", "fish"]),
        ("memtx report --config.", []),
    ],
)
def test_words(folder, line, words):
    assert complete(line) == words


def test_the_values_are_those_of_the_registries(folder):
    assert {*completion._memories()} == {*MEMORIES}
    assert completion._sizes() == [*SIZES]
    assert completion._tasks() == [*TASKS]
    assert {name.rstrip(":") for name in completion._corpora()} == {*CORPORA, "tfds", *(f"task:{task}" for task in TASKS)}


def test_every_config_has_its_arguments():
    without = {"quickstart"}
    for name, file in completion.installed_configs().items():
        assert bool(completion._config_arguments(file)) == (name not in without), name


def test_completion_does_not_import_jax(folder):
    lines = [f"memtx {command} --" for command in COMMANDS] + ["memtx train --config=lm:memory=", "memtx data --corpus="]
    script = f"""
import sys
from memtx.cli.completion import complete
assert all(map(complete, {lines}))
assert "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def reply(line: str) -> list[str]:
    """The words that bash would show, with a part before them that it has already."""
    script = 'source <(memtx completion bash); COMP_WORDS=(memtx); _memtx; printf "%s\\n" "${COMPREPLY[@]}"'
    environment = os.environ | {"COMP_LINE": line + " later words", "COMP_POINT": str(len(line))}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.splitlines()


def test_bash_completes_the_part_after_its_word_breaks(folder):
    assert reply("memtx tra") == ["train ", "translate "]
    assert reply("memtx train --config=lm:memory=xl,size=t") == ["tiny"]
    assert reply("memtx train --config.train.st") == ["--config.train.steps="]
    assert reply("memtx report --workdir=r") == ["runs/"]


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh(folder):
    script = (
        "compdef() { }; compadd() { print -l -- ${@:5} }; source <(memtx completion zsh); "
        "words=(memtx train --config=lm:mem); CURRENT=3; PREFIX=--config=lm:mem; _memtx"
    )
    done = subprocess.run(["zsh", "-f", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "--config=lm:memory=\n"


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish(folder):
    script = "memtx completion fish | source; complete -C 'memtx train --config=lm:mem'"
    done = subprocess.run(["fish", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "--config=lm:memory=\n"


@pytest.mark.parametrize("words", [[], ["bash", "zsh"], ["tcsh"]])
def test_mistakes_are_one_line(capsys, words):
    with pytest.raises(SystemExit) as stop:
        cli.main(["completion", *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "bash" in error
    assert error.count("\n") == 1
