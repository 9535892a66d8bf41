"""BERT (Devlin et al. 2018, arXiv 1810.04805) and models of its form, such as MiniLM: bidirectional attention, learned
positions and a norm after each branch. Names and settings are those of Hugging Face's config.json, where `architectures`
decides the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtx.config import Model
from memtx.errors import UserError, brief
from memtx.pretrained import labels, sentences
from memtx.pretrained.fields import flag, integer, layers, number, text, texts
from memtx.pretrained.gpt2 import ACTIVATIONS
from memtx.pretrained.names import Layers, Names, Pair

TYPES = ("bert",)
OUTPUTS = {
    "BertModel": "pooled",
    "BertForMaskedLM": "masked_lm",
    "BertForPreTraining": "masked_lm",
    "BertForSequenceClassification": "classes",
    "BertForQuestionAnswering": "span",
}

NAMES = Names(
    model=(
        Pair("bert.embeddings.word_embeddings.weight", "embed", transposed=False),
        Pair("bert.embeddings.position_embeddings.weight", "place", transposed=False),
        Pair("bert.embeddings.token_type_embeddings.weight", "types", transposed=False),
        Pair("bert.embeddings.LayerNorm.weight", "embed_norm/scale"),
        Pair("bert.embeddings.LayerNorm.bias", "embed_norm/bias"),
        Pair("bert.pooler.dense.weight", "output/dense/w", optional=True),
        Pair("bert.pooler.dense.bias", "output/dense/b", optional=True),
        Pair("bert.pooler.dense.weight", "output/pool/dense/w", optional=True),
        Pair("bert.pooler.dense.bias", "output/pool/dense/b", optional=True),
        Pair("cls.predictions.transform.dense.weight", "output/transform/w", optional=True),
        Pair("cls.predictions.transform.dense.bias", "output/transform/b", optional=True),
        Pair("cls.predictions.transform.LayerNorm.weight", "output/norm/scale", optional=True),
        Pair("cls.predictions.transform.LayerNorm.bias", "output/norm/bias", optional=True),
        Pair("cls.predictions.bias", "output/bias", optional=True),
        Pair("classifier.weight", "output/classes/w", optional=True),
        Pair("classifier.bias", "output/classes/b", optional=True),
        Pair("qa_outputs.weight", "output/span/w", optional=True),
        Pair("qa_outputs.bias", "output/span/b", optional=True),
        *(Pair(f"{sentences.DENSE}{i}.linear.weight", f"output/projections/{i}/w") for i in range(sentences.MOST)),
        *(Pair(f"{sentences.DENSE}{i}.linear.bias", f"output/projections/{i}/b") for i in range(sentences.MOST)),
    ),
    layers=(
        Layers(
            "bert.encoder.layer.{i}.",
            (
                Pair("attention.self.query.weight", "{attention}/q/w"),
                Pair("attention.self.query.bias", "{attention}/q/b"),
                Pair("attention.self.key.weight", "{attention}/k/w"),
                Pair("attention.self.key.bias", "{attention}/k/b"),
                Pair("attention.self.value.weight", "{attention}/v/w"),
                Pair("attention.self.value.bias", "{attention}/v/b"),
                Pair("attention.output.dense.weight", "{attention}/out/w"),
                Pair("attention.output.dense.bias", "{attention}/out/b"),
                Pair("attention.output.LayerNorm.weight", "{attention_norm}/scale"),
                Pair("attention.output.LayerNorm.bias", "{attention_norm}/bias"),
                Pair("intermediate.dense.weight", "{mlp}/up/w"),
                Pair("intermediate.dense.bias", "{mlp}/up/b"),
                Pair("output.dense.weight", "{mlp}/down/w"),
                Pair("output.dense.bias", "{mlp}/down/b"),
                Pair("output.LayerNorm.weight", "{mlp_norm}/scale"),
                Pair("output.LayerNorm.bias", "{mlp_norm}/bias"),
            ),
        ),
    ),
    prefix="bert.",
    # unused heads, the tied one of masked tokens, and a table of 0, 1, 2, ... in old files
    ignored=r"embeddings\.position_ids$|^(bert\.)?pooler\.|^cls\.|^classifier\.|^qa_outputs\.|^dense\.",
    copies=r"^cls\.predictions\.decoder\.weight$",
    formerly=(("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")),
)


def model(hf: Mapping[str, Any], context: int) -> Model:
    """Return the Model that a config.json describes. `context` is ignored, because an encoder sees only one call.

    Raises UserError for settings that memtx does not support.
    """
    architecture = (texts(hf, "architectures") or ["BertModel"])[0]
    if architecture not in OUTPUTS:
        raise UserError(f"a {brief(architecture)} is not supported; supported: {', '.join(OUTPUTS)}")
    if text(hf, "position_embedding_type", "absolute") != "absolute" or flag(hf, "is_decoder", False):
        raise UserError("a bert that has relative positions or is a decoder is not supported")
    if OUTPUTS[architecture] == "masked_lm" and not flag(hf, "tie_word_embeddings", True):
        raise UserError("a bert with an untied head (tie_word_embeddings=false) is not supported")
    activation = text(hf, "hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise UserError(f"a bert with hidden_act={brief(activation)} is not supported; supported: {', '.join(ACTIVATIONS)}")
    names = labels.read(hf) if OUTPUTS[architecture] == "classes" else ()
    return Model(
        stacks=((("bidirectional",), layers(hf, "num_hidden_layers")),),
        output="pooled" if "sentences" in hf else OUTPUTS[architecture],
        labels=names,
        classes=len(names) or 2,
        vocab_size=integer(hf, "vocab_size"),
        width=integer(hf, "hidden_size"),
        num_heads=integer(hf, "num_attention_heads"),
        ff_dim=integer(hf, "intermediate_size"),
        norm="layer",
        norm_epsilon=number(hf, "layer_norm_eps", 1e-12, zero=True),
        post_norm=True,
        activation=ACTIVATIONS[activation],
        position="learned",
        max_position=integer(hf, "max_position_embeddings"),
        token_types=integer(hf, "type_vocab_size", 2),
        embed_norm=True,
        bias=True,
        tied=True,
        embed_scale=1.0,
    )


def holds(model: Model) -> bool:
    """Return whether a model belongs to this family."""
    return model.position == "learned" and model.post_norm and model.embed_norm


def config(model: Model) -> dict[str, Any]:
    """Return the contents of config.json for a model of this family."""
    architecture = next(name for name, output in OUTPUTS.items() if output == model.output)
    return {
        "architectures": [architecture],
        "model_type": "bert",
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "num_hidden_layers": sum(groups * len(pattern) for pattern, groups in model.stacks),
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.ff_dim,
        "hidden_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == model.activation),
        "max_position_embeddings": model.max_position,
        "type_vocab_size": model.token_types,
        "layer_norm_eps": model.norm_epsilon,
        **(labels.write(model.labels, model.classes) if model.output == "classes" else {}),
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
