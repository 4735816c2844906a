"""A whole tree on a GPU: the parts' kernels one after the other, up to the root and down.

What `projgen.cpu.compose` does on the CPU, here is launches on one stream: values and radii stay on
the GPU, and nothing is read. A call's workspace is one piece of memory, in which every part has its
places: its kernels' own, and for those above the leaves the values that it joins and the radii
that it leaves to their groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from projgen.bind import bind
from projgen.compiler import c_strides
from projgen.cpu.leaf_part import ball_of
from projgen.cuda.arrays import DeviceArray
from projgen.cuda.call import Workspaces
from projgen.cuda.cupy import cupy
from projgen.cuda.plan import ACCESS
from projgen.cuda.walks import ChainWalk, GroupsWalk, Kernels, Room, first_of, piece_of
from projgen.cuda.weights import OnGpu
from projgen.parts import Part, chain_of, cut_into_parts
from projgen.pieces import Piece, pieces
from projgen.structure import Key
from projgen.trees import BoundArm, BoundTree
from projgen.weights import is_weighted


@dataclass(frozen=True, slots=True)
class Operand:
    """An array of a call and where its result goes: the same array, if in place."""

    y: DeviceArray
    out: DeviceArray


class LeafPart:
    """A part at a leaf: it sweeps an array."""

    def __init__(
        self, part: Part, like: Operand, given: OnGpu, kernels: Kernels, room: Room
    ) -> None:
        arm = part.arm
        assert arm is not None
        self.arm: BoundArm = arm
        self.part = part
        self.weighted = is_weighted(part.last)
        self._dims = arm.dims(part.top - 1)
        natural, order = arm.natural(part.top - 1), arm.order(part.top - 1)
        self._ordered = [natural[axis] for axis in order]
        self._back = tuple(map(int, np.argsort(order)))
        self._walks = [self._walk(piece, like, given, kernels, room) for piece in pieces(arm)]

    def weights(self, given: OnGpu) -> DeviceArray | None:
        """Those of a call; None without."""
        return given.of_leaf(self.part.last) if self.weighted else None

    def _walk(
        self, piece: Piece, like: Operand, given: OnGpu, kernels: Kernels, room: Room
    ) -> ChainWalk | GroupsWalk:
        y, out, owners = like.y, like.out, self.arm.arm.owners
        in_place = like.y is like.out
        axes = tuple(
            tuple(i for i, axis in enumerate(piece.axes) if owners[axis] == level)
            for level in self.part.levels
        )
        parts = [piece_of(array, piece) for array in (y, out)]
        strides, out_strides = (array.strides for array in parts)
        positive = any(node.nonneg for node in self.arm.arm.nodes)
        if self.part.kind == "group":
            weights = given.of_leaf(self.part.last) if self.weighted else None
            own = None if weights is None else piece_of(weights, piece).strides
            call = kernels.groups(
                ball_of(self.part, positive), y.dtype, piece.shape, strides, axes[0],
                None if in_place else out_strides, own, given.labels_of(self.part.last),
                "float64" if weights is None else weights.dtype,
            )  # fmt: skip
            numbers = self.arm.axis_of_numbers(self.part.top - 1)
            return GroupsWalk(piece, call, room.take(call.work), numbers)
        binding = bind(chain_of(self.part, axes), len(piece.shape))
        aligned = all(array.lowest % ACCESS == 0 for array in parts)
        chain = kernels.chain(
            binding, piece.shape, y.dtype, strides, None if in_place else out_strides, in_place,
            aligned, positive,
        )  # fmt: skip
        return ChainWalk(piece, binding, chain, room.take(chain.work))

    def up(self, y: DeviceArray, weights: DeviceArray | None, work: Any, into: Any) -> None:
        """The part's values, to an array of `BoundArm.dims`."""
        if not self._walks:
            into.fill(0.0)
        for walk in self._walks:
            found = walk.up(first_of(y, walk.piece), first_of(weights, walk.piece), work)
            self._places(into, walk.piece)[...] = found

    def finite(self, work: Any) -> bool:
        """Whether what `up` found is finite. CuPy's current stream waits."""
        found = (cupy().ndarray((walk.groups,), np.float64, work + walk.at) for walk in self._walks)
        return all(bool(cupy().isfinite(norms).all()) for norms in found)

    def down(
        self,
        operand: Operand,
        weights: DeviceArray | None,
        radii: Any,
        work: Any,
        kept: list[Any],
    ) -> None:
        """Project the operand, on a number or radii in the shape of those values."""
        for walk in self._walks:
            own = radii if isinstance(radii, float) else self._places(radii, walk.piece)
            y, x, w = (first_of(a, walk.piece) for a in (operand.y, operand.out, weights))
            kept.append(walk.down(y, x, w, own, work))

    def _places(self, values: Any, piece: Piece) -> Any:
        """Where a piece has its groups among the values, by the array's axes."""
        natural = values.reshape(self._ordered).transpose(*self._back)
        owners = zip(piece.where, self.arm.arm.owners, strict=True)
        where = tuple(place for place, owner in owners if owner < self.part.top)
        return natural[(*where, ...)]


class JoinedPart:
    """A part above the leaves: it works on the values of others."""

    def __init__(
        self, part: Part, bound: BoundTree, given: OnGpu, kernels: Kernels, room: Room
    ) -> None:
        level = part.levels[-1]
        outer = bound.arms_of(part.last)[0].dims(level - 1)
        counts = [bound.arms_of(child.places[0])[0].dims(level)[-1] for child in part.children]
        ends = np.cumsum(counts)
        self.part = part
        self.weighted = is_weighted(part.last)
        # Those that the spec says are there for all calls.
        constant = self.weighted and part.last.node.weights is None
        self._weights = given.of_level(part.last, level) if constant else None
        self.slices = [slice(int(e) - n, int(e)) for e, n in zip(ends, counts, strict=True)]
        self._shape = (*outer, int(ends[-1]))
        self._outer = self._shape[: part.top + 1]
        self._walk: ChainWalk | GroupsWalk | None = None
        size = int(np.prod(self._shape))
        self._values_at, self._radii_at = room.take(8 * size), room.take(8 * size)
        if not size:
            return
        rank, shape = len(self._shape), self._shape
        strides = c_strides(shape)
        steps = tuple((axis, 1) for axis in range(rank))
        piece = Piece(shape, tuple(range(rank)), (0,) * rank, steps, ())
        if part.kind == "group":
            own = strides if self.weighted else None
            ways = shape, strides, (rank - 1,), strides, own, None
            call = kernels.groups(ball_of(part, False), "float64", *ways)
            self._walk = GroupsWalk(piece, call, room.take(call.work), None)
        else:
            binding = bind(chain_of(part, tuple((i + 1,) for i in part.levels)), rank)
            chain = kernels.chain(binding, shape, "float64", strides, strides, False, True)
            self._walk = ChainWalk(piece, binding, chain, room.take(chain.work))

    def weights(self, given: OnGpu) -> Any:
        """Those of a call; None without."""
        if self._weights is not None or not self.weighted:
            return self._weights
        return given.of_level(self.part.last, self.part.levels[-1])

    def values(self, work: Any) -> Any:
        """Where its children put their values."""
        return cupy().ndarray(self._shape, np.float64, work + self._values_at)

    def up(self, weights: Any, work: Any, into: Any) -> None:
        """The part's values, from those of its children."""
        if self._walk is None:
            into.fill(0.0)
            return
        found = self._walk.up((work + self._values_at).ptr, _pointer(weights), work)
        into[...] = found.reshape(self._outer)

    def down(self, weights: Any, radii: Any, work: Any, kept: list[Any]) -> Any:
        """The radii that the part leaves to its children, where they have put their values."""
        shares = cupy().ndarray(self._shape, np.float64, work + self._radii_at)
        if self._walk is not None:
            y, x = ((work + at).ptr for at in (self._values_at, self._radii_at))
            own = radii if isinstance(radii, float) else radii.reshape(self._outer)
            kept.append(self._walk.down(y, x, _pointer(weights), own, work))
        return shares


class Composition:
    """The parts of a tree over arrays of certain shapes and layouts, made ready on a device."""

    def __init__(
        self, bound: BoundTree, operands: Mapping[Key, Operand], given: OnGpu, device: int
    ) -> None:
        self.root = cut_into_parts(bound)
        self._entries = int(np.prod(bound.batch))
        kernels, room = Kernels(device), Room()
        self._total_at = room.take(8 * self._entries)
        self._runs: dict[int, LeafPart | JoinedPart] = {}
        for part in self.root.walk():
            if part.arm is None:
                self._runs[id(part)] = JoinedPart(part, bound, given, kernels, room)
            else:
                like = operands[part.arm.key]
                self._runs[id(part)] = LeafPart(part, like, given, kernels, room)
        self._workspaces = Workspaces(lambda: cupy().cuda.alloc(room.size))

    def norms(self, arrays: Mapping[Key, DeviceArray], given: OnGpu) -> Any:
        """A CuPy array: the norm of each index of the batch, in C order."""
        with self._workspaces.lent() as work:
            return self._up(arrays, given, work).copy()

    def root_values(self, arrays: Mapping[Key, DeviceArray], given: OnGpu) -> Any:
        """A CuPy array of what the root's part joins; None if it sweeps an array."""
        run = self._runs[id(self.root)]
        if isinstance(run, LeafPart):
            return None
        with self._workspaces.lent() as work:
            self._up(arrays, given, work)
            return run.values(work).copy()

    def project(
        self,
        operands: Mapping[Key, Operand],
        given: OnGpu,
        radii: Any,
        check: bool,
        also: Sequence[Any],
    ) -> None:
        """Project the operands, on a number or a CuPy array with one for each index of the batch.

        `check`: a ValueError for what is not finite, before anything is written; the stream waits.
        A graph keeps `also`, and this.
        """
        kept = [self, *also]
        with self._workspaces.lent(kept) as work:
            arrays = {key: operand.y for key, operand in operands.items()}
            total = self._up(arrays, given, work)
            if check and not bool(cupy().isfinite(total).all()):
                raise ValueError(
                    f"{self._culprit(work)}; nothing was written. Numbers must be finite, or build "
                    "with check_finite=False"
                )
            self._down(self.root, operands, given, radii, work, kept)
            kept += given.arrays

    def _up(self, arrays: Mapping[Key, DeviceArray], given: OnGpu, work: Any) -> Any:
        total = cupy().ndarray((self._entries,), np.float64, work + self._total_at)
        self._climb(self.root, arrays, given, work, total)
        return total

    def _climb(
        self,
        part: Part,
        arrays: Mapping[Key, DeviceArray],
        given: OnGpu,
        work: Any,
        into: Any,
    ) -> None:
        run = self._runs[id(part)]
        if isinstance(run, LeafPart):
            run.up(arrays[run.arm.key], run.weights(given), work, into)
            return
        values = run.values(work)
        for child, place in zip(part.children, run.slices, strict=True):
            self._climb(child, arrays, given, work, values[..., place])
        run.up(run.weights(given), work, into)

    def _down(
        self,
        part: Part,
        operands: Mapping[Key, Operand],
        given: OnGpu,
        radii: Any,
        work: Any,
        kept: list[Any],
    ) -> None:
        run = self._runs[id(part)]
        if isinstance(run, LeafPart):
            run.down(operands[run.arm.key], run.weights(given), radii, work, kept)
            return
        shares = run.down(run.weights(given), radii, work, kept)
        for child, place in zip(part.children, run.slices, strict=True):
            self._down(child, operands, given, shares[..., place], work, kept)

    def _culprit(self, work: Any) -> str:
        for run in self._runs.values():
            if isinstance(run, LeafPart) and not run.finite(work):
                return (
                    f"{run.arm.arm.label} has NaN or infinity in it, or its norm is beyond float64"
                )
        return "the norm is beyond float64"


def _pointer(array: Any) -> int:
    return 0 if array is None else int(array.data.ptr)
