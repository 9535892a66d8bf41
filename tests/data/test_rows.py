"""Files of examples with various delimiters, encodings and names, and one-line errors for files that cannot be read."""

from __future__ import annotations

import json

import pytest

from memtx.data import rows
from memtx.errors import UserError
from memtx.tasks.labelled import Labelled

TWO = [("hello", "pos"), ("bye", "neg")]


def read(tmp_path, content: str | bytes, name: str = "a.csv") -> list[tuple[str, ...]]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return rows.read(path, ("text", "label"))


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("text,label\nhello,pos\nbye,neg\n", "a.CSV"),
        ("text;label\nhello;pos\nbye;neg\n", "a.csv"),
        ("text\tlabel\nhello\tpos\nbye\tneg\n", "a.csv"),
        ("text|label\nhello|pos\nbye|neg\n", "a.csv"),
        ("text\tlabel\nhello\tpos\nbye\tneg\n", "a.TSV"),
        ("id, text, label\n1, hello, pos\n2, bye, neg\n", "a.csv"),
        ('\n"text","label"\n"hello","pos"\n,\n\n"bye","neg",\n', "a.csv"),
        ("\ufefftext,label\r\nhello,pos\r\nbye,neg\r\n", "a.csv"),
        ("text,label\nhello,pos\nbye,neg\n".encode("utf-16"), "a.csv"),
        ('{"text": "hello", "label": "pos"}\n\n{"text": "bye", "label": "neg"}', "a.JSONL"),
        ('{"text": "hello", "label": "pos"}\n{"text": "bye", "label": "neg"}\n'.encode("utf-16"), "a.jsonl"),
    ],
)
def test_a_file_is_read_as_it_is_written(tmp_path, content, name):
    assert read(tmp_path, content, name) == TWO


def test_a_field_may_be_long_and_have_the_delimiter_quotes_and_line_ends(tmp_path):
    text = 'a "quoted", long\r\none; ' * 20_000
    quoted = text.replace('"', '""')
    assert read(tmp_path, f'text,label\n"{quoted}",pos\n') == [(text, "pos")]
    assert read(tmp_path, json.dumps({"text": text, "label": 1}), "a.jsonl") == [(text, "1")]


def test_u2028_ends_no_line(tmp_path):
    line = json.dumps({"text": "one\u2028two\x85three", "label": "x"}, ensure_ascii=False)
    assert read(tmp_path, line, "a.jsonl") == [("one\u2028two\x85three", "x")]
    assert read(tmp_path, "text,label\none\u2028two\x85three,x\n") == [("one\u2028two\x85three", "x")]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "a.csv", "has no examples"),
        ("text,label\n", "a.csv", "has no examples"),
        ("sentence,target\na,b\n", "a.csv", r"columns 'text', 'label', each once; it has 'sentence', 'target'$"),
        ("text,sentiment\na,b\n", "a.csv", r"it has 'text', 'sentiment'$"),
        ("text,label,text\na,b,c\n", "a.csv", "each once; it has 'text', 'label', 'text'"),
        ("text,label\nhello, world,pos\n", "a.csv", r"line 2: 3 values for 2 columns; put values that contain ','"),
        ("text,label\nhello\n", "a.csv", r'line 2: no text at "label"'),
        ('text,label\n"hello,pos\nbye,neg\n', "a.csv", "unexpected end of data"),
        (b"text,label\nhel\xfflo,pos\n", "a.csv", "can't decode byte 0xff"),
        ("text,label\nhel\0lo,pos\n", "a.csv", 'line 2: "text" has a NUL'),
        ("text,label\nhello,pos\n".encode("utf-16-le"), "a.csv", r"it has 't\\x00"),
        ('{"text": "a\\ud800", "label": "b"}', "a.jsonl", 'line 1: "text" has half of a surrogate pair'),
        ('{"text": "a", "label": "\\udc00"}', "a.jsonl", 'line 1: "label" has half of a surrogate pair'),
        ("[" * 100_000, "a.jsonl", "line 1: not JSON"),
        (",".join(f"c{i}" for i in range(1000)), "a.csv", r"'c9' and 990 more$"),
    ],
)
def test_what_cannot_be_read_is_one_short_line(tmp_path, content, name, message):
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, content, name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_no_column_is_lost(tmp_path):
    content = "text,label,note,note\nhello,pos,a,b\nbye,neg,,\n"
    assert read(tmp_path, content) == TWO  # training needs no notes
    with pytest.raises(UserError, match="several columns named 'note'"):
        rows.read_lines(tmp_path / "a.csv", ("text", "label"))
    read(tmp_path, content.replace("note,note", "note,other"))
    assert rows.read_lines(tmp_path / "a.csv", ("text",))[0] == {"text": "hello", "label": "pos", "note": "a", "other": "b"}


def test_an_emoji_is_two_surrogates_in_json(tmp_path):
    assert read(tmp_path, '{"text": "\\ud83d\\ude00", "label": "b"}', "a.jsonl") == [("\U0001f600", "b")]


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "valid.csv", "test.csv"),
        ("train.TSV", "validation.jsonl", "test.csv"),
        ("Train.jsonl", "dev.jsonl", "test.jsonl"),
        ("train.json", "val.json", "test.json"),
    ],
)
def test_a_folder_may_call_its_files_as_other_tools_do(tmp_path, names):
    for i, name in enumerate(names):
        delimiter = "\t" if name.endswith("TSV") else ","
        table = f"text{delimiter}label\nnumber {i}{delimiter}x\n"
        lines = json.dumps({"text": f"number {i}", "label": "x"})
        (tmp_path / name).write_text(table if name.lower().endswith(("csv", "tsv")) else lines)
    (tmp_path / "README.md").write_text("not an example")
    task = Labelled(Labelled.Config(path=str(tmp_path)))
    found = {split: [task.tokenizer.decode(e.token_L) for e in examples] for split, examples in task.examples.items()}
    assert found == {"train": ["number 0"], "valid": ["number 1"], "test": ["number 2"]}


def test_a_folder_that_lacks_a_split_or_has_two_says_so(tmp_path):
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("text,label\na,b\n")
    with pytest.raises(
        UserError, match=r"one file for valid, such as valid.jsonl or valid.csv; there is 'test.csv', 'train.csv'"
    ):
        Labelled(Labelled.Config(path=str(tmp_path)))
    for name in ("dev.csv", "valid.jsonl"):
        (tmp_path / name).write_text("text,label\na,b\n")
    with pytest.raises(UserError, match=r"one file for valid, .*there is 'dev.csv', 'valid.jsonl'"):
        Labelled(Labelled.Config(path=str(tmp_path)))


def test_a_text_without_tokens_is_one_line(tmp_path):
    import tokenizers as hf

    tokenizer = hf.Tokenizer(hf.models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    (tmp_path / "tok").mkdir()
    tokenizer.save(str(tmp_path / "tok" / "tokenizer.json"))
    (tmp_path / "a.csv").write_text('text,label\n"  ",x\n"a",x\n"a a",x\n')
    with pytest.raises(UserError, match="gives no tokens for the text"):
        Labelled(Labelled.Config(path=str(tmp_path / "a.csv"), tokenizer=f"pretrained:{tmp_path / 'tok'}"))
