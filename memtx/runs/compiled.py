"""The train step of a config, compiled for TPUs that are not there (needs libtpu).

    step = compile_step(config, "v5e:4x4", vocab_size=32_000)
    step.peak, step.arguments, step.temporary       # bytes per device
    step.collectives                                # see memtx.runs.hlo

Nothing runs, so this proves that a step compiles and fits, and shows its transfers. It does not prove its numbers.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from memtx.config import Config
from memtx.data.streams import Batch
from memtx.errors import UserError
from memtx.models.lm import build
from memtx.runs.hlo import Collective, collectives
from memtx.runs.train import Run
from memtx.sharding import Layout
from memtx.training.optim import make_optimizer

QUICK = {"exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0}  # compiles in a quarter of the time
SETTINGS = {  # of libtpu on a machine without TPUs. The first lets several processes compile at once
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program, with sizes in bytes per device.

    peak: the most memory in use. arguments: of parameters, optimiser, state and batch. temporary: the rest.
    """

    peak: int
    arguments: int
    temporary: int
    text: str  # its HLO

    @cached_property
    def collectives(self) -> list[Collective]:
        """Return the transfers between devices."""
        return collectives(self.text)

    @property
    def moved(self) -> dict[str, int]:
        """Return the bytes of all transfers of a run of the program, by kind."""
        total: Counter[str] = Counter()
        for each in self.collectives:
            total[each.kind] += each.bytes * each.runs
        return dict(total)


def prepare() -> None:
    """Set up libtpu and JAX for a machine without TPUs. Call it before JAX starts its backend, or both print warnings."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # programs for absent devices cannot be read back


def tpu_devices(topology: str) -> list[Any]:
    """Return the devices of a TPU slice that is not here, such as "v5e:4x4". Raises UserError if libtpu does not know it."""
    from jax.experimental import topologies

    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        return list(topologies.get_topology_desc(topology, "tpu").devices)
    except Exception as error:  # libtpu raises several types
        reason = " ".join(str(error).split())[:300]
        hint = "; install libtpu: pip install '.[plan]' in the checkout of memtx" if "not installed" in reason else ""
        raise UserError(f"cannot describe the TPUs {topology!r}: {reason}{hint}") from None


def compile_step(config: Config, topology: str, *, vocab_size: int = 0, quick: bool = True) -> Compiled:
    """Compile the train step of a language model for a TPU slice. Its batches have tokens and labels, but no sources.

    vocab_size: that of the tokenizer. quick: compile faster, with less effort for speed and memory.
    Raises UserError if the model has an encoder, if the mesh or the batch of the config does not fit the slice, or if libtpu
    cannot compile the step.
    """
    if config.model.encoder:
        raise UserError("a model with an encoder reads sources, and its train step cannot be compiled ahead")
    layout = Layout(config.mesh, devices=tpu_devices(topology))
    layout.check_batch("train.batch / train.accumulate", config.train.batch // config.train.accumulate)
    step, args = abstract_step(config, layout, vocab_size)
    return compile_for(step, *args, quick=quick)


def compile_for(f, *args, quick: bool = True) -> Compiled:
    """Compile a jitted function for the devices of its abstract arguments. Raises UserError if the compiler refuses it."""
    try:
        compiled = f.lower(*args).compile(compiler_options=QUICK if quick else None)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"the step does not compile: {' '.join(str(error).split())[:500]}") from error
    memory = compiled.memory_analysis()
    return Compiled(
        memory.peak_memory_in_bytes, memory.argument_size_in_bytes, memory.temp_size_in_bytes, compiled.as_text() or ""
    )


def abstract_step(config: Config, layout: Layout, vocab_size: int = 0) -> tuple[Any, tuple]:
    """Return the jitted train step of a language model, and the shapes and shardings of its arguments."""
    lm = build(config.model, vocab_size=vocab_size)
    run = Run(config, lm, make_optimizer(config.optim, config.train.steps, lm, cache=config.data.cache), layout)
    batch, segments, time = config.train.batch, config.train.segments, config.data.segment

    def rows(*shape: int, dtype=jnp.int32):
        sharding = layout.tokens if len(shape) == 2 else layout.rows
        return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=sharding)

    tokens = rows(segments, time)
    given = Batch(tokens, tokens, tokens, rows(segments), rows(segments, dtype=jnp.bool_), rows(segments))  # pyright: ignore
    key = jax.eval_shape(lambda: run.key)
    whole = (jax.ShapeDtypeStruct((), jnp.int32, sharding=layout.whole), key.update(sharding=layout.whole))
    return run.step, (*run.shapes(), given, *whole)
