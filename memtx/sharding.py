"""The distribution of arrays over devices: modules declare the mesh axes of their parameters, and a Layout applies them.

The mesh has the axes `data` (streams, and parameters under FSDP), `model` (tensor parallelism) and, if devices divide texts,
`context` (the tokens of each call, see memtx.ops.context). State is sharded over `data` by stream and over `model` by head, and
a bank that all streams share over all devices by entry. The optimiser state is sharded like its parameters. A dimension is
replicated if the size of its mesh axes does not divide it.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
import optax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from memtx import config as configs
from memtx.core import batch_axes
from memtx.errors import UserError
from memtx.models.lm import LM
from memtx.ops.context import AXIS
from memtx.ops.topk import entry_axes

FSDP_SMALLEST = 4096  # FSDP replicates parameters with fewer elements


@dataclasses.dataclass(frozen=True)
class Absent:
    """Devices that are not here, for shapes and programs that nothing runs. platform: such as tpu."""

    count: int
    platform: str

    def __len__(self) -> int:
        return self.count

    def mesh(self, shape: tuple[int, ...], axes: tuple[str, ...]) -> AbstractMesh:
        """Return a mesh of these devices."""
        device = AbstractDevice(device_kind=self.platform, num_cores=None, platform=self.platform)
        return AbstractMesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes), abstract_device=device)


class Layout:
    """The sharding of each array of a run on the (data, context, model) mesh.

    devices: by default all devices of the backend. Raises UserError if the mesh does not use all of them, or if JAX cannot lay
    it over them.
    """

    def __init__(self, mesh: configs.Mesh | None = None, devices: Sequence | Absent | None = None):
        mesh = mesh or configs.Mesh()
        devices = jax.devices() if devices is None else devices
        data = mesh.data or max(len(devices) // (mesh.context * mesh.model), 1)
        shape = {"data": data, AXIS: mesh.context, "model": mesh.model}
        if math.prod(shape.values()) != len(devices):
            raise UserError(
                f"mesh.data x mesh.context x mesh.model = {' x '.join(map(str, shape.values()))} is not the number of devices, "
                f"{len(devices)}; set mesh.context and mesh.model to divisors and mesh.data=0"
            )
        self.fsdp = mesh.fsdp
        if mesh.context == 1:
            del shape[AXIS]
        self.mesh, self._shards = _mesh(tuple(shape.values()), tuple(shape), devices)
        self.whole = NamedSharding(self.mesh, P())
        self.rows = NamedSharding(self.mesh, P("data"))
        self.tokens = NamedSharding(self.mesh, P("data", None, AXIS if AXIS in shape else None))  # [B, P, T]

    def params(self, lm: LM):
        """Return a sharding per parameter, from the mesh axes that its module declares for its last dimensions (`axes=`)."""
        return jax.tree.map(self._param, lm.abstract_params, lm.declared("axes", ()))

    def _param(self, leaf, declared: tuple[str | None, ...]) -> NamedSharding:
        axes = [None] * (leaf.ndim - len(declared)) + list(declared)
        axes = [a if a and leaf.shape[i] % self.mesh.shape[a] == 0 else None for i, a in enumerate(axes)]
        if self.fsdp and leaf.size >= FSDP_SMALLEST:
            free = [i for i, a in enumerate(axes) if a is None and leaf.shape[i] % self.mesh.shape["data"] == 0]
            if free:
                axes[max(free, key=lambda i: leaf.shape[i])] = "data"
        return NamedSharding(self.mesh, P(*axes))

    def opt_state(self, tx: optax.GradientTransformation, lm: LM):
        """Return the shardings of the optimiser state.

        An array with the shape of its parameter is sharded like it. All others are replicated on every device.
        """

        def like_param(leaf, sharding, param):
            if isinstance(leaf, optax.MaskedNode):  # another optimiser updates this parameter, or none does
                return leaf
            return sharding if leaf.shape == param.shape else self.whole

        params = lm.abstract_params
        abstract = jax.eval_shape(tx.init, params)
        whole = lambda _: self.whole  # noqa: E731
        return optax.tree_utils.tree_map_params(
            tx,
            like_param,
            abstract,
            self.params(lm),
            params,
            transform_non_params=whole,
            is_leaf=lambda node: isinstance(node, optax.MaskedNode),
        )

    def state(self, lm: LM):
        """Return the shardings of a state: over `data` along the batch axis, and over `model` along the axis of heads.

        Leaves that all streams share are the entries of a bank, which are sharded over all devices along their first axis.
        """
        entries = NamedSharding(self.mesh, P(entry_axes(self.mesh)))

        def sharding(leaf, batch: int, heads: int):
            if batch < 0:
                return entries if leaf.ndim and leaf.shape[0] % self.mesh.size == 0 else self.whole
            axes = [None] * leaf.ndim
            if heads >= 0 and leaf.shape[heads] % self.mesh.shape["model"] == 0:
                axes[heads] = "model"
            axes[batch] = "data"
            return NamedSharding(self.mesh, P(*axes))

        axes = batch_axes(lm.init_state)
        heads = head_axes(lm) if self.mesh.shape["model"] > 1 else jax.tree.map(lambda _: -1, axes)
        return jax.tree.map(sharding, jax.eval_shape(lambda: lm.init_state(1)), axes, heads)

    def rows_here(self, batch: int) -> list[int]:
        """Return the rows of a batch that the devices of this process need.

        Processes that share a place on the data axis need the same rows, and the places of a process may be anywhere on it.
        """
        size = batch // self.mesh.shape["data"]
        return [shard * size + row for shard in self._shards for row in range(size)]

    def shard(self, batch):
        """Build global arrays from the rows of `rows_here` (NumPy leaves [B here, ...]), sharded over `data`.

        Arrays by token, [B here, P, T], are also divided over `context`.
        """
        devices, pieces = self.mesh.shape["data"], self.mesh.shape.get(AXIS, 1)

        def build(a):
            size = len(a) // len(self._shards)

            def part(index):
                row = self._shards.index((index[0].start or 0) // size) * size
                return np.asarray(a[row : row + size])[:, *index[1:]]

            sharding = self.tokens if a.ndim == 3 and a.shape[2] % pieces == 0 else self.rows
            return jax.make_array_from_callback((size * devices, *a.shape[1:]), sharding, part)

        return jax.tree.map(build, batch)

    def check_batch(self, name: str, size: int) -> None:
        """Raise a UserError if the data axis does not divide a batch size. name: its config key."""
        if size % self.mesh.shape["data"]:
            raise UserError(f"{name}={size} must be a multiple of {self.mesh.shape['data']}, the devices of the data axis")


def _mesh(shape: tuple[int, ...], axes: tuple[str, ...], devices: Sequence | Absent):
    """Return a mesh, and the places on its first axis where this process has a device."""
    if isinstance(devices, Absent):
        return devices.mesh(shape, axes), list(range(shape[0]))
    try:
        mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes), devices=devices)
    except NotImplementedError as error:  # some shapes have no good place in the network of a TPU slice
        text = " x ".join(map(str, shape))
        raise UserError(f"JAX has no mesh of {text} for these devices; set another mesh.context or mesh.model") from error
    here = jax.process_index()
    return mesh, [i for i, row in enumerate(mesh.devices) if any(device.process_index == here for device in row.flat)]


def head_axes(lm: LM):
    """Return, for each leaf of a state, the axis that grows with the number of heads, or -1."""
    model = lm.model
    wider = LM(dataclasses.replace(model, num_heads=2 * model.num_heads, num_kv_heads=2 * model.num_kv_heads))
    one, two = (jax.eval_shape(partial(m.init_state, 1)) for m in (lm, wider))
    return jax.tree.map(lambda a, b: next((i for i in range(a.ndim) if a.shape[i] != b.shape[i]), -1), one, two)
