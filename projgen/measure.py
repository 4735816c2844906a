"""Numbers about an array and its projection: how far it moved, what is left, the root's threshold.

Arrays are read block by block, and what is computed is float64: no array of the whole size is made.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from projgen import interpret
from projgen.arrays import Array
from projgen.bind import Binding, Level, bind
from projgen.norms import NORMS
from projgen.tree import Node, NormTree

Index = tuple[slice, ...]
Read = Callable[[Index], Array]

BLOCK = 1 << 16  # elements that are read at once
TURNS = 100  # Newton steps for a threshold; they settle after a few


@dataclass(frozen=True, slots=True)
class Changes:
    """What became of y. Arrays have all axes of y, reduced ones with length 1.

    ``distance``, ``largest`` (the largest change of an entry), ``nonzero`` and ``nonzero_before``
    are by batch entry; ``alive`` and ``alive_before`` say of each leaf group whether it is not all
    zero.
    """

    distance: Array
    largest: Array
    nonzero: Array
    nonzero_before: Array
    alive: Array
    alive_before: Array


def changes(
    y: Array,
    read_y: Read,
    read_x: Read,
    reduced: tuple[int, ...],
    within: tuple[int, ...],
    block: int = BLOCK,
) -> Changes:
    """Compare an array with its projection; `within` are the leaf's axes, `reduced` all levels'.

    `y` is asked for its shape and strides alone; `read_y` and `read_x` give parts of both arrays
    as values that NumPy can compare and turn into float64.
    """
    entries = tuple(1 if axis in reduced else n for axis, n in enumerate(y.shape))
    groups = tuple(1 if axis in within else n for axis, n in enumerate(y.shape))
    found = Changes(
        distance=np.zeros(entries),
        largest=np.zeros(entries),
        nonzero=np.zeros(entries, np.int64),
        nonzero_before=np.zeros(entries, np.int64),
        alive=np.zeros(groups, np.bool_),
        alive_before=np.zeros(groups, np.bool_),
    )
    for index in blocks(y, block):
        before, after = read_y(index), read_x(index)
        entry, group = kept(index, reduced), kept(index, within)
        moved = np.abs(np.subtract(before, after, dtype=np.float64))
        found.largest[entry] = np.maximum(found.largest[entry], _top(moved, reduced))
        found.distance[entry] = np.hypot(found.distance[entry], length(moved, reduced))
        for values, nonzero, alive in (
            (after, found.nonzero, found.alive),
            (before, found.nonzero_before, found.alive_before),
        ):
            left = np.asarray(values != 0)
            nonzero[entry] += np.count_nonzero(left, axis=reduced, keepdims=True)
            alive[group] |= np.any(left, axis=within, keepdims=True)
    return found


def length(a: Array, axes: tuple[int, ...]) -> Array:
    """The Euclidean lengths along `axes`, which stay with length 1; no square leaves the range."""
    top = _top(a, axes)
    exponent = np.where((top > 1e-140) & (top < 1e140), 0, np.frexp(top)[1])
    scaled = np.ldexp(a, -exponent) if np.any(exponent) else a
    with np.errstate(over="ignore"):
        return np.asarray(
            np.ldexp(np.sqrt(np.square(scaled).sum(axis=axes, keepdims=True)), exponent)
        )


def blocks(y: Array, size: int = BLOCK) -> Iterator[Index]:
    """Indices of parts of at most about `size` elements that cover `y`, in memory order."""
    axes = sorted(range(y.ndim), key=lambda axis: -abs(y.strides[axis]))
    steps = list(y.shape)
    inner = y.size
    for axis in axes:
        inner //= max(y.shape[axis], 1)
        steps[axis] = min(y.shape[axis], max(1, size // max(inner, 1)))
        if inner <= size:
            break
    cuts = [
        [slice(at, at + steps[axis]) for at in range(0, y.shape[axis], max(steps[axis], 1))]
        for axis in axes
    ]
    for parts in itertools.product(*cuts):
        by_axis = dict(zip(axes, parts, strict=True))
        yield tuple(by_axis[axis] for axis in range(y.ndim))


def reduced_axes(binding: Binding) -> tuple[int, ...]:
    """The axes that some level reduces."""
    return tuple(axis for axis in range(binding.rank) if axis not in binding.batch)


def root_by_reference(binding: Binding, y: Array) -> tuple[Array, Array | None]:
    """The norms, and the root's values in the last axis, by the interpreter.

    The values are None where `needs_values` says that nobody asks for them.
    """
    norms = np.asarray(interpret.norm(binding, y))
    if not needs_values(binding, y.shape):
        return norms, None
    return norms, by_root(binding, np.asarray(interpret.norm(beneath(binding), y)))


def needs_values(binding: Binding, shape: tuple[int, ...]) -> bool:
    """Whether the root's threshold is searched for among values that are not y's magnitudes."""
    one_each = all(shape[axis] == 1 for level in binding.levels[1:] for axis in level.axes)
    return NORMS[binding.root.norm].searches and not one_each


def beneath(binding: Binding) -> Binding:
    """The tree beneath the root of a chain: its norms are the root's values."""
    node = binding.tree.root.children[0]
    return bind(NormTree(_with_axes(node, binding.root.children[0])), binding.rank)


def by_root(binding: Binding, values: Array) -> Array:
    """Norms of `beneath`, which are over batch axes and the root's: the latter as one last axis."""
    axes = sorted((*binding.batch, *binding.root.axes))
    places = [axes.index(axis) for axis in (*binding.batch, *binding.root.axes)]
    batch = len(binding.batch)
    values = values.transpose(places)
    return values.reshape(*values.shape[:batch], math.prod(values.shape[batch:]))


def _with_axes(node: Node, level: Level) -> Node:
    children = tuple(map(_with_axes, node.children, level.children))
    return replace(node, axis=level.axes, children=children, span=None, axis_spans=())


# The root's threshold. Arrays by batch entry have all axes of y, reduced ones with length 1.

INSIDE: Mapping[str, float] = MappingProxyType({"l1": 0.0, "l2": 1.0, "linf": math.inf})
"""The threshold of y inside its ball, by the root's norm: it leaves every value as it is."""

_SMALL = -600  # of y so large that its norm is beyond float64: the power of two to scale it by


@np.errstate(over="ignore", under="ignore", invalid="ignore")
def root_threshold(
    binding: Binding,
    y: Array,
    read: Read,
    norms: Array,
    values: Array | None,
    radii: Array,
    largest: Array,
) -> Array:
    """The root's threshold for each batch entry, NaN for norms that have none.

    `norms` and `radii` have the shape of the batch axes, `values` one more axis (see
    `root_by_reference`); `largest` is that of `Changes`. `read` gives parts of y, which itself is
    asked for its shape and strides alone.
    """
    name = binding.root.norm
    if name != "linf" and np.any(np.isinf(norms)):  # a power of two smaller they are finite
        whole = np.asarray(read((slice(None),) * y.ndim), np.float64)
        small = np.ldexp(whole, _SMALL)
        norms, values = root_by_reference(binding, small)
        radii, largest = np.ldexp(radii, _SMALL), np.ldexp(largest, _SMALL)
        found = _threshold(binding, small, small.__getitem__, norms, values, radii, largest)
        return found if name == "l2" else np.ldexp(found, -_SMALL)
    return _threshold(binding, y, read, norms, values, radii, largest)


def _threshold(
    binding: Binding,
    y: Array,
    read: Read,
    norms: Array,
    values: Array | None,
    radii: Array,
    largest: Array,
) -> Array:
    """As above, of norms that are not infinite."""
    name = binding.root.norm
    if name not in INSIDE:
        return np.full(norms.shape, np.nan)
    outside = norms > radii
    if name == "linf":
        return np.where(outside, radii, INSIDE[name])
    if name == "l2":
        return np.where(outside, radii / np.where(outside, norms, 1.0), INSIDE[name])
    if values is not None:
        return dense_threshold(values, None, norms, radii)
    reduced = reduced_axes(binding)

    def magnitudes() -> Iterator[tuple[Any, Array]]:
        for index in blocks(y):
            yield kept(index, reduced), np.abs(np.asarray(read(index), np.float64))

    norm, radius = norms.reshape(largest.shape), radii.reshape(largest.shape)
    return l1_threshold(magnitudes, reduced, norm, radius, largest).reshape(norms.shape)


def dense_threshold(values: Array, weights: Array | None, norms: Array, radii: Array) -> Array:
    """As `l1_threshold`, of magnitudes along the last axis; `weights` broadcast over them."""
    norm, radius = norms[..., np.newaxis], radii[..., np.newaxis]
    start = (norm - radius) / max(values.shape[-1], 1) if weights is None else 0.0 * norm

    def read() -> Iterator[tuple[Any, Array]]:
        yield (...,), np.asarray(values)

    return l1_threshold(read, (-1,), norm, radius, start, weights).reshape(norms.shape)


def l1_threshold(
    read: Callable[[], Iterator[tuple[Any, Array]]],
    axes: tuple[int, ...],
    norms: Array,
    radii: Array,
    start: Array,
    weights: Array | None = None,
) -> Array:
    """What is subtracted from the values, and zero at least is left: by Newton's method.

    `read` gives the magnitudes block by block, with their place in `norms`, `radii` and `start`,
    which have length 1 along `axes`. The nearer `start` is, the fewer times they are read. With
    `weights`, of the values of a single block, it is subtracted so many times.
    """
    searched = (norms > radii) & (radii > 0)
    threshold = np.where(searched, start, INSIDE["l1"])
    before = np.full(norms.shape, -1)
    top = np.zeros(norms.shape)
    for _ in range(TURNS):
        excess, counts = -radii.astype(np.float64), np.zeros(norms.shape, np.int64)
        slope = np.zeros(norms.shape)
        for at, values in read():
            if weights is None:
                above = values - threshold[at]
                left = above > 0
                slope[at] += np.count_nonzero(left, axis=axes, keepdims=True)
                largest = values
            else:
                above = weights * (values - threshold[at] * weights)
                left = above > 0
                slope[at] += np.sum(weights * weights * left, axis=axes, keepdims=True)
                largest = np.divide(values, weights, out=0 * above, where=weights > 0)
            excess[at] += np.maximum(above, 0.0, out=above).sum(axis=axes, keepdims=True)
            counts[at] += np.count_nonzero(left, axis=axes, keepdims=True)
            top[at] = np.maximum(top[at], _top(largest, axes))
        last = top - radii if weights is None else 0.0 * top
        better = np.where(counts > 0, threshold + excess / np.where(counts > 0, slope, 1.0), last)
        threshold = np.where(searched, np.maximum(better, 0.0), threshold)
        if np.all((counts == before) | ~searched):
            break
        before = counts
    return np.where((norms > radii) & (radii == 0), top, threshold)


def kept(index: Index, axes: tuple[int, ...]) -> Index:
    """The same place in an array that has length 1 along `axes`."""
    return tuple(slice(0, 1) if axis in axes else part for axis, part in enumerate(index))


def _top(a: Array, axes: tuple[int, ...]) -> Array:
    return np.asarray(a.max(axis=axes, keepdims=True, initial=0.0))


__all__ = [
    "Changes",
    "beneath",
    "blocks",
    "by_root",
    "changes",
    "dense_threshold",
    "kept",
    "l1_threshold",
    "length",
    "needs_values",
    "reduced_axes",
    "root_by_reference",
    "root_threshold",
]
