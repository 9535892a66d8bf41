"""Fields of a config.json: those that a family reads count, others do not, and wrong values are one line."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import memtx
from memtx.contract.case import distance
from memtx.errors import UserError
from memtx.pretrained import load as pretrained
from memtx.pretrained.fields import flag, integer, number
from tests.models.test_pretrained import golden, load, read, weights, write
from tests.models.test_weights import edit, save_file


def folder_of(tmp_path: Path, name: str, *, without=(), **changes) -> Path:
    folder = write(tmp_path / name, golden(name))
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in without}
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


# --- which family reads which field -------------------------------------------------------------------------------------------


LEFT_OVER = [
    ("smollm2", {"sliding_window": 4}),
    ("smollm2", {"sliding_window": 4, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 3}),
    ("smollm2", {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 5.0, "partial_rotary_factor": 1.0}),
    ("smollm2", {"hidden_act": "swish", "head_dim": None, "rope_scaling": {}}),
    ("mistral", {"attention_bias": True, "use_sliding_window": False, "layer_types": ["full_attention"] * 3}),
    ("qwen2", {"sliding_window": 4, "attention_bias": False, "mlp_bias": True, "max_window_layers": 0}),
    ("qwen2-window", {"max_window_layers": 0, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
]


@pytest.mark.parametrize(("name", "changes"), LEFT_OVER)
def test_a_field_that_a_family_does_not_read_changes_nothing(tmp_path, name, changes):
    """Logits are those of transformers 5.24, which were the same with these fields."""
    a = golden(name)
    lm, params = load(folder_of(tmp_path, name, **changes))
    assert distance(read(lm, params, a["input.input_ids"]), a["y.logits"]) <= 1e-4


def windows(folder: Path) -> tuple[list[str], int]:
    model = pretrained.settings(str(folder))
    entries = [entry for pattern, groups in model.stacks for entry in pattern * groups]
    return entries, model.memory["window"].window if "window" in entries else 0


def test_a_window_is_the_family_s_own(tmp_path):
    """Defaults of transformers 5.24's MistralConfig and Qwen2Config."""
    assert windows(folder_of(tmp_path, "mistral")) == (["window"] * 3, 5)
    assert windows(folder_of(tmp_path, "mistral", without=["sliding_window"])) == (["window"] * 3, 4096)
    assert windows(folder_of(tmp_path, "mistral", sliding_window=None)) == (["full"] * 3, 0)
    qwen = {"layer_types": None, "use_sliding_window": True, "sliding_window": 7}
    assert windows(folder_of(tmp_path, "qwen2", **qwen)) == (["full"] * 3, 0)  # from layer 28 on
    assert windows(folder_of(tmp_path, "qwen2", **qwen, max_window_layers=2)) == (["full"] * 2 + ["window"], 7)
    unused = qwen | {"use_sliding_window": False, "max_window_layers": 0}
    assert windows(folder_of(tmp_path, "qwen2", **unused)) == (["full"] * 3, 0)


LINEAR, LLAMA3 = {"type": "linear", "factor": 3.0}, {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "base", "scaling"),
    [
        ({"rope_theta": 50.0, "rope_scaling": LINEAR}, 50.0, (3.0, 1.0, 2.0, 0.0)),
        ({"rope_theta": 50.0, "rope_scaling": LINEAR | {"rope_theta": 7.0}}, 7.0, (3.0, 1.0, 2.0, 0.0)),
        ({"rope_theta": 50.0, "rope_scaling": {"factor": 3.0}}, 50.0, ()),
        (
            {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
            10_000.0,
            (3.0, 1.0, 2.0, 0.0),
        ),
        ({"rope_parameters": LLAMA3 | {"rope_type": "llama3"}}, 10_000.0, (8.0, 1.0, 4.0, 64.0)),
        (
            {"rope_scaling": LLAMA3 | {"type": "llama3"}, "original_max_position_embeddings": 16},
            10_000.0,
            (8.0, 1.0, 4.0, 16.0),
        ),
    ],
)
def test_positions_are_scaled_as_in_transformers(tmp_path, changes, base, scaling):
    folder = folder_of(tmp_path, "smollm2", without=["rope_parameters", "rope_theta", "rope_scaling"], **changes)
    model = pretrained.settings(str(folder))
    assert (model.rope_base, model.rope_scaling) == (base, scaling)


@pytest.mark.thorough
def test_t5_as_transformers_5_saves_it(tmp_path):
    """tie_word_embeddings is always true there, and scale_decoder_outputs has the meaning that its absence had in v1.1."""
    changes = {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    for name, size in (("t5-v1.0", 16**0.5), ("t5-v1.1", 1.0)):  # v1.0 scales by width^-0.5, and v1.1 has an untied head
        a = golden(name)
        lm, params = load(folder_of(tmp_path, name, **changes))
        target = np.pad(np.maximum(a["input.labels"], 0), ((0, 0), (1, 0)))[:, :-1]
        length = a["input.attention_mask"].sum(1)
        state = jax.jit(lm.encode)(params, a["input.input_ids"], lm.init_state(3), length)
        logits, _ = jax.jit(lm.__call__)(params, target, state)
        assert distance(np.asarray(logits)[0], a["y.logits"][0] * size) <= 1e-4
        pretrained.export(lm, params, tmp_path / f"{name}-again")
        assert load(tmp_path / f"{name}-again")[0].model.logit_scale == 1


# --- wrong values -------------------------------------------------------------------------------------------------------------


WRONG = [None, "16", 16.5, True, [16], {}, 0, -1, 10**9, 10**400, float("nan"), float("inf")]
SIZES = {
    "smollm2": ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    "gpt2": ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions"),
    "bert-model": ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    "t5-v1.0": ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_size_that_is_no_size_is_one_line(tmp_path, name):
    folder = folder_of(tmp_path, name)
    config = json.loads((folder / "config.json").read_text())
    for key in SIZES[name]:
        for value in WRONG:
            (folder / "config.json").write_text(json.dumps(config | {key: value}))
            with pytest.raises(UserError, match=f"(has no '{key}'|{key} must be a whole number from 1)") as raised:
                pretrained.settings(str(folder))
            assert len(str(raised.value)) < 400
    edit(folder, **config | {SIZES[name][0]: float(config[SIZES[name][0]])})  # 31.0 is 31
    pretrained.settings(str(folder))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a number from 0, not '1e-5'"),
        ({"rope_theta": -1.0, "rope_parameters": None}, "rope_theta must be a number above 0, not -1.0"),
        ({"rope_scaling": ["linear", 2.0]}, r"rope_scaling must be an object \{...\}, not \['linear', 2.0\]"),
        ({"rope_scaling": {"type": "linear"}}, "has no 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor must be a number above 0, not 0"),
        ({"rope_scaling": LLAMA3 | {"type": "llama3", "low_freq_factor": 4.0}}, "must be below high_freq_factor"),
        ({"rope_scaling": {"type": 3}}, "type must be a string, not 3"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "for each kind of layer"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false, not 'false'"),
        ({"attention_bias": 1}, "attention_bias must be true or false, not 1"),
        ({"hidden_act": 7}, "hidden_act must be a string, not 7"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window must be a whole number from 1"),
        ({"num_attention_heads": 3, "head_dim": None}, "num_kv_heads=2 does not divide"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\] is not supported"),
        ({"model_type": None, "architectures": ["Qwen2MoeForCausalLM"]}, "model_type 'qwen2moe' is not supported"),
        ({"model_type": None, "architectures": "LlamaForCausalLM"}, "architectures must be a list of strings"),
        ({"model_type": None, "architectures": None}, "model_type None is not supported"),
    ],
)
def test_a_wrong_value_is_one_line(tmp_path, changes, line):
    with pytest.raises(UserError, match=f"the config of .*{line}"):
        pretrained.settings(str(folder_of(tmp_path, "smollm2", **changes)))


@pytest.mark.parametrize("text", ["[]", "3", "null", '"llama"', "{", "", "[" * 100_000, '{"hidden_size": 1' + "0" * 5000 + "}"])
def test_a_config_that_is_no_object_is_one_line(tmp_path, text):
    folder = folder_of(tmp_path, "smollm2")
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json (must contain an object|cannot be read)") as raised:
        memtx.load(folder)
    assert len(str(raised.value)) < 400


def test_a_config_with_a_mark_of_its_encoding_is_read(tmp_path):
    folder = folder_of(tmp_path, "smollm2")
    before = pretrained.settings(str(folder))
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())
    assert pretrained.settings(str(folder)) == before


@pytest.mark.parametrize("name", ["smollm2", "mistral", "qwen2", "gpt2", "bert-model", "bert-span", "t5-v1.0"])
def test_the_architecture_names_the_family_where_there_is_no_model_type(tmp_path, name):
    folder = folder_of(tmp_path, name)
    before = pretrained.settings(str(folder))
    edit(folder, model_type=None)
    assert pretrained.settings(str(folder)) == before
    with pytest.raises(UserError, match="tokenizer"):  # it is taken for a model, not for the workdir of a run
        memtx.load(folder)


def test_a_bert_whose_head_is_not_its_embedding_is_refused(tmp_path):
    folder = folder_of(tmp_path, "bert-masked-lm")
    a = weights(golden("bert-masked-lm"))
    embedding = a["bert.embeddings.word_embeddings.weight"]
    save_file(a | {"cls.predictions.decoder.weight": embedding}, folder / "model.safetensors")
    load(folder)
    save_file(a | {"cls.predictions.decoder.weight": embedding + 1}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"cls.predictions.decoder.weight must equal"):
        load(folder)
    edit(folder, tie_word_embeddings=False)
    with pytest.raises(UserError, match="tie_word_embeddings=false"):
        load(folder)


def test_fields_are_read_by_their_type():
    fields = {"n": 4, "whole": 4.0, "x": 0, "null": None, "yes": True}
    assert [integer(fields, "n"), integer(fields, "whole"), integer(fields, "null", 3), integer(fields, "x", least=0)] == [
        4,
        4,
        3,
        0,
    ]
    assert [number(fields, "n"), number(fields, "x", zero=True), number(fields, "gone", 0.5)] == [4.0, 0.0, 0.5]
    assert [flag(fields, "yes", False), flag(fields, "null", True)] == [True, True]
    assert isinstance(number(fields, "n"), float)
