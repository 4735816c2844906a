"""The rules of the norms for gradients, in plain NumPy and float64: `REFERENCES` has them.

Reverse mode asks each level for three things. Its ball shares a group's gradient out between the
group's values and its radius, which is a value of the level above. Its norm hands what reaches its
value on to its values. And of a value that is 0 it says what part would be left, if it grew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def per_value(of_group: Array, labels: Array | None) -> Array:
    """What holds for groups, for their values along a last axis; `labels` as `Groups` has them."""
    return of_group[..., np.newaxis] if labels is None else np.take(of_group, labels, axis=-1)


@dataclass
class Groups:
    """Groups along the last axis of values `a`, of which the projection on `radius` made `u`.

    ``a`` and ``u`` are magnitudes, or of a simplex the values themselves; ``weights`` are finite, 0
    and above, or None. ``value`` and ``radius`` have the groups in the place of that axis. With
    ``labels``, one for each index along it, the groups are those of equal labels, 0, 1, 2...
    """

    a: Array
    u: Array
    weights: Any
    value: Array
    radius: Array
    p: float | None = None
    labels: Array | None = None

    @property
    def w(self) -> Any:
        return 1.0 if self.weights is None else self.weights

    def each(self, of_group: Array) -> Array:
        """What holds for a group, for each of its values."""
        return per_value(of_group, self.labels)

    def total(self, of_value: Array) -> Array:
        """Sums over the groups."""
        if self.labels is None:
            return np.asarray(of_value.sum(axis=-1))
        count = self.value.shape[-1]
        rows = np.arange(self.value.size // max(1, count))[:, np.newaxis] * count
        index = (rows + self.labels).reshape(-1)
        weights = np.broadcast_to(of_value, self.a.shape).reshape(-1)
        sums = np.bincount(index, weights, minlength=self.value.size)
        return sums.reshape(self.value.shape)

    def most(self, of_value: Array) -> Array:
        """The largest of values of at least 0, group by group."""
        if self.labels is None:
            return np.asarray(of_value.max(axis=-1, initial=0.0))
        found = np.zeros(self.value.shape)
        order = np.argsort(self.labels, kind="stable")
        present, starts = np.unique(self.labels[order], return_index=True)
        if order.size:
            found[..., present] = np.maximum.reduceat(of_value[..., order], starts, axis=-1)
        return found


class Rule(NamedTuple):
    """What a norm says of gradients.

    ``shared_out(groups, g)``: the gradients of the values alone, and those of the radii, where `g`
    is that of the groups' projection; it is asked only about groups outside their balls.
    ``lifted(groups)``: the slopes of a group's value, by each of its values. ``kept(value, radius,
    p)``: of a value 0 of a group outside its ball, the part that would be left if it grew a little.
    ``everywhere``: the ball is a surface, outside of which all groups are. ``masks``: what is left
    of a group is as it was.
    """

    shared_out: Callable[[Groups, Array], tuple[Array, Array]]
    lifted: Callable[[Groups], Any]
    kept: Callable[[Array, Array, float | None], Any]
    everywhere: bool = False
    masks: bool = False


def shared_out(rule: Rule, groups: Groups, g: Array, budding: Array) -> tuple[Array, Array]:
    """The gradients of the values alone and of the radii, of which `g` is that of the projection.

    `budding`: of a group of value 0, how much of it would be left if it grew a little.
    """
    outside = groups.value > groups.radius
    if rule.everywhere:
        outside = np.ones_like(outside)
    if groups.weights is None:
        direct, slope = rule.shared_out(groups, g)
    else:
        unit = units(groups)
        direct, slope = rule.shared_out(in_units(groups, unit), g)
        slope = np.ldexp(slope, -unit)
    alive = outside & (groups.radius > 0)
    direct = np.where(groups.each(outside), np.where(groups.each(alive), direct, 0.0), g)
    if not rule.everywhere and not groups.value.all():
        none = groups.each(groups.value == 0)
        direct = np.where(none, groups.each(budding) * g, direct)
    if groups.weights is not None:  # a weight of 0 leaves its values as they are
        direct = np.where(groups.w == 0, g, direct)
    return direct, np.where(alive, slope, 0.0)


def units(groups: Groups) -> Array:
    """For each group the power of 2 that makes the heaviest weight of what is left of it about 1:
    so the squares of its weights have room in float64."""
    heaviest = groups.most(np.where(groups.u != 0, groups.w, 0.0))
    exponents: Array = np.frexp(heaviest)[1]
    return exponents


def in_units(groups: Groups, unit: Array) -> Groups:
    """The same groups with such weights, which their values and radii go with."""
    weights = np.ldexp(groups.weights, -groups.each(unit))
    value, radius = np.ldexp(groups.value, -unit), np.ldexp(groups.radius, -unit)
    return replace(groups, weights=weights, value=value, radius=radius)


def kept(rule: Rule, value: Array, radius: Array, budding: Array, p: float | None = None) -> Array:
    """Of the values of each group that are 0, what part would be left if they grew a little."""
    outside = rule.kept(value, radius, p)
    left = np.where(value <= radius, 1.0, np.where(radius > 0, outside, 0.0))
    return np.where(value == 0, budding, left)


def _clipped(groups: Groups, g: Array) -> tuple[Array, Array]:
    """A clipped value is radius / w, the others are as they were; so is one at its limit exactly:
    the slope from below (docs/gradients.md, "What the gradient is")."""
    w = groups.w
    clipped = w * groups.a > groups.each(groups.radius)
    shares = np.where(clipped, g if groups.weights is None else g / np.where(w > 0, w, 1.0), 0.0)
    return np.where(clipped, 0.0, g), groups.total(shares)


def _largest(groups: Groups) -> Any:
    """The largest value's slope is w. Equal ones share it, the mean of what each alone would have:
    a kink of "What the gradient is" in docs/gradients.md. In a group of zeros none has any."""
    a = groups.w * groups.a
    top = groups.most(a)
    ties = (a == groups.each(top)) & (a > 0)
    return groups.w * ties / groups.each(np.maximum(groups.total(ties), 1.0))


def _lowered(groups: Groups, g: Array) -> tuple[Array, Array]:
    """What survives lies t times its weight lower: sum w (a - t w) = radius, so of those left
    dt = (sum w da - d radius) / sum w^2. A value at the threshold exactly counts as thinned out:
    the slope from below (docs/gradients.md, "What the gradient is")."""
    left = groups.u > 0
    if groups.weights is not None:
        left |= groups.w == 0
    w = np.where(left, groups.w, 0.0)
    squares = groups.total(w * w)
    slope = groups.total(w * g) / np.where(squares > 0, squares, 1.0)
    return np.where(left, g - w * groups.each(slope), 0.0), slope


def _shrunk(groups: Groups, g: Array) -> tuple[Array, Array]:
    """l2 and lp: u + t n = a, where n is the ball's normal at u; so du = d (da - n dt).

    With n proportional to u^(p - 1), d = 1 / (1 + t dn/du) = u / (u + (p - 1) (a - u)). At a = 0
    that is 0 / 0, and d its limit: 1 for p > 2, whose normal is flat there; 0 for p < 2, where it
    is vertical; for p = 2 that of all (docs/gradients.md, "What the gradient is").
    """
    p = 2.0 if groups.p is None else groups.p
    radius = groups.each(np.where(groups.radius > 0, groups.radius, 1.0))
    a, u, w = groups.a, groups.u, groups.w
    normal = w * _power(w * u / radius, p - 1)
    bend = u + (p - 1) * (a - u)
    d = np.where(bend > 0, u / np.where(bend > 0, bend, 1.0), 1.0 if p > 2 else 0.0)
    if p == 2 and not a.all():  # where a value is zero the others tell how steep the normal is
        steepness = groups.total(normal * w * w * u)
        t = groups.total(normal * (a - u)) / np.where(steepness > 0, steepness, 1.0)
        d = np.where(a > 0, d, 1 / (1 + groups.each(t) * w * w))
    squares = groups.total(d * normal**2)
    slope = groups.total(g * d * normal) / np.where(squares > 0, squares, 1.0)
    return d * (g - normal * groups.each(slope)), slope


def _power(base: Array, exponent: float) -> Array:
    return base if exponent == 1 else np.asarray(base**exponent)


def _along(groups: Groups) -> Any:
    """dv/da = w (w a / v)^(p - 1): the direction. In a group of zeros, where it has none, 0."""
    p = 2.0 if groups.p is None else groups.p
    top = groups.each(np.where(groups.value > 0, groups.value, 1.0))
    shares = groups.w * groups.a / top  # of the value
    return groups.w * _power(np.where(shares > 0, shares, 0.0), p - 1)


def _kept_ones(groups: Groups, g: Array) -> tuple[Array, Array]:
    return np.where(groups.u != 0, g, 0.0), np.zeros_like(groups.value)


def _weights(groups: Groups) -> Any:
    return groups.w


def _nothing(groups: Groups) -> Any:
    return 0.0


def _none(value: Array, radius: Array, p: float | None) -> Any:
    return 0.0


def _all(value: Array, radius: Array, p: float | None) -> Any:
    return 1.0


def _in_scale(value: Array, radius: Array, p: float | None) -> Any:
    with np.errstate(invalid="ignore"):  # of an infinite radius, which holds all
        return radius / np.where(value > 0, value, 1.0)


def _if_flat(value: Array, radius: Array, p: float | None) -> Any:
    return 1.0 if (p or 1.0) > 2 else 0.0


L1 = Rule(_lowered, _weights, _none)
L2 = Rule(_shrunk, _along, _in_scale)
LINF = Rule(_clipped, _largest, _all)
LP = Rule(_shrunk, _along, _if_flat)
L0 = Rule(_kept_ones, _nothing, _none, masks=True)  # a count does not change with the values
SIMPLEX = Rule(_lowered, _nothing, _none, everywhere=True)
