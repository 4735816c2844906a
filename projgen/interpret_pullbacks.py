"""The reference for gradients: what a change of the result asks of the arrays and the radius.

Reverse mode, in plain NumPy and float64, for every tree that `projgen.interpret_trees` projects, by
the same walk: down the tree once for the projection, then up and down again. Each level has two
rules. Its ball shares a group's gradient out between the group's values and its radius, which is a
value of the level above; its norm hands on what reaches its value. Where the projection has
a kink, at ties and on the border of a ball, this is one of the slopes beside it: largest values
that are equal share what reaches them, and at radius 0 the radius gets nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.interpret_trees import Walk, finite_entries, is_counted, spread
from projgen.structure import Key, Place, places
from projgen.tree import NormTree
from projgen.trees import BoundArm, BoundTree, bind_tree

Array = NDArray[Any]
Finish = Callable[[Array], None]


@np.errstate(over="ignore", under="ignore")
def pull_back(
    bound: BoundTree,
    arrays: Mapping[Key, Any],
    radius: Any,
    gradients: Mapping[Key, Any],
    given: Mapping[str, Any],
    labels: Mapping[str, Array],
) -> tuple[dict[Key, Array], Array]:
    """The gradients of `arrays`, by the keys of `bound`'s arms, and of the radius of each index of
    the batch; NaN where an array is not finite.

    `gradients` are those of the projections of `arrays`, of the same shapes. See
    `projgen.interpret_trees.project` for the rest.
    """
    finite = finite_entries(bound, arrays)
    tame = {arm.key: np.where(spread(arm, finite), arrays[arm.key], 0.0) for arm in bound.arms}
    walk = _Pull(bound, tame, given, labels, gradients, {})
    radii = np.broadcast_to(np.asarray(radius, np.float64), bound.batch).reshape(-1)
    scaled = radii if is_counted(bound) else np.ldexp(radii, -walk.exponent)
    slope, finish = walk.pull(bound.place, 0, scaled, (radii > 0).astype(np.float64))
    finish(np.zeros_like(slope))
    results = {
        arm.key: np.where(spread(arm, finite), walk.results[arm.key], np.nan) for arm in bound.arms
    }
    return results, np.where(finite, slope.reshape(bound.batch), np.nan)


def pull_back_chain(tree: NormTree, y: Array, radius: Any, gradient: Any) -> tuple[Array, Array]:
    """`pull_back` for one array."""
    place = places(tree, y)
    (key,) = (leaf.key for leaf in place.arms)
    bound = bind_tree(tree, place, {key: y.shape})
    results, slopes = pull_back(bound, {key: y}, radius, {key: gradient}, {}, {})
    return results[key], slopes


@dataclass
class _Pull(Walk):
    gradients: Mapping[Key, Any]
    results: dict[Key, Array]

    def pull(self, place: Place, level: int, radius: Array, budding: Array) -> tuple[Array, Finish]:
        """The gradient of each group's radius, and what to call with that of each group's value.

        `budding`: of a group of value 0, how much of it would be left if it grew a little.
        """
        options = self.options(place, level)
        signed = place.node.norm == "simplex"
        a = self.inner(place, level)
        value, u = self.projected(place, level, a, radius[..., None])
        group = _Group(
            place.node.norm, a, value, u, radius[..., None], budding[..., None], **options
        )
        if not place.children:
            arm = self.bound.arm_of[id(place)]
            entries = self.signed(arm)
            kinds = np.sign(entries)
            signs = np.ones_like(entries) if signed else np.where(entries < 0, -1.0, 1.0)
            own = self.arranged(arm, np.asarray(self.gradients[arm.key], np.float64), 0.0)
            direct, slope = group.shared_out(signs * own)

            def finish_leaf(rise: Array) -> None:
                lifted = np.where(kinds != 0, group.lifted(rise[..., None]), 0.0)
                self.results[arm.key] = self._put_back(arm, signs * (direct + lifted))

            return slope, finish_leaf
        slopes, finishes, start = [], [], 0
        buds = group.buds()
        stops = []
        for child in place.children:
            stop = start + self.bound.arms_of(child)[0].dims(level)[-1]
            shares = slice(start, stop)
            slope, finish = self.pull(child, level + 1, u[..., shares], buds[..., shares])
            slopes.append(slope)
            finishes.append(finish)
            stops.append((start, stop))
            start = stop
        direct, slope = group.shared_out(np.concatenate(slopes, axis=-1))

        def finish_children(rise: Array) -> None:
            full = direct + group.lifted(rise[..., None])
            for finish, (first, last) in zip(finishes, stops, strict=True):
                finish(full[..., first:last])

        return slope, finish_children

    def _put_back(self, arm: BoundArm, gradients: Array) -> Array:
        """Gradients in the order of the arm's levels, where its array has the entries."""
        array = np.asarray(self.arrays[arm.key], np.float64)
        index = self.index(arm)
        real = index >= 0
        result: Array = np.zeros(array.size)
        result[index[real]] = np.broadcast_to(gradients, index.shape)[real]
        result = result.reshape(array.shape)
        clipped = any(node.nonneg for node in arm.arm.nodes) and arm.arm.nodes[-1].norm != "simplex"
        return np.where(array > 0, result, 0.0) if clipped else result


@dataclass
class _Group:
    """The groups of a level, along the last axis: values `a`, of which the projection on
    `radius` makes `u`; or the part `budding` of what grows, of those whose value is 0."""

    norm: str
    a: Array
    value: Array
    u: Array
    radius: Array
    budding: Array
    weights: Any = None
    p: float | None = None

    def shared_out(self, g: Array) -> tuple[Array, Array]:
        """The gradients of the values alone and of the radii, of which `g` is that of `u`."""
        w = (
            np.ones_like(self.a)
            if self.weights is None
            else np.broadcast_to(self.weights, self.a.shape)
        )
        outside = self.value > self.radius
        if self.norm == "simplex":
            outside = np.ones_like(outside)
        direct, slope = _BALLS[self.norm](self, g, w)
        alive = outside & (self.radius > 0)
        direct = np.where(outside, np.where(alive | (w == 0), direct, 0.0), g)
        if self.norm != "simplex":
            direct = np.where(self.value == 0, self.budding * g, direct)
        return direct, np.where(alive, slope, 0.0)[..., 0]

    def buds(self) -> Array:
        """Of each value that is 0, how much of it would be left if it grew a little."""
        p = 2.0 if self.norm == "l2" else self.p or 1.0
        scale = self.radius / np.where(self.value > 0, self.value, 1.0)
        kept: Mapping[str, Any] = {"linf": 1.0, "l2": scale, "lp": 1.0 if p > 2 else 0.0}
        outside = kept.get(self.norm, 0.0)
        found = np.where(self.value <= self.radius, 1.0, np.where(self.radius > 0, outside, 0.0))
        return np.broadcast_to(np.where(self.value == 0, self.budding, found), self.a.shape)

    def lifted(self, rise: Array) -> Array:
        """The gradients of the values that come from `rise`, the gradient of the groups' values."""
        w = 1.0 if self.weights is None else self.weights
        top = np.where(self.value > 0, self.value, 1.0)
        shares = w * self.a / top  # of the value
        if self.norm == "l1":
            return np.asarray(rise * w * np.ones_like(self.a))
        if self.norm == "linf":
            ties = (shares == 1) & (self.value > 0)
            return np.asarray(rise * w * ties / np.maximum(ties.sum(axis=-1, keepdims=True), 1))
        if self.norm in ("l2", "lp"):
            p = 2.0 if self.p is None else self.p
            return np.asarray(rise * w * np.where(shares > 0, shares, 0.0) ** (p - 1))
        return np.zeros_like(self.a)  # a count does not change with the values


def _clipped(group: _Group, g: Array, w: Array) -> tuple[Array, Array]:
    clipped = w * group.a > group.radius
    shares = np.where(clipped, g / np.where(w > 0, w, 1.0), 0.0)
    return np.where(clipped, 0.0, g), shares.sum(axis=-1, keepdims=True)


def _lowered(group: _Group, g: Array, w: Array) -> tuple[Array, Array]:
    """What survives lies t times its weight lower; t follows from what it adds up to."""
    left = (group.u > 0) | (w == 0)
    w = np.where(left, w, 0.0)
    squares = (w * w).sum(axis=-1, keepdims=True)
    slope = (w * np.where(left, g, 0.0)).sum(axis=-1, keepdims=True) / np.where(
        squares > 0, squares, 1.0
    )
    return np.where(left, g - w * slope, 0.0), slope


def _shrunk(group: _Group, g: Array, w: Array) -> tuple[Array, Array]:
    """l2 and lp: u + t n = a, where n is the ball's normal at u; so du = d (da - n dt)."""
    p = 2.0 if group.p is None else group.p
    radius = np.where(group.radius > 0, group.radius, 1.0)
    normal = w * (w * group.u / radius) ** (p - 1)
    bend = group.u + (p - 1) * (group.a - group.u)
    d = np.where(bend > 0, group.u / np.where(bend > 0, bend, 1.0), 1.0 if p > 2 else 0.0)
    if p == 2:  # where a value is zero its neighbours tell how steep the normal is
        at = np.argmax(normal, axis=-1, keepdims=True)
        a, u, most = (np.take_along_axis(v, at, -1) for v in (group.a, group.u, w))
        t = (a - u) / np.where(most**2 * u > 0, most**2 * u, 1.0)
        d = np.where(group.a > 0, d, 1 / (1 + t * w**2))
    squares = (d * normal**2).sum(axis=-1, keepdims=True)
    slope = (g * d * normal).sum(axis=-1, keepdims=True) / np.where(squares > 0, squares, 1.0)
    return d * (g - normal * slope), slope


def _kept(group: _Group, g: Array, w: Array) -> tuple[Array, Array]:
    return np.where(group.u != 0, g, 0.0), np.zeros_like(group.value)


_BALLS: Mapping[str, Callable[[_Group, Array, Array], tuple[Array, Array]]] = {
    "l1": _lowered,
    "simplex": _lowered,
    "l2": _shrunk,
    "lp": _shrunk,
    "linf": _clipped,
    "l0": _kept,
}
