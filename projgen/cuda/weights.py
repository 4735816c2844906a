"""The weights that a call binds to names of the spec, as kernels on a GPU read them.

Those that lie on the GPU are not read by the host: one that is negative or not finite makes its
group NaN. Others are checked, and copied there for each call. All is done on CuPy's current stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.arrays import on_gpu
from projgen.cuda.arrays import DeviceArray, view
from projgen.cuda.call import on_stream, wait_for
from projgen.cuda.cupy import cupy
from projgen.errors import quote
from projgen.parts import Part
from projgen.structure import Place, flat, rebuilt
from projgen.trees import BoundArm, BoundTree
from projgen.weights import (
    Given,
    fitted,
    given_to,
    leaf_weights,
    level_weights,
    misfit,
    of_child,
    ordered,
)


class OnGpu:
    """What a call binds to the names of a spec, for kernels: weights are found once."""

    def __init__(self, bound: BoundTree, given: Given) -> None:
        self._bound, self._given = bound, given
        self._found: dict[int, Any] = {}

    def labels_of(self, place: Place) -> NDArray[np.int64] | None:
        name = place.node.groups
        return None if name is None else self._given.labels[name]

    def of_leaf(self, place: Place) -> DeviceArray:
        """Weights of its values: float32 or float64, of the shape of its array."""
        found: DeviceArray | None = self._found.get(id(place))
        if found is None:
            found = self._found[id(place)] = _of_leaf(self._bound, place, self._given.arrays)
        return found

    def of_level(self, place: Place, level: int) -> Any:
        """Weights of the values that a level above the leaves joins: a CuPy array of float64, in
        the shape of `BoundArm.dims`."""
        found = self._found.get(id(place))
        if found is None:
            found = _of_level(self._bound, place, level, self._given.arrays)
            self._found[id(place)] = found
        return found

    def find(self, root: Part) -> None:
        """Look at all that names bind in a tree of parts: what is wrong is told before anything is
        done."""
        for part in root.walk():
            if part.last.node.weights is None:
                continue
            if part.arm is not None:
                self.of_leaf(part.last)
            else:
                self.of_level(part.last, part.levels[-1])

    @property
    def arrays(self) -> list[Any]:
        """What has been found."""
        return list(self._found.values())

    def wait(self, y: DeviceArray) -> set[int | None]:
        """Let the stream of `y` wait for those of weights on the GPU, which are told; a ValueError
        for another GPU."""
        streams: set[int | None] = set()
        for name, weights in self._given.arrays.items():
            for _, own in flat(weights):
                if on_gpu(own):
                    array = _viewed(own, name)
                    if array.device != y.device:
                        raise ValueError(
                            f"{quote(name)} is on GPU {array.device}, and y on GPU {y.device}"
                        )
                    wait_for(y.device, y.stream, array.stream)
                    streams.add(array.stream)
        return streams


def on_host(given: Given) -> Given:
    """With copies on the host of those that are not there. Their streams wait."""

    def sent(weights: Any) -> Any:
        if not on_gpu(weights):
            return weights
        array = view(weights)
        with on_stream(array.device, array.stream):
            return array.read((...,))

    arrays = {
        name: rebuilt(own, {key: sent(weights) for key, weights in flat(own)})
        for name, own in given.arrays.items()
    }
    return replace(given, arrays=arrays)


def copied(weights: Any) -> Any:
    """A CuPy array, made on CuPy's current stream, which waits for that of the weights."""
    array = view(weights)
    wait_for(array.device, None, array.stream)
    with on_stream(array.device, None):
        return array.copy().cupy()


def _of_leaf(bound: BoundTree, place: Place, given: Mapping[str, Any]) -> DeviceArray:
    """How they lie follows from the shape and dtype that were given."""
    cp = cupy()
    name, shape = place.node.weights, bound.arms_of(place)[0].shape
    own = given_to(name, given)
    if not on_gpu(own):
        return view(cp.asarray(leaf_weights(bound, place, given)))
    array = view(cp.ascontiguousarray(_floats(own, name)))
    return replace(array, ghost=_fitted(array.ghost, shape, name))


def _of_level(bound: BoundTree, place: Place, level: int, given: Mapping[str, Any]) -> Any:
    cp = cupy()
    name = place.node.weights
    if name is None or not any(on_gpu(own) for _, own in flat(given_to(name, given))):
        return cp.asarray(level_weights(bound, place, level, given))
    if not place.node.is_branch:
        return cp.ascontiguousarray(_ordered(given[name], bound.arms_of(place)[0], level, name))
    *outer, _ = bound.arms_of(place)[0].dims(level)
    counts = [bound.arms_of(child)[0].dims(level)[-1] for child in place.children]
    made = cp.empty((*outer, sum(counts)), np.float64)
    start = 0
    for child, count in zip(place.children, counts, strict=True):
        arms, own = bound.arms_of(child), of_child(name, given, place, child)
        dims = (*outer, count)
        one = len(arms) == 1
        found = _ordered(own, arms[0], level, name) if one else _spread(own, dims, name)
        made[..., start : start + count] = found * child.node.weight
        start += count
    return made


def _ordered(weights: Any, arm: BoundArm, level: int, name: str) -> Any:
    """With the array's axes, in the shape and order of the level's values."""
    cp = cupy()
    if not on_gpu(weights):
        return cp.asarray(ordered(weights, arm, level, name))
    natural, order, dims = arm.walk(level)
    return _spread(weights, natural, name).transpose(*order).reshape(dims)


def _spread(weights: Any, shape: tuple[int, ...], name: str) -> Any:
    """Broadcast to `shape`."""
    cp = cupy()
    if not on_gpu(weights):
        return cp.asarray(fitted(weights, shape, name))
    array = _floats(weights, name)
    _fitted(np.broadcast_to(0.0, array.shape), shape, name)
    return cp.broadcast_to(array.astype(np.float64), shape)


def _fitted(ghost: Any, shape: tuple[int, ...], name: str | None) -> Any:
    try:
        return np.broadcast_to(ghost, shape)
    except ValueError:
        raise misfit(name, ghost.shape, shape) from None


def _floats(weights: Any, name: str | None) -> Any:
    """A CuPy array of float32 or float64."""
    array = _viewed(weights, name)
    if array.dtype == "bfloat16":
        raise TypeError(f"{quote(str(name))}: weights of bfloat16 are too coarse: use float32")
    found = array.cupy()
    return found.astype(np.float32) if array.dtype == "float16" else found


def _viewed(weights: Any, name: str | None) -> DeviceArray:
    try:
        return view(weights)
    except TypeError as error:
        raise TypeError(f"{quote(str(name))}: {error}") from None


__all__ = ["OnGpu", "copied", "on_host"]
