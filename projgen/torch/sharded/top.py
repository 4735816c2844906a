"""What is above the seams: a small problem in dense values, which every rank solves alike.

Its tree has the levels above, and each array's seam in the place of a leaf: the values are arrays
with an axis for the batch, one for each level above, and one of length 1, along which ``linf``
leaves them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from projgen.arms import BATCH
from projgen.projection import Projection
from projgen.structure import Key, Place
from projgen.torch.sharded.wire import Values
from projgen.tree import Node, NormTree
from projgen.trees import BoundArm


class Top:
    """The levels above the seams, at the ``levels`` of the arrays with those keys."""

    def __init__(self, place: Place, levels: Mapping[Key, int], threads: int | None) -> None:
        self._keys: list[tuple[Key, tuple[str, ...]]] = []
        node = self._node(place, 0, (), levels)
        self._projection = Projection(NormTree(node), "cpu", threads, None)

    def _node(
        self, place: Place, depth: int, path: tuple[str, ...], levels: Mapping[Key, int]
    ) -> Node:
        """The node of a place; `path` leads to its values, among those that the tree takes."""
        own = place.node
        if depth == _seam(place, levels):
            self._keys.append((next(place.leaves()).key, path))
            return Node("linf", (depth + 1,), weight=own.weight)
        names = [f"c{number}" if own.is_branch else None for number in range(len(place.children))]
        made = tuple(
            replace(self._node(child, depth + 1, (*path, *filter(None, [name])), levels), name=name)
            for child, name in zip(place.children, names, strict=True)
        )
        return replace(own, axis=(depth + 1,), children=made, name=None, pattern=None, block=None)

    def norms(self, values: Mapping[Key, Values]) -> Values:
        """The norm of each index of the batch."""
        return np.asarray(self._projection.norm(self._structure(values)))

    def radii(self, values: Mapping[Key, Values], radius: Values) -> dict[Key, Values]:
        """What each value is left with; a spec with a count takes no radius."""
        counts = self._projection.tree.root.k is not None
        made = self._projection(self._structure(values), None if counts else radius)
        return {key: _at(made, path) for key, path in self._keys}

    def _structure(self, values: Mapping[Key, Values]) -> Any:
        if not self._keys[0][1]:
            return values[self._keys[0][0]]
        structure: dict[str, Any] = {}
        for key, (*path, last) in self._keys:
            inner = structure
            for name in path:
                inner = inner.setdefault(name, {})
            inner[last] = values[key]
        return structure


def arranged(arm: BoundArm, level: int, values: Values) -> Values:
    """Values above a seam at `level`, which lie by the array's axes, by batch and level."""
    present = [owner for owner in arm.arm.owners if owner < level]
    dims = [
        math.prod(n for n, owner in zip(values.shape, present, strict=True) if owner == own)
        for own in range(BATCH, level)
    ]
    return np.ascontiguousarray(values.transpose(arm.order(level - 1))).reshape(*dims, 1)


def by_axis(arm: BoundArm, level: int, values: Values, shape: Sequence[int]) -> Values:
    """The way back from `arranged`, to values of `shape`."""
    order = arm.order(level - 1)
    return values.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def _seam(place: Place, levels: Mapping[Key, int]) -> int | None:
    """The level of the seam beneath a place; None if several arrays are there."""
    leaves = place.arms
    return levels[leaves[0].key] if len(leaves) == 1 and not _branches(place) else None


def _branches(place: Place) -> bool:
    return any(below.node.is_branch for below in place.walk())


def _at(made: Any, path: Sequence[str]) -> Any:
    for name in path:
        made = made[name]
    return made


__all__ = ["Top", "arranged", "by_axis"]
