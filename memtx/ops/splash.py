"""Softmax attention on a TPU: the kernel `splash_attention` of JAX, which keeps no scores, for several sets of keys.

The keys of all sets are put one after another. Which keys are in time for a query is known at compile time (`Seen`), so blocks
of scores that no query sees cost nothing. Which keys are valid is known at run time, and the kernel gets it as segment ids.

B stream, T query time, S keys of all sets, N query heads, K kv heads, G = N / K, H head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec as P

from memtx.ops.attention import TILE, View
from memtx.ops.per_device import mesh_here

LEAST = TILE  # queries of a call, and the unit of blocks
BLOCKS = (512, 256, LEAST)


def obstacle(views: Sequence[View]) -> str:
    """Return why the kernel cannot compute this attention, or "" if it can."""
    if any(view.bias is not None for view in views):
        return "scores have a position bias"
    if any(view.chunk_BT is not None or not (view.future or view.lead is not None) for view in views):
        return "only the data decide which keys a query sees"
    if not any(view.future or view.lead == 0 for view in views):  # the kernel would divide by 0
        return "a query may see no key of the call"
    features = views[0].q_BTNH.shape[-1]
    return f"heads have {features} features, which is not a multiple of 64" if features % 64 else ""


class Seen(masks.Mask):
    """Which keys of all sets are in time for which queries: [T, S], both filled up to a multiple of LEAST.

    Queries after the last see what they would see, and nothing sees keys after the last.
    """

    def __init__(self, views: Sequence[View]):
        time, self.sizes = views[0].q_BTNH.shape[1], tuple(view.k_BSKH.shape[1] for view in views)
        self.rules = tuple((view.future, view.lead or 0, view.window) for view in views)
        self._shape = (_filled(time), _filled(sum(self.sizes)))

    @property
    def shape(self) -> tuple[int, int]:
        """Return (T, S)."""
        return self._shape

    def __getitem__(self, index) -> np.ndarray:
        """Return a part of the mask, for a slice of queries and one of keys."""
        queries, keys = (np.arange(size)[part] for size, part in zip(self._shape, index, strict=True))
        seen, start = np.zeros((len(queries), len(keys)), bool), 0
        for size, (future, lead, window) in zip(self.sizes, self.rules, strict=True):
            here = (keys >= start) & (keys < start + size)
            if future:
                seen |= here
            else:
                age = queries[:, None] + lead - (keys - start)
                seen |= here & (age >= 0) & (age < (np.inf if window is None else window))
            start += size
        return seen

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Seen) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.sizes, self.rules, self._shape))


def attend(views: Sequence[View], *, interpret: bool = False) -> Array:
    """Return y_BTNH in q's dtype, as `ops.attention.attend` defines it. interpret: run the kernel on any platform, slowly."""
    q_BTNH = views[0].q_BTNH
    seen = Seen(views)
    k_BSKH, v_BSKH = (jnp.concatenate([getattr(view, name) for view in views], 1) for name in ("k_BSKH", "v_BSKH"))
    lengths = [view.k_BSKH.shape[:2] for view in views]
    valid_BS = jnp.concatenate(
        [jnp.ones(size, bool) if view.valid_BS is None else view.valid_BS for view, size in zip(views, lengths, strict=True)], 1
    )
    run = _kernel(seen, q_BTNH.shape[2] // k_BSKH.shape[2], interpret)

    def here(q_BTNH, k_BSKH, v_BSKH, valid_BS):
        rows, columns = seen.shape
        q, k, v = _fill(q_BTNH, rows), _fill(k_BSKH, columns), _fill(v_BSKH, columns)
        q_BKGTH = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1]).transpose(0, 2, 3, 1, 4)
        ids_BS = _fill(valid_BS, columns).astype(jnp.int32)
        ids = kernel.SegmentIds(q=jnp.ones((len(q), rows), jnp.int32), kv=ids_BS)
        by_head = jax.vmap(run, (0, 0, 0, None))
        y_BKGTH = jax.vmap(by_head)(q_BKGTH, k.swapaxes(1, 2), v.swapaxes(1, 2), ids)
        y_BTNH = y_BKGTH.transpose(0, 3, 1, 2, 4).reshape(q.shape)
        return y_BTNH[:, : q_BTNH.shape[1]]

    return _on_mesh(here, q_BTNH, k_BSKH, v_BSKH, valid_BS)


def _on_mesh(f, *args: Array) -> Array:
    """Run f on every device of a mesh, on its rows and heads. A kernel cannot be divided by XLA's partitioner."""
    mesh = mesh_here(*args)
    free = set() if mesh is None else set(mesh.axis_names) - set(mesh.manual_axes)
    if not free or mesh is None:
        return f(*args)
    sizes = {"data": args[0].shape[0], "model": args[1].shape[2]}
    axis = {name: name if name in free and size % mesh.shape[name] == 0 else None for name, size in sizes.items()}
    heads = P(axis["data"], None, axis["model"])
    specs = (heads, heads, heads, P(axis["data"]))
    return jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=heads, axis_names=free, check_vma=False)(*args)


def _kernel(seen: Seen, groups: int, interpret: bool):
    """Return the kernel of the `groups` query heads that share keys: (q_GTH, k_SH, v_SH, ids) -> y_GTH."""
    rows, columns = (next(block for block in BLOCKS if size % block == 0) for size in seen.shape)
    sizes = kernel.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_kv_compute=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_kv_dkv_compute=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    mask = masks.MultiHeadMask([seen] * groups)
    run: Any = kernel.make_splash_mqa(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
    return lambda q, k, v, ids: run(q, k, v, segment_ids=ids)


def _filled(size: int) -> int:
    return -(-size // LEAST) * LEAST


def _fill(a_BT: Array, time: int) -> Array:
    return jnp.pad(a_BT, [(0, 0), (0, time - a_BT.shape[1])] + [(0, 0)] * (a_BT.ndim - 2))
