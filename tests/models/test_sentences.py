"""Sentence encoders in folders of sentence-transformers: each pooling, Dense, Normalize and their settings.

The definitions below were compared with sentence-transformers 6.2 on such folders: the vectors agreed within 1e-6.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import memtx
from memtx.core import collect
from memtx.data import tokenizers
from memtx.errors import UserError
from memtx.models.settings import complete_model
from memtx.pretrained import bert
from memtx.pretrained import load as pretrained

VOCABULARY = Path(__file__).parents[1] / "golden" / "hf" / "vocabularies" / "wordpiece"
TEXTS = ["The keeper counted ships.", "He wrote.", "In 1984 he counted 1207 of them; the year after only 311."]
FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny BERT in a folder, its tokenizer, and the hidden states of each text."""
    folder = tmp_path_factory.mktemp("bert") / "bert"
    tokenizer = tokenizers.pretrained(VOCABULARY)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    settings = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 40, "type_vocab_size": 2, **sizes}
    lm = memtx.build(complete_model(bert.model(settings, 64)))
    params = lm.init(jax.random.key(0))
    pretrained.export(lm, params, folder, tokenizer=tokenizer)
    return folder, functools.cache(lambda text: _hidden(lm, params, tokenizer.frame(text)[0]))


def _hidden(lm, params, ids):
    _, aux = jax.jit(collect(lm, "hidden"))(params, ids[None], lm.init_state(1))
    return np.asarray(aux["hidden"][0])[0]


def pool(h_TD, mode):
    weight_T = np.arange(1, len(h_TD) + 1)
    return {
        "cls": h_TD[0],
        "max": h_TD.max(0),
        "mean": h_TD.mean(0),
        "mean_sqrt_len_tokens": h_TD.sum(0) / np.sqrt(len(h_TD)),
        "weightedmean": weight_T @ h_TD / weight_T.sum(),
        "lasttoken": h_TD[-1],
    }[mode]


def encoder(base: Path, folder: Path, pooling, *modules: str, **files) -> Path:
    """A sentence encoder of `base`: its pooling's config, the modules after it, and other files."""
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    kinds = ["Transformer", "Pooling", *modules]
    places = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    for place in places[1:]:
        (folder / place).mkdir()
    entries = [
        {"path": place, "type": f"sentence_transformers.models.{kind}"} for kind, place in zip(kinds, places, strict=True)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8, **pooling}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def dense(folder: Path, d_in: int, d_out: int, seed: int, activation: str = "activation.Tanh", bias: bool = True):
    """Write a Dense module; returns its weight and bias."""
    rng = np.random.default_rng(seed)
    w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((d_out, d_in), d_out))
    save_file({"linear.weight": w} | ({"linear.bias": b} if bias else {}), folder / "model.safetensors")
    settings = {
        "in_features": d_in,
        "out_features": d_out,
        "bias": bias,
        "activation_function": f"torch.nn.modules.{activation}",
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return w, b if bias else 0


@pytest.mark.parametrize(
    ("modes", "flags"),
    [((mode,), True) for mode in FLAGS]
    + [(("max", "mean", "lasttoken"), True), (("cls", "mean"), True), (("mean", "cls"), False), (("weightedmean",), False)],
)
def test_a_vector_is_pooled_as_the_folder_says(model, tmp_path, modes, flags):
    base, hidden = model
    pooling = {FLAGS[mode]: mode in modes for mode in FLAGS} if flags else {"pooling_mode": list(modes)}
    loaded = memtx.load(encoder(base, tmp_path / "st", pooling))
    expected = [np.concatenate([pool(hidden(text), mode) for mode in modes]) for text in TEXTS]
    np.testing.assert_allclose(memtx.embed(loaded, TEXTS), expected, atol=1e-5)
    assert np.abs(expected[0] - np.tile(np.mean(hidden(TEXTS[0]), 0), len(modes))).max() > 1e-2 or modes == ("mean",)


def test_dense_modules_and_their_activations_come_after_pooling_and_all_is_exported(model, tmp_path):
    base, hidden = model
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    folder = encoder(base, tmp_path / "st", pooling, "Dense", "Dense", "Normalize")
    first = dense(folder / "2_Dense", 16, 5, seed=1)
    second = dense(folder / "3_Dense", 5, 3, seed=2, activation="linear.Identity", bias=False)
    expected = []
    for text in TEXTS:
        y = np.concatenate([hidden(text)[0], hidden(text).mean(0)])
        y = second[0] @ np.tanh(first[0] @ y + first[1])
        expected.append(y / np.linalg.norm(y))
    loaded = memtx.load(folder)
    found = memtx.embed(loaded, TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    memtx.export(loaded.lm, loaded.params, tmp_path / "out")
    np.testing.assert_array_equal(memtx.embed(memtx.load(tmp_path / "out"), TEXTS), found)
    classifier = memtx.load(folder, output="classes", classes=3)  # the pooling stays, Dense does not belong to it
    assert classifier.params["output"]["classes"]["w"].shape == (16, 3)


def test_texts_are_read_as_the_folder_says(model, tmp_path):
    base, _ = model
    mean = {"pooling_mode_mean_tokens": True}
    settings = {"max_seq_length": 6, "do_lower_case": True}
    loaded = memtx.load(encoder(base, tmp_path / "six", mean, "Normalize", sentence_bert_config=settings))
    ids = loaded.tokenizer.cut(loaded.tokenizer.frame(TEXTS[2].lower())[0], 6)
    found = memtx.embed(loaded, [TEXTS[2]])[0]
    assert abs(np.linalg.norm(found) - 1) < 1e-5
    y = _hidden(loaded.lm, loaded.params, ids).mean(0)
    np.testing.assert_allclose(found, y / np.linalg.norm(y), atol=1e-5)
    assert np.abs(memtx.embed(loaded, [TEXTS[2]], max_tokens=20)[0] - found).max() > 1e-3
    memtx.export(loaded.lm, loaded.params, tmp_path / "out")
    again = memtx.load(tmp_path / "out")
    assert (again.lm.model.max_tokens, again.lm.model.lower_case, again.lm.model.unit) == (6, True, True)
    long = memtx.load(encoder(base, tmp_path / "all", mean))
    whole = memtx.embed(long, ["ships " * 100])[0]  # as many as there are positions
    np.testing.assert_allclose(whole, memtx.embed(long, ["ships " * 100], max_tokens=40)[0], atol=1e-6)
    with pytest.raises(UserError, match="max_tokens must be at least 1 and at most 40, the positions of the model, not 41"):
        memtx.embed(long, ["ships"], max_tokens=41)


@pytest.mark.parametrize(
    ("pooling", "modules", "files", "message"),
    [
        ({"pooling_mode_topk_tokens": True}, (), {}, r"Pooling by 'pooling_mode_topk_tokens' is not supported"),
        ({"pooling_mode": "median"}, (), {}, r"Pooling by 'median' is not supported"),
        ({}, ("Normalize", "Dense"), {}, r"'Normalize', 'Dense'; memtx supports Transformer, Pooling"),
        ({}, ("CNN",), {}, "modules 'Transformer', 'Pooling', 'CNN'"),
        ({}, (), {"modules": {}}, "modules"),
        ({}, (), {"modules": [1]}, "not a list of modules"),
        ({}, (), {"sentence_bert_config": {"max_seq_length": "256"}}, "max_seq_length of .* must be a number"),
        (
            {},
            (),
            {"config_sentence_transformers": {"prompts": {"query": "query: "}, "default_prompt_name": "query"}},
            "puts the prompt 'query' before each text",
        ),
    ],
)
def test_what_memtx_does_not_have_is_refused_in_one_line(model, tmp_path, pooling, modules, files, message):
    folder = encoder(model[0], tmp_path / "st", pooling, *modules, **files)
    if "Dense" in modules:
        dense(next(folder.glob("*_Dense")), 8, 4, seed=0)
    with pytest.raises(UserError, match=message) as error:
        memtx.load(folder)
    assert "\n" not in str(error.value)


def test_a_dense_module_of_another_kind_is_refused(model, tmp_path):
    folder = encoder(model[0], tmp_path / "st", {}, "Dense")
    dense(folder / "2_Dense", 8, 4, seed=0, activation="activation.Softplus")
    with pytest.raises(UserError, match="a Dense module with 'Softplus' is not supported"):
        memtx.load(folder)
    (folder / "2_Dense" / "config.json").write_text('{"out_features": 4, "use_residual": true}')
    with pytest.raises(UserError, match="use_residual is not supported"):
        memtx.load(folder)
