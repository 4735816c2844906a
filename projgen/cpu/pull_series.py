"""The ways back through small arrays, one after the other: see `projgen.cpu.series`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from projgen.cpu.call import aligned
from projgen.cpu.load import load
from projgen.cpu.pull import PullStep
from projgen.cpu.series import RUN, Rows, Vector, lines
from projgen.render import render_pull_series


class PullSeries:
    """The kernels of some arrays, and where their groups are among the `size` values of a tree."""

    def __init__(self, tracks: Sequence[tuple[PullStep, Rows]], size: int) -> None:
        self.size = size
        self.table = np.zeros((len(tracks), _WIDTH), np.int64)
        words, cells = lines(self.table.size), lines(2 * size)
        tapes = [np.zeros(0, np.int64)]
        for row, (step, rows) in zip(self.table, tracks, strict=True):
            row[:] = (  # in the order of the module's names for these cells
                *(step.function, 0, 0, step.geometry, 8 * cells, 8 * words),
                *(words, step.desk, 0, 0),
                *(cells + step.slope, rows.start, rows.count, rows.length, rows.pitch),
            )
            tapes.append(np.arange(cells, cells + step.tape))
            words += lines(step.desk)
            cells += lines(step.memory)
        self.sizes = words, cells
        self.tapes = np.concatenate(tapes)  # the cells that have them


class PullLane:
    """The workspace of one call of a series.

    ``slopes`` are the gradients of the tree's radii, of which the kernels write their own;
    ``rises`` are what the parts above hand on to the values of their groups.
    """

    def __init__(self, series: PullSeries) -> None:
        self._series, size = series, series.size
        words, cells = series.sizes
        self._words, self._cells = aligned(words, np.int64), aligned(cells, np.float64)
        self._table = self._words[: series.table.size].reshape(series.table.shape)
        self._table[...] = series.table
        words_at, cells_at = int(self._words.ctypes.data), int(self._cells.ctypes.data)
        self._table[:, _WORK] += cells_at
        self._table[:, _DESK] += words_at
        self._arguments = words_at, words, cells_at, cells, len(self._table), size
        self.slopes, self.rises = self._cells[:size], self._cells[size : 2 * size]

    def begin(self, operands: Sequence[Sequence[int]], tapes: Vector) -> None:
        """Find the gradients of the radii. `operands` are the addresses of y, x, g and the result
        of each array; `tapes` follow one another."""
        if len(self._table):
            self._table[:, _OPERANDS] = operands
            self._cells[self._series.tapes] = tapes
            _runner()(*self._arguments, 0)

    def end(self) -> None:
        """Write the gradients of the arrays, by what is in ``rises``."""
        if len(self._table):
            _runner()(*self._arguments, 1)


_WIDTH = 15  # cells of a row of the table
_WORK, _DESK, _OPERANDS = 4, 5, [1, 2, 8, 9]


@cache
def _runner() -> Any:
    """``run`` of the module, which is never unloaded."""
    return RUN(load(render_pull_series()).run.address)


__all__ = ["PullLane", "PullSeries"]
