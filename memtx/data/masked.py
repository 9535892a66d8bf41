"""Batches of text with tokens hidden, which an encoder is asked for (masked-LM: Devlin et al. 2018, arXiv 1810.04805).

Of the tokens that stand for text a share is drawn anew each time; of those 80 % become the mask token, 10 % a token drawn at
random, 10 % stay. Places count from each call's start: to an encoder without memory each call is a text of its own.

What is drawn depends on the seed, on how many batches came before, and on the row: a cursor is exact on any number of
processes. P segments per step, T time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from memtx.data.streams import NOTHING, Batch
from memtx.data.tokenizers import Tokenizer
from memtx.errors import UserError

MASKED, REPLACED = 0.8, 0.1  # of the tokens that are drawn


class Masked(Iterator[Batch]):
    """stream: with a cursor if this one's is asked for. share: of tokens to hide. first_row: this process's, over all rows.

    UserError if the tokenizer has no mask token.
    """

    def __init__(self, stream: Iterator[Batch], tokenizer: Tokenizer, share: float, *, seed: int, first_row: int = 0):
        if tokenizer.mask < 0:
            raise UserError(f"the tokenizer {tokenizer.name} has no token that hides others, such as [MASK]; set data.mask=0")
        self._stream, self._share, self._seed, self._first_row = stream, share, seed, first_row
        self._mask, self._text_V = tokenizer.mask, tokenizer.bytes_V > 0
        self._batches = 0

    def __next__(self) -> Batch:
        batch = next(self._stream)
        hidden = [self._hide(tokens, self._first_row + row) for row, tokens in enumerate(batch.token_BPT)]
        token_BPT, chosen_BPT = (np.stack(arrays) for arrays in zip(*hidden, strict=True))
        self._batches += 1
        return dataclasses.replace(
            batch,
            token_BPT=token_BPT,
            target_BPT=np.where(chosen_BPT, batch.token_BPT, NOTHING),
            position_BPT=np.broadcast_to(np.arange(token_BPT.shape[-1], dtype=np.int32), token_BPT.shape),
        )

    def get_state(self) -> dict:
        return {**self._stream.get_state(), "masked": self._batches}  # pyright: ignore[reportAttributeAccessIssue]

    def set_state(self, state: dict) -> None:
        if type(batches := state.get("masked")) is not int:
            raise UserError("the saved data cursor is of a run that hid no tokens; keep data.mask the same to resume")
        self._stream.set_state(state)  # pyright: ignore[reportAttributeAccessIssue]
        self._batches = batches

    def _hide(self, token_PT: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray]:
        """-> (token_PT as an encoder sees them, chosen_PT)."""
        rng = np.random.Generator(np.random.PCG64([self._seed, self._batches, row]))
        drawn_PT, kind_PT, other_PT = rng.random((3, *token_PT.shape))
        chosen_PT = self._text_V[token_PT] & (drawn_PT < self._share)
        text_W = np.flatnonzero(self._text_V)
        random_PT = text_W[(other_PT * len(text_W)).astype(int)]
        seen_PT = np.select([kind_PT < MASKED, kind_PT < MASKED + REPLACED], [self._mask, random_PT], token_PT)
        return np.where(chosen_PT, seen_PT, token_PT).astype(np.int32), chosen_PT
