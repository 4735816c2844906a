"""Kernels that are called one after the other by compiled code: their table, and their workspace.

A row of the table says all about one kernel. What its cells are called is known here alone: the
modules of compiled code are rendered with these names.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.cpu.call import LINE, aligned

Vector = NDArray[np.float64]

_POINTER, _WORD = ctypes.c_void_p, ctypes.c_int64
RUN = ctypes.CFUNCTYPE(_WORD, _POINTER, _WORD, _POINTER, _WORD, _WORD, _WORD, _WORD)

# What a kernel is called with, in the order in which `call` takes it (templates/cpu/address.py.j2).
CALLED = ("FUNCTION", "Y", "X", "GEOMETRY", "WORK", "DESK")
PLACED = ("DESK_AT", "DESK_SIZE", "START", "COUNT", "LENGTH", "PITCH")
FORWARD = (*CALLED, *PLACED, "FLAG_1", "FLAG_2", "RADII", "VALUES", "INSIDE")
BACKWARD = (*CALLED, *PLACED, "G", "OUT", "SLOPE")


@dataclass(frozen=True, slots=True)
class Rows:
    """Where an array's values lie among those of a tree: ``count`` rows of ``length``, the first
    of them at ``start``, each ``pitch`` from the last."""

    start: int
    count: int
    length: int
    pitch: int


class Schedule:
    """The table of `count` kernels, for a tree of `size` values.

    A workspace has two vectors. ``words`` begin with the table, and the kernels' desks follow;
    ``cells`` begin with two vectors of the tree, of `size` both, and what the kernels work in
    follows.
    """

    def __init__(self, columns: tuple[str, ...], count: int, size: int) -> None:
        self.size = size
        self.table = np.zeros((count, len(columns)), np.int64)
        self.words, self.cells = _lines(self.table.size), _lines(2 * size)
        self._columns = {name: at for at, name in enumerate(columns)}
        self._filled = 0

    def place(
        self, function: int, geometry: int, memory: int, desk: int, rows: Rows, **own: int
    ) -> None:
        """Fill the next row: addresses, the sizes of what the kernel works in and of its desk, and
        `own` columns of one sort of table alone. Its memory begins where ``cells`` ended before.
        """
        found = {
            "FUNCTION": function,
            "GEOMETRY": geometry,
            "WORK": 8 * self.cells,  # each workspace adds its own address
            "DESK": 8 * self.words,
            "DESK_AT": self.words,
            "DESK_SIZE": desk,
            "START": rows.start,
            "COUNT": rows.count,
            "LENGTH": rows.length,
            "PITCH": rows.pitch,
            **own,
        }
        for name, value in found.items():
            self.column(name)[self._filled] = value
        self.words += _lines(desk)
        self.cells += _lines(memory)
        self._filled += 1

    def column(self, name: str, table: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """What the rows have under this name, in `table` or in its pattern: a view."""
        found: NDArray[np.int64] = (self.table if table is None else table)[:, self._columns[name]]
        return found


class Round:
    """The workspace of one call of a schedule: its kernels' memory and desks, and a table of its
    own. ``up`` and ``down`` are the tree's vectors: what its kernels find, and what they are told.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule, size = schedule, schedule.size
        self.words = aligned(schedule.words, np.int64)
        self.cells = aligned(schedule.cells, np.float64)
        self.table = self.words[: schedule.table.size].reshape(schedule.table.shape)
        self.table[...] = schedule.table
        words_at, cells_at = int(self.words.ctypes.data), int(self.cells.ctypes.data)
        self.column("WORK")[:] += cells_at
        self.column("DESK")[:] += words_at
        sizes = schedule.words, schedule.cells
        self._arguments = words_at, sizes[0], cells_at, sizes[1], len(self.table), size
        self.up, self.down = self.cells[:size], self.cells[size : 2 * size]

    def column(self, name: str) -> NDArray[np.int64]:
        """What the rows of the table have under this name: a view."""
        return self._schedule.column(name, self.table)

    def run(self, entry: Any, half: int) -> int:
        """Call the kernels for the first (0) or the second half of their work."""
        return int(entry(*self._arguments, half))


def _lines(size: int) -> int:
    """As many cells, or some more: up to a cache line's end."""
    return -(-size // LINE) * LINE


__all__ = ["BACKWARD", "FORWARD", "RUN", "Round", "Rows", "Schedule"]
