"""Pieces of arrays on a GPU and the kernels that walk them, for `projgen.cuda.compose`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from projgen.bind import Binding
from projgen.cuda.arrays import DeviceArray
from projgen.cuda.call import Call
from projgen.cuda.compiler import compile_binding
from projgen.cuda.cupy import cupy
from projgen.cuda.groups import GroupCall, walk_groups
from projgen.cuda.launches import ALIGNMENT
from projgen.operands import axis_order, memory_order
from projgen.pieces import Piece


class Room:
    """Places in a workspace, handed out before it is there."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, size: int) -> int:
        """Where `size` bytes begin; not even those of nothing lie beyond the end."""
        at = self.size
        self.size += -(-max(1, size) // ALIGNMENT) * ALIGNMENT
        return at


@dataclass(frozen=True, slots=True)
class ChainWalk:
    """A run of levels on a piece of an array, whose kernel has its workspace at ``at``."""

    piece: Piece
    binding: Binding
    call: Call
    at: int

    def up(self, y: int, weights: int, work: Any) -> Any:
        """The groups' values, by axis."""
        norms = self.call.begin(y, work + self.at)
        return axis_order(norms, self.binding, self.call.plan, self.piece.shape)

    def down(self, y: int, x: int, weights: int, radii: float | Any, work: Any) -> Any:
        """Project on a number or radii by axis; what the kernel reads those from."""
        own = radii
        if not isinstance(radii, float):
            ordered = memory_order(radii, self.binding, self.call.plan)
            own = cupy().ascontiguousarray(ordered)
        self.call.end(y, x, own, work + self.at)
        return own

    @property
    def groups(self) -> int:
        return self.call.plan.batch


@dataclass(frozen=True, slots=True)
class GroupsWalk:
    """The same of one level of any norm. Groups with labels are numbered along axis ``numbers`` of
    the values, if that is not None."""

    piece: Piece
    call: GroupCall
    at: int
    numbers: int | None

    def up(self, y: int, weights: int, work: Any) -> Any:
        values = self.call.begin(y, weights, work + self.at)
        return values.transpose(*np.argsort(self._last(values.ndim)).tolist())

    def down(self, y: int, x: int, weights: int, radii: float | Any, work: Any) -> Any:
        own = radii
        if not isinstance(radii, float):
            own = cupy().ascontiguousarray(radii.transpose(*self._last(radii.ndim)))
        self.call.end(y, x, weights, own, work + self.at)
        return own

    @property
    def groups(self) -> int:
        return self.call.walk.groups

    def _last(self, rank: int) -> list[int]:
        """The axes of values with that of the numbers at the end, as the kernel has them."""
        numbers = rank - 1 if self.numbers is None else self.numbers
        return [axis for axis in range(rank) if axis != numbers] + [numbers] * (rank > 0)


class Kernels:
    """The kernels of one tree on one device: arrays that are alike share those of chains."""

    def __init__(self, device: int) -> None:
        self.device = device
        self._calls: dict[tuple[Any, ...], Call] = {}

    def chain(self, binding: Binding, shape: tuple[int, ...], dtype: str, *rest: Any) -> Call:
        """See `compile_binding`."""
        key = binding, shape, dtype, *rest
        if key not in self._calls:
            self._calls[key] = Call(compile_binding(binding, shape, dtype, *rest), self.device)
        return self._calls[key]

    def groups(self, *ways: Any) -> GroupCall:
        """See `walk_groups`."""
        return GroupCall(walk_groups(*ways), self.device)


def piece_of(array: DeviceArray, piece: Piece) -> DeviceArray:
    """A piece of an array as its kernel sees it, over the same memory."""
    whole = array.ghost
    start = whole[tuple(slice(start, None) for start in piece.starts)]
    ghost = as_strided(start, piece.shape, piece.strides(whole.strides))
    return replace(array, ghost=ghost)


def first_of(array: DeviceArray | None, piece: Piece) -> int:
    """The address of a piece's first element; 0 of no array."""
    return 0 if array is None else array.pointer + piece.offset(array.ghost.strides)
