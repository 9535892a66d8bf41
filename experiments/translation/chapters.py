"""Chapters translated verse by verse by a decoder-only model, which continues from a state.

The state of a verse has read the chapter's earlier verses and their translations (`carried`), nothing (`wiped`), or the earlier
verses of another chapter (`wrong`).

R chapters, T tokens of a verse and its translation.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import memtx
from memtx.data.streams import NOTHING
from memtx.evaluation.losses import token_nll
from memtx.generate import complete_in_batches
from memtx.generate.writer import padded, read, step
from memtx.models.lm import LMState
from memtx.runs.load import Loaded

WAYS = ("carried", "wiped", "wrong")
LONGEST = 96  # tokens written of a verse
BATCH = 32
SIZES = 64  # tokens of a verse are padded to a multiple of this

Chapter = list[tuple[str, str]]  # (English, Spanish) of each verse


def translate_alone(loaded: Loaded, chapters: list[Chapter]) -> list[str]:
    """Translate each verse with an empty state (`wiped`). Returns the texts of all verses, chapter by chapter."""
    prompts = [f"{english}\n" for chapter in chapters for english, _ in chapter]
    options = {"batch": BATCH, "sampling": memtx.GREEDY, "max_tokens": LONGEST}
    return complete_in_batches(loaded.lm, loaded.params, loaded.tokenizer, prompts, **options).texts


def translate_chapters(loaded: Loaded, chapters: list[Chapter]) -> dict[str, list[str]]:
    """Translate with the state that has read the model's own translations: `carried`, and that of another chapter, `wrong`.

    Chapters are read together. One that is over is read again, until the longest is over.
    """
    written: dict[str, list[list[str]]] = {way: [[] for _ in chapters] for way in ("carried", "wrong")}
    state: LMState | None = None
    for verse in range(max(map(len, chapters))):
        prompts = [f"{chapter[verse % len(chapter)][0]}\n" for chapter in chapters]
        done = partial(memtx.complete, loaded.lm, loaded.params, loaded.tokenizer, prompts, max_tokens=LONGEST, chunk=128)
        carried, wrong = (done(state=state_of, sampling=memtx.GREEDY) for state_of in (state, _of_others(loaded, state)))
        for way, found in (("carried", carried), ("wrong", wrong)):
            for row, text in enumerate(found.texts):
                written[way][row].append(text)
        unended = [[] if ids[-1] in loaded.tokenizer.eos else [loaded.tokenizer.ending] for ids in carried.tokens]
        state = read(loaded.lm, loaded.params, [np.asarray(ids, np.int32) for ids in unended], carried.state, 32)
    return {
        way: [text for chapter, texts in zip(chapters, rows, strict=True) for text in texts[: len(chapter)]]
        for way, rows in written.items()
    }


def bits_per_byte(loaded: Loaded, chapters: list[Chapter], ways: tuple[str, ...] = WAYS) -> dict[str, float]:
    """Return the bits per byte of the true translations, after the true translations of earlier verses, for each way."""
    nats, size = dict.fromkeys(ways, 0.0), 0
    state = fresh = loaded.lm.init_state(len(chapters))
    for verse in range(max(map(len, chapters))):
        rows = [_tokens(loaded, *chapter[verse % len(chapter)], first=verse == 0) for chapter in chapters]
        alone = [_tokens(loaded, *chapter[verse % len(chapter)], first=True) for chapter in chapters]
        live_R = np.asarray([verse < len(chapter) for chapter in chapters])
        size += sum(len(chapter[verse][1].encode()) for chapter in chapters if verse < len(chapter))
        states = {"carried": (rows, state), "wiped": (alone, fresh), "wrong": (rows, _of_others(loaded, state))}
        for way in ways:
            found_R, after = _nats(loaded, *states[way])
            nats[way] += float(found_R[live_R].sum())
            state = after if way == "carried" else state
    return {way: total / math.log(2) / size for way, total in nats.items()}


def _tokens(loaded: Loaded, english: str, spanish: str, first: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return (token_T, label_T) of a verse and its translation, as in memtx.tasks.turns. The last token is the end."""
    tokenizer = loaded.tokenizer
    prompt = tokenizer.frame(f"{english}\n")[0] if first else tokenizer.encode(f"{english}\n")
    token_T = np.concatenate([prompt, tokenizer.encode(spanish), [tokenizer.ending]]).astype(np.int32)
    label_T = np.append(token_T[1:], NOTHING)
    label_T[: len(prompt) - 1] = NOTHING
    return token_T, label_T


def _nats(loaded: Loaded, rows, state: LMState) -> tuple[np.ndarray, LMState]:
    """Return the loss of each row's labels in nats, and the state after all its tokens."""
    longest = -(-max(len(token_T) for token_T, _ in rows) // SIZES) * SIZES
    token_RT, length_R = padded([token_T for token_T, _ in rows], longest)
    label_RT = np.full((len(rows), longest), NOTHING, np.int32)
    for row, (_, label_T) in enumerate(rows):
        label_RT[row, : len(label_T)] = label_T
    found_R, state = _call(loaded.lm, loaded.params, token_RT, label_RT, length_R, state)
    return np.asarray(found_R), state


@partial(jax.jit, static_argnums=0)
def _call(lm, params, token_RT, label_RT, length_R, state):
    logits_RTV, state = step(lm, params, token_RT, length_R, state)
    nll_RT = token_nll(logits_RTV, label_RT)[0]
    return jnp.where(label_RT >= 0, nll_RT, 0).sum(-1), state


def _of_others(loaded: Loaded, state: LMState | None) -> LMState | None:
    """Return a state in which each chapter has that of another one."""
    if state is None:
        return None
    rows = len(state.position_B)
    return memtx.take_rows(state, jnp.roll(jnp.arange(rows), rows // 2), memtx.batch_axes(loaded.lm.init_state))
