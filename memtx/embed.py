"""Sentence embeddings: one vector for a text, so that texts of like meaning have a large cosine.

    minilm = memtx.load("minilm")
    near_QE = memtx.embed(minilm, questions) @ memtx.embed(minilm, texts).T

Source: Reimers and Gurevych 2019 (arXiv 1908.10084); MiniLM-L6: Wang et al. 2020 (2002.10957), trained by its authors on pairs.
B texts of a batch, T tokens, D model.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from memtx.errors import UserError
from memtx.loading import Loaded
from memtx.memory.base import segment


def embed(loaded: Loaded, texts: Sequence[str], *, max_tokens: int = 256, batch: int = 32) -> np.ndarray:
    """[len(texts), D] vectors of length 1, float32.

    max_tokens: of a text, specials included; what is beyond is not read (MiniLM's authors have 256). UserError if the model
    gives no vectors.
    """
    lm, params = loaded.lm, loaded.params
    if lm.model.output != "pooled":
        raise UserError(f"model.output={lm.model.output or 'next tokens'} gives no vectors; load it with output='pooled'")
    if isinstance(texts, str):
        raise UserError("embed takes a list of texts")
    ids = [loaded.tokenizer.cut(loaded.tokenizer.frame(text)[0], max_tokens) for text in texts]

    @jax.jit
    def vectors(params, token_BT, length_B):
        place_BT = jnp.broadcast_to(jnp.arange(token_BT.shape[1]), token_BT.shape)
        y_BD, _ = lm(params, token_BT, lm.init_state(len(token_BT)), segment(place_BT, length_B))
        return y_BD / jnp.maximum(jnp.linalg.norm(y_BD, axis=-1, keepdims=True), 1e-12)

    order = np.argsort([len(row) for row in ids], kind="stable")  # alike in length, so that little is padded
    found = np.zeros((len(ids), lm.model.width), np.float32)
    for start in range(0, len(ids), batch):
        rows = order[start : start + batch]
        length_B = np.zeros(batch, np.int32)
        length_B[: len(rows)] = [len(ids[row]) for row in rows]
        token_BT = np.zeros((batch, -(-int(length_B.max()) // 32) * 32), np.int32)  # few shapes to compile
        for i, row in enumerate(rows):
            token_BT[i, : length_B[i]] = ids[row]
        found[rows] = np.asarray(vectors(params, token_BT, length_B))[: len(rows)]
    return found
