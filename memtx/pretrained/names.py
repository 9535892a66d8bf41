"""Which tensor of a Hugging Face checkpoint is which of our parameters: one table a family, read in both directions.

A line of the table is a Pair: theirs side by side are ours side by side, along our last axis. A Linear of theirs is
[out, in], ours [in, out], so matrices are transposed unless the line says otherwise.

    Pair("self_attn.k_proj.weight self_attn.v_proj.weight", "{attention}/kv/w")      two of theirs in one of ours
    Pair("attn.c_attn.weight", "{attention}/q/w {attention}/kv/w", transposed=False)     one of theirs in two of ours

Lines for what a model does not have (a bias, an untied head) fall away. A layer's parameters may stand in any stack, group
and branch: {attention}, {cross_attention} and {mlp} are the slots of a block's own attention, cross-attention and feed-forward
network, {attention_norm}, ... for the norm of that branch.
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
    """Names with blanks between them.

    gated     only where the MLP is, or is not
    optional  a checkpoint may lack it: then it is new
    """

    theirs: str
    ours: str
    transposed: bool = True
    gated: bool | None = None
    optional: bool = False


@dataclass(frozen=True)
class Layers:
    """The lines of one layer: {i} in `prefix` is its number, `root` the path of the body that holds it."""

    prefix: str
    pairs: tuple[Pair, ...]
    root: str = "body"


@dataclass(frozen=True)
class Names:
    """A family's table. Its first line is the embedding.

    prefix    what the names of a checkpoint without its head lack
    ignored   a regex of what is no weight
    copies    a regex of tensors that repeat the embedding, the head of a tied model among them
    formerly  parts of names, and how old checkpoints have them
    """

    model: tuple[Pair, ...]
    layers: tuple[Layers, ...]
    prefix: str = ""
    ignored: str = "$^"
    copies: str = "$^"
    formerly: tuple[tuple[str, str], ...] = ()

    @property
    def embedding(self) -> str:
        return self.model[0].theirs


@dataclass(frozen=True)
class Place:
    """A Pair in a model: ours are (path, group in its stack or None, shape of that group)."""

    theirs: tuple[str, ...]
    ours: tuple[tuple[str, int | None, tuple[int, ...]], ...]
    transposed: bool
    optional: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of theirs: each has the same share of our last axis."""
        first = self.ours[0][2]
        last = sum(shape[-1] for *_, shape in self.ours) // len(self.theirs)
        shape = (*first[:-1], last)
        return dict.fromkeys(self.theirs, shape[::-1] if self.transposed else shape)

    def to_ours(self, tensors: list[np.ndarray]) -> Iterator[tuple[str, int | None, np.ndarray]]:
        turned = [tensor.T if self.transposed else tensor for tensor in tensors]
        joined = turned[0] if len(turned) == 1 else np.concatenate(turned, -1)
        cuts = np.cumsum([shape[-1] for *_, shape in self.ours])[:-1]
        for (path, group, _), part in zip(self.ours, np.split(joined, cuts, -1), strict=True):
            yield path, group, part

    def to_theirs(self, params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        ours = [np.asarray(params[path] if group is None else params[path][group]) for path, group, _ in self.ours]
        joined = ours[0] if len(ours) == 1 else np.concatenate(ours, -1)
        for name, part in zip(self.theirs, np.split(joined, len(self.theirs), -1), strict=True):
            yield name, np.ascontiguousarray(part.T if self.transposed else part)


def flat(tree) -> dict[str, Any]:
    """Leaves by path: "body/bodies/0/layers/0/norms/0/scale"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def places(names: Names, lm: LM) -> list[Place]:
    """The table's lines as they stand in a model, the model's own first, then layer by layer."""
    shapes = {path: leaf.shape for path, leaf in flat(lm.abstract_params).items()}
    gated = lm.model.activation in GATED
    found = [_place(pair, "", {}, None, shapes) for pair in names.model]
    for layers in names.layers:
        for number, (slots, group) in enumerate(_layers(lm.model, layers.root, shapes)):
            prefix = layers.prefix.format(i=number)
            found += [_place(pair, prefix, slots, group, shapes) for pair in layers.pairs if pair.gated in (None, gated)]
    return [place for place in found if place]


def _place(pair: Pair, prefix: str, slots: Mapping[str, str], group: int | None, shapes) -> Place | None:
    try:
        paths = [path.format(**slots) for path in pair.ours.split()]
    except KeyError as error:
        part = error.args[0].removesuffix("_norm")
        raise UserError(f"the block of {prefix}* has no {part} of its own, where pretrained weights could go") from None
    if not any(path in shapes for path in paths):
        return None
    cut = 0 if group is None else 1
    theirs = tuple(prefix + name for name in pair.theirs.split())
    return Place(theirs, tuple((path, group, shapes[path][cut:]) for path in paths), pair.transposed, pair.optional)


def _layers(model: Model, root: str, paths) -> Iterator[tuple[dict[str, str], int]]:
    """Per layer in order: where its own parts stand, and its group."""
    stacks = model.stacks if root == "body" else model.encoder
    for s, (pattern, groups) in enumerate(stacks):
        slots = [_slots(entry, f"{root}/", f"bodies/{s}/layers/{p}/", paths) for p, entry in enumerate(pattern)]
        for group in range(groups):
            for found in slots:
                yield found, group


def _slots(entry: str, root: str, layer: str, paths) -> dict[str, str]:
    """The place of a block's own attention, cross-attention and MLP, and of their norms."""
    inside = re.compile(rf"({re.escape(root)}(?:.*/)?{layer}(?:.*?/)?)(?:branches|norms)/")
    block = next(match[1] for path in paths if (match := inside.match(path)))  # a mechanism around the body adds to the path
    found = {}
    for b, branch in enumerate(patterns.parse(entry)):
        for j, name in enumerate(branch.names):
            kind = _slot(name)
            if kind not in found and j not in branch.readers:
                where = {"mlp": f"memories/{j}", "cross_attention": f"memories/{j}/attention"}.get(kind, "attention")
                found |= {kind: f"{block}branches/{b}/{where}", f"{kind}_norm": f"{block}norms/{b}"}
    return found


def _slot(name: str) -> str:
    """The name of the slot that the table uses for a branch."""
    if name == patterns.MLP:
        return "mlp"
    return "cross_attention" if MEMORIES[name].encoded else MEMORIES[name].site


def check(
    found: list[Place], names: Names, theirs: Mapping[str, tuple[int, ...]], about: str
) -> tuple[list[Place], dict[str, str]]:
    """The places that a checkpoint fills, and what it calls their tensors.

    UserError that lists what is missing, unknown or misshapen.
    """
    called = called_there(names, theirs)
    found = [place for place in found if not place.optional or any(name in called for name in place.theirs)]
    known = {name: shape for place in found for name, shape in place.shapes.items()}
    copies = [name for name in called if re.search(names.copies, name) and name not in known]
    if names.embedding not in called and copies:  # of a tied model, some writers keep a copy alone
        called[names.embedding] = called[copies[0]]
    spare = [there for name, there in called.items() if name not in known and name not in copies]
    faults = (
        [f"missing: {name} {list(shape)}" for name, shape in known.items() if name not in called],
        [f"not known to memtx: {name} {list(theirs[name])}" for name in sorted(spare) if not re.search(names.ignored, name)],
        [
            f"{called[name]} is {list(theirs[called[name]])}, not {list(shape)}"
            for name, shape in known.items()
            if name in called and theirs[called[name]] != shape
        ],
    )
    if any(faults):
        listing = "; ".join(listed(kind, separator="; ") for kind in faults if kind)
        raise UserError(f"{about} does not hold the model that its config describes: {listing}")
    return found, {name: called[name] for name in known}


WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # of torch, anywhere in a name


def called_there(names: Names, theirs: Collection[str]) -> dict[str, str]:
    """{name in the table: name in the checkpoint} of all of its tensors. A tensor that the table lacks keeps its name.

    A checkpoint may lack the table's prefix, or have another in its place, such as "module." or "language_model.model.".
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
    """The text that stands before a body's names in a checkpoint, where the table has `names.prefix`."""
    for pair in names.model:
        bare = pair.theirs.removeprefix(names.prefix)
        if pair.theirs.startswith(names.prefix):
            leads = {name.removesuffix(bare) for name in theirs if f".{name}".endswith(f".{bare}")}
            if leads:
                return names.prefix if names.prefix in leads else min(leads, key=len)
    return names.prefix


def _guesses(name: str, lead: str, prefix: str) -> Iterator[str]:
    """Names that a tensor may have in the table: one of the body, or one outside it with a part of the lead before it."""
    if name.startswith(lead):
        yield prefix + name.removeprefix(lead)
    parts = lead.split(".")[:-1]
    for count in range(len(parts), -1, -1):
        before = "".join(f"{part}." for part in parts[:count])
        if name.startswith(before):
            yield name.removeprefix(before)


@lru_cache
def _known(names: Names) -> re.Pattern[str]:
    """Matches every name of a table, and what it ignores."""
    lines = [(re.escape(pair.theirs), "") for pair in names.model]
    for layer in names.layers:
        prefix = re.escape(layer.prefix).replace(r"\{i\}", r"\d+")
        lines += [(re.escape(pair.theirs), prefix) for pair in layer.pairs]
    each = [prefix + name for theirs, prefix in lines for name in theirs.split(r"\ ")]
    return re.compile(f"^({'|'.join(each)})$|{names.ignored}|{names.copies}")
