"""Many prompts, completed in batches of similar lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from memtx.data.tokenizers import Tokenizer
from memtx.errors import UserError
from memtx.generate.text import complete, seeds_of
from memtx.models.lm import LM, Params


@dataclasses.dataclass(frozen=True)
class Batched:
    """The text of each prompt, and whether it ended by itself. Otherwise it has max_tokens tokens."""

    texts: list[str]
    ended: list[bool]


def complete_in_batches(
    lm: LM,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    source: Sequence[np.ndarray] | None = None,
    batch: int = 8,
    progress: Callable[[int, int], object] | None = None,
    **options,
) -> Batched:
    """Write after each prompt as `complete` does, with the same options except `state`.

    batch: the maximum number of prompts in a call. It changes a text only if rounding decides between two tokens of nearly the
    same probability. progress: called after each call with the number of texts and of prompts. Prompt i draws with the seed
    `seed + i`, or `seed[i]` if seed is a list. Raises UserError like `complete`, or if a state is given.
    """
    if options.pop("state", None) is not None:
        raise UserError("state is not supported here, because prompts are read in another order; call memtx.complete")
    count, stop = len(prompts), options.get("stop", ())
    seeds = seeds_of(options.get("seed", 0), count, "prompts")
    texts, ended, size = [""] * count, [False] * count, min(batch, count)
    lengths = [len(prompt) for prompt in prompts] if source is None else [len(ids) for ids in source]
    order = sorted(range(count), key=lambda i: -lengths[i])  # similar lengths in a batch need little padding
    for start in range(0, count, size or 1):
        rows = order[start : start + size]
        full = [*rows, *[rows[-1]] * (size - len(rows))]  # full batches need one program
        options |= {"seed": [seeds[i] for i in full], "source": source and [source[i] for i in full]}
        done = complete(lm, params, tokenizer, [prompts[i] for i in full], **options)
        for i, text, ids in zip(rows, done.texts, done.tokens, strict=False):
            texts[i] = text
            ended[i] = bool(len(ids) and ids[-1] in tokenizer.eos) or any(end in tokenizer.decode(ids) for end in stop)
        if progress:
            progress(start + len(rows), count)
    return Batched(texts, ended)
