"""One array of a call: a `DTensor`, its shard, and which levels of the tree its mesh cuts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

from projgen.arms import BATCH
from projgen.arrays import Array, check_dtype, view
from projgen.operands import check_out
from projgen.torch.sharded.layout import Seam, Sharding, find_seam
from projgen.torch.sharded.search import Search
from projgen.torch.sharded.wire import Values
from projgen.torch.shards import local
from projgen.trees import BoundArm


@dataclass(frozen=True, slots=True)
class Operand:
    """``array`` is the shard, ``place`` where this rank is in the mesh, and ``seam`` where the
    array's way to the root leaves the ranks. ``arm`` is that of the whole array."""

    arm: BoundArm
    tensor: Any
    array: Array
    sharding: Sharding
    place: tuple[int, ...]
    seam: Seam

    @property
    def norm(self) -> str:
        """That of the seam's level."""
        return self.arm.arm.nodes[self.seam.level].norm

    @property
    def form(self) -> tuple[Any, ...]:
        """What all ranks must have alike."""
        return self.arm.key, self.sharding, self.array.dtype.name

    @property
    def batch(self) -> tuple[slice, ...]:
        """The indices of the batch that this rank has."""
        arm = self.arm.arm
        return tuple(
            slice(None)
            if arm.cut_of(axis)
            else slice(*self.sharding.span(arm.sources[axis], self.place))
            for axis in arm.axes(BATCH)
        )

    def axis_of(self, axis: int, level: int) -> int:
        """Which axis of the values above `level` an axis of the array is, that no block cuts."""
        arm = self.arm.arm
        counted = arm.sources.index(axis)
        return sum(owner < level for owner in arm.owners[:counted])

    def cuts_of(self, level: int) -> list[int]:
        """The axes of the mesh that cut the groups of a level."""
        owners, sources = self.arm.arm.owners, self.arm.arm.sources
        cuts = self.sharding.cuts
        return [along for along, axis in cuts if owners[sources.index(axis)] == level]

    def own_part(self, values: Values) -> Values:
        """Of values that were gathered those of this rank's groups."""
        index: list[slice] = [slice(None)] * values.ndim
        for _, axis in self.seam.gathers:
            index[self.axis_of(axis, self.seam.level)] = slice(
                *self.sharding.span(axis, self.place)
            )
        return values[tuple(index)]

    def search(self) -> Search | None:
        """What finds the thresholds of l1 groups in pieces; None for others, that need none."""
        if self.norm != "l1" or not self.seam.joins:
            return None
        axes = self.arm.arm.axes(self.seam.level)
        size = math.prod(self.sharding.shape[axis] for axis in axes)
        return Search(self.array, axes, size, self.seam.joins)

    def out_array(self, out: Any) -> Array:
        """Where the shard's result goes: the shard of `out`, after a look at it."""
        if out is self.tensor:
            check_out(self.array, self.array)
            return self.array
        own = self.tensor
        if not isinstance(out, DTensor):
            raise TypeError(f"out must be a DTensor like y, not a {type(out).__name__}")
        if (out.device_mesh, out.placements) != (own.device_mesh, own.placements):
            raise ValueError(f"out must have y's mesh and placements, {own.placements}; it has "
                             f"{out.placements}")  # fmt: skip
        if out.shape != own.shape:
            raise ValueError(f"out must have y's shape, {(*own.shape,)}; it has {(*out.shape,)}")
        target = local_array(out, self.sharding, self.place)
        check_out(self.array, target)
        return target

    def placements(self, level: int) -> tuple[Any, ...]:
        """Those of a DTensor over the axes of the values above `level`."""
        owners, sources = self.arm.arm.owners, self.arm.arm.sources
        return tuple(
            Replicate()
            if axis is None or owners[sources.index(axis)] >= level
            else Shard(self.axis_of(axis, level))
            for axis in self.sharding.axes
        )

    def like(self, shard: Array, level: int) -> Any:
        """The DTensor over the axes of the values above `level` that has `shard`."""
        shape = self.arm.natural(level - 1)
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return DTensor.from_local(
            torch.from_numpy(np.ascontiguousarray(shard)),
            self.tensor.device_mesh,
            self.placements(level),
            run_check=False,
            shape=torch.Size(shape),
            stride=strides,
        )

    def empty(self) -> Any:
        """A new DTensor like the array."""
        own = self.tensor
        return DTensor.from_local(
            torch.empty_like(local(own)),
            own.device_mesh,
            own.placements,
            run_check=False,
            shape=own.shape,
            stride=own.stride(),
        )


def operand(arm: BoundArm, tensor: Any, lowest: int) -> Operand:
    """See `Operand`; `lowest` is the highest level that the array has to itself."""
    sharding, place = sharding_of(tensor)
    seam = find_seam(arm.arm, sharding, lowest)
    return Operand(arm, tensor, local_array(tensor, sharding, place), sharding, place, seam)


def sharding_of(tensor: Any) -> tuple[Sharding, tuple[int, ...]]:
    """How a DTensor is cut, and where in its mesh this rank is.

    What FSDP2 makes of tensor parallelism's shards, `_StridedShard`, has its pieces in another
    order along the axis; the order of groups does not matter, so they may stand as they are.
    """
    mesh = tensor.device_mesh
    axes: list[int | None] = []
    strided: set[int] = set()
    for placement in tensor.placements:
        kind = type(placement).__name__
        if placement.is_partial():
            raise TypeError(
                "its values are Partial, a sum that is not made yet: y.redistribute(placements="
                "[Replicate()]) makes it, or [Shard(0)]"
            )
        if kind not in ("Replicate", "Shard", "_StridedShard"):
            raise TypeError(f"the placement {placement} is neither Shard nor Replicate: "
                            "y.redistribute(…) it for the projection")  # fmt: skip
        axes.append(None if kind == "Replicate" else placement.dim % tensor.ndim)
        if kind == "_StridedShard":
            strided.add(placement.dim % tensor.ndim)
    for axis in strided:
        pieces = math.prod(n for n, own in zip(mesh.shape, axes, strict=True) if own == axis)
        if tensor.shape[axis] % pieces:
            raise TypeError(
                f"axis {axis} is cut twice, by FSDP and by tensor parallelism, into {pieces} pieces"
                f" that are not alike: its extent {tensor.shape[axis]} is no multiple of {pieces}"
            )
    place = mesh.get_coordinate()
    if place is None:
        raise ValueError("this rank is not in the tensor's mesh, and has no part in its projection")
    return Sharding(tuple(tensor.shape), tuple(mesh.shape), tuple(axes)), tuple(place)


def local_array(tensor: Any, sharding: Sharding, place: tuple[int, ...]) -> Array:
    """The shard as a NumPy array over the same memory; errors are those of dense tensors."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise TypeError("a projection of a DTensor records no gradients: call it under "
                        "torch.no_grad()")  # fmt: skip
    shard = local(tensor)
    if (shard.device.type, tensor.device_mesh.device_type) != ("cpu", "cpu"):
        raise TypeError(
            f"this DTensor is on {shard.device}, with a mesh for {tensor.device_mesh.device_type}"
            ": shards are projected on the CPU, on a mesh of init_device_mesh('cpu', …)"
        )
    if tuple(shard.shape) != sharding.local_shape(place):
        raise ValueError(
            f"the shard has shape {tuple(shard.shape)}, and {tensor.placements} of shape "
            f"{tuple(tensor.shape)} say {sharding.local_shape(place)}"
        )
    array, _ = view(shard)
    check_dtype(array)
    return array


__all__ = ["Operand", "operand"]
