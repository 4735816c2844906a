"""What ranks do together between their two sweeps: up to the root and down again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from projgen.structure import Key
from projgen.torch.sharded.operand import Operand
from projgen.torch.sharded.search import Search
from projgen.torch.sharded.top import Top, arranged, by_axis
from projgen.torch.sharded.wire import Values, Wire

HUGE = 1e150  # beyond it, and below its inverse, squares leave the range of float64


class Joint:
    """The joint work on the values of some arrays.

    ``pieces`` are what the ranks' sweeps found; ``wide`` says that some of them have squares beyond
    the range of float64. `top` is what is above the seams; None: a single array, which the ranks
    have up to its root.

    Making one communicates, and so does `shares`. What a rank does alone is between them, so that
    ranks can hear of one another's errors before any of them goes on.
    """

    def __init__(
        self,
        wire: Wire,
        operands: Sequence[Operand],
        pieces: Sequence[Values],
        top: Top | None,
        wide: bool,
    ) -> None:
        self._wire = wire
        self._operands = operands
        self._pieces = pieces
        self._top = top
        self._joined = [*pieces]
        self._join(wide)
        self._gathered: list[Values] = []
        if top is not None:
            self._gathered = [*self._joined]
            self._gather()

    def norms(self) -> Values:
        """The norm of each index of the batch that this rank has; found alone."""
        if self._top is None:
            return self._joined[0]
        return self._top.norms(self._arranged()).reshape(self._batch)

    def radii(self, radii: Values) -> list[Values]:
        """For each array the radii of this rank's groups, from those of its batch; found alone."""
        if self._top is None:
            return [radii]
        found = self._top.radii(self._arranged(), radii.reshape(-1))
        own: list[Values] = []
        for operand, gathered in zip(self._operands, self._gathered, strict=True):
            key, level = operand.arm.key, operand.seam.level
            own.append(operand.own_part(by_axis(operand.arm, level, found[key], gathered.shape)))
        return own

    def shares(self, radii: Sequence[Values], searches: Sequence[Search | None]) -> list[Values]:
        """What of those radii the pieces on this rank have."""
        pairs = zip(self._joined, self._pieces, strict=True)
        each = zip(self._operands, pairs, radii, searches, strict=True)
        return [self._share(own, *values, radius, search) for own, values, radius, search in each]

    @property
    def _batch(self) -> tuple[int, ...]:
        operand = self._operands[0]
        owners = [owner for owner in operand.arm.arm.owners if owner < operand.seam.level]
        shape = zip(self._joined[0].shape, owners, strict=True)
        return tuple(extent for extent, owner in shape if owner < 0)

    def _arranged(self) -> dict[Key, Values]:
        each = zip(self._operands, self._gathered, strict=True)
        return {own.arm.key: arranged(own.arm, own.seam.level, values) for own, values in each}

    # Up: the values of groups in pieces, then of all groups

    def _join(self, wide: bool) -> None:
        alike: defaultdict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
        for number, operand in enumerate(self._operands):
            if operand.seam.joins:
                alike[operand.norm, operand.seam.joins].append(number)
        for (norm, along), numbers in alike.items():
            pieces = [self._pieces[number] for number in numbers]
            if norm == "linf":
                found = self._wire.largest(pieces, along)
            elif norm == "l1":
                found = self._wire.sums(pieces, along)
            else:
                found = self._lengths(pieces, along, wide)
            for number, values in zip(numbers, found, strict=True):
                self._joined[number] = values

    def _lengths(
        self, pieces: Sequence[Values], along: tuple[int, ...], wide: bool
    ) -> list[Values]:
        exponents = [np.zeros(piece.shape, np.int32) for piece in pieces]
        if wide:  # of each group by itself: then no square is too large, and none too small counts
            exponents = [np.frexp(top)[1] for top in self._wire.largest(pieces, along)]
        scaled = [np.ldexp(own, -e) for own, e in zip(pieces, exponents, strict=True)]
        squares = self._wire.sums([own * own for own in scaled], along)
        return [np.ldexp(np.sqrt(own), e) for own, e in zip(squares, exponents, strict=True)]

    def _gather(self) -> None:
        meshes = {along for operand in self._operands for along, _ in operand.seam.gathers}
        for along in sorted(meshes, reverse=True):  # the last one has cut what the others had
            mine = [number for number, operand in enumerate(self._operands)
                    if along in dict(operand.seam.gathers)]  # fmt: skip
            axes: list[int] = []
            for operand in (self._operands[number] for number in mine):
                axis = dict(operand.seam.gathers)[along]
                axes.append(operand.axis_of(axis, operand.seam.level))
            sizes = [self._operands[n].sharding.sizes(along, self._operands[n].place) for n in mine]
            whole = self._wire.gather(along, [self._gathered[n] for n in mine], axes, sizes)
            for number, values in zip(mine, whole, strict=True):
                self._gathered[number] = values

    # Down: of a group's radius the part that its piece on this rank has

    def _share(
        self, operand: Operand, whole: Values, piece: Values, radii: Values, search: Search | None
    ) -> Values:
        if not operand.seam.joins:
            return radii
        if operand.norm == "linf":
            return np.minimum(radii, piece)
        inside = radii >= whole
        if operand.norm == "l2":
            ratios = np.divide(radii, whole, out=np.ones(whole.shape), where=~inside)
            return np.where(inside, piece, ratios * piece)
        assert search is not None
        found = search.shares(whole, np.where(inside, 0.0, radii), self._wire)
        return np.where(inside, piece, found)


__all__ = ["HUGE", "Joint"]
