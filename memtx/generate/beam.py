"""Beam search: it looks for the text with the highest sum of log-probabilities / tokens**length_penalty.

Beams are rows of the state. At every token each beam is extended by the whole vocabulary. Candidates that end a text are set
aside. The best of the others become the new beams, with the states of the beams that they extend. A stream is done when `beams`
texts have ended and no beam is better than the worst of them. Beams that have not ended then count as they are.

B stream, K beams, R = B K rows, W candidates of a stream, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from memtx.core import batch_axes, take_rows
from memtx.generate.writer import Writer, step
from memtx.models.lm import LM, LMState, Params


@dataclasses.dataclass
class Search:
    """The search of one stream: its beams (score, tokens), best first, and the texts that ended."""

    beams: int
    length_penalty: float
    running: list[tuple[float, list[int]]] = dataclasses.field(default_factory=lambda: [(0.0, [])])
    ended: list[tuple[float, list[int]]] = dataclasses.field(default_factory=list)
    done: bool = False

    def widen(self, candidates: list[tuple[float, int, int]], ends: Callable[[list[int]], bool]) -> list[int]:
        """Choose the new beams from candidates (score, beam, token), best first. Returns the parent of each new beam."""
        going_on, parents = [], []
        for rank, (score, beam, token) in enumerate(candidates):
            tokens = [*self.running[beam][1], token]
            if not ends(tokens):
                going_on.append((score, tokens))
                parents.append(beam)
            elif rank < self.beams:
                self.end(score, tokens)
            if len(going_on) == self.beams:
                break
        self.running = going_on
        worst = self.ended[-1][0] if len(self.ended) == self.beams else -np.inf
        self.done = not going_on or worst >= self.score(*going_on[0])
        return parents

    def end(self, score: float, tokens: list[int]) -> None:
        """Add a finished text if it is among the best."""
        self.ended = sorted([*self.ended, (self.score(score, tokens), tokens)], key=lambda e: -e[0])[: self.beams]

    def score(self, total: float, tokens: list[int]) -> float:
        """Return the score of a text from its sum of log-probabilities."""
        return total / len(tokens) ** self.length_penalty

    def best(self) -> list[int]:
        """Return the tokens of the best text."""
        if not self.done:
            for score, tokens in self.running:
                self.end(score, tokens)
        return self.ended[0][1]


def beam_search(
    writer: Writer,
    drawable_V: np.ndarray,
    ends_V: np.ndarray,
    *,
    beams: int,
    max_tokens: int,
    length_penalty: float,
    stops: Callable[[list[int]], bool],
) -> list[list[int]]:
    """Return the best tokens of each stream. They become the unread tokens of the writer.

    drawable_V: which tokens may be written. ends_V: which tokens end a text. stops: whether tokens contain a stop text.
    """
    lm, batch, width = writer.lm, len(writer.token_B), beams * (1 + int(ends_V.sum()))
    width = min(width, beams * len(ends_V))
    searches = [Search(beams, length_penalty) for _ in range(batch)]
    parent_R, token_R = np.arange(batch * beams), np.repeat(writer.token_B, beams)
    score_BK = np.where(np.arange(beams) == 0, 0.0, -np.inf).repeat(batch).reshape(beams, batch).T.astype(np.float32)
    state = _rows(lm, writer.state, np.repeat(np.arange(batch), beams))

    def ends(tokens: list[int]) -> bool:
        return bool(ends_V[tokens[-1]]) or stops(tokens)

    for _ in range(max_tokens):
        live_B = np.asarray([not search.done for search in searches])
        if not live_B.any():
            break
        live_R = np.repeat(live_B, beams).astype(np.int32)
        rows = token_R, live_R, parent_R
        found = _widen(lm, writer.params, rows, state, score_BK, drawable_V, width=width)
        (score_BW, index_BW), state = jax.tree.map(np.asarray, found[:2]), found[2]
        parent_R, score_BK = np.arange(batch * beams), np.full_like(score_BK, -np.inf)
        for b in np.flatnonzero(live_B):
            beam_W, token_W = np.divmod(index_BW[b], len(ends_V))
            candidates = [c for c in zip(score_BW[b].tolist(), beam_W, token_W.tolist(), strict=True) if c[0] > -np.inf]
            for k, parent in enumerate(searches[b].widen(candidates, ends)):
                parent_R[b * beams + k] = b * beams + parent
                score_BK[b, k], token_R[b * beams + k] = searches[b].running[k][0], searches[b].running[k][1][-1]
    tokens = [search.best() if max_tokens > 0 else [] for search in searches]
    writer.unread = [np.asarray([first, *row], np.int32) for first, row in zip(writer.token_B, tokens, strict=True)]
    return tokens


@partial(jax.jit, static_argnames="lm")
def _rows(lm: LM, state: LMState, index_R: Array) -> LMState:
    """Return the state of the streams at these indices."""
    return take_rows(state, index_R, batch_axes(lm.init_state))


@partial(jax.jit, static_argnames=("lm", "width"), donate_argnames="state")
def _widen(
    lm: LM,
    params: Params,
    rows: tuple[Array, Array, Array],
    state: LMState,
    score_BK: Array,
    drawable_V: Array,
    *,
    width: int,
):
    """Let each row read its token from the state of its parent.

    rows: the token of each row, how many tokens it reads (0 or 1), and the index of its parent.
    Returns the best candidates of each stream, score_BW and index_BW (beam * V + token), and the new state.
    """
    token_R, live_R, parent_R = rows
    logits_RTV, state = step(lm, params, token_R[:, None], live_R, _rows(lm, state, parent_R))
    logp_RV = jnp.where(drawable_V, jax.nn.log_softmax(logits_RTV[:, 0]), -jnp.inf)
    total_BKV = score_BK[:, :, None] + logp_RV.reshape(*score_BK.shape, -1)
    return *lax.top_k(total_BKV.reshape(len(score_BK), -1), width), state
