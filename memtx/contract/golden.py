"""Goldens: the expected outputs and gradients of C1, from an oracle that shares no code with memtx.

An oracle is a second implementation of the mechanism from its paper's equations, in float64 NumPy, one stream at a time:

    from memtx.contract.golden import Golden

    def oracle(a, position, scale):                    # a: the inputs of one stream by name; then the settings of the Config
        count_T1 = np.arange(1, len(a["x.x"]) + 1)[:, None]
        return scale * np.cumsum(a["x.x"], 0) / count_T1

    GOLDEN = Golden("average", oracle, {"x.x": (16, 8)}, {"scale": 1.0})

Gradients come from a complex step. For an analytic f, Im f(x + i h v) / h with h = 1e-30 is the derivative along v to the last
bits of float64, since nothing is subtracted. Under the complex step a stop-gradient is "take the real part".
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

ROWS = 4  # streams
STEP = 1e-30


@dataclass(frozen=True)
class Golden:
    """An oracle with the shapes of its inputs and its settings.

    memory    the name of the mechanism
    oracle    `oracle(inputs of one stream, position=, **config) -> y`, y [16, ...]
    shapes    the shapes of the inputs. Those with names "x.*" are per stream and do not include the axis of streams
    config    the settings of the mechanism's Config
    position  the position encoding of the model: "rope", "alibi", "t5" or "none"
    scale     the standard deviation of the parameters, for mechanisms for which N(0, 1) makes float32 too coarse

    Inputs are named x.x (residual and body sites), x.q x.k x.v (attention site) or x.h x.logits (head site), param.PATH for
    parameters, and shared.KEY for arrays that a model passes to all layers. There are 16 tokens, 4 query heads, 2 key-value
    heads, head dimension 4, width 8 and a vocabulary of 16.
    """

    memory: str
    oracle: Callable
    shapes: dict[str, tuple[int, ...]]
    config: dict = field(default_factory=dict)
    position: str = "rope"
    scale: float = 1.0

    def inputs(self, name: str) -> dict[str, np.ndarray]:
        """Draw random inputs, seeded by a name, and round them to float32 so that both sides get the same numbers."""
        rng, found = np.random.default_rng(list(name.encode())), {}
        for key, shape in self.shapes.items():
            value = rng.normal(size=(ROWS, *shape) if key.startswith("x.") else shape)
            found[key] = (value * self.scale if key.startswith("param.") else value).astype(np.float32)
        return found

    def outputs(self, a: dict[str, np.ndarray]) -> np.ndarray:
        """Return y of all streams, real or complex."""
        rows = [{key: v[row] if key.startswith("x.") else v for key, v in a.items()} for row in range(ROWS)]
        return np.stack([self.oracle(row, **({"position": self.position} | self.config)) for row in rows])

    def derivative(self, a: dict[str, np.ndarray], direction: dict[str, np.ndarray]) -> np.ndarray:
        """Return dy along a direction in the space of all inputs, by complex step."""
        return np.imag(self.outputs({key: v.astype(float) + 1j * STEP * direction.get(key, 0) for key, v in a.items()})) / STEP

    def gradients(self, a: dict[str, np.ndarray], weight: np.ndarray) -> dict[str, np.ndarray]:
        """Return d sum(y * weight) / d input for every input.

        Streams are independent, so one step moves a coordinate of all of them.
        """
        grads = {}
        for key, value in a.items():
            streams = key.startswith("x.")
            shape = value.shape[1:] if streams else value.shape
            grad = np.zeros((*shape, ROWS))
            for index in np.ndindex(shape):
                direction = np.zeros(value.shape)
                direction[(slice(None), *index) if streams else index] = 1
                grad[index] = (self.derivative(a, {key: direction}) * weight).reshape(ROWS, -1).sum(1)
            grads[key] = np.moveaxis(grad, -1, 0) if streams else grad.sum(-1)
        return grads

    def make(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of the .npz file: settings (JSON), inputs, y, weight (the loss is sum(y * weight)) and grad.*"""
        a = self.inputs(name)
        settings = {"memory": self.memory, "config": self.config, "position": self.position}
        y = self.outputs({key: v.astype(float) for key, v in a.items()})
        weight = np.random.default_rng(len(name)).normal(size=y.shape).astype(np.float32)
        grads = {f"grad.{key}": v.astype(np.float32) for key, v in self.gradients(a, weight).items()}
        return a | grads | {"settings": np.array(json.dumps(settings)), "y": y.astype(np.float32), "weight": weight}


@dataclass(frozen=True)
class Expected:
    """The origin of one golden's arrays: a .npz file, or an oracle in a Python file."""

    path: Path
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.path.stem

    def load(self) -> dict[str, np.ndarray]:
        """Return the arrays. Raises pytest.UsageError if the Python file has no Golden with this name."""
        if not self.name:
            return dict(np.load(self.path))
        spec = importlib.util.spec_from_file_location(self.path.stem, self.path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        golden = getattr(module, self.name, None)
        if not isinstance(golden, Golden):
            raise pytest.UsageError(f"--golden: {self.path} has no Golden named {self.name}")
        return golden.make(self.name)


def find(given: str, memory: str, root: Path) -> list[Expected]:
    """Return the goldens that `--golden` names.

    A folder has the goldens of memtx's own mechanisms, so it is ignored if `memory` is set. Raises pytest.UsageError if the
    path does not exist.
    """
    if not given:
        return []
    file, _, name = given.partition(":")
    path = Path(file) if Path(file).exists() else root / file
    if not path.exists():
        raise pytest.UsageError(f"--golden={given}: no such file; give a .npz file, a folder of them or path/to/file.py:NAME")
    if path.is_dir():
        return [] if memory else [Expected(file) for file in sorted(path.glob("*.npz"))]
    return [Expected(path, name)]
