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
from typing import Any

import ml_collections

from memtx import patterns
from memtx.errors import UserError, check_known, positive, quoted


@dataclass(frozen=True)
class Model:
    """Stacks of (pattern of blocks, number of groups) between an embedding and a head; see memtx.patterns."""

    stacks: tuple[tuple[tuple[str, ...], int], ...] = ((("window",), 4),)
    encoder: tuple[tuple[tuple[str, ...], int], ...] = ()  # stacks that read the source of an encoder-decoder
    encoder_body: str = ""  # a mechanism around those, such as rmt_encoder
    body: str = ""  # a mechanism around the stacks, such as rmt
    head: str = ""  # a mechanism over the logits, such as knn_lm
    output: str = ""  # in place of next tokens' logits: masked_lm | pooled | classes | span; see memtx.models.heads
    pool: str = "cls"  # the one vector, for pooled and classes: cls | document | first+max+..., see memtx.models.heads
    projections: tuple[tuple[int, str, bool], ...] = ()  # (features, activation, bias) of linear maps after it, for pooled
    unit: bool = True  # memtx.embed gives vectors of length 1
    max_tokens: int = 0  # of a text that memtx.embed reads; 0: as many as the model can
    lower_case: bool = False  # memtx.embed reads texts in lower case
    classes: int = 2
    labels: tuple[str, ...] = ()  # the names of the classes, in order; (): they have none until a model learns from data
    memory: Mapping[str, Any] = field(default_factory=dict)  # settings by mechanism name: the config group `memory`
    pretrained: str = ""  # begin with its weights: a folder, a .gguf file, smollm2, a name of the hub; see memtx.data.hub
    vocab_size: int = 0  # 0: the tokenizer's
    width: int = 128
    num_heads: int = 4
    num_kv_heads: int = 0  # 0: as many as num_heads
    head_dim: int = 0  # 0: width / num_heads
    ff_dim: int = 0  # 0: 4 width, or 8/3 width for swiglu
    norm: str = "rms"  # rms | layer
    norm_epsilon: float = 1e-6
    post_norm: bool = False  # x = norm(x + branch(x)), as in BERT, with no norm at the end
    activation: str = "swiglu"  # swiglu | geglu | gelu | gelu_exact | relu
    position: str = "rope"  # rope | alibi | t5 | learned | none
    rope_base: float = 10_000.0
    rope_scaling: tuple[float, ...] = ()  # Llama 3's (factor, low, high, length); see memtx.nn.positions
    score_scale: float = 0.0  # of attention scores; 0: head_dim^-1/2; T5 has 1
    max_position: int = 8192  # of the learned table
    token_types: int = 0  # BERT's learned table of the sentence that a token belongs to
    embed_norm: bool = False  # as in BERT
    bias: bool = False
    qkv_bias: bool = False  # of the maps to q, k and v alone, as in Qwen2
    tied: bool = True
    embed_scale: float = 0.0  # of embedded tokens; 0: sqrt(width) if tied, else 1
    logit_scale: float = 1.0  # tied T5 has width^-1/2
    closed: bool = False  # memories added to a pretrained backbone begin as nothing: gains and gates at 0
    dropout: float = 0.0
    dtype: str = "float32"  # of activations; parameters and states are float32
    remat: bool = False
    scan: bool = True  # compile loops over groups and segments once, or unroll them (faster on a CPU)


@dataclass(frozen=True)
class Data:
    corpus: str = "pycode"  # pycode | books | speeches | textdir:PATH | tfds:NAME | task:NAME
    tokenizer: str = "bytes"  # bytes | bpe:SIZE | pretrained:NAME
    segment: int = 128  # T, tokens of one call
    document_tokens: int = 0  # longer documents of text are cut into several of so many tokens, `bos` included; 0: none is
    task: Any = field(default_factory=dict)  # settings of a task: its Config, by name in files
    curriculum: tuple = ()  # of a task: stages (steps, settings) that come before those of `task`
    examples: int = 0  # of a task: train on this many different ones; 0: ever new ones
    mask: float = 0.0  # share of a text's tokens that are hidden and asked for, of model.output=masked_lm
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
    new_lr: float = 1.0  # of lr, for parameters that the pretrained weights do not have: a new head, memory tokens, gates
    train: str = ""  # a regex of the paths of parameters to train, the others stay as they are; "": all


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
    examples: int = 512  # of a task: held-out ones
    task: Mapping[str, Any] = field(default_factory=dict)  # settings in which held-out examples differ from data.task
    generate: int = 0  # of task:pairs: so many of them are answered by greedy texts, which are scored
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


# --- from files and ConfigDicts to a Config -----------------------------------------------------------------------------------


def get_config(**groups) -> ml_collections.ConfigDict:
    """Every key with its default, for a config file to change: `get_config(train={"steps": 100})`.

    The group `memory` holds the settings of each mechanism that `model` names.
    """
    from memtx.memory import MEMORIES  # here, since mechanisms import this package's contract

    values: dict[str, Any] = _plain(Config())
    values["model"].pop("memory")
    settings = groups.pop("memory", {})
    for group, changes in groups.items():
        check_known(group, values, "config group")
        if isinstance(changes, Mapping):
            for key, value in changes.items():
                check_known(key, values[group], f"key in {group}")
                values[group][key] = value
        else:
            values[group] = changes
    if values["data"]["corpus"].startswith("task:"):
        values["data"]["task"] = _plain(complete_task(Data(**values["data"])).task)
    values["memory"] = {}
    model = values["model"]
    around = [model[key] for key in ("body", "encoder_body", "head")]
    for name in patterns.names([*model["stacks"], *model["encoder"]], *around):
        check_known(name, MEMORIES, "memory")
        values["memory"][name] = _plain(MEMORIES[name].Config(**settings.get(name, {})))
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
    module_spec.loader.exec_module(module)
    return module.get_config(arg)


def configure(config: ml_collections.ConfigDict | Mapping | Config) -> Config:
    """The frozen, checked Config. Raises UserError for what cannot be."""
    if isinstance(config, Config):
        config = to_json(config)
    values = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    values = json.loads(json.dumps(values))  # lists and tuples alike
    groups = {f.name: f for f in dataclasses.fields(Config)}
    for name in values:
        check_known(name, [*groups, "memory"], "config group")
    memory = values.pop("memory", {})
    built = {}
    for name, value in values.items():
        default = _default(groups[name])
        if not dataclasses.is_dataclass(default):
            if type(value) is not type(default):
                raise _wrong_type(name, default, value)
            built[name] = value
        elif isinstance(value, Mapping):
            built[name] = to_dataclass(type(default), value, name)
        else:
            raise UserError(f"{name} is a group of keys, not {value!r}")
    model = built.get("model", Model())
    settings = {**memory, **model.memory}
    built["model"] = complete_model(dataclasses.replace(model, memory=settings))
    built["data"] = complete_task(built.get("data", Data()), built["model"].labels)
    config = Config(**built)
    _check(config)
    return config


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
    if labels and hasattr(task, "labels"):
        task = dataclasses.replace(task, labels=labels)
    for stage in data.curriculum:
        if len(stage) != 2 or type(stage[0]) is not int or stage[0] < 1 or not isinstance(stage[1], Mapping):
            raise UserError(f"data.curriculum is stages (steps, settings), with steps of 1 or more; {stage!r} is none")
    return dataclasses.replace(data, task=task, curriculum=tuple(map(tuple, data.curriculum)))


def task_class(name: str):
    """The class of a task. UserError for an unknown name."""
    from memtx.data.tasks import TASKS  # here, since tasks import this package's tokenizers

    check_known(name, TASKS, "task")
    return TASKS[name]


def complete_model(model: Model) -> Model:
    """Zeros replaced by what they stand for, and memory settings by each mechanism's own Config: no larger than a body uses."""
    from memtx.memory import MEMORIES
    from memtx.models.heads import OUTPUTS, POOLS, PROJECTIONS
    from memtx.nn.mlp import ACTIVATIONS, GATED

    stacks, encoder = (tuple((tuple(pattern), groups) for pattern, groups in part) for part in (model.stacks, model.encoder))
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
    if room := getattr(memory.get(model.body), "room", None):
        memory = {name: at.within(room) if hasattr(at, "within") else at for name, at in memory.items()}
    if model.encoder_body and not encoder:
        raise UserError(f"model.encoder_body={model.encoder_body} has nothing to stand around: set model.encoder")
    for key, around, part in (("body", model.body, stacks), ("encoder_body", model.encoder_body, encoder)):
        inside = [MEMORIES[name] for name in patterns.names(part)] if around else []
        if not all(getattr(cls, "causal", True) for cls in inside) and getattr(MEMORIES[around], "causal", True):
            raise UserError(f"model.{key}={around} is for causal layers; around bidirectional ones set model.{key}=rmt_encoder")
        if any(getattr(cls, "encoded", False) for cls in inside):
            raise UserError(f"model.{key}={around} clears what its layers remember, and so what cross-attention reads")
    check_known(model.activation, ACTIVATIONS, "model.activation")
    check_known(model.norm, ["rms", "layer"], "model.norm")
    check_known(model.position, ["rope", "alibi", "t5", "learned", "none"], "model.position")
    check_known(model.dtype, ["float32", "bfloat16", "float16"], "model.dtype")
    positive(model, "width", "num_heads", "max_position", "classes", path="model.")
    check_known(model.output, ["", *OUTPUTS], "model.output")
    for pool in model.pool.split("+"):
        check_known(pool, [*POOLS, *(() if "+" in model.pool else ("cls", "document"))], "model.pool")
    for projection in model.projections:
        if len(projection) != 3 or type(projection[0]) is not int or projection[0] < 1:
            raise UserError(f"model.projections are (features, activation, bias), with features of 1 or more, not {projection}")
        check_known(projection[1], PROJECTIONS, "activation in model.projections")
    _check_labels(model)
    if not stacks or any(not pattern or groups < 1 for pattern, groups in stacks + encoder):
        raise UserError("model.stacks needs at least one (pattern, groups), each with a name and groups >= 1")
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
                if site.get(name) != "attention" or not getattr(classes[name], "readable", True):
                    readable = "memories of keys and values that are written without parameters of their own"
                    raise UserError(f"^{name} in {entry!r} cannot be: other layers read {readable}")
            if branch.gated and model.closed:
                raise UserError(f"{entry!r}: a gate between memories begins half open; with model.closed write + for *")


def model_group(model: Model) -> dict[str, Any]:
    """The group `model` of a config file that gives this model; its memories are a group of their own."""
    return {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name != "memory"}


def to_json(config: Config) -> dict:
    """The config as plain JSON values, in the groups that a ConfigDict has; `configure` reads it back."""
    values = json.loads(json.dumps(_plain(config)))
    values["memory"] = values["model"].pop("memory")
    return values


def to_dataclass(cls, values: Mapping, path: str):
    """A frozen dataclass from a mapping of its fields, types checked (an int passes for a float)."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name, value in values.items():
        check_known(name, fields, f"key in {path}")
        default = _default(fields[name])
        if isinstance(value, type(default)) and not (isinstance(value, bool) and not isinstance(default, bool)):
            continue
        if isinstance(default, float) and type(value) is int:
            continue
        if isinstance(default, (tuple, Mapping)) and isinstance(value, (list, tuple, Mapping)):
            continue
        raise _wrong_type(f"{path}.{name}", default, value)
    tuples = {name for name, f in fields.items() if isinstance(_default(f), tuple)}  # JSON and config files have lists
    try:
        return cls(**{name: tuple(value) if name in tuples else value for name, value in values.items()})
    except UserError as error:  # of its __post_init__, which does not know where in the config it stands
        raise UserError(f"{path}: {error}") from None


def _wrong_type(name: str, default, value) -> UserError:
    return UserError(f"{name} must be {type(default).__name__}, not {value!r}")


def _default(f: dataclasses.Field):
    return f.default_factory() if callable(f.default_factory) else f.default


def _plain(value: Any) -> Any:
    """Dataclasses and mappings as dicts, all the way down."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _check(config: Config) -> None:
    positive(config.data, "segment", path="data.")
    if config.data.document_tokens < 0 or config.data.document_tokens == 1:
        raise UserError(
            f"data.document_tokens must be 0 (documents stay whole) or at least 2, not {config.data.document_tokens}"
        )
    positive(config.train, "steps", "batch", "segments", "accumulate", "log_every", path="train.")
    positive(config.eval, "batch", "examples", path="eval.")
    positive(config.checkpoint, "every", path="checkpoint.")
    positive(config.mesh, "model", path="mesh.")
    check_known(config.optim.name, ["adamw", "adafactor", "lion", "muon"], "optim.name")
    check_known(config.optim.schedule, ["cosine", "linear", "constant"], "optim.schedule")
    check_known(config.eval.split, ["valid", "test", "train"], "eval.split")
    if config.train.batch % config.train.accumulate:
        raise UserError(f"train.accumulate={config.train.accumulate} does not divide train.batch={config.train.batch}")
    if not 0 <= config.data.mask < 1:
        raise UserError(f"data.mask must be in [0, 1), not {config.data.mask}")
    if not 0 <= config.model.dropout < 1:
        raise UserError(f"model.dropout must be in [0, 1), not {config.model.dropout}")
    for name in {"xl", "compressive"} & set(config.model.memory):
        if config.model.position == "t5":
            raise UserError(f"{name} brings its own positions; use model.position=none or rope with it")
