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

from projgen.gradient_rules import Groups, shared_out
from projgen.interpret_trees import Walk, finite_entries, is_counted, spread
from projgen.references import rule_of
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
        rule = rule_of(place.node.norm)
        a = self.inner(place, level)
        value, u = self.projected(place, level, a, radius[..., None])
        weights = options.get("weights")
        if weights is not None:
            weights = np.broadcast_to(weights, a.shape)
        groups = Groups(a, u, weights, value[..., 0], radius, options.get("p"))
        if not place.children:
            arm = self.bound.arm_of[id(place)]
            entries = self.signed(arm)
            kinds = np.sign(entries)
            signs = np.ones_like(entries) if rule.everywhere else np.where(entries < 0, -1.0, 1.0)
            own = self.arranged(arm, np.asarray(self.gradients[arm.key], np.float64), 0.0)
            direct, slope = shared_out(rule, groups, signs * own, budding)

            def finish_leaf(rise: Array) -> None:
                lifted = np.where(kinds != 0, rise[..., None] * rule.lifted(groups), 0.0)
                self.results[arm.key] = self._put_back(arm, signs * (direct + lifted))

            return slope, finish_leaf
        slopes, finishes, start = [], [], 0
        # What would be left of a value that is 0: what it would get of a gradient of its own.
        buds, _ = shared_out(rule, groups, (a == 0).astype(np.float64), budding)
        stops = []
        for child in place.children:
            stop = start + self.bound.arms_of(child)[0].dims(level)[-1]
            shares = slice(start, stop)
            slope, finish = self.pull(child, level + 1, u[..., shares], buds[..., shares])
            slopes.append(slope)
            finishes.append(finish)
            stops.append((start, stop))
            start = stop
        direct, slope = shared_out(rule, groups, np.concatenate(slopes, axis=-1), budding)

        def finish_children(rise: Array) -> None:
            full = direct + rise[..., None] * rule.lifted(groups)
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
