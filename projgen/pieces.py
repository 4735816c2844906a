"""Where a part's kernel finds its array: as it lies in memory, with its cut axes as two.

An axis of n places that are cut into blocks of b is an axis of n // b blocks and one of b places,
at steps of b and 1. If that leaves a shorter block, it is a piece of its own. Nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from projgen.arms import Cut
from projgen.trees import BoundArm


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an array whose blocks are all of one size.

    ``shape`` is along the arm's counted axes (those of labels count as one: ``axes`` are their
    numbers), ``starts`` and ``steps`` the array's axes: where the piece begins along each, and for
    each axis of ``shape`` which axis of the array it walks, in steps of how many places. ``where``
    is the piece's place among the arm's values, along the counted axes.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    starts: tuple[int, ...]
    steps: tuple[tuple[int, int], ...]
    where: tuple[slice, ...]

    def strides(self, strides: Sequence[int]) -> tuple[int, ...]:
        """The piece's strides in an array that has `strides`."""
        return tuple(strides[axis] * step for axis, step in self.steps)

    def offset(self, strides: Sequence[int]) -> int:
        """The way from the array's first element to the piece's."""
        return sum(start * stride for start, stride in zip(self.starts, strides, strict=True))


def pieces(arm: BoundArm) -> Iterator[Piece]:
    """The pieces of an arm's array; none of them is empty."""
    cuts = [cut for cut in arm.arm.cuts if cut.block]
    halves = [list(_halves(cut, arm.shape[cut.axis])) for cut in cuts]
    for choice in product(*halves):
        chosen = {cut.axis: half for cut, half in zip(cuts, choice, strict=True)}
        shape: list[int] = []
        axes: list[int] = []
        steps: list[tuple[int, int]] = []
        where: list[slice] = []
        starts = [0] * len(arm.shape)
        for axis, source in enumerate(arm.arm.sources):
            cut = arm.arm.cut_of(axis)
            if cut is not None and cut.groups and axis == arm.arm.number_axis(cut):
                where.append(slice(None))
                continue  # the kernel finds the groups along the one axis that there is
            extent, step, place = arm.shape[source], 1, slice(None)
            if source in chosen:
                start, blocks, block = chosen[source]
                starts[source] = start * (cut.block if cut else 1)
                number = cut is not None and axis == arm.arm.number_axis(cut)
                extent, step = (blocks, cut.block if cut else 1) if number else (block, 1)
                place = slice(start, start + blocks) if number else slice(None)
            shape.append(extent)
            axes.append(axis)
            steps.append((source, step))
            where.append(place)
        if all(shape):
            yield Piece(tuple(shape), tuple(axes), tuple(starts), tuple(steps), tuple(where))


def _halves(cut: Cut, extent: int) -> Iterator[tuple[int, int, int]]:
    """(first block, blocks, places in each) of the whole blocks, and of the shorter one."""
    whole, rest = divmod(extent, cut.block)
    if whole:
        yield 0, whole, cut.block
    if rest:
        yield whole, 1, rest
