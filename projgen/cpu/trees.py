"""Whole trees on the CPU: arrays that no kernel walks, and values out of a kernel's range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from projgen import interpret_trees
from projgen.cpu.compose import Composition, Operand, OutOfRangeError
from projgen.cpu.pool import default_threads
from projgen.operands import is_finite, same_directions, same_memory, walkable
from projgen.parts import cut_into_parts
from projgen.structure import Key
from projgen.trees import BoundArm, BoundTree
from projgen.weights import Given

if TYPE_CHECKING:
    from projgen.projection import Projection

Array = NDArray[Any]

REMEMBERED = 64  # compositions of one projection that are kept ready


def project(
    projection: Projection,
    bound: BoundTree,
    arrays: Mapping[Key, Array],
    outs: Mapping[Key, Array],
    radii: Array,
    given: Given,
) -> None:
    """`arrays` into `outs`, all of which have been checked; or in place, where both are one."""
    operands = {
        arm.key: _operand(arm, arrays[arm.key], outs[arm.key], chained)
        for arm, chained in _arms(bound)
    }
    try:
        _composition(projection, bound, operands, given).project(
            operands, radii.reshape(-1), given.arrays
        )
    except OutOfRangeError:
        _rescue(projection, bound, arrays, outs, radii, given)
        return
    for key, operand in operands.items():
        if not same_memory(operand.target, outs[key]):
            np.copyto(outs[key], operand.target)


def norms(
    projection: Projection, bound: BoundTree, arrays: Mapping[Key, Array], given: Given
) -> Array:
    """The norm of each index of the batch."""
    operands = {
        arm.key: _operand(arm, arrays[arm.key], arrays[arm.key], chained)
        for arm, chained in _arms(bound)
    }
    try:
        composition = _composition(projection, bound, operands, given)
        found = composition.norms({key: each.y for key, each in operands.items()}, given.arrays)
        return found.reshape(bound.batch)
    except OutOfRangeError:
        for array in arrays.values():
            projection._finite(array)
        return interpret_trees.norm(bound, arrays, given.arrays, given.labels)


def _arms(bound: BoundTree) -> list[tuple[BoundArm, bool]]:
    """Each arm, and whether its array goes through a chain's kernel."""
    parts = cut_into_parts(bound).walk()
    return [(part.arm, part.kind == "chain") for part in parts if part.arm is not None]


def _operand(arm: BoundArm, y: Array, out: Array, chained: bool) -> Operand:
    """What the kernels are given: `y` and `out`, or where those won't do a copy, in place."""
    nonneg = chained and any(node.nonneg for node in arm.arm.nodes)
    if nonneg:
        positive = np.where(y > 0, y, y * 0 + 0)  # -inf becomes NaN, and is noticed
        return Operand(positive, None)
    if not (walkable(y) and walkable(out)):
        return Operand(np.array(y, order="C"), None)
    if same_memory(y, out):
        return Operand(y, None)
    if not same_directions(y, out):
        return Operand(np.array(y, order="C"), None)
    return Operand(y, out)


def _composition(
    projection: Projection, bound: BoundTree, operands: Mapping[Key, Operand], given: Given
) -> Composition:
    """The composition that is ready for arrays like these, or a new one."""
    arrays = (
        (
            key,
            each.y.dtype.name,
            each.y.shape,
            each.y.strides,
            None if each.out is None else each.out.strides,
        )
        for key, each in operands.items()
    )
    key = bound.place, tuple(arrays), given.signature
    found = projection._compositions.get(key)
    if found is None:
        threads = projection._threads or default_threads()
        found = Composition(bound, operands, given.arrays, given.labels, threads)
        if len(projection._compositions) >= REMEMBERED:
            projection._compositions.clear()
        projection._compositions[key] = found
    return found


@np.errstate(over="ignore", under="ignore")  # whatever the caller's: radii leave the range
def _rescue(
    projection: Projection,
    bound: BoundTree,
    arrays: Mapping[Key, Array],
    outs: Mapping[Key, Array],
    radii: Array,
    given: Given,
) -> None:
    """Values that are not finite, or whose sums leave the range of float64: the reference's way,
    which scales them. Rare, and not fast."""
    for array in arrays.values():
        projection._finite(array)
    finite = _finite_entries(bound, arrays)
    tame = {arm.key: np.where(_spread(arm, finite), arrays[arm.key], 0.0) for arm in bound.arms}
    results = interpret_trees.project(bound, tame, radii, given.arrays, given.labels)
    for arm in bound.arms:
        x = np.where(_spread(arm, finite), results[arm.key], np.nan)
        np.copyto(outs[arm.key], x, casting="same_kind")


def _finite_entries(bound: BoundTree, arrays: Mapping[Key, Array]) -> Array:
    """For each index of the batch, whether all its values in all arrays are finite."""
    finite = np.ones(bound.batch, bool)
    for arm in bound.arms:
        array = arrays[arm.key]
        if is_finite(array):
            continue
        if any(cut.axis in arm.arm.batch for cut in arm.arm.cuts):
            raise ValueError("arrays that are cut into blocks must be finite")
        axes = tuple(axis for axis in range(array.ndim) if axis not in arm.arm.batch)
        finite &= np.isfinite(array).all(axis=axes)
    return finite


def _spread(arm: BoundArm, entries: Array) -> Array:
    """What holds for each index of the batch, in a shape that broadcasts over the arm's array."""
    if any(cut.axis in arm.arm.batch for cut in arm.arm.cuts):
        return np.ones((), bool)
    shape = [arm.shape[axis] if axis in arm.arm.batch else 1 for axis in range(len(arm.shape))]
    return entries.reshape(shape)
