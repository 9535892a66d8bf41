"""Loading of models: a trained one from its workdir, or a pretrained one by its name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from memtx.config import Config, Data, Mesh
from memtx.data import tokenizers
from memtx.data.tokenizers import Tokenizer, check_fits
from memtx.errors import UserError
from memtx.files.hub import PACKAGED, find
from memtx.files.remote import Mirror, is_remote, place
from memtx.models.lm import LM, LMState, Params, build
from memtx.pretrained import load as pretrained
from memtx.pretrained.weights import read_json
from memtx.runs.configure import configure
from memtx.sharding import Layout
from memtx.training.checkpoint import read_meta, restore


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model with its parameters, state, tokenizer and config, the step of its checkpoint, and the name that `load` was given.

    For a run, `state` is the state of the training streams. For a pretrained model it is a fresh state of one stream, and
    `step` is 0.
    """

    lm: LM
    params: Params
    state: LMState
    tokenizer: Tokenizer
    config: Config
    step: int
    name: str = ""


def load(source: str | Path, *, context: int = pretrained.CONTEXT, **changes) -> Loaded:
    """Load the newest intact checkpoint of a workdir, or a pretrained model, onto the first device.

    source: a workdir, also in a bucket (gs://bucket/run), a Hugging Face folder (safetensors), a .gguf file, a name of the hub,
    or "smollm2" or "minilm", which are in packages. context: the number of tokens that full attention of a pretrained model
    keeps, at most its own context length. changes: settings of a pretrained model to change, such as output="classes",
    classes=3. New parameters are drawn at random. Raises UserError if there is no such model, if its files are damaged, or if a
    setting of a run is changed.
    """
    if is_pretrained(source):
        return _pretrained(str(source), context, changes)
    if changes:
        raise UserError(f"{source} is the workdir of a run, and its settings cannot be changed: {', '.join(changes)}")
    return load_run(source)


def is_pretrained(source: str | Path) -> bool:
    """Return whether `load` takes this for a pretrained model. The config.json of a workdir has different keys."""
    if is_remote(source):
        return False
    folder = Path(source)
    if str(source) in PACKAGED or not folder.is_dir():
        return True
    try:
        config = read_json(folder / "config.json")
    except UserError:
        config = {}
    return bool({"model_type", "architectures"} & config.keys()) or any(folder.glob("*.safetensors"))


def load_run(workdir: str | Path, *, streams: bool = True, sharded: bool = False) -> Loaded:
    """Load the newest intact checkpoint of a workdir.

    streams: whether to read the state of the training streams, which may be large. Otherwise the state is a fresh one of one
    stream. sharded: place the parameters on the mesh of `mesh_for`, instead of on the first device. Raises UserError if the
    folder is not the workdir of a run.
    """
    workdir = place(workdir)
    if not (workdir / "config.json").exists():
        raise UserError(f"{workdir} is not the workdir of a run (it has no config.json); train one with memtx train")
    config = configure(read_meta(workdir)["config"])
    with Mirror(workdir) as files:
        files.pull("tokenizer.json")
        tokenizer = tokenizers.load(files.folder / "tokenizer.json")
    lm = build(config.model, vocab_size=tokenizer.vocab_size, subwords=tokenizer.subwords)
    memory = jax.eval_shape(lambda: lm.init_state(config.train.batch)) if streams else None
    params = lm.abstract_params
    if sharded:
        shardings = Layout(mesh_for(config)).params(lm)
        params = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), params, shardings)
    restored = restore(workdir, params=params, memory=memory)
    state = restored.memory if streams else lm.init_state(1)
    return Loaded(lm, restored.params, state, tokenizer, config, restored.step, str(workdir))


def mesh_for(config: Config) -> Mesh:
    """Return a mesh of all devices for a trained model: like that of its config, or with `data` alone if it does not fit."""
    fits = jax.device_count() % (config.mesh.context * config.mesh.model) == 0
    return dataclasses.replace(config.mesh, data=0) if fits else Mesh()


def _pretrained(name: str, context: int, changes: dict) -> Loaded:
    config = Config(model=pretrained.settings(name, context=context, **changes), data=Data(tokenizer=f"pretrained:{name}"))
    tokenizer = tokenizers.pretrained(find(name, config.data.cache))
    check_fits(tokenizer, config.model.vocab_size)
    lm = build(config.model, subwords=tokenizer.subwords)
    params = pretrained.load_params(lm, jax.random.key(config.seed), cache=config.data.cache)
    return Loaded(lm, params, lm.init_state(1), tokenizer, config, 0, name)
