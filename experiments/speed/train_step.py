"""One train step of `small` with one mechanism, timed: the JAX worker of run.py.

`full`: every row begins a document at every step: an ordinary Transformer. `window`, `xl`: the memory (512 tokens, full)
goes on from step to step and gets no gradient. float32, AdamW with clipping, unrolled layers.
"""

import argparse
import os
from functools import partial

import jax
import jax.numpy as jnp
import optax
from clock import matmul_rates, report, timed

from memtx.config import Model
from memtx.memory import MEMORIES
from memtx.memory.base import segment
from memtx.models.lm import LM

MEMORY = {"full": {"capacity": 512}, "window": {"window": 512}, "xl": {"segment": 512, "memory": 512}}


def small(name: str) -> LM:
    settings = MEMORIES[name].Config(**MEMORY[name])
    model = Model(
        stacks=(((name,), 4),),
        memory={name: settings},
        vocab_size=264,
        width=256,
        num_heads=4,
        num_kv_heads=4,
        head_dim=64,
        ff_dim=704,
        scan=False,
    )
    return LM(model)


def make_step(lm: LM, optimizer):
    """(params, optimiser state, memory, tokens [B, T+1], reset [B]) -> the first three and the loss; those are donated."""

    def loss(params, state, token, reset_B):
        first_B = jnp.where(reset_B, 0, state.position_B)
        seg = segment(first_B[:, None] + jnp.arange(token.shape[1] - 1), reset_B=reset_B)
        logits, state = lm(params, token[:, :-1], state, seg)
        return optax.softmax_cross_entropy_with_integer_labels(logits, token[:, 1:]).mean(), state

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, moments, state, token, reset_B):
        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params, state, token, reset_B)
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, state, value

    return step


def square(n: int):
    a, b = jax.random.normal(jax.random.key(0), (2, n, n))
    f = jax.jit(jnp.dot)
    return lambda: f(a, b).block_until_ready()


def main(args):
    if args.model == "matmul":
        return report(model="jax matmul", rates=matmul_rates(square))
    lm = small(args.model)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.95, weight_decay=0.1))
    params = lm.init(jax.random.key(0))
    carry = [params, optimizer.init(params), lm.init_state(args.batch)]
    token = jax.random.randint(jax.random.key(1), (args.batch, args.segment + 1), 0, 264)
    reset_B = jnp.full(args.batch, args.model == "full")
    step = make_step(lm, optimizer)

    def once():
        *carry[:], value = step(*carry, token, reset_B)
        value.block_until_ready()

    for _ in range(args.warmup):
        once()
    samples = [timed(once) for _ in range(args.steps)]
    return report(model=args.model, samples=samples, params=lm.num_params(), version=jax.__version__)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="full", choices=[*MEMORY, "matmul"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--segment", type=int, default=512)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    main(parser.parse_args())
