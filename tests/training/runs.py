"""A small run to save and restore: its trees are known from the step."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.core import pytree
from memtx.training.checkpoint import Checkpointer

CONFIG = {"model": {"width": 128, "stacks": ((("window",), 4),)}, "train": {"steps": 10_000, "batch": 8}, "eval": {"every": 5}}


@pytree
class Ring:
    key_BSKH: jax.Array
    valid_BS: jax.Array


def trees(seed: int) -> dict:
    """A step's trees, random and so hard to compress, except for the leaves of zeros; made by numpy, which compiles nothing."""
    rng = np.random.default_rng(seed)

    def normal(*shape, dtype=np.float32):
        return jnp.asarray(rng.standard_normal(shape).astype(dtype))

    params = {"embed": normal(32, 8), "stacks": ({"w": normal(4, 8, dtype=jnp.bfloat16)}, ())}
    return {
        "params": params,
        "opt_state": (jnp.asarray(np.int32(seed)), {"mu": jax.tree.map(np.zeros_like, params)}, ()),
        "memory": (Ring(normal(2, 3, 1, 4), jnp.asarray(rng.random((2, 3)) < 0.5)), ()),
    }


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def save(keeper: Checkpointer, step: int, **options) -> None:
    keeper.save(step, **trees(step), cursor={"next": step}, **options)
    keeper.wait()


def same(found, seed: int) -> None:
    for item, tree in trees(seed).items():
        jax.tree.map(partial(np.testing.assert_array_equal, strict=True), getattr(found, item), tree)
    assert found.cursor == {"next": seed}


def names(workdir: Path) -> list[str]:
    return sorted(p.name for p in (workdir / "checkpoints").iterdir())


def steps(workdir: Path) -> list[int]:
    return [int(name) for name in names(workdir)]


def resume(workdir, config=CONFIG, warn=pytest.fail, wanted=None):
    with Checkpointer(workdir, config, warn=warn) as keeper:
        return keeper.restore(**(wanted or abstract(trees(0))))
