"""The kernels of small arrays, one after the other in a single call of compiled code.

For an array of some thousand elements a call from Python takes as long as the kernel itself, and
so does every vector that is made or copied on the way. Here the kernels' values go straight to
where the part above them reads them, and their radii come from where it has written them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.cpu.call import Step
from projgen.cpu.load import load
from projgen.cpu.schedule import FORWARD, RUN, Round, Rows, Schedule, Vector
from projgen.render import render_series


class Series:
    """The kernels of some arrays, and where their values go among the `size` of a tree."""

    def __init__(self, tracks: Sequence[tuple[Step, Rows]], size: int) -> None:
        self.schedule = Schedule(FORWARD, len(tracks), size)
        tapes: list[NDArray[np.int64]] = []
        for step, rows in tracks:
            at = self.schedule.cells
            self.schedule.place(
                *(step.function, step.geometry, step.memory, step.desk, rows),
                FLAG_1=step.flags[0],
                FLAG_2=step.flags[1],
                RADII=at + step.radii,
                VALUES=at + step.values,
            )
            tapes.append(np.concatenate([np.arange(p.start, p.stop) + at for p in step.tape]))
        self.tapes = np.concatenate([*tapes, np.zeros(0, np.int64)])  # the cells that have them
        self.tape_ends = np.cumsum([tape.size for tape in tapes], dtype=int).tolist()
        self.offsets = np.array([step.offset for step, _ in tracks], np.int64)
        self.out_offsets = np.array([step.out_offset for step, _ in tracks], np.int64)


class SeriesCall:
    """One call of a series.

    ``values`` are those of the tree, of which the kernels write their own; ``shares`` the radii
    that the parts above leave for them.
    """

    def __init__(self, series: Series) -> None:
        self._series, self._round = series, Round(series.schedule)
        self.values, self.shares = self._round.up, self._round.down
        self._ys, self._xs = self._round.column("Y"), self._round.column("X")
        self._inside = self._round.column("INSIDE")

    def begin(self, ys: Sequence[int]) -> bool:
        """Find the values of the arrays at these addresses; whether all are in range."""
        if not ys:
            return True
        self._ys[:] = ys
        self._ys += self._series.offsets
        self._xs[:] = self._ys
        return not self._round.run(_entry(), 0)

    def end(self, outs: Sequence[int]) -> list[int]:
        """Project these arrays, on the radii in ``shares``, into those at `outs`; the numbers of
        those that are inside, for which nothing is written."""
        if not outs:
            return []
        self._xs[:] = outs
        self._xs += self._series.out_offsets
        if not self._round.run(_entry(), 1):
            return []
        found: list[int] = np.flatnonzero(self._inside).tolist()
        return found

    def tapes(self) -> list[Vector]:
        """The tapes of the arrays that have been projected."""
        found, ends = self._round.cells[self._series.tapes], self._series.tape_ends
        return [found[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@cache
def _entry() -> Any:
    """``run`` of the module, which is never unloaded."""
    module: Any = load(render_series(FORWARD))
    return RUN(module.run.address)


__all__ = ["Series", "SeriesCall"]
