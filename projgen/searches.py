"""How a level looks for its groups' thresholds: one after the other, many abreast, or by sweeps.

A search reads a group several times, so most ways want it in a cache. Packed groups, rows that are
searched one by one and columns that are turned are in one when the last sweep projects them; other
groups are searched tile by tile between the two sweeps. What has no room in a cache, or takes more
than one loop, is searched by further sweeps over the array.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from projgen import caches
from projgen.cuts import cut_loop, longest_over_groups
from projgen.dtypes import ITEMSIZE, arithmetic
from projgen.stage import UNCUT, Axis, Cut, Threshold, Walk

SORTED = 32  # groups of up to so many values are sorted, many at a time
ABREAST = 16  # columns are searched together for their thresholds; fewer, with others or alone
CROSSED = 32  # columns below this are taken together with others to be sorted
UPENDED = {4: 300, 8: 100}  # values of so many bytes: rows up to this are searched abreast
TRANSPOSED = {4: 4096, 8: 512}  # values of so many bytes: columns above this are searched alone


class Search(NamedTuple):
    """What a `Stage` says of its search: the way, the tiles that it takes, and whether these cross
    the loop around a group's."""

    threshold: Threshold | None = None
    tiles: Cut = UNCUT
    crossing: bool = False


def choose_search(axes: Sequence[Axis], walk: Walk, cut: Cut, leaf: bool, stored: str) -> Search:
    """The search of a level that is walked and cut so, on an array of dtype `stored`.

    A level that is uncut is a small vector: one thread does it, without tiles.
    """
    if walk is Walk.PACKED:
        way = Threshold.SORT if axes[-1].extent <= SORTED else Threshold.TILE
        return Search(way, tiles=cut)
    itemsize, halves = ITEMSIZE[arithmetic(stored)], ITEMSIZE[stored] == 2
    if walk is Walk.ROWS:
        return _search_of_rows(axes, cut, itemsize, halves)
    if leaf and _few_rows(axes):
        crossing = _crosses(axes, CROSSED)
        return Search(Threshold.SORT, _tiles(axes, crossing, itemsize), crossing)
    return _search_of_columns(axes, cut, itemsize, halves)


def few_columns(axes: Sequence[Axis]) -> bool:
    """Whether there are columns too long to be sorted, and too few side by side for a vector."""
    return not axes[-1].reduced and axes[-1].extent < ABREAST and not _few_rows(axes)


def turns(axes: Sequence[Axis], itemsize: int) -> bool:
    """Whether dense blocks of columns, which caches have room for, lie one after the other."""
    if len(axes) < 3 or not _alone(axes) or not axes[-2].reduced:
        return False
    rows, columns = axes[-2:]
    dense = columns.unit and rows.steps_over(columns)
    return dense and rows.extent * columns.extent * itemsize <= caches.FAR_SCRATCH_BYTES


def tile_width(rows: int, itemsize: int) -> int:
    """How many groups of `rows` values fit in one thread's scratch memory, in whole vectors."""
    fits = rows * 64 * itemsize <= caches.FAR_SCRATCH_BYTES
    least = 64 if fits else ABREAST  # short runs are read slowly
    most = caches.SCRATCH_BYTES // (rows * itemsize) // ABREAST * ABREAST
    return max(least, min(most, 256))


def _few_rows(axes: Sequence[Axis]) -> bool:
    """Whether columns are short enough to be sorted, and side by side."""
    beside = len(axes) > 1 and axes[-2].reduced and axes[-1].stride == 1
    return beside and _alone(axes) and axes[-2].extent <= SORTED


def _search_of_rows(axes: Sequence[Axis], cut: Cut, itemsize: int, halves: bool) -> Search:
    row = axes[-1]
    small = row.extent * itemsize <= 8 * caches.SCRATCH_BYTES
    whole = cut.blocks == 1 or (small and not axes[cut.loop].reduced)
    if not (_alone(axes) and whole):
        return Search(Threshold.SWEEP)
    beside = len(axes) > 1 and axes[-2].extent >= ABREAST
    short = row.extent <= UPENDED[itemsize] and row.stride == 1
    # Halves are widened first, and are rows then.
    if cut == UNCUT or halves or not (beside and short):
        return Search(Threshold.ROW)
    loop = longest_over_groups(axes)
    bundle = ABREAST if loop == len(axes) - 2 else 1
    return Search(Threshold.UPEND, cut_loop(axes, loop, itemsize, bundle))


def _search_of_columns(axes: Sequence[Axis], cut: Cut, itemsize: int, halves: bool) -> Search:
    if not (_alone(axes) and axes[-2].reduced):
        return Search(Threshold.SWEEP)
    if axes[-2].extent * ABREAST * itemsize > caches.FAR_SCRATCH_BYTES:
        return Search(Threshold.SWEEP)
    if cut == UNCUT:
        return Search(Threshold.ROW)
    crossing = _crosses(axes, ABREAST)
    # A tile is a copy, of halves one that is widened once and not in each reading.
    copied = crossing or axes[-1].stride != 1 or halves
    way = Threshold.TILE if copied else _where_columns_lie(axes, itemsize)
    return Search(way, _tiles(axes, crossing, itemsize), crossing)


def _where_columns_lie(axes: Sequence[Axis], itemsize: int) -> Threshold:
    """The search that reads columns from the array, or a tile where that is slow."""
    rows, size = axes[-2].extent, math.prod(axis.extent for axis in axes) * itemsize
    near = size <= caches.STREAMED_BYTES // 2  # from afar, runs of a cache line are read slowly
    if near and rows * ABREAST * itemsize <= caches.SCRATCH_BYTES:
        return Threshold.STRIP
    return Threshold.TRANSPOSE if rows > TRANSPOSED[itemsize] else Threshold.TILE


def _crosses(axes: Sequence[Axis], enough: int) -> bool:
    """Whether a tile takes the columns of several turns of the loop around a group's, as there are
    not `enough` in one."""
    return len(axes) > 2 and not axes[-3].reduced and axes[-1].extent < enough


def _tiles(axes: Sequence[Axis], crossing: bool, itemsize: int) -> Cut:
    """Tiles of columns hold whole groups, so the loop that is cut runs over groups."""
    loop = len(axes) - 3 if crossing else longest_over_groups(axes)
    if loop < len(axes) - 1:
        return cut_loop(axes, loop, itemsize)
    step = tile_width(axes[-2].extent, itemsize)
    return Cut(loop, step, -(-axes[-1].extent // step))


def _alone(axes: Sequence[Axis]) -> bool:
    """Whether one loop runs over all values of a group."""
    return sum(axis.reduced for axis in axes) == 1


__all__ = ["SORTED", "Search", "choose_search", "few_columns", "tile_width", "turns"]
