"""A tree and the arrays of one call to a bound tree: each array's arm, and how their values meet.

On the way up, the values of a node are an array with one axis for the batch and one for each level
above it: axes that one level reduces together are one axis here, in C order. A branch joins its
children's values along the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.arms import BATCH, Arm, Cut, bind_arm
from projgen.errors import quote
from projgen.structure import Key, Place
from projgen.tree import NormTree

Array = NDArray[Any]


@dataclass(frozen=True)
class BoundArm:
    """An arm and the shape of its array. ``extents`` are those of its counted axes: see `Arm`."""

    arm: Arm
    key: Key
    shape: tuple[int, ...]
    extents: tuple[int, ...]

    def owned(self, level: int) -> tuple[int, ...]:
        """The extents of the axes that a level, or the batch, has."""
        return tuple(self.extents[axis] for axis in self.arm.axes(level))

    def dims(self, level: int) -> tuple[int, ...]:
        """The shape of the values that level `level` aggregates: batch, then level by level."""
        return tuple(math.prod(self.owned(owner)) for owner in range(BATCH, level + 1))

    def order(self, level: int) -> tuple[int, ...]:
        """The axes of those values as the array has them, in the order of `dims`.

        Counted among the axes that levels up to `level`, and the batch, own.
        """
        present = [axis for axis, owner in enumerate(self.arm.owners) if owner <= level]
        ordered = sorted(present, key=lambda axis: (self.arm.owners[axis], axis))
        return tuple(present.index(axis) for axis in ordered)

    def natural(self, level: int) -> tuple[int, ...]:
        """The shape of those values with the axes as the array has them."""
        owners = enumerate(self.arm.owners)
        return tuple(self.extents[axis] for axis, owner in owners if owner <= level)

    @cached_property
    def _walks(self) -> dict[int, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        return {}

    def walk(self, level: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """`natural`, `order` and `dims`, which a call with weights needs each time."""
        found = self._walks.get(level)
        if found is None:
            found = self._walks[level] = self.natural(level), self.order(level), self.dims(level)
        return found

    def filled(self, level: int, labels: Mapping[str, Array]) -> Array:
        """Which groups of a level have entries: all but those whose number no label is. Over the
        axes that neither this level nor one beneath it reduces."""
        found = np.ones(self.natural(level - 1), bool)
        for cut in self.arm.cuts:
            at = self.arm.number_axis(cut)
            if cut.groups is not None and self.arm.owners[at] < level:
                after = sum(owner < level for owner in self.arm.owners[at + 1 :])
                found &= (np.bincount(labels[cut.groups]) > 0).reshape(-1, *[1] * after)
        return found

    def axis_of_numbers(self, level: int) -> int | None:
        """Which axis of the values that level `level` aggregates, as the array has them, counts
        groups with labels; None without."""
        for cut in self.arm.cuts:
            if cut.groups is not None:
                owners = self.arm.owners[: self.arm.number_axis(cut)]
                return sum(owner <= level for owner in owners)
        return None

    def is_ragged(self, cut: Cut) -> bool:
        return bool(cut.block) and self.shape[cut.axis] % cut.block != 0


@dataclass(frozen=True, eq=False)
class BoundTree:
    """A tree over the arrays of one call. ``arms`` are in the order of ``place.leaves()``."""

    tree: NormTree
    place: Place
    arms: tuple[BoundArm, ...]

    @cached_property
    def batch(self) -> tuple[int, ...]:
        """The shape of the batch: one projection for each index."""
        return self.arms[0].owned(BATCH)

    @cached_property
    def arm_of(self) -> Mapping[int, BoundArm]:
        """The arm of each leaf, by the leaf's ``id``."""
        leaves = self.place.leaves()
        return {id(leaf): arm for leaf, arm in zip(leaves, self.arms, strict=True)}

    def arms_of(self, place: Place) -> list[BoundArm]:
        return [self.arm_of[id(leaf)] for leaf in place.leaves()]


def bind_tree(
    tree: NormTree,
    place: Place,
    shapes: Mapping[Key, tuple[int, ...]],
    labels: Mapping[str, Array] | None = None,
) -> BoundTree:
    """Bind each array of `shapes` to its path of `tree`; `labels` are the group labels by name.

    A SpecError if a path does not fit its array, a ValueError if arrays that meet in a branch do
    not fit one another.
    """
    arms: list[BoundArm] = []

    def visit(at: Place, path: tuple[Any, ...]) -> None:
        nodes = (*path, at.node)
        if at.children:
            for child in at.children:
                visit(child, nodes)
            return
        shape = shapes[at.key]
        arm = bind_arm(nodes, len(shape), at.label, shape)
        arms.append(BoundArm(arm, at.key, shape, _extents(arm, shape, labels or {})))

    visit(place, ())
    bound = BoundTree(tree, place, tuple(arms))
    _check_fit(bound, place, 0)
    return bound


def _extents(arm: Arm, shape: Sequence[int], labels: Mapping[str, Array]) -> tuple[int, ...]:
    extents: list[int] = []
    for axis, source in enumerate(arm.sources):
        cut = arm.cut_of(axis)
        if cut is None:
            extents.append(shape[source])
        elif axis != arm.number_axis(cut):
            extents.append(longest_block(cut, shape[source], labels))
        elif cut.groups is None:
            extents.append(-(-shape[source] // cut.block))
        else:
            extents.append(_count(labels[cut.groups], cut.groups, shape[source], arm, source))
    return tuple(extents)


def longest_block(cut: Cut, extent: int, labels: Mapping[str, Array]) -> int:
    """How many places the longest block, or group, of an axis has."""
    if cut.groups is None:
        return min(cut.block, extent)
    return int(np.bincount(labels[cut.groups]).max(initial=0))


def _count(labels: Array, name: str, extent: int, arm: Arm, axis: int) -> int:
    """How many groups the labels make."""
    if labels.shape != (extent,):
        raise ValueError(
            f"{quote(name)} has shape {labels.shape}: it takes one label for each of the {extent} "
            f"places along axis {axis} of {arm.label}"
        )
    return int(labels.max()) + 1 if labels.size else 0


def _check_fit(bound: BoundTree, place: Place, level: int) -> None:
    """Whether the children of each branch agree along the axes of the levels above it."""
    if len(place.children) > 1:
        arms = bound.arms_of(place)
        first = arms[0]
        for arm in arms[1:]:
            for owner in range(BATCH, level):
                if arm.owned(owner) != first.owned(owner):
                    above = "the batch" if owner == BATCH else quote(arm.arm.nodes[owner].norm)
                    raise ValueError(
                        f"{quote(str(place.node))} joins {first.arm.label} and {arm.arm.label}, "
                        f"so they must have the same axes for {above} above it: their extents are "
                        f"{first.owned(owner)} and {arm.owned(owner)}. Give axes explicitly: what "
                        "no level above takes belongs to the branch"
                    )
    for child in place.children:
        _check_fit(bound, child, level + 1)
