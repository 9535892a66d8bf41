"""The data of a run and its evaluation: the text of a corpus, or the examples of a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from memtx.config import Config
from memtx.data.corpora import load_corpus
from memtx.data.masked import Masked
from memtx.data.streams import Batch, Stream
from memtx.data.tokenizers import Tokenizer, make_tokenizer
from memtx.data.tokens import Tokens, tokenize
from memtx.errors import UserError, quoted
from memtx.evaluation.health import Evaluate, Health
from memtx.evaluation.perplexity import Evaluation, make_evaluator
from memtx.evaluation.recall import Recall, make_recall
from memtx.evaluation.spans import answer_scores
from memtx.evaluation.text import check_scorers
from memtx.evaluation.written import bits_per_byte, greedy_scores
from memtx.models.lm import LM, Params
from memtx.progress import Report
from memtx.runs.configure import complete_task
from memtx.runs.stages import held_out, make_stages
from memtx.sharding import Layout
from memtx.tasks.base import Task
from memtx.tasks.spans import Question
from memtx.tasks.stream import Examples

Result = Evaluation | Recall


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """A function of parameters that evaluates them on held-out data.

    evaluate: the compiled evaluation. batches: makes the held-out batches. count: about how many there are. finish: completes
    the result.
    """

    evaluate: Evaluate
    batches: Callable[[], Iterable[Batch]]
    count: int
    finish: Callable[[Params, Any, Report | None], Result] = lambda params, result, progress: result

    def __call__(self, params: Params, progress: Report | None = None) -> Result:
        """Evaluate parameters. progress: called with the numbers of batches and texts that are done, and of all."""
        found = self.evaluate(params, self._counted(progress) if progress else self.batches())
        return self.finish(params, found, progress and (lambda done, total: progress(self.count + done, self.count + total)))

    def _counted(self, progress: Report) -> Iterator[Batch]:
        for done, batch in enumerate(self.batches()):
            yield batch
            progress(done + 1, self.count)

    def remember(self, params: Params) -> None:
        """Prepare to measure how much the next train step changes the keys of the first held-out segment."""
        self.evaluate.remember(params, self.batches())


class Batches(Protocol):
    """Endless batches with a cursor."""

    def __next__(self) -> Batch:
        """Return the next batch."""
        ...

    def get_state(self) -> dict:
        """Return the cursor, which JSON can store."""
        ...

    def set_state(self, state: dict) -> None:
        """Continue at a cursor. Raises UserError if it belongs to other data."""
        ...


class Source(Protocol):
    """The data of a run.

    config: the config of the run, with the class names of the data. notes: lines about the data to show to the user.
    """

    config: Config
    tokenizer: Tokenizer
    notes: tuple[str, ...]

    def check(self, lm: LM) -> None:
        """Raise a UserError unless the model can learn from the data."""
        ...

    def stream(self, rows: Sequence[int] | None = None) -> Batches:
        """Return the training batches. rows: the rows for this process (see Layout.rows_here), by default all."""
        ...

    def evaluator(self, lm: LM, layout: Layout) -> Evaluator:
        """Return a function that evaluates parameters on held-out data."""
        ...


def make_source(config: Config, tokenizer: Tokenizer | None = None) -> Source:
    """Return the data of a config.

    tokenizer: the tokenizer of a trained run. None builds the tokenizer of the config. Raises UserError if the data cannot be
    loaded.
    """
    return TaskSource(config) if config.data.corpus.startswith("task:") else TextSource(config, tokenizer)


class TextSource:
    """Documents of a corpus, evaluated by bits per byte (see `Source`)."""

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None):
        self.config = config
        self._corpus = load_corpus(config.data.corpus, config.data.cache)
        self.notes = self._corpus.notes
        self.tokenizer = tokenizer or make_tokenizer(config.data.tokenizer, self._corpus, config.data.cache)
        self._held_out = self._tokens(config.eval.split)

    def check(self, lm: LM) -> None:
        """Raise a UserError unless the model can learn from the data (see `Source`)."""
        if (lm.model.output == "masked_lm") != (self.config.data.mask > 0):
            raise UserError(
                "model.output=masked_lm and data.mask, such as 0.15, must be set together: the model predicts hidden tokens"
            )
        segment, most = self.config.data.segment, lm.model.max_position
        if self.config.data.mask:
            lm.check_length(segment, segment, f"set data.segment={most}")
            return
        lm.check_next_token()
        longest = max(int(self._tokens(split).length_D.max()) + 1 for split in ("train", self.config.eval.split))
        lm.check_length(longest, segment, f"set data.document_tokens={most} to cut documents")

    def stream(self, rows: Sequence[int] | None = None) -> Batches:
        """Return the training batches (see `Source`)."""
        rows = range(self.config.train.batch) if rows is None else rows
        return self._masked(train_stream(self._tokens("train"), self.config, rows), rows)

    def evaluator(self, lm: LM, layout: Layout) -> Evaluator:
        """Return a function that evaluates parameters on held-out data."""
        evaluate = make_evaluator(lm, self.tokenizer.bytes_V, layout, make_health(lm, layout, self.config))
        c, rows = self.config, eval_rows(self._held_out, self.config, layout)
        here = layout.rows_here(rows)
        count = -(-int((self._held_out.length_D + 1).sum()) // (rows * c.data.segment))
        count = min(count, c.eval.segments or count)
        return Evaluator(evaluate, lambda: self._masked(eval_batches(self._held_out, c, layout), here), count)

    def _masked(self, batches, rows: Sequence[int]):
        c = self.config
        return Masked(batches, self.tokenizer, c.data.mask, seed=c.seed, rows=rows) if c.data.mask else batches

    def _tokens(self, split: str) -> Tokens:
        tokens = tokenize(self._corpus, self.tokenizer, split, self.config.data.cache)
        return tokens.cut(most - 1) if (most := self.config.data.document_tokens) else tokens


class TaskSource:
    """Examples of a task, evaluated by the accuracy of their labels (see `Source`)."""

    notes = ()

    def __init__(self, config: Config):
        self._stages, self._task = make_stages(config.data), held_out(config)
        self.config = _named(config, [self._task, *(task for _, task in self._stages)])
        self.tokenizer = self._task.tokenizer
        tasks = [self._task, *(task for _, task in self._stages)]
        self._source, self._longest = max(task.source for task in tasks), max(task.length for task in tasks)
        # This raises the errors of held-out examples before anything is written.
        eval_examples(self._task, config)
        self._held_out = [self._task.draw(config.seed, config.eval.split, index) for index in range(config.eval.examples)]
        if self._source and config.eval.generate:
            check_scorers()
        if self._task.spans and self._longest > config.data.segment:
            raise UserError(
                f"a question and its context have {self._longest} tokens, which one call must read: set "
                f"data.segment={self._longest}, or cut contexts (data.task.tokens={config.data.segment})"
            )
        if self._source and self._longest > (room := config.train.segments * config.data.segment):
            raise UserError(
                f"a target has {self._longest} tokens, but a step has train.segments x data.segment = {room}, and an encoder "
                f"learns from one step only: set data.segment={self._longest}, or cut targets (data.task.target_tokens={room})"
            )

    def check(self, lm: LM) -> None:
        """Raise a UserError unless the model can learn from the data (see `Source`)."""
        if self._source:
            lm.check_reads(self._source)
        lm.check_learns(self._task.classes, self._task.spans)
        most = lm.model.max_position
        written = bool(self._source and self.config.eval.generate)  # the model also reads the token that starts the text
        lm.check_length(
            self._longest + written, self.config.data.segment, f"cut texts (data.task.tokens={most} of labelled ones)"
        )

    def stream(self, rows: Sequence[int] | None = None) -> Examples:
        """Return the training batches (see `Source`)."""
        c = self.config
        return Examples(
            self._stages,
            (c.train.batch, c.train.segments, c.data.segment),
            seed=c.seed,
            count=c.data.examples,
            rows=rows,
        )

    def evaluator(self, lm: LM, layout: Layout) -> Evaluator:
        """Return a function that evaluates parameters on held-out data."""
        c = self.config
        recall = make_recall(lm, self._held_out, layout, make_health(lm, layout, c), spans=self._task.spans)

        def finish(params: Params, found: Recall, progress: Report | None) -> Recall:
            if self._task.spans:
                return self._with_answers(lm, params, found, progress)
            return self._with_text(lm, params, found, progress) if self._source else found

        count = -(-sum(-(-len(example.token_L) // c.data.segment) for example in self._held_out) // c.eval.batch)
        return Evaluator(recall, lambda: eval_examples(self._task, c, layout.rows_here(c.eval.batch)), count, finish)

    def _with_answers(self, lm: LM, params: Params, recall: Recall, progress: Report | None) -> Recall:
        asked = [example for example in self._held_out if isinstance(example, Question)]
        sizes = {"tokens": self._task.length, "batch": self.config.eval.batch, "progress": progress}
        return dataclasses.replace(recall, text=answer_scores(lm, params, self.tokenizer, asked, **sizes))

    def _with_text(self, lm: LM, params: Params, recall: Recall, progress: Report | None) -> Recall:
        c, text = self.config.eval, bits_per_byte(recall, self._held_out, self.tokenizer.bytes_V)
        if some := self._held_out[: c.generate]:
            length = self._task.length
            rows = min(c.batch, len(some))
            options = {"batch": rows, "max_tokens": length, "progress": progress}
            scores, signature = greedy_scores(lm, params, self.tokenizer, some, **options)
            return dataclasses.replace(recall, text=text | scores, signature=signature)
        return dataclasses.replace(recall, text=text)


def make_health(lm: LM, layout: Layout, config: Config) -> Health | None:
    """Return the measurements of the state that the config asks for, or None."""
    return Health(lm, layout) if config.eval.health else None


def _named(config: Config, tasks: Sequence[Task]) -> Config:
    """Return the config with the class names of the tasks. Raises UserError if the tasks have different class names."""
    first, *others = {tuple(task.names) for task in tasks}
    if others:
        raise UserError(
            f"eval.task or data.curriculum have different labels from data.task: {quoted(first)}, {quoted(others[0])}; "
            "set model.labels and model.classes"
        )
    if config.model.output != "classes" or len(first) > config.model.classes:
        return config  # `check` raises an error
    labels = (*first, *(f"LABEL_{i}" for i in range(len(first), config.model.classes)))
    model = dataclasses.replace(config.model, labels=labels)
    return dataclasses.replace(config, model=model, data=complete_task(config.data, labels))


def train_stream(tokens: Tokens, config: Config, rows: Sequence[int] | None = None) -> Stream:
    """Return the training batches of a text. rows: the rows for this process, by default all."""
    return Stream(
        tokens,
        (config.train.batch, config.train.segments, config.data.segment),
        seed=config.seed,
        rows=rows,
    )


def eval_batches(tokens: Tokens, config: Config, layout: Layout) -> Iterator[Batch]:
    """Yield the held-out documents in order, one segment at a time.

    At most `eval.segments` batches are read. A batch has no more rows than there are documents.
    """
    rows = eval_rows(tokens, config, layout)
    shape = (rows, 1, config.data.segment)
    stream = Stream(tokens, shape, shuffle=False, repeat=False, rows=layout.rows_here(rows))
    for index, batch in enumerate(stream):
        if config.eval.segments and index >= config.eval.segments:
            return
        yield batch


def eval_rows(tokens: Tokens, config: Config, layout: Layout) -> int:
    """Return the rows of an evaluation batch: `eval.batch`, or a multiple of the devices that is enough for all documents."""
    devices = layout.mesh.shape["data"]
    return min(config.eval.batch, -(-len(tokens.names) // devices) * devices)


def eval_examples(task: Task, config: Config, rows: Sequence[int] | None = None) -> Examples:
    """Return the held-out examples in order, one segment at a time. rows: the rows for this process, by default all."""
    return Examples(
        [(0, task)],
        (config.eval.batch, 1, config.data.segment),
        seed=config.seed,
        split=config.eval.split,
        count=config.eval.examples,
        repeat=False,
        rows=rows,
    )
