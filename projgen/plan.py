"""A layout to a plan: two sweeps over memory, whatever the depth of the tree.

Sweep 1 reads y once and aggregates the leaf's groups; the levels above work on their small dense
vectors of group values, up to the root and back; sweep 2 reads y once and writes x once. Every
level is the same two steps on its own array, so a `Stage` is a level: what it reads, how it
walks it, how it is cut into blocks for the threads. Blocks depend on the shape alone, never on
the number of threads: that is what makes results bit-identical.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from projgen import caches
from projgen.arrange import SHORT, Arrangement, arrange, stage_axes
from projgen.cuts import cut_loop, longest_over_groups, loop_to_cut
from projgen.dtypes import ITEMSIZE, arithmetic
from projgen.norms import NORMS
from projgen.searches import Search, choose_search
from projgen.simplify import BATCH, Layout
from projgen.stage import UNCUT, Axis, Cut, Stage, Threshold, Walk

BAKED = 128  # extents of rows up to this are written into the kernel; of a block, it saves 1 us
SHARED_VALUES = 1 << 16  # levels with more values than this are shared among the threads


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
    return Plan(spec, dtype, in_place, layout, stages, size >= caches.STREAMED_BYTES)


def _stage(layout: Layout, level: int, leaf: bool, dtype: str, joint: bool) -> Stage:
    """A level: which axes its kernel walks, how, in which blocks, and how it searches by that."""
    norm, stored = layout.norms[level], dtype if leaf else "float64"
    itemsize = ITEMSIZE[arithmetic(stored)]
    arranged = arrange(layout, level, leaf, stored, joint)
    axes = arranged.axes
    walk = _walk(axes, arranged.short)
    shared = leaf or math.prod(axis.extent for axis in axes) > SHARED_VALUES
    cut = _cut(arranged, walk, itemsize) if shared else UNCUT
    direct = _is_direct(arranged, walk, cut)
    search = Search(arranged.threshold)
    if search.threshold is None and NORMS[norm].searches and not joint:
        search = choose_search(axes, walk, cut, leaf, stored)
    inner = _baked(axes, walk, cut, search.tiles, itemsize) if leaf else 0
    return Stage(
        level,
        norm,
        leaf,
        axes,
        walk,
        cut,
        tiles=search.tiles,
        direct=direct,
        unit=axes[-1].unit,
        inner=inner,
        shared=shared,
        lanes=arranged.lanes,
        together=arranged.together,
        threshold=search.threshold,
        bundle=arranged.bundle,
        crossing=search.crossing,
    )


def plain_stage(layout: Layout, level: int, leaf: bool, dtype: str) -> Stage:
    """A level without the ways of a projection: its groups one by one, or a run of neighbours.

    Its vectors over groups are in the order of those of `plan`. Levels above the leaf are uncut.
    """
    axes = stage_axes(layout, level, leaf)
    arranged = Arrangement(axes, short=SHORT if leaf else 0)
    walk = _walk(axes, arranged.short)
    cut = _cut(arranged, walk, ITEMSIZE[arithmetic(dtype)]) if leaf else UNCUT
    direct = _is_direct(arranged, walk, cut)
    norm, inner = layout.norms[level], axes[-1].extent if walk is Walk.PACKED else 0
    return Stage(
        level,
        norm,
        leaf,
        axes,
        walk,
        cut,
        tiles=UNCUT,
        direct=direct,
        unit=axes[-1].unit,
        inner=inner,
        shared=leaf,
        lanes=1,
        together=1,
        threshold=None,
    )


def _walk(axes: Sequence[Axis], short: int) -> Walk:
    inner = axes[-1]
    if not inner.reduced:
        return Walk.COLUMNS
    adjacent = (
        len(axes) > 1
        and not axes[-2].reduced
        and (axes[-2].stride == axes[-2].out_stride == inner.extent)
    )
    alone = sum(axis.reduced for axis in axes) == 1
    if inner.unit and adjacent and alone and inner.extent <= short and axes[-2].extent >= 16:
        return Walk.PACKED
    return Walk.ROWS


def _cut(arranged: Arrangement, walk: Walk, itemsize: int) -> Cut:
    axes = arranged.axes
    if arranged.threshold is Threshold.TURN:  # whole blocks of columns are turned
        return cut_loop(axes, longest_over_groups(axes[:-2]), itemsize)
    return cut_loop(axes, loop_to_cut(axes, walk), itemsize, arranged.bundle)


def _is_direct(arranged: Arrangement, walk: Walk, cut: Cut) -> bool:
    """Whether a block sees whole groups, as rows."""
    if arranged.threshold is Threshold.TURN:
        return True
    axes = arranged.axes
    alone = sum(axis.reduced for axis in axes) == 1
    whole = cut == UNCUT or not axes[cut.loop].reduced
    return walk is not Walk.COLUMNS and alone and whole


def _baked(axes: Sequence[Axis], walk: Walk, cut: Cut, tiles: Cut, itemsize: int) -> int:
    """The innermost extent if it is worth writing into the kernel, else 0."""
    inner = axes[-1]
    if not inner.unit or len(axes) - 1 in (cut.loop, tiles.loop):
        return 0
    large = math.prod(axis.extent for axis in axes) * itemsize >= caches.BLOCK_BYTES
    baked = walk is Walk.PACKED or (walk is Walk.ROWS and inner.extent <= BAKED and large)
    return inner.extent if baked else 0


__all__ = ["BATCH", "Plan", "plain_stage", "plan"]
