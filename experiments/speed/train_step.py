"""One train step of `small` with one mechanism, timed: the JAX worker of run.py. Prints one line of JSON.

`full`: every row begins a document at every step: an ordinary Transformer. `window`, `xl`: the memory (512 tokens, full)
goes on from step to step and gets no gradient. The step is the one that training uses.
"""

import argparse
import dataclasses
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
from clock import matmul_rates, report, timed

from memtx.config import configure
from memtx.data.streams import Batch
from memtx.models.lm import build
from memtx.models.presets import preset
from memtx.training.cpu import compiler_options, keep_pages
from memtx.training.optim import optimizer
from memtx.training.step import make_step

MEMORY = {"full": {"capacity": 512}, "window": {"window": 512}, "xl": {"segment": 512, "memory": 512}}


class Trainer:
    """Parameters, optimiser state and memory, and a compiled step over random tokens."""

    def __init__(self, name: str, batch: int, time: int):
        model = {**preset(name, "small"), "memory": {name: MEMORY[name]}, "vocab_size": 264, "scan": False}
        config = configure({"model": model, "train": {"batch": batch, "segments": 1}, "data": {"segment": time}})
        self.lm = build(config)
        tx = optimizer(config.optim, config.train.steps, self.lm)
        params = self.lm.init(jax.random.key(0))
        self.state = (params, tx.init(params), self.lm.init_state(batch))
        token = np.random.default_rng(1).integers(264, size=(batch, 1, time + 1), dtype=np.int32)
        self.batch = Batch(
            token_BPT=token[..., :-1],
            target_BPT=token[..., 1:],
            position_BPT=np.broadcast_to(np.arange(time, dtype=np.int32), (batch, 1, time)),
            length_BP=np.full((batch, 1), time, np.int32),
            reset_BP=np.full((batch, 1), name == "full"),
            source_BP=np.zeros((batch, 1), np.int32),
        )
        self.onward = 0 if name == "full" else time
        self.number = 0
        step = make_step(self.lm, tx, config)
        jitted = jax.jit(step, donate_argnums=(0, 1, 2), compiler_options=compiler_options())
        self.compiled = jitted.lower(*self.state, *self.inputs()).compile()

    def inputs(self):
        batch = dataclasses.replace(self.batch, position_BPT=self.batch.position_BPT + self.number * self.onward)
        return batch, jnp.int32(self.number), jax.random.key(2)

    def step(self) -> None:
        *state, metrics = self.compiled(*self.state, *self.inputs())
        self.state = tuple(state)
        self.number += 1
        self.loss = float(metrics["loss"])


def square(n: int):
    a, b = jax.random.normal(jax.random.key(0), (2, n, n))
    f = jax.jit(jnp.dot)
    return lambda: f(a, b).block_until_ready()


def main(args):
    keep_pages()
    if args.model == "matmul":
        return report(model="jax matmul", rates=matmul_rates(square))
    start = time.perf_counter()
    trainer = Trainer(args.model, args.batch, args.segment)
    compiled = time.perf_counter() - start
    for _ in range(args.warmup):
        trainer.step()
    samples = [timed(trainer.step) for _ in range(args.steps)]
    return report(
        model=args.model,
        samples=samples,
        loss=trainer.loss,
        params=trainer.lm.num_params(),
        start_s=compiled,
        version=jax.__version__,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="full", choices=[*MEMORY, "matmul"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--segment", type=int, default=512)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for the record: XLA takes the cores it may use")
    main(parser.parse_args())
