"""A layout to a plan for a GPU: the IR of `projgen.plan`, decided by a GPU's sizes.

What differs from the CPU: a block of threads is small and there must be hundreds of them, so a
stage's ``cut`` only ever cuts groups that are too few to fill the machine (each piece has partial
values of its own, which are joined in order); the levels above the leaf are one launch while the
values of a batch entry are few. ``shared`` stages have launches of their own, the others are part
of that one. A cut's loop is the innermost one, or the outermost reduced one: then it stands for all
reduced loops but the innermost.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from projgen.arrange import stage_axes
from projgen.dtypes import ITEMSIZE
from projgen.norms import NORMS
from projgen.plan import Plan
from projgen.simplify import BATCH, Layout
from projgen.stage import UNCUT, Axis, Cut, Stage, Threshold, Walk

WARP = 32
THREADS = 256  # of a block
PACKED_THREADS = 128  # of a block that takes as many short groups as it has threads
ACCESS = 16  # bytes that one thread reads or writes at once
BLOCKS = 264  # fill a large GPU: two for each of 132 multiprocessors
MAX_PIECES = 64  # of a group: their partial values are joined by one thread or warp
PIECE = 4096  # values that a piece of a group should at least have
MIDDLE_VALUES = 1 << 14  # of a batch entry: one block is quick enough for them
SHARED_BYTES = 27 << 10  # of values that a block keeps while it looks for their thresholds
WARP_VALUES = 1024  # groups of at most so many are a warp's, larger ones a block's
SHORT = 32  # groups of at most so many adjacent values are packed,
MANY = 16  # if at least so many lie side by side
WARP_KEPT = SHARED_BYTES // 8 // (THREADS // WARP)  # and so are groups that it keeps
WIDE = 64  # columns: fewer are widened to about twice as many
TILE_COLUMNS = 8  # at least so many columns share a tile
SWEEPS = 4  # that look for a threshold, before one block goes on alone
SAMPLE = 2048  # values of a group that the first guess at its threshold is made from
INDEX_LIMIT = (1 << 31) - (1 << 20)  # offsets below it are int: loops step beyond their ends


def plan(spec: str, layout: Layout, dtype: str, in_place: bool, aligned: bool = True) -> Plan:
    """Plan the projection of a nonempty array with this layout on a GPU.

    `aligned`: y and x start at multiples of 16 bytes, counted from the lowest address of each.
    """
    depth = len(layout.norms)
    batch = math.prod(loop.extent for loop in layout.loops if loop.level == BATCH)
    stages = []
    for level in range(depth):
        values = math.prod(loop.extent for loop in layout.loops if loop.level <= level)
        grid = level == depth - 1 or values // batch > MIDDLE_VALUES
        stages.append(_stage(layout, level, grid, dtype, aligned))
    return Plan(spec, dtype, in_place, layout, tuple(stages), False)


def value_bytes(stage: Stage, dtype: str) -> int:
    """The size of one of a stage's values where threads work on it: half types are widened."""
    return 8 if not stage.leaf or dtype == "float64" else 4


def capacity(stage: Stage, dtype: str) -> int:
    """How many values a block keeps in shared memory."""
    return SHARED_BYTES // value_bytes(stage, dtype)


def vectors(axes: Sequence[Axis], walk: Walk, dtype: str) -> int:
    """How many elements one access takes, for arrays that start at whole accesses."""
    size = ACCESS // ITEMSIZE[dtype]
    inner = axes[-1]
    if not inner.stride == inner.out_stride == 1:
        return 1
    outside = axes[:-2] if walk is Walk.PACKED else axes[:-1]
    if walk is Walk.ROWS:  # whatever they start with, both arrays' rows start with the same
        return size if all((a.stride - a.out_stride) % size == 0 for a in outside) else 1
    whole = all(a.stride % size == a.out_stride % size == 0 for a in outside)
    fits = walk is Walk.PACKED or inner.extent % size == 0
    return size if whole and fits else 1


def _stage(layout: Layout, level: int, grid: bool, dtype: str, aligned: bool) -> Stage:
    norm, leaf = layout.norms[level], level == len(layout.norms) - 1
    searches = NORMS[norm].searches
    axes = stage_axes(layout, level, leaf)
    unit = axes[-1].stride == axes[-1].out_stride == 1
    walk = _walk(axes, unit)
    lanes = _lanes(axes) if grid and not searches and axes[-1].extent < WIDE else 1
    if lanes > 1:
        axes = _widened(axes, lanes)
    vector = vectors(axes, walk, dtype) if leaf and aligned else 1
    stage = Stage(
        level=level,
        norm=norm,
        leaf=leaf,
        axes=axes,
        walk=walk,
        cut=UNCUT,
        tiles=UNCUT,
        direct=lanes == 1,
        unit=unit,
        inner=axes[-1].extent if grid and walk is Walk.PACKED else 0,
        shared=grid,
        lanes=lanes,
        together=1,
        threshold=Threshold.ROW if searches else None,
        vector=vector,
    )
    if grid:
        cut = _cut(stage)
        stage = replace(stage, cut=cut, direct=lanes == 1 and cut.blocks == 1)
        stage = replace(stage, threshold=_threshold(stage, dtype) if searches else None)
    return stage


def _walk(axes: Sequence[Axis], unit: bool) -> Walk:
    inner = axes[-1]
    if not inner.reduced:
        return Walk.COLUMNS
    alone = sum(axis.reduced for axis in axes) == 1
    if len(axes) == 1 or axes[-2].reduced or not (unit and alone):
        return Walk.ROWS
    beside = axes[-2]
    adjacent = beside.stride == beside.out_stride == inner.extent
    short = inner.extent <= SHORT and beside.extent >= MANY
    return Walk.PACKED if adjacent and short else Walk.ROWS


def _lanes(axes: Sequence[Axis]) -> int:
    """How many dense rows of few columns make one row of about twice `WIDE` columns."""
    if len(axes) != 2 or not axes[0].reduced or axes[1].reduced:
        return 1
    rows, columns = axes
    if not rows.stride == rows.out_stride == columns.extent:
        return 1
    most = min(2 * WIDE // columns.extent, rows.extent // 4)
    return max(lanes for lanes in range(1, max(1, most) + 1) if rows.extent % lanes == 0)


def _widened(axes: Sequence[Axis], lanes: int) -> tuple[Axis, ...]:
    rows, columns = axes
    return (
        Axis(True, rows.extent // lanes, rows.stride * lanes, rows.out_stride * lanes),
        replace(columns, extent=columns.extent * lanes),
    )


def width(stage: Stage) -> int:
    """How many of a block's (or warp's) threads lie along the innermost loop: a power of two."""
    most = WARP if stage.walk is Walk.COLUMNS else team(stage)
    accesses = -(-stage.axes[-1].extent // stage.vector)
    return min(most, 1 << (accesses - 1).bit_length())


def team(stage: Stage) -> int:
    """How many threads work on one group by rows."""
    most = WARP_KEPT if NORMS[stage.norm].searches else WARP_VALUES
    return WARP if stage.group_size <= most else THREADS


def tiles(stage: Stage) -> int:
    """In how many tiles the columns, or the packed groups, lie side by side."""
    if stage.walk is Walk.PACKED:
        return -(-stage.axes[-2].extent // PACKED_THREADS)
    return -(-stage.axes[-1].extent // (width(stage) * stage.vector))


def blocks(stage: Stage) -> int:
    """How many blocks see all groups, if no group is cut."""
    if stage.walk is Walk.ROWS:
        return -(-stage.groups // (THREADS // team(stage)))
    beside = stage.axes[-2].extent if stage.walk is Walk.PACKED else stage.axes[-1].extent
    return stage.groups * stage.lanes // beside * tiles(stage)


def _cut(stage: Stage) -> Cut:
    """Pieces of the groups, where these are too few to fill the machine."""
    if stage.walk is Walk.PACKED:
        return UNCUT
    rows = stage.walk is Walk.ROWS
    inner = len(stage.axes) - 1
    outer_rows = math.prod(axis.extent for axis in stage.axes[:-1] if axis.reduced)
    along = rows and stage.axes[-1].extent >= outer_rows
    loop = inner if along else next(i for i, axis in enumerate(stage.axes) if axis.reduced)
    extent = stage.axes[-1].extent if along else outer_rows
    least = PIECE if along else max(1, PIECE // stage.axes[-1].extent) if rows else 64
    pieces = max(1, min(-(-BLOCKS // blocks(stage)), extent // least, MAX_PIECES))
    step = -(-extent // pieces)
    if along:
        step = -(-step // 64) * 64  # pieces keep the alignment of their row
    return Cut(loop, step, -(-extent // step))


def _threshold(stage: Stage, dtype: str) -> Threshold:
    room = capacity(stage, dtype)
    if stage.walk is Walk.PACKED:
        return Threshold.TILE
    if stage.walk is Walk.ROWS:
        return Threshold.ROW if stage.group_size <= room else Threshold.SWEEP
    return Threshold.TILE if stage.group_size <= room // TILE_COLUMNS else Threshold.SWEEP
