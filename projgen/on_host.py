"""The arrays of one call of a tree, and its results', on the CPU."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from projgen.arrays import Array, Wrap, check_dtype, on_gpu, view, writable_view
from projgen.operands import check_out
from projgen.structure import Key, Place, dotted


class OnHost:
    """What a call is given, array by array. `projgen.cuda.trees.OnDevice` is a GPU's."""

    def __init__(self) -> None:
        self.arrays: dict[Key, Array] = {}
        self.outs: dict[Key, Array] = {}

    def take(self, leaf: Place, given: Any) -> tuple[Array, Wrap]:
        """An array, and what makes others of its kind."""
        if self.arrays and type(given) is not np.ndarray and on_gpu(given):
            raise TypeError(
                f"it lives on a GPU, and {dotted(next(iter(self.arrays)))} does not: a tree's "
                "arrays lie in one place"
            )
        array, wrap = view(given)
        self.arrays[leaf.key] = array
        return array, wrap

    def take_out(self, leaf: Place, given: Any, same: bool) -> Array:
        """Where its result goes; `same`: to the array itself."""
        target = self.arrays[leaf.key] if same else writable_view(given)
        self.outs[leaf.key] = target
        return target

    def forms(self) -> tuple[Hashable, ...]:
        """What kernels depend on, of each array and each result."""
        arrays = (*self.arrays.values(), *self.outs.values())
        return tuple([(a.dtype, a.shape, a.strides, a.flags.aligned) for a in arrays])

    def check(self, leaf: Place) -> None:
        check_dtype(self.arrays[leaf.key])

    def check_out(self, leaf: Place) -> None:
        check_out(self.arrays[leaf.key], self.outs[leaf.key])
