"""The Llama family: Llama 2 and 3, SmolLM2, Mistral (sliding window), Qwen2 (biases of q, k and v).

Sources: Touvron et al. 2023 (arXiv 2307.09288), Dubey et al. 2024 (2407.21783), Jiang et al. 2023 (2310.06825), Qwen 2024
(2407.10671); names and settings as in Hugging Face's config.json.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import groupby
from typing import Any

from memtx.config import Model
from memtx.errors import UserError
from memtx.models.names import Layers, Names, Pair
from memtx.patterns import layers

TYPES = ("llama", "mistral", "qwen2")

NAMES = Names(
    model=(
        Pair("model.embed_tokens.weight", "embed", transposed=False),
        Pair("lm_head.weight", "to_logits/w"),
        Pair("model.norm.weight", "norm/scale"),
    ),
    layers=(
        Layers(
            "model.layers.{i}.",
            (
                Pair("input_layernorm.weight", "{attention_norm}/scale"),
                Pair("self_attn.q_proj.weight", "{attention}/q/w"),
                Pair("self_attn.q_proj.bias", "{attention}/q/b"),
                Pair("self_attn.k_proj.weight self_attn.v_proj.weight", "{attention}/kv/w"),
                Pair("self_attn.k_proj.bias self_attn.v_proj.bias", "{attention}/kv/b"),
                Pair("self_attn.o_proj.weight", "{attention}/out/w"),
                Pair("self_attn.o_proj.bias", "{attention}/out/b"),
                Pair("post_attention_layernorm.weight", "{mlp_norm}/scale"),
                Pair("mlp.gate_proj.weight mlp.up_proj.weight", "{mlp}/up/w"),
                Pair("mlp.gate_proj.bias mlp.up_proj.bias", "{mlp}/up/b"),
                Pair("mlp.down_proj.weight", "{mlp}/down/w"),
                Pair("mlp.down_proj.bias", "{mlp}/down/b"),
            ),
        ),
    ),
    prefix="model.",
    ignored=r"rotary_emb\.inv_freq$|^lm_head\.weight$",  # a tied head is sometimes stored twice
)


def model(hf: Mapping[str, Any], context: int) -> Model:
    """Settings from a config.json; `context`: tokens that full attention keeps, at most the model's own."""
    if hf.get("hidden_act", "silu") != "silu":
        raise UserError(f"a {hf['model_type']} with hidden_act={hf['hidden_act']!r} is not known to memtx: only silu")
    if bool(hf.get("attention_bias")) != bool(hf.get("mlp_bias")):
        raise UserError("attention_bias without mlp_bias, or the reverse, is not known to memtx")
    heads, windows = hf["num_attention_heads"], _windows(hf)
    entries = ["window" if i in windows else "full" for i in range(hf["num_hidden_layers"])]
    memory = {"full": {"capacity": min(context, hf["max_position_embeddings"])}, "window": {"window": hf.get("sliding_window")}}
    base, scaling = _rope(hf)
    return Model(
        stacks=tuple(((entry,), len(list(run))) for entry, run in groupby(entries)),
        memory={name: memory[name] for name in dict.fromkeys(entries)},
        vocab_size=hf["vocab_size"],
        width=hf["hidden_size"],
        num_heads=heads,
        num_kv_heads=hf.get("num_key_value_heads") or heads,
        head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
        ff_dim=hf["intermediate_size"],
        norm_epsilon=hf["rms_norm_eps"],
        rope_base=base,
        rope_scaling=scaling,
        max_position=hf["max_position_embeddings"],
        bias=bool(hf.get("attention_bias")),
        qkv_bias=hf["model_type"] == "qwen2",
        tied=bool(hf.get("tie_word_embeddings")),
        embed_scale=1.0,
    )


def holds(model: Model) -> bool:
    return (model.position, model.norm, model.activation) == ("rope", "rms", "swiglu") and not model.post_norm


def config(model: Model) -> dict[str, Any]:
    """The config.json of a model of this family."""
    entries = layers(model.stacks)
    kind = "qwen2" if model.qkv_bias else "mistral" if "window" in entries else "llama"
    scaling = dict(zip(SCALING, model.rope_scaling, strict=False))
    named = {"rope_type": "llama3" if model.rope_scaling[-1] else "linear", **scaling} if scaling else {"rope_type": "default"}
    found = {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "model_type": kind,
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": model.ff_dim,
        "num_hidden_layers": len(entries),
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": model.max_position,
        "rms_norm_eps": model.norm_epsilon,
        "tie_word_embeddings": model.tied,
        "rope_theta": model.rope_base,
        "rope_scaling": named if scaling else None,
        "rope_parameters": {"rope_theta": model.rope_base, **named},
        "attention_bias": model.bias,
        "mlp_bias": model.bias,
        "torch_dtype": "float32",
    }
    if "window" in entries:
        found |= {"sliding_window": model.memory["window"].window, "use_sliding_window": True}
        found |= {"layer_types": [f"{LAYER_TYPES[entry]}_attention" for entry in entries]} if kind == "qwen2" else {}
    return found


LAYER_TYPES = {"full": "full", "window": "sliding"}
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def _rope(hf: Mapping[str, Any]) -> tuple[float, tuple[float, ...]]:
    """Base and scaling: transformers 5 has both in rope_parameters, before that they were two keys."""
    found = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
    base = float(found.get("rope_theta", hf.get("rope_theta", 10_000.0)))
    kind = found.get("rope_type", found.get("type", "default"))
    if kind == "default":
        return base, ()
    if kind == "linear":
        return base, (float(found["factor"]), 1.0, 2.0, 0.0)
    if kind == "llama3":
        return base, tuple(float(found[key]) for key in SCALING)
    raise UserError(f"rope_type={kind!r} is not known to memtx: default, linear and llama3 are")


def _windows(hf: Mapping[str, Any]) -> Collection[int]:
    """The layers with a sliding window."""
    qwen = hf["model_type"] == "qwen2"
    if not hf.get("sliding_window") or not hf.get("use_sliding_window", not qwen):
        return ()
    if kinds := hf.get("layer_types"):
        return [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]
    return range(hf.get("max_window_layers", 28) if qwen else 0, hf["num_hidden_layers"])
