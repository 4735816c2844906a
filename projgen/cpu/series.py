"""The kernels of small arrays, one after the other in a single call of compiled code.

For an array of some thousand elements a call from Python takes as long as the kernel itself, and
so does every vector that is made or copied on the way. Here the kernels' values go straight to
where the part above them reads them, and their radii come from where it has written them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.cpu.call import LINE, Step, aligned
from projgen.cpu.load import load
from projgen.render import render_series

Vector = NDArray[np.float64]

_POINTER, _WORD = ctypes.c_void_p, ctypes.c_int64
RUN = ctypes.CFUNCTYPE(_WORD, _POINTER, _WORD, _POINTER, _WORD, _WORD, _WORD, _WORD)


@dataclass(frozen=True, slots=True)
class Rows:
    """Where an array's values lie among those of a tree: ``count`` rows of ``length``, the first
    of them at ``start``, each ``pitch`` from the last."""

    start: int
    count: int
    length: int
    pitch: int


class Series:
    """The kernels of some arrays, and where their values go among the `size` of a tree."""

    def __init__(self, tracks: Sequence[tuple[Step, Rows]], size: int) -> None:
        self.size = size
        self.table = np.zeros((len(tracks), _WIDTH), np.int64)
        words, cells = lines(self.table.size), lines(2 * size)
        tapes: list[NDArray[np.int64]] = []
        for row, (step, rows) in zip(self.table, tracks, strict=True):
            row[:] = (  # in the order of the module's names for these cells
                *(step.function, 0, 0, step.geometry, 8 * cells, 8 * words),
                *(words, step.desk, *step.flags, cells + step.radii, cells + step.values),
                *(rows.start, rows.count, rows.length, rows.pitch, 0),
            )
            tapes.append(np.concatenate([np.arange(p.start, p.stop) + cells for p in step.tape]))
            words += lines(step.desk)
            cells += lines(step.memory)
        self.sizes = words, cells
        self.tapes = np.concatenate([*tapes, np.zeros(0, np.int64)])  # the cells that have them
        self.tape_ends = np.cumsum([tape.size for tape in tapes], dtype=int).tolist()
        self.offsets = np.array([step.offset for step, _ in tracks], np.int64)
        self.out_offsets = np.array([step.out_offset for step, _ in tracks], np.int64)


class Lane:
    """The workspace of one call of a series.

    ``values`` are those of the tree, of which the kernels write their own; ``shares`` the radii
    that the parts above leave for them.
    """

    def __init__(self, series: Series) -> None:
        self._series, size = series, series.size
        words, cells = series.sizes
        self._words, self._cells = aligned(words, np.int64), aligned(cells, np.float64)
        self._table = self._words[: series.table.size].reshape(series.table.shape)
        self._table[...] = series.table
        words_at, cells_at = int(self._words.ctypes.data), int(self._cells.ctypes.data)
        self._table[:, _WORK] += cells_at
        self._table[:, _DESK] += words_at
        self._arguments = words_at, words, cells_at, cells, len(self._table), size
        self.values, self.shares = self._cells[:size], self._cells[size : 2 * size]

    def begin(self, ys: Sequence[int]) -> bool:
        """Find the values of the arrays at these addresses; whether all are in range."""
        if not ys:
            return True
        self._table[:, _Y] = ys
        self._table[:, _Y] += self._series.offsets
        self._table[:, _X] = self._table[:, _Y]
        return not _runner()(*self._arguments, 0)

    def end(self, outs: Sequence[int]) -> list[int]:
        """Project these arrays, on the radii in ``shares``, into those at `outs`; the numbers of
        those that are inside, for which nothing is written."""
        if not outs:
            return []
        self._table[:, _X] = outs
        self._table[:, _X] += self._series.out_offsets
        if not _runner()(*self._arguments, 1):
            return []
        return np.flatnonzero(self._table[:, _INSIDE]).tolist()

    def tapes(self) -> list[Vector]:
        """The tapes of the arrays that have been projected."""
        found, ends = self._cells[self._series.tapes], self._series.tape_ends
        return [found[start:end] for start, end in zip([0, *ends], ends, strict=False)]


_WIDTH = 17  # cells of a row of the table
_Y, _X, _WORK, _DESK, _INSIDE = 1, 2, 4, 5, 16


def lines(size: int) -> int:
    """As many cells, or some more: up to a cache line's end."""
    return -(-size // LINE) * LINE


@cache
def _runner() -> Any:
    """``run`` of the module, which is never unloaded."""
    return RUN(load(render_series()).run.address)
