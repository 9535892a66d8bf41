"""Goldens of the Llama family and GPT-2: outputs of Hugging Face's torch models at random weights, in float64.

    python tests/golden/hf/decoders.py [NAME ...]        needs torch and transformers 5; nothing else here does

An npz holds: config (the text of config.json), weight.* (by their names in the files), input.input_ids, y.logits and y.loss
(of next tokens), and where it says so grad.* of every weight. Every weight is random, biases and norms too, so that none is
left out unseen.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).parent
VOCAB, BATCH, TIME = 31, 2, 24

LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,  # large, to be seen
}
GPT2 = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "layer_norm_epsilon": 1e-3}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}

CASES = {  # name: (model, config, with gradients)
    "llama2": ("Llama", LLAMA | {"tie_word_embeddings": False, "num_key_value_heads": 4}, True),
    "llama3": ("Llama", LLAMA | {"rope_parameters": LLAMA3, "tie_word_embeddings": False, "head_dim": 6}, False),
    "llama-linear": ("Llama", LLAMA | {"rope_parameters": LINEAR, "attention_bias": True, "mlp_bias": True}, False),
    "smollm2": ("Llama", LLAMA | {"tie_word_embeddings": True}, False),
    "mistral": ("Mistral", LLAMA | {"sliding_window": 5}, False),
    "qwen2": ("Qwen2", LLAMA | {"tie_word_embeddings": True}, False),
    "qwen2-window": ("Qwen2", LLAMA | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, False),
    "gpt2": ("GPT2", GPT2, True),
    "gpt2-untied": ("GPT2", GPT2 | {"tie_word_embeddings": False, "n_inner": 20, "activation_function": "gelu"}, False),
}


def make(name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(list(name.encode()))
    kind, config, with_gradients = CASES[name]
    config = getattr(transformers, f"{kind}Config")(**config, attn_implementation="eager")
    model = getattr(transformers, f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config).eval()
    weights = {}
    with torch.no_grad():
        for path, weight in model.named_parameters():
            norm = path.endswith("weight") and weight.ndim == 1
            drawn = rng.normal(size=weight.shape) * (0.3 if weight.ndim == 1 else 1.5 * weight.shape[-1] ** -0.5)
            weights[path] = (drawn + norm).astype(np.float32)
            weight.copy_(torch.from_numpy(weights[path]))
    model.double()
    ids = torch.from_numpy(rng.integers(0, VOCAB, (BATCH, TIME)))
    y = model(input_ids=ids, labels=ids)
    found = {f"weight.{path}": value for path, value in weights.items()}
    if with_gradients:
        y.loss.backward()
        found |= {f"grad.{path}": weight.grad.numpy().astype(np.float32) for path, weight in model.named_parameters()}
    config.architectures = [type(model).__name__]
    outputs = {"y.logits": y.logits.detach().numpy().astype(np.float32), "y.loss": np.float32(y.loss.item())}
    return found | outputs | {"input.input_ids": ids.numpy(), "config": np.array(config.to_json_string(use_diff=False))}


if __name__ == "__main__":
    for name in CASES:
        if len(sys.argv) == 1 or name in sys.argv[1:]:
            np.savez_compressed(FOLDER / f"{name}.npz", **make(name))
            print(name)
