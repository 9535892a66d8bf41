"""Goldens of BERT and T5: outputs of Hugging Face's torch models at random weights, in float64.

    python tests/golden/hf/encoders.py [NAME ...]        needs torch and transformers 5; nothing else here does

An npz holds config (the text of config.json), weight.* (by their names in the files), the inputs of a call (input.*), its
outputs (y.*, float32), and for a loss grad.* of every weight. All weights are random, including biases and norms, so that a
missing one is noticed. Rows are padded with junk.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn

FOLDER = Path(__file__).parent
VOCAB, BATCH = 40, 3

BERT = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
T5 = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "d_kv": 6,  # not d_model / num_heads
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def bert(name: str, **config):
    return getattr(transformers, name)(transformers.BertConfig(**BERT, **config))


def t5(**config):
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, **config))
    if config.get("tie_word_embeddings") is False:  # v5 ties whatever the config says, until it loads a file with lm_head
        model.lm_head.weight = nn.Parameter(torch.empty(VOCAB, T5["d_model"]))
    return model


def text(rng: np.random.Generator, lengths: list[int]) -> dict[str, np.ndarray]:
    """Token ids, 2 and above, and their mask; junk after each row's length."""
    time = max(lengths)
    return {
        "input_ids": rng.integers(2, VOCAB, (BATCH, time)),
        "attention_mask": (np.arange(time) < np.array(lengths)[:, None]).astype(int),
    }


def sentences(rng: np.random.Generator, lengths=(9, 6, 2), **labels) -> dict[str, np.ndarray]:
    """Two sentences of types 0 and 1 in each row."""
    types = (np.arange(9) >= np.array([4, 3, 9])[:, None]).astype(int)
    return text(rng, list(lengths)) | {"token_type_ids": types} | labels


def masked(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Half of the real tokens are asked for."""
    given = sentences(rng)
    asked = (rng.random((BATCH, 9)) < 0.5) & (given["attention_mask"] == 1)
    return given | {"labels": np.where(asked, rng.integers(2, VOCAB, (BATCH, 9)), -100)}


def answers(rng: np.random.Generator) -> dict[str, np.ndarray]:
    target = rng.integers(2, VOCAB, (BATCH, 20))
    target[np.arange(20) >= np.array([20, 13, 1])[:, None]] = -100
    return text(rng, [45, 30, 1]) | {"labels": target}


CASES = {
    "bert-model": (lambda: bert("BertModel"), sentences),
    "bert-masked-lm": (lambda: bert("BertForMaskedLM"), masked),
    "bert-classification": (
        lambda: bert("BertForSequenceClassification", num_labels=3),
        lambda rng: sentences(rng, labels=np.array([2, 0, 1])),
    ),
    "bert-span": (  # nothing is padded, since their softmax is over the padding too
        lambda: bert("BertForQuestionAnswering"),
        lambda rng: sentences(rng, (9, 9, 9), start_positions=np.array([1, 0, 3]), end_positions=np.array([7, 4, 5])),
    ),
    "t5-v1.0": (lambda: t5(feed_forward_proj="relu"), answers),
    "t5-v1.1": (lambda: t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False), answers),
}


def make(name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([*name.encode(), 5])  # 5: their greedy texts are of several tokens
    build, inputs_of = CASES[name]
    model, inputs = build().eval(), inputs_of(rng)
    weights = {}
    with torch.no_grad():
        for path, weight in model.named_parameters():
            size = 0.1 if "shared" in path else 0.5 if path.endswith((".q.weight", ".k.weight")) else 1.5
            drawn = rng.normal(size=weight.shape) * size * (1 if "shared" in path else weight.shape[-1] ** -0.5)
            weights[path] = (drawn + ("norm" in path.lower() and path.endswith("weight"))).astype(np.float32)
            weight.copy_(torch.from_numpy(weights[path]))
    model.double()
    given = {key: torch.from_numpy(value) for key, value in inputs.items()}
    y = model(**given, **({"use_cache": False} if name.startswith("t5") else {}))  # its cache has num_layers, not the decoder's
    found = {f"weight.{path}": value for path, value in weights.items()}
    if y.get("loss") is not None:
        y.loss.backward()
        found |= {f"grad.{path}": weight.grad.numpy().astype(np.float32) for path, weight in model.named_parameters()}
    if name.startswith("t5"):
        read = {key: given[key] for key in ("input_ids", "attention_mask")}
        y["generated"] = model.generate(**read, max_new_tokens=12, do_sample=False, num_beams=1, use_cache=False)
    wanted = ("loss", "logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output", "generated")
    found |= {f"y.{key}": y[key].detach().numpy() for key in wanted if key in y}
    found = {key: v.astype(np.float32) if v.dtype == np.float64 else v for key, v in found.items()}
    model.config.architectures = [type(model).__name__]
    return found | {f"input.{key}": v for key, v in inputs.items()} | {"config": np.array(model.config.to_json_string())}


if __name__ == "__main__":
    for name in CASES:
        if len(sys.argv) == 1 or name in sys.argv[1:]:
            np.savez_compressed(FOLDER / f"{name}.npz", **make(name))
            print(name)
