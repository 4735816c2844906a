"""Whole trees on the CPU: arrays that no kernel walks, and values out of a kernel's range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from projgen import interpret_trees
from projgen.cpu.compose import Composition, Operand
from projgen.cpu.part_kernels import OutOfRangeError
from projgen.cpu.pool import default_threads
from projgen.dtypes import put
from projgen.operands import same_directions, same_memory, walkable
from projgen.parts import Part, cut_into_parts
from projgen.structure import Key
from projgen.trees import BoundTree
from projgen.weights import Given

if TYPE_CHECKING:
    from projgen.calls import Ready
    from projgen.projection import Projection

Array = NDArray[Any]


def project(
    projection: Projection,
    ready: Ready,
    arrays: Mapping[Key, Array],
    outs: Mapping[Key, Array],
    radii: Array,
    given: Given,
) -> None:
    """`arrays` into `outs`, all of which have been checked; or in place, where both are one."""
    composition = _composition(projection, ready, arrays, outs, given)
    ways = composition.ways.items()
    operands = {key: way(arrays[key], outs[key]) for key, way in ways}
    try:
        composition.project(operands, radii.reshape(-1), given.arrays)
    except OutOfRangeError:
        _rescue(projection, ready.bound, arrays, outs, radii, given)
        return
    for key, operand in operands.items():
        if operand.out is None and operand.y is not arrays[key]:
            np.copyto(outs[key], operand.y)


def norms(
    projection: Projection,
    ready: Ready,
    arrays: Mapping[Key, Array],
    given: Given,
    outs: Mapping[Key, Array] | None = None,
) -> Array:
    """The norm of each index of the batch. `outs`: by the kernels that project into arrays so."""
    bound, outs = ready.bound, outs or arrays
    composition = _composition(projection, ready, arrays, outs, given)
    operands = {key: way(arrays[key], outs[key]).y for key, way in composition.ways.items()}
    try:
        return composition.norms(operands, given.arrays).reshape(bound.batch)
    except OutOfRangeError:
        for arm in bound.arms:
            projection._finite(arrays[arm.key], arm.arm.label)
        return interpret_trees.norm(bound, arrays, given.arrays, given.labels)


def root_values(
    projection: Projection,
    ready: Ready,
    arrays: Mapping[Key, Array],
    given: Given,
    outs: Mapping[Key, Array],
) -> Array | None:
    """What the root aggregates, along the last axis; None if only the reference can say it."""
    composition = _composition(projection, ready, arrays, outs, given)
    operands = {key: way(arrays[key], outs[key]).y for key, way in composition.ways.items()}
    try:
        return composition.root_values(operands, given.arrays)
    except OutOfRangeError:
        return None


def _composition(
    projection: Projection,
    ready: Ready,
    arrays: Mapping[Key, Array],
    outs: Mapping[Key, Array],
    given: Given,
) -> Composition:
    """The composition for arrays like these: made at their first call."""
    if ready.made is None:
        ways = {
            part.arm.key: _way(part, arrays[part.arm.key], outs[part.arm.key])
            for part in cut_into_parts(ready.bound).walk()
            if part.arm is not None
        }
        operands = {key: way(arrays[key], outs[key]) for key, way in ways.items()}
        threads = projection._threads or default_threads()
        ready.made = Composition(
            ready.bound, operands, ways, given.arrays, given.labels, threads, projection._warm_start
        )
    made: Composition = ready.made
    return made


def _way(part: Part, y: Array, out: Array) -> Callable[[Array, Array], Operand]:
    """How arrays like these reach the kernels: as they are, or where that won't do as copies."""
    nodes = part.arm.arm.nodes if part.arm else ()
    if part.kind == "chain" and any(node.nonneg for node in nodes):
        return _positive
    if not (walkable(y) and walkable(out)):
        return _copied
    if same_memory(y, out):
        return _in_place
    return _apart if same_directions(y, out) else _copied


def _positive(y: Array, out: Array) -> Operand:
    with np.errstate(invalid="ignore"):
        positive = np.maximum(y, y.dtype.type(0))
        if np.min(y, initial=y.dtype.type(0)) == -np.inf:
            positive[y == -np.inf] = np.nan  # to be noticed
        return Operand(positive, None)


def _copied(y: Array, out: Array) -> Operand:
    return Operand(np.array(y, order="C"), None)


def _in_place(y: Array, out: Array) -> Operand:
    return Operand(y, None)


def _apart(y: Array, out: Array) -> Operand:
    return Operand(y, out)


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
    for arm in bound.arms:
        projection._finite(arrays[arm.key], arm.arm.label)
    results = interpret_trees.project_any(bound, arrays, radii, given.arrays, given.labels)
    for key, x in results.items():
        put(outs[key], x)
