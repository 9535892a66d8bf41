"""Sentence embeddings: one vector per text. Texts with similar meanings have vectors with a large cosine.

    minilm = memtx.load("minilm")
    near_QE = memtx.embed(minilm, questions) @ memtx.embed(minilm, texts).T

Source: Reimers and Gurevych 2019 (arXiv 1908.10084). MiniLM-L6: Wang et al. 2020 (2002.10957), trained on pairs of sentences.
B texts of a batch, T tokens, E features of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memtx.core import segment
from memtx.errors import UserError
from memtx.models.lm import LM, Params
from memtx.runs.load import Loaded


def embed(loaded: Loaded, texts: Sequence[str], *, max_tokens: int | None = None, batch: int = 32) -> np.ndarray:
    """Return the vectors of texts, [len(texts), E] in float32. The vectors have length 1 unless `model.unit` is False.

    max_tokens: the maximum number of tokens to read of a text, including special tokens. None uses the number in the files of
    the model (MiniLM: 256), or else the number of its learned positions. batch: the maximum number of texts in a call. Raises
    UserError if the model gives no vectors, if it has fewer learned positions than max_tokens, or if a text has no tokens.
    """
    lm, params, model = loaded.lm, loaded.params, loaded.lm.model
    if model.output != "pooled":
        raise UserError(f"model.output={model.output or 'next tokens'} gives no vectors: load the model with output='pooled'")
    if isinstance(texts, str):
        raise UserError("texts must be a list of strings")
    most = limit(lm, max_tokens)
    ids = [_ids(loaded, text, most) for text in texts]
    vectors = partial(_vectors, lm)

    order = np.argsort([len(row) for row in ids], kind="stable")  # similar lengths in a batch need little padding
    features = jax.eval_shape(vectors, params, np.zeros((1, 1), np.int32), np.ones(1, np.int32)).shape[-1]
    found = np.zeros((len(ids), features), np.float32)
    for start in range(0, len(ids), batch):
        rows = order[start : start + batch]
        length_B = np.zeros(min(batch, 1 << (len(rows) - 1).bit_length()), np.int32)  # so that few shapes are compiled
        length_B[: len(rows)] = [len(ids[row]) for row in rows]
        token_BT = np.zeros((len(length_B), -(-int(length_B.max()) // 32) * 32), np.int32)
        for i, row in enumerate(rows):
            token_BT[i, : length_B[i]] = ids[row]
        found[rows] = np.asarray(vectors(params, token_BT, length_B))[: len(rows)]
    return found


@partial(jax.jit, static_argnums=0)
def _vectors(lm: LM, params: Params, token_BT: Array, length_B: Array) -> Array:
    position_BT = jnp.broadcast_to(jnp.arange(token_BT.shape[1]), token_BT.shape)
    y_BE, _ = lm(params, token_BT, lm.init_state(len(token_BT)), segment(position_BT, length_B))
    return y_BE / jnp.maximum(jnp.linalg.norm(y_BE, axis=-1, keepdims=True), 1e-12) if lm.model.unit else y_BE


def limit(lm: LM, asked: int | None = None) -> int:
    """Return the maximum number of tokens to read of a text, or 0 for no limit."""
    room = lm.most_tokens
    if asked is None:
        return min(lm.model.max_tokens or room or 0, room or lm.model.max_tokens)
    if asked < 1 or (room and asked > room):
        raise UserError(
            f"max_tokens must be at least 1{f' and at most {room}, the positions of the model' if room else ''}, not {asked}"
        )
    return asked


def _ids(loaded: Loaded, text: str, most: int) -> np.ndarray:
    text = text.lower() if loaded.lm.model.lower_case else text
    ids = loaded.tokenizer.cut(loaded.tokenizer.frame(text)[0], most)
    if not len(ids):
        raise UserError(f"the tokenizer {loaded.tokenizer.name} gives no tokens for the text {text!r}: leave the text out")
    return ids
