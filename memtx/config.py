"""Configs: ml_collections files at the edge, frozen dataclasses inside.

A config file has `get_config(arg)` returning a ConfigDict with the groups below (`configs/lm.py` is the general one).
`configure` turns it, once, into a `Config`; an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import ml_collections

from memtx.errors import UserError, check_known, quoted
from memtx.fields import Count, Natural, NonNegative, Range, Seed, Share, fitted, plain, to_dataclass
from memtx.models import patterns


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
    pretrained: str = ""  # begin with its weights: a folder, a .gguf file, smollm2, a name of the hub; see memtx.files.hub
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
    closed: bool = False  # memories added to a pretrained backbone begin as nothing: gains and gates at 0
    dropout: Share = 0.0
    dtype: str = "float32"  # of activations; parameters and states are float32
    remat: bool = False
    scan: bool = True  # compile loops over groups and segments once, or unroll them (faster on a CPU)


@dataclass(frozen=True)
class Data:
    corpus: str = "pycode"  # pycode | books | speeches | textdir:PATH | tfds:NAME | task:NAME
    tokenizer: str = "bytes"  # bytes | bpe:SIZE | pretrained:NAME
    segment: Count = 128  # T, tokens of one call
    document_tokens: Natural = 0  # longer documents are cut into several of so many tokens, `bos` included; 0: none is
    task: Any = field(default_factory=dict)  # settings of a task: its Config, by name in files
    curriculum: tuple[tuple[Count, Mapping[str, Any]], ...] = ()  # of a task: (steps, settings) of the stages before `task`
    examples: Natural = 0  # of a task: train on this many different ones; 0: ever new ones
    mask: Share = 0.0  # share of a text's tokens that are hidden and asked for, of model.output=masked_lm
    cache: str = ""  # "": the folder of the variable MEMTX_CACHE, or ~/.cache/memtx


@dataclass(frozen=True)
class Optim:
    name: str = "adamw"  # adamw | adafactor | lion | muon
    lr: NonNegative = 1e-3
    schedule: str = "cosine"  # cosine | linear | constant
    warmup: Natural = 100  # steps
    final_lr: NonNegative = 0.1  # of lr, where the schedule ends
    weight_decay: NonNegative = 0.1
    b1: Share = 0.9
    b2: Share = 0.95
    clip: NonNegative = 1.0  # global norm; 0: none
    z_loss: NonNegative = 0.0
    label_smoothing: Share = 0.0
    new_lr: NonNegative = 1.0  # of lr, for parameters that the pretrained weights do not have: a new head, memory tokens, gates
    train: str = ""  # a regex of the paths of parameters to train, the others stay as they are; "": all


@dataclass(frozen=True)
class Train:
    steps: Count = 1000
    batch: Count = 8  # B, parallel streams
    segments: Count = 2  # P, segments of one step: the depth of backpropagation through time
    accumulate: Count = 1  # parts that a step's batch is cut into, to save memory
    log_every: Count = 10


@dataclass(frozen=True)
class Eval:
    every: Natural = 500  # steps; 0: at the end only
    batch: Count = 8
    segments: Natural = 64  # at most this many calls on the held-out text; 0: all of it
    examples: Count = 512  # of a task: held-out ones
    task: Mapping[str, Any] = field(default_factory=dict)  # settings in which held-out examples differ from data.task
    generate: Natural = 0  # of task:pairs: so many of them are answered by greedy texts, which are scored
    split: str = "valid"
    prompt: str = ""  # of the sample written at the end
    sample_tokens: Natural = 200


@dataclass(frozen=True)
class Checkpoint:
    every: Count = 500  # steps
    keep: Count = 3  # the newest ones, and the best beside them


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis; data = 0 takes all that model leaves."""

    data: Natural = 0
    model: Count = 1
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
    seed: Seed = 0


# --- from files and ConfigDicts to a Config -----------------------------------------------------------------------------------


def get_config(**groups) -> ml_collections.ConfigDict:
    """Every key with its default, for a config file to change: `get_config(train={"steps": 100})`.

    The group `memory` holds the settings of each mechanism that `model` names.
    """
    from memtx.memory import MEMORIES  # here, since mechanisms import this package's contract

    settings = dict(fitted(plain(groups.pop("memory", {})), Mapping, "memory"))
    defaults = to_dataclass(Config, plain(groups))
    values: dict[str, Any] = plain(defaults)
    settings |= values["model"].pop("memory")
    if values["data"]["corpus"].startswith("task:"):
        values["data"]["task"] = plain(complete_task(defaults.data).task)
    values["memory"] = {}
    model = values["model"]
    around = [model[key] for key in ("body", "encoder_body", "head")]
    for name in patterns.names([*model["stacks"], *model["encoder"]], *around):
        check_known(name, MEMORIES, "memory")
        values["memory"][name] = plain(to_dataclass(MEMORIES[name].Config, settings.get(name, {}), f"memory.{name}"))
    for name, given in {**values["memory"], values["data"]["corpus"]: values["data"]["task"]}.items():
        if taken := [key for key in given if hasattr(ml_collections.ConfigDict, key)]:
            raise UserError(
                f"{name} has a setting {taken[0]!r}, which no flag could set: a ConfigDict has a method of that name"
            )
    config = ml_collections.ConfigDict(values, convert_dict=True)
    return config.lock()


def parse_arg(arg: str, **defaults: str) -> SimpleNamespace:
    """The text after the colon in `--config=FILE:key=value,key=value`, over its defaults."""
    values = dict(defaults)
    for part in filter(None, (arg or "").split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"{part!r} after the config file's colon should read key=value")
        check_known(key, defaults, "config argument")
        values[key] = value
    return SimpleNamespace(**values)


def load_config(spec: str) -> ml_collections.ConfigDict:
    """The ConfigDict of "path/to/file.py" or "path/to/file.py:key=value,..."."""
    path, _, arg = spec.partition(":")
    if not Path(path).is_file():
        raise UserError(f"no config file {path!r}")
    module_spec = importlib.util.spec_from_file_location("memtx_config_file", path)
    assert module_spec
    assert module_spec.loader
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"cannot read the config file: {error}") from None
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} is no config file: it needs def get_config(arg)")
    return module.get_config(arg)


def override(config: ml_collections.ConfigDict, overrides: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The config with dotted keys set. UserError for one that it does not have, with the nearest that it has."""
    for key, value in overrides.items():
        *path, last = key.split(".")
        group = config
        for i, name in enumerate(path):
            check_known(name, group, f"config group {'.'.join(path[:i])}".strip())
            group = group[name]
            if not isinstance(group, ml_collections.ConfigDict):
                raise UserError(f"{'.'.join(path[: i + 1])} is not a group of keys")
        check_known(last, group, f"key in {'.'.join(path)}" if path else "config key")
        with group.ignore_type():  # `configure` checks types, with better words
            group[last] = value
    return config


def configure(config: ml_collections.ConfigDict | Mapping | Config) -> Config:
    """The frozen, checked Config. Raises UserError for what cannot be."""
    values = plain(config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config)
    values = dict(fitted(values, Mapping, "a config"))
    memory = fitted(values.pop("memory", {}), Mapping, "memory")
    built = to_dataclass(Config, values)
    model = complete_model(dataclasses.replace(built.model, memory={**memory, **built.model.memory}))
    built = dataclasses.replace(built, model=model, data=complete_task(built.data, model.labels))
    _check(built)
    return built


def complete_task(data: Data, labels: tuple[str, ...] = ()) -> Data:
    """`data.task` as the Config of the task that `data.corpus` names. UserError for settings that it does not have.

    labels: the model's. A task of classes numbers them in the same order.
    """
    kind, _, name = data.corpus.partition(":")
    if kind != "task":
        if data.task or data.curriculum or data.examples:
            raise UserError("data.task, data.curriculum and data.examples are for data.corpus=task:NAME")
        return data
    cls = task_class(name).Config
    if data.tokenizer != "bytes" or data.mask:
        raise UserError("a task brings its own tokens and asks; leave data.tokenizer at bytes and data.mask at 0")
    task = data.task if isinstance(data.task, cls) else to_dataclass(cls, data.task, "data.task")
    changes: dict[str, Any] = {"cache": data.cache} if getattr(task, "cache", None) == "" else {}
    if labels and hasattr(task, "labels"):
        changes["labels"] = labels
    return dataclasses.replace(data, task=dataclasses.replace(task, **changes) if changes else task)


def with_cache(config: Config, cache: str | None) -> Config:
    """The config with another cache, for its task too; the same config for None."""
    if cache is None:
        return config
    task = config.data.task
    task = dataclasses.replace(task, cache=cache) if hasattr(task, "cache") else task
    return dataclasses.replace(config, data=dataclasses.replace(config.data, cache=cache, task=task))


def task_class(name: str):
    """The class of a task. UserError for an unknown name."""
    from memtx.tasks import TASKS  # here, since tasks import this package's tokenizers

    check_known(name, TASKS, "task")
    return TASKS[name]


def complete_model(model: Model) -> Model:
    """Zeros replaced by what they stand for, and memory settings by each mechanism's own Config: no larger than a body uses."""
    from memtx.memory import MEMORIES
    from memtx.models.outputs import OUTPUTS, POOLS, PROJECTIONS
    from memtx.nn.mlp import ACTIVATIONS, GATED

    model = to_dataclass(Model, vars(model), "model")
    stacks, encoder = model.stacks, model.encoder
    memory = {}
    named = patterns.names(stacks + encoder, model.body, model.encoder_body, model.head)
    for name in [*model.memory, *named]:
        check_known(name, MEMORIES, "memory")
    _check_sites(model, stacks + encoder, {name: MEMORIES[name] for name in named})
    for part in (stacks, encoder):
        patterns.readings(part)  # each reader has something to read
    for name in named:
        settings = model.memory.get(name, {})
        cls = MEMORIES[name].Config
        memory[name] = settings if isinstance(settings, cls) else to_dataclass(cls, settings, f"memory.{name}")
    if model.body and (room := MEMORIES[model.body].room(memory[model.body])):
        memory = {name: MEMORIES[name].within(at, room) for name, at in memory.items()}
    if model.encoder_body and not encoder:
        raise UserError(f"model.encoder_body={model.encoder_body} has nothing to stand around: set model.encoder")
    for key, around, part in (("body", model.body, stacks), ("encoder_body", model.encoder_body, encoder)):
        inside = [MEMORIES[name] for name in patterns.names(part)] if around else []
        if not all(cls.causal for cls in inside) and MEMORIES[around].causal:
            raise UserError(f"model.{key}={around} is for causal layers; around bidirectional ones set model.{key}=rmt_encoder")
        if any(cls.encoded for cls in inside):
            raise UserError(f"model.{key}={around} clears what its layers remember, and so what cross-attention reads")
    check_known(model.activation, ACTIVATIONS, "model.activation")
    check_known(model.norm, ["rms", "layer"], "model.norm")
    check_known(model.position, ["rope", "alibi", "t5", "learned", "none"], "model.position")
    check_known(model.dtype, ["float32", "bfloat16", "float16"], "model.dtype")
    check_known(model.output, ["", *OUTPUTS], "model.output")
    for pool in model.pool.split("+"):
        check_known(pool, [*POOLS, *(() if "+" in model.pool else ("cls", "document"))], "model.pool")
    for _, activation, _ in model.projections:
        check_known(activation, PROJECTIONS, "activation in model.projections")
    _check_labels(model)
    if not stacks or not all(pattern for pattern, _ in stacks + encoder):
        raise UserError("model.stacks needs at least one (pattern, groups), and each pattern a name")
    if not model.head_dim and model.width % model.num_heads:
        raise UserError(f"model.num_heads={model.num_heads} does not divide model.width={model.width}; or set model.head_dim")
    kv_heads, head_dim = model.num_kv_heads or model.num_heads, model.head_dim or model.width // model.num_heads
    if model.num_heads % kv_heads:
        raise UserError(f"model.num_kv_heads={kv_heads} does not divide model.num_heads={model.num_heads}")
    if model.position == "rope" and head_dim % 2:
        raise UserError(f"rope needs an even head_dim, not {head_dim}; change model.width, model.num_heads or model.head_dim")
    if len(model.rope_scaling) not in (0, 4):
        raise UserError(f"model.rope_scaling is (factor, low, high, length) or (), not {model.rope_scaling}")
    gated = model.activation in GATED
    ff_dim = model.ff_dim or (-(-8 * model.width // 24) * 8 if gated else 4 * model.width)
    embed_scale = model.embed_scale or (model.width**0.5 if model.tied else 1.0)
    sizes = {"num_kv_heads": kv_heads, "head_dim": head_dim, "ff_dim": ff_dim, "embed_scale": embed_scale}
    projections = tuple(map(tuple, model.projections))
    return dataclasses.replace(model, stacks=stacks, encoder=encoder, memory=memory, projections=projections, **sizes)


def _check_labels(model: Model) -> None:
    """The names of the classes are as many as the classes, and all different."""
    if not all(isinstance(label, str) for label in model.labels) or len(set(model.labels)) < len(model.labels):
        raise UserError(f"model.labels should be different texts, not {quoted(model.labels)}")
    if model.labels and len(model.labels) != model.classes:
        raise UserError(f"model.classes={model.classes}, but model.labels has {len(model.labels)}: {quoted(model.labels)}")


def _check_sites(model: Model, stacks, classes: Mapping[str, Any]) -> None:
    """Each mechanism stands where it can be called."""
    site = {name: cls.site for name, cls in classes.items()}
    for key, at in (("body", "body"), ("encoder_body", "body"), ("head", "head")):
        if (name := getattr(model, key)) and site[name] != at:
            raise UserError(f"model.{key}={name} cannot be: {name} has its place in model.stacks")
    for entry in (entry for pattern, _ in stacks for entry in pattern):
        for branch in patterns.parse(entry):
            for name in branch.names:
                if site.get(name) in ("body", "head"):
                    raise UserError(f"{name} cannot stand in model.stacks; set model.{site[name]}={name}")
            for name in branch.read:
                if site.get(name) != "attention" or not classes[name].readable:
                    readable = "memories of keys and values that are written without parameters of their own"
                    raise UserError(f"^{name} in {entry!r} cannot be: other layers read {readable}")
            if branch.gated and model.closed:
                raise UserError(f"{entry!r}: a gate between memories begins half open; with model.closed write + for *")


def model_group(model: Model) -> dict[str, Any]:
    """The group `model` of a config file that gives this model; its memories are a group of their own."""
    return {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name != "memory"}


def to_json(config: Config) -> dict:
    """The config as plain JSON values, in the groups that a ConfigDict has; `configure` reads it back."""
    values = json.loads(json.dumps(plain(config)))
    values["memory"] = values["model"].pop("memory")
    return values


def _check(config: Config) -> None:
    if config.data.document_tokens == 1:
        raise UserError("data.document_tokens must be 0 (documents stay whole) or at least 2, not 1")
    check_known(config.optim.name, ["adamw", "adafactor", "lion", "muon"], "optim.name")
    check_known(config.optim.schedule, ["cosine", "linear", "constant"], "optim.schedule")
    check_known(config.eval.split, ["valid", "test", "train"], "eval.split")
    if config.train.batch % config.train.accumulate:
        raise UserError(f"train.accumulate={config.train.accumulate} does not divide train.batch={config.train.batch}")
    for name in {"xl", "compressive"} & set(config.model.memory):
        if config.model.position == "t5":
            raise UserError(f"{name} brings its own positions; use model.position=none or rope with it")
