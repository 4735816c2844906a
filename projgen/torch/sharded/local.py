"""What a rank does with its shard: the levels from a seam down, swept once up and once down."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from projgen.arms import Arm
from projgen.arrays import Array
from projgen.cpu.compose import Composition
from projgen.operands import same_directions, same_memory, walkable
from projgen.structure import Place, places
from projgen.torch.sharded.wire import Values
from projgen.tree import Node, NormTree
from projgen.trees import BoundTree, bind_tree

REMEMBERED = 256  # forms of shards whose kernels are kept ready


class Shard:
    """A rank's shard of an array, for one call.

    ``values`` are those of the groups of the seam's level, or of their pieces on this rank: an
    array over the axes that the levels above it and the batch have, in the array's order.
    """

    def __init__(self, nodes: NormTree, y: Array, out: Array | None, threads: int) -> None:
        """Sweep `y`; an `out` of None says that the result goes nowhere. An OutOfRangeError for
        values that are not finite, or that sums have no room for."""
        self.y = y
        self._out = y if out is None else out
        self._work = y
        self._begun: Any = None
        self._composition: Composition | None = None
        if not y.size:
            self.values: Values = np.zeros(_bound(nodes, y).batch)
            return
        if not (walkable(y) and walkable(self._out) and same_directions(y, self._out)):
            self._work = np.array(y, order="C")
        self._in_place = self._work is not y or same_memory(y, self._out)
        target = None if self._in_place else self._out
        self._composition = _composition(nodes, self._work, target, threads)
        self._begun, norms = self._composition.begin([self._work])
        self.values = norms.reshape(self._composition.bound.batch)

    def write(self, radii: Values) -> None:
        """Project the shard, with a radius for each of its `values`."""
        if self._composition is None:
            return
        begun, self._begun = self._begun, None
        own = np.ascontiguousarray(radii, np.float64).reshape(-1)
        target = None if self._in_place else self._out
        self._composition.end(begun, [self._work], [target], own)
        if self._work is not self.y:
            np.copyto(self._out, self._work)

    def abandon(self) -> None:
        """Give back what a sweep has begun and `write` has not ended."""
        if self._composition is not None and self._begun is not None:
            self._composition.abandon(self._begun)
            self._begun = None


@lru_cache(maxsize=1024)
def local_tree(arm: Arm, level: int) -> NormTree:
    """The levels of an arm from `level` down, with their axes; what is above is a batch."""
    node: Node | None = None
    for number in reversed(range(level, arm.depth)):
        own = arm.nodes[number]
        axes = tuple(dict.fromkeys(arm.sources[axis] for axis in arm.axes(number)))
        node = replace(
            own,
            axis=own.axis if own.block else axes,
            children=(node,) if node else (),
            name=None,
            pattern=None,
            weight=1.0,
        )
    assert node is not None
    return NormTree(node)


_ready: dict[Hashable, Composition] = {}


def _composition(tree: NormTree, y: Array, out: Array | None, threads: int) -> Composition:
    """The kernels for shards like these."""
    out_strides = None if out is None else out.strides
    key = tree, y.dtype, y.shape, y.strides, out_strides, threads
    found = _ready.get(key)
    if found is None:
        found = Composition(_bound(tree, y), [y], [out], {}, {}, threads, False)
        if len(_ready) >= REMEMBERED:
            _ready.clear()
        _ready[key] = found
    return found


def _bound(tree: NormTree, y: Array) -> BoundTree:
    place: Place = places(tree, y)
    return bind_tree(tree, place, {(): y.shape})


__all__ = ["Shard", "local_tree"]
