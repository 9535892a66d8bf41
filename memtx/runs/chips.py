"""Accelerators by name, with the figures that their makers state, rounded.

    chip, count = parse_topology("v5e:4x4")      # a TPU slice by the shape of its network
    chip, count = parse_topology("h100x8")       # GPUs by their number

One chip is one device of JAX.
"""

from __future__ import annotations

import dataclasses
import math
import re

from memtx.errors import UserError, check_known


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator.

    flops: FLOPs per second of dense products with bfloat16 operands. memory: bytes. bandwidth: bytes per second of its memory.
    link: bytes per second to other chips of the slice or machine, in one direction. network: the same to GPUs of other
    machines, which have MACHINE each. It is an assumption: 200 or 400 Gb/s per GPU. dimensions: of the network of a TPU slice.
    """

    platform: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float = 0.0
    dimensions: int = 0


GIB = 2**30
MACHINE = 8  # GPUs of one machine
CHIPS = {
    "v4": Chip("tpu", 275e12, 32 * GIB, 1.23e12, 3.0e11, dimensions=3),
    "v5e": Chip("tpu", 197e12, 16 * GIB, 0.82e12, 2.0e11, dimensions=2),
    "v5p": Chip("tpu", 459e12, 95 * GIB, 2.77e12, 6.0e11, dimensions=3),
    "v6e": Chip("tpu", 918e12, 32 * GIB, 1.6e12, 4.0e11, dimensions=2),
    "a100": Chip("cuda", 312e12, 80e9, 2.04e12, 3.0e11, network=2.5e10),
    "h100": Chip("cuda", 989e12, 80e9, 3.35e12, 4.5e11, network=5.0e10),
    "h200": Chip("cuda", 989e12, 141e9, 4.8e12, 4.5e11, network=5.0e10),
    "b200": Chip("cuda", 2250e12, 180e9, 7.7e12, 9.0e11, network=5.0e10),
}


NAMES = {  # words in the names that JAX gives to devices
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v6": "v6e",
    "A100": "a100",
    "H100": "h100",
    "H200": "h200",
    "B200": "b200",
}


def chip_named(kind: str) -> Chip | None:
    """Return the chip of a device, by its `device_kind` such as "TPU v5 lite", or None if it is not in the table.

    GPUs on a PCIe card are slower and not in the table.
    """
    if "PCIe" in kind:
        return None
    return next((CHIPS[name] for word, name in NAMES.items() if re.search(rf"\b{word}", kind)), None)


def parse_topology(text: str) -> tuple[Chip, int]:
    """Return the chip and the number of chips of "v5e:4x4" or "h100x8". Raises UserError if the text is neither."""
    match = re.fullmatch(r"(?P<kind>[a-z]\d+[a-z]?)(?P<separator>[:x])(?P<shape>[1-9]\d*(x[1-9]\d*)*)", text.lower())
    if match is None:
        forms = "a TPU slice such as v5e:1x1 or v5e:4x4, or a number of GPUs such as h100x8"
        raise UserError(f"a topology is {forms}, not {text!r}")
    kind, shape = match["kind"], [int(size) for size in match["shape"].split("x")]
    check_known(kind, CHIPS, "accelerator")
    chip = CHIPS[kind]
    if chip.dimensions and (match["separator"] != ":" or len(shape) != chip.dimensions):
        example = f"{kind}:{'x'.join(['2'] * chip.dimensions)}"
        raise UserError(f"the slice of {kind} needs {chip.dimensions} sizes, such as {example}, not {text!r}")
    if not chip.dimensions and (match["separator"] != "x" or len(shape) != 1):
        raise UserError(f"give a number of {kind}, such as {kind}x8, not {text!r}")
    return chip, math.prod(shape)
