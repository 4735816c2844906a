"""Calls of trees over several arrays, or with norms and weights that a chain has not.

What is given is matched with the tree, checked as a whole, bound and handed to a backend; results
come back in the structure, and as the kinds of arrays, that were given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from projgen.arrays import Array, Wrap, check_dtype, on_gpu, view, writable_view, written
from projgen.dtypes import put
from projgen.operands import check_out, check_radii, overlap, same_memory
from projgen.structure import Key, Place, at, dotted, outline, places, rebuilt
from projgen.trees import BoundArm, BoundTree, bind_tree
from projgen.weights import Given, read_given

if TYPE_CHECKING:
    from projgen.projection import Projection

REMEMBERED = 64  # forms of arguments, of one projection, that need no second look


@dataclass(frozen=True, slots=True)
class _Call:
    """The arrays of one call, by their keys, and the tree that is bound to them."""

    y: Any
    bound: BoundTree
    arrays: dict[Key, Array]
    wraps: dict[Key, Wrap]
    given: Given


def project(projection: Projection, y: Any, radius: Any, out: Any, named: Mapping[str, Any]) -> Any:
    """`y`, a structure of arrays, projected as one: into `out`, or a new structure."""
    y, given = _split(projection, y, named)
    call = _read(projection, y, given)
    radii = _radii(projection, radius, call.bound)
    if out is None:
        targets = {key: np.empty_like(array) for key, array in call.arrays.items()}
    else:
        targets = _targets(call, y, out)
    if projection.backend == "numpy":
        from projgen import interpret_trees

        for arm in call.bound.arms:
            projection._finite(call.arrays[arm.key], arm.arm.label)
        results = interpret_trees.project(
            call.bound, call.arrays, radii, call.given.arrays, call.given.labels
        )
        for key, x in results.items():
            put(targets[key], x)
    else:
        from projgen.cpu import trees

        trees.project(projection, call.bound, call.arrays, targets, radii, call.given)
    if out is not None:
        for key in call.arrays:
            written(at(out, key))
        return out
    return rebuilt(y, {key: call.wraps[key](x) for key, x in targets.items()})


def norm(projection: Projection, y: Any, named: Mapping[str, Any]) -> Any:
    """The tree's norm of `y`: a float, or an array over the batch."""
    y, given = _split(projection, y, named)
    call = _read(projection, y, given)
    if projection.backend == "numpy":
        from projgen import interpret_trees

        for arm in call.bound.arms:
            projection._finite(call.arrays[arm.key], arm.arm.label)
        norms = interpret_trees.norm(call.bound, call.arrays, call.given.arrays, call.given.labels)
    else:
        from projgen.cpu import trees

        norms = trees.norms(projection, call.bound, call.arrays, call.given)
    if not call.bound.batch:
        return float(norms)
    wrap = next(iter(call.wraps.values()))
    return wrap(norms)


def active(projection: Projection, x: Any, named: Mapping[str, Any]) -> Any:
    """For each array, which groups of its leaf level are not all zero."""
    x, given = _split(projection, x, named)
    call = _read(projection, x, given)
    results: dict[Key, Any] = {}
    for arm in call.bound.arms:
        nonzero = _counted(arm, call.arrays[arm.key] != 0, call.given.labels)
        axes = arm.arm.axes(arm.arm.depth - 1)
        found = np.any(nonzero, axis=axes)
        wrap = call.wraps[arm.key]
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


def _read(projection: Projection, y: Any, named: Mapping[str, Any]) -> _Call:
    tree = projection.tree
    given = read_given(tree, named)
    form = outline(y)
    place = projection._places.get(form)
    if place is None:
        place = _remember(projection._places, form, places(tree, y, projection.unmatched))
    arrays: dict[Key, Array] = {}
    wraps: dict[Key, Wrap] = {}
    for arm in place.arms:
        array = at(y, arm.key)
        with _named(arm):
            if on_gpu(array):
                raise TypeError("trees beyond chains of l1, l2 and linf run on the CPU: use .cpu()")
            arrays[arm.key], wraps[arm.key] = view(array)
            check_dtype(arrays[arm.key])
    shapes = {key: array.shape for key, array in arrays.items()}
    shape = form, tuple(shapes.values()), given.signature
    bound = projection._bound.get(shape)
    if bound is None:
        made = bind_tree(tree, place, shapes, given.labels)
        bound = _remember(projection._bound, shape, made)
    return _Call(y, bound, arrays, wraps, given)


def _remember(memory: dict[Any, Any], key: Any, value: Any) -> Any:
    if len(memory) >= REMEMBERED:
        memory.clear()
    memory[key] = value
    return value


def _targets(call: _Call, y: Any, out: Any) -> dict[Key, Array]:
    """Where the results go: checked against all that is read and written."""
    targets: dict[Key, Array] = {}
    for leaf in call.bound.place.arms:
        key = leaf.key
        with _named(leaf, "out"):
            own = at(out, key)
            array = call.arrays[key]
            targets[key] = array if own is at(y, key) else writable_view(own)
            check_out(array, targets[key])
    _check_apart(call.arrays, targets)
    return targets


def _check_apart(arrays: Mapping[Key, Array], targets: Mapping[Key, Array]) -> None:
    """A ValueError if a result would be written to where another array is."""
    spans = [(*byte_bounds(target), True, key) for key, target in targets.items()]
    spans += [
        (*byte_bounds(array), False, key)
        for key, array in arrays.items()
        if not same_memory(array, targets[key])
    ]
    spans.sort(key=lambda span: span[0])
    reach = 0
    for start, stop, *_ in spans:
        if start < reach:
            break
        reach = max(reach, stop)
    else:
        return  # nothing is near anything else
    for key, target in targets.items():
        for other, array in arrays.items():
            if other != key and overlap(array, target):
                raise ValueError(
                    f"out {dotted(key)} shares memory with y {dotted(other)}: the result of one "
                    "array would be written over another"
                )
        for other, second in targets.items():
            if other != key and overlap(second, target):
                raise ValueError(f"out {dotted(key)} and out {dotted(other)} share memory")


def _radii(projection: Projection, radius: Any, bound: BoundTree) -> Array:
    k = projection.tree.root.k
    if k is not None and radius is not None:
        raise TypeError(f"{projection.spec} says how many groups are kept: it takes no radius")
    if k is None and radius is None:
        raise TypeError("a radius is missing: the call is p(y, radius)")
    checked = check_radii(radius if k is None else k, bound.batch, projection.spec)
    return np.array(np.broadcast_to(checked, bound.batch))


@contextmanager
def _named(leaf: Place, what: str = "") -> Iterator[None]:
    """Errors about one of several arrays say which."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if not leaf.key:
            raise
        subject = f"{what} {leaf.label}" if what else leaf.label
        raise type(error)(f"{subject}: {error}") from None


def _counted(arm: BoundArm, entries: Array, labels: Mapping[str, Array]) -> Array:
    """The entries along the arm's counted axes; False where a block has none."""
    if not arm.arm.cuts:
        return entries
    from projgen.interpret_trees import entries_of

    index = entries_of(arm, labels)
    if entries.size == 0:
        return np.zeros(index.shape, bool)
    return np.asarray(entries.reshape(-1)[index] & (index >= 0))
