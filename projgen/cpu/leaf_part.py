"""A part at a leaf of a tree: the kernels that sweep its array, on the way up and down."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from projgen.arrays import Array, address
from projgen.cpu.ball import Ball
from projgen.cpu.call import Step
from projgen.cpu.part_kernels import Chain, Group, Radii
from projgen.parts import Part
from projgen.pieces import Piece, pieces
from projgen.weights import is_weighted


@dataclass(frozen=True, slots=True)
class Walk:
    """A piece of an array and the kernel that walks it."""

    piece: Piece
    kernel: Chain | Group


class LeafPart:
    """A part at a leaf: it sweeps an array."""

    def __init__(
        self,
        part: Part,
        y: Array,
        out: Array | None,
        weights: Array | None,
        labels: Array | None,
        threads: int,
        warm: bool,
    ) -> None:
        """For arrays laid out like `y`, and results like `out`; None: in place."""
        arm = part.arm
        assert arm is not None
        self.arm = arm
        self.part = part
        self._natural = arm.natural(part.top - 1)
        self._order = arm.order(part.top - 1)
        self._dims = arm.dims(part.top - 1)
        self._back = tuple(np.argsort(self._order))
        self._numbers = arm.axis_of_numbers(part.top - 1)  # which kernels have at the end
        self.walks = [
            Walk(piece, self._kernel(piece, y, out, weights, labels, threads, warm))
            for piece in pieces(arm)
        ]
        self.straight = (
            len(self.walks) == 1
            and self.walks[0].kernel.orderly
            and not any(arm.is_ragged(cut) for cut in arm.arm.cuts)
            and self._order == tuple(range(len(self._order)))
            and self._numbers in (None, len(self._order) - 1)
        )

    def _kernel(
        self,
        piece: Piece,
        y: Array,
        out: Array | None,
        weights: Array | None,
        labels: Array | None,
        threads: int,
        warm: bool,
    ) -> Chain | Group:
        part = self.part
        strides = piece.strides(_in_elements(y))
        out_strides = None if out is None else piece.strides(_in_elements(out))
        axes = [
            tuple(i for i, axis in enumerate(piece.axes) if self.arm.arm.owners[axis] == level)
            for level in part.levels
        ]
        nonneg = any(node.nonneg for node in self.arm.arm.nodes)
        if part.kind == "chain":
            lie = piece.shape, strides, out_strides
            return Chain(part, axes, y.dtype.name, *lie, threads, warm, nonneg)
        own = None if weights is None else piece.strides(_in_elements(weights))
        ball = ball_of(part, nonneg)
        ways = piece.shape, strides, out_strides, own
        form = "float64" if weights is None else weights.dtype.name
        return Group(ball, axes[0], y.dtype.name, *ways, labels, threads, form)

    @property
    def checks_weights(self) -> bool:
        """Whether its kernels refuse weights that are none."""
        return all(isinstance(w.kernel, Group) and w.kernel.checks_weights for w in self.walks)

    @property
    def step(self) -> Step | None:
        """How to call its kernel in a series; None if that won't do."""
        return self.walks[0].kernel.step if self.straight else None

    @property
    def shape(self) -> tuple[int, int]:
        """Its values as rows: how many indices the outer axes have, and how many values each."""
        return math.prod(self._dims[:-1]), self._dims[-1]

    def begin(self, y: Array, weights: Array | None) -> tuple[list[Any], Radii]:
        """The part's values, in the order of `BoundArm.dims`, and what to end with."""
        if self.straight:
            state, norms = self.walks[0].kernel.begin(address(y), _address(None, weights))
            return [state], norms.reshape(self._dims)
        begun: list[Any] = []
        found: list[Radii] = []
        for walk in self.walks:
            at = address(y) + walk.piece.offset(y.strides)
            state, norms = walk.kernel.begin(at, _address(walk.piece, weights))
            begun.append(state)
            found.append(norms)
        return begun, self.joined(found)

    def joined(self, found: list[Radii]) -> Radii:
        """What the kernels say of their groups, in the order of `BoundArm.dims`."""
        if self.straight:
            return found[0].reshape(self._dims)
        values = np.zeros(self._natural)
        for walk, own in zip(self.walks, found, strict=True):
            place = self._part_of(values, walk.piece)
            place[...] = own.reshape(place.shape)
        return values.transpose(self._order).reshape(self._dims)

    def dealt(self, values: Radii) -> Iterator[Radii]:
        """The inverse of `joined`, kernel by kernel."""
        if self.straight:
            yield values
            return
        extents = [self._natural[axis] for axis in self._order]
        natural = values.reshape(extents).transpose(self._back)
        for walk in self.walks:
            yield self._part_of(natural, walk.piece)

    def _part_of(self, natural: Radii, piece: Piece) -> Radii:
        """Where a piece has its values."""
        place = natural[self._where(piece)]
        return place if self._numbers is None else np.moveaxis(place, self._numbers, -1)

    def end(
        self,
        begun: list[Any],
        y: Array,
        out: Array | None,
        radii: Radii,
        weights: Array | None,
        tapes: list[Radii] | None = None,
    ) -> None:
        """Project the array, on radii in that order, into `out`; None: in place.

        `tapes` is for those of its kernels.
        """
        in_place = out is None
        out = y if out is None else out
        if self.straight:
            y_at, out_at, own_at = address(y), address(out), _address(None, weights)
            written = self.walks[0].kernel.end(begun[0], y_at, out_at, radii, own_at, tapes)
            if not (written or in_place):
                np.copyto(out, y)
            return
        for walk, state, own in zip(self.walks, begun, self.dealt(radii), strict=True):
            piece = walk.piece
            y_at = address(y) + piece.offset(y.strides)
            out_at = address(out) + piece.offset(out.strides)
            own_at = _address(piece, weights)
            written = walk.kernel.end(state, y_at, out_at, own, own_at, tapes)
            if not (written or in_place):
                np.copyto(view_of(piece, out), view_of(piece, y))

    def abandon(self, begun: list[Any]) -> None:
        for walk, state in zip(self.walks, begun, strict=True):
            walk.kernel.abandon(state)

    def _where(self, piece: Piece) -> tuple[slice, ...]:
        owners = self.arm.arm.owners
        return tuple(
            place for place, owner in zip(piece.where, owners, strict=True) if owner < self.part.top
        )


def ball_of(part: Part, nonneg: bool) -> Ball:
    """What the part's only level projects on."""
    place = part.last
    node = place.node
    weighted, ragged = is_weighted(place), node.groups is not None
    return Ball(node.norm, node.p, weighted=weighted, nonneg=nonneg, ragged=ragged)


def _in_elements(array: Array) -> tuple[int, ...]:
    return tuple(stride // array.itemsize for stride in array.strides)


def _address(piece: Piece | None, array: Array | None) -> int:
    """Where a piece of an array begins in memory; 0 for no array."""
    if array is None:
        return 0
    return address(array) + (piece.offset(array.strides) if piece else 0)


def view_of(piece: Piece, array: Array) -> Array:
    """A piece of an array, for its entries one by one."""
    starts = tuple(slice(start, None) for start in piece.starts)
    strides = piece.strides(array.strides)
    return as_strided(array[starts], piece.shape, strides)
