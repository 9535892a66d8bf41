"""The mapping between tensors of a Hugging Face checkpoint and parameters of a model, with one table per family.

A line of the table is a Pair: a tensor and its parameter, or the parameters that it holds side by side along the last axis of
our layout. Hugging Face stores a Linear as [out, in], memtx as [in, out], so matrices are transposed unless the line says
otherwise.

    Pair("self_attn.k_proj.weight", "{attention}/k/w")
    Pair("attn.c_attn.weight", "{attention}/q/w {attention}/k/w {attention}/v/w", transposed=False)

Lines for parameters that a model lacks (a bias, an untied head) are skipped. The parameters of a layer may be in any stack,
group and branch. {attention}, {cross_attention} and {mlp} are replaced by the paths of a block's attention, cross-attention
and feed-forward network, {attention_norm} and similar names by the paths of the norms of their branches.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from memtx.config import Model
from memtx.errors import UserError, listed
from memtx.memory import MEMORIES
from memtx.models import patterns
from memtx.models.lm import LM
from memtx.nn.mlp import GATED


@dataclass(frozen=True)
class Pair:
    """One line of a table: the name of a tensor, and the paths of its parameters, separated by spaces.

    gated     restricts the line to models whose MLP is gated (True) or is not (False)
    optional  a checkpoint may lack the tensor, and the parameters are then initialised
    """

    theirs: str
    ours: str
    transposed: bool = True
    gated: bool | None = None
    optional: bool = False


@dataclass(frozen=True)
class Layers:
    """The lines of one layer. {i} in `prefix` is the layer's number, and `root` is the path of the body that contains it."""

    prefix: str
    pairs: tuple[Pair, ...]
    root: str = "body"


@dataclass(frozen=True)
class Names:
    """The table of a family. Its first line is the embedding.

    prefix    the start of names that a checkpoint without a head leaves out
    ignored   a regex of tensors that are not weights
    copies    a regex of tensors that are copies of the embedding, including the head of a tied model
    formerly  pairs of a part of a name and its old spelling
    """

    model: tuple[Pair, ...]
    layers: tuple[Layers, ...]
    prefix: str = ""
    ignored: str = "$^"
    copies: str = "$^"
    formerly: tuple[tuple[str, str], ...] = ()

    @property
    def embedding(self) -> str:
        """The name of the embedding in a checkpoint."""
        return self.model[0].theirs


@dataclass(frozen=True)
class Slot:
    """A Pair applied to a model.

    theirs  the name of the tensor in a checkpoint
    ours    (path, group in the stack or None, shape without the group axis) of each parameter
    """

    theirs: str
    ours: tuple[tuple[str, int | None, tuple[int, ...]], ...]
    transposed: bool
    optional: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The expected shape of the tensor."""
        shape = (*self.ours[0][2][:-1], sum(shape[-1] for *_, shape in self.ours))
        return shape[::-1] if self.transposed else shape

    def to_ours(self, tensor: np.ndarray) -> Iterator[tuple[str, int | None, np.ndarray]]:
        """Yield (path, group, value) of each parameter."""
        turned = tensor.T if self.transposed else tensor
        cuts = np.cumsum([shape[-1] for *_, shape in self.ours])[:-1]
        for (path, group, _), part in zip(self.ours, np.split(turned, cuts, -1), strict=True):
            yield path, group, part

    def to_theirs(self, params: Mapping[str, Any]) -> np.ndarray:
        """Return the tensor. Takes the parameters by path."""
        ours = [np.asarray(params[path] if group is None else params[path][group]) for path, group, _ in self.ours]
        joined = ours[0] if len(ours) == 1 else np.concatenate(ours, -1)
        return np.ascontiguousarray(joined.T if self.transposed else joined)


def flat(tree) -> dict[str, Any]:
    """Return the leaves of a tree by path, such as "body/bodies/0/layers/0/norms/0/scale"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def find_slots(names: Names, lm: LM) -> list[Slot]:
    """Return the slots of a model: those outside the layers first, then layer by layer.

    Raises UserError if a block lacks a part that pretrained weights need.
    """
    shapes = {path: leaf.shape for path, leaf in flat(lm.abstract_params).items()}
    gated = lm.model.activation in GATED
    found = [_find_slot(pair, "", {}, None, shapes) for pair in names.model]
    for layers in names.layers:
        for number, (parts, group) in enumerate(_layers(lm.model, layers.root, shapes)):
            prefix = layers.prefix.format(i=number)
            found += [_find_slot(pair, prefix, parts, group, shapes) for pair in layers.pairs if pair.gated in (None, gated)]
    return [slot for slot in found if slot]


def _find_slot(pair: Pair, prefix: str, parts: Mapping[str, str], group: int | None, shapes) -> Slot | None:
    try:
        paths = [path.format(**parts) for path in pair.ours.split()]
    except KeyError as error:
        part = error.args[0].removesuffix("_norm")
        raise UserError(f"the block of {prefix}* has no {part} that pretrained weights could be loaded into") from None
    if not any(path in shapes for path in paths):
        return None
    cut = 0 if group is None else 1
    ours = tuple((path, group, shapes[path][cut:]) for path in paths)
    return Slot(prefix + pair.theirs, ours, pair.transposed, pair.optional)


def _layers(model: Model, root: str, paths) -> Iterator[tuple[dict[str, str], int]]:
    """Yield (paths of the parts, group) of each layer, in order."""
    stacks = model.stacks if root == "body" else model.encoder
    for s, (pattern, groups) in enumerate(stacks):
        parts = [_block_parts(entry, f"{root}/", f"bodies/{s}/layers/{p}/", paths) for p, entry in enumerate(pattern)]
        for group in range(groups):
            for found in parts:
                yield found, group


def _block_parts(entry: str, root: str, layer: str, paths) -> dict[str, str]:
    """Return the paths of a block's attention, cross-attention and MLP, and of their norms."""
    inside = re.compile(rf"({re.escape(root)}(?:.*/)?{layer}(?:.*?/)?)(?:branches|norms)/")
    block = next(match[1] for path in paths if (match := inside.match(path)))  # a mechanism around the body adds to the path
    found = {}
    for b, branch in enumerate(patterns.parse(entry)):
        for j, name in enumerate(branch.names):
            kind = _part_name(name)
            if kind not in found and j not in branch.readers:
                where = {"mlp": f"memories/{j}", "cross_attention": f"memories/{j}/attention"}.get(kind, "attention")
                found |= {kind: f"{block}branches/{b}/{where}", f"{kind}_norm": f"{block}norms/{b}"}
    return found


def _part_name(name: str) -> str:
    """Return the name of a branch in the table."""
    if name == patterns.MLP:
        return "mlp"
    return "cross_attention" if MEMORIES[name].encoded else MEMORIES[name].site


def check(
    found: list[Slot], names: Names, theirs: Mapping[str, tuple[int, ...]], about: str
) -> tuple[list[Slot], dict[str, str]]:
    """Return the slots that a checkpoint fills, and the names of their tensors in the checkpoint.

    theirs: the shapes of tensors by name in the checkpoint. about: the checkpoint, for errors. Raises UserError, which lists
    missing, unknown and misshapen tensors.
    """
    called = called_there(names, theirs)
    found = [slot for slot in found if not slot.optional or slot.theirs in called]
    known = {slot.theirs: slot.shape for slot in found}
    copies = [name for name in called if re.search(names.copies, name) and name not in known]
    if names.embedding not in called and copies:  # some writers keep only a copy of a tied embedding
        called[names.embedding] = called[copies[0]]
    spare = [there for name, there in called.items() if name not in known and name not in copies]
    faults = (
        [f"missing: {name} {list(shape)}" for name, shape in known.items() if name not in called],
        [f"unexpected: {name} {list(theirs[name])}" for name in sorted(spare) if not re.search(names.ignored, name)],
        [
            f"{called[name]} is {list(theirs[called[name]])}, not {list(shape)}"
            for name, shape in known.items()
            if name in called and theirs[called[name]] != shape
        ],
    )
    if any(faults):
        listing = "; ".join(listed(kind, separator="; ") for kind in faults if kind)
        raise UserError(f"{about} does not contain the model that its config describes: {listing}")
    return found, {name: called[name] for name in known}


WRAPPERS = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)  # wrappers of torch, anywhere in a name


def called_there(names: Names, theirs: Collection[str]) -> dict[str, str]:
    """Return {name in the table: name in the checkpoint} for all tensors. Tensors that the table lacks keep their names.

    A checkpoint may lack the table's prefix or have a different one, such as "module." or "language_model.model.".
    """
    plain = {}
    for name in theirs:
        bare = WRAPPERS.sub("", name)
        for now, before in names.formerly:
            bare = bare.replace(before, now)
        plain[bare] = name
    lead, known = _lead(names, plain), _known(names)
    found: dict[str, str] = {}
    for bare, name in plain.items():
        table_name = next((guess for guess in _guesses(bare, lead, names.prefix) if known.search(guess)), name)
        found[name if table_name in found else table_name] = name
    return found


def _lead(names: Names, theirs: Collection[str]) -> str:
    """Return the prefix that a checkpoint uses in place of `names.prefix`."""
    for pair in names.model:
        bare = pair.theirs.removeprefix(names.prefix)
        if pair.theirs.startswith(names.prefix):
            leads = {name.removesuffix(bare) for name in theirs if f".{name}".endswith(f".{bare}")}
            if leads:
                return names.prefix if names.prefix in leads else min(leads, key=len)
    return names.prefix


def _guesses(name: str, lead: str, prefix: str) -> Iterator[str]:
    """Yield the possible table names of a tensor: one in the body, then names outside it without parts of the lead."""
    if name.startswith(lead):
        yield prefix + name.removeprefix(lead)
    parts = lead.split(".")[:-1]
    for count in range(len(parts), -1, -1):
        before = "".join(f"{part}." for part in parts[:count])
        if name.startswith(before):
            yield name.removeprefix(before)


@lru_cache
def _known(names: Names) -> re.Pattern[str]:
    """Return a regex that matches every name of a table, including ignored ones and copies."""
    lines = [re.escape(pair.theirs) for pair in names.model]
    for layer in names.layers:
        prefix = re.escape(layer.prefix).replace(r"\{i\}", r"\d+")
        lines += [prefix + re.escape(pair.theirs) for pair in layer.pairs]
    return re.compile(f"^({'|'.join(lines)})$|{names.ignored}|{names.copies}")
