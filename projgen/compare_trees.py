"""An account of a projection of a whole tree: what `projgen.compare` is for a chain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from projgen import interpret_trees, measure
from projgen.arrays import Array
from projgen.compare import Level, Subject, summarise
from projgen.info import Info
from projgen.reading import Ready, remember
from projgen.structure import Key, Place
from projgen.trees import BoundArm, BoundTree
from projgen.weights import Given, is_weighted, level_weights

if TYPE_CHECKING:
    from projgen.projection import Projection


def tree_info(
    projection: Projection,
    bound: BoundTree,
    before: Mapping[Key, Array],
    after: Mapping[Key, Array],
    radii: Array,
    given: Given,
) -> Info:
    """What projecting the arrays `before` to those `after` did."""
    norms = _norms(projection, bound, before, given, after)
    norms_after = _norms(projection, bound, after, given, before)
    values = None
    if projection.backend != "numpy" and searches(bound, norms):
        from projgen.cpu import trees

        ready = _ready(projection, bound, before, after, given)
        values = trees.root_values(projection, ready, before, given, after)
    return account(bound, before, after, norms, norms_after, values, radii, given)


def account(
    bound: BoundTree,
    before: Mapping[Key, Array],
    after: Mapping[Key, Array],
    norms: Array,
    norms_after: Array,
    values: Array | None,
    radii: Array,
    given: Given,
    dtypes: Mapping[Key, str] | None = None,
) -> Info:
    """The same, of arrays with these norms; `values` are what the root aggregates, along the last
    axis, or None. `dtypes`: where the arrays themselves stand for others."""
    subjects = [_subject(arm, before[arm.key], after[arm.key], given, dtypes) for arm in bound.arms]
    return summarise(
        bound.tree,
        list(_levels(bound)),
        subjects,
        [subject.changes() for subject in subjects],
        norms,
        norms_after,
        _threshold(bound, before, norms, values, radii, given),
        radii,
    )


def searches(bound: BoundTree, norms: Array) -> bool:
    """Whether the root's threshold is found among values that a branch, or a level, gives it."""
    above = bool(bound.place.children)
    return bound.tree.root.norm == "l1" and above and not np.any(np.isinf(norms))


def _norms(
    projection: Projection,
    bound: BoundTree,
    arrays: Mapping[Key, Array],
    given: Given,
    like: Mapping[Key, Array],
) -> Array:
    if projection.backend == "numpy":
        return interpret_trees.norm(bound, arrays, given.arrays, given.labels)
    from projgen.cpu import trees

    ready = _ready(projection, bound, arrays, like, given)
    return trees.norms(projection, ready, arrays, given, like)


def _ready(
    projection: Projection,
    bound: BoundTree,
    arrays: Mapping[Key, Array],
    like: Mapping[Key, Array],
    given: Given,
) -> Ready:
    """The kernels from arrays laid out like `arrays` to such as `like`."""
    pairs = ((arrays[key], like[key]) for key in arrays)
    layouts = tuple((a.strides, a.flags.aligned, b.strides, b.flags.aligned) for a, b in pairs)
    found = projection._ready.get(("info", bound, layouts, given.signature))
    if found is None:
        known = "info", bound, layouts, given.lasting_signature
        found = remember(projection._ready, known, Ready(bound, [], []))
    return found


def _subject(
    arm: BoundArm, y: Array, x: Array, given: Given, dtypes: Mapping[Key, str] | None
) -> Subject:
    """An array whose axes are cut is put in order first, with zeros where blocks have no entry."""
    dtype, whole = y.dtype.name if dtypes is None else dtypes[arm.key], y.shape
    if arm.arm.cuts:
        index = interpret_trees.entries_of(arm, given.labels)
        y, x = (_gathered(array, index) for array in (y, x))
    return Subject(
        name=arm.arm.label if arm.key else "",
        y=y,
        dtype=dtype,
        read_y=y.__getitem__,
        read_x=x.__getitem__,
        owners=arm.arm.owners,
        sources=arm.arm.sources,
        whole=whole,
        depth=arm.arm.depth,
        labelled=lambda level: arm.filled(level, given.labels),
    )


def _gathered(array: Array, index: Array) -> Array:
    if array.size == 0:
        return np.zeros(index.shape, array.dtype)
    return np.where(index < 0, np.zeros((), array.dtype), array.reshape(-1)[np.maximum(index, 0)])


def _levels(bound: BoundTree) -> Iterator[Level]:
    """The nodes of the tree, parents first, each with its places."""
    number = {id(leaf): i for i, leaf in enumerate(bound.place.leaves())}
    places: dict[int, list[list[int]]] = {}
    depths: dict[int, int] = {}

    def visit(place: Place, depth: int) -> None:
        at = places.setdefault(id(place.node), [])
        at.append([number[id(leaf)] for leaf in place.leaves()])
        depths[id(place.node)] = depth
        for child in place.children:
            visit(child, depth + 1)

    visit(bound.place, 0)
    for node in bound.tree.levels:
        if id(node) in places:
            yield Level(node, depths[id(node)], places[id(node)])


@np.errstate(over="ignore", under="ignore", invalid="ignore")
def _threshold(
    bound: BoundTree,
    before: Mapping[Key, Array],
    norms: Array,
    values: Array | None,
    radii: Array,
    given: Given,
) -> Array:
    name, weighted = bound.tree.root.norm, is_weighted(bound.place)
    if name == "linf":
        return np.where(norms > radii, radii, measure.INSIDE[name])
    if name == "l2" and not weighted and not np.any(np.isinf(norms)):
        outside = norms > radii
        return np.where(outside, radii / np.where(outside, norms, 1.0), measure.INSIDE[name])
    if name != "l1":
        return np.full(norms.shape, np.nan)
    weights, exponent = None, np.zeros(norms.size, np.int64)
    if values is not None and weighted:
        weights = level_weights(bound, bound.place, 0, given.arrays)
    if values is None:
        values, weights, exponent = interpret_trees.root_values(
            bound, before, given.arrays, given.labels
        )
    scaled = np.ldexp(radii.reshape(-1), -exponent)
    totals = np.sum(values if weights is None else values * weights, axis=-1)
    found = measure.dense_threshold(values, weights, totals, scaled)
    return np.ldexp(found, exponent).reshape(norms.shape)


__all__ = ["account", "searches", "tree_info"]
