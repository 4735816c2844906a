"""The ways back through small arrays, one after the other: see `projgen.cpu.series`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from projgen.cpu.load import load
from projgen.cpu.pull import PullStep
from projgen.cpu.schedule import BACKWARD, RUN, Round, Rows, Schedule, Vector
from projgen.render import render_pull_series


class PullSeries:
    """The kernels of some arrays, and where their groups are among the `size` values of a tree."""

    def __init__(self, tracks: Sequence[tuple[PullStep, Rows]], size: int) -> None:
        self.schedule = Schedule(BACKWARD, len(tracks), size)
        tapes = [np.zeros(0, np.int64)]
        for step, rows in tracks:
            at = self.schedule.cells
            self.schedule.place(
                *(step.function, step.geometry, step.memory, step.desk, rows), SLOPE=at + step.slope
            )
            tapes.append(np.arange(at, at + step.tape))
        self.tapes = np.concatenate(tapes)  # the cells that have them


class PullSeriesCall:
    """One call of a series.

    ``slopes`` are the gradients of the tree's radii, of which the kernels write their own;
    ``rises`` are what the parts above hand on to the values of their groups.
    """

    def __init__(self, series: PullSeries) -> None:
        self._series, self._round = series, Round(series.schedule)
        self.slopes, self.rises = self._round.up, self._round.down
        self._operands = [self._round.column(name) for name in ("Y", "X", "G", "OUT")]

    def begin(self, operands: Sequence[Sequence[int]], tapes: Vector) -> None:
        """Find the gradients of the radii. `operands` are the addresses of all arrays, of their
        projections, gradients and results; `tapes` follow one another."""
        if self._round.table.size:
            for column, addresses in zip(self._operands, operands, strict=True):
                column[:] = addresses
            self._round.cells[self._series.tapes] = tapes
            self._round.run(_entry(), 0)

    def end(self) -> None:
        """Write the gradients of the arrays, by what is in ``rises``."""
        if self._round.table.size:
            self._round.run(_entry(), 1)


@cache
def _entry() -> Any:
    """``run`` of the module, which is never unloaded."""
    module: Any = load(render_pull_series(BACKWARD))
    return RUN(module.run.address)


__all__ = ["PullSeries", "PullSeriesCall"]
