"""GGUF files of the Llama family, under the names and in the layout of Hugging Face.

llama.cpp rotates neighbours (x_2i, x_2i+1) and stores q and k so; here and at Hugging Face x_i and x_{i+H/2} are a pair.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from memtx.data.gguf import Tensor, damaged, read_head
from memtx.errors import UserError, optional

NAMES = {  # theirs -> Hugging Face's
    r"token_embd\.weight": "model.embed_tokens.weight",
    r"output_norm\.weight": "model.norm.weight",
    r"output\.weight": "lm_head.weight",
    r"blk\.(\d+)\.attn_norm\.weight": r"model.layers.\1.input_layernorm.weight",
    r"blk\.(\d+)\.attn_(q|k|v)\.(weight|bias)": r"model.layers.\1.self_attn.\2_proj.\3",
    r"blk\.(\d+)\.attn_output\.(weight|bias)": r"model.layers.\1.self_attn.o_proj.\2",
    r"blk\.(\d+)\.ffn_norm\.weight": r"model.layers.\1.post_attention_layernorm.weight",
    r"blk\.(\d+)\.ffn_(gate|up|down)\.(weight|bias)": r"model.layers.\1.mlp.\2_proj.\3",
}
BLOCK = 1 << 22  # numbers dequantised at a time


class GGUF:
    def __init__(self, path: Path):
        self.path, self._gguf = path, optional("gguf")
        head = read_head(path)
        self._metadata = head.metadata
        self._kind = head.metadata.get("general.architecture")
        self._tensors = {self._name(name): tensor for name, tensor in head.tensors.items()}
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.config = self._config()
        for tensor in self._tensors.values():
            rows, width = self._layout(tensor)
            if tensor.offset + rows * width > path.stat().st_size:
                raise damaged(path, "a tensor lies beyond its end")

    def read(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        rows, width = self._layout(tensor)
        found = np.empty((rows, tensor.shape[-1]), np.float32)
        step = max(BLOCK // tensor.shape[-1], 1)
        kind = self._gguf.GGMLQuantizationType(tensor.kind)
        with self.path.open("rb") as file:
            file.seek(tensor.offset)
            for start in range(0, rows, step):
                block = np.frombuffer(file.read(min(step, rows - start) * width), np.uint8).reshape(-1, width)
                found[start : start + step] = self._gguf.dequantize(block, kind)
        if self._kind == "llama" and (match := re.search(r"self_attn\.(q|k)_proj", name)):
            heads = self.config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]
            found = found.reshape(heads, -1, 2, *tensor.shape[1:]).swapaxes(1, 2)
        return found.reshape(tensor.shape)

    def _layout(self, tensor: Tensor) -> tuple[int, int]:
        """Rows, and bytes of one."""
        try:
            size, width = self._gguf.GGML_QUANT_SIZES[self._gguf.GGMLQuantizationType(tensor.kind)]
        except (KeyError, ValueError):
            raise UserError(
                f"{self.path} is quantised in a way (ggml type {tensor.kind}) that this gguf package does not read"
            ) from None
        return int(np.prod(tensor.shape[:-1])), tensor.shape[-1] // size * width

    def _name(self, theirs: str) -> str:
        if theirs == "rope_freqs.weight":
            raise UserError(
                f"{self.path} scales its positions by a table of its own (rope_freqs); load its safetensors instead"
            )
        for pattern, name in NAMES.items():
            if match := re.fullmatch(pattern, theirs):
                return match.expand(name)
        return theirs  # to be listed as not known

    def _config(self) -> dict[str, Any]:
        if self._kind not in ("llama", "qwen2"):
            raise UserError(f"{self.path} holds a {self._kind!r}: of GGUF files, memtx reads llama (also Mistral) and qwen2")
        get = lambda key, default=None: self._metadata.get(f"{self._kind}.{key}", default)  # noqa: E731
        if get("rope.scaling.type", "none") != "none":
            raise UserError(f"{self.path} scales its positions ({get('rope.scaling.type')}); load its safetensors instead")
        heads = get("attention.head_count")
        return {
            "model_type": self._kind,
            "vocab_size": self.shapes["model.embed_tokens.weight"][0],
            "hidden_size": get("embedding_length"),
            "intermediate_size": get("feed_forward_length"),
            "num_hidden_layers": get("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": get("attention.head_count_kv", heads),
            "head_dim": get("attention.key_length"),
            "max_position_embeddings": get("context_length"),
            "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
            "rope_theta": get("rope.freq_base", 10_000.0),
            "sliding_window": get("attention.sliding_window"),
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
        }
