"""Configs: ml_collections files at the edge, frozen dataclasses inside.

A config file has `get_config(arg)` returning a ConfigDict with the groups below (`configs/lm.py` is the general one).
`configure` turns it, once, into a `Config`; an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_collections

from memtx.errors import UserError


@dataclass(frozen=True)
class Model:
    """A decoder: stacks of (pattern of mechanism names, number of groups) between an embedding and a head."""

    stacks: tuple[tuple[tuple[str, ...], int], ...] = ((("window",), 4),)
    memory: Mapping[str, Any] = field(default_factory=dict)  # settings by mechanism name: the config group `memory`
    vocab_size: int = 0  # 0: the tokenizer's
    width: int = 128
    num_heads: int = 4
    num_kv_heads: int = 0  # 0: as many as num_heads
    head_dim: int = 0  # 0: width / num_heads
    ff_dim: int = 0  # 0: 4 width, or 8/3 width for swiglu
    norm: str = "rms"  # rms | layer
    activation: str = "swiglu"  # swiglu | gelu | relu
    position: str = "rope"  # rope | alibi | t5 | learned | none
    rope_base: float = 10_000.0
    max_position: int = 8192  # of the learned table
    bias: bool = False
    tied: bool = True
    dropout: float = 0.0
    dtype: str = "float32"  # of activations; parameters and states are float32
    remat: bool = False
    scan: bool = True  # scan over groups (compile time independent of depth) or unroll them (faster on a CPU)


@dataclass(frozen=True)
class Data:
    corpus: str = "pycode"  # pycode | books | speeches | textdir:PATH | tfds:NAME
    tokenizer: str = "bytes"  # bytes | bpe:SIZE
    segment: int = 128  # T, tokens of one call
    cache: str = "~/.cache/memtx"


@dataclass(frozen=True)
class Optim:
    name: str = "adamw"  # adamw | adafactor | lion | muon
    lr: float = 1e-3
    schedule: str = "cosine"  # cosine | linear | constant
    warmup: int = 100  # steps
    final_lr: float = 0.1  # of lr, where the schedule ends
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    clip: float = 1.0  # global norm; 0: none
    z_loss: float = 0.0
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class Train:
    steps: int = 1000
    batch: int = 8  # B, parallel streams
    segments: int = 2  # P, segments of one step: the depth of backpropagation through time
    accumulate: int = 1  # parts that a step's batch is cut into, to save memory
    log_every: int = 10


@dataclass(frozen=True)
class Eval:
    every: int = 500  # steps; 0: at the end only
    batch: int = 8
    segments: int = 64  # at most this many calls on the held-out text; 0: all of it
    split: str = "valid"
    prompt: str = ""  # of the sample written at the end
    sample_tokens: int = 200


@dataclass(frozen=True)
class Checkpoint:
    every: int = 500  # steps
    keep: int = 3  # the newest ones, and the best beside them


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis; data = 0 takes all that model leaves."""

    data: int = 0
    model: int = 1
    fsdp: bool = False  # shard parameters and optimiser state over `data` too


@dataclass(frozen=True)
class Config:
    model: Model = Model()
    data: Data = Data()
    optim: Optim = Optim()
    train: Train = Train()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    mesh: Mesh = Mesh()
    seed: int = 0


def check_known(name: str, known, what: str) -> None:
    """Raise a UserError naming the nearest of `known`, if `name` is not one of them."""
    known = sorted(known)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    raise UserError(f"unknown {what} {name!r}; {hint}")


def to_dataclass(cls, values: Mapping, path: str):
    """A frozen dataclass from a mapping of its fields, types checked (an int passes for a float)."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name, value in values.items():
        check_known(name, fields, f"key in {path}")
        default = _default(fields[name])
        if default is None or isinstance(value, type(default)) or (isinstance(default, float) and type(value) is int):
            continue
        if isinstance(default, (tuple, Mapping)) and isinstance(value, (list, tuple, Mapping)):
            continue
        raise UserError(f"{path}.{name} must be {type(default).__name__}, not {value!r}")
    return cls(**values)


def _default(f: dataclasses.Field):
    if f.default is not dataclasses.MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else None
