"""A layout to a plan: two sweeps over memory, whatever the depth of the tree.

Sweep 1 reads y once and aggregates the leaf's groups; the levels above work on their small dense
vectors of group values, up to the root and back; sweep 2 reads y once and writes x once. Every
level is the same two steps on its own array, so a `Stage` is a level: what it reads, how it
walks it, how it is cut into blocks for the threads. Blocks depend on the shape alone, never on
the number of threads: that is what makes results bit-identical.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from projgen.dtypes import ITEMSIZE, arithmetic
from projgen.norms import NORMS
from projgen.simplify import BATCH, Layout
from projgen.stage import UNCUT, Axis, Cut, Stage, Threshold, Walk

BLOCK_BYTES = 128 << 10  # of one unit of work: several fit in a core's cache
MAX_BLOCKS = 256
SCRATCH_BYTES = 256 << 10  # of one thread's tile: stays in a core's second-level cache
FAR_SCRATCH_BYTES = 4 << 20  # of a tile that is as wide as reading it in short runs asks for
SHORT = 63  # groups of up to so many adjacent values are handled many at a time
SORTED = 32  # groups of up to so many are, where thresholds are searched for
BUNDLED = 128  # groups whose values alternate are as well, if they have so many together
TOGETHER = 64  # runs up to this are columns of their own, where a group has many
WIDE = 1024  # columns from here on fill the vectors and the loops' overhead is small
NARROW = 256  # columns where blocks of them follow one another: enough for whole vectors
BAKED = 128  # extents of rows up to this are written into the kernel; of a block, it saves 1 us
ABREAST = 16  # columns are searched together for their thresholds; fewer, with others or alone
CROSSED = 32  # columns below this are taken together with others to be sorted
SHARED_VALUES = 1 << 16  # levels with more values than this are shared among the threads
UPENDED = {4: 300, 8: 100}  # values of so many bytes: rows up to this are searched abreast
TRANSPOSED = {4: 2048, 8: 512}  # values of so many bytes: columns above this are searched alone
STREAMED_BYTES = 16 << 20  # arrays from this size on come from main memory
_WHERE_THEY_LIE = (Threshold.STRIP, Threshold.TRANSPOSE)  # are columns read in these ways


@dataclass(frozen=True, slots=True)
class Plan:
    """What a kernel does for arrays of one shape, dtype and layout. Stages run root to leaf.

    ``streamed``: the array is larger than the caches, so loops hide the memory's latency.
    """

    spec: str
    dtype: str
    in_place: bool
    layout: Layout
    stages: tuple[Stage, ...]
    streamed: bool

    @property
    def leaf(self) -> Stage:
        return self.stages[-1]

    @property
    def batch(self) -> int:
        """How many projections one call makes."""
        return self.stages[0].groups

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    def __str__(self) -> str:
        head = f"{self.spec}  {self.dtype}  {'in place' if self.in_place else 'y -> x'}"
        lines = [head, "  loops, in memory order"]
        lines += [f"    {loop}" for loop in self.layout.loops]
        for stage in reversed(self.stages):
            lines.append(
                f"  up    level {stage.level} {stage.norm:5} {_describe(stage, stage.cut)}"
            )
        for stage in self.stages:
            way = f", threshold by {stage.threshold}" if stage.threshold else ""
            down = _describe(stage, stage.cut)
            lines.append(f"  down  level {stage.level} {stage.norm:5} {down}{way}")
        return "\n".join(lines)


def _describe(stage: Stage, cut: Cut) -> str:
    source = "y" if stage.leaf else f"v{stage.level}"
    pieces = f"{cut.blocks} blocks" if cut.blocks > 1 else "one block"
    groups = f"{stage.groups} group{'s' if stage.groups > 1 else ''}"
    return f"{source}: {groups} of {stage.group_size}, by {stage.walk}, {pieces}"


def plan(spec: str, layout: Layout, dtype: str, in_place: bool, exact: bool = False) -> Plan:
    """Plan the projection of a nonempty array with this layout.

    Halves are cut like the type that their arithmetic is in, which is what scratch memory holds.
    `exact`: on the nearest point of the ball, where level by level gives another one. That is
    done for l1 over linf: the limits of all groups are searched for together.
    """
    depth = len(layout.norms)
    joint = exact and layout.norms == ("l1", "linf")
    stages = tuple(
        _stage(layout, level, level == depth - 1, dtype, joint) for level in range(depth)
    )
    size = stages[-1].size * ITEMSIZE[dtype]
    return Plan(spec, dtype, in_place, layout, stages, size >= STREAMED_BYTES)


def _stage(layout: Layout, level: int, leaf: bool, dtype: str, joint: bool) -> Stage:
    axes = stage_axes(layout, level, leaf)
    if _lacks_groups(layout, level, axes):
        step = math.prod(axis.extent for axis in axes)
        axes = (Axis(False, 1, step, step), *axes)
    searches = leaf if joint else NORMS[layout.norms[level]].searches
    wide = ITEMSIZE[dtype] == ITEMSIZE[arithmetic(dtype)]
    longest = BUNDLED if wide or not searches else SORTED
    bundle = _bundle(axes, longest) if leaf and not joint else 1
    if bundle > 1:
        axes = _untangled(axes)
    turned = False
    if not searches:
        lanes = _lanes(axes, 2 * WIDE) if leaf else 1
    else:
        columns = axes[-1].extent if leaf and not joint and not _few_rows(axes) else 0
        turned = 0 < columns < ABREAST and _turns(axes, ITEMSIZE[arithmetic(dtype)])
        bundle = columns if turned else bundle
        few = 0 < columns < ABREAST and not turned
        lanes = _lanes(axes, NARROW) if few else 1
    if lanes > 1:
        axes = _widened(axes, lanes)
    together = _together(axes) if leaf and not searches else 1
    if together > 1:
        axes = _side_by_side(axes)
    itemsize = ITEMSIZE[arithmetic(dtype)] if leaf else 8
    unit = axes[-1].stride == axes[-1].out_stride == 1
    short = 0 if joint else longest if bundle > 1 else SORTED if searches else SHORT
    walk = _walk(axes, leaf, unit, short)
    shared = leaf or math.prod(axis.extent for axis in axes) > SHARED_VALUES
    loop = _longest(axes[:-2]) if turned else _loop_to_cut(axes, walk)
    cut = _cut(axes, loop, itemsize, 1 if turned else bundle) if shared else UNCUT
    alone = sum(axis.reduced for axis in axes) == 1
    whole = not (shared and axes[loop].reduced)
    direct = turned or (walk is not Walk.COLUMNS and alone and whole)
    threshold, tiles, crossing = None, UNCUT, False
    if searches:
        threshold = _threshold(axes, walk, cut, direct, itemsize)
        if joint:
            threshold = Threshold.JOINT
        elif turned:
            threshold = Threshold.TURN
        elif lanes > 1:
            threshold = Threshold.SWEEP
        elif leaf and walk is Walk.COLUMNS and _few_rows(axes):
            threshold = Threshold.SORT
        if threshold in _WHERE_THEY_LIE and leaf and ITEMSIZE[dtype] < itemsize:
            threshold = Threshold.TILE  # a copy that is widened once, and not in each reading
        if threshold is Threshold.UPEND and ITEMSIZE[dtype] < itemsize and leaf:
            threshold = Threshold.ROW  # halves are widened first, and are rows then
        # Tile by tile, between the sweeps:
        searched = [Threshold.STRIP, Threshold.TILE, Threshold.TRANSPOSE, Threshold.UPEND]
        searched += [Threshold.SORT] if walk is Walk.COLUMNS else []
        if threshold in searched and not shared:
            threshold = Threshold.ROW  # a small vector: its columns are searched one by one
        if walk is Walk.PACKED:
            tiles = cut
        elif threshold in searched:
            enough = CROSSED if threshold is Threshold.SORT else ABREAST
            crossing = walk is Walk.COLUMNS and _crosses(axes, enough)
            threshold = Threshold.TILE if crossing and threshold in _WHERE_THEY_LIE else threshold
            tiles = _cut_for_tiles(axes, itemsize, crossing, threshold is Threshold.UPEND)
    inner = axes[-1].extent
    large = math.prod(axis.extent for axis in axes) * itemsize >= BLOCK_BYTES
    baked = (
        unit
        and len(axes) - 1 not in (cut.loop, tiles.loop)
        and (walk is Walk.PACKED or (walk is Walk.ROWS and inner <= BAKED and large))
    )
    inner = inner if leaf and baked else 0
    norm = layout.norms[level]
    # fmt: off
    return Stage(
        level, norm, leaf, axes, walk, cut, tiles, direct, unit, inner, shared, lanes, together,
        threshold, bundle, crossing,
    )
    # fmt: on


def plain_stage(layout: Layout, level: int, leaf: bool, dtype: str) -> Stage:
    """A level without the ways of a projection: its groups one by one, or a run of neighbours.

    Its vectors over groups are in the order of those of `plan`. Levels above the leaf are uncut.
    """
    axes = stage_axes(layout, level, leaf)
    unit = axes[-1].stride == axes[-1].out_stride == 1
    walk = _walk(axes, leaf, unit, SHORT)
    loop = _loop_to_cut(axes, walk)
    cut = _cut(axes, loop, ITEMSIZE[arithmetic(dtype)]) if leaf else UNCUT
    alone = sum(axis.reduced for axis in axes) == 1
    direct = walk is not Walk.COLUMNS and alone and not (leaf and axes[loop].reduced)
    norm, inner = layout.norms[level], axes[-1].extent if walk is Walk.PACKED else 0
    # fmt: off
    return Stage(
        level, norm, leaf, axes, walk, cut, UNCUT, direct, unit, inner, leaf, 1, 1, None,
    )
    # fmt: on


def stage_axes(layout: Layout, level: int, leaf: bool) -> tuple[Axis, ...]:
    """The loops of a level's own array: y for the leaf, a dense vector of values above it."""
    axes: list[Axis] = []
    stride = 1
    for loop in reversed([loop for loop in layout.loops if loop.level <= level]):
        step, out_step = (loop.stride, loop.out_stride) if leaf else (stride, stride)
        stride *= loop.extent
        axis = Axis(loop.level == level, loop.extent, step, out_step)
        if axes and _dense(axis, axes[0]):
            inner = axes.pop(0)
            axis = Axis(axis.reduced, axis.extent * inner.extent, inner.stride, inner.out_stride)
        axes.insert(0, axis)
    return tuple(axes)


def _lacks_groups(layout: Layout, level: int, axes: Sequence[Axis]) -> bool:
    """Whether an outermost loop over one group makes the level like another one, so that both
    have the same functions."""
    form = [False, *(axis.reduced for axis in axes)]
    others = set(range(len(layout.norms) - 1)) - {level}
    return level < len(layout.norms) - 1 and any(
        layout.norms[other] == layout.norms[level]
        and [axis.reduced for axis in stage_axes(layout, other, False)] == form
        for other in others
    )


def _lanes(axes: Sequence[Axis], wide: int) -> int:
    """How many rows of columns, if few lie densely, make one row: of up to `wide` columns, or
    of about `NARROW` where there is one such block after the other, each with its own groups."""
    if len(axes) < 2 or axes[-1].reduced or not axes[-2].reduced:
        return 1
    if not _dense(replace(axes[-2], reduced=False), axes[-1]) or axes[-1].stride != 1:
        return 1
    rows, columns = axes[-2].extent, axes[-1].extent
    if len(axes) == 2:
        most = min(wide // columns, rows // 4)
    else:  # accumulators should be few beside the values, but make whole vectors
        most = min(NARROW // columns, max(rows // 8, min(64 // columns, rows // 2)))
    return max(lanes for lanes in range(1, max(1, most) + 1) if rows % lanes == 0)


def _widened(axes: Sequence[Axis], lanes: int) -> tuple[Axis, ...]:
    *others, rows, columns = axes
    return (
        *others,
        Axis(True, rows.extent // lanes, rows.stride * lanes, rows.out_stride * lanes),
        replace(columns, extent=columns.extent * lanes),
    )


def _bundle(axes: Sequence[Axis], longest: int) -> int:
    """How many groups of up to `longest` values alternate, in bundles that follow each other."""
    if len(axes) < 3 or axes[-1].reduced or not axes[-2].reduced or axes[-3].reduced:
        return 1
    outer, rows, columns = axes[-3:]
    size = rows.extent * columns.extent
    dense = columns.stride == columns.out_stride == 1 and all(
        (axis.stride, axis.out_stride) == (step, step)
        for axis, step in ((rows, columns.extent), (outer, size))
    )
    few = rows.extent <= longest and size <= BUNDLED and outer.extent >= 16
    alone = sum(axis.reduced for axis in axes) == 1
    return columns.extent if dense and few and alone else 1


def _untangled(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    *others, outer, rows, columns = axes
    size = rows.extent
    groups = Axis(False, outer.extent * columns.extent, size, size)
    return (*others, groups, Axis(True, size, 1, 1))


def _together(axes: Sequence[Axis]) -> int:
    """How many values a group has side by side, if it has more elsewhere and runs are short.

    Such runs are columns of their own, which are joined at the end: the loops are long then.
    """
    if len(axes) < 3 or not axes[-1].reduced or axes[-2].reduced:
        return 1
    elsewhere = any(axis.reduced for axis in axes[:-1])
    dense = _dense(replace(axes[-2], reduced=True), axes[-1]) and axes[-1].stride == 1
    return axes[-1].extent if elsewhere and dense and axes[-1].extent <= TOGETHER else 1


def _side_by_side(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    *others, groups, run = axes
    return (*others, replace(run, reduced=False, extent=groups.extent * run.extent))


def _dense(outer: Axis, inner: Axis) -> bool:
    return (
        outer.reduced == inner.reduced
        and outer.stride == inner.stride * inner.extent
        and outer.out_stride == inner.out_stride * inner.extent
    )


def _walk(axes: Sequence[Axis], leaf: bool, unit: bool, short: int) -> Walk:
    inner = axes[-1]
    if not inner.reduced:
        return Walk.COLUMNS
    adjacent = (
        len(axes) > 1
        and not axes[-2].reduced
        and (axes[-2].stride == axes[-2].out_stride == inner.extent)
    )
    alone = sum(axis.reduced for axis in axes) == 1
    if leaf and unit and adjacent and alone and inner.extent <= short and axes[-2].extent >= 16:
        return Walk.PACKED
    return Walk.ROWS


def _loop_to_cut(axes: Sequence[Axis], walk: Walk) -> int:
    """The outermost loop that makes enough blocks; else the one that makes the most."""
    candidates = range(len(axes) - 1) if walk is Walk.PACKED else range(len(axes))
    enough = [i for i in candidates if _most_blocks(axes, i) >= 16]
    return enough[0] if enough else max(candidates, key=lambda i: _most_blocks(axes, i))


def _longest(axes: Sequence[Axis]) -> int:
    return max(range(len(axes)), key=lambda i: axes[i].extent)


def _most_blocks(axes: Sequence[Axis], loop: int) -> int:
    """Into how many blocks a loop can well be cut."""
    extent = axes[loop].extent
    if axes[loop].reduced:  # each block has its own accumulators: they should stay few
        return max(1, min(extent, 32, math.prod(a.extent for a in axes if a.reduced) // 64))
    # The innermost loop is best left long.
    return extent if loop < len(axes) - 1 else max(1, extent // (4 * WIDE))


def _cut(axes: Sequence[Axis], loop: int, itemsize: int, bundle: int = 1) -> Cut:
    size = math.prod(axis.extent for axis in axes)
    extent = axes[loop].extent
    blocks = min(-(-size * itemsize // BLOCK_BYTES), MAX_BLOCKS, _most_blocks(axes, loop))
    step = -(-extent // blocks)
    if axes[loop].reduced and not axes[-1].reduced:  # rows of columns are read several at once
        several = 16 if step >= 64 else 4
        step = -(-step // several) * several
    step = -(-step // bundle) * bundle
    return Cut(loop, step, -(-extent // step))


def _few_rows(axes: Sequence[Axis]) -> bool:
    """Whether columns are short enough to be sorted, and side by side."""
    reduced = [axis.extent for axis in axes if axis.reduced]
    beside = len(axes) > 1 and axes[-2].reduced and axes[-1].stride == 1
    return beside and len(reduced) == 1 and reduced[0] <= SORTED


def _crosses(axes: Sequence[Axis], enough: int) -> bool:
    """Whether a tile takes the columns of several turns of the loop around a group's, as there are
    not `enough` in one."""
    return len(axes) > 2 and not axes[-3].reduced and axes[-1].extent < enough


def _cut_for_tiles(axes: Sequence[Axis], itemsize: int, crossing: bool, upended: bool) -> Cut:
    """Tiles hold whole groups, so the loop that is cut runs over groups."""
    if crossing:
        return _cut(axes, len(axes) - 3, itemsize)
    loop = max(range(len(axes)), key=lambda i: (not axes[i].reduced) * axes[i].extent)
    extent = axes[loop].extent
    if loop < len(axes) - 1:
        return _cut(axes, loop, itemsize, 16 if upended and loop == len(axes) - 2 else 1)
    rows = math.prod(axis.extent for axis in axes if axis.reduced)
    step = tile_width(rows, itemsize)
    return Cut(loop, step, -(-extent // step))


def tile_width(rows: int, itemsize: int) -> int:
    """How many groups of `rows` values fit in one thread's scratch memory, in whole vectors."""
    least = 64 if rows * 64 * itemsize <= FAR_SCRATCH_BYTES else 16  # short runs are read slowly
    return max(least, min(SCRATCH_BYTES // (rows * itemsize) // 16 * 16, 256))


def _threshold(
    axes: Sequence[Axis], walk: Walk, cut: Cut, direct: bool, itemsize: int
) -> Threshold:
    alone = sum(axis.reduced for axis in axes) == 1
    rows = math.prod(axis.extent for axis in axes if axis.reduced)
    small = rows * itemsize <= 8 * SCRATCH_BYTES
    if walk is Walk.PACKED:
        return Threshold.SORT if axes[-1].extent <= SORTED else Threshold.TILE
    if walk is Walk.ROWS and alone and (direct or cut.blocks == 1) and (small or cut.blocks == 1):
        beside = len(axes) > 1 and not axes[-2].reduced and axes[-2].extent >= ABREAST
        short = axes[-1].extent <= UPENDED[itemsize] and axes[-1].stride == 1
        return Threshold.UPEND if beside and short else Threshold.ROW
    fits = rows * 16 * itemsize <= FAR_SCRATCH_BYTES
    if walk is Walk.COLUMNS and alone and len(axes) > 1 and axes[-2].reduced and fits:
        if axes[-1].stride == 1 and rows > TRANSPOSED[itemsize]:
            return Threshold.TRANSPOSE
        # Runs of a cache line or two are read slowly from afar.
        near = math.prod(axis.extent for axis in axes) * itemsize <= STREAMED_BYTES // 2
        return Threshold.STRIP if axes[-1].stride == 1 and near else Threshold.TILE
    return Threshold.SWEEP


def _turns(axes: Sequence[Axis], itemsize: int) -> bool:
    """Whether dense blocks of columns, which caches have room for, lie one after the other."""
    if len(axes) < 3 or sum(axis.reduced for axis in axes) > 1 or not axes[-2].reduced:
        return False
    rows, columns = axes[-2:]
    dense = (columns.stride, columns.out_stride) == (1, 1) and _dense(
        replace(rows, reduced=False), columns
    )
    return dense and rows.extent * columns.extent * itemsize <= FAR_SCRATCH_BYTES


__all__ = ["BATCH", "Plan", "plain_stage", "plan", "tile_width"]
