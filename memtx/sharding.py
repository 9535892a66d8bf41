"""Where arrays live: one table from parameter paths to mesh axes; the model itself knows nothing of devices.

The mesh has the axes `data` (streams, and parameters under FSDP) and `model` (tensor parallel). Memory is sharded over
`data` by its streams, the optimiser state like the parameters it belongs to. A dimension that an axis does not divide stays
whole.
"""

import re

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from memtx import config as configs
from memtx.core import batch_axes
from memtx.errors import UserError

# The first pattern that matches a parameter's path gives the axes of its last dimensions.
RULES = (
    (r"(^|/)(q|kv|r|up|x|gates)/w$", (None, "model")),
    (r"(^|/)(out|down)/w$", ("model", None)),
    (r"^embed$", ("model", None)),
    (r"^to_logits/w$", (None, "model")),
)
FSDP_SMALLEST = 4096  # parameters smaller than this are not worth gathering


class Layout:
    """Where each array of a run lives on the (data, model) mesh over all devices."""

    def __init__(self, mesh: configs.Mesh | None = None):
        mesh = mesh or configs.Mesh()
        devices = jax.device_count()
        data = mesh.data or max(devices // mesh.model, 1)
        if data * mesh.model != devices:
            raise UserError(
                f"mesh.data x mesh.model = {data} x {mesh.model} does not make the {devices} device(s) here; "
                "set mesh.model to a divisor and mesh.data=0"
            )
        self.fsdp = mesh.fsdp
        self.mesh = jax.make_mesh((data, mesh.model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
        self.whole = NamedSharding(self.mesh, P())
        self.rows = NamedSharding(self.mesh, P("data"))

    def params(self, params):
        """A sharding per parameter (or its ShapeDtypeStruct)."""
        return jax.tree_util.tree_map_with_path(self._param, params)

    def _param(self, path, leaf) -> NamedSharding:
        name = "/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path)
        tail = next((axes for pattern, axes in RULES if re.search(pattern, name)), ())
        axes = [None] * (leaf.ndim - len(tail)) + list(tail)
        axes = [a if a and leaf.shape[i] % self.mesh.shape[a] == 0 else None for i, a in enumerate(axes)]
        if self.fsdp and leaf.size >= FSDP_SMALLEST:
            free = [i for i, a in enumerate(axes) if a is None and leaf.shape[i] % self.mesh.shape["data"] == 0]
            if free:
                axes[max(free, key=lambda i: leaf.shape[i])] = "data"
        return NamedSharding(self.mesh, P(*axes))

    def opt_state(self, tx: optax.GradientTransformation, params):
        """The optimiser state's: like the parameter it belongs to where the shape is the same, whole elsewhere."""

        def like_param(leaf, sharding, param):
            if isinstance(leaf, optax.MaskedNode):  # another part of the optimiser's, or nobody's
                return leaf
            return sharding if leaf.shape == param.shape else self.whole

        abstract = jax.eval_shape(tx.init, params)
        whole = lambda _: self.whole  # noqa: E731
        return optax.tree_utils.tree_map_params(
            tx,
            like_param,
            abstract,
            self.params(params),
            params,
            transform_non_params=whole,
            is_leaf=lambda node: isinstance(node, optax.MaskedNode),
        )

    def state(self, init_state):
        """Memory over `data` along its batch axis; what all streams share stays whole."""

        def sharding(axis):
            return self.whole if axis < 0 else NamedSharding(self.mesh, P(*[None] * axis, "data"))

        return jax.tree.map(sharding, batch_axes(init_state))

    def place(self, batch):
        """Global arrays from each process's rows (NumPy leaves [B, ...])."""
        return jax.tree.map(lambda a: jax.make_array_from_process_local_data(self.rows, np.asarray(a)), batch)

    def check_batch(self, name: str, size: int) -> None:
        if size % self.mesh.shape["data"]:
            raise UserError(f"{name}={size} is not divisible by the {self.mesh.shape['data']} devices of the data axis")
