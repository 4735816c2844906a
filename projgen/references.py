"""Norms of groups and projections on their balls, in plain NumPy and float64.

They share no code with the kernels, so they can be their oracle; they are simple, not quick.
Groups lie along `axes` of an array of magnitudes `a`. Values, and radii, have length 1 there. A
ball is asked only about groups outside it, and its answer for the others is not used. With weights
(finite, 0 and above, of a's shape or broadcast) a norm is that of ``weights * a``; what has weight
0 is free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from projgen import gradient_rules
from projgen.gradient_rules import Rule

Array = npt.NDArray[np.float64]
Axes = tuple[int, ...]

_HALVINGS = 200  # of a bracket: more than float64 has bits


# The norms, and below them their balls. An entry of REFERENCES names both.


def _l1(a: Array, axes: Axes, *, p: float | None = None, weights: Any = None) -> Array:
    return np.asarray(_weighted(a, weights).sum(axis=axes, keepdims=True))


def _l2(a: Array, axes: Axes, *, p: float | None = None, weights: Any = None) -> Array:
    a = _weighted(a, weights)
    _, exponent = np.frexp(_linf(a, axes))  # per group: no square is beyond the range of float64
    scaled = np.ldexp(a, -exponent)
    return np.asarray(np.ldexp(np.sqrt(_l1(scaled**2, axes)), exponent))


def _linf(a: Array, axes: Axes, *, p: float | None = None, weights: Any = None) -> Array:
    return np.asarray(_weighted(a, weights).max(axis=axes, keepdims=True, initial=0.0))


def _lp(a: Array, axes: Axes, *, p: float | None = None, weights: Any = None) -> Array:
    assert p is not None
    a = _weighted(a, weights)
    top = _linf(a, axes)
    shares = a / np.where(top > 0, top, 1.0)
    return np.asarray(top * _l1(shares**p, axes) ** (1 / p))


def _l0(a: Array, axes: Axes, *, p: float | None = None, weights: Any = None) -> Array:
    return np.asarray(np.count_nonzero(a, axis=axes, keepdims=True).astype(np.float64))


def _simplex(a: Array, axes: Axes, *, p: float | None = None, weights: Any = None) -> Array:
    return _l1(np.maximum(a, 0.0), axes)


def _l1_ball(
    a: Array, axes: Axes, radius: Array, *, p: float | None = None, weights: Any = None
) -> Array:
    """Subtract the threshold at which what remains of the group adds up to the radius.

    The threshold of the k largest is (their sum - radius) / k, and the right k gives the largest.
    Values are taken relative to the group's top: those that survive are within a radius of it, so
    nothing is lost when the radius is much smaller than they are.
    """
    if weights is not None:
        return _weighted_l1_ball(a, axes, radius, np.broadcast_to(weights, a.shape))
    below = a - _linf(a, axes)
    descending = np.sort(_rows(below, axes), axis=-1)[..., ::-1]
    counts = np.arange(1, descending.shape[-1] + 1)
    thresholds = (np.cumsum(descending, axis=-1) - _rows(radius, axes)) / counts
    remains = below - thresholds.max(axis=-1, initial=-np.inf).reshape(radius.shape)
    return np.asarray(np.clip(remains, 0.0, a))


def _weighted_l1_ball(a: Array, axes: Axes, radius: Array, weights: Array) -> Array:
    """Subtract t times the weights: entries vanish in the order of their ends, a / w.

    Where t is the k-th end, those before it still add up to their sum of w^2 (end - t). That grows
    with k; the last k for which it is below the radius tells which entries stay, and t lies below
    that end by what is missing. Differences from that end alone are used, and lose nothing.
    """
    real = weights > 0
    w = np.where(real, weights, 0.0)
    lightest = np.where(real, weights, np.inf).min(axis=axes, keepdims=True, initial=np.inf)
    if np.any(_linf(w, axes) * 1e-140 > lightest):
        return _spread_l1_ball(a, axes, radius, w)
    _, heavy = np.frexp(_linf(w, axes))
    w = np.ldexp(w, -heavy)  # to square
    _, exponent = np.frexp(_linf(a, axes))
    ends = np.where(w > 0, np.ldexp(a, -exponent) / np.where(w > 0, w, 1.0), 0.0)
    rows = _rows(ends, axes)
    order = np.argsort(-rows, axis=-1, kind="stable")
    descending = np.take_along_axis(rows, order, -1)
    squares = np.cumsum(np.take_along_axis(_rows(w**2, axes), order, -1), axis=-1)
    gaps = descending[..., :-1] - descending[..., 1:]
    sums = np.cumsum(np.where(gaps > 0, squares[..., :-1] * gaps, 0.0), axis=-1)
    sums = np.concatenate([np.zeros((*sums.shape[:-1], min(1, rows.shape[-1]))), sums], axis=-1)
    goal = _rows(np.ldexp(radius, -heavy - exponent), axes)
    last = np.maximum((sums < goal).sum(axis=-1, keepdims=True) - 1, 0)
    if rows.shape[-1] == 0:
        return a
    end, below, square = (np.take_along_axis(v, last, -1) for v in (descending, sums, squares))
    missing = (goal - below) / np.where(square > 0, square, 1.0)  # 0: all are free
    with np.errstate(invalid="ignore"):  # of weight 0 where all are free
        kept = w * ((ends - end.reshape(radius.shape)) + missing.reshape(radius.shape))
    x = np.clip(np.ldexp(kept, exponent), 0.0, a)
    free = ~real | ((w == 0) & (radius > 0))  # of weight 0, or so small that it does not matter
    return np.where(free, a, np.where(radius > 0, x, 0.0))


def _spread_l1_ball(a: Array, axes: Axes, radius: Array, w: Array) -> Array:
    """The same by halving a bracket of log t: for weights whose squares have no room together."""
    logs = np.log(np.where(w > 0, w, 1.0))

    def left(log_t: Array) -> Array:
        pulled = np.exp(np.minimum(log_t + logs, 709.0))
        return np.where(w > 0, np.maximum(a - pulled, 0.0), a)

    t = _bisected(lambda log_t: _l1(w * left(log_t), axes) > radius, -3000.0, 3000.0, radius.shape)
    return np.where((radius > 0) | (w == 0), left(t), 0.0)


def _l2_ball(
    a: Array, axes: Axes, radius: Array, *, p: float | None = None, weights: Any = None
) -> Array:
    length = _l2(a, axes, weights=weights)
    outside = length > radius
    if weights is None:
        return a / np.where(outside, length, 1.0) * np.where(outside, radius, 1.0)
    w = np.broadcast_to(weights, a.shape)
    logs = np.log(np.where(w > 0, w, 1.0))

    def shrunk(log_t: Array) -> Array:
        with np.errstate(over="ignore"):
            return np.where(w > 0, a / (1 + np.exp(log_t + 2 * logs)), a)

    t = _bisected(
        lambda log_t: _l2(w * shrunk(log_t), axes) > radius, -5000.0, 5000.0, radius.shape
    )
    return np.where((radius > 0) | (w == 0), shrunk(t), 0.0)


def _linf_ball(
    a: Array, axes: Axes, radius: Array, *, p: float | None = None, weights: Any = None
) -> Array:
    if weights is None:
        return np.minimum(a, radius)
    w = np.broadcast_to(weights, a.shape)
    return np.where(w * a > radius, radius / np.where(w > 0, w, 1.0), a)


def _lp_ball(
    a: Array, axes: Axes, radius: Array, *, p: float | None = None, weights: Any = None
) -> Array:
    """x + t w^p x^(p - 1) = a, with the t at which x is as long as the radius.

    Both are sought in logarithms: with x = a exp(z), exp(z) + exp(c + (p - 1) z) is 1 where
    c = log t + p log w + (p - 2) log a.
    """
    assert p is not None
    w = np.ones_like(a) if weights is None else np.broadcast_to(weights, a.shape)
    real = (a > 0) & (w > 0)
    logs, logw = np.log(np.where(real, a, 1.0)), np.log(np.where(real, w, 1.0))
    shifts = p * logw + (p - 2) * logs

    def depths(log_t: Array) -> Array:
        """Newton's method comes down to z from above: the logarithm of the sum is convex."""
        c = log_t + shifts
        z = np.minimum(0.0, -c / (p - 1))
        for _ in range(_HALVINGS):
            one, other = np.exp(z), np.exp(c + (p - 1) * z)
            slope = (one + (p - 1) * other) / (one + other)
            lower = np.minimum(z, z - np.log(one + other) / slope)
            if np.all(lower == z):
                break
            z = lower
        return np.asarray(z)

    def too_long(log_t: Array) -> Any:
        x = np.where(real, w * np.exp(logs + depths(log_t)), 0.0)
        return _lp(x, axes, p=p) > radius

    bound = float(np.abs(shifts).max(initial=0.0)) + 1500 * p
    t = _bisected(too_long, -bound, bound, radius.shape)
    x = np.where(real, np.exp(logs + depths(t)), a)
    return np.where((radius > 0) | ~real, np.minimum(x, a), 0.0)


def _l0_ball(
    a: Array, axes: Axes, radius: Array, *, p: float | None = None, weights: Any = None
) -> Array:
    """The largest stay; of equal ones those that come first."""
    order = np.argsort(-_rows(a, axes), axis=-1, kind="stable")
    ranks = np.argsort(order, axis=-1)
    kept = ranks < np.floor(_rows(radius, axes))
    shape = [a.shape[axis] for axis in range(a.ndim) if axis not in _positive(axes, a.ndim)]
    shape += [a.shape[axis] for axis in _positive(axes, a.ndim)]
    back = np.moveaxis(kept.reshape(shape), range(-len(axes), 0), axes)
    return np.where(back, a, 0.0)


def _simplex_ball(
    a: Array, axes: Axes, radius: Array, *, p: float | None = None, weights: Any = None
) -> Array:
    """`a` has signs here; -inf stays 0."""
    top = a.max(axis=axes, keepdims=True, initial=-np.inf)
    below = a - np.where(np.isfinite(top), top, 0.0)
    descending = np.sort(_rows(below, axes), axis=-1)[..., ::-1]
    counts = np.arange(1, descending.shape[-1] + 1)
    thresholds = (np.cumsum(descending, axis=-1) - _rows(radius, axes)) / counts
    t = thresholds.max(axis=-1, initial=-np.inf).reshape(radius.shape)
    return np.where(np.isfinite(a), np.maximum(below - t, 0.0), 0.0)


class Reference(NamedTuple):
    """A norm's value and the projection on its ball, of groups along some axes; and its rule for
    gradients, without which it has none."""

    norm: Callable[..., Array]
    ball: Callable[..., Array]
    rule: Rule | None = None


def rule_of(norm: str) -> Rule:
    """How gradients go back through a norm; a TypeError if it does not say."""
    rule = REFERENCES[norm].rule
    if rule is None:
        raise TypeError(f"{norm} has no rule for gradients: see projgen.gradient_rules")
    return rule


REFERENCES: Mapping[str, Reference] = MappingProxyType(
    {
        "l1": Reference(_l1, _l1_ball, gradient_rules.L1),
        "l2": Reference(_l2, _l2_ball, gradient_rules.L2),
        "linf": Reference(_linf, _linf_ball, gradient_rules.LINF),
        "lp": Reference(_lp, _lp_ball, gradient_rules.LP),
        "l0": Reference(_l0, _l0_ball, gradient_rules.L0),
        "simplex": Reference(_simplex, _simplex_ball, gradient_rules.SIMPLEX),
    }
)


def _weighted(a: Array, weights: Any) -> Array:
    return a if weights is None else np.asarray(weights * a)


def _positive(axes: Axes, rank: int) -> Axes:
    return tuple(axis % rank for axis in axes)


def _rows(a: Array, axes: Axes) -> Array:
    """The groups along `axes` as rows, in the last axis of the result."""
    groups = np.moveaxis(a, axes, range(-len(axes), 0))
    count = int(np.prod([a.shape[axis] for axis in axes], dtype=np.int64))
    return groups.reshape(*groups.shape[: -len(axes)], count)


def _bisected(
    below: Callable[[Array], Any], low: float, high: float, shape: tuple[int, ...]
) -> Array:
    """Where `below` turns from true to false from `low` to `high`, for each index of `shape`."""
    left, right = np.full(shape, low), np.full(shape, high)
    for _ in range(_HALVINGS):
        middle = left + (right - left) / 2
        if np.all((middle == left) | (middle == right)):
            break
        more = below(middle)
        left, right = np.where(more, middle, left), np.where(more, right, middle)
    return right
