"""Nearest points: which trees have a known algorithm, and the reference for those that need it.

Level by level is the nearest point already for many trees (`NormTree.is_euclidean`). Beyond those
`l1(l1)` is the flat l1, whose projection is known, and for `l1(linf)` all groups' limits are found
together: see ``templates/cpu/exact.py.j2`` for the kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.bind import Binding
from projgen.errors import SpecError
from projgen.tree import Node, NormTree

Array = NDArray[np.float64]


def exact_tree(tree: NormTree) -> NormTree:
    """The tree whose exact projection is that of `tree`; a SpecError if none is known."""
    if tree.is_euclidean:
        return tree
    norms = [node.norm for node in tree.levels]
    if tree.is_plain and set(norms) == {"l1"}:
        axes = [node.axis for node in tree.levels]
        if None in axes:  # it takes all that the others leave
            return NormTree(Node("l1"))
        return NormTree(Node("l1", tuple(axis for own in axes for axis in own or ())))
    if is_joint(tree):
        return tree
    raise SpecError(
        f"no algorithm is known here for the nearest point of the ball of {tree}",
        *[node.span for node in tree.levels[:1] if node.span],
        hint="exact=True takes l1(linf) and l1(l1) of one array, and trees whose is_euclidean is "
        "True, such as l1(l2); without it the projection is level by level",
    )


def is_joint(tree: NormTree) -> bool:
    """Whether it is l1 over linf, whose groups have to be projected together."""
    norms = [node.norm for node in tree.levels]
    return tree.is_plain and norms[0] == "l1" and len(norms) > 1 and set(norms[1:]) == {"linf"}


def project(binding: Binding, y: Any, radius: Any) -> Array:
    """The reference for l1 over linf: see `projgen.interpret.project` for the arguments.

    A group is clipped where its values exceed the limit by theta in all. That limit follows from
    the sorted values and their sums; theta, the same for all groups, by bisection.
    """
    array = np.asarray(y, dtype=np.float64)
    rows = _rows(binding, array)
    radii = _radii(binding, array, radius)
    x = np.stack([_one(*each) for each in zip(rows, radii, strict=True)])
    return _back(binding, array, x)


def pull_back(binding: Binding, y: Any, x: Any, gradient: Any) -> tuple[Array, Array]:
    """The gradients of `y` and of the radii, from that of its projection `x`, which `project` made.

    The values of a group that are clipped have one limit, which moves with their mean and with
    theta; and theta keeps the sum of the limits.
    """
    array = np.asarray(y, dtype=np.float64)
    rows, results, gradients = (_rows(binding, np.asarray(v, np.float64)) for v in (y, x, gradient))
    limits = np.abs(results).max(axis=2, keepdims=True, initial=0.0)
    inside = np.all(results == rows, axis=(1, 2), keepdims=True)
    alive = (limits > 0) & ~inside
    clipped = alive & (np.abs(rows) > np.abs(results)) | (np.abs(rows) == limits) & alive
    counts = np.maximum(clipped.sum(axis=2, keepdims=True), 1)
    means = np.where(clipped, np.sign(rows) * gradients, 0.0).sum(axis=2, keepdims=True) / counts
    weights = (alive / counts).sum(axis=1, keepdims=True)
    slopes = (alive * means).sum(axis=1, keepdims=True) / np.where(weights > 0, weights, 1.0)
    shared = np.sign(rows) * (means - slopes / counts)
    pulled = np.where(inside | (alive & ~clipped), gradients, np.where(clipped, shared, 0.0))
    batch = tuple(array.shape[axis] for axis in binding.batch)
    return _back(binding, array, pulled), slopes.reshape(batch)


def _rows(binding: Binding, array: Array) -> Array:
    """The groups of each batch entry as rows."""
    order = _order(binding)
    batch = [array.shape[axis] for axis in binding.batch]
    groups = int(np.prod([array.shape[axis] for axis in binding.root.axes], dtype=np.int64))
    size = int(array.size / max(1, np.prod(batch) * groups))
    return array.transpose(order).reshape(-1, groups, size)


def _back(binding: Binding, array: Array, rows: Array) -> Array:
    """Rows, as `_rows` makes them, in the shape of `array`."""
    order = _order(binding)
    shape = [array.shape[axis] for axis in order]
    return np.ascontiguousarray(rows.reshape(shape).transpose(np.argsort(order)))


def _order(binding: Binding) -> tuple[int, ...]:
    root, *rest = binding.levels
    return (*binding.batch, *root.axes, *(axis for level in rest for axis in level.axes))


def _radii(binding: Binding, array: Array, radius: Any) -> Array:
    batch = tuple(array.shape[axis] for axis in binding.batch)
    return np.broadcast_to(np.asarray(radius, np.float64), batch).reshape(-1)


def _one(y: Array, radius: float) -> Array:
    """One batch entry: groups are rows."""
    a = np.abs(y)
    top = float(a.max(initial=0.0))
    exponent = int(np.frexp(top)[1])
    a, radius = np.ldexp(a, -exponent), float(np.ldexp(radius, -exponent))
    if a.max(axis=1, initial=0.0).sum() <= radius:
        return y.copy()
    descending = -np.sort(-a, axis=1)
    sums = np.cumsum(descending, axis=1)
    counts = np.arange(1, a.shape[1] + 1)

    def limits(theta: float) -> Array:
        found: Array = np.maximum(((sums - theta) / counts).max(axis=1), 0.0)
        return found

    low, high = 0.0, float(sums[:, -1].max())
    for _ in range(200):
        theta = (low + high) / 2
        low, high = (theta, high) if limits(theta).sum() > radius else (low, theta)
    limit = limits(high)
    alive = limit > 0
    if radius == 0 or not alive.any():
        return np.zeros_like(y)
    # Between breaks the limits are linear in theta: what bisection rounds is mended on them.
    k = ((sums - high) / counts).argmax(axis=1)[alive]
    slope = (1 / counts[k]).sum()
    theta = ((sums[alive, k] / counts[k]).sum() - radius) / slope
    limit[alive] = np.maximum((sums[alive, k] - theta) / counts[k], 0.0)
    clipped = np.minimum(a, limit[:, None])
    return np.asarray(
        np.copysign(np.where(clipped == a, np.abs(y), np.ldexp(clipped, exponent)), y)
    )
