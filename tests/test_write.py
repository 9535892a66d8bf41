"""Texts for sources: in batches as one by one, from files into files, and one line for every bad input."""

from __future__ import annotations

import errno
import io
import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

import memtx
from memtx import cli
from memtx.data.sentences import pack
from memtx.errors import UserError
from memtx.files.atomic import write_atomic
from memtx.generate import chat, complete_in_batches
from memtx.pretrained import llama, t5
from memtx.pretrained.load import prefixes
from memtx.runs.write import context_of, write
from tests import runs
from tests.test_cli import fails
from tests.test_programs import bert_folder, folder, t5_folder  # noqa: F401

SOURCES = ["question: how many ships? context: In 1984 he counted 1207 of them.", "ships", "He wrote of them. " * 4, "1984"]
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% endfor %}<s>assistant: "


def config(file, **groups):
    """A micro encoder-decoder that reads and writes bytes."""
    values = {
        "model": {"stacks": [[["full/cross/mlp"], 1]], "encoder": [[["bidirectional"], 1]], "position": "t5"},
        "memory": {"full": {"capacity": 8}, "cross": {"capacity": 40}},
        "data": {"corpus": "task:pairs", "task": {"path": str(file)}, "segment": 6},
        "train": {"steps": 2, "batch": 4, "segments": 1},
        "eval": {"every": 0, "batch": 1, "examples": 1, "generate": 1},
    }
    values["model"] |= {"width": 16, "num_heads": 2, "ff_dim": 32}
    return memtx.get_config(**values | groups)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """A run on pairs."""
    at = tmp_path_factory.mktemp("write")
    (at / "pairs.jsonl").write_text("".join(json.dumps({"source": f"a{i}", "target": f"{i}a"}) + "\n" for i in range(60)))
    memtx.train(config(at / "pairs.jsonl"), at / "run", say=lambda *_: None)
    return at / "run"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    at = tmp_path_factory.mktemp("model") / "t5"
    return memtx.load(folder(at, t5, "t5", feed_forward_proj="gated-gelu", tie_word_embeddings=False, **sizes), context=64)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """A llama with a chat template that keeps 64 tokens."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"max_position_embeddings": 512}
    at = folder(tmp_path_factory.mktemp("chat") / "llama", llama, "llama", model_type="llama", **sizes)
    settings = json.loads((at / "tokenizer_config.json").read_text())
    (at / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    return at


# --- the function -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        *(pytest.param(more, marks=pytest.mark.thorough) for more in ({}, {"beams": 2})),
        {"sampling": memtx.Sampling(temperature=1.0), "seed": 7},
    ],
)
def test_a_batch_writes_as_one_source_at_a_time(model, options):
    together = write(model, SOURCES, batch=3, max_tokens=5, **options).texts
    first = options.get("seed", 0)
    seeds = [{"seed": first + i} if "seed" in options else {} for i in range(len(SOURCES))]
    assert together == [
        write(model, [text], max_tokens=5, **options | seed).texts[0] for text, seed in zip(SOURCES, seeds, strict=True)
    ]
    assert len({*together}) == len(SOURCES)  # control: it reads them
    plain = memtx.complete(
        model.lm, model.params, model.tokenizer, [""] * 4, source=SOURCES, max_tokens=5, **{"sampling": memtx.GREEDY} | options
    )
    assert plain.texts == together


def test_seeds_belong_to_sources_and_a_state_is_refused(model):
    draw = partial(write, model, max_tokens=5, sampling=memtx.Sampling(temperature=1.0))
    alone = [draw([text], seed=seed).texts[0] for text, seed in zip(SOURCES, (9, 3, 7, 3), strict=True)]
    assert draw(SOURCES, seed=[9, 3, 7, 3], batch=3).texts == alone
    long = "In 1984 he counted 1207 of them. " * 8  # its parts take no seeds from the next source
    assert draw([long, "1984"], seed=2, long="split").texts[1] == draw(["1984"], seed=3).texts[0]
    assert draw(["1984"], seed=4).texts != draw(["1984"], seed=3).texts  # control: the seed matters
    with pytest.raises(UserError, match="2 seeds for 4 sources"):
        draw(SOURCES, seed=[1, 2])
    with pytest.raises(UserError, match="seed"):
        draw(SOURCES, seed=-1)
    with pytest.raises(UserError, match=r"state is not supported here.* call memtx\.complete"):
        draw(SOURCES, state=model.state)


def test_progress_and_texts_that_reach_the_limit_are_reported(model):
    steps = []
    done = write(model, SOURCES, batch=3, max_tokens=2, progress=lambda *numbers: steps.append(numbers))
    assert steps == [(3, 4), (4, 4)]
    assert done.unfinished == [0, 1, 2, 3]


def test_a_text_that_ends_is_not_unfinished(model, monkeypatch):
    tokens = [np.array([5, model.tokenizer.ending]), np.array([5, 5])]
    done = SimpleNamespace(texts=["a", "b"], tokens=tokens)
    monkeypatch.setattr(sys.modules["memtx.generate.batches"], "complete", lambda *_, **__: done)
    found = complete_in_batches(model.lm, model.params, model.tokenizer, ["", ""], batch=2)
    assert found.ended == [True, False]


def test_long_sources_are_an_error_or_are_cut_or_split(model):
    long = "In 1984 he counted 1207 of them. " * 8
    options = {"max_tokens": 4, "prefix": "question: "}
    with pytest.raises(UserError, match=r"source 2 has \d+ tokens, but the model has room for 64: .* load .* context="):
        write(model, ["ships", long], **options)
    done = write(model, ["ships", long], long="cut", **options)
    assert (done.cut, done.split) == ([1], [])
    ids = model.tokenizer.frame("question: " + long)[0]
    assert len(ids) > 64
    ask = partial(memtx.complete, model.lm, model.params, model.tokenizer, [""], sampling=memtx.GREEDY, max_tokens=4)
    assert done.texts[1] == ask(source=[np.append(ids[:63], ids[-1])]).texts[0]
    done = write(model, ["ships", long], long="split", **options)
    assert (done.cut, done.split) == ([], [1])
    fits = lambda text: len(model.tokenizer.frame("question: " + text)[0]) <= 64  # noqa: E731
    parts = pack(long, fits)
    assert len(parts) > 1
    assert " ".join(parts) == long.strip()
    assert done.texts[1] == " ".join(text.strip() for text in write(model, parts, **options).texts)
    with pytest.raises(UserError, match="no room for a source"):
        write(model, ["ships"], prefix=long)
    with pytest.raises(UserError, match="did you mean cut"):
        write(model, ["ships"], long="cuts")
    assert write(model, []).texts == []


def test_parts_are_whole_sentences_and_nothing_is_lost():
    text = "One two. Three four five! " + "x" * 30 + " six. 七。八。"
    parts = pack(text, lambda part: len(part) <= 12)
    assert all(len(part) <= 12 for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert parts[0] == "One two."
    assert pack(text, lambda part: True) == [text]


@pytest.mark.thorough
def test_a_chat_model_gets_a_message(chatty):
    loaded = memtx.load(chatty, context=64)
    done = write(loaded, ["a </s> ship"], prefix="Say: ", max_tokens=4)
    prompt = chat.render(loaded.tokenizer, [{"role": "user", "content": "Say: a  ship"}])
    same = partial(memtx.complete, loaded.lm, loaded.params, loaded.tokenizer, max_tokens=4, sampling=memtx.GREEDY)
    assert done.texts == same([prompt], specials=True).texts
    assert done.texts != same(["Say: a ship"]).texts  # control: the template matters
    long = "the ships " * 40
    with pytest.raises(UserError, match="source 1 has .* load the model with context=") as error:
        write(loaded, [long], max_tokens=4)
    advised = int(str(error.value).partition("context=")[2].split()[0])
    assert write(memtx.load(chatty, context=advised), [long], max_tokens=4).cut == []  # the advice helps
    with pytest.raises(UserError, match="source 1 has"):
        write(memtx.load(chatty, context=advised - 1), [long], max_tokens=4)
    with pytest.raises(UserError, match=r"long='split'$"):  # no context is enough
        write(loaded, [long * 40], max_tokens=4)
    assert context_of(loaded.lm) == 64
    assert write(loaded, [long, "a"], long="cut", max_tokens=4).cut == [0]
    with pytest.raises(UserError, match="no room for a source: the model reads at most 0 tokens"):
        write(loaded, ["a"], max_tokens=64)


def test_a_model_of_another_kind_is_refused(bert_folder):  # noqa: F811
    with pytest.raises(UserError, match="does not predict next tokens"):
        write(memtx.load(bert_folder), ["a"])


@pytest.mark.thorough
def test_a_run_writes_as_many_tokens_as_its_targets_have(workdir):
    loaded = memtx.load(workdir)
    sizes = {most: len(loaded.tokenizer.encode(write(loaded, ["a"], max_tokens=most).texts[0])) for most in (None, 6, 12)}
    assert sizes[None] == sizes[6] <= 6 < sizes[12]  # the random weights do not end a text


# --- the commands -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *argv: object) -> tuple[str, str]:
    cli.main([*map(str, argv)])
    return capsys.readouterr()


def test_lines_are_translated_into_lines(workdir, here, capsys):
    long = "One two three. " * 6
    Path("a.txt").write_bytes(f"\ufeffab\r\n\r\n  \n{long}\ncd".encode())
    out, notes = run(capsys, "translate", f"--workdir={workdir}", "a.txt", "--batch=2")
    done = write(memtx.load(workdir), ["ab", long.strip(), "cd"], long="split")
    first, second, third = (" ".join(part.strip() for part in text.splitlines()).strip() for text in done.texts)
    assert out == f"{first}\n\n\n{second}\n{third}\n"
    assert "memtx: 1 source was too long for the model and was read in parts\n" in notes
    assert "memtx: 3 texts stopped at --max_tokens before the end\n" in notes
    said = run(capsys, "translate", f"--model={workdir}", "a.txt", "--out=b.txt", "--batch=1")
    assert said[0] == ""
    assert "memtx: wrote b.txt: 3 texts" in said[1]
    assert Path("b.txt").read_bytes().decode() == out
    assert {path.name for path in here.iterdir()} == {"a.txt", "b.txt"}


@pytest.mark.thorough
def test_files_and_the_standard_input_are_summarized_and_asked(workdir, here, capsys, monkeypatch):
    Path("a.txt").write_text("One\ntwo")
    Path("b.txt").write_text("three")
    command = f"--workdir={workdir}"
    out, _ = run(capsys, "summarize", command, "a.txt", "b.txt")
    texts_of = partial(write, memtx.load(workdir))
    assert out == "".join(" ".join(text.splitlines()).strip() + "\n" for text in texts_of(["One\ntwo", "three"]).texts)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"two")))
    out, _ = run(capsys, "ask", command, "Is it 1?", "-", "--prefix=: ", "--max_tokens=3")
    [text] = texts_of([": question: Is it 1? context: two"], max_tokens=3).texts
    assert out == text.strip() + "\n"
    out, _ = run(capsys, "ask", command, "Is it 1?", "a.txt", "b.txt", "--temperature=1", "--seed=3", "--beams=1")
    assert out.count("\n") == 2
    Path("long.txt").write_text("ab " * 99)
    said = "2 sources were too long for the model and were read without the end"
    assert said in run(capsys, "ask", command, "Is it 1?", "long.txt", "long.txt")[1]
    out, _ = run(capsys, "ask", command, "In a.csv", "b.txt", "--max_tokens=3")  # a question, not a table
    assert out == texts_of(["question: In a.csv context: three"], max_tokens=3).texts[0].strip() + "\n"


@pytest.mark.thorough
def test_rows_of_a_table_keep_their_columns(workdir, here, capsys):
    rows = [{"id": 7, "question": "é?", "context": "x", "bad": "\ud800"}, {"question": 5, "context": "{y}", "answer": "ü"}]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("a.csv").write_text('source;target\nab;ba\n"c\nd";dc\n')
    out, _ = run(capsys, "ask", f"--workdir={workdir}", "a.jsonl")
    found = [json.loads(line) for line in out.splitlines()]
    sources = ["question: é? context: x", "question: 5 context: {y}"]
    assert found == [
        row | {"prediction": text} for row, text in zip(rows, write(memtx.load(workdir), sources).texts, strict=True)
    ]
    assert "ü" in out
    run(capsys, "translate", f"--workdir={workdir}", "a.csv", "--out=b.jsonl")
    assert [json.loads(line)["target"] for line in Path("b.jsonl").read_text(encoding="utf-8").splitlines()] == ["ba", "dc"]


@pytest.mark.thorough
def test_a_t5_has_the_prefixes_of_its_config(t5_folder, here, capsys):  # noqa: F811
    Path("a.txt").write_text("In 1984 he counted 1207 of them.")
    command = ("summarize", f"--model={t5_folder}", "a.txt", "--max_tokens=16")
    plain = run(capsys, *command)[0]
    assert prefixes(str(t5_folder)) == {}
    config = json.loads((t5_folder / "config.json").read_text())
    tasks = {"summarization": {"prefix": "question: "}, "odd": 3, "translation_a": {"prefix": "a: "}, "x": {"prefix": 1}}
    (t5_folder / "config.json").write_text(json.dumps(config | {"task_specific_params": tasks}))
    assert prefixes(str(t5_folder)) == {"summarization": "question: ", "translation_a": "a: "}
    assert run(capsys, *command, "--prefix=")[0] == plain
    prefixed = run(capsys, *command)[0]
    assert prefixed == run(capsys, *command, "--prefix=question: ")[0] != plain
    tasks["translation_b"] = {"prefix": "b: "}
    (t5_folder / "config.json").write_text(json.dumps(config | {"task_specific_params": tasks}))
    error = fails(capsys, "translate", f"--model={t5_folder}", "a.txt")
    assert "choose its --prefix from 'a: ', 'b: '" in error


def test_a_chat_model_is_told_what_to_do(chatty, here, capsys):
    Path("a.txt").write_text("In 1984 he counted.")
    out = run(capsys, "summarize", f"--model={chatty}", "a.txt", "--max_tokens=4", "--context=300")[0]
    loaded = memtx.load(chatty, context=300)
    prefix = "Summarize this text in a few sentences.\n\n"
    assert out == write(loaded, ["In 1984 he counted."], prefix=prefix, max_tokens=4).texts[0].strip() + "\n"
    assert "is a chat model, which needs an instruction" in fails(capsys, "translate", f"--model={chatty}", "a.txt")


# --- bad input ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["translate", "W"], "give the files to read"),
        (["translate", "W", "empty.txt"], "empty.txt is empty"),
        (["translate", "W", "blank.txt"], "blank.txt is empty"),
        (["translate", "W", "binary.txt"], "binary.txt is not UTF-8 text"),
        (["translate", "W", "nul.txt"], "nul.txt is not text: it has NUL bytes"),
        (["translate", "W", "none.txt"], "cannot read none.txt: No such file"),
        (["translate", "W", "folder"], "cannot read folder: Is a directory"),
        (["translate", "W", "large.txt"], "large.txt is larger than 16 MiB: split it"),
        (["translate", "W", "large.csv"], "large.csv is larger than 16 MiB: split it"),
        (["translate", "W", "/dev/zero"], "/dev/zero is larger than 16 MiB: split it"),
        (["translate", "W", "a.txt", "a.jsonl"], "either text files or tables"),
        (["translate", "W", "other.csv"], "should have the columns 'source'"),
        (["translate", "W", "binary.csv"], "cannot read binary.csv"),
        (["translate", "W", "done.jsonl"], "has the column 'prediction' already"),
        (["translate", "W", "a.txt", "--out=a.txt"], "a.txt exists, and it would be overwritten"),
        (["translate", "W", "a.txt", "--out=folder"], "folder is a folder: give the name of a new file"),
        (["translate", "W", "a.txt", "--out=none/b.txt"], "cannot write none/b.txt: No such file"),
        (["translate", "W", "a.txt", "--out=/proc/b.txt"], "cannot write /proc/b.txt"),
        (["translate", "W", f"--out={'x' * 255}", "a.txt"], "File name too long"),
        (["translate", "W", "a.txt", "--out=b.jsonl"], "text files give a text"),
        (["translate", "W", "a.jsonl", "--out=b.csv"], "give an --out that ends with .jsonl, not b.csv"),
        (["translate", "a.txt"], "give either --workdir, such as"),
        (["translate", "W", "--model=x", "a.txt"], "give either --workdir, such as"),
        (["translate", "--workdir=none", "a.txt"], "none is not the workdir of a run"),
        (["translate", "W", "a.txt", "--context=9"], "--context is for a pretrained --model"),
        (["translate", "W", "a.txt", "--batch=0"], "batch"),
        (["translate", "W", "a.txt", "--temperature=-1"], "temperature must be"),
        (["translate", "W", "a.txt", "--beams=2", "--temperature=1"], "beams > 1 does not sample"),
        (["translate", "--model=none/there.gguf", "a.txt"], "no folder or file none/there.gguf"),
        (["translate", "--model=B", "a.txt"], "does not predict next tokens"),
        (["ask", "W", "a.txt"], "such as memtx ask --workdir=runs/answers 'When was it built?' report.txt"),
        (["ask", "W"], "give a question and then the files"),
        (["ask", "W", "Who?", "a.jsonl"], "leave out the one before it"),
        (["ask", "W", "a.jsonl", "a.txt"], "give either tables alone"),
        (["ask", "W", "a.jsonl"], 'line 1: no text at "question"'),
    ],
)
def test_bad_input_ends_with_one_line_and_writes_nothing(workdir, bert_folder, here, capsys, argv, message):  # noqa: F811
    contents = {"empty.txt": b"", "blank.txt": b" \n\n", "binary.txt": b"\xff\x00\x80", "nul.txt": b"a\0b", "a.txt": b"a\nb"}
    contents |= {"a.jsonl": b'{"source": "a"}', "other.csv": b"text,label\na,b\n", "binary.csv": b"\xff\x00\x80"}
    for name, content in (contents | {"done.jsonl": b'{"source": "a", "prediction": "b"}'}).items():
        Path(name).write_bytes(content)
    for name in ("large.txt", "large.csv"):
        with Path(name).open("wb") as file:
            file.truncate(50 * 2**20)
    Path("folder").mkdir()
    before = {path: path.is_file() and path.stat().st_mtime_ns for path in here.iterdir()}
    named = {"W": f"--workdir={workdir}", "--model=B": f"--model={bert_folder}"}
    assert message in fails(capsys, *(named.get(arg, arg) for arg in argv))
    assert {path: path.is_file() and path.stat().st_mtime_ns for path in here.iterdir()} == before


def test_a_model_of_the_hub_needs_the_hub(here, capsys, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    Path("a.txt").write_text("a")
    monkeypatch.setattr(pytest.importorskip("huggingface_hub"), "snapshot_download", refuse)
    assert "no model 't5-small'" in fails(capsys, "translate", "--model=t5-small", "a.txt")


def test_a_run_of_another_kind_is_refused(here, capsys):
    memtx.train(runs.tiny(here, train={"steps": 1}), "run", say=lambda *_: None)
    capsys.readouterr()
    Path("a.txt").write_text("a")
    assert "no encoder that reads a source" in fails(capsys, "translate", "--workdir=run", "a.txt", "--out=b.txt")
    assert not Path("b.txt").exists()


def test_an_interrupted_write_leaves_no_file(here, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_atomic(Path("a.txt"), "a")
    assert not [*here.iterdir()]
    write_atomic(Path("a.txt"), "a")  # control
    assert Path("a.txt").read_text() == "a"


@pytest.mark.parametrize("reason", ["File exists", "No space left on device"])
def test_texts_that_cannot_be_written_are_printed(workdir, here, capsys, monkeypatch, reason):
    def complete(*args, **options):
        if reason == "File exists":  # another process writes the file during the work
            Path("b.txt").write_text("precious")
        return memtx.complete(*args, **options)

    Path("a.txt").write_text("a\nb\n")
    command = ("translate", f"--workdir={workdir}", "a.txt")
    plain = run(capsys, *command)[0]
    monkeypatch.setattr(sys.modules["memtx.generate.batches"], "complete", complete)
    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(errno.ENOSPC, reason)))
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, "--out=b.txt"])
    out, error = capsys.readouterr()
    assert out == plain
    assert error.endswith(f"memtx: cannot write b.txt: {reason}. The texts were printed to the standard output instead\n")
    assert [path.read_text() for path in here.glob("b*")] == ["precious"] * (reason == "File exists")


def test_an_interrupted_command_leaves_no_file(workdir, here, monkeypatch):
    batches, calls = sys.modules["memtx.generate.batches"], []

    def complete(*args, **options):
        if calls:
            raise KeyboardInterrupt
        calls.append(args)
        return memtx.complete(*args, **options)

    Path("a.txt").write_text("a\nb\n")
    monkeypatch.setattr(batches, "complete", complete)
    with pytest.raises(SystemExit, match="130"):
        cli.main(["translate", f"--workdir={workdir}", "a.txt", "--out=b.txt", "--batch=1"])
    assert len(calls) == 1
    assert [path.name for path in here.iterdir()] == ["a.txt"]
