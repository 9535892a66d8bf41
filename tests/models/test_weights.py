"""Files of weights: which of them are read, the numbers that they hold, and the names of their tensors."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from memtx.contract.case import distance
from memtx.errors import UserError
from memtx.models.lm import LM
from memtx.pretrained import load as pretrained
from memtx.pretrained.names import check, find_slots
from memtx.pretrained.weights import open_weights
from tests.models.test_pretrained import golden, load, weights, write

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "smollm2", golden("smollm2"))


@pytest.fixture
def shards(folder, tmp_path):
    """The same model in three shards or more."""
    lm, params = load(folder)
    pretrained.export(lm, params, tmp_path / "shards", shard=4000)
    return tmp_path / "shards"


def embedding(folder: Path) -> np.ndarray:
    return np.asarray(load(folder)[1]["embed"])


def edit_index(folder: Path, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(change(index)))


# --- which files --------------------------------------------------------------------------------------------------------------


def test_a_whole_file_comes_before_an_old_index(folder, shards):
    new = weights(golden("smollm2")) | {"model.embed_tokens.weight": np.ones((31, 16), np.float32)}
    save_file(new, shards / "model.safetensors")
    assert (embedding(shards) == 1).all()
    for shard in shards.glob("model-*"):
        shard.unlink()
    assert (embedding(shards) == 1).all()
    for content in ("{}", "[]", "no json"):
        (shards / INDEX).write_text(content)
        assert (embedding(shards) == 1).all()


def test_shards_are_read_whole_whatever_their_index_names(folder, shards):
    expected = load(folder)[1]
    first = {"weight_map": {"model.embed_tokens.weight": sorted(p.name for p in shards.glob("model-*"))[0]}}
    edit_index(shards, lambda index: first)
    assert distance(load(shards)[1], expected) == 0
    (shards / INDEX).unlink()
    assert distance(load(shards)[1], expected) == 0


def test_a_missing_shard_is_named(shards):
    (shards / INDEX).unlink()
    gone = sorted(shards.glob("model-*"))[1]
    gone.unlink()
    with pytest.raises(UserError, match=f"is incomplete: {gone.name} is missing"):
        load(shards)
    shards.joinpath("model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"shards of several models: model-\*-of-00002, model-\*-of-"):
        load(shards)


@pytest.mark.parametrize(
    ("index", "line"),
    [
        ({}, "its weight_map is empty"),
        ({"weight_map": {}}, "its weight_map is empty"),
        ([], r"must contain an object \{...\}, not \[\]"),
        ({"weight_map": ["a"]}, r"weight_map must be an object \{...\}, not \['a'\]"),
        ({"weight_map": {"a": 3}}, "lists 3, which is not a file inside its folder"),
        ({"weight_map": {"a": "../smollm2/model.safetensors"}}, "lists '../smollm2/.*', which is not a file inside its folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "lists '/etc/passwd', which is not a file inside its folder"),
        ({"weight_map": {"a": "gone.safetensors"}}, "is incomplete: gone.safetensors is missing"),
        (
            {"weight_map": {f"a{i}": f"gone{i}.safetensors" for i in range(90)}},
            "gone0.safetensors, .*, ... and 84 more is missing",
        ),
    ],
)
def test_an_index_that_is_none_is_one_line(shards, index, line):
    edit_index(shards, lambda _: index)
    with pytest.raises(UserError, match=line):
        load(shards)


def test_a_tensor_in_two_shards_is_read_where_the_index_has_it(shards):
    first, *_, last = sorted(shards.glob("model-*"))
    copy = load_file(last) | {"model.embed_tokens.weight": np.ones((31, 16), np.float32)}
    save_file(copy, last)
    assert (embedding(shards) != 1).any()
    edit_index(shards, lambda index: {"weight_map": index["weight_map"] | {"model.embed_tokens.weight": last.name}})
    assert (embedding(shards) == 1).all()
    assert first.exists()


def test_weights_of_another_name_are_listed(folder):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"should have model.safetensors, but there is only adapter_model.safetensors"):
        load(folder)


# --- numbers ------------------------------------------------------------------------------------------------------------------


def save_as(folder: Path, dtype, names: str = "") -> None:
    """Tensors whose names end so in another type, the others as they are."""
    tensors = {
        name: value.astype(dtype) if name.endswith(names) else value for name, value in weights(golden("smollm2")).items()
    }
    write_safetensors(folder / "model.safetensors", tensors)


def write_safetensors(path: Path, tensors) -> None:
    """As safetensors does, which writes no 8-bit floats from NumPy."""
    called = {
        "float8_e4m3fn": "F8_E4M3",
        "float8_e5m2": "F8_E5M2",
        "bfloat16": "BF16",
        "int8": "I8",
        "uint8": "U8",
        "int32": "I32",
    }
    header, content = {}, b""
    for name, value in tensors.items():
        dtype = called.get(value.dtype.name, f"F{8 * value.dtype.itemsize}")
        offsets = [len(content), len(content) + value.nbytes]
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": offsets}
        content += value.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


@pytest.mark.parametrize("name", ["float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_floats_of_every_size_are_read(folder, name):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    save_as(folder, dtype)
    here = open_weights(folder)
    for tensor, value in weights(golden("smollm2")).items():
        np.testing.assert_array_equal(here.read(tensor), value.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32"])
def test_whole_numbers_are_no_weights(folder, dtype):
    save_as(folder, dtype, "q_proj.weight")
    with pytest.raises(UserError, match=r"quantised weights, .*q_proj.weight is stored as (I8|U8|I32)"):
        load(folder)


SCALES = ("weight_scale", "weight_scale_inv", "weight.SCB", "weight.absmax", "weight.quant_state.bitsandbytes__nf4", "qweight")


@pytest.mark.parametrize("name", SCALES)
def test_weights_with_scales_are_refused(folder, name):
    extra = {f"model.layers.0.mlp.up_proj.{name}": np.ones(1, np.float32)}
    write_safetensors(folder / "model.safetensors", weights(golden("smollm2")) | extra)
    with pytest.raises(UserError, match=f"quantised weights, .*{name}"):
        load(folder)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors"])
def test_a_config_of_quantised_weights_is_refused(folder, method):
    edit(folder, quantization_config={"quant_method": method})
    with pytest.raises(UserError, match="quantised weights, .*config.json has quantization_config"):
        load(folder)
    edit(folder, quantization_config=None)
    load(folder)


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


# --- names --------------------------------------------------------------------------------------------------------------------


def rename(folder: Path, name: str, change) -> Path:
    a = golden(name)
    write(folder, a)
    save_file({change(key): value for key, value in weights(a).items()}, folder / "model.safetensors")
    return folder


PREFIXES = ("module.", "model.", "_orig_mod.", "language_model.", "module._orig_mod.", "0.auto_model.")


@pytest.mark.parametrize("name", ["llama2", "smollm2", "gpt2-untied", "bert-model", "bert-masked-lm", "t5-v1.0", "t5-v1.1"])
def test_a_prefix_of_all_tensors_makes_no_difference(tmp_path, name):
    expected = called_there(rename(tmp_path / "plain", name, lambda key: key))
    for prefix in PREFIXES:
        here = called_there(rename(tmp_path / prefix, name, lambda key, prefix=prefix: prefix + key))
        assert here == {key: prefix + there for key, there in expected.items()}


def called_there(folder: Path) -> dict[str, str]:
    """{name in the table: name in the file} of every tensor that a model has."""
    lm, found = LM(pretrained.settings(str(folder))), open_weights(folder)
    names = next(family.NAMES for family in pretrained.FAMILIES if found.config["model_type"] in family.TYPES)
    return check(find_slots(names, lm), names, found.shapes, "")[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key.removeprefix("model."),
        lambda key: key.replace("model.", "model.model.") if "lm_head" not in key else key,
        lambda key: key.replace("model.", "model.language_model.") if "lm_head" not in key else key,
        lambda key: key.replace("layers.", "layers._checkpoint_wrapped_module."),
        lambda key: key.replace("mlp.", "mlp._fsdp_wrapped_module."),
    ],
)
def test_names_within_a_prefix_are_found(tmp_path, change):
    expected = load(rename(tmp_path / "plain", "llama2", lambda key: key))[1]
    assert distance(load(rename(tmp_path / "changed", "llama2", change))[1], expected) == 0


def test_a_head_of_its_own_is_used_though_the_config_ties_it(folder):
    tied = load(folder)[0].model
    a = weights(golden("smollm2"))
    save_file(a | {"lm_head.weight": a["model.embed_tokens.weight"]}, folder / "model.safetensors")
    assert load(folder)[0].model == tied
    save_file(a | {"lm_head.weight": a["model.embed_tokens.weight"] + 1}, folder / "model.safetensors")
    lm, params = load(folder)
    assert not lm.model.tied
    assert distance(params["to_logits"]["w"].T, params["embed"] + 1) == 0
    save_file({key.replace("model.embed_tokens", "lm_head"): value for key, value in a.items()}, folder / "model.safetensors")
    assert distance(load(folder)[1]["embed"], a["model.embed_tokens.weight"]) == 0  # the head alone is kept


def test_a_message_is_short_whatever_the_model_s_size(folder):
    many = {f"model.extra.{i}.{'x' * 300}\n": np.ones(1, np.float32) for i in range(2000)}
    write_safetensors(folder / "model.safetensors", many)
    edit(folder, num_hidden_layers=1000)
    with pytest.raises(UserError, match=r"missing: .*; ... and 8996 more; unexpected: .*; ... and 1994 more") as raised:
        pretrained.load_params(LM(pretrained.settings(str(folder))), jax.random.key(0))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 10 * 200
