"""Sums and numbers of the values above a threshold, group by group: a sweep over an array.

What a search for the thresholds of groups asks for that no kernel has whole: see
`projgen.torch.sharded.search`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from projgen.arrays import Array, address
from projgen.cpu import call as cpu
from projgen.cpu.lower import VERSION
from projgen.render import render_tally

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TallyKernel:
    """Of arrays of one dtype."""

    dtype: str
    version: int = VERSION

    @property
    def title(self) -> str:
        return f"tally of {self.dtype}"

    @property
    def source(self) -> str:
        return render_tally(self)


class Tally:
    """Sweeps over an array whose groups span `axes`; each index along the others is a group."""

    def __init__(self, y: Array, axes: Sequence[int]) -> None:
        """`y` is copied where it is not float32 or float64 in C order."""
        dtype = y.dtype.name if y.dtype.char in "fd" else "float32"
        self._y = np.ascontiguousarray(y, dtype)
        self._groups = tuple(n for axis, n in enumerate(y.shape) if axis not in axes)
        if not y.size:
            return
        kinds = [(axis in axes) if n > 1 else None for axis, n in enumerate(y.shape)]
        last = next((kind for kind in reversed(kinds) if kind is not None), True)
        inner = len(list(takewhile(lambda kind: kind in (last, None), reversed(kinds))))
        outer = y.ndim - inner  # the axes of rows; those of a row are all of one kind
        length = int(np.prod(y.shape[outer:], dtype=np.int64))
        kept = [1 if axis in axes else n for axis, n in enumerate(y.shape[:outer])]
        count = int(np.prod(self._groups, dtype=np.int64))
        first = np.arange(0, count, 1 if last else length).reshape(kept)
        rows = np.broadcast_to(first, y.shape[:outer]).reshape(-1)
        self._cells = np.concatenate([[rows.size, length, count, last], rows]).astype(np.int64)
        self._module = cpu.load_kernel(TallyKernel(dtype))  # keeps the machine code alive
        self._entry = cpu.ENTRY(int(self._module.tally.address))

    def above(self, thresholds: Values) -> tuple[Values, Values]:
        """Of each group the sum of what its values exceed the threshold by, and how many do."""
        sums, counts = np.zeros(self._groups), np.zeros(self._groups)
        if self._y.size:
            limits = np.ascontiguousarray(thresholds, np.float64)
            self._entry(*map(address, (self._y, limits, sums, counts, self._cells)))
        return sums, counts


__all__ = ["Tally", "TallyKernel"]
