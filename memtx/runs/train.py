"""Training: one loop for every model and memory.

The order within a step makes a run resumable bit for bit: evaluate with a separate state, save before the stream moves, take
the next batch, and start the step. Then the loop reads the metrics of the previous step, so that the device never waits for the
host. On a CPU, the command line runs steps synchronously (see memtx.training.cpu).
"""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import ml_collections
import numpy as np

from memtx.config import Config, to_json
from memtx.core import batch_axes, where_rows
from memtx.errors import UserError
from memtx.files.remote import absolute, place
from memtx.memory import MEMORIES
from memtx.memory.bank import refit
from memtx.models.lm import LM, build
from memtx.pretrained.load import load_params
from memtx.runs.configure import configure, with_cache
from memtx.runs.source import Batches, Result, make_source
from memtx.sharding import Layout
from memtx.training.checkpoint import Checkpointer, Restored, batch_of
from memtx.training.interrupt import catch_stop
from memtx.training.metrics import Metrics
from memtx.training.optim import make_optimizer, make_schedule
from memtx.training.processes import Agreement, check_same, is_first, on_first
from memtx.training.sinks import LINES, WANDB, check_sinks
from memtx.training.step import make_step
from memtx.training.workdir import SAMPLE, SILENT, differences


@dataclasses.dataclass(frozen=True)
class Trained:
    """The result of `train`.

    step: the last step. finished: False after SIGTERM or Ctrl-C. Another call of `train` then continues the run. evaluation:
    the last evaluation, or None.
    """

    step: int
    finished: bool
    evaluation: Result | None


def train(config: ml_collections.ConfigDict | Mapping | Config, workdir: str | Path, *, say: Callable = print) -> Trained:
    """Train for `train.steps` steps, or continue the run in `workdir`, on any mesh and with any batch.

    A run may continue on another mesh and with another batch. Then the first streams keep their state and their place in the
    text, and new streams start documents. workdir: a folder, or an address such as gs://bucket/run. say: a function that prints
    a line for the user. Raises UserError for a mistake that the user can fix, if possible before anything is written.
    """
    config, workdir = configure(config), place(workdir)
    on_first(partial(check_sinks, config))
    layout = Layout(config.mesh)
    layout.check_batch("train.batch / train.accumulate", config.train.batch // config.train.accumulate)
    layout.check_batch("eval.batch", config.eval.batch)
    data = make_source(config)
    config = data.config
    lm = build(config.model, vocab_size=data.tokenizer.vocab_size, subwords=data.tokenizer.subwords)
    data.check(lm)
    tx = make_optimizer(config.optim, config.train.steps, lm, cache=config.data.cache)
    stream = data.stream(layout.rows_here(config.train.batch))
    for note in data.notes:
        say(note)
    check_same(
        workdirs=str(absolute(workdir)),
        configs=json.dumps(to_json(with_cache(config, ""))),
        texts=json.dumps(stream.get_state()),
    )

    with Checkpointer(workdir, to_json(config), keep=config.checkpoint.keep, warn=say) as checkpoints:
        if is_first():
            checkpoints.files.pull(LINES, WANDB)
            data.tokenizer.save(checkpoints.files.folder / "tokenizer.json")
            checkpoints.push()
        run = Run(config, lm, tx, layout)
        restored = checkpoints.restore(**run.abstract(), batch_axes=batch_axes(lm.init_state))
        if restored:
            stream.set_state(restored.cursor)
            state = run.resume(restored)
            say(f"resumed at step {restored.step} of {config.train.steps} from {workdir}")
            if is_first() and restored.step < config.train.steps:
                (checkpoints.files.folder / SAMPLE).unlink(missing_ok=True)  # of the earlier weights
            for change in differences(to_json(config), restored.meta["config"], SILENT):
                say(f"changed: {change}")
                checkpoints.changes.append(f"at step {restored.step}, {change}")
            if (before := batch_of(restored.meta)) != config.train.batch:
                say(_streams(before, config.train.batch))
        else:
            state = run.init()
        evaluate = data.evaluator(lm, layout)
        with Metrics(checkpoints.files.folder, config, resumed=restored.step if restored else None) as metrics:
            return run.loop(state, restored.step if restored else -1, stream, evaluate, checkpoints, metrics)


class Run:
    """The compiled functions of a run."""

    def __init__(self, config: Config, lm: LM, tx, layout: Layout):
        self.config, self.lm, self.tx, self.layout = config, lm, tx, layout
        self.shardings = (layout.params(lm), layout.opt_state(tx, lm), layout.state(lm))
        self.step = jax.jit(
            make_step(lm, tx, config),
            donate_argnums=(0, 1, 2),
            out_shardings=(*self.shardings, layout.whole),
        )
        self.key = jax.random.key(config.seed)

    def _init(self, key):
        params = self.lm.init(jax.random.fold_in(key, 0))
        return params, *self._init_rest(params)

    def _init_rest(self, params):
        return self.tx.init(params), self.lm.init_state(self.config.train.batch)

    def init(self):
        """Return the parameters, new or pretrained, the optimiser state and the state of the streams."""
        if not self.config.model.pretrained:
            return jax.jit(self._init, out_shardings=self.shardings)(
                self.key
            )  # the key is an argument: one program serves all seeds
        key, cache = jax.random.fold_in(self.key, 0), self.config.data.cache
        params = jax.device_put(load_params(self.lm, key, cache=cache), self.shardings[0])
        return params, *jax.jit(self._init_rest, out_shardings=self.shardings[1:])(params)

    def resume(self, restored: Restored):
        """Return the parameters, the optimiser state and the state of the streams.

        New streams have a fresh state. Banks get the capacities of this model.
        """
        batch, before, memory = self.config.train.batch, batch_of(restored.meta), restored.memory

        def adapt(memory):
            new = self.lm.init_state(batch)
            memory = refit(memory, new)
            return where_rows(np.arange(batch) >= before, new, memory, batch_axes(self.lm.init_state))

        if batch > before or self._saved(restored.meta).model != self.lm.model:
            memory = jax.jit(adapt, out_shardings=self.shardings[2])(memory)
        return restored.params, restored.opt_state, memory

    def shapes(self) -> tuple:
        """Return the shapes of `init` with their shardings."""
        return _placed(jax.eval_shape(self._init, self.key), self.shardings)

    def abstract(self) -> dict:
        """Return the arguments of `Checkpointer.restore`. The shapes of the memory depend on the meta of the checkpoint."""
        params, opt_state, _ = self.shapes()

        def memory(meta: Mapping):
            saved = self._saved(meta)
            return _placed(jax.eval_shape(lambda: saved.init_state(self.config.train.batch)), self.layout.state(saved))

        return {"params": params, "opt_state": opt_state, "memory": memory}

    def _saved(self, meta: Mapping) -> LM:
        """Return this model with the capacities of the banks of a checkpoint."""
        there, model = meta["config"].get("memory", {}), self.lm.model

        def settings(name: str, own):
            kept = {key: there[name][key] for key in MEMORIES[name].resizable if key in there.get(name, {})}
            return dataclasses.replace(own, **kept)

        return LM(dataclasses.replace(model, memory={name: settings(name, own) for name, own in model.memory.items()}))

    def loop(self, train_state, done: int, stream: Batches, evaluate, checkpoints: Checkpointer, metrics: Metrics) -> Trained:
        """Train from step `done` to the last one. If `done` is -1, nothing was saved yet.

        Each iteration evaluates and saves if it is due, reads the next batch and starts the step on it. Then it writes the
        metrics of the previous step. This waits for the previous step, while the device already has the new one.
        """
        config, total = self.config, self.config.train.steps
        log, evaluation = _StepLog(config, metrics, max(done, 0)), None
        agree = Agreement(self.layout)
        with catch_stop() as stopped:
            for step in range(max(done, 0), total + 1):
                last, stop, measured = step == total, agree(stopped.is_set()), None
                if step > done and self._evaluates(step):
                    log.write()
                    with log.paused():
                        evaluation = evaluate(train_state[0])
                        measured = evaluation.metrics()
                        metrics.write(step, measured)
                        checkpoints.push()
                if step > done and (last or stop or _is_due(step, config.checkpoint.every)):
                    log.write()
                    checkpoints.save(step, **self._items(train_state), cursor=stream.get_state(), metrics=measured)
                    log.saved = step
                if last or stop:
                    break
                if config.eval.health and self._evaluates(step + 1):
                    log.write()
                    with log.paused():
                        evaluate.remember(train_state[0])
                batch = self.layout.shard(next(stream))
                *train_state, values = self.step(*train_state, batch, np.int32(step), self.key)
                log.write()
                log.pending = (step + 1, values, time.monotonic())
            if evaluation is None and step == total:
                evaluation = evaluate(train_state[0])
            checkpoints.wait()  # a second signal must not interrupt the last save
        return Trained(step, step == total, evaluation)

    def _evaluates(self, step: int) -> bool:
        """Return whether the run is evaluated after a step."""
        return step == self.config.train.steps or _is_due(step, self.config.eval.every)

    def _items(self, train_state) -> dict:
        return dict(zip(("params", "opt_state", "memory"), train_state, strict=True))


def _is_due(step: int, every: int) -> bool:
    return step > 0 and every > 0 and step % every == 0


def _placed(shapes, shardings):
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings)


def _streams(before: int, now: int) -> str:
    """Describe the streams that end or start if the batch changes."""
    first, end = sorted((before, now))
    names = f"stream {first}" if end - first == 1 else f"streams {first} to {end - 1}"
    verb = "end" if now < before else "start"
    return f"{names} {verb}{'s' * (end - first == 1)}"


class _StepLog:
    """A writer of the metrics of steps that were started earlier.

    pending  (step, metrics on the device, time) of the last step that was started, or None after they are written
    saved    the step of the last checkpoint, for the error message
    """

    def __init__(self, config: Config, metrics: Metrics, step: int):
        self.config, self.metrics, self.saved = config, metrics, step
        self.rate = make_schedule(config.optim, config.train.steps)
        self.pending: tuple[int, dict, float] | None = None
        self._warned = False
        self._step, self._clock = step, time.monotonic()  # of the last step that was written

    def write(self) -> None:
        """Wait for the pending step, and write its metrics if they are due. Raises UserError if the loss is not finite."""
        if self.pending is None:
            return
        (step, values, now), self.pending = self.pending, None
        values = {f"train/{name}": np.asarray(value).item() for name, value in values.items()}
        if not np.isfinite(values["train/loss"]):
            raise UserError(
                f"the loss of step {step} is {values['train/loss']}; the last checkpoint is of step {self.saved}. "
                "Try a lower optim.lr, a longer optim.warmup or optim.clip=1.0"
            )
        untrained = values["train/loss"] and not values["train/grad_norm"]  # a step without labels has a loss of 0 too
        if untrained and not self._warned and is_first():
            self._warned = True
            warnings.warn(
                f"the gradient of step {step} is 0: no trained parameter changes the loss. The memory may have nothing to read "
                "until one of its segments is full",
                stacklevel=2,
            )
        if step % self.config.train.log_every and step != self.config.train.steps:
            return
        tokens = values.pop("train/tokens")
        values["train/lr"] = np.asarray(self.rate(step - 1)).item()
        values["train/tokens_per_s"] = tokens * (step - self._step) / max(now - self._clock, 1e-9)
        self._step, self._clock = step, now
        self.metrics.write(step, values)

    @contextmanager
    def paused(self):
        """Exclude the time of the `with` block from tokens per second."""
        began = time.monotonic()
        yield
        self._clock += time.monotonic() - began
