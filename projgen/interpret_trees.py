"""The reference for whole trees: several arrays, weights, blocks and every norm, in plain NumPy.

Like `projgen.interpret`, which does the same for the chain of one array, it walks the tree in
float64 and shares no code with the kernels. Blocks and groups of given sizes are rows of an index
of the array's entries, filled up with zeros, which change no norm and stay zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.operands import is_finite
from projgen.references import REFERENCES
from projgen.structure import Key, Place
from projgen.trees import BoundArm, BoundTree, longest_block
from projgen.weights import is_weighted, level_weights

Array = NDArray[Any]

_TOP = 900  # the largest magnitude becomes about 2**900: 2**100 of them still have a finite sum
_EMPTY = -1  # in an index: no entry of the array


@np.errstate(over="ignore", under="ignore")
def norm(
    bound: BoundTree,
    arrays: Mapping[Key, Any],
    given: Mapping[str, Any],
    labels: Mapping[str, Array],
) -> Array:
    """The tree's norm of `arrays`, for each index of the batch. See `project`."""
    walk = Walk(bound, arrays, given, labels)
    values = walk.value(bound.place, 0)
    scaled: Array = values if is_counted(bound) else np.ldexp(values, walk.exponent)
    return scaled.reshape(bound.batch)


@np.errstate(over="ignore", under="ignore")
def project(
    bound: BoundTree,
    arrays: Mapping[Key, Any],
    radius: Any,
    given: Mapping[str, Any],
    labels: Mapping[str, Array],
) -> dict[Key, Array]:
    """`arrays` projected together: new float64 arrays by the keys of `bound`'s arms.

    `radius` broadcasts over the batch; `given` are the weights by name, `labels` those of groups.
    """
    walk = Walk(bound, arrays, given, labels)
    radii = np.broadcast_to(np.asarray(radius, np.float64), bound.batch).reshape(-1)
    if bound.tree.root.norm == "simplex":  # whose radius may be far above its values
        walk.exponent = np.maximum(walk.exponent, np.frexp(radii)[1] - _TOP)
    scaled = radii if is_counted(bound) else np.ldexp(radii, -walk.exponent)
    results: dict[Key, Array] = {}
    walk.project(bound.place, 0, scaled, results)
    return results


def project_any(
    bound: BoundTree,
    arrays: Mapping[Key, Any],
    radius: Any,
    given: Mapping[str, Any],
    labels: Mapping[str, Array],
) -> dict[Key, Array]:
    """As `project`; an index of the batch at which an array is not finite becomes NaN in all."""
    finite = finite_entries(bound, arrays)
    tame = {arm.key: np.where(spread(arm, finite), arrays[arm.key], 0.0) for arm in bound.arms}
    results = project(bound, tame, radius, given, labels)
    return {arm.key: np.where(spread(arm, finite), results[arm.key], np.nan) for arm in bound.arms}


@np.errstate(over="ignore", under="ignore")
def root_values(
    bound: BoundTree,
    arrays: Mapping[Key, Any],
    given: Mapping[str, Any],
    labels: Mapping[str, Array],
) -> tuple[Array, Array | None, Array]:
    """What the root aggregates, its weights, and for each index of the batch an exponent.

    The values, along the last axis, are to be multiplied with 2 to the exponent.
    """
    walk = Walk(bound, arrays, given, labels)
    options = walk.options(bound.place, 0)
    exponent = np.zeros_like(walk.exponent) if is_counted(bound) else walk.exponent
    return walk.inner(bound.place, 0), options.get("weights"), exponent


def is_counted(bound: BoundTree) -> bool:
    """Whether the tree's value is a count, which is not in the arrays' units."""
    return any(node.norm == "l0" for node in bound.tree.levels)


@dataclass
class Walk:
    """One walk of a tree: up for its values, down for its projection."""

    bound: BoundTree
    arrays: Mapping[Key, Any]
    given: Mapping[str, Any]
    labels: Mapping[str, Array]

    def __post_init__(self) -> None:
        signed: list[Array] = []
        for arm in self.bound.arms:
            own = self.signed(arm)
            entries = arm.dims(-1)[0]
            signed.append(own.reshape(entries, own.size // max(1, entries)))
        finite = [np.where(np.isfinite(each), np.abs(each), 0.0) for each in signed]
        tops = [each.max(axis=1, initial=0.0) for each in finite]
        room = max(_TOP - self._reach(self.bound.place, 0), -_TOP)
        self.exponent = np.frexp(np.max(tops, axis=0))[1] - room  # for each index of the batch

    def _reach(self, place: Place, level: int) -> int:
        """Weights take values up by no more than 2 to this, all levels together."""
        beneath = max((self._reach(child, level + 1) for child in place.children), default=0)
        if not is_weighted(place):
            return beneath
        weights = level_weights(self.bound, place, level, self.given)
        return beneath + max(0, int(np.frexp(weights.max(initial=0.0))[1]))

    def value(self, place: Place, level: int) -> Array:
        """Upward: the norm of each of the level's groups."""
        axes, options = (-1,), self.options(place, level)
        a = self.inner(place, level)
        return np.asarray(REFERENCES[place.node.norm].norm(a, axes, **options))[..., 0]

    def project(self, place: Place, level: int, radius: Array, results: dict[Key, Array]) -> None:
        """Downward: the level shares its radius out among the groups of its children."""
        a = self.inner(place, level)
        _, u = self.projected(place, level, a, radius[..., None])
        if not place.children:
            arm = self.bound.arm_of[id(place)]
            results[arm.key] = self._restored(arm, a, u)
            return
        start = 0
        for child in place.children:
            stop = start + self.bound.arms_of(child)[0].dims(level)[-1]
            self.project(child, level + 1, u[..., start:stop], results)
            start = stop

    def projected(self, place: Place, level: int, a: Array, radius: Array) -> tuple[Array, Array]:
        """The groups' values, and the groups `a` of a level on their radii."""
        axes, options = (-1,), self.options(place, level)
        reference = REFERENCES[place.node.norm]
        value = np.asarray(reference.norm(a, axes, **options))
        inside = value <= radius
        if place.node.norm == "simplex":
            inside = np.zeros_like(inside)
        return value, np.where(inside, a, reference.ball(a, axes, radius, **options))

    def inner(self, place: Place, level: int) -> Array:
        """What the level aggregates: its children's values, or at a leaf its array's entries."""
        if place.children:
            values = [self.value(child, level + 1) for child in place.children]
            return np.concatenate(values, axis=-1)
        arm = self.bound.arm_of[id(place)]
        signed = self._scaled(arm, self.signed(arm))
        return signed if place.node.norm == "simplex" else np.abs(signed)

    def options(self, place: Place, level: int) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if place.node.p is not None:
            options["p"] = place.node.p
        if is_weighted(place):
            weights = level_weights(self.bound, place, level, self.given)
            if not place.children:
                weights = self.arranged(self.bound.arm_of[id(place)], weights, 1.0)
            options["weights"] = weights
        return options

    def signed(self, arm: BoundArm) -> Array:
        """The arm's entries in the order of its levels; those below zero are zero if need be."""
        array = np.asarray(self.arrays[arm.key], np.float64)
        simplex = arm.arm.nodes[-1].norm == "simplex"
        if _is_nonneg(arm) and not simplex:
            array = np.maximum(array, 0.0)
        return self.arranged(arm, array, -np.inf if simplex else 0.0)

    def _is_scaled(self, arm: BoundArm) -> bool:
        """Not where the array is counted, nor beside counts, where radii stay as they are."""
        norms = [node.norm for node in arm.arm.nodes]
        return "l0" in norms[:-1] or not is_counted(self.bound)

    def _scaled(self, arm: BoundArm, a: Array) -> Array:
        if not self._is_scaled(arm):
            return a
        exponent = self.exponent.reshape(-1, *(1 for _ in arm.arm.nodes))
        scaled: Array = np.ldexp(a, -exponent)
        return scaled

    def arranged(self, arm: BoundArm, array: Array, filling: float) -> Array:
        index = self.index(arm)
        if array.size == 0:
            return np.full(index.shape, filling)
        return np.where(index == _EMPTY, filling, array.reshape(-1)[np.maximum(index, 0)])

    def _restored(self, arm: BoundArm, a: Array, u: Array) -> Array:
        """The array with magnitudes `u` where it had `a`, and its own signs."""
        array = np.asarray(self.arrays[arm.key], np.float64)
        simplex = arm.arm.nodes[-1].norm == "simplex"
        kept = np.maximum(array, 0.0) if _is_nonneg(arm) and not simplex else array
        index = self.index(arm)
        real = index != _EMPTY
        exponent = np.broadcast_to(
            self.exponent.reshape(-1, *(1 for _ in arm.arm.nodes)), index.shape
        )
        back = np.ldexp(u, exponent) if self._is_scaled(arm) else u
        x = kept.copy().reshape(-1)
        entries = x[index[real]]
        changed = np.broadcast_to(u != a, index.shape)[real]
        new = back[real] if simplex else np.copysign(back[real], entries)
        x[index[real]] = np.where(changed, new, entries)
        return x.reshape(array.shape)

    def index(self, arm: BoundArm) -> NDArray[np.int64]:
        """Which entry of the array stands where, in the order of `BoundArm.dims`."""
        leaf = arm.arm.depth - 1
        index = entries_of(arm, self.labels)
        return index.transpose(arm.order(leaf)).reshape(arm.dims(leaf))


def entries_of(arm: BoundArm, labels: Mapping[str, Array]) -> NDArray[np.int64]:
    """Which entry of its array stands where along an arm's counted axes; -1 for none."""
    index = np.arange(int(np.prod(arm.shape, dtype=np.int64))).reshape(arm.shape)
    for axis in reversed(range(len(arm.shape))):
        cut = next((cut for cut in arm.arm.cuts if cut.axis == axis), None)
        if cut is None:
            continue
        extent = arm.shape[axis]
        numbers = np.arange(extent) // cut.block if cut.block else labels[cut.groups or ""]
        count = int(numbers.max(initial=-1)) + 1
        table = np.full((count, longest_block(cut, extent, labels)), _EMPTY, np.int64)
        order = np.argsort(numbers, kind="stable")
        groups = numbers[order]
        starts = np.searchsorted(groups, np.arange(count))
        table[groups, np.arange(extent) - starts[groups]] = order
        taken = np.take(index, np.maximum(table, 0), axis=axis)
        shape = [1] * index.ndim
        shape[axis : axis + 1] = table.shape
        index = np.where(table.reshape(shape) == _EMPTY, _EMPTY, taken)
    return index


def _is_nonneg(arm: BoundArm) -> bool:
    return any(node.nonneg for node in arm.arm.nodes)


def finite_entries(bound: BoundTree, arrays: Mapping[Key, Array]) -> Array:
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


def spread(arm: BoundArm, entries: Array) -> Array:
    """What holds for each index of the batch, in a shape that broadcasts over the arm's array."""
    if any(cut.axis in arm.arm.batch for cut in arm.arm.cuts):
        return np.ones((), bool)
    shape = [arm.shape[axis] if axis in arm.arm.batch else 1 for axis in range(len(arm.shape))]
    return entries.reshape(shape)
