"""GGUF files of the Llama family, converted to the names and layout of Hugging Face.

llama.cpp rotates the pairs (x_2i, x_2i+1) and stores q and k in this order. memtx and Hugging Face rotate (x_i, x_{i+H/2}).
Metadata are interpreted as in llama.cpp, which ignores sliding windows for these two architectures.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from memtx.errors import UserError, brief, optional
from memtx.files.gguf import Tensor, damaged, read_head
from memtx.nn.positions import rope_frequencies
from memtx.pretrained.fields import flag, integer, layers, number, text

NAMES = {  # from GGUF to Hugging Face
    r"token_embd\.weight": "model.embed_tokens.weight",
    r"output_norm\.weight": "model.norm.weight",
    r"output\.weight": "lm_head.weight",
    r"blk\.(\d+)\.attn_norm\.weight": r"model.layers.\1.input_layernorm.weight",
    r"blk\.(\d+)\.attn_(q|k|v)\.(weight|bias)": r"model.layers.\1.self_attn.\2_proj.\3",
    r"blk\.(\d+)\.attn_output\.(weight|bias)": r"model.layers.\1.self_attn.o_proj.\2",
    r"blk\.(\d+)\.ffn_norm\.weight": r"model.layers.\1.post_attention_layernorm.weight",
    r"blk\.(\d+)\.ffn_(gate|up|down)\.(weight|bias)": r"model.layers.\1.mlp.\2_proj.\3",
}
KINDS = ("llama", "qwen2")
BLOCK = 1 << 22  # numbers dequantised at a time
ROPE_TABLE = "rope_freqs.weight"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class GGUF:
    """The weights of a .gguf file, see `memtx.pretrained.weights.Weights`.

    Raises UserError if the file is damaged, quantised in an unknown format, or has an unknown architecture.
    """

    def __init__(self, path: Path):
        self.path, self._gguf = path, optional("gguf")
        head = read_head(path)
        self._metadata = head.metadata
        self._kind = head.metadata.get("general.architecture")
        self._tensors = {_name(name): tensor for name, tensor in head.tensors.items()}
        size = path.stat().st_size
        for name, tensor in self._tensors.items():
            rows, width = self._layout(name, tensor)
            if tensor.offset + rows * width > size:
                raise damaged(path, "a tensor lies beyond its end")
        try:
            self.config = self._config()
        except UserError as error:
            raise UserError(f"the metadata of {path}: {error}") from None
        self._tensors.pop(ROPE_TABLE, None)
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """Return a tensor, dequantised to float32. Raises UserError if the file is damaged."""
        tensor = self._tensors[name]
        rows, width = self._layout(name, tensor)
        found = np.empty((rows, tensor.shape[-1]), np.float32)
        step = max(BLOCK // tensor.shape[-1], 1)
        with self.path.open("rb") as file:
            file.seek(tensor.offset)
            for start in range(0, rows, step):
                block = np.frombuffer(file.read(min(step, rows - start) * width), np.uint8).reshape(-1, width)
                found[start : start + step] = self._numbers(block, tensor.kind)
        if self._kind == "llama" and (match := re.search(r"self_attn\.(q|k)_proj", name)):
            heads = self.config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]
            if tensor.shape[0] % (2 * heads):
                raise damaged(self.path, f"{name} has {tensor.shape[0]} rows for {heads} heads")
            found = found.reshape(heads, -1, 2, *tensor.shape[1:]).swapaxes(1, 2)
        return found.reshape(tensor.shape)

    def _layout(self, name: str, tensor: Tensor) -> tuple[int, int]:
        """Return (rows, bytes per row). Raises UserError if the format of the tensor is not supported."""
        if not tensor.shape or 0 in tensor.shape:
            raise damaged(self.path, f"{name} has the shape {list(tensor.shape)}")
        try:
            size, width = self._gguf.GGML_QUANT_SIZES[self._gguf.GGMLQuantizationType(tensor.kind)]
            self._numbers(np.zeros((1, width), np.uint8), tensor.kind)
        except (KeyError, ValueError, NotImplementedError):
            raise UserError(
                f"{self.path}: {brief(name)} is stored in a way ({self._kind_name(tensor.kind)}) that memtx does not read"
            ) from None
        if tensor.shape[-1] % size:
            raise damaged(self.path, f"{name} has rows of {tensor.shape[-1]} numbers in blocks of {size}")
        return math.prod(tensor.shape[:-1]), tensor.shape[-1] // size * width

    def _numbers(self, block: np.ndarray, kind: int) -> np.ndarray:
        kinds = self._gguf.GGMLQuantizationType
        return block.view("<f8") if kind == kinds.F64 else self._gguf.dequantize(block, kinds(kind))

    def _config(self) -> dict[str, Any]:
        if self._kind not in KINDS:
            raise UserError(
                f"general.architecture is {brief(self._kind)}; memtx reads GGUF files of llama (also Mistral) and qwen2"
            )
        if integer(self._metadata, "split.count", 1, least=0) > 1:
            raise UserError("the model is split into several files, which memtx does not read; join them with llama-gguf-split")
        embedding = self._tensors.get("model.embed_tokens.weight")
        if embedding is None:
            raise UserError("it has no token_embd.weight")
        about = _of_kind(self._metadata, self._kind)
        width, heads = integer(about, "embedding_length"), integer(about, "attention.head_count")
        head_dim = integer(about, "attention.key_length", width // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if (other := integer(about, key, head_dim)) != head_dim:
                raise UserError(f"{key}={other} must equal the head dim, {head_dim}")
        if not flag(about, "attention.causal", True):
            raise UserError("attention.causal=false is not supported")
        return {
            "model_type": self._kind,
            "vocab_size": embedding.shape[0],
            "hidden_size": width,
            "intermediate_size": integer(about, "feed_forward_length"),
            "num_hidden_layers": layers(about, "block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": integer(about, "attention.head_count_kv", heads),
            "head_dim": head_dim,
            "max_position_embeddings": integer(about, "context_length"),
            "rms_norm_eps": number(about, "attention.layer_norm_rms_epsilon"),
            "rope_theta": number(about, "rope.freq_base", 10_000.0),
            "rope_scaling": self._scaling(about, head_dim),
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
        }

    def _scaling(self, about: dict[str, Any], head_dim: int) -> dict[str, Any]:
        """Return `rope_scaling` as in a config.json. A factor without a type is linear (scale_linear in 2023)."""
        kind = text(about, "rope.scaling.type", "linear")
        if kind not in ("none", "linear"):
            raise UserError(f"rope.scaling.type={brief(kind)} is not supported; supported: none, linear")
        factor = number(about, "rope.scaling.factor", number(about, "rope.scale_linear", 0.0, zero=True), zero=True)
        linear = {} if kind == "none" or factor in (0, 1) else {"rope_type": "linear", "factor": factor}
        if ROPE_TABLE not in self._tensors:
            return linear
        base = number(about, "rope.freq_base", 10_000.0)
        return _llama3(self.read(ROPE_TABLE), base, head_dim, linear)

    def _kind_name(self, kind: int) -> str:
        names = {member.value: member.name for member in self._gguf.GGMLQuantizationType}
        return names.get(kind, f"ggml type {kind}")


def _llama3(divisors: np.ndarray, base: float, head_dim: int, linear: dict[str, Any]) -> dict[str, Any]:
    """Return `rope_scaling` of Llama 3.1, whose table divides each frequency. Raises UserError for any other table."""
    if np.array_equal(divisors, np.ones(head_dim // 2)):
        return linear
    factor = float(divisors.max(initial=1.0))
    plain, scaled = rope_frequencies(head_dim, base), rope_frequencies(head_dim, base, (factor, *LLAMA3.values()))
    if linear or divisors.shape != plain.shape or not np.allclose(plain / scaled, divisors, rtol=1e-4):
        raise UserError(f"{ROPE_TABLE} is not Llama 3's table of positions; load the safetensors of this model instead")
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}


def _name(theirs: str) -> str:
    for pattern, name in NAMES.items():
        if match := re.fullmatch(pattern, theirs):
            return match.expand(name)
    return theirs  # a name that `names.check` then reports as not known


def _of_kind(metadata: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the metadata of one architecture, without its prefix. A list of equal values becomes a single value."""
    about = {key.removeprefix(f"{kind}."): value for key, value in metadata.items() if key.startswith(f"{kind}.")}
    return {
        key: value[0] if isinstance(value, list) and value and all(part == value[0] for part in value) else value
        for key, value in about.items()
    }
