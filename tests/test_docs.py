"""Every command and every block of code of the README, CONTRIBUTING and docs works as it is written."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from absl import flags

import memtx
from memtx import cli, reports
from memtx.cli import COMMANDS, module_of
from memtx.cli.options import parse
from memtx.sweep.spec import load_sweep
from tests import runs
from tests.models.test_pretrained import golden
from tests.models.test_pretrained import write as write_pretrained
from tests.test_loading import WORDS, save_tokenizer
from tests.test_programs import bert_folder, t5_folder  # noqa: F401
from tests.test_write import config as write_config

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
BLOCK = re.compile(r"^```(\w*)(?: title=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Commands that CI or other tests run: the README's two lines and those of a developer.
ELSEWHERE = ("python3 -m venv ", "pip install ", "pytest -n 2 ", "ruff ", "mkdocs ")


@dataclass(frozen=True)
class Block:
    page: str
    language: str  # "" for commands
    title: str  # the file that it is saved as, or ""
    text: str

    def __str__(self):
        return f"{self.page}: {self.title or self.text[:30]!r}"


TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
BLOCKS = [Block(page, *match.groups(default="")) for page, text in TEXTS.items() for match in BLOCK.finditer(text)]
LINES = [(block.page, line) for block in BLOCKS if not block.language for line in block.text.splitlines()]
SCRIPTS = [block for block in BLOCKS if block.language == "sh"]
FILES = {block.title: block.text for block in BLOCKS if block.title}


def block(page: str, number: int = 0) -> str:
    """The text of a page's n-th block of Python without a title."""
    return [b.text for b in BLOCKS if (b.page, b.language, b.title) == (page, "python", "")][number]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working folder with the files of docs/mechanisms.md, two sweeps and some data."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "sweep.py").write_text(block("docs/sweeps.md"))
    (tmp_path / "pairs.jsonl").write_text('{"source": "a b", "target": "b a"}\n' * 3)
    runs.write_texts(tmp_path / "texts")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_no_other_kinds_of_blocks():
    assert {b.language for b in BLOCKS} <= {"", "python", "toml", "sh"}
    assert all(line.startswith(("memtx ", "pytest --pyargs ", *ELSEWHERE)) for _, line in LINES)
    assert len(LINES) > 25


@pytest.mark.parametrize(("page", "line"), [(page, line) for page, line in LINES if line.startswith("memtx ")])
def test_a_command_has_the_flags_and_the_config_that_the_page_gives_it(folder, t5_folder, bert_folder, page, line):  # noqa: F811
    _, command, *rest = shlex.split(line.replace("t5-small", str(t5_folder)).replace("bert-base-uncased", str(bert_folder)))
    assert command in COMMANDS
    module, values = module_of(command), flags.FlagValues()
    module.define(values)
    parse(values, command, rest)


SRUN = f"""#!{sys.executable}
import os, subprocess, sys
assert sys.argv[1] == "memtx"
job = {{"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}}
tasks = [
    subprocess.Popen([sys.executable, "-m", "memtx.cli", *sys.argv[2:]], env=os.environ | job | dict.fromkeys(names, str(i)))
    for names in [("SLURM_PROCID", "SLURM_LOCALID")] for i in range(2)
]
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.mark.thorough
def test_the_job_of_the_page_on_clusters(folder):
    """The script runs with a stand-in for srun, which starts two processes with the variables of SLURM."""
    text = FILES["train.sbatch"].replace("size=base,data=books", "size=micro,data=textdir:texts,memory=window")
    Path("train.sbatch").write_text(
        text.replace(" --config.train.batch=128", " --config.train.steps=2 --config.eval.segments=2")
    )
    Path("srun").write_text(SRUN)
    Path("srun").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    environment |= {"PATH": f"{folder}:{os.environ['PATH']}", "SCRATCH": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "train.sbatch"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0
    assert all(line.startswith("step ") for line in done.stderr.splitlines())
    assert done.stdout.count("held-out text") == 1  # process 0 alone prints
    assert (folder / "runs" / "xl" / "checkpoints" / "2").is_dir()


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_the_commands_in_scripts_have_their_flags(script):
    ((command, given),) = re.findall(r"memtx (\w+) (--.*)", script.text)
    rest = shlex.split(given.removesuffix('"') if given.count('"') % 2 else given)
    module, values = module_of(command), flags.FlagValues()
    module.define(values)
    parse(values, command, rest)


def test_a_command_with_a_wrong_flag_would_be_found(folder):
    module, values = module_of("train"), flags.FlagValues()
    module.define(values)
    with pytest.raises(flags.UnrecognizedFlagError):
        parse(values, "train", ["--config=lm", "--wrokdir=x"])


def test_the_idea_of_the_readme():
    segments = np.arange(3 * 2 * 16).reshape(3, 2, 16)
    found = {"segments": segments}
    exec(block("README.md"), found)
    assert found["logits_BTV"].shape == (2, 16, 264)
    assert found["state"].position_B.tolist() == [48, 48]


@pytest.mark.thorough
def test_a_text_is_cut_anywhere():
    found = {}
    exec(block("docs/ideas.md"), found)
    assert found["error"] < 1e-4


@pytest.mark.thorough
def test_the_functions_that_the_commands_call(folder):
    values = runs.tiny(folder)
    exec(block("docs/use.md", 1), {"config": values, "workdir": folder / "run"})
    assert (folder / "run" / "metrics.jsonl").exists()


@pytest.mark.thorough
def test_texts_for_sources(folder, t5_folder, monkeypatch, capsys):  # noqa: F811
    load = memtx.load
    monkeypatch.setattr(memtx, "load", lambda name, **changes: load(t5_folder if name == "t5-small" else name, **changes))
    found = {"memtx": memtx, "text": "He counted ships. " * 200}
    exec(block("docs/use.md"), found)
    assert len(found["done"].texts) == 2
    assert found["done"].cut == [1]
    Path("pairs.jsonl").write_text("".join(f'{{"source": "a{i}", "target": "{i}a"}}\n' for i in range(60)))
    memtx.train(write_config(folder / "pairs.jsonl"), "runs/pairs", say=lambda *_: None)
    capsys.readouterr()
    Path("letter.txt").write_text("ab\n\nb\n")
    Path("report.txt").write_text("ab")
    Path("questions.jsonl").write_text('{"question": "a", "context": "b", "id": 7}\n')
    lines = [line for page, line in LINES if page == "docs/use.md" and line.split()[1] in ("translate", "summarize", "ask")]
    assert [line.split()[1] for line in lines] == ["translate", "summarize", "ask", "ask"]
    for line in lines:
        cli.main(shlex.split(line.replace("t5-small", str(t5_folder)))[1:])
    assert Path("letter.es.txt").read_text().count("\n") == 3
    assert json.loads(Path("answers.jsonl").read_text()).keys() == {"question", "context", "id", "prediction"}
    assert capsys.readouterr().out.count("\n") >= 2


@pytest.mark.thorough
def test_answers(folder, bert_folder, capsys):  # noqa: F811
    row = {"context": "They counted ships. The lighthouse came in 1984.", "question": "When?", "answer": "1984"}
    rows = [row | {"context": f"{row['context']} {word}"} for word in ("after", "that", "year", "keeper")]
    Path("questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("report.txt").write_text(row["context"] * 30)
    train, ask = [line for page, line in LINES if page == "docs/pretrained.md" and "runs/answers" in line]
    train = train.replace("bert-base-uncased", str(bert_folder)).replace("tokens=384", "tokens=48")
    cli.main([*shlex.split(train)[1:], "--config.train.steps=2", "--config.eval.examples=1"])
    assert "exact match" in capsys.readouterr().out
    cli.main(["data", shlex.split(train)[2]])
    assert "2 labels" in (shown := capsys.readouterr().out)
    assert shown.rstrip().endswith("labels: 1984")
    cli.main(shlex.split(ask)[1:])
    found = {"memtx": memtx, "text": Path("report.txt").read_text()}
    exec(block("docs/pretrained.md", 2), found)
    assert found["text"][found["found"].start : found["found"].end] == found["found"].text
    assert capsys.readouterr().out.strip() == " ".join(found["found"].text.split())
    cli.main(["ask", "--workdir=runs/answers", "questions.jsonl"])
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(line["prediction"] in line["context"] for line in said)
    with pytest.raises(SystemExit):
        cli.main(["ask", "--workdir=runs/answers", "When?", "report.txt", "--prefix=x"])
    assert "it takes no --prefix" in capsys.readouterr().err


@pytest.mark.thorough
def test_an_explanation(folder):
    memtx.train(runs.tiny(folder, train={"steps": 2}), folder / "run")
    found = {"workdir": folder / "run"}
    exec(block("docs/explain.md"), found)
    assert Path("page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    exec(block("docs/explain.md", 1), found)
    names = [source.name for source in found["explanation"].sources]
    assert {*names} == {"this text", "hamlet.txt", "romeo.txt"}
    assert found["explanation"].effect(names.index("hamlet.txt")) != 0
    exec(block("docs/explain.md", 2), found)
    assert [source.name for source in found["explanation"].sources] == ["this text", "notes"]


def test_the_numbers_of_the_page_on_metrics():
    first, *lines = filter(None, block("docs/metrics.md").splitlines())
    found = {}
    exec(first, found)
    for line in lines:
        call, said = line.split("  # ")
        assert eval(call, found) == pytest.approx(eval(said), abs=0.006), line


@pytest.mark.thorough
def test_libraries(folder, bert_folder, monkeypatch, capsys):  # noqa: F811
    load = memtx.load
    monkeypatch.setattr(
        "memtx.library.library.load", lambda name, **given: load(bert_folder if name == "minilm" else name, **given)
    )
    memtx.train(runs.tiny(folder, train={"steps": 2}), folder / "run")
    found = {"workdir": folder / "run"}
    for number in range(4):
        exec(block("docs/library.md", number), found)
    assert [document.key for document in found["library"].documents] == [("alice", "fruit.txt"), ("bob", "report.txt")]
    assert {document.name for document in found["copy"].documents} == {"fruit.txt", "report.txt"}  # after the merge
    assert "The tower was built in 1700." not in capsys.readouterr().out  # of bob


def test_the_commands_of_a_library(folder, bert_folder, monkeypatch, capsys):  # noqa: F811
    load = memtx.load
    monkeypatch.setattr(
        "memtx.library.library.load", lambda name, **given: load(bert_folder if name == "minilm" else name, **given)
    )
    (folder / "papers").mkdir()
    (folder / "papers" / "fruit.txt").write_text("Alice likes green apples.")
    (folder / "report.txt").write_text("The tower was built in 1889. It is made of iron.")
    lines = [line for page, line in LINES if page == "docs/library.md" and line.startswith("memtx memory")]
    assert [line.split()[2] for line in lines] == [
        *("read", "recall", "show", "forget", "verify"),
        *("export", "import", "diff", "fork", "merge", "resize"),
    ]
    said = {}
    for line in lines:
        line, _, file = line.partition(" > ")
        cli.main(shlex.split(line)[1:])
        said[line.split()[2]] = capsys.readouterr().out
        if file:
            (folder / file).write_text(said[line.split()[2]])
    assert "read 2 documents into" in said["read"]
    assert "The tower was built in 1889." in said["recall"]
    assert "alice" in said["show"]
    assert said["verify"].startswith("true: ")
    assert said["diff"] == "the same documents\n"
    assert said["merge"] == "added 0 documents\n"
    assert said["resize"] == "all entries fit\n"


@pytest.mark.thorough
def test_a_conversation(folder, bert_folder, monkeypatch, capsys):  # noqa: F811
    load = memtx.load
    memtx.train(runs.tiny(folder, train={"steps": 2}), folder / "run")
    monkeypatch.setattr("memtx.library.library.load", lambda name, **given: load(bert_folder, **given))
    monkeypatch.setattr("memtx.chat.conversation.load", lambda name: load(folder / "run"))
    found = {}
    exec(block("docs/chat.md"), found)
    assert "report.txt: The tower was built in 1889." in capsys.readouterr().out
    assert [document.text for document in found["chat"].library.documents] == ["My sister Ana lives in Lisbon."]
    assert found["chat"].library.verify(found["certificate"])


@pytest.mark.thorough
def test_pretrained_models(t5_folder, bert_folder, monkeypatch):  # noqa: F811
    folders, load = {"t5-small": t5_folder, "bert-base-uncased": bert_folder, "minilm": bert_folder}, memtx.load
    monkeypatch.setattr(memtx, "load", lambda name, **changes: load(folders[name], **changes))
    found = {"memtx": memtx, "texts": ["Hello, my dog is cute"]}
    *rest, embed = block("docs/pretrained.md").strip().splitlines()
    exec("\n".join(rest), found)
    assert found["logits"].shape == (1, 2)
    assert eval(embed, found).shape == (1, 16)


@pytest.mark.thorough
def test_a_memory_in_a_pretrained_model(tmp_path):
    backbone = write_pretrained(tmp_path / "smollm2", golden("smollm2"))
    save_tokenizer(backbone, WORDS)
    text, found = block("docs/pretrained.md", 1), {"memtx": memtx}
    for page, here in (("arange(90)", "arange(30)"), ('layers="20"', 'layers="0"'), ('"smollm2"', repr(str(backbone)))):
        text = text.replace(page, here)
    exec(text, found)
    assert abs(found["with_memory"] - found["without"]).max() < 1e-5
    assert abs(found["without"]).max() > 1e-3
    assert re.fullmatch(found["new"], "body/bodies/0/layers/0/branches/0/memories/0/gate")


def test_a_sweep_and_its_report(folder):
    (folder / "sweep.py").write_text(block("docs/sweeps.md") + block("docs/sweeps.md", 1))
    assert len(load_sweep("sweep.py").runs) == 9
    study = reports.load_study(folder / "sweep.py")
    assert {*study.report.columns} == {"accuracy", "far"}
    assert study.claims is not None


def test_the_entry_point_is_valid():
    [text] = [b.text for b in BLOCKS if b.language == "toml"]
    assert tomllib.loads(text)["project"]["entry-points"]["memtx.memories"]


def shell(line: str, *more: str) -> str:
    """Run a line of a page and return its output."""
    program, *rest = shlex.split(line)
    module = {"memtx": "memtx.cli", "pytest": "pytest"}[program]
    done = subprocess.run([sys.executable, "-m", module, *rest, *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.thorough
def test_a_memory_of_ones_own_passes_the_contract(folder):
    said = shell(next(line for _, line in LINES if "--golden" in line), "-p", "no:cacheprovider")
    assert "failed" not in said
    assert re.search(r"C1 .*passed", said), said


@pytest.mark.thorough
def test_a_memory_of_ones_own_works_in_every_command(folder):
    lines = [line for page, line in LINES if page == "docs/mechanisms.md" and line.startswith("memtx ")]
    assert [line.split()[1] for line in lines] == ["train", "eval", "generate", "list", "sweep", "report"]
    Path("my_sweep.py").write_text(FILES["my_sweep.py"].replace('"train.steps": 300', '"train.steps": 2'))
    small = ["--config.data.corpus=textdir:texts", "--config.train.steps=2", "--config.eval.segments=2"]
    more = {"train": [*small, f"--cache={folder / 'cache'}"], "generate": ["--max_tokens=4"]}
    said = {line.split()[1]: shell(line, *more.get(line.split()[1], ())) for line in lines}
    assert "bits per byte" in said["eval"]
    assert "The mean of all projected hidden states so far" in said["list"]
    assert "4 finished" in said["sweep"]
    assert "my_memory" in said["report"]
    assert "my_memory.py" not in said["report"]  # rows have the registered name


def test_links_lead_to_files():
    for page, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if not target.startswith("http"):
                assert os.path.exists(ROOT / Path(page).parent / target), f"{page} links to {target}"
