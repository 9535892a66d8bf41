"""Hugging Face's models as ours: the same logits, losses and gradients at random weights, and back again bit for bit."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from memtx.contract.case import distance
from memtx.errors import UserError
from memtx.pretrained import load as pretrained
from memtx.pretrained.names import find_slots, flat
from memtx.runs.configure import build

GOLDENS = Path(__file__).parent.parent / "golden" / "hf"
DECODERS = ("llama2", "llama3", "llama-linear", "smollm2", "mistral", "qwen2", "qwen2-window", "gpt2", "gpt2-untied")


def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDENS / f"{name}.npz"))


def weights(a) -> dict[str, np.ndarray]:
    return {key.removeprefix("weight."): value for key, value in a.items() if key.startswith("weight.")}


def write(folder: Path, a, **changes) -> Path:
    """A golden as a folder of Hugging Face's; changes of tensors, None: left out."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(str(a["config"]))
    tensors = weights(a) | {key.replace("__", "."): value for key, value in changes.items()}
    save_file({key: value for key, value in tensors.items() if value is not None}, folder / "model.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "smollm2", golden("smollm2"))


def load(folder: Path, **changes):
    lm = build(dataclasses.replace(pretrained.settings(str(folder)), **changes))
    return lm, pretrained.load_params(lm, jax.random.key(0))


@functools.cache
def jitted(lm):
    return jax.jit(lm.__call__)


def read(lm, params, token_BT, cuts=(24,)):
    state, outs = lm.init_state(len(token_BT)), []
    for part in np.split(token_BT, np.cumsum(cuts)[:-1], 1):
        logits, state = jitted(lm)(params, part, state)
        outs.append(logits)
    return jnp.concatenate(outs, 1)


@pytest.mark.parametrize("name", DECODERS)
def test_logits_are_those_of_torch(name, tmp_path):
    a = golden(name)
    lm, params = load(write(tmp_path / name, a))
    assert pretrained.new_parameters(lm) == []
    logits = read(lm, params, a["input.input_ids"], (9, 15))
    assert distance(logits, a["y.logits"]) <= 1e-4
    other = dict(params) | {"norm": jax.tree.map(lambda x: x * 1.01, params["norm"])}
    assert distance(read(lm, other, a["input.input_ids"], (9, 15)), a["y.logits"]) > 1e-3  # control


@pytest.mark.parametrize("name", ["llama2", "gpt2"])
def test_loss_and_gradients_are_those_of_torch(name, tmp_path):
    a = golden(name)
    lm, params = load(write(tmp_path / name, a))
    token = a["input.input_ids"]

    @jax.value_and_grad
    def loss(params):
        logits, _ = lm(params, token, lm.init_state(len(token)))
        return -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), token[:, 1:, None], -1).mean()

    value, grads = jax.jit(loss)(params)
    assert distance(value, a["y.loss"]) <= 1e-4
    names = pretrained.FAMILIES[name == "gpt2"].NAMES
    theirs = {slot.theirs: slot.to_theirs(flat(grads)) for slot in find_slots(names, lm)}
    assert {f"grad.{key}" for key in theirs} == {key for key in a if key.startswith("grad.")}
    assert all(distance(grad, a[f"grad.{key}"]) <= 1e-4 for key, grad in theirs.items())
    assert all(np.abs(grad).max() > 1e-4 for grad in theirs.values())  # control: the comparison says something of each


@pytest.mark.parametrize("name", DECODERS)
def test_what_is_exported_is_what_was_loaded_bit_for_bit(name, tmp_path):
    a = golden(name)
    lm, params = load(write(tmp_path / "theirs", a))
    pretrained.export(lm, params, tmp_path / "ours")
    back = load_file(tmp_path / "ours" / "model.safetensors")
    assert back.keys() == weights(a).keys()
    assert all(np.array_equal(back[key].view(np.int32), value.view(np.int32)) for key, value in weights(a).items())
    again = pretrained.settings(str(tmp_path / "ours"))
    assert dataclasses.replace(again, pretrained="") == dataclasses.replace(lm.model, pretrained="")


def test_shards_are_written_and_read(folder, tmp_path):
    lm, params = load(folder)
    pretrained.export(lm, params, tmp_path / "shards", shard=4000)
    files = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 2
    assert distance(load(tmp_path / "shards")[1], params) == 0
    (tmp_path / "shards" / files[1]).unlink()
    with pytest.raises(UserError, match=f"{files[1]}.*is missing"):
        load(tmp_path / "shards")


def test_half_precision_goes_there_and_back(folder, tmp_path):
    lm, params = load(folder)
    pretrained.export(lm, params, tmp_path / "half", dtype="bfloat16")
    _, half = load(tmp_path / "half")
    assert 0 < distance(half, params) < 0.01
    pretrained.export(lm, half, tmp_path / "again", dtype="bfloat16")
    assert distance(load(tmp_path / "again")[1], half) == 0


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model__norm__weight": None}, r"missing: model.norm.weight \[16\]"),
        ({"model__extra": np.ones(3, np.float32)}, r"unexpected: model.extra \[3\]"),
        ({"model__norm__weight": np.ones(15, np.float32)}, r"model.norm.weight is \[15\], not \[16\]"),
        (
            {"model__norm__weight": None, "model__extra": np.ones(3, np.float32)},
            "missing: model.norm.weight .*; unexpected: .*extra",
        ),
    ],
)
def test_every_tensor_that_does_not_match_is_listed(tmp_path, changes, line):
    with pytest.raises(UserError, match=line):
        load(write(tmp_path / "bad", golden("smollm2"), **changes))


def test_names_without_the_prefix_are_the_same_model(tmp_path):
    a = golden("gpt2")
    bare = {key.replace("weight.transformer.", "weight."): value for key, value in a.items()}
    assert distance(load(write(tmp_path / "bare", bare))[1], load(write(tmp_path / "whole", a))[1]) == 0


def test_a_damaged_file_an_unknown_model_and_pickles_are_one_line(folder, tmp_path):
    file, config = folder / "model.safetensors", folder / "config.json"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(UserError, match="damaged or cut short"):
        load(folder)
    file.rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pickles \(pytorch_model.bin\).*Convert them"):
        load(folder)
    file.write_bytes(content)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "mamba"}))
    with pytest.raises(UserError, match="model_type 'mamba' is not supported; supported: bert, gpt2, llama"):
        load(folder)
    config.write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="has no 'num_attention_heads'"):
        load(folder)
    with pytest.raises(UserError, match="no folder or file"):
        pretrained.settings(str(tmp_path / "nothing.gguf"))


@pytest.mark.parametrize("change", [{"hidden_act": "gelu"}, {"rope_parameters": {"rope_type": "yarn"}}, {"mlp_bias": True}])
def test_settings_that_memtx_does_not_have_are_refused(folder, change):
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError, match="not supported"):
        load(folder)


def test_another_model_is_not_filled_with_these_weights(folder):
    with pytest.raises(UserError, match="model.num_kv_heads=4 is 2 there.*model.stacks has 2 layers, 3 there"):
        load(folder, num_kv_heads=4, stacks=((("full",), 2),))
    with pytest.raises(UserError, match="has no attention that"):
        load(folder, stacks=((("lstm",), 3),), memory={})


# --- a memory on a pretrained model ---------------------------------------------------------------------------------------


PLAIN = (("full",), 1)
ADDED = {
    "memorizing": (
        (PLAIN, (("memorizing",), 1), PLAIN),
        {"memorizing": {"normalise": False, "segment": 8, "memory": 16, "neighbours": 4}},
    ),
    "infini": ((PLAIN, (("infini",), 1), PLAIN), {"infini": {"segment": 32}}),
    "lstm": (((("full+lstm",), 2), PLAIN), {}),
    "product_key": (
        ((("full/mlp+product_key", "full/engram/mlp"), 1), PLAIN),
        {"product_key": {"subkeys": 16, "top_k": 8}, "engram": {"rows": 64}},
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    a = golden("smollm2")
    return read(*load(write(tmp_path_factory.mktemp("plain") / "smollm2", a)), a["input.input_ids"], (8, 8, 8))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ADDED)
def test_a_memory_on_a_pretrained_model_begins_as_nothing(name, folder, plain):
    stacks, memory = ADDED[name]
    token = golden("smollm2")["input.input_ids"]
    lm, params = load(folder, stacks=stacks, memory=memory, closed=True)
    assert pretrained.new_parameters(lm)
    assert distance(read(lm, params, token, (8, 8, 8)), plain) <= 1e-5
    opened = load(folder, stacks=stacks, memory=memory)
    assert distance(read(*opened, token, (8, 8, 8)), plain) > 1e-3  # control
    with pytest.raises(UserError, match=r"no counterpart of .*\(layer \d\)"):
        pretrained.export(lm, params, folder.with_name("out"))
    assert not folder.with_name("out").exists()


@pytest.mark.thorough
def test_around_a_pretrained_body_and_over_its_logits(folder):
    lm, params = load(folder, body="rmt", head="knn_lm", memory={})
    assert all(path.startswith(("body/initial", "body/norm", "head")) for path in pretrained.new_parameters(lm))
    assert distance(params["embed"], load(folder)[1]["embed"]) == 0
    assert np.isfinite(read(lm, params, golden("smollm2")["input.input_ids"])).all()
