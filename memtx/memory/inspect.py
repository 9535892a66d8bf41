"""The parts of a state that can be measured without knowing the mechanism. `memtx.evaluation.health` reads them."""

from __future__ import annotations

from jax import Array


class Inspectable:
    """A node of a state that shows its matrices, its entries, or both. B stream, M entries.

    A mechanism derives a class of its state from this one and overrides a property. The properties describe the state of one
    layer, in which the batch is the first axis.
    """

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("matrices", "stored"):
            if callable(vars(cls).get(name)):
                raise TypeError(f"{cls.__name__}.{name} must be a property")

    @property
    def matrices(self) -> tuple[Array, ...]:
        """The matrices that text is written to, [B, ..., rows, columns] each. There are none by default."""
        return ()

    @property
    def stored(self) -> tuple[Array, Array] | None:
        """The keys or vectors of entries, [B, M, ...], and a mask of those that were written, [B, M]. None by default."""
        return None
