"""The command line works from a shell, and every mistake ends with one line and status 2."""

import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import flags
from rich.console import Console

import memtx
from memtx import cli
from memtx.cli.catalog import FILE, GROUP, compute_catalog
from memtx.cli.list import table
from memtx.cli.options import print_text
from memtx.cli.train import _write_sample
from memtx.memory import MEMORIES, registry
from tests.runs import write_texts

ROOT = Path(__file__).parents[1]
SWEEP = "experiments/knn_lm/sweep.py"


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def fails(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(argv))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("memtx: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["tarin"], "did you mean train"),
        (["train"], "--config is missing"),
        (["train", "--config=configs/lm.py"], "--workdir is missing"),
        (["train", "--config=configs/none.py", "--workdir=W"], "no config file"),
        (["train", "--config=configs/lm.py:memory=nothing", "--workdir=W"], "known: FILE.py:CLASS, armt"),
        (["train", "--config=configs/lm.py:memory=fulll", "--workdir=W"], "did you mean full"),
        (["train", "--config=configs/lm.py:size=huge", "--workdir=W"], "known: 1b, base"),
        (["train", "--config=configs/lm.py", "--config.train.stepz=1", "--workdir=W"], "did you mean steps"),
        (["train", "--config=configs/lm.py", "--config.trian.steps=1", "--workdir=W"], "did you mean train"),
        (["train", "--config=configs/lm.py", "--config.train.steps=x", "--workdir=W"], "invalid literal"),
        (["train", "--config=configs/lm.py", "--config.model.num_heads=3", "--workdir=W"], "does not divide"),
        (["train", "--config=configs/lm.py:data=boks", "--workdir=W"], "did you mean books"),
        (["train", "--config=configs/lm.py:data=textdir:/none", "--workdir=W"], "not a folder"),
        (["train", "--config=configs/lm.py", "--config.mesh.model=3", "--workdir=W"], "mesh.model"),
        (["train", "--config=configs/lm.py", "--confg=1", "--workdir=W"], "Unknown command line flag"),
        (["train", "configs/lm.py"], "unexpected argument"),
        (
            ["train", "--config=configs/lm.py", "--config.model.stacks=(('window',),1)", "--workdir=W"],
            "model.stacks must be like",
        ),
        (["train", "--config=configs/lm.py", "--config.model.stacks[0]=5", "--workdir=W"], "unknown key in model 'stacks[0]'"),
        (["train", "--config=configs/lm.py", "--config.seed.x=5", "--workdir=W"], "seed is not a group of keys"),
        (["train", "--config=configs/lm.py", "--config.=5", "--workdir=W"], "unknown config key ''"),
        (["train", "--config=configs/lm.py", "--config.optim.lr=-1", "--workdir=W"], "optim.lr must be at least 0"),
        (["train", "--config=configs/lm.py:data=textdir:a\nb", "--workdir=W"], r"a\nb is not a folder"),
        (["eval", "--workdir=W"], "not the workdir of a run"),
        (
            ["memory", "show", "--memory=gs://bucket/notes"],
            "gs://bucket/notes is the address of a bucket",
        ),
        (["eval", "--workdir=W", "--split=tset"], "split"),
        (["eval", "--workdir=W", "--config=configs/lm.py"], "not both"),
        (["eval", "--config=configs/lm.py", "--task=pairs=3"], "--task for tasks"),
        (["generate", "--workdir=W"], "not the workdir of a run"),
        (["generate", "--workdir=W", "--temperature=-1"], "temperature must be"),
        (["generate", "--workdir=W", "--temperature=nan"], "temperature must be"),
        (["generate", "--workdir=W", "--seed=-1"], "seed"),
        (["generate", "--workdir=W", "--seed=4294967296"], "seed"),
        (["generate", "--workdir=W", "--max_tokens=0"], "max_tokens"),
        (["plan", "--config=configs/lm.py", "--match=parms=1"], "did you mean params"),
        (["sweep"], "--sweep is missing"),
        (["sweep", "--sweep=none.py", "--workdir=W"], "no sweep file"),
        (["sweep", "--sweep=configs/lm.py", "--workdir=W"], "not a sweep file: it needs"),
        (["sweep", f"--sweep={SWEEP}"], "--workdir is missing"),
        (["sweep", f"--sweep={SWEEP}", "--workdir=W", "--only=none"], "no run of"),
        (["sweep", f"--sweep={SWEEP}", "--workdir=W", "--run=none"], "unknown run"),
        (["sweep", f"--sweep={SWEEP}", "--workdir=W", "--executor=slrum"], "did you mean slurm"),
        (["sweep", f"--sweep={SWEEP}", "--workdir=W", "--slurm=partition=gpu"], "--slurm is for --executor=slurm"),
        (["sweep", f"--sweep={SWEEP}", "--workdir=W", "--parallel=0"], "parallel"),
        (["generate", "--workdir=W", "--beams=0"], "beams"),
        (["data", "--corpus=pycodes"], "did you mean pycode"),
        (["data", "--corpus=pycode", "--tokenizer=words"], "unknown tokenizer"),
    ],
)
def test_mistakes_end_with_one_line_and_leave_nothing_behind(argv, message, capsys, tmp_path):
    workdir = tmp_path / "run"
    assert message in fails(capsys, *(arg.replace("=W", f"={workdir}") for arg in argv))
    assert not workdir.exists()


def test_a_folder_with_other_things_is_not_overwritten(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    texts = write_texts(tmp_path / "texts")
    error = fails(
        capsys,
        "train",
        f"--config=configs/lm.py:data=textdir:{texts}",
        f"--config.data.cache={tmp_path / 'c'}",
        f"--workdir={tmp_path}",
    )
    assert "choose another workdir" in error
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_the_overview_names_every_command(capsys):
    cli.main([])
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[1:-1]] == list(cli.COMMANDS)
    assert shown.count("\n") == len(cli.COMMANDS) + 2
    cli.main(["--help"])
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_each_command_has_its_own_help(command, capsys):
    values = flags.FlagValues()
    importlib.import_module(f"memtx.cli.{command}").define(values)
    cli.main([command, "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"memtx {command}: ")
    assert re.findall(r"^  --(\w+)", shown, re.MULTILINE) == [*values, "cache"]
    assert all(len(values[name].help) > 8 for name in values)
    assert max(map(len, shown.splitlines())) <= 128
    cli.main([command, "--workdir=W", "-h"])
    assert capsys.readouterr().out == shown


def test_help_shows_placeholders_choices_and_defaults(capsys):
    cli.main(["generate", "--help"])
    shown = capsys.readouterr().out
    assert "  --workdir=DIR             The folder DIR of a trained run." in shown
    assert "  --temperature=X           Sample at this temperature. 0 takes the likeliest token. Default: 0.8.\n" in shown
    cli.main(["eval", "--help"])
    shown = capsys.readouterr().out
    assert "  --format=table|json       How to print the result. Default: table.\n" in shown
    assert "--beams" not in shown


QUICK = """
import sys
import warnings
from memtx import cli

for argv in [], ["--help"], *([name, "--help"] for name in cli.COMMANDS), ["list"], ["list", "--memory=xl"]:
    cli.main(argv)
heavy = {"jax", "flax", "matplotlib", "orbax"} & {*sys.modules}
assert not heavy, heavy
"""


def test_help_and_list_need_neither_jax_nor_unicode():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", QUICK]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "memtx train: Train a model" in done.stdout
    assert done.stdout.isascii()


def test_list_names_every_memory(capsys):
    cli.main(["list", "--format=json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(MEMORIES)
    assert all(row["state_bytes_per_stream"] > 0 and row["flops_per_token"] > 0 for row in rows)
    Console(width=80).print(table(rows))  # what `memtx list` prints
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in MEMORIES)


@pytest.mark.thorough
def test_the_stored_catalog_is_up_to_date():
    assert FILE.read_text(encoding="utf-8") == compute_catalog(), "run python -m memtx.cli.catalog"


def test_list_computes_the_costs_of_mechanisms_from_packages(monkeypatch, capsys):
    assert GROUP == registry.GROUP
    entry = importlib.metadata.EntryPoint("theirs", "memtx.memory.window:Window", GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry] if group == GROUP else [])
    monkeypatch.setitem(MEMORIES, "theirs", MEMORIES["window"])
    monkeypatch.setitem(MEMORIES.origins, "theirs", "package theirs 1.0")
    cli.main(["list", "--format=json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(MEMORIES)
    assert rows["theirs"] == rows["window"] | {"name": "theirs"}
    cli.main(["list", "--memory=theirs"])
    assert "--config.memory.theirs.window=" in capsys.readouterr().out


def test_list_shows_a_mechanism_with_its_settings_and_card(capsys):
    cli.main(["list", "--memory=xl"])
    shown = capsys.readouterr().out
    assert "--config.memory.xl.segment=" in shown
    assert "1901.02860" in shown
    assert (
        "reference: kimiyoung/transformer-xl 44781ed" in shown
    )  # the implementation of the comparison, and the largest errors
    assert "gradient: 4.8e-7" in shown
    assert "did you mean xl" in fails(capsys, "list", "--memory=xxl")
    assert "window.py names no class; give window.py:ClassName" in fails(capsys, "list", "--memory=window.py")
    cli.main(["list", "--memory=xl", "--format=json"])
    assert json.loads(capsys.readouterr().out)["state_bytes_per_stream"] == 524324


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("memtx.cli.list.act", lambda values: warnings.warn("the file has\x1b changed", stacklevel=1))
    cli.main(["list"])
    assert capsys.readouterr().err == "memtx: the file has\\x1b changed\n"


def test_a_terminal_gets_no_control_characters(capsys, monkeypatch):
    print_text("a\x1b[2J\tb\n")
    assert capsys.readouterr().out == "a\x1b[2J\tb\n"  # control: a file gets the text as it is
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_text("a\x1b[2J\tb\n")
    assert capsys.readouterr().out == "a\\x1b[2J\tb\n"


def test_a_sample_that_ends_at_once_says_so(capsys, monkeypatch):
    config = memtx.get_config(model={"stacks": ((("window",), 1),)})
    monkeypatch.setattr(sys.modules["memtx.generate"], "generate", lambda *_, **__: iter(()))
    _write_sample(SimpleNamespace(lm=SimpleNamespace(most_tokens=None), params=None, tokenizer=None), config, Console())
    assert "(the text ended at once)" in capsys.readouterr().out


def test_a_closed_pipe_ends_a_command_without_a_word():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "memtx.cli", "list", "--memory=xl"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


HOMELESS = """
import contextlib, io, json, pwd, sys
from memtx import cli

def getpwuid(uid):
    raise KeyError(uid)

pwd.getpwuid = getpwuid
for argv in json.loads(sys.argv[1]):
    status, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(argv)
        except SystemExit as stop:
            status = stop.code
    print(json.dumps([status, out.getvalue(), err.getvalue()]))
"""


def test_a_user_without_a_home_folder_can_name_a_cache(tmp_path):
    corpus = f"--corpus=textdir:{write_texts(tmp_path / 'texts')}"
    config = f"--config=configs/lm.py:size=micro,data=textdir:{tmp_path / 'texts'}"
    fine = [
        ["list", "--memory=xl"],
        ["data", corpus, f"--cache={tmp_path / 'a'}"],
        ["plan", config, f"--config.data.cache={tmp_path / 'b'}"],
        ["plan", config, f"--cache={tmp_path / 'c'}"],
    ]
    refused = [["data", corpus], ["plan", config], ["data", "--corpus=textdir:~/texts", f"--cache={tmp_path / 'd'}"]]
    command = [sys.executable, "-c", HOMELESS, json.dumps([*fine, *refused])]
    environment = {"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu", "MPLCONFIGDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [status for status, *_ in found] == [0] * len(fine) + [2] * len(refused), found
    assert [error.count("\n") for _, _, error in found[len(fine) :]] == [1, 1, 1]
    assert "--cache=DIR, data.cache or MEMTX_CACHE" in found[-2][2]
    assert "no home folder is known for '~/texts'" in found[-1][2]
    assert all((tmp_path / name / "corpora").exists() for name in "abc")


def test_the_variable_names_the_default_cache_and_an_option_another(tmp_path, monkeypatch, capsys):
    corpus = f"--corpus=textdir:{write_texts(tmp_path / 'texts')}"
    monkeypatch.setenv("MEMTX_CACHE", str(tmp_path / "default"))
    cli.main(["data", corpus])
    assert str(tmp_path / "default" / "corpora") in capsys.readouterr().out
    cli.main(["data", corpus, f"--cache={tmp_path / 'other'}"])
    assert str(tmp_path / "other" / "corpora") in capsys.readouterr().out
    assert os.environ["MEMTX_CACHE"] == str(tmp_path / "default")


def test_train_eval_and_generate_from_a_shell(tmp_path, capsys, monkeypatch):
    texts, workdir = write_texts(tmp_path / "texts"), tmp_path / "run"

    def here(*argv):  # the same in this process, which has imported all that it needs
        cli.main(list(argv))
        return capsys.readouterr().out

    def memtx(*argv, **environment):
        command, env = [sys.executable, "-m", "memtx.cli", *argv], os.environ | environment
        out = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=env)
        assert out.returncode == 0, out.stderr
        return out.stdout

    shown = memtx(
        "train",
        f"--config=configs/lm.py:memory=window,data=textdir:{texts}",
        f"--workdir={workdir}",
        f"--config.data.cache={tmp_path / 'cache'}",
        "--config.model.width=16",
        "--config.model.ff_dim=32",
        "--config.model.stacks=((('window',),1),)",
        "--config.data.segment=16",
        "--config.train.steps=3",
        "--config.train.batch=2",
        "--config.eval.batch=2",
        "--config.eval.segments=3",
        "--config.eval.sample_tokens=5",
    )
    assert "wiped every segment" in shown
    assert f"sample\n{(workdir / 'sample.txt').read_text()}\n" in shown
    assert {"config.json", "metrics.jsonl", "checkpoints", "tensorboard", "tokenizer.json", "loss_by_position.png"} <= {
        path.name for path in workdir.iterdir()
    }
    evaluate = ["eval", f"--workdir={workdir}", "--split=test", "--segments=2", "--format=json"]
    evaluation = json.loads(here(*evaluate))
    assert evaluation["step"] == 3
    assert evaluation["eval/bits_per_byte"] > 0
    shutil.rmtree(tmp_path / "cache")
    assert json.loads(here(*evaluate, f"--cache={tmp_path / 'another'}")) == evaluation
    assert (tmp_path / "another").exists()
    assert not (tmp_path / "cache").exists()
    greedy = ["generate", f"--workdir={workdir}", "--prompt=é中", "--max_tokens=4", "--temperature=0"]
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", io.TextIOWrapper(terminal := io.BytesIO(), "ascii"))
        cli.main(greedy)
        text = terminal.getvalue().decode("ascii")
    assert text.startswith(r"\xe9\u4e2d")
    assert memtx(*greedy, LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0") == text
    beams = here("generate", f"--workdir={workdir}", "--prompt=The", "--max_tokens=2", "--beams=2", "--stop=x", "--stop=y")
    assert beams.startswith("The")
