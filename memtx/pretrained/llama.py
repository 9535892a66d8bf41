"""The Llama family: Llama 2 and 3, SmolLM2, Mistral (sliding window) and Qwen2 (biases of q, k and v).

Names and settings are those of Hugging Face's config.json. Sources: Touvron et al. 2023 (arXiv 2307.09288), Dubey et al. 2024
(2407.21783), Jiang et al. 2023 (2310.06825), Qwen 2024 (2407.10671).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import groupby
from typing import Any

from memtx.config import Model
from memtx.errors import UserError, brief
from memtx.models.patterns import layers
from memtx.pretrained.fields import flag, integer, number, table, text, texts
from memtx.pretrained.fields import layers as layer_count
from memtx.pretrained.names import Layers, Names, Pair

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
                Pair("self_attn.k_proj.weight", "{attention}/k/w"),
                Pair("self_attn.k_proj.bias", "{attention}/k/b"),
                Pair("self_attn.v_proj.weight", "{attention}/v/w"),
                Pair("self_attn.v_proj.bias", "{attention}/v/b"),
                Pair("self_attn.o_proj.weight", "{attention}/out/w"),
                Pair("self_attn.o_proj.bias", "{attention}/out/b"),
                Pair("post_attention_layernorm.weight", "{mlp_norm}/scale"),
                Pair("mlp.gate_proj.weight", "{mlp}/gate/w"),
                Pair("mlp.gate_proj.bias", "{mlp}/gate/b"),
                Pair("mlp.up_proj.weight", "{mlp}/up/w"),
                Pair("mlp.up_proj.bias", "{mlp}/up/b"),
                Pair("mlp.down_proj.weight", "{mlp}/down/w"),
                Pair("mlp.down_proj.bias", "{mlp}/down/b"),
            ),
        ),
    ),
    prefix="model.",
    ignored=r"rotary_emb\.inv_freq$",
    copies=r"^lm_head\.weight$",
)


def model(hf: Mapping[str, Any], context: int) -> Model:
    """Return the Model that a config.json describes. context: how many tokens full attention keeps, up to the maximum.

    Raises UserError for settings that memtx does not support.
    """
    kind = hf["model_type"]
    if (activation := text(hf, "hidden_act", "silu")) not in ("silu", "swish"):
        raise UserError(f"a {kind} with hidden_act={brief(activation)} is not supported; supported: silu")
    bias = kind == "llama" and flag(hf, "attention_bias", False)  # the others have no such setting
    if kind == "llama" and bias != flag(hf, "mlp_bias", False):
        raise UserError("attention_bias without mlp_bias, or the reverse, is not supported")
    heads, width, depth = integer(hf, "num_attention_heads"), integer(hf, "hidden_size"), layer_count(hf, "num_hidden_layers")
    longest, window = integer(hf, "max_position_embeddings", most=MAX_POSITION), _window(hf)
    windows = _window_layers(hf, depth) if window else ()
    entries = ["window" if i in windows else "full" for i in range(depth)]
    memory = {"full": {"capacity": min(context, longest)}, "window": {"window": window}}
    base, scaling = _rope(hf, longest)
    return Model(
        stacks=tuple(((entry,), len(list(run))) for entry, run in groupby(entries)),
        memory={name: memory[name] for name in dict.fromkeys(entries)},
        vocab_size=integer(hf, "vocab_size"),
        width=width,
        num_heads=heads,
        num_kv_heads=integer(hf, "num_key_value_heads", heads),
        head_dim=integer(hf, "head_dim", width // heads),
        ff_dim=integer(hf, "intermediate_size"),
        norm_epsilon=number(hf, "rms_norm_eps", 1e-6, zero=True),
        rope_base=base,
        rope_scaling=scaling,
        max_position=longest,
        bias=bias,
        qkv_bias=kind == "qwen2",
        tied=flag(hf, "tie_word_embeddings", False),
        embed_scale=1.0,
    )


def holds(model: Model) -> bool:
    """Return whether a model belongs to this family."""
    return (model.position, model.norm, model.activation) == ("rope", "rms", "swiglu") and not model.post_norm


def config(model: Model) -> dict[str, Any]:
    """Return the contents of config.json for a model of this family."""
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
MAX_POSITION = 1 << 31
WINDOW, MAX_WINDOW = 4096, 1 << 20  # the default of mistral and qwen2, and the largest of all


def _rope(hf: Mapping[str, Any], longest: int) -> tuple[float, tuple[float, ...]]:
    """Return base and scaling. Fields of older files take precedence over `rope_parameters`, which transformers 5 writes."""
    found = table(hf, "rope_scaling") or table(hf, "rope_parameters")
    base = number(found, "rope_theta", number(hf, "rope_theta", 10_000.0))
    kind = text(found, "rope_type", text(found, "type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise UserError(f"rope_type={brief(kind)} is not supported; supported: default, linear, llama3")
    if any(isinstance(value, Mapping) for value in found.values()):
        raise UserError(f"rope settings for each kind of layer ({', '.join(map(brief, found))}) are not supported")
    if number(found, "partial_rotary_factor", number(hf, "partial_rotary_factor", 1.0)) != 1:
        raise UserError("partial_rotary_factor is not supported unless it is 1")
    if kind == "default":
        return base, ()
    factor = number(found, "factor")
    if kind == "linear":
        return base, (factor, 1.0, 2.0, 0.0)
    low, high = number(found, "low_freq_factor"), number(found, "high_freq_factor")
    if low >= high:
        raise UserError(f"low_freq_factor={low} must be below high_freq_factor={high}")
    return base, (factor, low, high, number(hf, SCALING[-1], number(found, SCALING[-1], longest)))


def _window(hf: Mapping[str, Any]) -> int:
    """Return the size of the sliding window, or 0. A llama has no window, even if its config sets one."""
    kind = hf["model_type"]
    if kind == "llama" or (kind == "qwen2" and not flag(hf, "use_sliding_window", False)):
        return 0
    return integer(hf, "sliding_window", WINDOW, most=MAX_WINDOW) if hf.get("sliding_window", WINDOW) is not None else 0


def _window_layers(hf: Mapping[str, Any], depth: int) -> Collection[int]:
    """Return the layers with a sliding window. In a mistral all layers have one."""
    if hf["model_type"] == "mistral":
        return range(depth)
    kinds = texts(hf, "layer_types")
    if not kinds:
        return range(integer(hf, "max_window_layers", 28, least=0), depth)
    if len(kinds) != depth or not set(kinds) <= {f"{name}_attention" for name in LAYER_TYPES.values()}:
        raise UserError(
            f"layer_types must be full_attention or sliding_attention for each of {depth} layers, not {brief(kinds)}"
        )
    return [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]
