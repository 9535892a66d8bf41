"""Sentence encoders in the format of sentence-transformers: a model, the pooling of its tokens, and the reading of texts.

    modules.json                  Transformer, Pooling, then Dense (up to MOST) and Normalize, in this order
    1_Pooling/config.json         which tokens are pooled: `Model.pool`
    2_Dense/                      a linear map and an activation, with weights: `Model.projections`
    sentence_bert_config.json     `Model.max_tokens` and `Model.lower_case`

Other modules raise UserError. Source: sentence-transformers 6.2 (Reimers and Gurevych 2019, arXiv 1908.10084).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from memtx.config import Model
from memtx.errors import UserError, quoted
from memtx.pretrained import weights
from memtx.pretrained.weights import Safetensors, Weights, read_any_json, read_json

MOST = 4  # Dense modules
DENSE = "dense."  # the prefix of their tensors' names
POOLS = {  # from sentence-transformers to memtx, in the order in which several are joined
    "cls": "first",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt",
    "weightedmean": "weighted",
    "lasttoken": "last",
}
FLAGS = dict(
    zip(
        (
            "pooling_mode_cls_token",
            "pooling_mode_max_tokens",
            "pooling_mode_mean_tokens",
            "pooling_mode_mean_sqrt_len_tokens",
            "pooling_mode_weightedmean_tokens",
            "pooling_mode_lasttoken",
        ),
        POOLS,
        strict=True,
    )
)
ACTIVATIONS = {
    "Tanh": "tanh",
    "Identity": "identity",
    "ReLU": "relu",
    "GELU": "gelu_exact",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}


def open_weights(path: Path) -> Weights:
    """Open the weights of any pretrained model, including the modules of a sentence encoder.

    `config["sentences"]` then has the fields of Model that these modules decide. Tensors of the Dense modules are named
    "dense.0.linear.weight" and so on. Raises UserError if memtx does not support a module or cannot read the files.
    """
    found = weights.open_weights(path)
    return SentenceEncoder(path, found) if path.is_dir() and modules(path) else found


class SentenceEncoder:
    """The weights of a model and of its Dense modules, see `memtx.pretrained.weights.Weights`."""

    def __init__(self, folder: Path, model: Weights):
        kinds = _checked(folder, modules(folder))
        self.path, self._model = folder, model
        dense = [folder / path for kind, path in kinds if kind == "Dense"]
        self._dense = {f"{DENSE}{i}.": Safetensors(path) for i, path in enumerate(dense)}
        pools = [_pool(read_json(folder / path / "config.json")) for kind, path in kinds if kind == "Pooling"]
        fields = {
            "pool": pools[0],
            "projections": tuple(_projection(of.config) for of in self._dense.values()),
            "unit": any(kind == "Normalize" for kind, _ in kinds),
        }
        self.config = {**model.config, "sentences": fields | _reading(folder)}
        own = {prefix + name: shape for prefix, of in self._dense.items() for name, shape in of.shapes.items()}
        self.shapes = {**model.shapes, **own}

    def read(self, name: str) -> np.ndarray:
        """Return a tensor in float32. Raises UserError if it cannot be read."""
        for prefix, of in self._dense.items():
            if name.startswith(prefix):
                return of.read(name.removeprefix(prefix))
        return self._model.read(name)


def modules(folder: Path) -> list[tuple[str, str]]:
    """Return (kind, path) of each module, from modules.json or from the names of subfolders. Without either there are none."""
    if (folder / "modules.json").is_file():
        entries = read_any_json(folder / "modules.json")
        if not isinstance(entries, list) or not entries or not all(map(_is_module, entries)):
            raise UserError(f"{folder / 'modules.json'} is not a list of modules, each with its type and path")
        return [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in entries]
    named = sorted(path.name for path in folder.iterdir() if re.fullmatch("[0-9]+_(Pooling|Dense|Normalize)", path.name))
    found = [(name.partition("_")[2], name) for name in named]
    # the folder of Normalize is empty, so it may have been lost in a copy
    return [("Transformer", ""), *found, ("Normalize", "")] if found else []


def _is_module(entry: Any) -> bool:
    return isinstance(entry, Mapping) and {"type", "path"} <= entry.keys()


def _checked(folder: Path, found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the modules without Dropout. Raises UserError if memtx does not support their order or a kind."""
    kinds = [kind for kind, _ in found if kind != "Dropout"]
    if not re.fullmatch(f"Transformer Pooling( Dense){{0,{MOST}}}( Normalize)*", " ".join(kinds)):
        raise UserError(
            f"{folder} is a sentence encoder with the modules {quoted(kinds)}; memtx supports Transformer, Pooling, "
            f"Dense (up to {MOST}) and Normalize, in this order"
        )
    if found[0][1] not in ("", "."):
        raise UserError(f"{folder} keeps its model in {found[0][1]}; move the files of that folder up to {folder}")
    prompts = _optional(folder / "config_sentence_transformers.json")
    if (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name")):
        raise UserError(
            f"{folder} puts the prompt {prompts['default_prompt_name']!r} before each text (default_prompt_name), which memtx "
            "does not do; set that to null in config_sentence_transformers.json, and write the prompt before the texts"
        )
    return found


def _pool(config: Mapping[str, Any]) -> str:
    """Return `Model.pool`. The default is the mean, as in sentence-transformers."""
    modes = config.get("pooling_mode") or [mode for key, mode in FLAGS.items() if config.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    known = {*FLAGS, "pooling_mode"}
    if unknown := [key for key in config if key.startswith("pooling_mode") and config[key] and key not in known]:
        raise UserError(f"Pooling by {quoted(unknown)} is not supported; supported: {', '.join(FLAGS)}")
    if unknown := [mode for mode in modes if mode not in POOLS]:
        raise UserError(f"Pooling by {quoted(unknown)} is not supported; supported: {', '.join(POOLS)}")
    return "+".join(POOLS[mode] for mode in modes)


def _projection(config: Mapping[str, Any]) -> tuple[int, str, bool]:
    """Return (features, activation, bias) of a Dense module."""
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in ACTIVATIONS:
        raise UserError(f"a Dense module with {activation!r} is not supported; supported: {', '.join(ACTIVATIONS)}")
    for key in ("module_input_name", "module_output_name"):
        if config.get(key, "sentence_embedding") not in ("sentence_embedding", None):
            raise UserError(f"a Dense module with {key}={config[key]!r} is not supported")
    if config.get("use_residual"):
        raise UserError("a Dense module with use_residual is not supported")
    if type(features := config.get("out_features")) is not int:
        raise UserError(f"out_features of a Dense module must be a number, not {features!r}")
    return features, ACTIVATIONS[activation], bool(config.get("bias", True))


def _reading(folder: Path) -> dict[str, Any]:
    """Return the settings for reading texts: `max_tokens` (0: the maximum of the model) and `lower_case`."""
    settings = _optional(folder / "sentence_bert_config.json")
    most = settings.get("max_seq_length") or _optional(folder / "tokenizer_config.json").get("model_max_length") or 0
    if isinstance(most, bool) or not isinstance(most, int | float) or most < 0:
        raise UserError(f"max_seq_length of {folder} must be a number of tokens, not {most!r}")
    return {"max_tokens": int(most) if most < 1e9 else 0, "lower_case": bool(settings.get("do_lower_case"))}


def _optional(path: Path) -> dict[str, Any]:
    """Return the settings in a file, or {} if it does not exist. Raises UserError if the file has no JSON object."""
    return read_json(path) if path.is_file() else {}


# --- writing ------------------------------------------------------------------------------------------------------------------


def write(model: Model, folder: Path, save, dense: Mapping[str, np.ndarray]) -> None:
    """Write the modules of a model that outputs vectors, into the folder of its config.json.

    save: a function that writes tensors to a file. dense: the tensors of the projections. Nothing is written for other models
    or for a BERT that pools with its built-in tanh layer.
    """
    if model.output != "pooled" or model.pool == "cls":
        return
    kinds = ["Transformer", "Pooling", *("Dense" for _ in model.projections), *(["Normalize"] if model.unit else [])]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    for path in paths[1:]:
        (folder / path).mkdir()
    modes = [theirs for part in model.pool.split("+") for theirs, ours in POOLS.items() if ours == part]
    pooling: dict[str, Any] = {"word_embedding_dimension": model.width}
    in_order = modes == [mode for mode in POOLS if mode in modes]
    pooling |= {key: mode in modes for key, mode in FLAGS.items()} if in_order else {"pooling_mode": modes}
    _dump(folder / "modules.json", entries)
    _dump(folder / "1_Pooling" / "config.json", pooling)
    _dump(folder / "sentence_bert_config.json", {"max_seq_length": model.max_tokens or None, "do_lower_case": model.lower_case})
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    for i, (features, activation, bias) in enumerate(model.projections):
        tensors = {name.split(".", 2)[2]: tensor for name, tensor in dense.items() if name.startswith(f"{DENSE}{i}.")}
        module = "linear" if activation == "identity" else "activation"
        save(tensors, folder / paths[2 + i] / "model.safetensors")
        _dump(
            folder / paths[2 + i] / "config.json",
            {
                "in_features": tensors["linear.weight"].shape[1],
                "out_features": features,
                "bias": bias,
                "activation_function": f"torch.nn.modules.{module}.{names[activation]}",
            },
        )


def _dump(path: Path, values) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
