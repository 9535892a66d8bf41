"""Time train steps on one GPU or TPU, beside a plain decoder, and check goldens there. So far it has run on a CPU only.

    python benchmarks/device.py [--size=base] [--batch=8] [--out=device.json]

The steps are those of `configs/lm.py` in bfloat16, with random tokens and a vocabulary of 32,000, on one device. The share of
peak divides the FLOPs of the matrix products by the time and by the FLOPs of the data sheet. The plain decoder in JAX has the
same width, layers and tokens, and no memory. The goldens are the outputs of each mechanism in float64. A device with 16-bit
products meets them up to its rounding.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from memtx.contract.test_golden import compare
from memtx.data.streams import Batch
from memtx.models.cost import flops
from memtx.models.lm import build
from memtx.runs.chips import chip_named
from memtx.runs.compiled import abstract_step
from memtx.runs.configure import configure, load_config, override
from memtx.runs.train import Run
from memtx.sharding import Layout
from memtx.training.optim import make_optimizer
from memtx.training.provenance import code, machine, versions

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "lm.py"
MECHANISMS = ("window", "xl", "gated_deltanet", "memorizing", "titans_mac")
GOLDENS = ("window-rope", "xl-relative", "gated_deltanet", "memorizing", "titans_mac")
VOCAB = 32_000
SECONDS, WARM = 15.0, 3  # of the measured steps of each model, and steps before them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base", help="a size of configs/lm.py")
    parser.add_argument("--batch", type=int, default=8, help="streams")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long to time each model")
    parser.add_argument("--out", type=Path, help="a file for the results, as JSON")
    parser.add_argument("--cpu", action="store_true", help="run on a CPU, to try the script")
    given = parser.parse_args()
    device = jax.devices()[0]
    if device.platform == "cpu" and not given.cpu:
        print("device.py: JAX found no GPU or TPU on this machine", file=sys.stderr)
        sys.exit(2)
    chip = chip_named(device.device_kind)
    found = {"device": device.device_kind, "machine": machine(), "versions": versions(), "code": code(), "steps": {}}
    print(f"{device.device_kind}\n\n| model | ms per step | tokens per s | TFLOPs per step | share of peak |")
    print("|---|---:|---:|---:|---:|")
    for name in (*MECHANISMS, "plain decoder"):
        step, tokens, work = memory_step(name, given) if name in MECHANISMS else plain_step(given)
        seconds = timed(step, given.seconds)
        share = work / seconds / chip.flops if chip else None
        found["steps"][name] = {"seconds": seconds, "tokens": tokens, "flops": work, "share_of_peak": share}
        speed = f"{1000 * seconds:.1f} | {tokens / seconds:,.0f} | {work / 1e12:.2f}"
        print(f"| {name} | {speed} | {f'{share:.1%}' if share else 'unknown'} |", flush=True)
    print("\n| golden | largest error of the outputs |\n|---|---:|")
    found["goldens"] = {}
    for name in GOLDENS:
        error = found["goldens"][name] = compare(np.load(ROOT / "tests" / "golden" / f"{name}.npz"))[1]["y"]
        print(f"| {name} | {error:.1e} |", flush=True)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


def timed(step: Callable[[], object], seconds: float) -> float:
    """Return the mean time of a step. All steps are started before the last one is waited for."""
    for _ in range(WARM):
        jax.block_until_ready(step())
    began = time.perf_counter()
    jax.block_until_ready(step())
    count = max(3, min(200, round(seconds / max(time.perf_counter() - began, 1e-4))))
    began = time.perf_counter()
    for _ in range(count):
        last = step()
    jax.block_until_ready(last)
    return (time.perf_counter() - began) / count


def memory_step(name: str, given) -> tuple[Callable, int, int]:
    """Return a train step of a mechanism, its tokens and its FLOPs."""
    changes = {"train.batch": given.batch, "train.accumulate": 1, "eval.batch": given.batch}
    changes |= {"model.vocab_size": VOCAB, "model.dtype": "bfloat16"}
    config = configure(override(load_config(f"{CONFIG}:memory={name},size={given.size}"), changes))
    layout = Layout(config.mesh, devices=jax.devices()[:1])
    step, args = abstract_step(config, layout)
    lm = build(config.model)
    run = Run(config, lm, make_optimizer(config.optim, config.train.steps, lm), layout)
    batch, train_state = layout.shard(random_batch(config)), list(run.init())

    def call():
        *train_state[:], metrics = run.step(*train_state, batch, np.int32(1), run.key)
        return metrics["loss"]

    return call, batch.token_BPT.size, flops(step, *args)


def random_batch(config) -> Batch:
    """Return segments of one random document per stream."""
    shape = (config.train.batch, config.train.segments, config.data.segment)
    length = shape[1] * shape[2]
    token = np.random.default_rng(0).integers(VOCAB, size=(shape[0], length + 1), dtype=np.int32)
    return Batch(
        token_BPT=token[:, :-1].reshape(shape),
        target_BPT=token[:, 1:].reshape(shape),
        position_BPT=np.broadcast_to(np.arange(length, dtype=np.int32).reshape(shape[1:]), shape),
        length_BP=np.full(shape[:2], shape[2], np.int32),
        reset_BP=np.zeros(shape[:2], bool),
        document_BP=np.zeros(shape[:2], np.int32),
    )


# --- a plain decoder ----------------------------------------------------------------------------------------------------------


def plain_step(given) -> tuple[Callable, int, int]:
    """Return a train step of a plain decoder over the same tokens, its tokens and its FLOPs."""
    config = load_config(f"{CONFIG}:memory=window,size={given.size}")
    size = {name: config.model[name] for name in ("width", "num_heads", "ff_dim")}
    layers = sum(count for _, count in config.model.stacks)
    shape = (given.batch * config.train.segments, config.data.segment)
    params = plain_params(layers, size["width"], size["ff_dim"])
    tx = optax.adamw(1e-4)
    token_BT = jax.random.randint(jax.random.key(1), (shape[0], shape[1] + 1), 0, VOCAB)

    def loss(params):
        logits = plain_logits(params, token_BT[:, :-1], size["num_heads"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, token_BT[:, 1:]).mean()

    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    compiled, train_state = jax.jit(step, donate_argnums=(0, 1)), [params, tx.init(params)]

    def call():
        *train_state[:], value = compiled(*train_state)
        return value

    return call, shape[0] * shape[1], flops(step, *train_state)


def plain_params(layers: int, width: int, ff: int) -> dict:
    """Return the parameters of a plain decoder, with the layers stacked."""
    keys = iter(jax.random.split(jax.random.key(0), 6))

    def matrix(*shape: int):
        return jax.random.normal(next(keys), shape) / np.sqrt(shape[-2])

    return {
        "embed": matrix(VOCAB, width),
        "layers": {
            "qkv": matrix(layers, width, 3 * width),
            "out": matrix(layers, width, width),
            "up": matrix(layers, width, 2 * ff),
            "down": matrix(layers, ff, width),
        },
    }


def plain_logits(params: dict, token_BT, heads: int):
    """Return the logits of a plain decoder with RMS norms, causal attention and gated layers, in bfloat16."""

    def norm(x):
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), -1, keepdims=True) + 1e-6).astype(x.dtype)

    @jax.checkpoint
    def layer(h, w):
        w = jax.tree.map(lambda a: a.astype(h.dtype), w)
        q, k, v = jnp.split((norm(h) @ w["qkv"]).reshape(*h.shape[:2], heads, -1), 3, -1)
        h = h + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(h.shape) @ w["out"]
        gate, up = jnp.split(norm(h) @ w["up"], 2, -1)
        return h + (jax.nn.silu(gate) * up) @ w["down"], None

    h, _ = jax.lax.scan(layer, params["embed"].astype(jnp.bfloat16)[token_BT], params["layers"])
    return (norm(h) @ params["embed"].astype(h.dtype).T).astype(jnp.float32)


if __name__ == "__main__":
    main()
