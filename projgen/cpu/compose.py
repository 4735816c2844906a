"""A whole tree on the CPU: the parts' kernels one after the other, up to the root and down.

On the way up each array is swept once for its values, on the way down once more for its result.
Nothing is written before the root is reached, so bad input leaves every `out` as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from projgen.cpu.call import Call
from projgen.cpu.groups import Ball
from projgen.cpu.part_kernels import Chain, Group, OutOfRangeError, Radii
from projgen.dtypes import is_half
from projgen.errors import quote
from projgen.parts import Part, cut_into_parts
from projgen.pieces import Piece, pieces
from projgen.references import REFERENCES
from projgen.structure import Key
from projgen.trees import BoundTree
from projgen.weights import is_weighted, level_weights

Array = NDArray[Any]
Weights = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Operand:
    """An array of a call, and where its result goes; the same array, or None: in place."""

    y: Array
    out: Array | None

    @property
    def target(self) -> Array:
        return self.y if self.out is None else self.out


@dataclass(frozen=True, slots=True)
class _Walk:
    """A piece of an array and the kernel that walks it."""

    piece: Piece
    kernel: Chain | Group


class LeafPart:
    """A part at a leaf: it sweeps an array."""

    def __init__(
        self,
        part: Part,
        like: Operand,
        weights: Array | None,
        labels: Array | None,
        threads: int,
        warm: bool,
    ) -> None:
        arm = part.arm
        assert arm is not None
        self.arm = arm
        self.part = part
        self._natural = arm.natural(part.top - 1)
        self._order = arm.order(part.top - 1)
        self._dims = arm.dims(part.top - 1)
        self._back = tuple(np.argsort(self._order))
        self._numbers = self._axis_of_numbers()
        self._walks = [
            _Walk(piece, self._kernel(piece, like, weights, labels, threads, warm))
            for piece in pieces(arm)
        ]
        self._straight = (
            len(self._walks) == 1
            and self._walks[0].kernel.orderly
            and not any(arm.is_ragged(cut) for cut in arm.arm.cuts)
            and self._order == tuple(range(len(self._order)))
            and self._numbers in (None, len(self._order) - 1)
        )

    def _kernel(
        self,
        piece: Piece,
        like: Operand,
        weights: Array | None,
        labels: Array | None,
        threads: int,
        warm: bool,
    ) -> Chain | Group:
        y, out, part = like.y, like.out, self.part
        strides = piece.strides(_in_elements(y))
        out_strides = None if out is None else piece.strides(_in_elements(out))
        axes = [
            tuple(i for i, axis in enumerate(piece.axes) if self.arm.arm.owners[axis] == level)
            for level in part.levels
        ]
        if part.kind == "group" and is_half(y.dtype):
            raise TypeError(
                f"{self.arm.arm.label}: on the CPU, {quote(str(part.last.node))} takes float32 and "
                f"float64, not {y.dtype.name}: half types go with chains of l1, l2 and linf "
                "without weights. Use y.astype(np.float32)"
            )
        if part.kind == "chain":
            return Chain(part, axes, y.dtype.name, piece.shape, strides, out_strides, threads, warm)
        own = None if weights is None else piece.strides(_in_elements(weights))
        ball = ball_of(part, nonneg=any(node.nonneg for node in self.arm.arm.nodes))
        return Group(
            ball, axes[0], y.dtype.name, piece.shape, strides, out_strides, own, labels, threads
        )

    def begin(self, y: Array, weights: Array | None) -> tuple[list[Any], Radii]:
        """The part's values, in the order of `BoundArm.dims`, and what to end with."""
        if self._straight:
            state, norms = self._walks[0].kernel.begin(y.ctypes.data, _address(None, weights))
            return [state], norms.reshape(self._dims)
        values = np.zeros(self._natural)
        begun: list[Any] = []
        for walk in self._walks:
            at = y.ctypes.data + walk.piece.offset(y.strides)
            state, norms = walk.kernel.begin(at, _address(walk.piece, weights))
            begun.append(state)
            place = values[self._where(walk.piece)]
            if self._numbers is not None:
                place = np.moveaxis(place, self._numbers, -1)
            place[...] = norms.reshape(place.shape)
        return begun, values.transpose(self._order).reshape(self._dims)

    def end(self, begun: list[Any], operand: Operand, radii: Radii, weights: Array | None) -> None:
        """Project the operand, on radii in that order."""
        y, out = operand.y, operand.target
        if self._straight:
            y_at, out_at, own_at = y.ctypes.data, out.ctypes.data, _address(None, weights)
            written = self._walks[0].kernel.end(begun[0], y_at, out_at, radii, own_at)
            if not written and operand.out is not None:
                np.copyto(out, y)
            return
        extents = [self._natural[axis] for axis in self._order]
        natural = radii.reshape(extents).transpose(self._back)
        for walk, state in zip(self._walks, begun, strict=True):
            piece = walk.piece
            y_at = y.ctypes.data + piece.offset(y.strides)
            out_at = out.ctypes.data + piece.offset(out.strides)
            own = natural[self._where(piece)]
            if self._numbers is not None:
                own = np.moveaxis(own, self._numbers, -1)
            written = walk.kernel.end(state, y_at, out_at, own, _address(piece, weights))
            if not written and operand.out is not None:
                np.copyto(_view(piece, out), _view(piece, y))

    def _axis_of_numbers(self) -> int | None:
        """Where the values have the groups' numbers, which a kernel counts along its last axis."""
        arm = self.arm.arm
        for cut in arm.cuts:
            if cut.groups is not None:
                return sum(owner < self.part.top for owner in arm.owners[: arm.number_axis(cut)])
        return None

    def abandon(self, begun: list[Any]) -> None:
        for walk, state in zip(self._walks, begun, strict=True):
            walk.kernel.abandon(state)

    def _where(self, piece: Piece) -> tuple[slice, ...]:
        owners = self.arm.arm.owners
        return tuple(
            place for place, owner in zip(piece.where, owners, strict=True) if owner < self.part.top
        )


class JoinedPart:
    """A part above the leaves: it works on the values of others."""

    def __init__(
        self,
        part: Part,
        bound: BoundTree,
        weighted: bool,
        threads: int,
        warm: bool,
    ) -> None:
        self.part = part
        level = part.levels[-1]
        self._shape = bound.arms_of(part.last)[0].dims(level - 1)
        counts = [bound.arms_of(child.places[0])[0].dims(level)[-1] for child in part.children]
        ends = np.cumsum(counts)
        self._slices = [slice(int(e) - n, int(e)) for e, n in zip(ends, counts, strict=True)]
        self.shape = (*self._shape, int(ends[-1]))
        self._outer = self.shape[: part.top + 1]
        strides = tuple(int(np.prod(self.shape[i + 1 :])) for i in range(len(self.shape)))
        self._kernel: Chain | Group | None = None
        if 0 in self.shape:
            return
        if part.kind == "chain":
            axes = [(level + 1,) for level in part.levels]
            self._kernel = Chain(part, axes, "float64", self.shape, strides, strides, threads, warm)
        else:
            own = strides if weighted else None
            self._kernel = Group(
                ball_of(part, nonneg=False),
                (len(self.shape) - 1,),
                "float64",
                self.shape,
                strides,
                strides,
                own,
                None,
                threads,
            )

    def begin(self, values: Sequence[Radii], weights: Array | None) -> tuple[Any, Radii]:
        """The part's values, from those of its children, and what to end with."""
        if self._kernel is None:
            return None, np.zeros(self._outer)
        joined = np.ascontiguousarray(np.concatenate(values, axis=-1))
        state, norms = self._kernel.begin(joined.ctypes.data, _address(None, weights))
        return (state, joined), norms.reshape(self._outer)

    def end(self, begun: Any, radii: Radii, weights: Array | None) -> list[Radii]:
        """The radii that the part leaves to its children."""
        if self._kernel is None:
            return [np.zeros((*self._shape, s.stop - s.start)) for s in self._slices]
        state, joined = begun
        shares = np.empty(self.shape)
        y, u = joined.ctypes.data, shares.ctypes.data
        if not self._kernel.end(state, y, u, radii, _address(None, weights)):
            shares = joined
        return [shares[..., place] for place in self._slices]

    def abandon(self, begun: Any) -> None:
        if self._kernel is not None:
            self._kernel.abandon(begun[0])


class Composition:
    """The parts of a tree over arrays of certain shapes and layouts, made ready."""

    def __init__(
        self,
        bound: BoundTree,
        operands: Mapping[Key, Operand],
        ways: Mapping[Key, Callable[[Array, Array], Operand]],
        given: Weights,
        labels: Mapping[str, Array],
        threads: int,
        warm: bool,
    ) -> None:
        self.bound = bound
        self.ways = ways  # from a call's arrays to operands
        self.root = cut_into_parts(bound)
        self._runs: dict[int, LeafPart | JoinedPart] = {}
        self._weighted: set[int] = set()
        for part in self.root.walk():
            weighted = is_weighted(part.last)
            if weighted:
                self._weighted.add(id(part))
            if part.arm is None:
                self._runs[id(part)] = JoinedPart(part, bound, weighted, threads, warm)
                continue
            node = part.last.node
            weights = level_weights(bound, part.last, part.levels[-1], given) if weighted else None
            own = labels[node.groups] if node.groups is not None else None
            operand = operands[part.arm.key]
            self._runs[id(part)] = LeafPart(part, operand, weights, own, threads, warm)

    def norms(self, arrays: Mapping[Key, Array], given: Weights) -> Radii:
        """The norm of each index of the batch."""
        call = _Call(self, arrays, given)
        try:
            return call.up(self.root).copy()  # what it gives lies in a workspace
        finally:
            call.abandon()

    def root_values(self, arrays: Mapping[Key, Array], given: Weights) -> Radii | None:
        """What the root aggregates, along the last axis; None if its part sweeps an array."""
        if isinstance(self._runs[id(self.root)], LeafPart):
            return None
        call = _Call(self, arrays, given)
        try:
            call.up(self.root)
            _, begun = call._begun[id(self.root)]
            if begun is None:  # there are none
                return None
            _, values = begun
            for place in self.root.places[:0:-1]:
                values = REFERENCES[place.node.norm].norm(values, (-1,))[..., 0]
            return np.array(values)
        finally:
            call.abandon()

    def project(self, operands: Mapping[Key, Operand], radii: Radii, given: Weights) -> None:
        """Project the operands; those inside are copied. An OutOfRangeError writes nothing."""
        call = _Call(self, {key: operand.y for key, operand in operands.items()}, given)
        try:
            total = call.up(self.root)
            own = radii if any(radii.strides) else radii[:1]
            small = own.min(initial=np.inf) < Call.VANISHING
            if small and np.any((total < Call.VANISHING) & (own < Call.VANISHING)):
                raise OutOfRangeError  # squares may have vanished on the way
            inside = bool(np.all(total <= own)) and self.bound.tree.root.norm != "simplex"
            if inside and not any(node.nonneg for node in self.bound.tree.levels):
                for operand in operands.values():
                    if operand.out is not None:
                        np.copyto(operand.out, operand.y)
                return
            call.down(self.root, operands, radii)
        finally:
            call.abandon()


class _Call:
    """One call of a composition: what its parts have begun."""

    def __init__(
        self, composition: Composition, arrays: Mapping[Key, Array], given: Weights
    ) -> None:
        self._composition = composition
        self._arrays = arrays
        self._given = given
        self._begun: dict[int, tuple[Any, Any]] = {}
        self._weights: dict[int, Array] = {}

    def up(self, part: Part) -> Radii:
        run = self._composition._runs[id(part)]
        weights = self._level_weights(part)
        if isinstance(run, LeafPart):
            begun, values = run.begin(self._arrays[run.arm.key], weights)
        else:
            begun, values = run.begin([self.up(child) for child in part.children], weights)
        self._begun[id(part)] = run, begun
        return values

    def down(self, part: Part, operands: Mapping[Key, Operand], radii: Radii) -> None:
        run, begun = self._begun.pop(id(part))
        weights = self._weights.get(id(part))
        if isinstance(run, LeafPart):
            run.end(begun, operands[run.arm.key], radii, weights)
            return
        for child, share in zip(part.children, run.end(begun, radii, weights), strict=True):
            self.down(child, operands, share)

    def abandon(self) -> None:
        """Give back what was begun and not ended."""
        for run, begun in self._begun.values():
            run.abandon(begun)
        self._begun.clear()

    def _level_weights(self, part: Part) -> Array | None:
        if id(part) not in self._composition._weighted:
            return None
        bound, level = self._composition.bound, part.levels[-1]
        weights = level_weights(bound, part.last, level, self._given)
        self._weights[id(part)] = weights
        return weights


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
    return int(array.ctypes.data) + (piece.offset(array.strides) if piece else 0)


def _view(piece: Piece, array: Array) -> Array:
    """A piece of an array, for its entries one by one."""
    starts = tuple(slice(start, None) for start in piece.starts)
    strides = piece.strides(array.strides)
    return as_strided(array[starts], piece.shape, strides)
