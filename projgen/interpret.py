"""The reference: a norm tree's norm and projection in plain NumPy and float64.

It walks the same levels as the kernels and shares no code with them, so it can be their oracle.
Arrays keep all their axes on the way, reduced ones with length 1: an axis has one number
throughout.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from projgen.bind import Binding, Level

Array = npt.NDArray[np.float64]
Exponent = npt.NDArray[np.int32]

_TOP = 900  # the largest magnitude becomes about 2**900: 2**100 of them still have a finite sum


@np.errstate(over="ignore", under="ignore")
def norm(binding: Binding, y: npt.ArrayLike) -> Array:
    """The tree's norm of `y`, for each index along the batch axes.

    `y` has rank ``binding.rank`` and finite values. The result has the shape of the batch axes, in
    their order; it is infinite where the norm is beyond float64.
    """
    array = _checked(binding, y)
    exponent = _exponent(binding, array)
    values = _value(binding.root, _scale(np.abs(array), -exponent))
    return _scale(values, exponent).reshape(_batch_shape(binding, array))


@np.errstate(over="ignore", under="ignore")
def project(binding: Binding, y: npt.ArrayLike, radius: npt.ArrayLike) -> Array:
    """`y` projected, level by level, on the ball of the tree's norm.

    `y` has rank ``binding.rank`` and finite values; `radius` is a number, or an array that
    broadcasts over the shape of the batch axes. The result is a new float64 array of y's shape.
    Entries whose group is inside its ball, and so all of a `y` inside the ball, are unchanged to
    the bit. A ValueError for a wrong rank, and for a negative, NaN or misshapen radius.
    """
    array = _checked(binding, y)
    radii = _radii(binding, array, radius)
    if array.size == 0:
        return np.copy(array)
    exponent = _exponent(binding, array)
    a = _scale(np.abs(array), -exponent)
    u = _project(binding.root, a, _scale(radii, -exponent))
    # Scaling back is exact but for subnormal numbers; unchanged entries do without it.
    x: Array = np.copysign(np.where(u == a, np.abs(array), _scale(u, exponent)), array)
    return x


def _value(level: Level, a: Array) -> Array:
    """Upward: the level's norm of each of its groups."""
    return REFERENCES[level.norm].norm(_inner(level, a), level.axes)


def _project(level: Level, a: Array, radius: Array) -> Array:
    """Downward: the level shares its radius out, and each share is the radius of a group below."""
    values = _inner(level, a)
    reference = REFERENCES[level.norm]
    inside = reference.norm(values, level.axes) <= radius
    u = np.where(inside, values, reference.ball(values, level.axes, radius))
    if not level.children:
        return u
    (child,) = level.children
    return _project(child, a, u)


def _inner(level: Level, a: Array) -> Array:
    """What the level aggregates: its child's values, or at the leaf the array's own."""
    if not level.children:
        return a
    (child,) = level.children
    return _value(child, a)


# Norms and balls of groups of magnitudes `a`, along `axes`; the radii have length 1 there. A ball
# is asked only about groups outside it, and its answer for the others is not used.


def _l1(a: Array, axes: tuple[int, ...]) -> Array:
    return np.asarray(a.sum(axis=axes, keepdims=True))


def _l2(a: Array, axes: tuple[int, ...]) -> Array:
    _, exponent = np.frexp(_linf(a, axes))  # per group: no square is beyond the range of float64
    return _scale(np.sqrt(_l1(_scale(a, -exponent) ** 2, axes)), exponent)


def _linf(a: Array, axes: tuple[int, ...]) -> Array:
    return np.asarray(a.max(axis=axes, keepdims=True, initial=0.0))


def _l1_ball(a: Array, axes: tuple[int, ...], radius: Array) -> Array:
    """Subtract the threshold at which what remains of the group adds up to the radius.

    The threshold of the k largest is (their sum - radius) / k, and the right k gives the largest.
    Values are taken relative to the group's top: those that survive are within a radius of it, so
    nothing is lost when the radius is much smaller than they are.
    """
    below = a - _linf(a, axes)
    descending = np.sort(_rows(below, axes), axis=-1)[..., ::-1]
    counts = np.arange(1, descending.shape[-1] + 1)
    thresholds = (np.cumsum(descending, axis=-1) - _rows(radius, axes)) / counts
    remains = below - thresholds.max(axis=-1).reshape(radius.shape)
    return np.asarray(np.clip(remains, 0.0, a))


def _l2_ball(a: Array, axes: tuple[int, ...], radius: Array) -> Array:
    length = _l2(a, axes)
    return a / np.where(length > radius, length, 1.0) * np.where(length > radius, radius, 1.0)


def _linf_ball(a: Array, axes: tuple[int, ...], radius: Array) -> Array:
    return np.minimum(a, radius)


class Reference(NamedTuple):
    """A norm's value and the projection on its ball, of groups along some axes."""

    norm: Callable[[Array, tuple[int, ...]], Array]
    ball: Callable[[Array, tuple[int, ...], Array], Array]


REFERENCES: Mapping[str, Reference] = MappingProxyType(
    {
        "l1": Reference(_l1, _l1_ball),
        "l2": Reference(_l2, _l2_ball),
        "linf": Reference(_linf, _linf_ball),
    }
)


def _rows(a: Array, axes: tuple[int, ...]) -> Array:
    """The groups along `axes` as rows, in the last axis of the result."""
    groups = np.moveaxis(a, axes, range(-len(axes), 0))
    return groups.reshape(*groups.shape[: -len(axes)], -1)


def _exponent(binding: Binding, y: Array) -> Exponent:
    """Of the power of two to divide by, so that no sum overflows and nothing small vanishes."""
    reduced = tuple(axis for axis in range(binding.rank) if axis not in binding.batch)
    _, exponent = np.frexp(_linf(np.abs(y), reduced))
    return exponent - _TOP


def _scale(a: Array, exponent: Exponent) -> Array:
    """``a * 2**exponent``, exact within the range of float64 and infinite above it."""
    scaled: Array = np.ldexp(a, exponent)
    return scaled


def _checked(binding: Binding, y: npt.ArrayLike) -> Array:
    array = np.asarray(y, dtype=np.float64)
    if array.ndim != binding.rank:
        raise ValueError(f"an array of rank {binding.rank} is expected, not {array.ndim}")
    return array


def _batch_shape(binding: Binding, array: Array) -> tuple[int, ...]:
    return tuple(array.shape[axis] for axis in binding.batch)


def _radii(binding: Binding, array: Array, radius: npt.ArrayLike) -> Array:
    """The radius for each index along the batch axes, with length 1 along all others."""
    radii = np.asarray(radius, dtype=np.float64)
    if not np.all(radii >= 0):
        raise ValueError("a radius must not be negative or NaN")
    batch = _batch_shape(binding, array)
    try:
        radii = np.broadcast_to(radii, batch)
    except ValueError:
        message = f"a radius of shape {radii.shape} does not fit the batch axes' shape {batch}"
        raise ValueError(message) from None
    lengths = (array.shape[axis] if axis in binding.batch else 1 for axis in range(array.ndim))
    return radii.reshape(tuple(lengths))
