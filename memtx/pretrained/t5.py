"""T5 (Raffel et al. 2019, arXiv 1910.10683): an encoder-decoder with a relative bias. v1.1 and Flan (Chung et al. 2022,
2210.11416) have a gated MLP and an untied head, unlike v1.0. Names and settings are those of Hugging Face's config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtx.config import Model
from memtx.errors import UserError, brief
from memtx.models import patterns
from memtx.nn.positions import T5_BUCKETS, T5_MAX_DISTANCE
from memtx.pretrained.fields import flag, integer, number, text
from memtx.pretrained.fields import layers as layer_count
from memtx.pretrained.names import Layers, Names, Pair

TYPES = ("t5",)
ACTIVATIONS = {"relu": "relu", "gated-gelu": "geglu", "gated-silu": "swiglu"}


def _attention(layer: str, name: str, slot: str) -> tuple[Pair, ...]:
    return (
        Pair(f"{layer}.{name}.q.weight", f"{{{slot}}}/q/w"),
        Pair(f"{layer}.{name}.k.weight", f"{{{slot}}}/k/w"),
        Pair(f"{layer}.{name}.v.weight", f"{{{slot}}}/v/w"),
        Pair(f"{layer}.{name}.o.weight", f"{{{slot}}}/out/w"),
        Pair(f"{layer}.layer_norm.weight", f"{{{slot}_norm}}/scale"),
    )


def _mlp(layer: str) -> tuple[Pair, ...]:
    dense = f"{layer}.DenseReluDense"
    return (
        Pair(f"{dense}.wi.weight", "{mlp}/up/w", gated=False),
        Pair(f"{dense}.wi_0.weight", "{mlp}/gate/w", gated=True),
        Pair(f"{dense}.wi_1.weight", "{mlp}/up/w", gated=True),
        Pair(f"{dense}.wo.weight", "{mlp}/down/w"),
        Pair(f"{layer}.layer_norm.weight", "{mlp_norm}/scale"),
    )


BIAS = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"

NAMES = Names(
    model=(
        Pair("shared.weight", "embed", transposed=False),
        Pair(f"encoder.{BIAS}", "encoder/relative_bias", transposed=False),
        Pair("encoder.final_layer_norm.weight", "encoder/norm/scale"),
        Pair(f"decoder.{BIAS}", "relative_bias", transposed=False),
        Pair("decoder.final_layer_norm.weight", "norm/scale"),
        Pair("lm_head.weight", "to_logits/w"),
    ),
    layers=(
        Layers("encoder.block.{i}.", _attention("layer.0", "SelfAttention", "attention") + _mlp("layer.1"), root="encoder"),
        Layers(
            "decoder.block.{i}.",
            _attention("layer.0", "SelfAttention", "attention")
            + _attention("layer.1", "EncDecAttention", "cross_attention")
            + _mlp("layer.2"),
        ),
    ),
    ignored=r"EncDecAttention\.relative_attention_bias\.weight$",  # v1.0 has it but does not use it
    copies=r"^(en|de)coder\.embed_tokens\.weight$|^lm_head\.weight$",
)


def model(hf: Mapping[str, Any], context: int) -> Model:
    """Return the Model that a config.json describes. context: how many tokens full and cross-attention keep.

    It may exceed `n_positions`, because positions are relative. Raises UserError for settings that memtx does not support.
    """
    kind = text(hf, "feed_forward_proj", "relu")
    if kind not in ACTIVATIONS:
        raise UserError(f"a t5 with feed_forward_proj={brief(kind)} is not supported; supported: {', '.join(ACTIVATIONS)}")
    for key, known in (("num_buckets", T5_BUCKETS), ("max_distance", T5_MAX_DISTANCE)):
        if (found := integer(hf, f"relative_attention_{key}", known)) != known:
            raise UserError(f"a t5 with relative_attention_{key}={found} is not supported; supported: {known}")
    tied, width, depth = flag(hf, "tie_word_embeddings", True), integer(hf, "d_model"), layer_count(hf, "num_layers")
    scaled = flag(hf, "scale_decoder_outputs", tied)  # transformers 5 writes this field, and then marks every model as tied
    stacks = ((("full/cross/mlp",), layer_count(hf, "num_decoder_layers", depth)),)
    return Model(
        stacks=stacks,
        encoder=((("bidirectional",), depth),),
        memory={name: {"capacity": context} for name in patterns.names(stacks)},
        vocab_size=integer(hf, "vocab_size"),
        width=width,
        num_heads=integer(hf, "num_heads"),
        head_dim=integer(hf, "d_kv"),
        ff_dim=integer(hf, "d_ff"),
        norm="rms",
        norm_epsilon=number(hf, "layer_norm_epsilon", 1e-6, zero=True),
        activation=ACTIVATIONS[kind],
        position="t5",
        score_scale=1.0,
        tied=tied,
        embed_scale=1.0,
        logit_scale=width**-0.5 if scaled else 1.0,
    )


def holds(model: Model) -> bool:
    """Return whether a model belongs to this family."""
    return model.position == "t5" and bool(model.encoder)


def config(model: Model) -> dict[str, Any]:
    """Return the contents of config.json for a model of this family."""
    encoder, decoder = (sum(groups * len(p) for p, groups in stacks) for stacks in (model.encoder, model.stacks))
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": model.vocab_size,
        "d_model": model.width,
        "d_kv": model.head_dim,
        "d_ff": model.ff_dim,
        "num_layers": encoder,
        "num_decoder_layers": decoder,
        "num_heads": model.num_heads,
        "feed_forward_proj": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == model.activation),
        "layer_norm_epsilon": model.norm_epsilon,
        "relative_attention_num_buckets": T5_BUCKETS,
        "relative_attention_max_distance": T5_MAX_DISTANCE,
        "tie_word_embeddings": model.tied,
        "scale_decoder_outputs": model.logit_scale != 1,
        "dropout_rate": 0.1,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }
