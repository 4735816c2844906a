"""Calls of trees over several arrays, or with norms and weights that a chain has not.

What is given is matched with the tree, checked as a whole, bound and handed to a backend; results
come back in the structure, and as the kinds of arrays, that were given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from projgen.arrays import (
    Array,
    Wrap,
    detached,
    view,
    written,
)
from projgen.dtypes import put
from projgen.on_host import OnHost
from projgen.operands import check_out, check_radii, overlap, same_memory
from projgen.shapes import require_gpu
from projgen.structure import Key, Place, at, dotted, flat, outline, places, rebuilt
from projgen.trees import BoundArm, BoundTree, bind_tree
from projgen.weights import Given, check_weights, read_given

if TYPE_CHECKING:
    from projgen.cuda.trees import OnDevice
    from projgen.info import Info
    from projgen.projection import Projection

REMEMBERED = 64  # forms of arguments, of one projection, that need no second look


@dataclass(slots=True)
class Ready:
    """A tree bound to arrays of certain forms, which have been found to be in order.

    ``reaches`` are where the bytes of each array begin and end, from its first element;
    ``out_reaches`` those of the results. ``made`` is the backend's: what it has made ready.
    """

    bound: BoundTree
    reaches: list[tuple[int, int]]
    out_reaches: list[tuple[int, int]]
    made: Any = None


@dataclass(frozen=True, slots=True)
class _Call:
    """The arrays of one call, and what is known of such."""

    ready: Ready
    operands: OnHost | OnDevice
    wraps: list[Wrap]
    given: Given

    @property
    def bound(self) -> BoundTree:
        return self.ready.bound

    @property
    def gpu(self) -> OnDevice | None:
        """The operands, if they lie on a GPU."""
        return None if isinstance(self.operands, OnHost) else self.operands

    @property
    def arrays(self) -> dict[Key, Array]:
        """By their keys; a TypeError if they lie on a GPU."""
        return self._host.arrays

    @property
    def targets(self) -> dict[Key, Array]:
        """Where results go, if `out` says so."""
        return self._host.outs

    @property
    def _host(self) -> OnHost:
        if not isinstance(self.operands, OnHost):
            raise TypeError("this is done on the CPU alone, and the arrays lie on a GPU: copy them")
        return self.operands


@dataclass(frozen=True, slots=True)
class Bound:
    """What a projection was about: arrays by their keys, their radii, and what had names."""

    tree: BoundTree
    arrays: Mapping[Key, Array]
    radii: Array
    given: Given


def bound(projection: Projection, y: Any, radius: Any, named: Mapping[str, Any]) -> Bound:
    """What a projection of these would be about; errors as it has them."""
    y, given = _split(projection, y, named)
    call = _read(projection, y, given, None, "project")
    return Bound(call.bound, call.arrays, _radii(projection, radius, call.bound), call.given)


def project(projection: Projection, y: Any, radius: Any, out: Any, named: Mapping[str, Any]) -> Any:
    """`y`, a structure of arrays, projected as one: into `out`, or a new structure."""
    y, given = _split(projection, y, named)
    call = _read(projection, y, given, out, "project")
    if call.gpu:
        results = call.gpu.project(projection, call.ready, _required(projection, radius))
        return rebuilt(y, results) if out is None else _written(call, out)
    radii = _radii(projection, radius, call.bound)
    targets = call.targets
    if out is None:
        targets = {key: np.empty_like(array) for key, array in call.arrays.items()}
    if projection.backend == "numpy":
        from projgen import interpret_trees

        for arm in call.bound.arms:
            projection._finite(call.arrays[arm.key], arm.arm.label)
        results = interpret_trees.project_any(
            call.bound, call.arrays, radii, call.given.arrays, call.given.labels
        )
        for key, x in results.items():
            put(targets[key], x)
    else:
        from projgen.cpu import trees

        trees.project(projection, call.ready, call.arrays, targets, radii, call.given)
    if out is not None:
        return _written(call, out)
    wrapped = zip(targets.items(), call.wraps, strict=True)
    return rebuilt(y, {key: wrap(x) for (key, x), wrap in wrapped})


def _written(call: _Call, out: Any) -> Any:
    for key in call.operands.arrays:
        written(at(out, key))
    return out


def with_info(
    projection: Projection, y: Any, radius: Any, out: Any, named: Mapping[str, Any]
) -> tuple[Any, Info]:
    """As `project`, and what that did: see `projgen.compare.with_info`."""
    from projgen.compare_trees import tree_info

    given_y, given = _split(projection, y, named)
    call = _read(projection, given_y, given, out, "project")
    if call.gpu:
        from projgen.cuda.compare_trees import with_info as on_gpu

        def read(arrays: Any) -> _Call:
            return _read(projection, arrays, given, None, "norm")

        def make() -> Any:
            return project(projection, y, radius, out, named)

        return on_gpu(projection, read(given_y), make, read, _required(projection, radius))
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
    call = _read(projection, y, given, None, "norm")
    if call.gpu:
        norms = call.gpu.norm(call.ready)
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
    call = _read(projection, x, given, None, "active")
    passes = projection.unmatched == "pass"
    results: dict[Key, Any] = dict.fromkeys(key for key, _ in flat(x)) if passes else {}
    for arm, wrap in zip(call.bound.arms, call.wraps, strict=True):
        if call.gpu:
            on_device = call.gpu.active(arm)
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


def _read(
    projection: Projection, y: Any, named: Mapping[str, Any], out: Any, purpose: str
) -> _Call:
    """The arrays of `y` and `out`, checked: for arrays like those of an earlier call of this
    purpose, what may have changed."""
    form = outline(y)
    place = projection._places.get(form)
    if place is None:
        place = places(projection.tree, y, projection.unmatched)
        place = remember(projection._places, form, place)
    operands = _operands(projection, at(y, place.arms[0].key))
    given = read_given(projection.tree, named)
    arrays: dict[Key, Array] = {}
    wraps: list[Wrap] = []
    targets: dict[Key, Array] = {}
    forms: list[Any] = [purpose, form, given.signature]
    for leaf in place.arms:
        given_array = at(y, leaf.key)
        with _Named(leaf, ""):
            array, wrap = operands.take(leaf, given_array)
        arrays[leaf.key] = array
        wraps.append(wrap)
        forms.append(operands.form(leaf))
        if out is None:
            continue
        with _Named(leaf, "out "):
            own = at(out, leaf.key)
            target = operands.take_out(leaf, own, own is given_array)
        targets[leaf.key] = target
        same = target is array or same_memory(array, target)
        forms.append((operands.form(leaf, out=True), same))
    known = tuple(forms)
    ready = projection._ready.get(known)
    if ready is None:
        forms[2] = given.lasting_signature
        ready = remember(
            projection._ready,
            tuple(forms),
            _checked(projection, place, operands, arrays, targets, given),
        )
    elif out is not None:
        for leaf, target in zip(place.arms, targets.values(), strict=True):
            if not target.flags.writeable:
                with _Named(leaf, "out "):
                    operands.check_out(leaf)
    if out is not None:
        _check_apart(ready, arrays, targets)
        given = given.apart_from(list(targets.values()))
    return _Call(ready, operands, wraps, given)


def _operands(projection: Projection, first: Any) -> OnHost | OnDevice:
    """Where a call's arrays are, by the first of them."""
    if type(first) is np.ndarray and projection.backend != "cuda":
        return OnHost()
    if projection._gpu(first) is None:
        return OnHost()
    require_gpu(projection.tree)
    from projgen.cuda.trees import OnDevice

    return OnDevice()


def _checked(
    projection: Projection,
    place: Place,
    operands: OnHost | OnDevice,
    arrays: Mapping[Key, Array],
    targets: Mapping[Key, Array],
    given: Given,
) -> Ready:
    """The tree bound to the arrays, after a look at all that depends on their forms alone."""
    for leaf in place.arms:
        with _Named(leaf, ""):
            operands.check(leaf)
    shapes = {key: array.shape for key, array in arrays.items()}
    bound = bind_tree(projection.tree, place, shapes, given.labels)
    if projection.unmatched == "error":
        check_weights(place, given.arrays)
    for leaf in place.arms if targets else ():
        with _Named(leaf, "out "):
            operands.check_out(leaf)
    return Ready(
        bound,
        [_reach(array) for array in arrays.values()],
        [_reach(target) for target in targets.values()],
    )


def remember(memory: dict[Any, Any], key: Any, value: Any) -> Any:
    if len(memory) >= REMEMBERED:
        memory.clear()
    memory[key] = value
    return value


def _reach(array: Array) -> tuple[int, int]:
    low, high = byte_bounds(array)
    return low - array.ctypes.data, high - array.ctypes.data


def _check_apart(ready: Ready, arrays: Mapping[Key, Array], targets: Mapping[Key, Array]) -> None:
    """A ValueError if a result would be written to where another array is."""
    spans: list[tuple[int, int]] = []
    reaches = zip(arrays.values(), ready.reaches, targets.values(), ready.out_reaches, strict=True)
    for array, (low, high), target, (out_low, out_high) in reaches:
        at, out_at = array.ctypes.data, target.ctypes.data
        spans.append((out_at + out_low, out_at + out_high))
        if at != out_at or array.strides != target.strides:
            spans.append((at + low, at + high))
    spans.sort()
    if all(stop <= start for (_, stop), (start, _) in pairwise(spans)):
        return  # nothing is near anything else
    for key, target in targets.items():
        if not same_memory(arrays[key], target):
            check_out(arrays[key], target)
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
    checked = check_radii(_required(projection, radius), bound.batch, projection.spec)
    if projection.tree.root.norm == "simplex" and not np.all(np.isfinite(checked)):
        raise ValueError(
            "values that add up to an infinite radius are none of a simplex: its radius is finite"
        )
    return np.broadcast_to(np.asarray(checked, np.float64), bound.batch)


def _required(projection: Projection, radius: Any) -> Any:
    """The radius, or the count of the spec."""
    k = projection.tree.root.k
    if k is not None and radius is not None:
        raise TypeError(f"{projection.spec} says how many groups are kept: it takes no radius")
    if k is None and radius is None:
        raise TypeError("a radius is missing: the call is p(y, radius)")
    return radius if k is None else k


class _Named:
    """Errors about one of several arrays say which."""

    __slots__ = ("_leaf", "_what")

    def __init__(self, leaf: Place, what: str) -> None:
        self._leaf = leaf
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, (TypeError, ValueError)) and self._leaf.key:
            raise type(error)(f"{self._what}{self._leaf.label}: {error}") from None


def counted(arm: BoundArm, entries: Array, labels: Mapping[str, Array]) -> Array:
    """The entries along the arm's counted axes; False where a block has none."""
    if not arm.arm.cuts:
        return entries
    from projgen.interpret_trees import entries_of

    index = entries_of(arm, labels)
    if entries.size == 0:
        return np.zeros(index.shape, bool)
    return np.asarray(entries.reshape(-1)[index] & (index >= 0))
