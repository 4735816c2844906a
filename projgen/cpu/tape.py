"""What a projection leaves for gradients, and where it lies: all who read or write it ask here.

A *tape* is a vector of float64 with the radius and the norm of each batch entry, then for each
level above the leaf, from the root, its values and their projection; all in memory order. The
kernels of both ways name these parts ``radius``, ``total``, ``v0``, ``u0``, ``v1``, ``u1``...
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from projgen.plan import Plan

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class TapeLayout:
    """Where a tape of `batch` entries has what it has; ``sizes`` count the values of each level
    above the leaf, from the root. A tracer of PyTorch may have symbols for these numbers."""

    batch: Any
    sizes: tuple[Any, ...]

    @staticmethod
    def of(plan: Plan) -> TapeLayout:
        return _layout(plan.batch, tuple(stage.size for stage in plan.stages[:-1]))

    @property
    def parts(self) -> tuple[tuple[str, Any], ...]:
        """The names and sizes of the parts, in their order."""
        levels = ((f"{name}{i}", size) for i, size in enumerate(self.sizes) for name in "vu")
        return ("radius", self.batch), ("total", self.batch), *levels

    @property
    def size(self) -> Any:
        return sum(size for _, size in self.parts)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each part lies."""
        found, at = {}, 0
        for name, size in self.parts:
            found[name] = slice(at, at + size)
            at += size
        return found

    def radii(self, tape: Vector) -> Vector:
        """Of the batch: a view, as all of these are."""
        return tape[self.slices["radius"]]

    def norms(self, tape: Vector) -> Vector:
        """Of the batch."""
        return tape[self.slices["total"]]

    def levels(self, tape: Vector) -> Iterator[tuple[Vector, Vector]]:
        """For each level above the leaf its values, and their projection."""
        slices = self.slices
        for i in range(len(self.sizes)):
            yield tape[slices[f"v{i}"]], tape[slices[f"u{i}"]]

    def groups(self, tape: Vector) -> tuple[Vector, Vector]:
        """The norms and the radii of the leaf's groups."""
        return [(self.norms(tape), self.radii(tape)), *self.levels(tape)][-1]

    def found(self) -> NDArray[np.int64]:
        """The indices of norms and values: of all that was there before the projection."""
        parts = [part for name, part in self.slices.items() if name == "total" or name[0] == "v"]
        return np.concatenate([np.arange(part.start, part.stop) for part in parts])


@lru_cache(maxsize=256)
def _layout(batch: int, sizes: tuple[int, ...]) -> TapeLayout:
    """One for all plans of these sizes, so that its parts are laid out once."""
    return TapeLayout(batch, sizes)


__all__ = ["TapeLayout"]
