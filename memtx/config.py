"""Configs: users write ml_collections files, and memtx uses frozen dataclasses.

A config file defines `get_config(arg)`, which returns a ConfigDict with the groups below. `configs/lm.py` is the most general
one. `configure` converts it into a `Config`. An unknown key is an error that names the nearest valid key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from memtx.fields import Count, Natural, NonNegative, Range, Seed, Share, plain


@dataclass(frozen=True)
class Model:
    """Stacks of (pattern of blocks, number of groups) between an embedding and a head; see memtx.models.patterns."""

    stacks: tuple[tuple[tuple[str, ...], Count], ...] = ((("window",), 4),)
    encoder: tuple[tuple[tuple[str, ...], Count], ...] = ()  # stacks that read the source of an encoder-decoder
    encoder_body: str = ""  # a mechanism around those, such as rmt_encoder
    body: str = ""  # a mechanism around the stacks, such as rmt
    head: str = ""  # a mechanism over the logits, such as knn_lm
    output: str = ""  # in place of next tokens' logits: masked_lm | pooled | classes | span; see memtx.models.outputs
    pool: str = "cls"  # the one vector, for pooled and classes: cls | document | first+max+..., see memtx.models.outputs
    projections: tuple[tuple[Count, str, bool], ...] = ()  # (features, activation, bias) of linear maps after it, for pooled
    unit: bool = True  # memtx.embed gives vectors of length 1
    max_tokens: Natural = 0  # of a text that memtx.embed reads; 0: as many as the model can
    lower_case: bool = False  # memtx.embed reads texts in lower case
    classes: Count = 2
    labels: tuple[str, ...] = ()  # the names of the classes, in order; (): they have none until a model learns from data
    memory: Mapping[str, Any] = field(default_factory=dict)  # settings by mechanism name: the config group `memory`
    pretrained: str = ""  # start with its weights: a folder, a .gguf file, smollm2, a name of the hub; see memtx.files.hub
    vocab_size: Natural = 0  # 0: the tokenizer's
    width: Count = 128
    num_heads: Count = 4
    num_kv_heads: Natural = 0  # 0: as many as num_heads
    head_dim: Natural = 0  # 0: width / num_heads
    ff_dim: Natural = 0  # 0: 4 width, or 8/3 width for swiglu
    norm: str = "rms"  # rms | layer
    norm_epsilon: NonNegative = 1e-6
    post_norm: bool = False  # x = norm(x + branch(x)), as in BERT, with no norm at the end
    activation: str = "swiglu"  # swiglu | geglu | gelu | gelu_exact | relu
    position: str = "rope"  # rope | alibi | t5 | learned | none
    rope_base: Annotated[float, Range(1)] = 10_000.0
    rope_scaling: tuple[float, ...] = ()  # Llama 3's (factor, low, high, length); see memtx.nn.positions
    score_scale: NonNegative = 0.0  # of attention scores; 0: head_dim^-1/2; T5 has 1
    max_position: Count = 8192  # of the learned table
    token_types: Natural = 0  # BERT's learned table of the sentence that a token belongs to
    embed_norm: bool = False  # as in BERT
    bias: bool = False
    qkv_bias: bool = False  # of the maps to q, k and v alone, as in Qwen2
    tied: bool = True
    embed_scale: NonNegative = 0.0  # of embedded tokens; 0: sqrt(width) if tied, else 1
    logit_scale: NonNegative = 1.0  # tied T5 has width^-1/2
    closed: bool = False  # memories added to a pretrained backbone contribute nothing at first: gains and gates are 0
    dropout: Share = 0.0
    dtype: str = "float32"  # of activations; parameters and states are float32
    remat: bool = False
    scan: bool = True  # compile loops over groups and segments once, or unroll them (faster on a CPU)


@dataclass(frozen=True)
class Data:
    """The text or the task, its tokens, and how they are cut."""

    corpus: str = "pycode"  # pycode | books | speeches | textdir:PATH | tfds:NAME | task:NAME
    tokenizer: str = "bytes"  # bytes | bpe:SIZE | pretrained:NAME
    segment: Count = 128  # T, tokens of one call
    document_tokens: Natural = 0  # cut longer documents into parts of this many tokens, including `bos`; 0: never
    task: Any = field(default_factory=dict)  # settings of a task: its Config, by name in files
    curriculum: tuple[tuple[Count, Mapping[str, Any]], ...] = ()  # of a task: (steps, settings) of the stages before `task`
    examples: Natural = 0  # of a task: train on this many different ones; 0: every example is new
    mask: Share = 0.0  # share of tokens that are hidden and predicted, for model.output=masked_lm
    cache: str = ""  # "": the folder of the variable MEMTX_CACHE, or ~/.cache/memtx


@dataclass(frozen=True)
class Optim:
    """The optimiser, its schedule and regularisation."""

    name: str = "adamw"  # adamw | adafactor | lion | muon
    lr: NonNegative = 1e-3
    schedule: str = "cosine"  # cosine | linear | constant
    warmup: Natural = 100  # steps from a rate of 0, at most train.steps - 1
    final_lr: NonNegative = 0.1  # of lr, where the schedule ends
    weight_decay: NonNegative = 0.1
    b1: Share = 0.9
    b2: Share = 0.95
    clip: NonNegative = 1.0  # global norm; 0: none
    z_loss: NonNegative = 0.0
    label_smoothing: Share = 0.0
    new_lr: NonNegative = 1.0  # of lr, for parameters that the pretrained weights do not have: a new head, memory tokens, gates
    train: str = ""  # a regex of the paths of parameters to train; "": all


@dataclass(frozen=True)
class Train:
    """The sizes and the number of train steps."""

    steps: Count = 1000
    batch: Count = 8  # B, parallel streams
    segments: Count = 2  # P, segments of one step: the depth of backpropagation through time
    accumulate: Count = 1  # parts that a step's batch is cut into, to save memory
    log_every: Count = 10
    csv: bool = False  # write the metrics to metrics.csv too
    wandb: str = ""  # a project of Weights & Biases that gets the metrics too


@dataclass(frozen=True)
class Eval:
    """When a run is evaluated, and on how much held-out data."""

    every: Natural = 500  # steps; 0: only at the end
    batch: Count = 8
    segments: Natural = 64  # at most this many calls on the held-out text; 0: all of it
    examples: Count = 512  # of a task: held-out ones
    task: Mapping[str, Any] = field(default_factory=dict)  # changes to data.task for held-out examples
    generate: Natural = 0  # for task:pairs: the number of examples to answer by greedy generation and score
    health: bool = True  # write the health of the carried state as memory/...; see memtx.evaluation.health
    split: str = "valid"
    prompt: str = ""  # of the sample written at the end
    sample_tokens: Natural = 200


@dataclass(frozen=True)
class Checkpoint:
    """When checkpoints are saved and how many are kept."""

    every: Count = 500  # steps
    keep: Count = 3  # the newest ones; the best one is kept too


@dataclass(frozen=True)
class Mesh:
    """The number of devices along each axis. data=0 uses all remaining devices. context divides each text in time."""

    data: Natural = 0
    context: Count = 1
    model: Count = 1
    fsdp: bool = False  # shard parameters and optimiser state over `data` too


@dataclass(frozen=True)
class Config:
    """A complete config. own: the origins, by name, of memories outside memtx (see memtx.memory.registry)."""

    model: Model = Model()
    data: Data = Data()
    optim: Optim = Optim()
    train: Train = Train()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    mesh: Mesh = Mesh()
    seed: Seed = 0
    own: Mapping[str, str] = field(default_factory=dict)


def installed_configs() -> dict[str, Path]:
    """Return the config files that are installed with memtx, by name."""
    package = Path(__file__).parent
    folders = (package / "configs", package.parent / "configs")  # the second one is that of a checkout
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}


def to_json(config: Config) -> dict:
    """Return the config as JSON values, in the groups of a ConfigDict. `configure` reads it back."""
    values = json.loads(json.dumps(plain(config)))
    values["memory"] = values["model"].pop("memory")
    return values
