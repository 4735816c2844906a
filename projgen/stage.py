"""A stage of a plan: one level on its array, how it is walked, and how it is cut into blocks."""

import math
from dataclasses import dataclass
from enum import Enum


class Walk(str, Enum):
    """How a stage's innermost loop relates to its groups."""

    ROWS = "rows"  # it runs inside one group: the reduction is horizontal
    COLUMNS = "columns"  # it runs across groups: accumulators are vectors
    PACKED = "packed"  # short groups side by side: many at a time

    __str__ = str.__str__


class Threshold(str, Enum):
    """How a level whose norm searches for thresholds finds those of its groups."""

    ROW = "row"  # one group after the other, each in cache
    STRIP = "strip"  # adjacent groups, a vector of them at a time, which its first pass copies
    TILE = "tile"  # the same in a copy of more of them, where reading a few at a time is slow
    UPEND = "upend"  # short rows, a vector of them at a time, which a tile has as columns
    TRANSPOSE = "transpose"  # long columns, a tile of which is made rows, each searched in cache
    TURN = "turn"  # a few columns side by side, each turned into a row to be searched in cache
    SWEEP = "sweep"  # Newton sweeps over the whole array, shared among the threads
    SORT = "sort"  # a few values each: sorted, many groups at once, in a copy
    JOINT = "joint"  # one search for all groups of a batch entry, by sweeps: see `plan`

    __str__ = str.__str__


@dataclass(frozen=True, slots=True)
class Axis:
    """One loop of a stage. ``reduced``: inside a group; else it runs over groups."""

    reduced: bool
    extent: int
    stride: int
    out_stride: int

    @property
    def unit(self) -> bool:
        """Whether it goes from one value to the next, in both arrays."""
        return self.stride == self.out_stride == 1

    def steps_over(self, inner: "Axis") -> bool:
        """Whether it goes on where `inner` ends, so that both are one run of values."""
        return (
            self.stride == inner.stride * inner.extent
            and self.out_stride == inner.out_stride * inner.extent
        )


@dataclass(frozen=True, slots=True)
class Cut:
    """A stage's work in blocks: ``blocks`` pieces of ``step`` turns of loop ``loop``."""

    loop: int
    step: int
    blocks: int


UNCUT = Cut(-1, 0, 1)


@dataclass(frozen=True, slots=True)
class Stage:
    """One level on its array: the leaf on y, the others on the dense vector of their values.

    ``cut`` is that of both sweeps, ``tiles`` that of the search for thresholds between them.
    ``direct``: a block sees whole groups and writes their values itself; otherwise each block has
    a slot of partial accumulators, and the slots are combined in order. ``unit``: the innermost
    loop is contiguous. ``inner`` is the innermost extent where it is worth writing into the
    kernel, else 0. ``shared``: its blocks are shared among the threads; a small level is done by
    one of them. ``lanes``: so many rows of few columns are taken as one wide row, so each
    group has as many accumulators. ``together``: so many adjacent columns are one group.
    ``bundle``: so many groups' values alternate, and the kernel is made for this number. Axes of
    packed ones are those of the same groups, as if they lay one after the other, which is the same
    memory for whole bundles.
    ``crossing``: its tiles take the columns of several turns of the loop around a group's, as few
    lie side by side. ``vector``: a GPU takes so many adjacent elements in one access.
    """

    level: int
    norm: str
    leaf: bool
    axes: tuple[Axis, ...]
    walk: Walk
    cut: Cut
    tiles: Cut
    direct: bool
    unit: bool
    inner: int
    shared: bool
    lanes: int
    together: int
    threshold: Threshold | None
    bundle: int = 1
    crossing: bool = False
    vector: int = 1

    @property
    def groups(self) -> int:
        """How many groups the level has: values of the level above."""
        return self.columns // (self.lanes * self.together)

    @property
    def columns(self) -> int:
        """How many accumulators the level has, where several make a group."""
        return math.prod(axis.extent for axis in self.axes if not axis.reduced)

    @property
    def group_size(self) -> int:
        """How many values a group has."""
        return self.size // self.groups

    @property
    def size(self) -> int:
        """How many values the level's array has."""
        return math.prod(axis.extent for axis in self.axes)
