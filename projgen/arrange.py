"""How a level's loops are arranged for its kernel: as they are, or others over the same memory."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from projgen import cuts
from projgen.dtypes import ITEMSIZE, arithmetic
from projgen.norms import NORMS
from projgen.searches import SORTED, few_columns, turns
from projgen.simplify import Layout
from projgen.stage import Axis, Threshold

SHORT = 63  # groups of up to so many adjacent values are handled many at a time
BUNDLED = 128  # groups whose values alternate are as well, if they have so many together
TOGETHER = 64  # runs up to this are columns of their own, where a group has many
NARROW = 256  # columns where blocks of them follow one another: enough for whole vectors


class Arrangement(NamedTuple):
    """The axes that a level's kernel walks: those of its array, or others over the same memory.

    ``lanes``, ``together`` and ``bundle`` are as in `Stage`. ``short``: groups of up to so many
    adjacent values are packed. ``threshold``: the search, if the axes are chosen for it.
    """

    axes: tuple[Axis, ...]
    lanes: int = 1
    together: int = 1
    bundle: int = 1
    short: int = 0
    threshold: Threshold | None = None


def arrange(layout: Layout, level: int, leaf: bool, stored: str, joint: bool) -> Arrangement:
    """The axes of a level, whose array has dtype `stored`. `joint`: all limits of the leaf's groups
    are searched for together."""
    axes = stage_axes(layout, level, leaf)
    if not leaf:
        return Arrangement(_with_groups(axes) if _lacks_groups(layout, level, axes) else axes)
    if joint:
        return Arrangement(axes, threshold=Threshold.JOINT)
    searches = NORMS[layout.norms[level]].searches
    sorts = searches and ITEMSIZE[stored] == 2  # halves that are packed have no other search
    bundle = _bundle(axes, SORTED if sorts else BUNDLED)
    if bundle > 1:
        return Arrangement(_untangled(axes), bundle=bundle, short=BUNDLED)
    return _for_searches(axes, ITEMSIZE[arithmetic(stored)]) if searches else _for_sweeps(axes)


def _for_searches(axes: tuple[Axis, ...], itemsize: int) -> Arrangement:
    if few_columns(axes):
        if turns(axes, itemsize):
            return Arrangement(axes, bundle=axes[-1].extent, threshold=Threshold.TURN)
        lanes = _lanes(axes, NARROW)
        if lanes > 1:
            return Arrangement(_widened(axes, lanes), lanes=lanes, threshold=Threshold.SWEEP)
    return Arrangement(axes, short=SORTED)


def _for_sweeps(axes: tuple[Axis, ...]) -> Arrangement:
    """Where limits are formulas of the groups' values and radii: two sweeps are all there is."""
    lanes = _lanes(axes, 2 * cuts.WIDE)
    if lanes > 1:
        return Arrangement(_widened(axes, lanes), lanes=lanes)
    together = _together(axes)
    if together > 1:
        return Arrangement(_side_by_side(axes), together=together)
    return Arrangement(axes, short=SHORT)


def stage_axes(layout: Layout, level: int, leaf: bool) -> tuple[Axis, ...]:
    """The loops of a level's own array: y for the leaf, a dense vector of values above it."""
    axes: list[Axis] = []
    stride = 1
    for loop in reversed([loop for loop in layout.loops if loop.level <= level]):
        step, out_step = (loop.stride, loop.out_stride) if leaf else (stride, stride)
        stride *= loop.extent
        axis = Axis(loop.level == level, loop.extent, step, out_step)
        if axes and axis.reduced == axes[0].reduced and axis.steps_over(axes[0]):
            inner = axes.pop(0)
            axis = Axis(axis.reduced, axis.extent * inner.extent, inner.stride, inner.out_stride)
        axes.insert(0, axis)
    return tuple(axes)


def _lacks_groups(layout: Layout, level: int, axes: Sequence[Axis]) -> bool:
    """Whether an outermost loop over one group makes a level above the leaf like another one, so
    that both have the same functions."""
    form = [False, *(axis.reduced for axis in axes)]
    others = set(range(len(layout.norms) - 1)) - {level}
    return any(
        layout.norms[other] == layout.norms[level]
        and [axis.reduced for axis in stage_axes(layout, other, False)] == form
        for other in others
    )


def _with_groups(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    step = math.prod(axis.extent for axis in axes)
    return (Axis(False, 1, step, step), *axes)


def _lanes(axes: Sequence[Axis], wide: int) -> int:
    """How many rows of columns, if few lie densely, make one row: of up to `wide` columns, or
    of about `NARROW` where there is one such block after the other, each with its own groups."""
    if len(axes) < 2 or axes[-1].reduced or not axes[-2].reduced:
        return 1
    if not axes[-2].steps_over(axes[-1]) or axes[-1].stride != 1:
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
    dense = columns.unit and all(
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
    dense = axes[-2].steps_over(axes[-1]) and axes[-1].stride == 1
    return axes[-1].extent if elsewhere and dense and axes[-1].extent <= TOGETHER else 1


def _side_by_side(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    *others, groups, run = axes
    return (*others, replace(run, reduced=False, extent=groups.extent * run.extent))


__all__ = ["SHORT", "Arrangement", "arrange", "stage_axes"]
