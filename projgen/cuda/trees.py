"""What a `Projection` does with trees whose arrays lie on a GPU: the arrays of a call, and calls.

Work goes to the stream of the first array; those of the others wait for it, and it for them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from projgen.arrays import Array, Wrap, on_gpu
from projgen.cpu.ball import Ball
from projgen.cuda.arrays import DeviceArray, view
from projgen.cuda.call import on_stream, wait_for
from projgen.cuda.compose import Composition, Operand
from projgen.cuda.cupy import cupy
from projgen.cuda.groups import GroupCall, walk_groups
from projgen.cuda.plan import ACCESS
from projgen.cuda.project import check_target, radii_for, view_out
from projgen.cuda.walks import GroupsWalk, piece_of
from projgen.cuda.weights import OnGpu
from projgen.operands import same_directions, same_memory, walkable
from projgen.parts import Part, cut_into_parts
from projgen.pieces import pieces
from projgen.structure import Key, Place
from projgen.trees import BoundArm
from projgen.weights import Given

if TYPE_CHECKING:
    from projgen.projection import Projection
    from projgen.reading import Ready


class OnDevice:
    """The arrays of one call, of a tree that a GPU takes: see `projgen.on_host.OnHost`.

    What it gives to be looked at are ghosts: see `DeviceArray`.
    """

    def __init__(self) -> None:
        self.arrays: dict[Key, DeviceArray] = {}
        self.outs: dict[Key, DeviceArray] = {}
        self._first = ""
        self._streams: set[int | None] = set()  # of weights

    def take(self, leaf: Place, given: Any) -> tuple[Array, Wrap]:
        if self.arrays and not on_gpu(given):
            raise TypeError(
                f"it does not live on a GPU, and {self._first} does: a tree's arrays lie in one "
                "place"
            )
        array = view(given)
        self._first = self._first or leaf.label
        if self.arrays and array.device != self.device:
            raise ValueError(
                f"it is on GPU {array.device}, and {self._first} on GPU {self.device}: a tree's "
                "arrays lie on one GPU"
            )
        self.arrays[leaf.key] = array
        return array.ghost, array.wrap

    def take_out(self, leaf: Place, given: Any, same: bool) -> Array:
        array = self.arrays[leaf.key] if same else view_out(given)
        self.outs[leaf.key] = array
        return array.ghost

    def forms(self) -> tuple[Hashable, ...]:
        arrays = (*self.arrays.values(), *self.outs.values())
        ghosts = ((array, array.ghost) for array in arrays)
        return tuple(
            (ghost.dtype, ghost.shape, ghost.strides, array.lowest % ACCESS, array.device)
            for array, ghost in ghosts
        )

    def check(self, leaf: Place) -> None:
        """Whoever takes an array has checked its dtype."""

    def check_out(self, leaf: Place) -> None:
        check_target(self.arrays[leaf.key], self.outs[leaf.key])

    @property
    def device(self) -> int:
        return self.lead.device

    @property
    def lead(self) -> DeviceArray:
        """The first array."""
        return next(iter(self.arrays.values()))

    @property
    def stream(self) -> int | None:
        """The handle of the stream that does the work; None is CuPy's current one."""
        return self.lead.stream

    def project(
        self, projection: Projection, ready: Ready, radius: Any, given: Given
    ) -> dict[Key, Any]:
        """The results by key; none if they go into `outs`."""
        radii = radii_for(radius, ready.bound.batch, projection.spec, self.lead)
        made: dict[Key, Any] = {}
        with on_stream(self.device, self.stream):
            if not self.outs:
                made = {key: array.empty() for key, array in self.arrays.items()}
        outs = self.outs or {key: view(array) for key, array in made.items()}
        bound = self._bound(ready, given)
        check = bool(projection._check_finite)
        with on_stream(self.device, self.stream):
            operands = {key: _operand(y, outs[key], check) for key, y in self.arrays.items()}
            if not isinstance(radii, float):
                radii = radii.reshape(-1)
            composition = self._composition(ready, operands, bound)
            composition.project(operands, bound, radii, check, [radii])
            for key, operand in operands.items():
                if operand.out is not outs[key]:
                    outs[key].cupy()[...] = operand.out.cupy()
        self._release()
        ndarray = cupy().ndarray
        wraps = ((key, self.arrays[key].wrap, x) for key, x in made.items())
        return {key: wrap(x) if isinstance(x, ndarray) else x for key, wrap, x in wraps}

    def norms(self, ready: Ready, given: Given) -> Any:
        """A CuPy array over the batch axes, made on the stream."""
        arrays, bound, composition = self._readied(ready, given)
        with on_stream(self.device, self.stream):
            norms = composition.norms(arrays, bound).reshape(ready.bound.batch)
        self._release()
        return norms

    def norm(self, ready: Ready, given: Given) -> Any:
        """The same; without a batch a float, for which the stream waits."""
        norms = self.norms(ready, given)
        with on_stream(self.device, self.stream):
            return norms if norms.ndim else float(norms)

    def root_values(self, ready: Ready, given: Given) -> tuple[Part, Any] | None:
        """The root's part and a CuPy array of what it joins, made on the stream; None if it
        sweeps an array."""
        arrays, bound, composition = self._readied(ready, given)
        with on_stream(self.device, self.stream):
            values = composition.root_values(arrays, bound)
        self._release()
        return None if values is None else (composition.root, values)

    def _readied(
        self, ready: Ready, given: Given
    ) -> tuple[dict[Key, DeviceArray], OnGpu, Composition]:
        """The arrays and what is given with them as kernels can read them, and these."""
        bound = self._bound(ready, given)
        with on_stream(self.device, self.stream):
            arrays = {key: y if walkable(y.ghost) else y.copy() for key, y in self.arrays.items()}
            operands = {key: Operand(y, y) for key, y in arrays.items()}
            return arrays, bound, self._composition(ready, operands, bound)

    def active(self, arm: BoundArm, labels: Mapping[str, Array]) -> Any:
        """Which groups of the leaf level are not all zero: a CuPy array, or a bool."""
        name = arm.arm.nodes[-1].groups
        if name is not None:
            return self._active_labels(arm, labels[name])
        array, owners, level = self.arrays[arm.key], arm.arm.owners, arm.arm.depth - 1
        with on_stream(array.device, array.stream):
            found = cupy().zeros(arm.natural(level - 1), np.bool_)
            for piece in pieces(arm):
                values = piece_of(array, piece).cupy()
                if array.dtype == "bfloat16":
                    values = values & 0x7FFF
                axes = tuple(i for i, axis in enumerate(piece.axes) if owners[axis] == level)
                places = zip(piece.where, owners, strict=True)
                where = tuple(place for place, owner in places if owner < level)
                found[(*where, ...)] = (values != 0).any(axis=axes)
            return found if found.ndim else bool(found)

    def _active_labels(self, arm: BoundArm, labels: Array) -> Any:
        """The same of groups with labels: how many of their values are not zero is what l0 says."""
        array, owners, level = self.arrays[arm.key], arm.arm.owners, arm.arm.depth - 1
        with on_stream(array.device, array.stream):
            cp = cupy()
            found = cp.zeros(arm.natural(level - 1), np.bool_)
            for piece in pieces(arm):
                part = piece_of(array, piece)
                axes = tuple(i for i, axis in enumerate(piece.axes) if owners[axis] == level)
                ball = Ball("l0", ragged=True)
                ways = part.strides, axes, None, None, labels
                call = GroupCall(walk_groups(ball, array.dtype, piece.shape, *ways), array.device)
                walk = GroupsWalk(piece, call, 0, arm.axis_of_numbers(level - 1))
                places = zip(piece.where, owners, strict=True)
                where = tuple(place for place, owner in places if owner < level)
                found[(*where, ...)] = walk.up(part.pointer, 0, cp.cuda.alloc(call.work)) != 0
            return found if found.ndim else bool(found)

    def _bound(self, ready: Ready, given: Given) -> OnGpu:
        """What is given with the arrays; the stream waits for those of all others."""
        for stream in self._others():
            wait_for(self.device, self.stream, stream)
        bound = OnGpu(ready.bound, given)
        self._streams |= bound.wait(self.lead)
        if ready.bound.tree.bound_names:
            root = cut_into_parts(ready.bound) if ready.made is None else ready.made.root
            with on_stream(self.device, self.stream):
                bound.find(root)
        return bound

    def _release(self) -> None:
        """Let all others wait for the stream: what they own has been read and written."""
        for stream in self._others():
            wait_for(self.device, stream, self.stream)

    def _others(self) -> set[int | None]:
        """The streams that are not that of the first array."""
        arrays = (*self.arrays.values(), *self.outs.values())
        return ({array.stream for array in arrays} | self._streams) - {self.stream}

    def _composition(
        self, ready: Ready, operands: Mapping[Key, Operand], given: OnGpu
    ) -> Composition:
        """The kernels for operands like these: made at their first call."""
        if ready.made is None:
            ready.made = Composition(ready.bound, operands, given, self.device)
        made: Composition = ready.made
        return made


def _operand(y: DeviceArray, out: DeviceArray, check: bool) -> Operand:
    """How an array reaches the kernels: as it is, or where that won't do as a copy; in `out`, if
    that may be written to before all values have been looked at."""
    if same_memory(y.ghost, out.ghost):
        return Operand(out, out)
    if walkable(y.ghost) and same_directions(y.ghost, out.ghost):
        return Operand(y, out)
    if check:
        copy = y.copy()
        return Operand(copy, copy)
    out.cupy()[...] = y.cupy()
    return Operand(out, out)


__all__ = ["OnDevice"]
