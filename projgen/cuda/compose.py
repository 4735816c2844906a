"""A whole tree on a GPU: the parts' kernels one after the other, up to the root and down.

What `projgen.cpu.compose` does on the CPU, here is launches on one stream: values and radii stay on
the GPU, and nothing is read. A call's workspace is one piece of memory, in which every part has its
places: its kernels' own, and for those above the leaves the values that it joins and the radii
that it leaves to their groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from projgen.bind import Binding, bind
from projgen.cuda.arrays import DeviceArray
from projgen.cuda.call import Call, Workspaces
from projgen.cuda.compiler import compile_binding
from projgen.cuda.cupy import cupy
from projgen.cuda.launches import ALIGNMENT
from projgen.cuda.plan import ACCESS
from projgen.cuda.weighted import Weighted
from projgen.dtypes import ITEMSIZE
from projgen.operands import axis_order, memory_order
from projgen.parts import Part, chain_of, cut_into_parts
from projgen.pieces import Piece, pieces
from projgen.structure import Key
from projgen.trees import BoundArm, BoundTree
from projgen.weights import is_weighted, level_weights


@dataclass(frozen=True, slots=True)
class Operand:
    """An array of a call and where its result goes: the same array, if in place."""

    y: DeviceArray
    out: DeviceArray


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
class _Walk:
    """A piece of an array, the kernel that walks it, and where that has its workspace."""

    piece: Piece
    binding: Binding
    call: Call
    at: int


class Kernels:
    """The kernels of one tree on one device: arrays that are alike share them."""

    def __init__(self, device: int) -> None:
        self.device = device
        self._calls: dict[tuple[Any, ...], Call] = {}

    def chain(self, binding: Binding, shape: tuple[int, ...], dtype: str, *rest: Any) -> Call:
        """See `compile_binding`."""
        key = binding, shape, dtype, *rest
        if key not in self._calls:
            self._calls[key] = Call(compile_binding(binding, shape, dtype, *rest), self.device)
        return self._calls[key]


class LeafPart:
    """A part at a leaf: it sweeps an array."""

    def __init__(self, part: Part, like: Operand, kernels: Kernels, room: Room) -> None:
        arm = part.arm
        assert arm is not None
        self.arm: BoundArm = arm
        self.part = part
        self._dims = arm.dims(part.top - 1)
        natural, order = arm.natural(part.top - 1), arm.order(part.top - 1)
        self._ordered = [natural[axis] for axis in order]
        self._back = tuple(map(int, np.argsort(order)))
        self._walks = [self._walk(piece, like, kernels, room) for piece in pieces(arm)]

    def _walk(self, piece: Piece, like: Operand, kernels: Kernels, room: Room) -> _Walk:
        y, out, owners = like.y, like.out, self.arm.arm.owners
        size, in_place = ITEMSIZE[y.dtype], like.y is like.out
        axes = tuple(
            tuple(i for i, axis in enumerate(piece.axes) if owners[axis] == level)
            for level in self.part.levels
        )
        binding = bind(chain_of(self.part, axes), len(piece.shape))
        parts = [piece_of(array, piece) for array in (y, out)]
        strides, out_strides = (
            tuple(step // size for step in array.ghost.strides) for array in parts
        )
        aligned = all(array.lowest % ACCESS == 0 for array in parts)
        positive = any(node.nonneg for node in self.arm.arm.nodes)
        call = kernels.chain(
            binding, piece.shape, y.dtype, strides, None if in_place else out_strides, in_place,
            aligned, positive,
        )  # fmt: skip
        return _Walk(piece, binding, call, room.take(call.work))

    def up(self, y: DeviceArray, work: Any, into: Any) -> None:
        """The part's values, to an array of `BoundArm.dims`."""
        if not self._walks:
            into.fill(0.0)
        for walk in self._walks:
            norms = walk.call.begin(_first(y, walk.piece), work + walk.at)
            ordered = axis_order(norms, walk.binding, walk.call.plan, walk.piece.shape)
            self._places(into, walk)[...] = ordered

    def finite(self, work: Any) -> bool:
        """Whether what `up` found is finite. CuPy's current stream waits."""
        found = (
            cupy().ndarray((walk.call.plan.batch,), np.float64, work + walk.at)
            for walk in self._walks
        )
        return all(bool(cupy().isfinite(norms).all()) for norms in found)

    def down(self, operand: Operand, radii: Any, work: Any, kept: list[Any]) -> None:
        """Project the operand, on a number or radii in the shape of those values."""
        y, out = operand.y, operand.out
        for walk in self._walks:
            own = radii
            if not isinstance(radii, float):
                shares = memory_order(self._places(radii, walk), walk.binding, walk.call.plan)
                own = cupy().ascontiguousarray(shares)
                kept.append(own)
            y_at, out_at = (_first(array, walk.piece) for array in (y, out))
            walk.call.end(y_at, out_at, own, work + walk.at)

    def _places(self, values: Any, walk: _Walk) -> Any:
        """Where a piece has its groups among the values, by the array's axes."""
        natural = values.reshape(self._ordered).transpose(*self._back)
        owners = zip(walk.piece.where, self.arm.arm.owners, strict=True)
        where = tuple(place for place, owner in owners if owner < self.part.top)
        return natural[(*where, ...)]


class JoinedPart:
    """A part above the leaves: it works on the values of others."""

    def __init__(self, part: Part, bound: BoundTree, kernels: Kernels, room: Room) -> None:
        level = part.levels[-1]
        outer = bound.arms_of(part.last)[0].dims(level - 1)
        counts = [bound.arms_of(child.places[0])[0].dims(level)[-1] for child in part.children]
        ends = np.cumsum(counts)
        self.slices = [slice(int(e) - n, int(e)) for e, n in zip(ends, counts, strict=True)]
        self._shape = (*outer, int(ends[-1]))
        self._outer = self._shape[: part.top + 1]
        self._kernel: Call | Weighted | None = None
        size = int(np.prod(self._shape))
        self._values_at, self._radii_at = room.take(8 * size), room.take(8 * size)
        if not size:
            return
        if is_weighted(part.last):
            weights = level_weights(bound, part.last, level, {}).reshape(-1, self._shape[-1])[0]
            groups = int(np.prod(outer))
            self._kernel = Weighted(part.last.node.norm, groups, weights, kernels.device)
        else:
            binding = bind(chain_of(part, tuple((i + 1,) for i in part.levels)), len(self._shape))
            strides = tuple(int(np.prod(self._shape[i + 1 :])) for i in range(len(self._shape)))
            self._kernel = kernels.chain(
                binding, self._shape, "float64", strides, strides, False, True
            )
        self._at = room.take(self._kernel.work)

    def values(self, work: Any) -> Any:
        """Where its children put their values."""
        return cupy().ndarray(self._shape, np.float64, work + self._values_at)

    def up(self, work: Any, into: Any) -> None:
        """The part's values, from those of its children."""
        if self._kernel is None:
            into.fill(0.0)
            return
        norms = self._kernel.begin((work + self._values_at).ptr, work + self._at)
        into[...] = norms.reshape(self._outer)

    def down(self, radii: Any, work: Any, kept: list[Any]) -> Any:
        """The radii that the part leaves to its children, where they have put their values."""
        shares = cupy().ndarray(self._shape, np.float64, work + self._radii_at)
        if self._kernel is not None:
            own = radii
            if not isinstance(radii, float):
                own = cupy().ascontiguousarray(radii.reshape(-1))
                kept.append(own)
            y, x = ((work + at).ptr for at in (self._values_at, self._radii_at))
            self._kernel.end(y, x, own, work + self._at)
        return shares


class Composition:
    """The parts of a tree over arrays of certain shapes and layouts, made ready on a device."""

    def __init__(self, bound: BoundTree, operands: Mapping[Key, Operand], device: int) -> None:
        self.root = cut_into_parts(bound)
        self._entries = int(np.prod(bound.batch))
        kernels, room = Kernels(device), Room()
        self._total_at = room.take(8 * self._entries)
        self._runs: dict[int, LeafPart | JoinedPart] = {}
        for part in self.root.walk():
            if part.arm is None:
                self._runs[id(part)] = JoinedPart(part, bound, kernels, room)
            else:
                self._runs[id(part)] = LeafPart(part, operands[part.arm.key], kernels, room)
        self._workspaces = Workspaces(lambda: cupy().cuda.alloc(room.size))

    def norms(self, arrays: Mapping[Key, DeviceArray]) -> Any:
        """A CuPy array: the norm of each index of the batch, in C order."""
        with self._workspaces.lent() as work:
            return self._up(arrays, work).copy()

    def root_values(self, arrays: Mapping[Key, DeviceArray]) -> Any:
        """A CuPy array of what the root's part joins; None if it sweeps an array."""
        run = self._runs[id(self.root)]
        if isinstance(run, LeafPart):
            return None
        with self._workspaces.lent() as work:
            self._up(arrays, work)
            return run.values(work).copy()

    def project(
        self, operands: Mapping[Key, Operand], radii: Any, check: bool, also: Sequence[Any]
    ) -> None:
        """Project the operands, on a number or a CuPy array with one for each index of the batch.

        `check`: a ValueError for what is not finite, before anything is written; the stream waits.
        A graph keeps `also`, and this.
        """
        kept = [self, *also]
        with self._workspaces.lent(kept) as work:
            arrays = {key: operand.y for key, operand in operands.items()}
            total = self._up(arrays, work)
            if check and not bool(cupy().isfinite(total).all()):
                raise ValueError(
                    f"{self._culprit(work)}; nothing was written. Numbers must be finite, or build "
                    "with check_finite=False"
                )
            self._down(self.root, operands, radii, work, kept)

    def _up(self, arrays: Mapping[Key, DeviceArray], work: Any) -> Any:
        total = cupy().ndarray((self._entries,), np.float64, work + self._total_at)
        self._climb(self.root, arrays, work, total)
        return total

    def _climb(self, part: Part, arrays: Mapping[Key, DeviceArray], work: Any, into: Any) -> None:
        run = self._runs[id(part)]
        if isinstance(run, LeafPart):
            run.up(arrays[run.arm.key], work, into)
            return
        values = run.values(work)
        for child, place in zip(part.children, run.slices, strict=True):
            self._climb(child, arrays, work, values[..., place])
        run.up(work, into)

    def _down(
        self,
        part: Part,
        operands: Mapping[Key, Operand],
        radii: Any,
        work: Any,
        kept: list[Any],
    ) -> None:
        run = self._runs[id(part)]
        if isinstance(run, LeafPart):
            run.down(operands[run.arm.key], radii, work, kept)
            return
        shares = run.down(radii, work, kept)
        for child, place in zip(part.children, run.slices, strict=True):
            self._down(child, operands, shares[..., place], work, kept)

    def _culprit(self, work: Any) -> str:
        for run in self._runs.values():
            if isinstance(run, LeafPart) and not run.finite(work):
                return (
                    f"{run.arm.arm.label} has NaN or infinity in it, or its norm is beyond float64"
                )
        return "the norm is beyond float64"


def piece_of(array: DeviceArray, piece: Piece) -> DeviceArray:
    """A piece of an array as its kernel sees it, over the same memory."""
    whole = array.ghost
    start = whole[tuple(slice(start, None) for start in piece.starts)]
    ghost = as_strided(start, piece.shape, piece.strides(whole.strides))
    return replace(array, ghost=ghost)


def _first(array: DeviceArray, piece: Piece) -> int:
    """The address of a piece's first element."""
    return array.pointer + piece.offset(array.ghost.strides)
