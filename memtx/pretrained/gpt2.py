"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm and biases everywhere. Names are those of Hugging Face's
GPT2LMHeadModel.

Its matrices are stored as [in, out], with q, k and v in one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtx.config import Model
from memtx.errors import UserError, brief
from memtx.models.patterns import layers
from memtx.pretrained.fields import flag, integer, number, text
from memtx.pretrained.fields import layers as layer_count
from memtx.pretrained.names import Layers, Names, Pair

TYPES = ("gpt2",)

NAMES = Names(
    model=(
        Pair("transformer.wte.weight", "embed", transposed=False),
        Pair("lm_head.weight", "to_logits/w"),
        Pair("transformer.wpe.weight", "place", transposed=False),
        Pair("transformer.ln_f.weight", "norm/scale"),
        Pair("transformer.ln_f.bias", "norm/bias"),
    ),
    layers=(
        Layers(
            "transformer.h.{i}.",
            (
                Pair("ln_1.weight", "{attention_norm}/scale"),
                Pair("ln_1.bias", "{attention_norm}/bias"),
                Pair("attn.c_attn.weight", "{attention}/q/w {attention}/k/w {attention}/v/w", transposed=False),
                Pair("attn.c_attn.bias", "{attention}/q/b {attention}/k/b {attention}/v/b"),
                Pair("attn.c_proj.weight", "{attention}/out/w", transposed=False),
                Pair("attn.c_proj.bias", "{attention}/out/b"),
                Pair("ln_2.weight", "{mlp_norm}/scale"),
                Pair("ln_2.bias", "{mlp_norm}/bias"),
                Pair("mlp.c_fc.weight", "{mlp}/up/w", transposed=False),
                Pair("mlp.c_fc.bias", "{mlp}/up/b"),
                Pair("mlp.c_proj.weight", "{mlp}/down/w", transposed=False),
                Pair("mlp.c_proj.bias", "{mlp}/down/b"),
            ),
        ),
    ),
    prefix="transformer.",
    ignored=r"\.attn\.(masked_)?bias$",  # causal masks of old checkpoints
    copies=r"^lm_head\.weight$",
)

ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact", "relu": "relu"}


def model(hf: Mapping[str, Any], context: int) -> Model:
    """Return the Model that a config.json describes. context: how many tokens full attention keeps, up to the maximum.

    Raises UserError for settings that memtx does not support.
    """
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if flag(hf, key, False):
            raise UserError(f"a gpt2 with {key} is not supported")
    activation, width, longest = text(hf, "activation_function", "gelu_new"), integer(hf, "n_embd"), integer(hf, "n_positions")
    if activation not in ACTIVATIONS:
        raise UserError(
            f"a gpt2 with activation_function={brief(activation)} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    return Model(
        stacks=((("full",), layer_count(hf, "n_layer")),),
        memory={"full": {"capacity": min(context, longest)}},
        vocab_size=integer(hf, "vocab_size"),
        width=width,
        num_heads=integer(hf, "n_head"),
        ff_dim=integer(hf, "n_inner", 4 * width),
        norm="layer",
        norm_epsilon=number(hf, "layer_norm_epsilon", 1e-5, zero=True),
        activation=ACTIVATIONS[activation],
        position="learned",
        max_position=longest,
        score_scale=0.0 if flag(hf, "scale_attn_weights", True) else 1.0,
        bias=True,
        tied=flag(hf, "tie_word_embeddings", True),
        embed_scale=1.0,
    )


def holds(model: Model) -> bool:
    """Return whether a model belongs to this family."""
    kind = (model.position, model.norm, model.post_norm, model.bias)
    return kind == ("learned", "layer", False, True) and model.activation in ACTIVATIONS.values()


def config(model: Model) -> dict[str, Any]:
    """Return the contents of config.json for a model of this family."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_embd": model.width,
        "n_inner": model.ff_dim,
        "n_layer": len(layers(model.stacks)),
        "n_head": model.num_heads,
        "n_positions": model.max_position,
        "n_ctx": model.max_position,
        "activation_function": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == model.activation),
        "layer_norm_epsilon": model.norm_epsilon,
        "scale_attn_weights": model.score_scale == 0,
        "tie_word_embeddings": model.tied,
        "torch_dtype": "float32",
    }
