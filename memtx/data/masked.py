"""Batches of text with hidden tokens that an encoder predicts (masked LM: Devlin et al. 2018, arXiv 1810.04805).

Each batch hides a random share of the text tokens. Of these, 80 % become the mask token, 10 % a random token, and 10 % stay.
Positions count from the start of each call, because an encoder without memory sees each call as a separate text.

The choice depends on the seed, the number of earlier batches, and the row. A cursor is therefore exact for any number of
processes.

B stream, P segments per step, T tokens per segment, W text tokens of the vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from memtx.data.streams import NOTHING, Batch
from memtx.data.tokenizers import Tokenizer
from memtx.errors import UserError

MASKED, REPLACED = 0.8, 0.1  # shares of the chosen tokens


class Masked(Iterator[Batch]):
    """The batches of a stream, with a share of their tokens hidden.

    stream: must have a cursor if the cursor of this iterator is used. share: the share of tokens to hide. rows: the rows of the
    whole batch that the stream yields. Raises UserError if the tokenizer has no mask token.
    """

    def __init__(self, stream: Iterator[Batch], tokenizer: Tokenizer, share: float, *, seed: int, rows: Sequence[int]):
        if tokenizer.mask < 0:
            raise UserError(f"the tokenizer {tokenizer.name} has no mask token, such as [MASK]; set data.mask=0")
        self._stream, self._share, self._seed, self._rows = stream, share, seed, rows
        self._mask, self._text_V = tokenizer.mask, tokenizer.bytes_V > 0
        self._batches = 0

    def __next__(self) -> Batch:
        batch = next(self._stream)
        hidden = [self._hide(tokens, row) for row, tokens in zip(self._rows, batch.token_BPT, strict=True)]
        token_BPT, chosen_BPT = (np.stack(arrays) for arrays in zip(*hidden, strict=True))
        self._batches += 1
        return dataclasses.replace(
            batch,
            token_BPT=token_BPT,
            target_BPT=np.where(chosen_BPT, batch.token_BPT, NOTHING),
            position_BPT=np.broadcast_to(np.arange(token_BPT.shape[-1], dtype=np.int32), token_BPT.shape),
        )

    def get_state(self) -> dict:
        """Return the cursor of the next batch, JSON-able and the same on every process."""
        return {**self._stream.get_state(), "masked": self._batches}  # pyright: ignore[reportAttributeAccessIssue]

    def set_state(self, state: dict) -> None:
        """Continue from a cursor. Raises UserError if it belongs to a different stream or to one without hidden tokens."""
        if type(batches := state.get("masked")) is not int:
            raise UserError("the saved data cursor belongs to a run that hid no tokens; keep data.mask the same to resume")
        self._stream.set_state(state)  # pyright: ignore[reportAttributeAccessIssue]
        self._batches = batches

    def _hide(self, token_PT: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (token_PT, chosen_PT): the tokens for the encoder, and which tokens it must predict."""
        rng = np.random.Generator(np.random.PCG64([self._seed, self._batches, row]))
        drawn_PT, kind_PT, other_PT = rng.random((3, *token_PT.shape))
        chosen_PT = self._text_V[token_PT] & (drawn_PT < self._share)
        text_W = np.flatnonzero(self._text_V)
        random_PT = text_W[(other_PT * len(text_W)).astype(int)]
        seen_PT = np.select([kind_PT < MASKED, kind_PT < MASKED + REPLACED], [self._mask, random_PT], token_PT)
        return np.where(chosen_PT, seen_PT, token_PT).astype(np.int32), chosen_PT
