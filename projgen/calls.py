"""Calls of trees over several arrays, or with norms and weights that a chain has not.

What is given is matched with the tree, checked as a whole, bound and handed to a backend; results
come back in the structure, and as the kinds of arrays, that were given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from projgen.arrays import Array, detached, on_gpu, view, written
from projgen.dtypes import LARGEST, put
from projgen.forks import wholly
from projgen.operands import check_radii, is_dense
from projgen.reading import Reading, Ready, read
from projgen.structure import Key, at, flat, rebuilt
from projgen.trees import BoundArm, BoundTree
from projgen.weights import Given

if TYPE_CHECKING:
    from projgen.cpu.compose import TreeTape
    from projgen.info import Info
    from projgen.projection import Projection


@dataclass(frozen=True, slots=True)
class Taped:
    """A projection that has been done, for gradients: of which arrays, and what it made of them.

    ``tape`` is what it found on its way; None where gradients go the reference's way.
    """

    ready: Ready
    arrays: Mapping[Key, Array]
    radii: Array
    given: Given
    results: Mapping[Key, Array]
    tape: TreeTape | None

    @property
    def bound(self) -> BoundTree:
        return self.ready.bound


@wholly
def taped(
    projection: Projection, y: Any, radius: Any, named: Mapping[str, Any]
) -> tuple[Any, Taped]:
    """The projection of `y`, and all that its gradients ask for; errors as `project` has them."""
    y, given = _split(projection, y, named)
    call = read(projection, y, given, projects=True)
    if call.gpu:
        from projgen.cuda.pull import refuse

        refuse(projection)
    arrays, wraps = call.arrays, call.wraps
    if not all(is_dense(array) for array in arrays.values()):
        arrays = {key: np.array(array, order="C") for key, array in arrays.items()}
        call = read(projection, rebuilt(y, arrays), given, projects=True)
    radii = _radii(projection, radius, call.bound)
    if projection.tree.root.norm == "simplex" and not _is_small(radius):
        _require_room(projection, call, radii)
    results = {key: np.empty_like(array) for key, array in arrays.items()}
    tape = None
    if projection.backend == "numpy":
        _by_reference(projection, call, radii, results)
    else:
        from projgen.cpu import trees

        tape = trees.taped(projection, call.ready, arrays, results, radii, call.given)
    wrapped = zip(results.items(), wraps, strict=True)
    x = rebuilt(y, {key: wrap(own) for (key, own), wrap in wrapped})
    return x, Taped(call.ready, arrays, radii, call.given, results, tape)


@wholly
def project(projection: Projection, y: Any, radius: Any, out: Any, named: Mapping[str, Any]) -> Any:
    """`y`, a structure of arrays, projected as one: into `out`, or a new structure."""
    y, given = _split(projection, y, named)
    call = read(projection, y, given, out, projects=True)
    if call.gpu:
        needed = _required(projection, radius)
        if not on_gpu(needed):
            _radii(projection, radius, call.bound)
        results = call.gpu.project(projection, call.ready, needed, call.given)
        return rebuilt(y, results) if out is None else _written(call, out)
    radii = _radii(projection, radius, call.bound)
    if projection.tree.root.norm == "simplex" and not _is_small(radius):
        _require_room(projection, call, radii)
    targets = call.targets
    if out is None:
        targets = {key: np.empty_like(array) for key, array in call.arrays.items()}
    if projection.backend == "numpy":
        _by_reference(projection, call, radii, targets)
    else:
        from projgen.cpu import trees

        trees.project(projection, call.ready, call.arrays, targets, radii, call.given)
    if out is not None:
        return _written(call, out)
    wrapped = zip(targets.items(), call.wraps, strict=True)
    return rebuilt(y, {key: wrap(x) for (key, x), wrap in wrapped})


def _by_reference(
    projection: Projection, call: Reading, radii: Array, targets: Mapping[Key, Array]
) -> None:
    from projgen import interpret_trees

    for arm in call.bound.arms:
        projection._finite(call.arrays[arm.key], arm.arm.label)
    results = interpret_trees.project_any(
        call.bound, call.arrays, radii, call.given.arrays, call.given.labels
    )
    for key, x in results.items():
        put(targets[key], x)


def _written(call: Reading, out: Any) -> Any:
    for own in call.outs:
        written(own)
    return out


def with_info(
    projection: Projection, y: Any, radius: Any, out: Any, named: Mapping[str, Any]
) -> tuple[Any, Info]:
    """As `project`, and what that did: see `projgen.compare.with_info`."""
    from projgen.compare_trees import tree_info

    given_y, given = _split(projection, y, named)
    call = read(projection, given_y, given, out, projects=True)
    if call.gpu:
        from projgen.cuda.compare_trees import with_info as on_gpu

        kept = call.given.arrays  # copies of weights that the result overwrites

        def reread(arrays: Any) -> Reading:
            return read(projection, arrays, kept)

        def make() -> Any:
            return project(projection, y, radius, out, named)

        return on_gpu(projection, reread(given_y), make, reread, _required(projection, radius))
    radii = _radii(projection, radius, call.bound)
    before = dict(call.arrays)
    for key, target in call.targets.items():
        if np.may_share_memory(before[key], target):
            before[key] = before[key].copy(order="K")
    made = project(projection, y, radius, out, named)
    after = {key: view(detached(at(made, key)))[0] for key in before}
    return made, tree_info(projection, call.bound, before, after, radii, call.given)


def norm(projection: Projection, y: Any, named: Mapping[str, Any]) -> Any:
    """The tree's norm of `y`: a float, or an array over the batch."""
    y, given = _split(projection, y, named)
    call = read(projection, y, given)
    if call.gpu:
        norms = call.gpu.norm(call.ready, call.given)
        return call.wraps[0](norms) if call.bound.batch else norms
    if projection.backend == "numpy":
        from projgen import interpret_trees

        for arm in call.bound.arms:
            projection._finite(call.arrays[arm.key], arm.arm.label)
        norms = interpret_trees.norm(call.bound, call.arrays, call.given.arrays, call.given.labels)
    else:
        from projgen.cpu import trees

        norms = trees.norms(projection, call.ready, call.arrays, call.given)
    return call.wraps[0](norms) if call.bound.batch else float(norms)


def active(projection: Projection, x: Any, named: Mapping[str, Any]) -> Any:
    """For each array, which groups of its leaf level are not all zero; None for one that passes."""
    x, given = _split(projection, x, named)
    call = read(projection, x, given)
    passes = projection.unmatched == "pass"
    results: dict[Key, Any] = dict.fromkeys(key for key, _ in flat(x)) if passes else {}
    for arm, wrap in zip(call.bound.arms, call.wraps, strict=True):
        if call.gpu:
            on_device = call.gpu.active(arm, call.given.labels)
            results[arm.key] = on_device if isinstance(on_device, bool) else wrap(on_device)
            continue
        nonzero = counted(arm, call.arrays[arm.key] != 0, call.given.labels)
        axes = arm.arm.axes(arm.arm.depth - 1)
        found = np.any(nonzero, axis=axes)
        results[arm.key] = wrap(found) if isinstance(found, np.ndarray) else bool(found)
    return rebuilt(x, results)


def _split(
    projection: Projection, y: Any, named: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    """The arrays to project, and what the call binds to names: weights and labels."""
    bound = projection.tree.bound_names
    given = {name: array for name, array in named.items() if name in bound}
    arrays = {name: array for name, array in named.items() if name not in bound}
    if y is None and arrays:
        return arrays, given
    if y is None:
        raise TypeError("there is no array to project")
    return y, {**given, **arrays}  # a name too many is refused with the names that there are


def _radii(projection: Projection, radius: Any, bound: BoundTree) -> Array:
    checked = check_radii(_required(projection, radius), bound.batch, projection.tree)
    if projection.tree.root.norm == "simplex" and not np.all(np.isfinite(checked)):
        raise ValueError(
            "values that add up to an infinite radius are none of a simplex: its radius is finite"
        )
    radii = np.asarray(checked, np.float64)
    return radii if not bound.batch else np.broadcast_to(radii, bound.batch)


def _is_small(radius: Any) -> bool:
    """Whether it is a number that all types of arrays have room for."""
    return isinstance(radius, (int, float)) and radius <= LARGEST["float16"]


def _require_room(projection: Projection, call: Reading, radii: Array) -> None:
    """A ValueError for values of a simplex that its array's type has no room for: the only set
    whose values may grow, and none of them above the radius."""
    (y,) = call.arrays.values()
    dtype = y.dtype.name
    if not y.size or radii.max() <= LARGEST[dtype]:
        return
    from projgen import interpret_trees

    projection._finite(y)
    given = call.given
    found = interpret_trees.project_any(call.bound, call.arrays, radii, given.arrays, given.labels)
    (x,) = found.values()
    top = float(np.fmax.reduce(x, axis=None))
    if top > LARGEST[dtype]:
        raise ValueError(
            f"on this radius, up to {radii.max():g}, a simplex has values up to {top:g}, and those "
            f"of {dtype} end at {LARGEST[dtype]:g}; nothing was written"
        )


def _required(projection: Projection, radius: Any) -> Any:
    """The radius, or the count of the spec."""
    k = projection.tree.root.k
    if k is not None and radius is not None:
        raise TypeError(f"{projection.spec} says how many groups are kept: it takes no radius")
    if k is None and radius is None:
        raise TypeError("a radius is missing: the call is p(y, radius)")
    return radius if k is None else k


def counted(arm: BoundArm, entries: Array, labels: Mapping[str, Array]) -> Array:
    """The entries along the arm's counted axes; False where a block has none."""
    if not arm.arm.cuts:
        return entries
    from projgen.interpret_trees import entries_of

    index = entries_of(arm, labels)
    if entries.size == 0:
        return np.zeros(index.shape, bool)
    return np.asarray(entries.reshape(-1)[index] & (index >= 0))
