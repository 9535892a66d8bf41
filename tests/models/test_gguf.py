"""GGUF files of the Llama family: the tensors and settings of the folder that they were made from, or one line."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest

from memtx.contract.case import distance
from memtx.errors import UserError
from memtx.pretrained import llama
from memtx.pretrained import load as pretrained
from memtx.pretrained.gguf import GGUF
from memtx.pretrained.weights import open_weights
from memtx.runs.configure import build
from tests.models.test_pretrained import golden, load, read

WIDE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
ERRORS = {"F64": 0, "F32": 0, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 1e-2, "Q4_1": 0.1, "Q4_0": 0.1}


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A Llama whose rows are whole blocks of GGUF's."""
    lm_config = json.loads(str(golden("smollm2")["config"])) | WIDE
    folder = tmp_path_factory.mktemp("wide") / "wide"
    lm = build(llama.model(lm_config, 64))
    pretrained.export(lm, lm.init(jax.random.key(3)), folder)
    return folder


def to_gguf(folder: Path, path: Path, kind: str = "F32", *, without=(), change: Callable = lambda writer: None) -> Path:
    """As llama.cpp writes it: rows of q and k so that neighbours are rotated together."""
    source = open_weights(folder)
    config, writer = source.config, gguf.GGUFWriter(path, "llama")
    metadata = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
    }
    for key in metadata.keys() - set(without):
        writer.add_uint32(f"llama.{key}", metadata[key])
    if "attention.layer_norm_rms_epsilon" not in without:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_token_list(["a", "bé"])
    change(writer)
    short = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "o_proj": "attn_output"}
    short |= {f"{x}_proj": f"attn_{x}" for x in "qkv"} | {f"{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")}
    outside = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for name in source.shapes:
        tensor, parts = source.read(name), name.split(".")
        theirs = outside.get(name) or f"blk.{parts[2]}.{short[parts[-2]]}.weight"
        if parts[-2] in ("q_proj", "k_proj"):
            heads = tensor.reshape(-1, 16, tensor.shape[-1])
            tensor = np.stack([heads[:, :8], heads[:, 8:]], 2).reshape(tensor.shape)
        add(writer, theirs, tensor, kind if tensor.ndim > 1 else "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer, name: str, tensor: np.ndarray, kind: str) -> None:
    plain = {"F64": np.float64, "I8": np.int8, "I32": np.int32}
    if kind in plain:
        writer.add_tensor(name, tensor.astype(plain[kind]))
    elif kind == "Q8_1":  # which gguf writes no more than it reads it
        raw = np.zeros((*tensor.shape[:-1], tensor.shape[-1] // 32 * 40), np.uint8)
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.Q8_1)
    else:
        quantised = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quantize(tensor, quantised), raw_dtype=quantised)


@pytest.mark.parametrize(("kind", "error"), [*ERRORS.items()])
def test_a_gguf_file_gives_the_tensors_of_the_folder(wide, tmp_path, kind, error):
    path = to_gguf(wide, tmp_path / "model.gguf", kind)
    theirs, here = open_weights(wide), GGUF(path)
    assert here.shapes == theirs.shapes
    assert all(distance(here.read(name), theirs.read(name)) <= error for name in here.shapes)
    lm, params = load(path)
    token = np.arange(24).reshape(2, 12)
    reference = read(*load(wide), token, (12,))
    assert distance(read(lm, params, token, (12,)), reference) <= 30 * error + 1e-6


@pytest.mark.parametrize("kind", ["Q8_1", "I8", "I32"])
def test_a_kind_of_tensor_that_gguf_does_not_read_is_named(wide, tmp_path, kind):
    with pytest.raises(UserError, match=rf"stored in a way \({kind}\) that memtx does not read"):
        pretrained.settings(str(to_gguf(wide, tmp_path / "model.gguf", kind)))


def scaled(path: Path) -> tuple[float, ...]:
    return pretrained.settings(str(path)).rope_scaling


@pytest.mark.parametrize(
    ("metadata", "factor"),
    [
        ({"rope.scale_linear": 4.0}, 4.0),  # of 2023
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scaling.factor": 4.0}, 4.0),  # llama.cpp's default is linear
        ({"rope.scaling.factor": 4.0, "rope.scale_linear": 2.0}, 4.0),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 0.0}, None),
        ({"rope.scale_linear": 1.0}, None),
        ({"attention.sliding_window": 4.0}, None),  # which llama.cpp does not read of a llama
    ],
)
def test_positions_are_scaled_as_in_llama_cpp(wide, tmp_path, metadata, factor):
    def change(writer):
        for key, value in metadata.items():
            (writer.add_string if isinstance(value, str) else writer.add_float32)(f"llama.{key}", value)

    folder = shutil.copytree(wide, tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    scaling = {"rope_type": "linear", "factor": factor} if factor else None
    (folder / "config.json").write_text(json.dumps(config | {"rope_scaling": scaling}))
    ours, theirs = (pretrained.settings(str(p)) for p in (to_gguf(wide, tmp_path / "model.gguf", change=change), folder))
    assert dataclasses.replace(ours, pretrained="", norm_epsilon=1) == dataclasses.replace(
        theirs, pretrained="", norm_epsilon=1
    )
    assert bool(ours.rope_scaling) == bool(factor)


def llama3_table(factor: float, base: float, length: float = 8192) -> np.ndarray:
    """The divisors of frequencies that llama.cpp's converter writes for Llama 3.1 and 3.2."""
    found = []
    for frequency in base ** (-np.arange(0, 16, 2) / 16):
        wave = 2 * np.pi / frequency
        smooth = np.clip((length / wave - 1) / 3, 0, 1)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def test_the_table_of_llama_3_is_read(wide, tmp_path):
    base = json.loads((wide / "config.json").read_text())["rope_theta"]

    def written(name: str, table: np.ndarray) -> Path:
        return to_gguf(wide, tmp_path / name, change=lambda writer: writer.add_tensor("rope_freqs.weight", table))

    assert base == 10_000
    path = written("llama3.gguf", llama3_table(32.0, base))
    assert scaled(path) == (32.0, 1.0, 4.0, 8192.0)
    assert load(path)[1].keys() == load(wide)[1].keys()
    assert scaled(written("ones.gguf", np.ones(8, np.float32))) == ()
    for name, table in (("other", llama3_table(32.0, base, 4096)), ("short", np.ones(7, np.float32))):
        with pytest.raises(UserError, match="is not Llama 3's table of positions"):
            scaled(written(f"{name}.gguf", table))


@pytest.mark.parametrize(
    ("without", "metadata", "line"),
    [
        ("attention.layer_norm_rms_epsilon", {}, "has no 'attention.layer_norm_rms_epsilon'"),
        ("attention.head_count", {}, "has no 'attention.head_count'"),
        ("", {"rope.dimension_count": 8}, "rope.dimension_count=8 must equal the head dim, 16"),
        ("", {"attention.value_length": 8}, "attention.value_length=8 must equal the head dim, 16"),
        ("", {"rope.scaling.type": "yarn"}, "rope.scaling.type='yarn' is not supported"),
        ("", {"rope.scaling.factor": -1.0}, "rope.scaling.factor must be a number from 0"),
        ("", {"attention.causal": False}, "attention.causal=false is not supported"),
        ("block_count", {"block_count": 10**9}, "block_count must be a whole number from 1 to 4096, not 1000000000"),
        ("block_count", {"block_count": "3"}, "block_count must be a whole number .*, not '3'"),
        ("attention.head_count_kv", {"attention.head_count_kv": [1, 2, 1]}, r"head_count_kv must be .*, not \[1, 2, 1\]"),
    ],
)
def test_metadata_that_memtx_does_not_know_are_one_line(wide, tmp_path, without, metadata, line):
    def change(writer):
        for key, value in metadata.items():
            writer.add_key_value(f"llama.{key}", value, gguf.GGUFValueType.get_type(value))

    path = to_gguf(wide, tmp_path / "model.gguf", without=[without], change=change)
    with pytest.raises(UserError, match=f"the metadata of .*{line}"):
        pretrained.settings(str(path))


def test_one_value_for_each_layer_is_one_value_if_all_are_the_same(wide, tmp_path):
    path = to_gguf(
        wide,
        tmp_path / "model.gguf",
        without=["attention.head_count_kv"],
        change=lambda writer: writer.add_array("llama.attention.head_count_kv", [1, 1, 1]),
    )
    assert pretrained.settings(str(path)).num_kv_heads == 1


def test_a_gguf_file_cut_short_is_one_line(wide, tmp_path):
    path = to_gguf(wide, tmp_path / "model.gguf", "F16")
    content = path.read_bytes()
    for length in (2, 40, 300, len(content) // 2, len(content) - 200):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="damaged or cut short"):
            load(path)
    path.write_bytes(content.replace(b"llama", b"phi35"))
    with pytest.raises(UserError, match="general.architecture is 'phi35'"):
        load(path)


def test_lengths_beyond_the_file_make_no_room_for_them(wide, tmp_path):
    path = to_gguf(wide, tmp_path / "model.gguf")
    content = bytearray(path.read_bytes())
    for place in (content.index(b"llama.block_count") - 8, 8, 16):  # of a text, of all tensors, of all metadata
        changed = bytearray(content)
        changed[place : place + 8] = (1 << 62).to_bytes(8, "little")
        path.write_bytes(changed)
        with pytest.raises(UserError, match="damaged or cut short"):
            load(path)
