"""Damaged input is refused in one short message: files of pretrained models, data files and values on the command line.

Each target is a sound input that hypothesis damages in one or two places. A call may work or raise UserError. It may not
raise anything else, print more than ten lines, take long, or write outside the folder that it was given.

    pytest tests/test_fuzz.py --fuzz=20000      this many damaged inputs in all; 400 by default
"""

import copy
import csv
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import memtx
from memtx import tasks
from memtx.cli.options import parse
from memtx.errors import UserError
from memtx.runs.configure import configure, load_config

GOLDENS = Path(__file__).parent / "golden" / "hf"
# family: (golden with its weights, folder with a vocabulary)
FAMILIES = {"llama2": "llama", "qwen2": "byte_bpe", "gpt2": "byte_bpe", "bert-classification": "wordpiece", "t5-v1.1": "t5"}
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "shared.weight", "lm_head.weight")
LONGEST = 10  # lines of a message
SECONDS = 30  # of one call, compiling included

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 3, 7, 64, 300, 2**31, 10**9, 2**70, -(2**70)]),
    st.sampled_from([0.0, 0.5, -1.5, 1e308, math.inf, -math.inf, math.nan]),
    st.sampled_from(["", " ", "2", "1.5", "gelu", "llama", "bert", "é", "\x00", "\u2028", "\ud800", "../x", "/", "[UNK]"]),
    st.text(max_size=8),
    st.integers(-10, 1000),
)
odd = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=4
)


def pytest_generate_tests(metafunc):
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", FAMILIES)


@pytest.fixture
def check(pytestconfig, tmp_path, monkeypatch):
    """Runs a test's body on its share of the inputs, in an empty working folder and home that must stay empty."""
    outside = tmp_path / "outside"
    for name in ("work", "home"):
        (outside / name).mkdir(parents=True)
    monkeypatch.chdir(outside / "work")
    monkeypatch.setenv("HOME", str(outside / "home"))
    total = pytestconfig.getoption("fuzz")

    def run(strategy, call, share: float):
        @settings(
            max_examples=max(int(total * share), 1),
            deadline=SECONDS * 1000,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def body(value):
            message = ""
            try:
                call(value)
            except UserError as error:
                message = str(error)
            assert len(message.splitlines()) <= LONGEST, f"a long message: {message}"
            written = [path for path in outside.rglob("*") if path not in (outside / "work", outside / "home")]
            assert not written, f"written outside: {written}"

        body()

    return run


# --- damage -------------------------------------------------------------------------------------------------------------------


def paths(value, path=()):
    """Where each part of a JSON value is."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*path, key))


@st.composite
def damaged_json(draw, value):
    """The text of a JSON value with one or two of its parts replaced, removed or added; sometimes no JSON at all."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(paths(value))))
        if not path:
            value = (
                {**value, draw(st.text(max_size=8)): draw(odd)}
                if isinstance(value, dict) and draw(st.booleans())
                else draw(odd)
            )
            break
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        if draw(st.integers(0, 3)):
            parent[path[-1]] = draw(odd)
        else:
            del parent[path[-1]]
    text = json.dumps(value)
    return draw(damaged_bytes(text.encode())) if draw(st.integers(0, 9)) == 0 else text.encode()


@st.composite
def damaged_bytes(draw, content: bytes):
    """Bytes of which some are cut, changed or added."""
    at = draw(st.integers(0, len(content)))
    new = draw(
        st.sampled_from([b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b'"', b",", b"\r", b"}"]) | st.binary(max_size=6)
    )
    return content[:at] + new + content[at + draw(st.integers(0, 8)) :][: draw(st.sampled_from([len(content), 0, 9]))]


# --- pretrained models --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(family, tmp_path) -> Path:
    """A sound folder of Hugging Face's: a golden's weights, with a row of the embedding for each token and for an added one."""
    from safetensors.numpy import save_file

    folder, golden = tmp_path / "model", np.load(GOLDENS / f"{family}.npz")
    folder.mkdir()
    for file in (GOLDENS / "vocabularies" / FAMILIES[family]).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads(str(golden["config"]))
    size = memtx.data.tokenizers.pretrained(folder).vocab_size + 1
    tensors = {key.removeprefix("weight."): golden[key] for key in golden.files if key.startswith("weight.")}
    for name, tensor in tensors.items():
        if name.endswith(EMBEDDINGS):
            tensors[name] = np.resize(tensor, (size, tensor.shape[1])).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    others = {
        "config.json": config | {"vocab_size": size},
        "tokenizer_config.json": {
            "model_max_length": 64,
            "eos_token": "</s>",
            "added_tokens_decoder": {str(size - 1): {"content": "<new>", "special": True, "lstrip": False}},
            "chat_template": "{{ messages[0]['content'] }}",
            "add_prefix_space": False,
        },
        "generation_config.json": {"eos_token_id": [1, 2], "pad_token_id": 0},
        "special_tokens_map.json": {"eos_token": "</s>", "additional_special_tokens": ["<new>"]},
        "added_tokens.json": {"<new>": size - 1},
        "model.safetensors.index.json": {
            "metadata": {"total_size": 1},
            "weight_map": dict.fromkeys(tensors, "model.safetensors"),
        },
    }
    for name, value in others.items():
        if not (folder / name).exists():
            (folder / name).write_text(json.dumps(value))
    return folder


def test_a_sound_folder_loads(folder):
    (folder / "added_tokens.json").unlink()  # the other files add this token
    loaded = memtx.load(folder)
    assert loaded.lm.model.vocab_size == loaded.tokenizer.vocab_size


@pytest.mark.parametrize(("file", "share"), [("config.json", 0.05), ("tokenizer_config.json", 0.03), ("others", 0.02)])
def test_damaged_files_of_a_model(check, folder, file, share):
    names = ["generation_config.json", "special_tokens_map.json", "added_tokens.json"] if file == "others" else [file]
    sound = {name: (folder / name).read_bytes() for name in names}

    def call(damage):
        name, content = damage
        (folder / name).write_bytes(content)
        try:
            memtx.load(folder)
        finally:
            (folder / name).write_bytes(sound[name])

    damages = [st.tuples(st.just(name), damaged_json(json.loads(content))) for name, content in sound.items()]
    check(st.one_of(damages), call, share)


def test_damaged_index(check, tmp_path):
    """The weights are in two shards."""
    from safetensors.numpy import load_file, save_file

    golden = np.load(GOLDENS / "llama2.npz")
    tensors = {key.removeprefix("weight."): golden[key].astype(np.float32) for key in golden.files if key.startswith("weight.")}
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(str(golden["config"]))
    names, shards = sorted(tensors), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    where = {name: shards[i % 2] for i, name in enumerate(names)}
    for shard in shards:
        save_file({name: tensors[name] for name in names if where[name] == shard}, folder / shard)
    assert load_file(folder / shards[0])
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    settings = memtx.pretrained.load.settings
    assert settings(str(folder)).width == 16

    def call(content):
        index.write_bytes(content)
        lm = memtx.build(settings(str(folder)))
        memtx.pretrained.load.new_parameters(lm)

    check(damaged_json(json.loads(index.read_text())), call, 0.05)


# --- GGUF ---------------------------------------------------------------------------------------------------------------------

METADATA = {
    "llama.context_length": 64,
    "llama.embedding_length": 16,
    "llama.block_count": 1,
    "llama.feed_forward_length": 24,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 1e4,
    "llama.rope.dimension_count": 4,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.add_bos_token": True,
    "general.alignment": 32,
}


def write_gguf(path: Path, metadata: dict) -> None:
    """A Llama of one layer; UserError for a value that a GGUF file cannot hold."""
    import gguf

    writer, random = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.INT64, float: gguf.GGUFValueType.FLOAT64}
    kinds |= {str: gguf.GGUFValueType.STRING, list: gguf.GGUFValueType.ARRAY}
    vocabulary = json.loads((GOLDENS / "vocabularies/byte_bpe/vocab.json").read_text())
    tokens = sorted(vocabulary, key=vocabulary.get)
    merges = (GOLDENS / "vocabularies/byte_bpe/merges.txt").read_text().split("\n")[1:-1]
    types = [3 if token == "<|endoftext|>" else 1 for token in tokens]
    lists = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges, "tokenizer.ggml.token_type": types}
    try:
        for key, value in (lists | metadata).items():
            if type(value) in kinds and value != []:
                writer.add_key_value(key, value, kinds[type(value)])
        shapes = {"token_embd": (len(tokens), 16), "output_norm": (16,), "blk.0.attn_norm": (16,), "blk.0.ffn_norm": (16,)}
        shapes |= {f"blk.0.attn_{n}": (size, 16) for n, size in (("q", 16), ("k", 8), ("v", 8), ("output", 16))}
        shapes |= {"blk.0.ffn_gate": (24, 16), "blk.0.ffn_up": (24, 16), "blk.0.ffn_down": (16, 24)}
        for name, shape in shapes.items():
            writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except Exception as error:  # of the writer, not of memtx
        raise UserError(f"cannot be written: {type(error).__name__}") from None
    finally:
        writer.close()


@st.composite
def damaged_metadata(draw):
    metadata = dict(METADATA)
    for _ in range(draw(st.integers(1, 2))):
        key = draw(st.sampled_from([*METADATA, "tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type"]))
        metadata[key] = draw(scalars | st.lists(st.integers(0, 9), max_size=3) | st.lists(st.text(max_size=4), max_size=3))
    return metadata


def test_damaged_gguf_metadata(check, tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, METADATA)
    assert memtx.load(path).lm.model.width == 16

    def call(metadata):
        path.unlink(missing_ok=True)
        write_gguf(path, metadata)
        memtx.load(path)

    check(damaged_metadata(), call, 0.1)


def test_damaged_bytes_of_a_gguf_file(check, tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, METADATA)
    sound = path.read_bytes()

    def call(content):
        path.write_bytes(content)
        memtx.load(path)

    check(damaged_bytes(sound[:6000]).map(lambda head: head + sound[6000:]), call, 0.05)


# --- data files ---------------------------------------------------------------------------------------------------------------

ASKED = {"question": "what?", "answer": "ships"}
WORDPIECE = Path(__file__).parent / "golden" / "hf" / "vocabularies" / "wordpiece"
ROWS = [
    {
        "source": f"text {i} of é",
        "target": f'a "{i}"\n',
        "label": "ab"[i % 2],
        "text": f"line {i}",
        "context": f"{i} ships",
        **ASKED,
    }
    for i in range(8)
]


def as_csv(delimiter: str) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return stream.getvalue().encode()


LINES = "\n".join(json.dumps(row) for row in ROWS).encode()


@pytest.mark.parametrize(("suffix", "content"), [("csv", as_csv(",")), ("tsv", as_csv("\t")), ("jsonl", LINES)])
@pytest.mark.parametrize("task", ["labelled", "pairs", "spans"])
def test_damaged_data_files(check, tmp_path, suffix, content, task):
    path, cls = tmp_path / f"data.{suffix}", tasks.TASKS[task]
    settings = {"tokenizer": f"pretrained:{WORDPIECE}"} if task == "spans" else {}

    def read(content):
        path.write_bytes(content)
        os.utime(path, ns=(read.calls, read.calls))  # a file that changes is read anew
        read.calls += 1
        cls(cls.Config(path=str(path), cache=str(tmp_path / "cache"), **settings))

    read.calls = 0
    read(content)
    one = damaged_bytes(content)
    if suffix == "jsonl":
        row = damaged_json(ROWS[0])
        one |= row.map(lambda row: b"\n".join([row, *content.split(b"\n")[1:]]))
    check(one, read, 0.02)


# --- values on the command line -----------------------------------------------------------------------------------------------

TEXTS = [
    "",
    "None",
    "True",
    "-1",
    "0",
    "1.5",
    "1e400",
    "nan",
    "inf",
    "10**9",
    "()",
    "(1,)",
    "('a',1,1,1)",
    "[[]]",
    "{}",
    "window",
]
TEXTS += [
    "(('window',),1)",
    "((('window',),'1'),)",
    "((('window',),1.5),)",
    "((('window',),1),)",
    "((('xl+window',),1),)",
    "é",
    "\x00",
]


def test_damaged_values_of_the_config(check):
    from absl import flags

    from memtx.cli import train

    file = memtx.__path__[0] + "/../configs/lm.py"
    spec = f"{file}:memory=xl,size=micro"
    keys = [
        f"{group}.{key}" for group, inner in load_config(spec).to_dict().items() if isinstance(inner, dict) for key in inner
    ]
    keys += ["seed", "memory.xl.segment", "memory.xl.memory", "memory.xl", "model.memory"]
    value = st.sampled_from(TEXTS) | odd.map(repr) | st.text(max_size=6)

    def call(changes):
        values = flags.FlagValues()
        train.define(values)
        parse(values, "train", [f"--config={spec}", *(f"--config.{key}={text}" for key, text in changes)])
        configure(values.config)

    def refused(changes):
        try:
            call(changes)
        except flags.Error as error:  # the command line prints its first line
            raise UserError(str(error).splitlines()[0]) from None

    check(st.lists(st.tuples(st.sampled_from(sorted(set(keys))), value), min_size=1, max_size=2), refused, 0.18)
