"""Text generation from prompts, with special tokens, stop texts, and characters that span several tokens.

B stream, V vocabulary.
"""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Callable, Generator, Sequence
from functools import cached_property

import numpy as np

from memtx.data.tokenizers import Tokenizer
from memtx.errors import UserError
from memtx.fields import Seed, fitted
from memtx.generate.beam import beam_search
from memtx.generate.sampling import Sampling
from memtx.generate.writer import CHUNK, LOOK, Writer
from memtx.models.lm import LM, LMState, Params

WRITTEN = 200  # tokens written by default


@dataclasses.dataclass(frozen=True)
class Completion:
    """The texts that continue each prompt, and the state after prompts and texts have been read.

    prompts and tokens have the tokens of each prompt, with the first token of a document, and of each text, with its end.
    read: computes the state.
    """

    texts: list[str]
    prompts: list[np.ndarray]
    tokens: list[np.ndarray]
    read: Callable[[], LMState] = dataclasses.field(repr=False)

    @cached_property
    def state(self) -> LMState:
        """The state of each row. The last tokens are read when it is first used."""
        return self.read()


@dataclasses.dataclass(frozen=True)
class Options:
    """The keyword arguments of `generate` and `complete`.

    max_tokens      the maximum number of tokens to write. None: 200, or as many as the learned positions allow
    sampling        how tokens are drawn. Row b draws with the seed `seed + b`, or `seed[b]` if seed is a list
    beams           more than 1 searches for the highest sum of log-probabilities / tokens**length_penalty
    stop            texts that end a row. They are not part of the result, but the state has read them
    state           the state of an earlier call to continue from. None starts documents
    source          texts, or their tokens, for the encoder of an encoder-decoder, one per row
    start           the first token of a document. None: as the tokenizer frames texts, or its <pad> after a source
    specials        whether special tokens that a prompt spells out, as chat templates do, are read as such
    chunk           how many tokens of a prompt are read at a time
    look            how many tokens are written before the host sees them, at most 16 (1 if there are stop texts)

    Raises UserError if options are incompatible.
    """

    max_tokens: int | None = None
    sampling: Sampling | None = None
    beams: int = 1
    length_penalty: float = 1.0
    stop: Sequence[str] = ()
    seed: int | list[int] = 0
    state: LMState | None = None
    source: Sequence[str | np.ndarray] | None = None
    start: int | None = None
    specials: bool = False
    chunk: int = CHUNK
    look: int = LOOK

    def __post_init__(self):
        for seed in self.seed if isinstance(self.seed, list) else [self.seed]:
            fitted(seed, Seed, "seed")
        for name in ("beams", "chunk", "look"):
            if (number := getattr(self, name)) < 1:
                raise UserError(f"{name} must be 1 or more, not {number}")
        if isinstance(self.stop, str):
            raise UserError(f"stop must be a list of strings, such as [{self.stop!r}]")
        if self.beams > 1 and self.sampling is not None and self.sampling.temperature > 0:
            raise UserError("beams > 1 does not sample; set the temperature to 0, or beams to 1")


def generate(
    lm: LM, params: Params, tokenizer: Tokenizer, prompt: str, *, source: str | None = None, look: int = 4, **options
) -> Generator[str, None, Completion]:
    """Yield text while it is generated, and return the completion. The options are those of `complete`, for one stream."""
    chosen = Options(source=None if source is None else [source], look=look, **options)
    pieces = _stream(lm, params, tokenizer, [prompt], chosen)
    while True:
        try:
            [text] = next(pieces)
        except StopIteration as stop:
            return stop.value
        if text:
            yield text


def complete(lm: LM, params: Params, tokenizer: Tokenizer, prompts: Sequence[str], **options) -> Completion:
    """Write after each prompt until the text ends or has max_tokens tokens. No row depends on the others.

    The keyword arguments are the fields of `Options`. Raises UserError if they are incompatible or the model does not predict
    next tokens.
    """
    pieces = _stream(lm, params, tokenizer, prompts, Options(**options))
    while True:
        try:
            next(pieces)
        except StopIteration as stop:
            return stop.value


def _stream(
    lm: LM, params: Params, tokenizer: Tokenizer, prompts: Sequence[str], options: Options
) -> Generator[list[str], None, Completion]:
    """Yield the new text of each row, and return the completion."""
    lm.check_next_token()
    source = _frame_sources(tokenizer, options.source, len(prompts))
    ids = _encode_prompts(tokenizer, prompts, options)
    left = _room(lm, ids, options.state, options.max_tokens)
    writer = Writer(lm, params, ids, state=options.state, source=source, chunk=options.chunk)
    stop = [text for text in options.stop if text]
    made = [_Text(tokenizer, stop, fresh=source is not None) for _ in prompts]
    masks = _masks(tokenizer, lm.model.vocab_size)
    if options.beams > 1:
        tokens = beam_search(
            writer,
            *masks,
            beams=options.beams,
            max_tokens=left,
            length_penalty=options.length_penalty,
            stops=lambda row: any(text in tokenizer.decode(row) for text in stop),
        )
        yield ["".join([*map(text.add, row), text.rest()]) for text, row in zip(made, tokens, strict=True)]
        return Completion([row.text for row in made], ids, [np.asarray(row, np.int32) for row in tokens], writer.memory())
    seed_B = np.asarray(seeds_of(options.seed, len(ids), "prompts"))
    calls = [np.zeros((len(ids), 0), np.int32)]
    while left > 0 and writer.live_B.any():
        count = min(1 if stop else options.look, LOOK, left)
        token_BN = writer.write(count, options.sampling or Sampling(), seed_B, *masks)
        calls.append(token_BN)
        left -= count
        yield ["".join(text.add(int(token)) for token in row if token >= 0) for text, row in zip(made, token_BN, strict=True)]
        writer.live_B &= [not text.stopped for text in made]
    yield [text.rest() for text in made]
    tokens = [row[row >= 0] for row in np.concatenate(calls, 1)]
    return Completion([row.text for row in made], ids, tokens, writer.memory())


def seeds_of(seed: int | list[int], count: int, what: str) -> list[int]:
    """Return a seed for each of `count` rows: `seed + i`, or those of a list. what: the rows in the error message.

    Raises UserError if a seed is not valid, or if a list has another length.
    """
    seeds = seed if isinstance(seed, list) else [seed]
    for one in seeds:
        fitted(one, Seed, "seed")
    if not isinstance(seed, list):
        return [(seed + i) % 2**32 for i in range(count)]
    if len(seed) != count:
        raise UserError(f"{len(seed)} seeds for {count} {what}; give one seed for each, or a number")
    return seed


def _frame_sources(tokenizer: Tokenizer, sources: Sequence[str | np.ndarray] | None, prompts: int) -> list[np.ndarray] | None:
    if sources is None:
        return None
    if len(sources) != prompts:
        raise UserError(f"{len(sources)} sources for {prompts} prompts; give one source per prompt")
    return [tokenizer.frame(text)[0] if isinstance(text, str) else text for text in sources]


def _encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str], options: Options) -> list[np.ndarray]:
    """Return the tokens of each prompt. A prompt that starts a document begins with the first token of documents."""
    fresh, start = options.state is None, options.start
    if start is None and options.source is not None:
        start = tokenizer.start
    return [_ids(tokenizer, prompt, start if fresh else None, fresh, options.specials) for prompt in prompts]


def _room(lm: LM, ids: Sequence[np.ndarray], state: LMState | None, asked: int | None) -> int:
    """Return how many tokens to write. Raises UserError if the learned positions are too few for the whole text."""
    if lm.most_tokens is None:
        return WRITTEN if asked is None else asked
    read_B = np.zeros(len(ids), int) if state is None else np.asarray(state.position_B)
    read = max(before + len(row) for before, row in zip(read_B, ids, strict=True))
    left = lm.most_tokens - read
    if left < (asked or 0) or left < 1:
        asked_for = f" and {asked} are to be written" if asked else ""
        raise UserError(
            f"the model has {lm.most_tokens} learned positions, but {read} tokens were read{asked_for}: {_remedy(left)}"
        )
    return min(left, WRITTEN) if asked is None else asked


def _remedy(left: int) -> str:
    return f"set max_tokens to {left} or less" if left > 0 else "give a shorter prompt, or begin without the memory"


def _ids(tokenizer: Tokenizer, prompt: str, start: int | None, begins: bool, specials: bool) -> np.ndarray:
    if start is not None:
        return np.concatenate([[start], tokenizer.encode(prompt, specials=specials)]).astype(np.int32)
    if specials or not begins:
        return tokenizer.encode(prompt, specials=specials)
    ids = tokenizer.frame(prompt)[0]
    return ids if len(ids) or tokenizer.bos < 0 else np.asarray([tokenizer.bos], np.int32)


def _masks(tokenizer: Tokenizer, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return masks of the drawable tokens and of the end tokens over the model's vocabulary.

    The vocabulary of the model may be larger than that of the tokenizer.
    """
    drawable_V, ends_V = np.zeros(size, bool), np.zeros(size, bool)
    drawable_V[: tokenizer.vocab_size] = tokenizer.drawable_V
    ends_V[list(tokenizer.eos)] = True
    return drawable_V, ends_V


class _Text:
    """The text of one row. `text` has only what no later token can change.

    fresh: whether this is the start of a text. The space that some tokenizers put before the first word is then left out.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], fresh: bool):
        self._pieces, self._ends, self._stop, self._fresh = tokenizer.pieces, set(tokenizer.eos), stop, fresh
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")  # a character may take several tokens
        self._held, self.text, self.stopped = "", "", False

    def add(self, token: int) -> str:
        """Add a token and return the text that can now be shown."""
        return self._show(self._utf8.decode(b"" if token in self._ends else self._pieces[token]), last=False)

    def rest(self) -> str:
        """Return the rest of the text, after the last token."""
        return self._show(self._utf8.decode(b"", final=True), last=True)

    def _show(self, more: str, last: bool) -> str:
        if self.stopped:
            return ""
        if self._fresh and more:
            more, self._fresh = more.removeprefix(" "), False
        self._held += more
        found = [at for text in self._stop if (at := self._held.find(text)) >= 0]
        if found:
            self.stopped, shown, self._held = True, self._held[: min(found)], ""
        else:
            keep = 0 if last else max((_overlap(self._held, text) for text in self._stop), default=0)
            cut = len(self._held) - keep
            shown, self._held = self._held[:cut], self._held[cut:]
        self.text += shown
        return shown


def _overlap(text: str, stop: str) -> int:
    """Return the number of characters at the end of a text that may be the start of a stop text."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
