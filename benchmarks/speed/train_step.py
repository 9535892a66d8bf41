"""Time one train step of `small` with one mechanism. This is the JAX worker of run.py and peers.py. It prints one line of JSON.

With `full` and `product_key`, each row begins a document at each segment, as in an ordinary Transformer. Other mechanisms carry
their state from step to step. `memorizing` fills its bank before the first step. The step is the one that training uses, on as
many devices as JAX_NUM_CPU_DEVICES says.
"""

import argparse
import dataclasses
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
from clock import matmul_rates, report, timed

from memtx.data.streams import Batch
from memtx.runs.configure import build, configure
from memtx.runs.presets import preset
from memtx.runs.train import Run
from memtx.sharding import Layout
from memtx.training.cpu import keep_pages
from memtx.training.optim import make_optimizer

SETTINGS: dict[str, dict] = {  # of each mechanism and of the other memories in its model
    "full": {"full": {"capacity": 512}},
    "window": {"window": {"window": 512}},
    "xl": {"xl": {"segment": 512, "memory": 512}},
    "memorizing": {"memorizing": {"window": 768, "memory": 16_384}, "window": {"window": 768}},
    "titans_mac": {"titans_mac": {"chunk": 64}},
    "compressive": {"compressive": {"segment": 512, "memory": 512, "compressed": 128}},
    "infini": {"infini": {"segment": 512}},
    "rmt": {"rmt": {"segment": 512, "memory": 16, "remat": False}, "full": {"capacity": 544}},
    "block_recurrent": {
        "block_recurrent": {"block": 512, "window": 768, "states": 512, "blocks": 1},
        "window": {"window": 768},
    },
    "product_key": {"product_key": {"subkeys": 128, "top_k": 32}, "full": {"capacity": 512}},
}
MODEL: dict[str, dict] = {  # as in the package: a single key-value head, or no memory beside the table
    "memorizing": {"num_kv_heads": 1},
    "block_recurrent": {"num_kv_heads": 1},
    "product_key": {"stacks": ((("full",), 2), (("full/product_key",), 1), (("full",), 1))},
}
FRESH = ("full", "product_key")
READ = {"memorizing": 16_384}  # tokens that each stream reads before the first step


class Trainer:
    """The train state of one mechanism, and a compiled step over random tokens."""

    def __init__(self, name: str, batch: int, time: int, segments: int = 1):
        model = {**preset(name, "small"), **MODEL.get(name, {}), "memory": SETTINGS[name], "vocab_size": 264, "scan": False}
        config = configure({"model": model, "train": {"batch": batch, "segments": segments}, "data": {"segment": time}})
        self.lm, self.layout = build(config), Layout(config.mesh)
        run = Run(config, self.lm, make_optimizer(config.optim, config.train.steps, self.lm), self.layout)
        shape = (batch, segments, time)
        token = np.random.default_rng(1).integers(264, size=(batch, segments * time + 1), dtype=np.int32)
        self.batch = Batch(
            token_BPT=token[:, :-1].reshape(shape),
            target_BPT=token[:, 1:].reshape(shape),
            position_BPT=np.broadcast_to(np.arange(segments * time, dtype=np.int32).reshape(shape[1:]), shape),
            length_BP=np.full(shape[:2], time, np.int32),
            reset_BP=np.full(shape[:2], name in FRESH),
            document_BP=np.zeros(shape[:2], np.int32),
        )
        if name in FRESH:
            self.batch = dataclasses.replace(self.batch, position_BPT=np.broadcast_to(np.arange(time, dtype=np.int32), shape))
        self.advance = 0 if name in FRESH else segments * time  # tokens by which positions grow in a step
        self.start, self.number = READ.get(name, 0), 0
        params, opt_state, state = run.init()
        self.train_state = (params, opt_state, self.read(params, state, self.start))
        self.compiled = run.step.lower(*self.train_state, *self.inputs()).compile()

    def read(self, params, state, tokens: int):
        """Return the state after `tokens` more tokens."""
        token_BT = self.layout.shard(self.batch.token_BPT[:, 0])
        forward = jax.jit(lambda *args: self.lm(*args)[1], donate_argnums=2)
        for _ in range(tokens // token_BT.shape[1]):
            state = forward(params, token_BT, state)
        return state

    def inputs(self):
        """Return the batch of the next step, its number and a random key."""
        start = self.start + self.number * self.advance
        batch = dataclasses.replace(self.batch, position_BPT=self.batch.position_BPT + start)
        return self.layout.shard(batch), jnp.int32(self.number), jax.random.key(2)

    def step(self) -> None:
        """Update the train state and wait for the loss."""
        *train_state, metrics = self.compiled(*self.train_state, *self.inputs())
        self.train_state = tuple(train_state)
        self.number += 1
        self.loss = float(metrics["loss"])


def square(n: int):
    """Return a function that multiplies two n x n matrices and waits for the result."""
    a, b = jax.random.normal(jax.random.key(0), (2, n, n))
    f = jax.jit(jnp.dot)
    return lambda: f(a, b).block_until_ready()


def main(args):
    keep_pages()
    if args.model == "matmul":
        return report(model="jax matmul", rates=matmul_rates(square))
    start = time.perf_counter()
    trainer = Trainer(args.model, args.batch, args.segment, args.segments)
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
    parser.add_argument("--model", default="full", choices=[*SETTINGS, "matmul"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--segment", type=int, default=512)
    parser.add_argument("--segments", type=int, default=1, help="segments of a step, the depth of backpropagation through time")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument(
        "--warmup", type=int, default=8, help="steps before the first sample (the heap still grows in some of them)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="ignored: XLA uses all cores that it may use")
    main(parser.parse_args())
